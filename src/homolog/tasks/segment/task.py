"""The segment task: label every voxel, learnt from labelled scans."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from homolog.backbones.base import Backbone
from homolog.config import option
from homolog.errors import UnusableInput
from homolog.events import Job, Note, drain
from homolog.feed.reading import CaseRef, grid_of
from homolog.geometry.affine import Index
from homolog.geometry.anisotropy import thick_axis
from homolog.label_names import key_of
from homolog.metrics.overlap import dice_per_label
from homolog.nn.decoders import suited_decoder
from homolog.scans.volume import LabelMap, Volume
from homolog.store.card import Card
from homolog.store.preprocess import restore_labels
from homolog.tasks import PRETRAINED
from homolog.tasks.base import (
    FACTS,
    LearnedConfig,
    LearnedTask,
    PredictOptions,
    TaskModule,
    Trained,
    score_labels,
)
from homolog.tasks.segment.network import (
    JoinedSegmenters,
    LabelSpace,
    SegmentModule,
    SegmentNetwork,
    annotated,
    as_label_values,
    channels_spec,
    choose_window,
    classes_of,
    in_model,
    label_stored,
    prepared_for,
    smallest_integers,
    smallest_window,
    space_of,
    spaces_note,
    spec_index,
    useful_flips,
)
from homolog.views.view import Anchor, Intensity, ViewSpec

if TYPE_CHECKING:
    from homolog.recipes import Sources

# Settings of the segment task: what a user may choose, and the recipes.


RECIPES: Mapping[str, Mapping[str, Any]] = {
    "cpu": {
        "backbone": {"name": "resunet"},
        "training": {
            "steps": 1500,
            "batch_size": 2,
            "learning_rate": 1e-3,
            "validate_every": 300,
        },
        "pretrained": PRETRAINED["cpu"],
    },
    "gpu": {
        "backbone": {"name": "resunet"},
        "training": {
            "steps": 20000,
            "batch_size": 4,
            "learning_rate": 1e-3,
            "warmup_steps": 200,
            "validate_every": 1000,
        },
        "pretrained": PRETRAINED["gpu"],
    },
}

# Recipes as the papers have them; what is not printed is ours, see SOURCES.
# Paper: Alice Table 8; MixCL 3.1, fine-tuning; Joint 2D U-Net.
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    # Scans at 1.5 x 0.76 x 0.76 mm (z, y, x): homolog prepare --spacing 1.5,0.76,0.76
    "alice": {
        "task": {
            "window": [96, 96, 96],
            "flip": [0.5, 0.5, 0.5],
            "rotate_deg": 15.0,
            "scale": 0.0,
        },
        "backbone": {
            "name": "vit",
            "image_size": [96, 96, 96],
            "hidden": 768,
            "inner": 3072,
            "layers": 12,
            "heads": 12,
        },
        "training": {
            "epochs": 1000.0,
            "warmup_epochs": 50.0,
            "batch_size": 8,
            "learning_rate": 1e-4,
            "weight_decay": 1e-5,
            "validate_every": 1000,
        },
    },
    "alice_swin": {
        "task": {
            "window": [96, 96, 96],
            "flip": [0.5, 0.5, 0.5],
            "rotate_deg": 15.0,
            "scale": 0.0,
        },
        "backbone": {"name": "swin", "feature_size": 48},
        "training": {
            "epochs": 1000.0,
            "warmup_epochs": 50.0,
            "batch_size": 8,
            "learning_rate": 4e-4,
            "weight_decay": 1e-5,
            "validate_every": 1000,
        },
    },
    "alice_nnformer": {
        "task": {
            "window": [96, 128, 128],
            "flip": [0.5, 0.5, 0.5],
            "rotate_deg": 0.0,
            "scale": 0.3,
            "deep_supervision": True,
        },
        "backbone": {"name": "nnformer", "decoder": "nnformer"},
        "training": {
            "epochs": 1000.0,
            "warmup_epochs": 40.0,
            "batch_size": 8,
            "optimizer": "sgd",
            "momentum": 0.99,
            "schedule": "poly",
            "min_learning_rate_factor": 0.0,
            "learning_rate": 0.01,
            "weight_decay": 3e-5,
            "validate_every": 1000,
        },
    },
    # Scans at 2 x 1.5 x 1.5 mm, -150 to 250 HU:
    # homolog prepare --spacing 2,1.5,1.5 --window-hu=-150,250
    "mixcl": {
        "task": {
            "window": [96, 96, 96],
            "flip": [0.2, 0.2, 0.2],
            "quarter_turns": 0.2,
            "rotate_deg": 0.0,
            "scale": 0.0,
            "intensity": 0.667,
        },
        "backbone": {"name": "vit", "hidden": 768, "inner": 3072, "heads": 12},
        "training": {
            "steps": 2000,
            "batch_size": 2,
            "learning_rate": 1e-4,
            "weight_decay": 1e-5,
            "warmup_steps": 0,
            "validate_every": 200,
        },
    },
    # Slice by slice, by a 2D U-Net on ResNet-50.
    "joint": {
        "backbone": {"name": "resnet2d"},
        "training": {
            "steps": 20000,
            "batch_size": 16,
            "optimizer": "sgd",
            "learning_rate": 0.01,
            "validate_every": 1000,
        },
    },
    "s2dc": {
        "task": {"window": [96, 96, 96]},
        "backbone": {"name": "swin", "feature_size": 48, "use_v2": True},
        "training": {
            "steps": 20000,
            "batch_size": 4,
            "learning_rate": 3e-4,
            "warmup_steps": 500,
            "validate_every": 1000,
        },
    },
}

_TABLE = (
    "training.epochs training.warmup_epochs training.batch_size training.learning_rate "
    "training.weight_decay task.window backbone.name"
)
_ALICE: Sources = {
    "paper: Table 8": _TABLE,
    "paper: Table 8, random flip and rotation": "task.flip task.scale",
    "own: how far is not printed": "task.rotate_deg",
    "own: not printed": "training.validate_every",
}
SOURCES: Mapping[str, Sources] = {
    "alice": {
        **_ALICE,
        "paper: ViT-B, as in pretraining": "backbone.image_size backbone.hidden "
        "backbone.inner backbone.layers backbone.heads",
    },
    "alice_swin": {**_ALICE, "code: SwinUNETR": "backbone.feature_size"},
    "alice_nnformer": {
        "paper: Table 8": f"{_TABLE} training.optimizer training.momentum "
        "training.schedule",
        "paper: Table 8, scaling and mirroring": "task.flip task.rotate_deg",
        "paper: nnFormer's own": "backbone.decoder",
        "own: how far is not printed": "task.scale",
        "code: nnFormer's poly ends at 0": "training.min_learning_rate_factor",
        "code: nnFormer's trainer": "task.deep_supervision",
        "own: not printed": "training.validate_every",
    },
    "mixcl": {
        "paper: 3.1": "training.steps training.batch_size training.learning_rate "
        "training.weight_decay task.flip task.quarter_turns task.rotate_deg "
        "task.scale task.intensity",
        "paper: UNETR": "backbone.name backbone.hidden backbone.inner backbone.heads "
        "task.window",
        "own: not printed": "training.warmup_steps training.validate_every",
    },
    "joint": {
        "paper: Downstream Task": "backbone.name training.optimizer "
        "training.learning_rate",
        "own: in an appendix that is not published": "training.steps "
        "training.batch_size training.validate_every",
    },
    "s2dc": {
        "paper: Swin-B and 96^3, as in pretraining": "backbone.name task.window",
        "code": "backbone.feature_size backbone.use_v2",
        "own: not printed": "training.steps training.batch_size "
        "training.learning_rate training.warmup_steps training.validate_every",
    },
}


@dataclass(frozen=True)
class SegmentConfig(LearnedConfig):
    """How a segmentation is learnt."""

    window: tuple[int, int, int] | None = option(
        None,
        "crop z, y, x; empty takes the median scan's size as far as memory allows, "
        "of a 2D network one slice",
        unit="voxel",
        minimum=1,
    )
    balance: float = option(
        0.67, "share of crops centred on a label", minimum=0.0, maximum=1.0
    )
    rotate_deg: float = option(
        15.0, "largest rotation about each axis", unit="deg", minimum=0.0, maximum=180.0
    )
    tilt_deg: float | None = option(
        None,
        "largest rotation out of the slices' plane; empty: as rotate_deg, but none "
        "where slices are three times as thick as pixels are wide",
        unit="deg",
        minimum=0.0,
        maximum=180.0,
        advanced=True,
    )
    scale: float = option(
        0.15, "largest change of size, as a share", minimum=0.0, maximum=0.9
    )
    elastic_mm: float = option(
        0.0, "standard deviation of elastic displacement", unit="mm", minimum=0.0
    )
    flip: tuple[float, float, float] = option(
        (0.0, 0.0, 0.0),
        "probability of a mirrored crop along z, y, x; labels that tell left from "
        "right do not survive mirroring",
        minimum=0.0,
        maximum=1.0,
    )
    quarter_turns: float = option(
        0.0,
        "probability of a turn by a multiple of 90 degrees in planes of equal sides",
        minimum=0.0,
        maximum=1.0,
        advanced=True,
    )
    intensity: float = option(
        1.0, "strength of random intensity changes; 0: none", minimum=0.0, maximum=3.0
    )
    deep_supervision: bool = option(
        False,
        "coarser stages of the decoder answer, too, while it learns; each counts half "
        "as much as the next finer one, the coarsest nothing",
        advanced=True,
    )
    overlap: float = option(
        0.5, "shared part of neighbouring windows", minimum=0.0, maximum=0.9
    )
    carry: bool = option(
        False,
        "for few labelled patients: their labels are first carried over to other "
        "scans, to where grey values match; the network learns from those, and then "
        "from these and the true labels by halves; each of the two trainings has all "
        "steps, or half of the minutes",
        title="Carry labels first",
        later=True,
    )
    carry_to: int = option(
        12,
        "scans that get carried labels, at most, where the one above is ticked; drawn "
        "by the seed; 0: all",
        unit="scans",
        minimum=0,
        later=True,
    )


def intensity_changes(strength: float) -> Intensity:
    """Random intensity changes of nnU-Net's kind; ``strength`` scales their chance."""
    often, seldom = min(1.0, 0.3 * strength), min(1.0, 0.15 * strength)
    return Intensity(
        shift=(-0.2, 0.2),
        shift_probability=often,
        scale=(0.75, 1.25),
        scale_probability=often,
        gamma=(0.7, 1.5),
        gamma_probability=often,
        noise_std=(0.0, 0.15),
        noise_probability=seldom,
        blur_voxels=(0.5, 1.0),
        blur_probability=seldom,
        contrast=(0.75, 1.25),
        contrast_probability=seldom,
        low_resolution=(0.5, 1.0),
        low_resolution_probability=seldom,
    )


