"""Primus: a vision transformer of EVA-02's kind with rotary positions, key for key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import cast

import torch
from monai.networks.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional

from homolog.backbones._tokens import (
    TokenConfig,
    as_volume,
    check_tokens,
    even_taps,
    grid_of,
    resized,
)
from homolog.backbones.base import Backbone
from homolog.config import ConfigError, as_in, option
from homolog.geometry.affine import Index

# Wave length of the slowest rotation is 2 pi times this, in patches.
_SLOWEST = 10000.0
# Width of the perceptrons is this many times that of a token.
_INNER = 8 / 3


@dataclass(frozen=True)
class PrimusConfig(TokenConfig):
    """Defaults are Primus-S; see the network for B, M and L."""

    patch: tuple[int, int, int] = as_in(TokenConfig, "patch", default=(8, 8, 8))
    hidden: int = option(396, "channels of a token", minimum=6)
    heads: int = option(6, "attention heads", minimum=1)
    layer_scale: float = option(
        0.1, "start of the learnt factors of what a block adds; 0: none", minimum=0,
        advanced=True,
    )  # fmt: skip
    attention_norm: bool = option(
        True, "layer norm of what attention gathered", advanced=True
    )
    registers: int = option(0, "tokens beside those of patches", minimum=0)
    positions: bool = option(
        True, "a learnt position embedding besides the rotation", advanced=True
    )
    y_first: bool = option(
        False,
        "positions count y before z, as nnssl pretrains them (nnU-Net: z first)",
        advanced=True,
    )
    drop_path: float = option(
        0.0, "stochastic depth of the last block", minimum=0, maximum=0.9, advanced=True
    )


class Primus(Backbone):
    """Transformer of small patches whose attention is told where tokens lie.

    Queries and keys are turned by angles that grow with the place of their patch, a
    third of them with each axis (rotary positions); perceptrons are gated (SwiGLU) and
    normalised inside. Published sizes, each of patch 8 (``hidden``, ``layers``,
    ``heads``): S 396, 12, 6; B 792, 12, 12; M 864, 16, 12; L 1056, 24, 16. Keys are
    those of nnU-Net and nnssl.

    Returns the tokens after some blocks, all of the patch's stride, shallow to deep;
    the deepest is layer-normalised, as in ``vit``.

    Sizes other than ``image_size`` take the learnt positions interpolated to their
    grid, each axis on its own; rotations count patches and go on.

    Source: Wald et al., Primus: Enforcing attention usage for 3D medical image
    segmentation, 2025; Fang et al., EVA-02, 2023; Su et al., RoFormer, 2021; dynamic-
    network-architectures 0.4.4, architectures/primus.py; timm 1.0, models/eva.py.
    Differs from the paper: the decoder is that of UNETR, on four maps.
    """

    Config = PrimusConfig
    title = "Primus (EVA-02 vision transformer)"
    drops_tokens = True
    decoder = "unetr"
    SMALL = MappingProxyType(
        {"image_size": [48, 48, 48], "hidden": 144, "layers": 8, "heads": 4}
    )
    FINETUNE = MappingProxyType(
        {
            task: {
                "cpu": {"learning_rate": 5e-4, "warmup_steps": 50},
                "gpu": {"learning_rate": 4e-4},
            }
            for task in ("segment", "translate")
        }
    )

    def __init__(self, config: PrimusConfig) -> None:
        super().__init__(config)
        _check(config)
        hidden, patch = config.hidden, config.patch
        self.taps = config.taps or even_taps(config.layers)
        self.channels = (hidden,) * len(self.taps)
        self.strides = (patch,) * len(self.taps)
        self.size_divisor = patch
        self.grid = grid_of(config.image_size, patch)
        self.down_projection = _PatchEmbedding(config.in_channels, hidden, patch)
        self.eva = _Eva(config, max(self.taps), math.prod(self.grid))
        if config.registers:
            self.register_tokens = nn.Parameter(
                torch.randn(1, config.registers, hidden) * 1e-6
            )

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, C, D, H, W) -> one map (B, E, d, h, w) per tap, shallow to deep."""
        tokens, angles, grid = self._embed(image)
        found = self._run(tokens, angles)
        return tuple(as_volume(t, grid).contiguous() for t in found)

    def forward_visible(self, image: Tensor, keep: Tensor) -> Tensor:
        """Run on some patches only; the others cost nothing after the embedding.

        Args:
            image: (B, C, D, H, W).
            keep: (B, K) int64, the patches kept, as numbers in the flattened grid
                (z slowest); their order is the order of the result.

        Returns:
            Normalised tokens (B, K, E) of the last block.
        """
        tokens, angles, _ = self._embed(image)
        index = keep.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
        return self._run(tokens.gather(1, index), angles[keep])[-1]

    def map_of_stride(self, stride: int) -> int:
        """All maps share one stride: the deepest is meant."""
        super().map_of_stride(stride)
        return len(self.strides) - 1

    def adapt_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Drop decoders and what masks; resize a position embedding of another cube."""
        parts = ("down_projection.", "eva.", "register_tokens")
        found = {
            key: value
            for key, value in state.items()
            if key.startswith(parts) and not key.startswith("eva.rope.")
        }
        key, extra = "eva.pos_embed", self.config.registers
        given = found.get(key)
        if given is not None and given.ndim == 3:
            side = round((given.shape[1] - extra) ** (1 / 3))
            if side**3 == given.shape[1] - extra != math.prod(self.grid):
                cube = (side, side, side)
                moved = resized(given[:, extra:], cube, self._stored(self.grid))
                found[key] = torch.cat([given[:, :extra], moved], dim=1)
        return found

    def _stored(self, grid: Index) -> Index:
        """A grid, or its transpose, in the order of the position embedding."""
        z, y, x = grid
        return (y, z, x) if self.config.y_first else grid

    def _embed(self, image: Tensor) -> tuple[Tensor, Tensor, Index]:
        """Tokens with their positions (B, N, E), angles (N, A), and their grid."""
        size = cast("Index", tuple(image.shape[-3:]))
        self.check_size(size)
        grid = grid_of(size, self.config.patch)
        patches = self.down_projection.proj(image).flatten(2).transpose(1, 2)
        positions = self.eva.pos_embed
        if positions is not None:
            extra = self.config.registers
            learnt = positions[:, extra:]
            if self.config.y_first:
                volume = as_volume(learnt, self._stored(self.grid)).transpose(2, 3)
                learnt = volume.flatten(2).transpose(1, 2)
            if grid != self.grid:
                learnt = resized(learnt, self.grid, grid)
            patches = patches + learnt
        per_head = self.config.hidden // self.config.heads
        return patches, _angles(grid, per_head, image, self.config.y_first), grid

    def _run(self, tokens: Tensor, angles: Tensor) -> list[Tensor]:
        """Tokens (B, N, E) after each tap, without registers; the last normalised.

        ``angles``: (N, A), or (B, N, A) where each image has its own tokens.
        """
        extra = self.config.registers
        if extra:
            first: Tensor = self.register_tokens
            if self.eva.pos_embed is not None:
                first = first + self.eva.pos_embed[:, :extra]
            first = first.expand(len(tokens), -1, -1).to(tokens.dtype)
            tokens = torch.cat([first, tokens], dim=1)
            angles = functional.pad(angles, (0, 0, extra, 0))  # these are not turned
        turn = angles.cos(), angles.sin()
        found = []
        for number, block in enumerate(self.eva.blocks, start=1):
            tokens = block(tokens, turn)
            if number in self.taps:
                found.append(tokens[:, extra:])
        found[-1] = self.eva.norm(found[-1])
        return found


class _PatchEmbedding(nn.Module):
    def __init__(self, channels: int, hidden: int, patch: Index) -> None:
        super().__init__()
        self.proj = nn.Conv3d(channels, hidden, patch, patch)
        nn.init.kaiming_normal_(self.proj.weight, a=1e-2)
        nn.init.zeros_(cast("Tensor", self.proj.bias))


class _Eva(nn.Module):
    """What nnU-Net and nnssl keep below ``eva.``."""

    def __init__(self, config: PrimusConfig, blocks: int, patches: int) -> None:
        super().__init__()
        hidden = config.hidden
        last = max(config.layers - 1, 1)
        rates = [config.drop_path * i / last for i in range(blocks)]
        self.pos_embed = (
            nn.Parameter(torch.empty(1, config.registers + patches, hidden))
            if config.positions
            else None
        )
        self.blocks = nn.ModuleList(_Block(config, rate) for rate in rates)
        self.norm = nn.LayerNorm(hidden)
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for number, block in enumerate(self.blocks, start=1):
            for part in block.modules():
                if isinstance(part, nn.Linear):
                    nn.init.trunc_normal_(part.weight, std=0.02)
                    if part.bias is not None:
                        nn.init.zeros_(part.bias)
            block = cast("_Block", block)
            for output in (block.attn.proj, block.mlp.fc2):
                output.weight.data /= math.sqrt(2 * number)


class _Block(nn.Module):
    """Attention and a gated perceptron, each with a skip."""

    def __init__(self, config: PrimusConfig, rate: float) -> None:
        super().__init__()
        hidden, scale = config.hidden, config.layer_scale
        self.norm1 = nn.LayerNorm(hidden)
        self.attn = _Attention(hidden, config.heads, config.attention_norm)
        self.norm2 = nn.LayerNorm(hidden)
        self.mlp = _GatedPerceptron(hidden, int(hidden * _INNER))
        self.drop_path = DropPath(rate) if rate > 0 else nn.Identity()
        for name in ("gamma_1", "gamma_2"):
            factors = nn.Parameter(torch.full((hidden,), scale)) if scale else None
            self.register_parameter(name, factors)

    def forward(self, tokens: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        """(B, N, E) -> the same shape."""
        gathered = self.attn(self.norm1(tokens), turn)
        if self.gamma_1 is not None:
            gathered = self.gamma_1 * gathered
        tokens = tokens + self.drop_path(gathered)
        made = self.mlp(self.norm2(tokens))
        if self.gamma_2 is not None:
            made = self.gamma_2 * made
        done: Tensor = tokens + self.drop_path(made)
        return done


class _Attention(nn.Module):
    def __init__(self, hidden: int, heads: int, norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(hidden, hidden)
        self.k_proj = nn.Linear(hidden, hidden, bias=False)
        self.v_proj = nn.Linear(hidden, hidden)
        self.norm = nn.LayerNorm(hidden) if norm else nn.Identity()
        self.proj = nn.Linear(hidden, hidden)

    def forward(self, tokens: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        """(B, N, E) -> the same shape."""
        query, key, value = (
            project(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = (_turned(part, *turn).to(value.dtype) for part in (query, key))
        mixed = functional.scaled_dot_product_attention(query, key, value)
        done: Tensor = self.proj(self.norm(mixed.transpose(1, 2).flatten(2)))
        return done


class _GatedPerceptron(nn.Module):
    """SwiGLU with a layer norm before the last layer."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.fc1_g = nn.Linear(hidden, inner)
        self.fc1_x = nn.Linear(hidden, inner)
        self.norm = nn.LayerNorm(inner)
        self.fc2 = nn.Linear(inner, hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, E) -> the same shape."""
        gate = functional.silu(self.fc1_g(tokens))
        done: Tensor = self.fc2(self.norm(gate * self.fc1_x(tokens)))
        return done


def _angles(grid: Index, per_head: int, like: Tensor, y_first: bool) -> Tensor:
    """(N, ``per_head`` / 2) radians, z slowest; a third of them belongs to each axis.

    Equation (15) of RoFormer, with patches counted along each axis: the k-th of n
    angles of an axis is the count divided by 10000^(k / n).
    """
    number = per_head // 6
    wide = torch.promote_types(like.dtype, torch.float32)

    def counted(n: int) -> Tensor:
        return torch.arange(n, device=like.device, dtype=wide)

    rates = _SLOWEST ** -(counted(number) / number)
    counts = torch.meshgrid(*(counted(n) for n in grid), indexing="ij")
    order = (1, 0, 2) if y_first else (0, 1, 2)
    turns = [counts[axis].flatten()[:, None] * rates for axis in order]
    return torch.cat(turns, dim=1)


def _turned(tokens: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Each pair of channels of (B, heads, N, E) turned by its angle (..., N, E / 2)."""
    if cosine.ndim == 3:  # each image has its own
        cosine, sine = cosine.unsqueeze(1), sine.unsqueeze(1)
    first, second = tokens[..., 0::2], tokens[..., 1::2]
    return torch.stack(
        [first * cosine - second * sine, second * cosine + first * sine], dim=-1
    ).flatten(-2)


def _check(config: PrimusConfig) -> None:
    if config.hidden % config.heads or config.hidden // config.heads % 6:
        raise ConfigError(
            "hidden must be a multiple of 6 times heads (two channels for each angle, "
            f"three axes), got hidden = {config.hidden} and heads = {config.heads}."
        )
    check_tokens(config.image_size, config.patch, config.taps, config.layers)
