"""What a classifier is to learn, from the cards of the cases, and what counts more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from homolog.backbones.base import Backbone
from homolog.config import ConfigError, option
from homolog.errors import UnusableInput
from homolog.feed.reading import CaseRef
from homolog.geometry.affine import Index
from homolog.nn.heads import POOLINGS
from homolog.scans.volume import Channel
from homolog.store.card import Card
from homolog.tasks import PRETRAINED
from homolog.tasks.base import LearnedConfig
from homolog.tasks.classify.network import Stacked, Weights, keeps_slices
from homolog.tasks.classify.truth import (
    Annotated,
    Space,
    slice_truth,
    space_of,
    truth_rows,
)
from homolog.tasks.segment.network import (
    channels_spec,
    choose_window,
    smallest_window,
)

if TYPE_CHECKING:
    from homolog.recipes import Sources

# Settings of the classify task: what a user may choose, and the recipes.


RECIPES: Mapping[str, Mapping[str, Any]] = {
    "cpu": {
        "backbone": {
            "name": "resnet2d", "widths": [16, 32, 64, 128],
            "stage_blocks": [1, 1, 1, 1], "block": "basic", "norm": "group",
        },
        "training": {
            "steps": 400,
            "batch_size": 8,
            "learning_rate": 1e-3,
            "warmup_steps": 20,
            "validate_every": 50,
        },
        "pretrained": PRETRAINED["cpu"],
    },
    "gpu": {
        "backbone": {"name": "resnet2d"},
        "training": {
            "steps": 5000,
            "batch_size": 32,
            "learning_rate": 3e-4,
            "warmup_steps": 200,
            "validate_every": 250,
        },
        "pretrained": PRETRAINED["gpu"],
    },
}  # fmt: skip

# Recipes as the papers have them; what is not printed is ours, see SOURCES.
# Paper: Alice B, COVID; Hundred Million IV-E; Joint 3D classification.
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    # COVID-19 in chest CT (MosMed) from -1000 to 400 HU:
    # homolog prepare --window-hu=-1000,400
    "alice": {
        "task": {"window": [64, 128, 128], "flip": [0.5, 0.5, 0.5]},
        "backbone": {
            "name": "vit",
            "image_size": [64, 128, 128],
            "hidden": 768,
            "inner": 3072,
            "layers": 12,
            "heads": 12,
        },
        "training": {
            "steps": 10_000,
            "batch_size": 8,
            "learning_rate": 5e-5,
            "weight_decay": 1e-5,
            "warmup_steps": 400,
            "validate_every": 500,
        },
    },
    # Hemorrhage in head CT from -45 to 155 HU: homolog prepare --window-hu=-45,155
    "hundred_million": {
        "task": {
            "window": [40, 224, 192],
            "pooling": "mean_and_max",
            "weight_types": 1.0,
            "weight_slices": 1.0,
        },
        "backbone": {"name": "densenet"},
        "training": {
            "steps": 20_000,
            "batch_size": 8,
            "learning_rate": 1e-3,
            "warmup_steps": 500,
            "validate_every": 1000,
        },
    },
    # Slices of MPRAGE that show a metastasis; the scan and the mask of what is
    # suspected are channels T1 and mask of a manifest, image a|b
    "hundred_million_slices": {
        "task": {
            "labels": "slices",
            "neighbours": 5,
            "compress": 3,
            "slice_threshold": 0.6,
            "slices": 256,
            "window": [256, 224, 224],
        },
        "backbone": {"name": "resnet2d", "widths": [128, 256, 512, 1024]},
        "training": {
            "steps": 20_000,
            "batch_size": 1,
            "learning_rate": 1e-4,
            "warmup_steps": 500,
            "validate_every": 1000,
        },
    },
    "joint": {
        "task": {"hidden": 512},
        "backbone": {"name": "hybrid", "groups": 8, "slices_at_once": 128},
        "training": {
            "steps": 10_000,
            "batch_size": 8,
            "optimizer": "sgd",
            "learning_rate": 0.01,
            "validate_every": 500,
        },
    },
    "s2dc": {
        "task": {"window": [96, 96, 96]},
        "backbone": {"name": "swin", "feature_size": 48, "use_v2": True},
        "training": {
            "steps": 10_000,
            "batch_size": 4,
            "learning_rate": 3e-4,
            "warmup_steps": 500,
            "validate_every": 500,
        },
    },
}

SOURCES: Mapping[str, Sources] = {
    "alice": {
        "paper: B.3": "training.steps training.batch_size training.learning_rate "
        "training.weight_decay training.warmup_steps",
        "paper: B.2": "task.window task.flip",
        "paper: ViT-B, as in pretraining": "backbone.name backbone.image_size "
        "backbone.hidden backbone.inner backbone.layers backbone.heads",
        "own: not printed": "training.validate_every",
    },
    "hundred_million": {
        "paper: IV-E": "task.window task.pooling backbone.name",
        "paper: IV-E, auxiliary tasks; their weights are ours": "task.weight_types "
        "task.weight_slices",
        "own: not printed": "training.steps training.batch_size "
        "training.learning_rate training.warmup_steps training.validate_every",
    },
    "hundred_million_slices": {
        "paper: IV-D": "task.labels task.neighbours task.compress backbone.name "
        "backbone.widths",
        "paper: Table III, operation point": "task.slice_threshold",
        "own: whole scans, the side of its 2D crops": "task.slices task.window",
        "own: not printed": "training.steps training.batch_size "
        "training.learning_rate training.warmup_steps training.validate_every",
    },
    "joint": {
        "paper: two layers on the attention; their width is ours": "task.hidden",
        "paper: Eq. 7": "backbone.groups",
        "paper: Downstream Task": "backbone.name training.optimizer "
        "training.learning_rate",
        "own: for memory, changes no result": "backbone.slices_at_once",
        "own: in an appendix that is not published": "training.steps "
        "training.batch_size training.validate_every",
    },
    "s2dc": {
        "paper: Swin-B, as in pretraining": "backbone.name task.window",
        "code": "backbone.feature_size backbone.use_v2",
        "own: not printed": "training.steps training.batch_size "
        "training.learning_rate training.warmup_steps training.validate_every",
    },
}


# Paper: Hundred Million Table IV.
@dataclass(frozen=True)
class ClassifyConfig(LearnedConfig):
    """How a classification of whole scans is learnt."""

    labels: str = option(
        "auto",
        "one class per scan, or several or none of them; auto takes several where any "
        "scan of the store has more than one; slices: no class of scans but which "
        "slices show a finding, from label maps or boxes",
        choices=("auto", "one", "several", "slices"),
    )
    neighbours: int = option(
        1,
        "slices that an encoder of slices sees at once as channels, an odd number: the "
        "slice itself in the middle; a channel called mask is seen of itself alone",
        minimum=1,
        maximum=15,
    )
    compress: int = option(
        0,
        "channels that slices, neighbours and masks become by a 1 x 1 convolution "
        "before the encoder; 0: no such layer",
        minimum=0,
        advanced=True,
    )
    window: tuple[int, int, int] | None = option(
        None,
        "the scan is scaled to fit z, y, x; empty takes the median scan's size as far "
        "as memory allows",
        unit="voxel",
        minimum=1,
    )
    slices: int = option(
        32,
        "slices of a volume that an encoder of slices looks at, at most, evenly spread",
        minimum=2,
        maximum=1024,
    )
    slice_pooling: str = option(
        "attention",
        "how the slices of a volume become one answer with a 2D encoder",
        choices=POOLINGS,
    )
    hidden: int = option(
        0,
        "width of a fully connected layer before the last one; 0: no such layer",
        minimum=0,
        advanced=True,
    )
    rotate_deg: float = option(
        10.0, "largest rotation about z", unit="deg", minimum=0.0, maximum=180.0
    )
    scale: float = option(
        0.1, "largest change of size, as a share", minimum=0.0, maximum=0.9
    )
    translate: float = option(
        0.05, "largest shift, as a share of the window", minimum=0.0, maximum=0.5
    )
    flip: tuple[float, float, float] = option(
        (0.0, 0.0, 0.0),
        "probability of a mirrored scan along z, y, x",
        minimum=0.0,
        maximum=1.0,
    )
    intensity: float = option(
        1.0, "strength of random intensity changes; 0: none", minimum=0.0, maximum=3.0
    )
    pooling: str = option(
        "mean",
        "how the deepest features of a scan become one vector; mean_and_max also finds "
        "what is in one small place",
        choices=("mean", "mean_and_max"),
        advanced=True,
    )
    dropout: float = option(0.1, "of the pooled features", minimum=0.0, maximum=0.9)
    smoothing: float = option(
        0.05, "share of the truth given to all classes", minimum=0.0, maximum=0.5
    )
    balanced: bool = option(True, "rare classes count as much as frequent ones")
    threshold: str = option(
        "half",
        "where a scan may have several classes, one is there from a probability of 0.5 "
        "on, or from that which tells the validation scans apart best",
        choices=("half", "validation"),
        advanced=True,
    )
    weight_types: float = option(
        1.0,
        "weight of the further findings (column types); 0 leaves them out",
        minimum=0.0,
        advanced=True,
    )
    weight_slices: float = option(
        0.0,
        "weight of telling which slices show a finding, learnt from label maps (any "
        "label is a finding) or boxes; 0 leaves it out",
        minimum=0.0,
    )
    slice_threshold: float = option(
        0.5,
        "a slice is told to show a finding from this probability on",
        minimum=0.0,
        maximum=1.0,
        advanced=True,
    )
    validate_cases: int | None = option(
        0,
        "labelled held-out cases that choose which weights (and thresholds) are kept, "
        "at most; 0: all; empty: none, the last weights (or their average) are kept",
        minimum=0,
        empty="none",
    )

    def __post_init__(self) -> None:
        if self.neighbours % 2 == 0:
            raise ConfigError(
                f"neighbours must be an odd number, got {self.neighbours}."
            )


def seen_channels(config: ClassifyConfig, card: Card) -> int:
    """How many channels of a case, or of a slice of it, the encoder sees."""
    stacked = _stacked(config, card)
    return stacked.compress or stacked.width


def stacked_of(spec: Mapping[str, Any]) -> Stacked | None:
    """What the encoder sees of each slice; None where that is the slice itself."""
    told = spec.get("stacked")
    if not told:
        return None
    return Stacked(
        int(told["channels"]), int(told["neighbours"]), tuple(told["masks"]),
        int(told["compress"]),
    )  # fmt: skip


def _stacked(config: ClassifyConfig, card: Card) -> Stacked:
    masks = [
        number
        for number, name in enumerate(card.channel_names)
        if Channel(Path(), name).is_mask
    ]
    return Stacked(card.channels, config.neighbours, tuple(masks), config.compress)


# Longest side and most voxels of a window chosen by itself; of images, of the slices of
# volumes, and of volumes.
_IMAGE_LIMITS = {"cpu": (128, 128**2), "cuda": (512, 512**2)}
_SLICE_LIMITS = {"cpu": (96, 96**2), "cuda": (256, 256**2)}
_VOLUME_LIMITS = {"cpu": (64, 48**3), "cuda": (160, 128**3)}
# A class that few scans show counts at most so much more than its absence.
_MOST_WEIGHT = 50.0


def described(
    config: ClassifyConfig,
    cases: Sequence[CaseRef],
    backbone: Backbone,
    device: torch.device,
    annotated: Annotated,
) -> dict[str, Any]:
    """All that a classifier must remember but its weights; JSON types.

    Raises:
        UnusableInput: Nothing to tell apart, or nothing that tells of slices where they
            are to be learnt.
    """
    space = space_of(
        cases,
        config.labels,
        types=config.weight_types > 0,
        slices=config.weight_slices > 0,
    )
    if space.slices and not any(slice_truth(case) is not None for case in cases):
        raise UnusableInput(
            f"weight_slices={config.weight_slices:g} needs scans with label maps or "
            f"boxes, none of the {len(cases)} has any."
        )
    bare = replace(space, slices=0)
    rows = np.array(truth_rows(cases, bare, annotated), np.int64)
    wide = len(space.classes) if space.several else 1
    window = _window(config, cases, backbone, device)
    stacked = _stacked(config, cases[0].card)
    plain = stacked == Stacked(stacked.channels)
    by_slices = backbone.spatial_dims == 2 and window[0] > 1
    if (config.neighbours > 1 or config.compress) and not by_slices:
        raise UnusableInput(
            f"neighbours={config.neighbours} and compress={config.compress} are of an "
            "encoder of slices (--backbone resnet2d) that looks at volumes."
        )
    return {
        "window": list(window),
        **channels_spec(cases),
        "modalities": sorted({case.card.modality for case in cases}),
        "classes": list(space.classes),
        "several": space.several,
        "slices": space.slices,
        "by_slice": space.by_slice,
        "stacked": asdict(stacked) if by_slices and not plain else None,
        **_counted(cases, space, rows[:, :wide]),
        **_types(space, rows[:, wide:]),
    }


def weights_of(config: ClassifyConfig, spec: Mapping[str, Any]) -> Weights:
    """What counts how much, from the numbers of scans of each class and type."""
    counts, known = spec["counts"], spec.get("known", ())
    weights = [1.0] * len(counts)
    types = [1.0] * len(spec.get("types", ()))
    if config.balanced and spec.get("several"):
        weights = _presence(counts, known)
    elif config.balanced:
        weights = [sum(counts) / (len(counts) * n) for n in counts]
    if config.balanced and types:
        types = _presence(spec["type_counts"], spec["type_known"])
    slices = config.weight_slices
    if spec.get("by_slice"):
        slices = slices or 1.0
    return Weights(weights, types, config.weight_types, slices)


def _presence(counts: Sequence[int], known: Sequence[int]) -> list[float]:
    pairs = zip(counts, known, strict=True)
    return [min((n - k) / max(k, 1), _MOST_WEIGHT) for k, n in pairs]


def _counted(
    cases: Sequence[CaseRef], space: Space, marks: np.ndarray
) -> dict[str, Any]:
    """Scans of each class, and of how many it is known."""
    names, total = space.classes, len(cases)
    if space.by_slice:  # every scan teaches, whatever it shows
        return {"counts": [int(marks.sum())], "known": [total]}
    if not space.several:
        if len(names) < 2:
            raise UnusableInput(
                f"classify needs scans of two classes, all {total} are {names[0]!r}."
            )
        counts = np.bincount(marks[:, 0], minlength=len(names))
        return {"counts": counts.tolist()}
    if not names:
        raise UnusableInput(
            f"classify needs scans with a finding, all {total} are without any."
        )
    counts, known = (marks == 1).sum(0), (marks >= 0).sum(0)
    always = [name for name, k, n in zip(names, counts, known, strict=True) if k == n]
    if always:
        raise UnusableInput(
            f"classify needs scans without {always[0]!r} too, all "
            f"{int(known[names.index(always[0])])} show it."
        )
    return {"counts": counts.tolist(), "known": known.tolist()}


def _types(space: Space, marks: np.ndarray) -> dict[str, Any]:
    if not space.types:
        return {}
    return {
        "types": list(space.types),
        "type_counts": (marks == 1).sum(0).tolist(),
        "type_known": (marks >= 0).sum(0).tolist(),
    }


def _window(
    config: ClassifyConfig,
    cases: Sequence[CaseRef],
    backbone: Backbone,
    device: torch.device,
) -> Index:
    """The size scans are brought to; of an encoder of slices, how many and theirs."""
    flat = keeps_slices(backbone)
    depth = min(max(case.card.shape[0] for case in cases), config.slices)
    if config.window is not None:
        d, h, w = config.window
        if flat and d == 1 < depth:
            raise UnusableInput(
                f"window={d},{h},{w} is of one slice, but scans have up to "
                f"{max(case.card.shape[0] for case in cases)}; give it more slices."
            )
        backbone.check_size((1, h, w) if backbone.spatial_dims == 2 else (d, h, w))
        return d, h, w
    limits = _VOLUME_LIMITS
    if flat:
        limits = _SLICE_LIMITS if depth > 1 else _IMAGE_LIMITS
    side, voxels = limits.get(device.type, limits["cuda"])
    least = smallest_window(backbone)
    shapes = [case.card.shape for case in cases]
    window = choose_window(
        [(1, *shape[1:]) for shape in shapes] if flat else shapes,
        backbone.size_divisor,
        (1, *least[1:]) if flat else least,
        side=side,
        voxels=voxels,
    )
    backbone.check_size(window)
    return (depth, *window[1:]) if flat else window
