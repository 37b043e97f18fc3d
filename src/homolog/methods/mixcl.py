"""MixCL: one image seen twice, voxels of one label, and the image itself."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from homolog.backbones.base import Backbone
from homolog.config import as_in, option
from homolog.geometry.affine import Index
from homolog.losses.contrast import BACKGROUND, Labelled, label_contrast
from homolog.losses.similarity import cross_correlation, redundancy
from homolog.methods.base import CaseCard, CropConfig, Method, PairsWanted
from homolog.nn.decoders import Decoder, suited_decoder
from homolog.nn.decoders.unetr import raising
from homolog.nn.masking import (
    at_cells,
    cells_of,
    depth_weights,
    draw_cells,
    draw_per_class,
    keys_of,
)
from homolog.recipes import PaperScans, Sources
from homolog.views.view import Anchor, Elsewhere, Intensity, Same, View, Views, ViewSpec

# MixCL's parts around the encoder: maps by level, projectors, measured gradients.


_TOKEN_WIDTH = 16


# Paper: MixCL levels.
class Levels(nn.Module):
    """Maps of an encoder by stride.

    A network whose maps all have one stride (vit) is given UNETR's projections: its
    shallower maps are raised to the strides 2, 4, ..., the shallowest to the finest;
    the deepest map keeps its stride. They are dropped after the training.

    Args:
        backbone: Its channels and strides are read; it is not kept.
        strides: In-plane strides asked for.

    Attributes:
        strides: Voxels (z, y, x) per cell, by in-plane stride.
        channels: Channels, by in-plane stride.

    Raises:
        ValueError: The network has no map of a stride.
    """

    def __init__(self, backbone: Backbone, strides: Sequence[int]) -> None:
        super().__init__()
        wanted = sorted(set(strides))
        self.strides: dict[int, Index] = {}
        self.channels: dict[int, int] = {}
        self._source: dict[int, int] = {}
        self.raised = nn.ModuleDict()
        one_stride = len(set(backbone.strides)) == 1 and len(backbone.strides) > 1
        for stride in wanted:
            if one_stride and stride < max(backbone.strides[0]):
                self._raise(backbone, stride, [s for s in wanted if s <= stride])
                continue
            index = backbone.map_of_stride(stride)
            self._source[stride] = index
            self.strides[stride] = backbone.strides[index]
            self.channels[stride] = backbone.channels[index]

    def _raise(self, backbone: Backbone, stride: int, finer: Sequence[int]) -> None:
        side = backbone.strides[0]
        doublings = (side[2] // stride).bit_length() - 1
        if len(set(side)) > 1 or stride * 2**doublings != side[2]:
            raise ValueError(
                f"maps of stride {side} cannot be raised to stride {stride}: both must "
                "be powers of two, the same along all axes."
            )
        index = min(len(finer) - 1, len(backbone.channels) - 2)
        self._source[stride] = index
        self.strides[stride] = (stride, stride, stride)
        self.channels[stride] = _TOKEN_WIDTH * stride
        self.raised[str(stride)] = raising(
            backbone.channels[index], self.channels[stride], doublings
        )

    def forward(self, maps: Sequence[Tensor]) -> dict[int, Tensor]:
        """All maps of the backbone -> in-plane stride -> (B, E, d, h, w)."""
        found = {}
        for stride, index in self._source.items():
            name = str(stride)
            raised = self.raised[name] if name in self.raised else None
            found[stride] = maps[index] if raised is None else raised(maps[index])
        return found


# Paper: MixCL network.
class VoxelProjector(nn.Module):
    """Three linear layers on vectors, [c, c, 2c], with normalisation and ReLU between.

    The same as 1 x 1 x 1 convolutions, on drawn cells only.

    Args:
        channels: c.
        norm: ``batch`` (over all given vectors; per process), ``layer`` or ``none``.

    Source: MixCL, section 2.1, sigma^l.
    """

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        widths = [channels, channels, channels, 2 * channels]
        parts: list[nn.Module] = []
        for inside, outside in itertools.pairwise(widths):
            if parts:
                parts += [*_norm(norm, inside), nn.ReLU()]
            parts.append(nn.Linear(inside, outside))
        self.layers = nn.Sequential(*parts)

    def forward(self, vectors: Tensor) -> Tensor:
        """(..., c) -> (..., 2c)."""
        projected: Tensor = self.layers(vectors.flatten(0, -2))
        return projected.reshape(*vectors.shape[:-1], -1)


class GradientMeter:
    """How strongly each loss term pulls at the encoder's maps, at no extra backward.

    Each term reads the maps through a meter of its own; what flows back is measured on
    its way.
    """

    def __init__(self) -> None:
        self._squares: dict[str, Tensor] = {}

    def reset(self) -> None:
        """Forget the last step."""
        self._squares = {}

    def through(self, name: str, maps: Sequence[Tensor]) -> list[Tensor]:
        """The same maps, their gradient counted under ``name``."""
        passed = []
        for tensor in maps:
            own = tensor.view_as(tensor)
            if own.requires_grad:
                own.register_hook(lambda g: self._count(name, g))  # type: ignore[no-untyped-call]
            passed.append(own)
        return passed

    def _count(self, name: str, gradient: Tensor) -> None:
        square = gradient.detach().float().square().sum()
        before = self._squares.get(name)
        self._squares[name] = square if before is None else before + square

    def norms(self) -> dict[str, Tensor]:
        """Term -> norm of its gradient over all maps of the last step."""
        return {f"gradient_{k}": v.sqrt() for k, v in self._squares.items()}


def _norm(kind: str, width: int) -> list[nn.Module]:
    if kind == "batch":
        return [nn.BatchNorm1d(width)]
    return [nn.LayerNorm(width)] if kind == "layer" else []


def second_finest(backbone: Backbone) -> int:
    """In-plane stride of the paper's second layer: UNETR's enc2 has stride 2."""
    strides = sorted({max(sides) for sides in backbone.strides})
    if len(strides) == 1:
        return min(2, strides[0])
    return strides[1]


def tissue_weights(image: Tensor, valid: Tensor) -> Tensor:
    """Weights (B, N) by which half of the drawn cells are brighter than the mean.

    Args:
        image: (B, N) normalised values.
        valid: (B, N) bool; cells outside the scan weigh nothing.
    """
    real = valid.float()
    mean = (image * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp_min(1)
    bright = real * (image > mean)
    dark = real - bright
    weight = torch.zeros_like(real)
    for part in (bright, dark):
        weight = weight + part / part.sum(1, keepdim=True).clamp_min(1)
    return weight


# Settings and recipes of MixCL.


# Paper: MixCL Table 2.
@dataclass(frozen=True)
class MixCLConfig(CropConfig):
    """Settings of MixCL; the defaults suit a small machine."""

    size: tuple[int, int, int] = as_in(CropConfig, "size", default=(32, 32, 32))
    rotate_deg: tuple[float, float, float] = as_in(
        CropConfig, "rotate_deg", default=(15.0, 15.0, 15.0)
    )
    scale: tuple[float, float] = as_in(CropConfig, "scale", default=(0.85, 1.15))
    intensity_probability: float = as_in(
        CropConfig, "intensity_probability", default=0.2
    )

    levels: tuple[int, ...] = option(
        (2, 4, 8), "strides of the maps that the identity term compares", unit="voxel"
    )
    label_stride: int = option(
        0,
        "stride of the map that the label term compares; 0: the second finest of the "
        "network, for a vit 2",
        unit="voxel",
        minimum=0,
    )
    weight_identity: float = option(1.0, "weight of the identity term", minimum=0)
    weight_label: float = option(0.1, "weight of the label term", minimum=0)
    weight_reconstruction: float = option(
        1.0, "weight of the reconstruction term", minimum=0
    )
    sums: bool = option(
        False,
        "sums over features, levels and voxels as in the paper, instead of means; the "
        "paper's weights are 1, 0.01, 0.01",
        advanced=True,
    )
    redundancy: float = option(
        0.0051, "weight of correlations between different features", minimum=0
    )
    center: bool = option(
        True,
        "subtract each feature's mean before correlating, unlike the printed formula",
        advanced=True,
    )
    identity_voxels: int = option(
        4096, "voxels compared by the identity term, per level and batch", minimum=2
    )
    temperature: float = option(0.1, "of the label term", minimum=0.01)
    per_class: int = option(
        48, "voxels drawn per class and crop for the label term", minimum=1
    )
    most_voxels: int = option(
        1024, "voxels drawn per crop for the label term, at most", minimum=1,
        advanced=True,
    )  # fmt: skip
    depth_scale: float = option(
        8.0,
        "mu of the weight by depth within a label: most are drawn half as deep",
        unit="voxel",
        minimum=0.1,
        advanced=True,
    )
    depth_floor: float = option(
        0.05, "epsilon: weight on the boundary", minimum=1e-6, advanced=True
    )
    background_negative: bool = option(
        False, "background counts as another class than every label"
    )
    within: bool = option(
        False, "voxels of one crop are compared with each other too", advanced=True
    )
    global_ratio: bool = option(
        False, "one ratio over all pairs, as printed, instead of one per voxel",
        advanced=True,
    )  # fmt: skip
    same_patient: float = option(
        0.5, "share of second crops cut from the same scan", minimum=0, maximum=1
    )
    projector_norm: str = option(
        "batch",
        "normalisation inside the projectors",
        choices=("batch", "layer", "none"),
    )
    elastic_mm: float = option(
        4.0, "standard deviation of the elastic displacement", unit="mm", minimum=0
    )
    shape_probability: float = option(
        0.5, "probability of rotation and zoom, and of the elastic displacement",
        minimum=0, maximum=1,
    )  # fmt: skip


# At the paper's probability of 0.2 the two views of a crop are often equal and start
# with correlations of 0.94: nothing is left to learn from them in a short training.
# Paper: MixCL 3.1, training.
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "cpu": {
        "method": {"size": [32, 32, 32], "intensity_probability": 0.5},
        "backbone": {"name": "resunet"},
        "training": {
            "steps": 600,
            "batch_size": 4,
            "learning_rate": 1e-3,
            "weight_decay": 0.05,
            "warmup_steps": 30,
        },
    },
    # 24 GB: 2 crops of 96^3; 80 GB: 6 to 8.
    "gpu": {
        "method": {
            "size": [96, 96, 96],
            "levels": [2, 4, 8, 16],
            "identity_voxels": 16384,
            "intensity_probability": 0.5,
            "per_class": 256,
            "most_voxels": 4096,
        },
        "backbone": {"name": "swin"},
        "training": {
            "steps": 10000,
            "batch_size": 2,
            "accumulate": 3,
            "learning_rate": 1e-4,
            "weight_decay": 1e-5,
            "warmup_steps": 200,
        },
    },
    # UNETR on 96^3, AdamW 1e-4, weight decay 1e-5, cosine, 1000 iterations of 6 crops.
    "paper": {
        "method": {
            "size": [96, 96, 96],
            "levels": [2, 4, 8, 16],
            "sums": True,
            "weight_label": 0.01,
            "weight_reconstruction": 0.01,
            "identity_voxels": 16384,
            "per_class": 256,
            "most_voxels": 4096,
        },
        "backbone": {"name": "vit", "hidden": 768, "inner": 3072, "heads": 12},
        "training": {
            "steps": 1000,
            "batch_size": 1,
            "accumulate": 6,
            "learning_rate": 1e-4,
            "weight_decay": 1e-5,
            "warmup_steps": 0,
        },
    },
}

# What two draws of one step are told apart by.
_IDENTITY, _LABEL = 0x1D, 0x1AB


SOURCES: Mapping[str, Sources] = {
    "paper": {
        "paper: 3.1": "method.size training.steps training.batch_size "
        "training.accumulate training.learning_rate training.weight_decay",
        "paper: UNETR": "backbone.name backbone.hidden backbone.inner backbone.heads",
        "paper: Eq. 2": "method.weight_label method.weight_reconstruction",
        "paper: Eq. 3, 4": "method.sums",
        "paper: every layer of the encoder": "method.levels",
        "own: not printed": "method.identity_voxels method.per_class "
        "method.most_voxels",
        "own: none is told of": "training.warmup_steps",
    }
}


# Paper: MixCL Eq. 1; MixCL 3.1, window.
class MixCL(Method):
    """Labels of many data sets, each with its own classes, used in pretraining.

    A crop is shown twice with different intensity changes; a second crop comes from the
    same scan or from another one of its data set. Three terms: at several levels the
    features of a voxel in both views correlate one by one and with nothing else (Eq.
    4, 5); voxels of one label resemble each other across both crops, more than voxels
    of other labels (Eq. 6), drawn by their depth in the label (Eq. 7); the decoder
    restores the crop without its intensity changes (Eq. 3).

    Labels are compared within one data set (store) only, and background with nothing.
    Scans without labels take part in the first and third term. ``gradient_*`` of the
    monitors tell how strongly each term pulls at the encoder's maps.

    With several processes the correlations are over all of them; label pairs and the
    projectors' batch norm stay within a process.

    Source: Li, Quan and Zhou, "MixCL: Pixel label matters to contrastive learning",
    arXiv 2203.02114.
    Differs from the paper: correlations centred; the off-diagonal term over C_ij, not
    C_ii; per-voxel label ratios, both crops as anchors; means instead of sums with
    weights 1, 0.1, 1 (``sums`` with 1, 0.01, 0.01 is literal); the correlated voxels
    are drawn, half of them brighter than the crop's mean; no map of stride 1; label
    pairs of different samples of one data set count too.
    """

    Config = MixCLConfig
    title: ClassVar[str] = "MixCL: labels of every data set in pretraining"
    paper: ClassVar[str] = (
        "Li et al., MixCL: Pixel label matters to contrastive learning in medical "
        "image segmentation, arXiv 2203.02114"
    )
    uses_labels: ClassVar[bool] = True
    balance: ClassVar[float] = 0.67
    share_power: ClassVar[float] = 0.5  # few labelled scans, many others: both count
    per_rank: ClassVar[Mapping[str, str]] = {
        "identity": "batch norm of the projectors; the correlations are over all",
        "label": "pairs are formed within a process; batch norm of the projectors",
    }
    sees_padding: ClassVar[Mapping[str, str]] = {
        "label": "batch norm of the projector counts cells that fill up a short draw",
    }
    SOURCES: ClassVar[Mapping[str, Sources]] = SOURCES
    paper_scans: ClassVar[PaperScans | None] = PaperScans(
        "3.1", (-150.0, 250.0), (2.0, 1.5, 1.5)
    )
    RECIPES: ClassVar[Mapping[str, Mapping[str, Any]]] = RECIPES

    config: MixCLConfig

    def __init__(self, backbone: Backbone, config: MixCLConfig) -> None:
        super().__init__(backbone, config)
        self.size: Index = config.size
        backbone.check_size(self.size)
        self.label_stride = config.label_stride or second_finest(backbone)
        self.backbone = backbone
        self.levels = Levels(backbone, [*config.levels, self.label_stride])
        self.projectors = nn.ModuleDict(
            {
                str(stride): VoxelProjector(channels, config.projector_norm)
                for stride, channels in self.levels.channels.items()
            }
        )
        channels: int = backbone.config.in_channels
        self.decoder = suited_decoder(backbone, channels)
        self._meter = GradientMeter()
        self._raw: dict[str, Tensor] = {}

    def pairs_wanted(self) -> PairsWanted:
        """A second scan of the same data set, anywhere in it."""
        return PairsWanted("dataset", same_share=self.config.same_patient)

    def learns_from_labels(self, card: CaseCard) -> bool:
        """Its label map is compared."""
        return card.has_label and self.config.weight_label > 0

    def remarks(self, classes: Mapping[str, int]) -> list[str]:
        """Labels that have nothing to be compared with teach nothing."""
        if not any(classes.values()):
            return [
                "no scan has labels: MixCL learns from its terms identity and "
                "reconstruction alone."
            ]
        if self.config.background_negative:
            return []
        return [
            f"the labels of {store} are of one class, and background is compared with "
            "nothing: they teach nothing by themselves. With "
            "method.background_negative=true they are told from their surroundings."
            for store, count in classes.items()
            if count == 1
        ]

    def views(self) -> dict[str, ViewSpec]:
        """The crop as it is and twice changed; the second crop likewise, once."""
        config = self.config
        p = config.intensity_probability
        changed = Intensity(
            shift_probability=p, gamma_probability=p, blur_probability=p,
            noise_probability=p,
        )  # fmt: skip

        def cut(place: Any) -> ViewSpec:
            return ViewSpec(
                size=self.size, place=place, rotate_deg=config.rotate_deg,
                scale=config.scale, shape_probability=config.shape_probability,
                elastic_mm=config.elastic_mm,
                elastic_probability=config.shape_probability,
                labels=True, depths=True,
            )  # fmt: skip

        def shown(group: str) -> ViewSpec:
            return ViewSpec(size=self.size, place=Same(group), intensity=changed)

        return {
            "crop": cut(Anchor()),
            "first": shown("crop"),
            "second": shown("crop"),
            "other": cut(Elsewhere(partner=True)),
            "third": shown("other"),
        }

    def losses(self, views: Views, progress: float) -> dict[str, Tensor]:
        """``identity``, ``label`` and ``reconstruction``, weighted.

        Paper: MixCL Eq. 2.
        """
        config = self.config
        self._meter.reset()
        seen = [views[name].flat() for name in ("first", "second", "third")]
        image = torch.cat(seen)
        maps = self.backbone.maps(image)
        raw = {
            "identity": self._identity(
                self._meter.through("identity", maps), views, progress
            ),
            "label": self._label(self._meter.through("label", maps), views, progress),
            "reconstruction": self._reconstruction(
                self._meter.through("reconstruction", maps), image, views
            ),
        }
        self._raw |= {f"raw_{name}": value.detach() for name, value in raw.items()}
        weights = {
            "identity": config.weight_identity,
            "label": config.weight_label,
            "reconstruction": config.weight_reconstruction,
        }
        return {name: weights[name] * value for name, value in raw.items()}

    def _identity(self, maps: list[Tensor], views: Views, progress: float) -> Tensor:
        config, crop = self.config, views["crop"]
        count = len(crop.flat())
        image, valid = crop.flat()[:, 0], crop.valid.flatten(0, 1)
        terms, alike = [], []
        for stride, features in self.levels(maps).items():
            if stride not in config.levels:
                continue
            step, grid = self.levels.strides[stride], _grid(features)
            weight = tissue_weights(
                at_cells(image, step, grid), at_cells(valid, step, grid)
            )
            keys = keys_of(crop, progress) ^ (_IDENTITY * stride)
            index, drawn = draw_cells(weight, keys, -(-config.identity_voxels // count))
            index = torch.where(drawn, index, index[:, :1])  # padding says nothing
            head = self.projectors[str(stride)]
            first, second = (
                head(cells_of(part, index)).flatten(0, 1)
                for part in (features[:count], features[count : 2 * count])
            )
            matrix = cross_correlation(first, second, center=config.center)
            diagonal, beside = redundancy(
                matrix, config.redundancy, mean=not config.sums
            )
            terms.append(diagonal + beside)
            alike.append(matrix.detach().diagonal().mean())
            if stride == self.label_stride or len(terms) == 1:
                self.watch("voxels", first)
        self._raw["correlation"] = torch.stack(alike).mean()
        total = torch.stack(terms)
        return total.sum() if config.sums else total.mean()

    def _label(self, maps: list[Tensor], views: Views, progress: float) -> Tensor:
        config = self.config
        features = self.levels(maps)[self.label_stride]
        count = len(views["crop"].flat())
        parts = features[:count], features[2 * count :]
        one, other = (
            self._labelled(part, views[name], progress)
            for part, name in zip(parts, ("crop", "other"), strict=True)
        )
        labelled = torch.cat([one.drawn, other.drawn]).float()
        self._raw["labelled_voxels"] = labelled.sum() / (2 * count)
        return label_contrast(
            one,
            other,
            config.temperature,
            background_negative=config.background_negative,
            within=config.within,
            global_ratio=config.global_ratio,
        )

    def _labelled(self, features: Tensor, view: View, progress: float) -> Labelled:
        """Voxels of one crop, drawn class by class."""
        config = self.config
        if view.label is None or view.depth is None or view.label_space is None:
            raise ValueError("MixCL needs views with labels, depths and label spaces.")
        step, grid = self.levels.strides[self.label_stride], _grid(features)
        label = at_cells(view.label.flatten(0, 1), step, grid)
        depth = at_cells(view.depth.flatten(0, 1), step, grid)
        weight = depth_weights(depth, config.depth_scale, config.depth_floor)
        if not config.background_negative:
            label = label.masked_fill(label == BACKGROUND, -1)
        keys = keys_of(view, progress) ^ _LABEL
        index, drawn = draw_per_class(
            label, weight, keys, per_class=config.per_class, most=config.most_voxels
        )
        per = view.image.shape[1]
        space = view.label_space.repeat_interleave(per)[:, None].expand_as(index)
        vectors = self.projectors[str(self.label_stride)](cells_of(features, index))
        return Labelled(
            vectors.flatten(0, 1),
            label.gather(1, index).flatten(),
            space.flatten(),
            drawn.flatten(),
        )

    def _reconstruction(
        self, maps: list[Tensor], image: Tensor, views: Views
    ) -> Tensor:
        """Paper: MixCL Eq. 3."""
        restored = self.decoder.dense_result(self.decoder.dense(image, maps)).float()
        groups = ("crop", "crop", "other")
        target = torch.cat([views[name].flat() for name in groups])
        valid = torch.cat([views[name].valid.flatten(0, 1) for name in groups])
        error = (restored - target).square() * valid[:, None]
        per_crop = error.flatten(1).sum(1)
        if self.config.sums:
            total: Tensor = per_crop.mean()
            return total
        mean: Tensor = (per_crop / valid.flatten(1).sum(1).clamp_min(1)).mean()
        return mean

    def encoder(self) -> Backbone:
        """The trained backbone; the projectors are dropped.

        Paper: MixCL transfer.
        """
        return self.backbone

    def dense_decoder(self) -> Decoder | None:
        """What restored the crop."""
        own = self.backbone.planar() is self.backbone
        return self.decoder if own and self.config.weight_reconstruction > 0 else None

    def monitors(self) -> dict[str, Tensor]:
        """Raw terms, gradients by term, mean correlation of a feature with itself."""
        return {**super().monitors(), **self._raw, **self._meter.norms()}


def _grid(features: Tensor) -> Index:
    d, h, w = features.shape[2:]
    return d, h, w
