"""Hundred Million: clusters of each modality by themselves, and labels where known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from homolog.backbones.base import Backbone
from homolog.config import ConfigError, as_in, option
from homolog.feed.reading import slice_values
from homolog.geometry.affine import Array, Index
from homolog.label_names import findings_of, has_name, has_several, refuse_ignored
from homolog.losses.segmentation import dice_cross_entropy
from homolog.methods._clusters import (
    MultiCropConfig,
    clustering_of,
    default_prototypes,
    multi_crop,
)
from homolog.methods.base import Case, CaseCard, Method
from homolog.nn.heads import DenseDecoder, Projector, Standardise, pooled
from homolog.nn.masking import at_cells
from homolog.nn.memory_bank import shared_information
from homolog.recipes import Sources
from homolog.store.card import box_name
from homolog.store.crops import BOXES
from homolog.views.energy_bands import (
    BandReference,
    Spectrum,
    band_energies,
    split_bands,
)
from homolog.views.view import Intensity, View, Views, ViewSpec
from homolog.words import listed

# Classes of whole scans that teach beside the clusters: one per scan, or several.


def names_of(targets: Sequence[str | None]) -> tuple[list[str], bool]:
    """Classes that scans name, and whether a scan may show several or none of them.

    They may where any scan has more than one (``effusion|nodule``).
    """
    known = [text for text in targets if text is not None]
    if any(map(has_several, known)):
        return sorted({name for text in known for name in findings_of(text)}), True
    return sorted(set(known)), False


# Paper: Hundred Million Eq. 5 to 7.
class ClassHead(nn.Module):
    """Cross-entropy of the class, or of each finding, of scans where it is known.

    Args:
        width: Channels E of the vectors.
        names: Classes (K).
        several: A scan shows any of them or none.

    Source: Ghesu et al., 2022, section III-A.3, Eq. 6.
    Differs from the paper: the linear layer sees features standardised between scans;
        several findings of one scan are told one by one.
    """

    def __init__(self, width: int, names: Sequence[str], *, several: bool) -> None:
        super().__init__()
        self.names, self.several = tuple(names), several
        self.standard = Standardise(width)
        self.linear = nn.Linear(width, len(self.names))

    def targets(self, texts: Sequence[str | None]) -> list[int] | list[list[float]]:
        """What cards say -> ``View.target``: class or -1; or K numbers 0, 1 or -1."""
        if not self.several:
            known = {name: number for number, name in enumerate(self.names)}
            return [known.get(text or "", -1) for text in texts]
        rows = []
        for text in texts:
            shown = findings_of(text) if text is not None else ()
            rows.append(
                [-1.0 if text is None else float(n in shown) for n in self.names]
            )
        return rows

    def knows(self, text: str | None) -> bool:
        """Whether a scan of this class teaches."""
        return text is not None and (self.several or text in self.names)

    def forward(self, vectors: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Errors of a batch.

        Args:
            vectors: (B, V, E), crops of each scan.
            target: As ``targets`` numbers them, (B,) or (B, K).

        Returns:
            ``total`` (summed over the scans that are known, mean over their crops and
            findings), ``labelled`` (their number) and ``accuracy``.
        """
        known = target >= 0 if target.ndim == 1 else (target >= 0).all(1)
        plain = nn.functional.layer_norm(vectors, vectors.shape[-1:])
        seen = self.standard(plain, known[:, None].expand(vectors.shape[:2]))
        scores = self.linear(seen).float()
        mean = scores.mean(1)
        if self.several:
            wanted = target.clamp_min(0).float()
            error = nn.functional.binary_cross_entropy_with_logits(
                scores, wanted[:, None].expand_as(scores), reduction="none"
            ).mean((1, 2))
            right = ((mean > 0) == (wanted > 0)).float().mean(1)
        else:
            error = nn.functional.cross_entropy(
                scores.transpose(1, 2),
                target[:, None].expand(-1, scores.shape[1]),
                ignore_index=-1,
                reduction="none",
            ).mean(1)
            right = (mean.argmax(1) == target).float()
        labelled = known.sum()
        zero = torch.zeros_like(error)
        return {
            "total": torch.where(known, error, zero).sum(),
            "labelled": labelled,
            "accuracy": (right * known).sum() / labelled.clamp_min(1),
        }


# Label maps and boxes of some scans as supervision of a pretraining.


_HIDDEN = 64

