"""SegResNet: the encoders of MONAI's SegResNet and SegResNetDS, key for key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

import torch
from monai.networks.nets.segresnet import SegResNet as MonaiSegResNet
from monai.networks.nets.segresnet_ds import SegResEncoder
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


@dataclass(frozen=True)
class SegResNetConfig(BackboneConfig):
    """CT-FM is ``filters=32``, ``blocks=(1, 2, 2, 4, 4)``."""

    layout: str = option(
        "ds",
        "ds: SegResNetDS and SegResEncoder (CT-FM, Auto3DSeg); plain: SegResNet",
        choices=("ds", "plain"),
    )
    filters: int = option(16, "channels of the first level; each doubles", minimum=1)
    blocks: tuple[int, ...] = option(
        (1, 2, 2, 4, 4), "residual blocks of each level, fine to coarse", minimum=1
    )
    norm: str = option(
        "instance",
        "what MONAI was told; its own defaults are batch (SegResNetDS) and group "
        "(SegResNet)",
        choices=("instance", "batch", "group"),
    )
    groups: int = option(8, "groups of channels, where norm is group", minimum=1)
    steps: tuple[tuple[int, int, int], ...] = option(
        (),
        "stride (z, y, x) after each level (layout ds), its kernel is 3 where that is "
        "2, else 1: MONAI's anisotropic_scales; empty means 2, across thick slices 1 "
        "until pixels have grown to them",
        advanced=True,
    )
    full_map: bool = option(
        False,
        "return the first level's map, too, which has the resolution of the image: "
        "the decoder of SegResNetDS needs it",
        advanced=True,
    )


class SegResNet(Backbone):
    """Levels of pre-activated residual blocks, a convolution of stride 2 between them.

    One map per level. The first level works at full resolution; its map is returned
    with ``full_map`` only, since features of every voxel take more memory than most
    uses can have. With it, segmentation takes SegResNetDS's own decoder.

    Sizes must be multiples of the strides up to 16 (in prediction up to 4); coarser
    maps have ceil(n / stride) cells.

    Source: Myronenko, 3D MRI brain tumor segmentation using autoencoder
    regularization, BrainLes 2018; MONAI 1.6.1, networks/nets/segresnet_ds.py and
    segresnet.py.
    Differs from MONAI: any size that 16 divides; equal numbers where MONAI takes it.
    """

    Config = SegResNetConfig
    title = "SegResNet encoder"
    decoder = "residual"
    prefixes = ("encoder.",)
    SMALL = MappingProxyType({"filters": 8, "blocks": [1, 1, 1, 1, 1]})

    def __init__(self, config: SegResNetConfig) -> None:
        super().__init__(config)
        steps = _steps(config)
        if config.layout == "ds":
            made = SegResEncoder(
                init_filters=config.filters,
                in_channels=config.in_channels,
                norm=_norm(config),
                blocks_down=config.blocks,
                anisotropic_scales=steps if config.steps else None,
            )
            self.conv_init, self.layers = made.conv_init, made.layers
        else:
            whole = MonaiSegResNet(
                init_filters=config.filters,
                in_channels=config.in_channels,
                norm=_norm(config),
                blocks_down=config.blocks,
                blocks_up=(1,),
            )
            self.convInit = whole.convInit
            self.down_layers = whole.down_layers
        so_far: Index = (1, 1, 1)
        strides = [so_far]
        for step in steps[:-1]:
            so_far = cast(
                "Index", tuple(a * b for a, b in zip(so_far, step, strict=True))
            )
            strides.append(so_far)
        self.skipped = int(not config.full_map and len(strides) > 1)
        channels = tuple(config.filters * 2**i for i in range(len(config.blocks)))
        self.channels = channels[self.skipped :]
        self.strides = tuple(strides[self.skipped :])
        exact = [s for s in self.strides if max(s) <= _EXACT]
        self.size_divisor = exact[-1]
        z, y, x = (min(n, _FREE) for n in self.size_divisor)
        self.free_divisor: Index = (z, y, x)
        if config.full_map and config.layout == "ds" and config.norm == "instance":
            self.decoder = "segresnet"  # type: ignore[misc]
        guard_small_maps(self)

    @classmethod
    def fitted(
        cls, settings: Mapping[str, Any], spacing_mm: Triple, shape: Index
    ) -> dict[str, Any]:
        """``steps`` as nnU-Net plans them, where slices are thick or single."""
        found = dict(settings)
        if found.get("steps") or found.get("layout") == "plain":
            return found
        levels = len(found.get("blocks") or SegResNetConfig.blocks)
        steps = halving_steps(spacing_mm, shape, levels)
        return found | ({"steps": [list(s) for s in steps]} if steps else {})

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, C, D, H, W) -> one map per level, (B, E_i, d_i, h_i, w_i)."""
        size = cast("Index", tuple(image.shape[-3:]))
        odd = any(n % m for n, m in zip(size, self.free_divisor, strict=True))
        if odd or torch.is_grad_enabled():
            self.check_size(size)
        maps = []
        if self.config.layout == "ds":
            found = self.conv_init(image)
            for level in self.layers:
                parts = cast("nn.ModuleDict", level)
                found = parts["blocks"](found)
                maps.append(found)
                found = parts["downsample"](found)
        else:
            found = self.convInit(image)
            for level in self.down_layers:
                found = level(found)
                maps.append(found)
        return tuple(maps[self.skipped :])

    def adapt_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Leave the decoder out."""
        return {k: v for k, v in state.items() if not k.startswith(_DECODER)}


_DECODER = ("up_layers.", "up_samples.", "conv_final.")


def _norm(config: SegResNetConfig) -> tuple[str, dict[str, Any]]:
    if config.norm == "group":
        return "group", {"num_groups": config.groups, "affine": True}
    return config.norm, {"affine": True}


def _steps(config: SegResNetConfig) -> tuple[Index, ...]:
    """Stride after each level; that after the last says its kernel only."""
    levels = len(config.blocks)
    if not levels:
        raise ConfigError("blocks must name at least one level, got ().")
    if config.norm == "group" and config.filters % config.groups:
        raise ConfigError(
            f"groups must divide filters = {config.filters}, got {config.groups}."
        )
    if not config.steps:
        return ((2, 2, 2),) * levels
    if config.layout == "plain":
        raise ConfigError("steps are of layout ds only; layout plain always halves.")
    if len(config.steps) != levels:
        raise ConfigError(
            f"steps must give one stride for each of the {levels} levels of blocks "
            f"{config.blocks}, got {len(config.steps)}: {config.steps}."
        )
    if any(n not in (1, 2) for s in config.steps for n in s):
        raise ConfigError(f"steps must be 1 or 2, got {config.steps}.")
    return config.steps
