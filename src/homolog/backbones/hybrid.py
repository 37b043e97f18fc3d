"""Hybrid: a 2D ResNet sees every slice, attention sees how the slices hang together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from homolog.backbones._base import Backbone
from homolog.backbones._slice_attention import SliceTransformer
from homolog.backbones.resnet2d import ResNet2D, ResNet2DConfig
from homolog.config import ConfigError, option
from homolog.geometry.affine import Index
from homolog.losses.similarity import unit


@dataclass(frozen=True)
class HybridConfig(ResNet2DConfig):
    """Defaults are Joint's: ResNet-50 and four layers of attention over slices."""

    levels: tuple[int, ...] = option(
        (),
        "maps of the 2D network that describe a slice, 0 the finest; empty: all; the "
        "last alone: no multi-level features",
        minimum=0,
        advanced=True,
    )
    dim: int = option(640, "features of a slice in the attention", minimum=8)
    layers: int = option(4, "layers of attention over slices", minimum=1)
    heads: int = option(8, "heads of each", minimum=1, advanced=True)
    inner: int = option(720, "width of its feed-forward part", minimum=8, advanced=True)
    reduction: int = option(
        4, "slices per place that is read", unit="slice", minimum=1, advanced=True
    )
    reach: float = option(
        2.0, "how far a place may move", unit="slice", minimum=0, advanced=True
    )
    slices: int = option(
        128, "slices of a volume, at most", minimum=1, maximum=4096, advanced=True
    )
    dropout: float = option(0.1, "in the attention", minimum=0, maximum=0.9)
    slices_at_once: int = option(
        0,
        "slices whose activations are kept at a time in training, the others being "
        "made anew for the gradient; 0: all, fast but hungry",
        minimum=0,
        advanced=True,
    )


class Hybrid(Backbone):
    """The maps of every slice, and one more that knows the whole volume.

    A slice is described by the means of its maps, each of unit length, side by side
    (F_in); attention over the slices makes F = ``dim`` features of it. They are the
    last map, the same at every place of the slice, so that the mean of that map is the
    vector of the volume. A 2D image is a volume of one slice.

    Source: Nguyen et al., "Joint Self-Supervised Image-Volume Representation Learning
    with Intra-Inter Contrastive Clustering", AAAI 2023, Eq. 6 to 10.
    Differs from the paper: five different levels (its code takes the deepest twice);
    attention over slices, where the public code attends over features; the place of a
    slice is sines and cosines, added to layer-normed features.
    """

    Config = HybridConfig
    title = "Hybrid: ResNet per slice, attention over slices"
    decoder = "residual"
    SMALL = MappingProxyType(
        {**ResNet2D.SMALL, "dim": 64, "layers": 2, "heads": 4, "inner": 96,
         "reduction": 2, "dropout": 0.0}
    )  # fmt: skip

    def __init__(self, config: HybridConfig) -> None:
        super().__init__(config)
        own = {f.name: getattr(config, f.name) for f in fields(ResNet2DConfig)}
        self.intra = ResNet2D(ResNet2DConfig(**own))
        count = len(self.intra.channels)
        self.levels = config.levels or tuple(range(count))
        if max(self.levels) >= count:
            raise ConfigError(
                f"levels must name some of the {count} maps 0 to {count - 1}, got "
                f"{config.levels}."
            )
        if config.dim % config.heads:
            raise ConfigError(f"heads ({config.heads}) must divide dim ({config.dim}).")
        self.described = sum(self.intra.channels[i] for i in self.levels)
        # without the norm the places of slices would drown what is seen in them
        self.narrow = nn.Sequential(
            nn.Linear(self.described, config.dim), nn.LayerNorm(config.dim)
        )
        self.inter = SliceTransformer(
            config.dim, config.layers, config.heads, inner=config.inner,
            dropout=config.dropout, reduction=config.reduction, reach=config.reach,
            slices=config.slices,
        )  # fmt: skip
        self.channels = (*self.intra.channels, config.dim)
        self.strides = (*self.intra.strides, self.intra.strides[-1])
        self.size_divisor: Index = self.intra.size_divisor

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, C, n, H, W) -> maps of stride 2 to 32 in plane, and that of slices."""
        maps = self.slice_maps(image)
        known = self.between(self.describe(maps)).transpose(1, 2)  # (B, F, n)
        last = known[..., None, None].expand(*known.shape, *maps[-1].shape[-2:])
        return (*maps, last)

    def slice_maps(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, C, n, H, W) -> the 2D network's maps (B, E_i, n, h_i, w_i)."""
        batch, _, count = image.shape[:3]
        slices = image.transpose(1, 2).flatten(0, 1)  # (B n, C, H, W)
        return tuple(
            found.reshape(batch, count, *found.shape[1:]).transpose(1, 2)
            for found in self._seen(slices)
        )

    def _seen(self, slices: Tensor) -> tuple[Tensor, ...]:
        at_once = self.config.slices_at_once
        if not at_once or len(slices) <= at_once or not torch.is_grad_enabled():
            found: tuple[Tensor, ...] = self.intra(slices)
            return found
        parts = [
            checkpoint(self.intra, part, use_reentrant=False)
            for part in torch.split(slices, at_once)
        ]
        return tuple(torch.cat(level) for level in zip(*parts, strict=True))

    def describe(self, maps: tuple[Tensor, ...]) -> Tensor:
        """Maps of every slice -> what describes it (B, n, F_in), Eq. 9."""
        means = [maps[i].mean(dim=(-2, -1)) for i in self.levels]
        return torch.cat([unit(mean.transpose(1, 2)) for mean in means], dim=-1)

    def between(self, described: Tensor) -> Tensor:
        """(B, n, F_in) -> features that know the other slices (B, n, F), Eq. 6 to 8."""
        found: Tensor = self.inter(self.narrow(described))
        return found

    def planar(self) -> Backbone:
        """The 2D network: the paper's 2D tasks and its U-Net stand on it."""
        return self.intra

    def adapt_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A bare 2D ResNet (torchvision's keys) fills the part that sees slices."""
        if "conv1.weight" in state:
            state = self.intra.adapt_state(state)
            return {f"intra.{key}": value for key, value in state.items()}
        return dict(state)