# Longest side and most voxels of a window chosen by itself; of volumes, and of slices.
_LIMITS = {"cpu": (96, 80**3), "cuda": (128, 128**3)}
SLICE_LIMITS = {"cpu": (256, 256**2), "cuda": (512, 512**2)}


class Segment(LearnedTask):
    """Segmentation by U-Net, Swin UNETR or UNETR, as the encoder decides.

    A 2D encoder learns from single slices across z, each from a scan and place of its
    own, turned and bent within their plane; it labels volumes slice by slice.

    Source: Isensee et al., Nature Methods 2021 (nnU-Net: label-balanced crops, Dice
        plus cross-entropy, sliding window); Hatamizadeh et al. 2022 (UNETR; Swin
        UNETR); Nguyen et al., AAAI 2023 (2D U-Net on a 2D encoder, slices merged).
    Differs from the paper: crops mirror only where asked, as many labels have a side;
        two thirds of the crops (not one third) are centred on a label; the 2D U-Net
        learns by AdamW, not by SGD, but in the recipe joint. Of thick slices crops turn
        within the slices only, by up to 15 degrees (the paper: 180).
    """

    Config: ClassVar[type] = SegmentConfig
    title: ClassVar[str] = "Segmentation"
    best_metric: ClassVar[str] = "dice"
    joins: ClassVar[bool] = True
    RECIPES: ClassVar[Mapping[str, Mapping[str, Any]]] = {**RECIPES, **PUBLISHED}
    SOURCES: ClassVar[Mapping[str, Sources]] = SOURCES

    config: SegmentConfig

    def usable(self, card: Card) -> bool:
        """A label map is stored."""
        return card.has_label

    def describe(
        self, cases: Sequence[CaseRef], backbone: Backbone, device: torch.device
    ) -> dict[str, Any]:
        """Window, labels and modalities."""
        backbone = backbone.planar()
        slicewise = backbone.spatial_dims == 2
        classes = classes_of(cases)
        if not classes.names:
            raise UnusableInput(
                "segment needs labelled voxels, but every label map is empty."
            )
        window = self.config.window
        if window is None:
            limits = SLICE_LIMITS if slicewise else _LIMITS
            side, voxels = limits.get(device.type, limits["cuda"])
            shapes = [case.card.shape for case in cases]
            window = choose_window(
                [(1, h, w) for _, h, w in shapes] if slicewise else shapes,
                backbone.size_divisor,
                smallest_window(backbone),
                side=side,
                voxels=voxels,
                spacing_mm=None if slicewise else grid_of(cases)[0],
            )
        backbone.check_size(window)
        return {
            "window": list(window),
            "across": self._across(cases),
            "divisor": list(backbone.size_divisor),
            "smallest": [
                min(a, b)
                for a, b in zip(smallest_window(backbone), window, strict=True)
            ],
            "overlap": self.config.overlap,
            "slicewise": slicewise,
            **channels_spec(cases),
            "modalities": sorted({case.card.modality for case in cases}),
            "label_values": [0, *classes.names],
            "label_names": {str(v): name for v, name in classes.names.items()},
            "flip": list(self.config.flip),
            "label_spaces": [space.to_dict() for space in classes.spaces],
            "labels_note": spaces_note(classes),
        }

    def network(self, backbone: Backbone, spec: Mapping[str, Any]) -> SegmentNetwork:
        """The decoder that fits the encoder's kind."""
        backbone = backbone.planar()
        decoder = suited_decoder(
            backbone, len(spec["label_values"]), int(spec["channels"])
        )
        return SegmentNetwork(backbone, decoder)

    def joined(self, networks: Sequence[nn.Module]) -> JoinedSegmenters:
        """The mean of logits."""
        return JoinedSegmenters(networks)

    def module(self, network: nn.Module, spec: Mapping[str, Any]) -> TaskModule:
        """Dice plus cross-entropy on crops of the window's size."""
        assert isinstance(network, SegmentNetwork)
        return SegmentModule(
            network,
            self._crop(spec_index(spec, "window"), spec.get("across")),
            spec["label_values"],
            average=self.config.average,
            deep=self.config.deep_supervision,
            spaces=[LabelSpace.from_dict(s) for s in spec.get("label_spaces", ())],
        )

    @property
    def balance(self) -> float:
        """Share of crops centred on a label."""
        return self.config.balance

    def _across(self, cases: Sequence[CaseRef]) -> int | None:
        """The axis across thick slices, the only one that crops turn about."""
        spacing, shape = grid_of(cases)
        return None if min(shape) == 1 else thick_axis(spacing)

    def _crop(self, size: tuple[int, int, int], across: int | None) -> ViewSpec:
        config = self.config
        strength, tilt = config.intensity, config.tilt_deg
        if tilt is None:
            tilt = config.rotate_deg if across is None else 0.0
        turns = [tilt, tilt, tilt]
        turns[across or 0] = config.rotate_deg
        z, y, x = turns
        return ViewSpec(
            size=size,
            place=Anchor(),
            translate=(0.05, 0.05, 0.05),
            rotate_deg=(z, y, x),
            scale=(1.0 / (1.0 + config.scale), 1.0 + config.scale),
            anisotropy=config.scale / 3.0,
            flip=config.flip,
            quarter_turns=config.quarter_turns > 0,
            quarter_probability=config.quarter_turns or 1.0,
            elastic_mm=config.elastic_mm,
            intensity=intensity_changes(strength),
            labels=True,
        )

    def effort(self, card: Card, spec: Mapping[str, Any]) -> float:
        """Voxels of the scan by those of a crop; windows overlap, but learn nothing."""
        return math.prod(card.shape) / math.prod(spec_index(spec, "window"))

    def validate(
        self,
        model: Trained,
        cases: Iterable[CaseRef],
        look: Callable[..., None] | None = None,
        share: float = 1.0,
    ) -> dict[str, float]:
        """``dice`` (mean over labels and cases), ``worst``, and one value per label.

        A part of a scan lies around the middle of its labels.
        """
        values = model.spec["label_values"][1:]
        rows = []
        for case in cases:
            image, label, known = _voxels(case, model.spec)
            if share < 1.0:
                box = box_around(label, share, spec_index(model.spec, "window"))
                image, label = image[(slice(None), *box)], label[box]
            result = drain(label_stored(model, image, case.card))
            assert result is not None
            predicted = as_label_values(result.labels, model.spec)
            row = dict.fromkeys(values, math.nan)
            rows.append(row | dice_per_label(predicted, label, known))
            if look is not None:
                look(case, image, predicted, label)
        per_label = {v: _mean([row[v] for row in rows]) for v in values}
        per_case = [_mean(list(row.values())) for row in rows]
        metrics = {
            "dice": _mean(per_case),
            "worst": min((d for d in per_case if d == d), default=math.nan),
        }
        if len(values) <= 8:
            names = model.spec["label_names"]
            metrics |= {f"dice {names[str(v)]}": per_label[v] for v in values}
        return metrics

    def score(
        self,
        model: Trained,
        case: CaseRef,
        *,
        flips: Sequence[int] = (),
        tolerance_mm: float = 1.0,
    ) -> Job[list[dict[str, Any]]]:
        """Dice, NSD and HD95 of each label on the store's grid."""
        own = str(model.card.get("store_hash", ""))
        image, label, known = _voxels(case, model.spec, own)
        result = yield from label_stored(model, image, case.card, flips=flips)
        if result is None:
            return []
        names = {v: model.spec["label_names"][str(v)] for v in known}
        return score_labels(
            as_label_values(result.labels, model.spec),
            label,
            names,
            spacing_mm=case.card.spacing_mm if case.card.is_sized else None,
            tolerance_mm=tolerance_mm,
            regions=_regions(case, names),
        )

    def run(
        self,
        volume: Volume,
        model: Trained,
        options: PredictOptions = PredictOptions(),  # noqa: B008 - frozen
    ) -> Job[LabelMap | None]:
        """Label a scan on its own grid; None when stopped."""
        flips = useful_flips(model, options.flips)
        unseen = [axis for axis in flips if not model.spec["flip"][axis]]
        if unseen:
            axes = ", ".join("zyx"[axis] for axis in unseen)
            text = f"the model never saw scans mirrored along {axes}; it may do worse."
            yield Note(text, "warning")
        prepared = yield from prepared_for(model, volume, options.modality)
        result = yield from label_stored(
            model,
            prepared.data,
            prepared,
            flips=flips,
            overlap=options.overlap,
            windows=options.windows,
        )
        if result is None:
            return None
        if result.constant:
            yield Note(
                f"{volume.name}: {result.constant} of {result.windows} windows were "
                "constant and predicted once."
            )
        facts = {"windows": result.windows, "window": list(result.window)}
        values = as_label_values(result.labels, model.spec)
        restored = restore_labels(values, prepared, volume)
        names = {int(v): n for v, n in model.spec["label_names"].items()}
        return LabelMap(
            smallest_integers(restored.data),
            volume.affine,
            names,
            volume.name,
            {**volume.meta, FACTS: facts},
        )