# One class of one store: number of the store, its value there, number of the class.
Row = tuple[int, int, int]


def masks_of(cases: Sequence[Case]) -> tuple[list[str], list[Row]]:
    """The classes that label maps and boxes annotate together.

    Labels of one name are one class, whichever store or kind of mark they come from;
    a label without a name of its own is a class of its own store.

    Args:
        cases: What is learnt from.

    Returns:
        Names of the classes, and one row (store, value, class) for each class of each
        store. Stores are numbered as ``View.label_space``; classes from 1; a box has
        the value ``BOXES`` + class.
    """
    number: dict[tuple[str, ...], int] = {}
    names: list[str] = []

    def class_of(name: str, *of: str) -> int:
        key = (name.strip().casefold(), *of)
        if key not in number:
            names.append(name)
            number[key] = len(names)
        return number[key]

    rows: set[Row] = set()
    numbers: dict[Path, int] = {}
    for case in cases:
        path, card = case.store.path, case.card
        if path not in numbers:
            refuse_ignored(path, case.store.label_names)
        store = numbers.setdefault(path, len(numbers))
        for value in card.label_values:
            name = case.store.label_names.get(value, "")
            if has_name(value, name):
                one = class_of(name)
            else:
                one = class_of(f"label {value} of {path.name}", str(path))
            rows.add((store, value, one))
        # a case has one map: beside a label map its boxes stay unused
        for box in () if card.has_label else card.boxes:
            one = class_of(box_name(box))
            rows.add((store, BOXES + one, one))
    return names, sorted(rows)


# Paper: Hundred Million Eq. 5 to 7.
class MaskHead(nn.Module):
    """Reads label maps off an encoder's maps, coarsely; dropped after the training.

    All maps from one of a given stride on are projected, enlarged and added: what can
    be read so must lie in the encoder. A decoder to every voxel would learn much of it
    itself, and cost more than a small encoder.

    A label map or box only says something of the classes its store annotates: what is
    not, counts as background or any of the others. Inside a box is its class, outside
    background: a weak truth.

    Args:
        backbone: Its channels and strides are read; it is not kept.
        stride: In plane; the first map as coarse, or else the deepest, gives the grid.
        classes: How many, without background.
        rows: Of ``masks_of``.

    Raises:
        ConfigError: A row of a class that is not there.

    Source: Ghesu et al., arXiv 2201.01283, Eq. 5 and 6: g reads output and intermediate
    features; the paper names no loss for masks: Dice and cross-entropy (nnU-Net).
    """

    def __init__(
        self,
        backbone: Backbone,
        stride: int,
        classes: int,
        rows: Sequence[Row],
    ) -> None:
        super().__init__()
        wrong = [r for r in rows if min(r[:2]) < 0 or not 0 < r[2] <= classes]
        if wrong:
            raise ConfigError(
                f"mask_rows must be (store, value, class), class 1 to {classes} of "
                f"mask_names, got {tuple(wrong[0])}."
            )
        coarse = [i for i, s in enumerate(backbone.strides) if max(s) >= stride]
        self.first = coarse[0] if coarse else len(backbone.strides) - 1
        self.stride = backbone.strides[self.first]
        self.decoder = DenseDecoder(
            list(backbone.channels[self.first :]),
            hidden=_HIDDEN,
            out_features=classes + 1,
        )
        # two rows per store, label maps and boxes; column v + 1: class of value v
        stores = 1 + max(store for store, _, _ in rows)
        top = max(value - (BOXES if value > BOXES else 0) for _, value, _ in rows)
        table = torch.zeros(2 * stores, top + 3, dtype=torch.int64)
        table[:, 0] = -1
        annotated = torch.zeros(2 * stores, classes + 1, dtype=torch.bool)
        annotated[:, 0] = True
        for store, value, one in rows:
            is_box = value > BOXES
            row, column = 2 * store + is_box, value - BOXES * is_box + 1
            table[row, column] = one
            annotated[row, one] = True
        self.table: Tensor
        self.annotated: Tensor
        self.register_buffer("table", table, persistent=False)
        self.register_buffer("annotated", annotated, persistent=False)

    def target(self, view: View, grid: Sequence[int]) -> tuple[Tensor, Tensor]:
        """What the cells of a map are.

        Args:
            view: With labels.
            grid: Cells (d, h, w).

        Returns:
            (B V, d, h, w) int64 classes, 0 background, -1 unknown; and (B V, K + 1)
            bool, the classes that the crop's store annotates.
        """
        assert view.label is not None
        assert view.label_space is not None
        d, h, w = grid
        value = at_cells(view.label.flatten(0, 1), self.stride, (d, h, w))
        is_box = (value >= BOXES).any(1).long()
        value = torch.where(value >= BOXES, value - BOXES, value)
        space = view.label_space.repeat_interleave(view.label.shape[1])
        # stores after the last labelled one have no rows, and nothing to look up
        row = (2 * space + is_box).clamp_max(len(self.table) - 1)
        column = (value + 1).clamp_max(self.table.shape[1] - 1)
        classes = self.table[row[:, None], column].reshape(-1, d, h, w)
        return classes, self.annotated[row]

    def forward(self, maps: Sequence[Tensor], view: View) -> Mapping[str, Tensor]:
        """``error``, ``labelled`` (share of crops), ``dice`` of the classes there.

        Args:
            maps: All maps of the encoder for the crops of the view, (B V, E, d, h, w).
            view: With labels.
        """
        logits = self.decoder(tuple(maps[self.first :]))
        target, annotated = self.target(view, logits.shape[2:])
        with torch.autocast(logits.device.type, enabled=False):
            dice, cross_entropy = dice_cross_entropy(
                logits, target, annotated, together=True
            )
        labelled = (target >= 0).flatten(1).any(1).float().mean()
        return {
            "error": dice + cross_entropy,
            "labelled": labelled,
            "dice": _overlap(logits.detach(), target, annotated),
        }


