"""nnFormer's encoder: convolutions between stages, volume attention inside them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from types import MappingProxyType
from typing import cast

import torch
from monai.networks.blocks import MLPBlock
from monai.networks.layers import DropPath
from torch import Tensor, nn

from homolog.backbones._window_attention import (
    WindowAttention,
    cut,
    join,
    plan_windows,
)
from homolog.backbones.base import Backbone, BackboneConfig
from homolog.config import ConfigError, option
from homolog.geometry.affine import Index
from homolog.small_maps import guard_small_maps


@dataclass(frozen=True)
class NNFormerConfig(BackboneConfig):
    """Defaults are Alice's: feature size 48, patch 2, windows 4, 4, 8, 4."""

    feature_size: int = option(48, "channels of the finest map", minimum=4)
    depths: tuple[int, ...] = option(
        (2, 2, 2, 2), "attention blocks per stage", minimum=1
    )
    heads: tuple[int, ...] = option(
        (3, 6, 12, 24), "attention heads per stage", minimum=1
    )
    windows: tuple[int, ...] = option(
        (4, 4, 8, 4), "side of the volume of attention per stage", unit="cells",
        minimum=1,
    )  # fmt: skip
    drop_path: float = option(
        0.0, "stochastic depth of the last block", minimum=0, maximum=0.9, advanced=True
    )
    decoder: str = option(
        "residual",
        "what segmentation raises its maps with: a light residual decoder, or "
        "nnFormer's own, whose volumes attend to the encoder's maps",
        choices=("residual", "nnformer"),
    )


# Paper: Alice nnFormer.
class NNFormer(Backbone):
    """Interleaved encoder: a convolutional embedding of stride 2, then stages.

    Each stage attends inside local volumes, plain and shifted in turn; a convolution of
    stride 2 leads to the next. Returns the stages' outputs, layer-normalised: strides
    2, 4, 8, 16 and ``feature_size`` times 1, 2, 4, 8 channels. Where a map is not
    larger than its window the attention is global, as at nnFormer's bottom.

    Source: Zhou et al., "nnFormer: Volumetric Medical Image Segmentation via a 3D
    Transformer", IEEE TIP 2023, section 3; sizes as in Alice, section 4.
    Differs from the paper: a residual decoder by default, the paper's own (skip
    attention) with ``decoder=nnformer``; patch 2 instead of 4 (Alice); written from the
    paper, so no published weights load.
    """

    Config = NNFormerConfig
    title = "nnFormer encoder"
    decoder = "residual"
    SMALL = MappingProxyType(
        {"feature_size": 16, "heads": [2, 4, 8, 16], "windows": [4, 4, 4, 4]}
    )

    def __init__(self, config: NNFormerConfig) -> None:
        super().__init__(config)
        dims = _checked(config)
        self.channels = tuple(dims)
        self.decoder = config.decoder  # type: ignore[misc]
        steps = [2 ** (i + 1) for i in range(len(dims))]
        self.strides = tuple((s, s, s) for s in steps)
        side = min(steps[-1], 16)
        self.size_divisor: Index = (side, side, side)
        first = dims[0]
        self.embed = nn.Sequential(
            nn.Conv3d(config.in_channels, first // 2, 3, stride=2, padding=1),
            nn.GELU(), _ChannelNorm(first // 2),
            nn.Conv3d(first // 2, first, 3, padding=1),
            nn.GELU(), _ChannelNorm(first),
        )  # fmt: skip
        rates = torch.linspace(0, config.drop_path, sum(config.depths)).tolist()
        stages = []
        for i, dim in enumerate(dims):
            start = sum(config.depths[:i])
            blocks = [
                VolumeBlock(dim, config.heads[i], config.windows[i], bool(k % 2),
                       rates[start + k])
                for k in range(config.depths[i])
            ]  # fmt: skip
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in dims)
        self.downs = nn.ModuleList(
            nn.Sequential(_ChannelNorm(a), nn.Conv3d(a, b, 3, stride=2, padding=1))
            for a, b in itertools.pairwise(dims)
        )
        guard_small_maps(self)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, C, D, H, W) -> one map (B, E_i, d_i, h_i, w_i) per stage."""
        self.check_size(cast("Index", tuple(image.shape[-3:])))
        cells = self.embed(image)
        found = []
        for i, stage in enumerate(self.stages):
            mixed = stage(cells.permute(0, 2, 3, 4, 1).contiguous())
            found.append(self.norms[i](mixed).permute(0, 4, 1, 2, 3).contiguous())
            if i < len(self.downs):
                cells = self.downs[i](mixed.permute(0, 4, 1, 2, 3))
        return tuple(found)


class VolumeBlock(nn.Module):
    """Attention inside local volumes and a perceptron, each with a skip.

    Args:
        dim: Channels.
        heads: Attention heads.
        side: Cells per volume and axis.
        shifted: Whether volumes lie half a side further.
        drop_path: Stochastic depth.

    Source: Zhou et al., nnFormer, IEEE TIP 2023, section 3.
    """

    def __init__(
        self, dim: int, heads: int, side: int, shifted: bool, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.window: Index = (side, side, side)
        half = side // 2 if shifted else 0
        self.shift: Index = (half, half, half)
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, self.window)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLPBlock(dim, 4 * dim, act="GELU", dropout_mode="swin")

    def forward(self, cells: Tensor, seen: Tensor | None = None) -> Tensor:
        """(B, D, H, W, E) -> the same shape; ``seen`` of that shape is attended to."""
        size = cast("Index", tuple(cells.shape[1:4]))
        plan = plan_windows(size, self.window, self.shift)
        told = None if seen is None else cut(self.norm1(seen), plan)
        mixed = join(self.attn(cut(self.norm1(cells), plan), plan, told), plan)
        cells = cells + self.drop_path(mixed)
        done: Tensor = cells + self.drop_path(self.mlp(self.norm2(cells)))
        return done


class _ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, E, D, H, W)."""

    def forward(self, cells: Tensor) -> Tensor:
        return super().forward(cells.movedim(1, 4)).movedim(4, 1)


def _checked(config: NNFormerConfig) -> list[int]:
    """Channels of each stage.

    Raises:
        ConfigError: Stages that do not fit together.
    """
    counts = {len(config.depths), len(config.heads), len(config.windows)}
    if len(counts) > 1 or not config.depths:
        raise ConfigError(
            "depths, heads and windows must name the same stages, at least one, got "
            f"{config.depths}, {config.heads} and {config.windows}."
        )
    dims = [config.feature_size * 2**i for i in range(len(config.depths))]
    for i, (dim, heads) in enumerate(zip(dims, config.heads, strict=True)):
        if dim % heads:
            raise ConfigError(
                f"heads[{i}] must divide the {dim} channels of stage {i + 1}, "
                f"got {heads}."
            )
    return dims
