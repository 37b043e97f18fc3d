"""ResEnc: the residual encoder of nnU-Net, key for key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn

from homolog.backbones.base import Backbone, BackboneConfig
from homolog.config import ConfigError, option
from homolog.geometry.affine import Index, Triple
from homolog.geometry.anisotropy import halving_steps
from homolog.small_maps import guard_small_maps

# Sizes must be multiples of the strides up to this one; coarser maps are rounded up.
_EXACT = 16
# In prediction they are rounded up from this stride on: less padding for a whole scan.
_FREE = 4
# An axis whose voxels are so many times as long as the finest has nothing to gather.
_COARSE = 2.0


@dataclass(frozen=True)
class ResEncConfig(BackboneConfig):
    """Defaults are ResEnc-L of nnU-Net, as nnssl pretrains it."""

    channels: tuple[int, ...] = option(
        (32, 64, 128, 256, 320, 320), "channels of each stage, fine to coarse",
        minimum=1,
    )  # fmt: skip
    blocks: tuple[int, ...] = option(
        (1, 3, 4, 6, 6, 6), "residual blocks of each stage", minimum=1
    )
    steps: tuple[tuple[int, int, int], ...] = option(
        (),
        "stride of each stage (z, y, x), as in a plan of nnU-Net; empty means 1, then "
        "2, across thick slices 1 until pixels have grown to them",
        advanced=True,
    )
    kernels: tuple[tuple[int, int, int], ...] = option(
        (),
        "kernel of each stage (z, y, x), as in a plan of nnU-Net; empty means 3, "
        "across thick slices 1 until pixels have grown to them",
        advanced=True,
    )
    full_map: bool = option(
        False,
        "return the first stage's map, too, which has the resolution of the image: the "
        "decoder of nnU-Net needs it",
        advanced=True,
    )


class ResEnc(Backbone):
    """Stem and residual stages of nnU-Net's ResEnc presets, one map per stage.

    A stage is blocks of two convolutions with bias, instance norm and leaky ReLU; the
    shortcut of a first block averages over the stride, and a 1^3 convolution without
    bias (and a norm) widens it: ResNet-D. The first stage works at full resolution; its
    map is returned with ``full_map`` only, since features of every voxel take more
    memory than most uses can have. With it, segmentation takes nnU-Net's own decoder.
    Keys are nnU-Net's below ``encoder.``.

    Sizes must be multiples of the strides up to 16 (in prediction up to 4); coarser
    maps have ceil(n / stride) cells.

    Source: Isensee et al., nnU-Net Revisited, MICCAI 2024; Wald et al., Revisiting MAE
    pre-training for 3D medical image segmentation, CVPR 2025; dynamic-network-
    architectures 0.4.4, ResidualEncoderUNet; He et al., Bag of tricks, CVPR 2019.
    Differs from nnU-Net: any size that 16 divides (averages of a last, half cell are of
    what it holds); where all sides are multiples of the strides the numbers are equal.
    """

    Config = ResEncConfig
    title = "ResEnc (nnU-Net's residual encoder)"
    decoder = "residual"
    prefixes = ("encoder.",)
    SMALL = MappingProxyType(
        {"channels": [8, 16, 32, 64, 128], "blocks": [1, 1, 1, 1, 1]}
    )

    def __init__(self, config: ResEncConfig) -> None:
        super().__init__(config)
        steps, kernels = _plan(config)
        first = config.channels[0]
        self.stem = _Stem(config.in_channels, first, kernels[0])
        stages: list[nn.Module] = []
        strides: list[Index] = []
        so_far: Index = (1, 1, 1)
        inside = first
        for outside, blocks, step, kernel in zip(
            config.channels, config.blocks, steps, kernels, strict=True
        ):
            stages.append(_Stage(inside, outside, kernel, step, blocks))
            so_far = cast(
                "Index", tuple(a * b for a, b in zip(so_far, step, strict=True))
            )
            strides.append(so_far)
            inside = outside
        self.stages = nn.ModuleList(stages)
        left_out = not config.full_map and len(strides) > 1 and max(strides[0]) == 1
        self.skipped = int(left_out)
        self.channels = config.channels[self.skipped :]
        self.strides = tuple(strides[self.skipped :])
        exact = [s for s in self.strides if max(s) <= _EXACT]
        self.size_divisor = exact[-1] if exact else self.strides[0]
        z, y, x = (min(n, _FREE) for n in self.size_divisor)
        self.free_divisor: Index = (z, y, x)
        if max(self.strides[0]) == 1 and len(self.strides) > 1:
            self.decoder = "nnunet"  # type: ignore[misc]
        for part in self.modules():
            if isinstance(part, nn.Conv3d):
                nn.init.kaiming_normal_(part.weight, a=1e-2)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
            elif isinstance(part, _Block):  # each begins as its shortcut
                nn.init.zeros_(part.conv2.norm.weight)
        guard_small_maps(self)

    @classmethod
    def fitted(
        cls, settings: Mapping[str, Any], spacing_mm: Triple, shape: Index
    ) -> dict[str, Any]:
        """``steps`` and ``kernels`` as nnU-Net plans them, where slices are thick."""
        found = dict(settings)
        if found.get("steps") or found.get("kernels"):
            return found
        stages = len(found.get("channels") or ResEncConfig.channels)
        later = halving_steps(spacing_mm, shape, stages - 1)
        if later is None:
            return found
        steps = [(1, 1, 1), *later]
        kernels = _kernels(spacing_mm, shape, steps)
        return found | {
            "steps": [list(s) for s in steps],
            "kernels": [list(k) for k in kernels],
        }

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, C, D, H, W) -> one map per stage, (B, E_i, d_i, h_i, w_i)."""
        size = cast("Index", tuple(image.shape[-3:]))
        odd = any(n % m for n, m in zip(size, self.free_divisor, strict=True))
        if odd or torch.is_grad_enabled():
            self.check_size(size)
        found = self.stem(image)
        maps = []
        for stage in self.stages:
            found = stage(found)
            maps.append(found)
        return tuple(maps[self.skipped :])

    def adapt_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Take each tensor once, and leave the decoder out."""
        found = plain_names(state)
        return {k: v for k, v in found.items() if not k.startswith("decoder.")}


def plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of nnU-Net without those that repeat others.

    ``conv`` and ``norm`` of a layer come again as ``all_modules.0`` and
    ``all_modules.1``, which stand in where the plain name is missing.
    """
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        before, copied, after = key.partition(".all_modules.")
        number, _, rest = after.partition(".")
        if not copied:
            found[key] = value
        elif number in _COPIES:
            found.setdefault(f"{before}.{_COPIES[number]}.{rest}", value)
    return found


