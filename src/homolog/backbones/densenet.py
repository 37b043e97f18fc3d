"""DenseNet: the small dense network for thick slices of Hundred Million."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from homolog.backbones.base import Backbone, BackboneConfig
from homolog.config import ConfigError, option
from homolog.geometry.affine import Index
from homolog.small_maps import guard_small_maps

# Sizes must be multiples of the strides of the first blocks, up to this number; coarser
# maps are rounded up, so that a small crop (24 voxels) need not grow to 32.
_EXACT = 3
_SLOPE = 0.01


@dataclass(frozen=True)
class DenseNetConfig(BackboneConfig):
    """Defaults are the paper's network of 115 000 weights."""

    initial: int = option(16, "features of the first convolution", minimum=1)
    growth: int = option(7, "features that every unit adds", minimum=1)
    units: tuple[int, ...] = option(
        (1, 2, 3, 3, 3), "units of each dense block, fine to coarse", minimum=1
    )
    flat_blocks: int = option(
        2,
        "first blocks that look and halve within slices only, for slices are thick; "
        "all of them make a network of slices",
        minimum=0,
    )
    norm: str = option(
        "batch",
        "batch is the paper's, and what clustering needs; group and instance suit "
        "batches of one or two crops",
        choices=("batch", "group", "instance"),
    )


# Paper: Hundred Million IV-E, network.
class DenseNet(Backbone):
    """Five dense blocks; the first two leave the axis across slices (z) alone.

    A unit is a convolution, norm and leaky ReLU; what it finds is put beside all that
    the block had before. Before each block the map is halved (the first time by the
    first convolution): strides (1, 2, 2), (1, 4, 4), (2, 8, 8), (4, 16, 16) and
    (8, 32, 32), the paper's volumes of 40 x 224 x 192 end as 5 x 7 x 6 cells. Sides
    must be multiples of (2, 8, 8); coarser maps have ceil(n / stride) cells.

    With ``norm=group`` the features of one unit are one group, whatever the growth.
    Pooled features hold little then: learning one batch of 8 phantom crops by heart
    with Hundred Million, 60 steps at 1e-3, took the loss from 3.8 to 0.3 with batch
    norm; with group norm it ended at ln K, all features alike. Two cores train the
    defaults, so there are no smaller settings.

    Source: Ghesu et al., arXiv 2201.01283, section IV-E: (1, 2, 3, 3, 3) units, 16
    initial features, growth 7, kernels (1, 3, 3) and (3, 3, 3); Huang et al., CVPR 2017
    (dense blocks, halving by average pooling).
    Differs from the paper: what it leaves open is decided: the first convolution halves
    in plane; between blocks features are averaged and all handed on, without a
    convolution. The numbers told make 100 features, not the 1024 its classifier reads:
    what pools them is the user's (``homolog finetune classify``, ``pooling``).
    """

    Config = DenseNetConfig
    title = "Dense network for thick slices"
    decoder = "residual"

    def __init__(self, config: DenseNetConfig) -> None:
        super().__init__(config)
        if not config.units or config.flat_blocks > len(config.units):
            raise ConfigError(
                "units must name at least one block and as many as flat_blocks, got "
                f"{config.units} and {config.flat_blocks}."
            )
        self.stem = _unit(config, config.in_channels, config.initial, 0, stem=True)
        blocks, channels, strides = [], [], []
        inside = config.initial
        so_far: Index = (1, 1, 1)
        for number, count in enumerate(config.units):
            units = []
            for _ in range(count):
                units.append(_unit(config, inside, config.growth, number))
                inside += config.growth
            blocks.append(nn.ModuleList(units))
            channels.append(inside)
            z, y, x = (
                a * b for a, b in zip(so_far, _step(config, number), strict=True)
            )
            so_far = (z, y, x)
            strides.append(so_far)
        self.blocks = nn.ModuleList(blocks)
        self.channels = tuple(channels)
        self.strides = tuple(strides)
        self.size_divisor = strides[min(_EXACT, len(strides)) - 1]
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, a=_SLOPE)
        guard_small_maps(self)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, C, D, H, W) -> one map per block, (B, E_i, d_i, h_i, w_i)."""
        self.check_size(cast("Index", tuple(image.shape[-3:])))
        found = self.stem(image)
        maps = []
        for number, block in enumerate(self.blocks):
            if number:
                found = _halved(found, _step(self.config, number))
            for unit in cast("nn.ModuleList", block):
                found = torch.cat([found, unit(found)], dim=1)
            maps.append(found)
        return tuple(maps)


def _step(config: DenseNetConfig, block: int) -> Index:
    """How the map is halved before a block."""
    return (1, 2, 2) if block < config.flat_blocks else (2, 2, 2)


def _halved(found: Tensor, step: Index) -> Tensor:
    """Means of cells; those over the border are of what there is."""
    sides = [min(s, n) for s, n in zip(step, found.shape[-3:], strict=True)]
    return functional.avg_pool3d(found, sides, sides, ceil_mode=True)


def _unit(
    config: DenseNetConfig, inside: int, outside: int, block: int, *, stem: bool = False
) -> nn.Sequential:
    deep = block >= config.flat_blocks
    return nn.Sequential(
        nn.Conv3d(
            inside,
            outside,
            (3 if deep else 1, 3, 3),
            _step(config, block) if stem else 1,
            (int(deep), 1, 1),
            bias=False,
        ),
        _norm(config.norm, outside),
        nn.LeakyReLU(_SLOPE, inplace=True),
    )


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm3d(channels)
    if kind == "group":
        return nn.GroupNorm(1, channels)
    return nn.InstanceNorm3d(channels, affine=True)