def _overlap(logits: Tensor, target: Tensor, annotated: Tensor) -> Tensor:
    """Mean Dice, over the batch, of the classes that its truth shows; 0 without any."""
    shown = logits.float().masked_fill(~annotated[:, :, None, None, None], -torch.inf)
    known = (target >= 0)[:, None]

    def marked(classes: Tensor) -> Tensor:
        return torch.zeros_like(shown).scatter_(1, classes[:, None], 1.0) * known

    told, truth = marked(shown.argmax(1)), marked(target.clamp_min(0))
    space = (0, 2, 3, 4)
    sizes = truth.sum(space)[1:]
    score = 2 * (told * truth).sum(space)[1:] / (told.sum(space)[1:] + sizes + 1e-12)
    there = sizes > 0
    return (score * there).sum() / there.sum().clamp_min(1)


# Settings and recipes of Hundred Million.


# Paper: Hundred Million III-C, rescaling; Hundred Million III-C, grey values.
@dataclass(frozen=True)
class HundredMillionConfig(MultiCropConfig):
    """Settings of Hundred Million; the defaults suit a small machine."""

    scale: tuple[float, float] = as_in(
        MultiCropConfig,
        "scale",
        default=(0.4, 1.2),
        minimum=0.05,
        help="range of zoom; the paper shrinks images to 0.1 to 0.7 of their side",
    )

    clustering: str = option(
        "modality",
        "modality: every modality has clusters of its own and its share of each batch; "
        "together: all share them, which tends to find the modalities themselves",
        choices=("modality", "together"),
    )
    modalities: tuple[str, ...] = option(
        (), "whose turn it is in a batch; empty: those of the stores", advanced=True
    )
    class_names: tuple[str, ...] = option(
        (), "classes of whole scans; empty: those of the stores", advanced=True
    )
    class_several: bool = option(
        False,
        "a scan shows any of the classes or none; set where any scan has more than one",
        advanced=True,
    )
    weight_clusters: float = option(1.0, "weight of the clustering, alpha", minimum=0)
    weight_classes: float = option(
        1.0,
        "weight of the classes of those scans that have one, beta; 0: labels unused",
        minimum=0,
    )
    weight_masks: float = option(
        1.0,
        "weight of the label maps and boxes of those scans that have some; 0: unused",
        minimum=0,
    )
    mask_stride: int = option(
        4,
        "masks are read off the encoder's map of this stride in plane, and the deeper "
        "ones",
        unit="voxel",
        minimum=1,
        advanced=True,
    )
    mask_names: tuple[str, ...] = option(
        (), "classes of label maps and boxes; empty: those of the stores", advanced=True
    )
    mask_rows: tuple[tuple[int, int, int], ...] = option(
        (),
        "store, label value there, class from 1; empty: as the stores have them",
        advanced=True,
    )
    strict: bool = option(
        False,
        "the terms of classes and masks are divided by all samples of a batch, as "
        "printed, not by the labelled ones",
        advanced=True,
    )
    bands_probability: float = option(
        0.5, "probability of other energies of frequency bands", minimum=0, maximum=1
    )
    bands_of: str = option(
        "crop",
        "which bands: image, of the whole slice or picture before crops are cut from "
        "it, with reference energies of each modality, as in the paper (crops of one "
        "slice only); or crop, of each crop by itself, which is quicker",
        choices=("crop", "image"),
        advanced=True,
    )
    bands_modalities: tuple[str, ...] = option(
        (), "modalities whose energies bands_mean has, one after another", advanced=True
    )
    bands_sigmas: tuple[float, ...] = option(
        (0.5, 1.0, 2.0, 4.0),
        "Gaussians that split an image into bands, fine to coarse; of whole images, in "
        "their own voxels",
        unit="voxel",
        minimum=0.3,
        advanced=True,
    )
    bands_mean: tuple[float, ...] = option(
        (),
        "mean energy of each band, the low-pass last; empty: measured in the stores",
        minimum=0,
        advanced=True,
    )
    bands_std: tuple[float, ...] = option(
        (), "their standard deviations", minimum=0, advanced=True
    )
    gamma: tuple[float, float] = option(
        (0.6, 1.8), "range of gamma; the paper's 1.8 to 2.6 only darkens", minimum=0.1
    )
    shift_by_range: bool = option(
        False,
        "the offset, +- 0.2, is a share of a scan's range of values, as in the paper, "
        "not of normalised units",
        advanced=True,
    )


