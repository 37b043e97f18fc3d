"""ResUNet: a residual convolutional encoder of MONAI's blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from monai.networks.blocks.dynunet_block import UnetResBlock
from torch import Tensor, nn

from homolog.backbones.base import Backbone, BackboneConfig
from homolog.config import ConfigError, option
from homolog.geometry.affine import Index, Triple
from homolog.geometry.anisotropy import halving_steps
from homolog.small_maps import guard_small_maps

Steps = tuple[Index, ...]

# Sizes must be multiples of the strides up to this one; coarser maps are rounded up,
# so that a small crop (48 voxels) need not grow to a multiple of 32.
_EXACT = 16
# Without a gradient coarser maps are rounded up already from this stride on: a whole
# scan then needs less padding, which shifts the statistics of the norms (hippocampus
# crops in one window: Dice 0.872 padded to multiples of 4, 0.779 of 16).
_FREE = 4


@dataclass(frozen=True)
class ResUNetConfig(BackboneConfig):
    """Defaults train at the speed of MONAI's plain UNet on two CPU cores."""

    channels: tuple[int, ...] = option(
        (32, 64, 128, 256), "channels of each stage, fine to coarse", minimum=1
    )
    steps: tuple[tuple[int, int, int], ...] = option(
        (),
        "stride of each stage (z, y, x); empty means 2, across thick slices (twice as "
        "thick as pixels are wide) 1 until pixels have grown to them",
        advanced=True,
    )
    blocks: int = option(1, "residual blocks per stage", minimum=1, maximum=8)


class ResUNet(Backbone):
    """Residual stages, each halving the map: the encoder of a residual U-Net.

    One map per stage. There is no map of stride 1: convolutions at full resolution
    would take most of the time of a training step, and the residual decoder
    (homolog.nn.decoders) looks at the image itself there. A stage is UnetResBlocks (two
    3^3 convolutions, instance norm, leaky ReLU, a skip), the first with the stride. On
    scans of thick slices a new network takes ``steps=((1, 2, 2), (2, 2, 2), ...)``, see
    ``fitted``: where the step of an axis is 1 and the axis has not been halved before,
    the kernel is 1 along it. Sizes
    must be multiples of the strides up to 16 (in prediction up to 4); coarser maps have
    ceil(n / stride) cells.

    Source: Isensee et al., nnU-Net Revisited, MICCAI 2024 (residual encoder); MONAI
    1.6.1, networks/blocks/dynunet_block.py.
    Differs from nnU-Net: starts at stride 2.
    """

    Config = ResUNetConfig
    title = "Residual U-Net encoder"
    decoder = "residual"

    def __init__(self, config: ResUNetConfig) -> None:
        super().__init__(config)
        steps = _steps(config)
        self.channels = config.channels
        strides: list[Index] = []
        stages = []
        so_far: Index = (1, 1, 1)
        inside = config.in_channels
        for outside, step in zip(config.channels, steps, strict=True):
            so_far = cast(
                "Index", tuple(a * b for a, b in zip(so_far, step, strict=True))
            )
            stages.append(_stage(inside, outside, step, so_far, config.blocks))
            strides.append(so_far)
            inside = outside
        self.stages = nn.ModuleList(stages)
        self.strides = tuple(strides)
        exact = [s for s in strides if max(s) <= _EXACT]
        self.size_divisor = exact[-1] if exact else strides[0]
        z, y, x = (min(n, _FREE) for n in self.size_divisor)
        self.free_divisor: Index = (z, y, x)
        guard_small_maps(self)

    @classmethod
    def fitted(
        cls, settings: Mapping[str, Any], spacing_mm: Triple, shape: Index
    ) -> dict[str, Any]:
        """``steps`` as nnU-Net plans them, where slices are thick or single."""
        steps = None
        if not settings.get("steps"):
            stages = len(settings.get("channels") or ResUNetConfig.channels)
            steps = halving_steps(spacing_mm, shape, stages)
        return dict(settings) | ({"steps": [list(s) for s in steps]} if steps else {})

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, C, D, H, W) -> one map per stage, (B, E_i, d_i, h_i, w_i)."""
        size = cast("Index", tuple(image.shape[-3:]))
        odd = any(n % m for n, m in zip(size, self.free_divisor, strict=True))
        if odd or torch.is_grad_enabled():
            self.check_size(size)
        maps = []
        for stage in self.stages:
            image = stage(image)
            maps.append(image)
        return tuple(maps)


def _stage(
    inside: int, outside: int, step: Index, stride: Index, blocks: int
) -> nn.Module:
    # an axis never halved has coarse voxels: nothing to gather along it yet
    kernel = [1 if total == 1 and max(stride) > 1 else 3 for total in stride]
    return nn.Sequential(
        *(
            UnetResBlock(
                spatial_dims=3,
                in_channels=inside if i == 0 else outside,
                out_channels=outside,
                kernel_size=kernel,
                stride=step if i == 0 else 1,
                norm_name=("instance", {"affine": True}),
            )
            for i in range(blocks)
        )
    )


def _steps(config: ResUNetConfig) -> Steps:
    steps = config.steps or ((2, 2, 2),) * len(config.channels)
    if not config.channels:
        raise ConfigError("channels must name at least one stage, got ().")
    if len(steps) != len(config.channels):
        raise ConfigError(
            f"steps must give one stride for each of the {len(config.channels)} stages "
            f"of channels {config.channels}, got {len(steps)}: {steps}."
        )
    wrong = [s for s in steps if any(n not in (1, 2, 3) for n in s)]
    if wrong or math.prod(math.prod(s) for s in steps) == 1:
        raise ConfigError(f"steps must be 1, 2 or 3, and not all 1, got {steps}.")
    return steps