def box_around(
    label: NDArray[np.int16], share: float, least: Index
) -> tuple[slice, slice, slice]:
    """A part of a scan around the middle of what is labelled.

    Args:
        label: (D, H, W); where nothing is above 0 its own middle is taken.
        share: Voxels of the part by those of the whole, 0..1.
        least: No side is shorter, as far as the scan reaches.
    """
    box = []
    for axis, (whole, window) in enumerate(zip(label.shape, least, strict=True)):
        others = tuple(a for a in range(3) if a != axis)
        marked = np.flatnonzero((label > 0).any(axis=others))
        middle = (marked[0] + marked[-1]) // 2 if len(marked) else whole // 2
        side = min(whole, max(window, round(whole * share ** (1 / 3))))
        first = min(max(0, int(middle) - side // 2), whole - side)
        box.append(slice(first, first + side))
    return box[0], box[1], box[2]


def _regions(case: CaseRef, names: Mapping[int, str]) -> dict[str, list[int]]:
    """Unions of labels that the case's store wants scored, in the model's values."""
    value = {key_of(name): v for v, name in names.items()}
    told = {
        region: [key_of(member) for member in members]
        for region, members in case.store.regions.items()
    }
    return {
        region: sorted(value[key] for key in keys)
        for region, keys in told.items()
        if keys and all(key in value for key in keys)
    }


def _voxels(
    case: CaseRef, spec: Mapping[str, Any], learnt_from: str = ""
) -> tuple[NDArray[np.int16], NDArray[np.int16], list[int]]:
    """Image (C, D, H, W), labels (D, H, W) in the model's values, values annotated."""
    label = case.store.label(case.card.id)
    if label is None:
        raise UnusableInput(f"case {case.card.id!r} has no label map.")
    space = space_of(case.store, spec, learnt_from)
    return (
        np.asarray(case.store.image(case.card.id)[:]),
        in_model(np.asarray(label[:]), space),
        annotated(space, spec["label_values"][1:]),
    )


def _mean(values: Sequence[float]) -> float:
    """Mean of what is defined; NaN when nothing is."""
    known = [v for v in values if v == v]
    return sum(known) / len(known) if known else math.nan