# Paper: Hundred Million Table I, 2D; Hundred Million Table I, 3D.
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "cpu": {
        "method": {
            "size": [1, 64, 64],
            "small_size": [1, 32, 32],
            "queue_length": 64,
            "prototypes": 16,
            "scale": [0.8, 1.25],
            "intensity_probability": 0.3,
            "bands_probability": 0.3,
        },
        "backbone": {
            "name": "resnet2d",
            "widths": [16, 32, 64, 128],
            "stage_blocks": [1, 1, 1, 1],
            "block": "basic",
            "norm": "group",
        },
        "training": {
            "steps": 1000,
            "batch_size": 40,
            "learning_rate": 1e-3,
            "weight_decay": 0.01,
            "warmup_steps": 40,
        },
    },
    "gpu": {
        "method": {
            "size": [1, 224, 224],
            "small_size": [1, 96, 96],
            "small_count": 6,
            "queue_length": 3840,
            "prototypes": 1000,
            "epsilon": 0.03,
            "hidden": 2048,
        },
        "backbone": {"name": "resnet2d"},
        "training": {
            "steps": 50_000,
            "batch_size": 128,
            "learning_rate": 3e-4,
            "weight_decay": 1e-6,
            "warmup_steps": 1000,
        },
    },
    # 2 crops of 224 and 6 of 92 (here 96: the network halves a side five times), K
    # 3000, queue 3840 from epoch 10 of 100, prototypes rest 10 000 iterations. LARC
    # falls from 0.6 to 0.0006 at batch 1024, which is that of 32 processes: take less
    # with fewer.
    "paper": {
        "method": {
            "size": [1, 224, 224],
            "small_size": [1, 96, 96],
            "small_count": 6,
            "queue_length": 3840,
            "queue_start": 0.1,
            "prototypes": 3000,
            "freeze": 0.001,
            "epsilon": 0.03,
            "hidden": 2048,
            "place": "slices",
            "prototype_rate": 1.0,
            "scale": [0.1, 0.7],
            "rotate_deg": [0.0, 0.0, 0.0],
            "gamma": [1.8, 2.6],
            "shift_by_range": True,
            "bands_of": "image",
        },
        "backbone": {"name": "resnet2d", "widths": [128, 256, 512, 1024]},
        "training": {
            "steps": 10_000_000,
            "batch_size": 32,
            "optimizer": "larc",
            "learning_rate": 0.6,
            "min_learning_rate_factor": 0.001,
            "clip_norm": 0.0,
            "weight_decay": 1e-6,
            "warmup_steps": 10_000,
        },
    },
    # The column of volumes: 1 crop of 224 x 192 in plane and 4 of 112 x 96 (here 2, for
    # two make codes), K 1500, queue 1920 from epoch 3 of 100, prototypes rest 4000
    # iterations; head CT in boxes of 40 slices.
    "paper_3d": {
        "method": {
            "size": [40, 224, 192],
            "small_size": [40, 112, 96],
            "small_count": 4,
            "queue_length": 1920,
            "queue_start": 0.03,
            "prototypes": 1500,
            "freeze": 0.21,
            "epsilon": 0.03,
            "hidden": 2048,
            "place": "slices",
            "prototype_rate": 1.0,
            "scale": [0.5, 1.0],
            "rotate_deg": [0.0, 0.0, 0.0],
            "gamma": [1.8, 2.6],
            "shift_by_range": True,
        },
        "backbone": {"name": "densenet"},
        "training": {
            "steps": 19_000,
            "batch_size": 4,
            "optimizer": "larc",
            "learning_rate": 0.6,
            "min_learning_rate_factor": 0.001,
            "clip_norm": 0.0,
            "weight_decay": 1e-6,
            "warmup_steps": 1000,
        },
    },
}