_COPIES = {"0": "conv", "1": "norm"}


class Convolution(nn.Module):
    """Convolution, instance norm and, where wanted, leaky ReLU."""

    def __init__(
        self, inside: int, outside: int, kernel: Index, step: Index,
        *, act: bool, bias: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        reach = cast("Index", tuple(k // 2 for k in kernel))
        self.conv = nn.Conv3d(inside, outside, kernel, step, reach, bias=bias)
        self.norm = nn.InstanceNorm3d(outside, affine=True)
        self.nonlin = nn.LeakyReLU(0.01, inplace=True) if act else None

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, E, d, h, w)."""
        found: Tensor = self.norm(self.conv(image))
        return found if self.nonlin is None else self.nonlin(found)


class _Stem(nn.Module):
    def __init__(self, inside: int, outside: int, kernel: Index) -> None:
        super().__init__()
        once = (1, 1, 1)
        self.convs = nn.Sequential(Convolution(inside, outside, kernel, once, act=True))

    def forward(self, image: Tensor) -> Tensor:
        found: Tensor = self.convs(image)
        return found


class _Block(nn.Module):
    """Two convolutions and a shortcut that averages, then widens."""

    def __init__(self, inside: int, outside: int, kernel: Index, step: Index) -> None:
        super().__init__()
        self.conv1 = Convolution(inside, outside, kernel, step, act=True)
        self.conv2 = Convolution(outside, outside, kernel, (1, 1, 1), act=False)
        self.nonlin2 = nn.LeakyReLU(0.01, inplace=True)
        ways: list[nn.Module] = []
        if max(step) > 1:
            ways.append(nn.AvgPool3d(step, step, ceil_mode=True))
        if inside != outside:
            once = (1, 1, 1)
            ways.append(Convolution(inside, outside, once, once, act=False, bias=False))
        self.skip = nn.Sequential(*ways)

    def forward(self, image: Tensor) -> Tensor:
        found: Tensor = self.conv2(self.conv1(image)) + self.skip(image)
        done: Tensor = self.nonlin2(found)
        return done


class _Stage(nn.Module):
    def __init__(
        self, inside: int, outside: int, kernel: Index, step: Index, blocks: int
    ) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            _Block(inside, outside, kernel, step),
            *(_Block(outside, outside, kernel, (1, 1, 1)) for _ in range(blocks - 1)),
        )

    def forward(self, image: Tensor) -> Tensor:
        found: Tensor = self.blocks(image)
        return found


def _kernels(
    spacing_mm: Triple, shape: Index, steps: list[Index]
) -> list[tuple[int, ...]]:
    """3 along an axis from the stage on at which its voxels are not coarse any more.

    Source: Isensee et al., Nature Methods 2021 (nnU-Net), Supplementary Note 2.
    """
    sides, found = list(spacing_mm), []
    solid = [axis for axis in range(3) if shape[axis] > 1]
    fine: set[int] = set()
    for step in steps:
        sides = [a * b for a, b in zip(sides, step, strict=True)]
        limit = _COARSE * min(sides[axis] for axis in solid)
        fine |= {axis for axis in solid if sides[axis] < limit}
        found.append(tuple(3 if axis in fine else 1 for axis in range(3)))
    return found


def _plan(config: ResEncConfig) -> tuple[tuple[Index, ...], tuple[Index, ...]]:
    """Stride and kernel of each stage, checked."""
    number = len(config.channels)
    if not number:
        raise ConfigError("channels must name at least one stage, got ().")
    steps = config.steps or ((1, 1, 1), *((2, 2, 2),) * (number - 1))
    kernels = config.kernels or ((3, 3, 3),) * number
    for name, found in (
        ("blocks", config.blocks), ("steps", steps), ("kernels", kernels)
    ):  # fmt: skip
        if len(found) != number:
            raise ConfigError(
                f"{name} must have one entry for each of the {number} stages of "
                f"channels {config.channels}, got {len(found)}: {found}."
            )
    if any(n not in (1, 2) for s in steps for n in s):
        raise ConfigError(f"steps must be 1 or 2, got {steps}.")
    if any(n not in (1, 3, 5) for k in kernels for n in k):
        raise ConfigError(f"kernels must be 1, 3 or 5, got {kernels}.")
    return steps, kernels
