"""MixCL: one image seen twice, voxels of one label, and the image itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from homolog.backbones._base import Backbone
from homolog.data.card import Card
from homolog.geometry.affine import Index
from homolog.losses.cross_correlation import cross_correlation, redundancy
from homolog.losses.label_contrast import BACKGROUND, Labelled, label_contrast
from homolog.methods._base import Method, PairsWanted
from homolog.methods._mixcl_network import (
    GradientMeter,
    Levels,
    VoxelProjector,
    second_finest,
    tissue_weights,
)
from homolog.methods._mixcl_settings import RECIPES, MixCLConfig
from homolog.nn.cell_sampling import (
    at_cells,
    cells_of,
    depth_weights,
    draw_cells,
    draw_per_class,
)
from homolog.nn.decoders import build_decoder
from homolog.nn.masking import view_keys
from homolog.views.view import Anchor, Elsewhere, Intensity, Same, View, Views, ViewSpec

# What two draws of one step are told apart by.
_IDENTITY, _LABEL = 0x1D, 0x1AB


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
        self.decoder = build_decoder(
            backbone.channels, backbone.strides, channels, channels, backbone.decoder
        )
        self._meter = GradientMeter()
        self._raw: dict[str, Tensor] = {}

    def pairs_wanted(self) -> PairsWanted:
        """A second scan of the same data set, anywhere in it."""
        return PairsWanted("dataset", same_share=self.config.same_patient)

    def learns_from_labels(self, card: Card) -> bool:
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
        """``identity``, ``label`` and ``reconstruction``, weighted."""
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
            keys = view_keys(*_view_of(crop), progress) ^ (_IDENTITY * stride)
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
        keys = view_keys(*_view_of(view), progress) ^ _LABEL
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
        restored = self.decoder(image, maps).float()
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
        """The trained backbone; projectors and decoder are dropped."""
        return self.backbone

    def monitors(self) -> dict[str, Tensor]:
        """Raw terms, gradients by term, mean correlation of a feature with itself."""
        return {**super().monitors(), **self._raw, **self._meter.norms()}


def _grid(features: Tensor) -> Index:
    d, h, w = features.shape[2:]
    return d, h, w


def _view_of(view: View) -> tuple[Tensor, Tensor]:
    """Affine (B V, 4, 4) and scan (B V,) of every view."""
    return (
        view.affine.flatten(0, 1),
        view.case.repeat_interleave(view.affine.shape[1]),
    )