# A modality of fewer scans gets no turn: one scan would fill a share of every batch.
_COMMON = 4
# Scans whose energies are measured: of crops; of whole slices, at most and at least.
_MEASURED = 100
_REFERENCES, _FEW_REFERENCES = 1000, 100
# Classes of masks told by name.
_TOLD = 20


SOURCES: Mapping[str, Sources] = {
    "paper": {
        "paper: Table I, 2D": "method.size method.small_count method.queue_length "
        "method.queue_start method.prototypes method.freeze method.epsilon "
        "training.batch_size training.learning_rate training.min_learning_rate_factor "
        "training.weight_decay method.temperature method.rounds method.dim",
        "paper: Table I has 92, which cannot be halved five times": "method.small_size",
        "paper: 100 epochs of 105 million images by 1024": "training.steps",
        "paper: IV-B, ResNet-50w2": "backbone.name backbone.widths",
        "paper: III-C": "method.scale method.gamma method.shift_by_range "
        "method.place method.rotate_deg",
        "paper: Eq. 8": "method.bands_of",
        "code: SwAV, which it follows": "method.hidden training.optimizer "
        "training.clip_norm method.prototype_rate",
        "own: Philipsen et al. for pictures of 512": "method.bands_sigmas",
        "own: not printed": "training.warmup_steps method.bands_probability "
        "method.intensity_probability",
    },
    "paper_3d": {
        "paper: Table I, 3D": "method.queue_length method.queue_start "
        "method.prototypes method.freeze method.epsilon training.batch_size "
        "training.learning_rate training.min_learning_rate_factor "
        "training.weight_decay",
        "paper: Table I, 3D, in plane; 40 slices as in IV-E": "method.size "
        "method.small_size",
        "paper: Table I, 3D; it has 1 large crop, here 2": "method.small_count",
        "paper: 100 epochs of 24 440 volumes by 128": "training.steps",
        "paper: IV-E": "backbone.name",
        "paper: III-C": "method.gamma method.shift_by_range method.place "
        "method.rotate_deg",
        "code: SwAV, which it follows": "method.hidden training.optimizer "
        "training.clip_norm method.prototype_rate",
        "own: not printed": "training.warmup_steps method.scale",
    },
}


class HundredMillion(Method):
    """X-rays, CT, MR and PET in one network: crops of a sample share a cluster.

    As SwAV, but every modality has prototypes, queue and code assignment of its own and
    equally many samples in every batch, so that clusters are anatomy, not modality.
    Scans with a class, a label map or boxes also teach by them. Crops are changed as
    if by another scanner: the energies of their frequency bands are set near those of
    other scans. The same code takes slices through a 2D network and volumes through a
    3D one.

    ``usage`` is the entropy of the mean code in units of ln K, mean over modalities;
    ``information``, with clusters in common, the share of what the modality is that the
    cluster tells, over the last batches; ``mask_dice`` the Dice, on the grid of the
    masks' map, of the classes that the last batch shows.

    Source: Ghesu et al., "Self-supervised Learning from 100 Million Medical Images",
    arXiv 2201.01283.
    Differs from the paper: gentler zoom and gamma by default; crops overlap by default
    (in the recipe ``paper`` they lie anywhere in one slice, or picture); reference
    energies are measured in the stores, of up to 1000 scans a modality as the paper
    has, but by default of crops of up to 100 scans of all, and the bands are those of
    the crop by itself (``bands_of``; so they are of crops of volumes): the gain of the
    low-pass band of a small crop is that of a few tissues; Gaussians of 0.5 to 4 voxels
    are those of 1 to 16 pixels of a picture of 2048, for 512, but for the finest; by
    default crops are turned, and the offset is of normalised units; small crops of 96
    pixels, not 92, which the network cannot halve five times; masks teach by Dice and
    cross-entropy, boxes as masks (inside the class, outside background), which the
    paper leaves open; AdamW but in the recipe paper; queue and freeze are shares of the
    training; means, not means and maxima, of the deepest map of volumes; classes are
    told from features standardised between scans.
    """

    Config = HundredMillionConfig
    title: ClassVar[str] = "Hundred Million: clusters per modality"
    paper: ClassVar[str] = (
        "Ghesu et al., Self-supervised Learning from 100 Million Medical Images, "
        "arXiv 2201.01283"
    )
    uses_labels: ClassVar[bool] = True
    per_rank: ClassVar[Mapping[str, str]] = {
        "clusters": "batch norm of the projector; codes and queues are shared",
        "classes": "the mean is over the scans of known class of each process",
        "masks": "Dice is over the crops of each process",
    }
    sees_padding: ClassVar[Mapping[str, str]] = {
        "clusters": "the vector of a crop is the mean over all of its cells",
        "classes": "the vector of a crop is the mean over all of its cells",
    }
    SOURCES: ClassVar[Mapping[str, Sources]] = SOURCES
    RECIPES: ClassVar[Mapping[str, Mapping[str, Any]]] = RECIPES

    config: HundredMillionConfig

    def __init__(self, backbone: Backbone, config: HundredMillionConfig) -> None:
        super().__init__(backbone, config)
        self.size: Index = config.size
        backbone.check_size(self.size)
        if config.small_count:
            backbone.check_size(config.small_size)
        self.backbone = backbone
        self.projector = Projector(
            backbone.channels[-1], config.dim, hidden=config.hidden, norm="batch"
        )
        self.groups = max(1, len(self.turns()))
        apart = self.groups if config.clustering == "modality" else 1
        self.prototypes = config.prototypes or default_prototypes(config.queue_length)
        self.clusterings = nn.ModuleList(
            clustering_of(config, self.prototypes) for _ in range(apart)
        )
        self.classes: ClassHead | None = None
        if config.weight_classes > 0 and (
            len(config.class_names) > 1 or config.class_several
        ):
            self.classes = ClassHead(
                backbone.channels[-1],
                config.class_names,
                several=config.class_several,
            )
        self.masks: MaskHead | None = None
        if config.weight_masks > 0 and config.mask_rows:
            self.masks = MaskHead(
                backbone, config.mask_stride, len(config.mask_names), config.mask_rows
            )
        self._raw: dict[str, Tensor] = {}
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(self.groups, self.prototypes))

    @classmethod
    def settled(
        cls, settings: Mapping[str, Any], cases: Sequence[Case]
    ) -> dict[str, Any]:
        """Modalities, classes, masks and energies of bands, as the stores have them."""
        found = dict(settings)
        if not found["modalities"]:
            counts = Counter(case.card.modality for case in cases)
            common = [name for name, n in counts.items() if n >= _COMMON]
            found["modalities"] = sorted(common or counts)
        if not found["class_names"] and found["weight_classes"] > 0:
            names, several = names_of([case.card.target for case in cases])
            found |= {"class_names": names, "class_several": several}
        if found["weight_masks"] > 0 and not found["mask_rows"]:
            found["mask_names"], found["mask_rows"] = masks_of(cases)
        if found["bands_probability"] > 0 and not found["bands_mean"]:
            found |= _references(cases, found)
        return found

    def turns(self) -> Sequence[str]:
        """Modalities, where there are several."""
        names = self.config.modalities
        return names if len(names) > 1 else ()

    def targets(self, cases: Sequence[Case]) -> list[int] | list[list[float]] | None:
        """Classes of whole scans, where they count and there are two."""
        if self.classes is None:
            return None
        return self.classes.targets([case.card.target for case in cases])

    def remarks(self, classes: Mapping[str, int]) -> list[str]:
        """Which modalities and classes it found."""
        told = []
        if self.turns():
            told.append(
                f"every batch holds equally many of {', '.join(self.turns())}; "
                + ("each has clusters of its own."
                   if len(self.clusterings) > 1 else "they share their clusters.")
            )  # fmt: skip
        if self.classes is not None:
            what = "findings" if self.classes.several else "classes"
            told.append(f"{what} that teach: {listed(self.classes.names)}.")
        for what, names in self._masked().items():
            told.append(f"{what} that teach: {listed(names, most=_TOLD)}.")
        return told

    def _masked(self) -> dict[str, list[str]]:
        """Kind of mask -> names of its classes."""
        found: dict[str, list[str]] = {}
        for _, value, number in self.config.mask_rows if self.masks else ():
            names = found.setdefault("boxes" if value > BOXES else "label maps", [])
            if self.config.mask_names[number - 1] not in names:
                names.append(self.config.mask_names[number - 1])
        return found

    def learns_from_labels(self, card: CaseCard) -> bool:
        """Its class counts, or its label map or boxes do; its modality has a turn."""
        if self.turns() and card.modality not in self.turns():
            return False
        masked = self.masks is not None and (card.has_label or bool(card.boxes))
        known = self.classes is not None and self.classes.knows(card.target)
        return masked or known

    def rate_factors(self) -> Mapping[str, float]:
        """Prototypes learn at a rate of their own."""
        return {"clusterings.": self.config.prototype_rate}

    def views(self) -> dict[str, ViewSpec]:
        """Two large crops, with their masks where they teach, and small ones.

        Paper: Hundred Million III-A, one image.
        """
        config = self.config
        p = config.intensity_probability
        reference = None
        if config.bands_probability > 0 and config.bands_mean:
            reference = BandReference(
                config.bands_sigmas, config.bands_mean, config.bands_std,
                config.bands_of == "image", config.bands_modalities,
            )  # fmt: skip
        intensity = Intensity(
            gamma=config.gamma, gamma_probability=p, scale=(0.9, 1.1),
            scale_probability=p, shift=(-0.2, 0.2), shift_probability=p,
            shift_by_range=config.shift_by_range,
            bands_probability=config.bands_probability if reference else 0.0,
            bands_reference=reference,
        )  # fmt: skip
        specs = multi_crop(config, intensity)
        if self.masks is not None:
            boxes = config.mask_names if "boxes" in self._masked() else ()
            specs["large"] = replace(specs["large"], labels=True, boxes=boxes)
        return specs

    def losses(self, views: Views, progress: float) -> dict[str, Tensor]:
        """``clusters``, mean over modalities; ``classes`` and ``masks`` of some.

        Paper: Hundred Million Eq. 4.
        """
        config = self.config
        maps = {name: self.backbone.maps(view.flat()) for name, view in views.items()}
        vectors = [
            pooled(maps[name][-1]).reshape(*view.image.shape[:2], -1)
            for name, view in views.items()
        ]
        if len(vectors[0]) % self.groups:
            raise ValueError(
                f"a batch of {len(vectors[0])} samples cannot be shared by "
                f"{self.groups} modalities."
            )
        features = [one for v in vectors for one in self.projected(v).unbind(1)]
        self.watch("features", features[0])
        apart = len(self.clusterings)
        terms = [
            clustering(
                [view[group::apart] for view in features],
                frozen=progress < config.freeze,
                queued=progress >= config.queue_start,
            )
            for group, clustering in enumerate(self.clusterings)
        ]
        self._count(features[0].detach())
        found = {"clusters": config.weight_clusters * torch.stack(terms).mean()}
        if self.classes is not None:
            target = views["large"].target
            assert target is not None
            found["classes"] = config.weight_classes * self._class_error(
                vectors[0], target
            )
        if self.masks is not None:
            found["masks"] = config.weight_masks * self._mask_error(
                maps["large"], views["large"]
            )
        return found

    def _mask_error(self, maps: Sequence[Tensor], view: View) -> Tensor:
        """Dice plus cross-entropy of the large crops of scans with masks."""
        assert self.masks is not None
        found = self.masks(maps, view)
        self._raw["mask_dice"] = found["dice"]
        error: Tensor = found["error"]
        return error * found["labelled"] if self.config.strict else error

    def projected(self, vectors: Tensor) -> Tensor:
        """(B, V, E) -> (B, V, dim), unit length; of each modality by itself.

        The norm within looks at the batch: one modality is to know nothing of another.
        """
        apart = len(self.clusterings)
        parts = [self.projector(vectors[group::apart]) for group in range(apart)]
        return torch.stack(parts, dim=1).flatten(0, 1)

    def _class_error(self, vectors: Tensor, target: Tensor) -> Tensor:
        """Error of the large crops of samples whose class is known."""
        assert self.classes is not None
        found: dict[str, Tensor] = self.classes(vectors, target)
        self._raw["class_accuracy"] = found["accuracy"]
        divisor = found["labelled"].clamp_min(1)
        return found["total"] / (len(target) if self.config.strict else divisor)

    @torch.no_grad()
    def _count(self, features: Tensor) -> None:
        """How often samples of each modality fall to each common prototype."""
        if len(self.clusterings) > 1 or not self.training:
            return
        nearest = self.clusterings[0].scores(features).argmax(1)  # type: ignore[operator]
        hits = nn.functional.one_hot(nearest, self.prototypes).float()
        groups = hits.unflatten(0, (-1, self.groups)).mean(0)  # type: ignore[no-untyped-call]
        self._raw["hits"] = groups

    def after_step(self, progress: float) -> None:
        """Fill the queues and the counts."""
        for clustering in self.clusterings:
            clustering.after_step()  # type: ignore[operator]
        hits = self._raw.pop("hits", None)
        if hits is not None:
            self.seen.mul_(0.95).add_(hits)

    def encoder(self) -> Backbone:
        """The trained backbone; projector, prototypes and heads are dropped."""
        return self.backbone

    @torch.no_grad()
    def monitors(self) -> dict[str, Tensor]:
        """Spread of features, use of clusters, what clusters tell of modalities."""
        usage = [c.usage() for c in self.clusterings]  # type: ignore[operator]
        found = {**super().monitors(), "usage": torch.stack(usage).mean()}
        if self.groups > 1 and len(self.clusterings) == 1:
            found["information"] = shared_information(self.seen)
        told = ("class_accuracy", "mask_dice")
        return {**found, **{k: v for k, v in self._raw.items() if k in told}}


def _references(
    cases: Sequence[Case], settings: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Energies of reference images, of crops or of whole slices of each modality.

    Paper: Hundred Million III-C, references.
    """
    sigmas = settings["bands_sigmas"]
    if settings["bands_of"] == "crop" or settings["size"][0] != 1:
        energies = _measured(cases, settings["size"], sigmas)
        mean, std = energies.mean(0).tolist(), energies.std(0, correction=0).tolist()
        return {"bands_of": "crop", "bands_mean": mean, "bands_std": std}
    names = sorted({case.card.modality for case in cases})
    parts = [[c for c in cases if c.card.modality == name] for name in names]
    rows = [_measured_slices(part, sigmas) for part in parts]
    return {
        "bands_modalities": names,
        "bands_mean": [float(e) for row in rows for e in row.mean(0)],
        "bands_std": [float(e) for row in rows for e in row.std(0)],
    }


def _measured_slices(cases: Sequence[Case], sigmas: Sequence[float]) -> Array:
    """(N, S + 1) energies of whole slices of up to 1000 scans of one modality.

    Of few scans several slices each, spread over the middle of their height.
    """
    step = max(1, -(-len(cases) // _REFERENCES))
    chosen = cases[::step]
    each = max(1, _FEW_REFERENCES // len(chosen))
    found = []
    for case in chosen:
        card: Any = case.card
        image = case.store.image(card.id)
        depth = card.shape[0]
        for share in (np.arange(min(each, depth)) + 0.5) / min(each, depth):
            number = int((0.1 + 0.8 * share) * depth)
            values = slice_values(image, card, number)
            found.append(Spectrum(values[:1], sigmas).energies()[:, 0])
    return np.stack(found)


def _measured(
    cases: Sequence[Case], size: Sequence[int], sigmas: Sequence[float]
) -> Tensor:
    """(N, S + 1) energies of the middle of up to 100 scans, normalised values."""
    step = max(1, len(cases) // _MEASURED)
    found = []
    for case in cases[::step]:
        shape = case.card.shape
        start = [max(0, (n - s) // 2) for n, s in zip(shape, size, strict=True)]
        key = tuple(slice(a, a + s) for a, s in zip(start, size, strict=True))
        card = case.card
        stored = case.store.image(card.id)[(slice(0, 1), *key)]
        value = torch.from_numpy(
            card.intensity.normalise(stored * np.float32(card.scale) + card.offset)
        )
        found.append(band_energies(split_bands(value, tuple(sigmas)))[:, 0])
    return torch.stack(found)
