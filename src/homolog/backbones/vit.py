"""ViT: MONAI's vision transformer, key for key, that can leave out masked patches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import cast

import torch
from monai.networks.blocks.patchembedding import PatchEmbeddingBlock
from monai.networks.blocks.transformerblock import TransformerBlock
from torch import Tensor, nn
from torch.nn import functional

from homolog.backbones.base import Backbone, BackboneConfig
from homolog.config import ConfigError, option
from homolog.geometry.affine import Index


@dataclass(frozen=True)
class ViTConfig(BackboneConfig):
    """Defaults are ViT-S/16 on 96^3; MONAI's own are 768 wide, 12 heads, 3072 inner."""

    image_size: tuple[int, int, int] = option(
        (96, 96, 96), "size of the position embedding (z, y, x)", unit="voxels"
    )
    patch: tuple[int, int, int] = option(
        (16, 16, 16), "side of a patch (z, y, x)", unit="voxels", minimum=1
    )
    hidden: int = option(384, "channels of a token", minimum=6)
    inner: int = option(1536, "channels inside the perceptrons", minimum=1)
    layers: int = option(12, "transformer blocks", minimum=1)
    heads: int = option(6, "attention heads", minimum=1)
    taps: tuple[int, ...] = option(
        (),
        "blocks whose output is returned, from 1; empty: four, evenly",
        advanced=True,
    )
    qkv_bias: bool = option(False, "bias in the attention's input", advanced=True)


class ViT(Backbone):
    """Vision transformer in 3D, weights interchangeable with MONAI's ViT.

    Returns the tokens after some blocks (3, 6, 9 and 12 of 12, as in UNETR's figure),
    all of the patch's stride, shallow to deep; the deepest is layer-normalised. MONAI's
    UNETR taps one block later (4, 7, 10), which ``taps=(4, 7, 10, 12)`` gives.

    Sizes other than ``image_size`` take the position embedding interpolated to their
    grid, each axis on its own.

    Source: Dosovitskiy et al., ICLR 2021; Hatamizadeh et al., UNETR, WACV 2022; MONAI
    1.6.1, networks/nets/vit.py.
    Differs from MONAI: attention through scaled_dot_product_attention (equal numbers);
    the layer norm that MONAI keeps for cross attention and never calls is held as
    buffers, under its keys, so that every parameter learns.
    """

    Config = ViTConfig
    title = "Vision transformer"
    drops_tokens = True
    decoder = "unetr"
    prefixes = ("vit.",)
    SMALL = MappingProxyType(
        {
            "image_size": [48, 48, 48],
            "patch": [8, 8, 8],
            "hidden": 192,
            "inner": 768,
            "layers": 8,
            "heads": 3,
        }
    )
    FINETUNE = MappingProxyType(
        {
            "segment": {
                "cpu": {"learning_rate": 5e-4, "warmup_steps": 50},
                "gpu": {"learning_rate": 4e-4},
            },
            "translate": {
                "cpu": {"learning_rate": 5e-4, "warmup_steps": 50},
                "gpu": {"learning_rate": 4e-4},
            },
        }
    )

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        _check(config)
        taps = config.taps or _even_taps(config.layers)
        self.taps = taps
        self.channels = (config.hidden,) * len(taps)
        self.strides = (config.patch,) * len(taps)
        self.size_divisor = config.patch
        self.grid = _grid(config.image_size, config.patch)
        self.patch_embedding = PatchEmbeddingBlock(
            in_channels=config.in_channels,
            img_size=config.image_size,
            patch_size=config.patch,
            hidden_size=config.hidden,
            num_heads=config.heads,
            proj_type="conv",
            pos_embed_type="learnable",
        )
        self.blocks = nn.ModuleList(_block(config) for _ in range(max(taps)))
        self.norm = nn.LayerNorm(config.hidden)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, C, D, H, W) -> one map (B, E, d, h, w) per tap, shallow to deep."""
        tokens, grid = self._embed(image)
        found = self._run(tokens)
        return tuple(_as_volume(t, grid).contiguous() for t in found)

    def forward_visible(self, image: Tensor, keep: Tensor) -> Tensor:
        """Run on some patches only; the others cost nothing after the embedding.

        Args:
            image: (B, C, D, H, W).
            keep: (B, K) int64, the patches kept, as numbers in the flattened grid
                (z slowest); their order is the order of the result.

        Returns:
            Normalised tokens (B, K, E) of the last block.

        Paper: Alice 3.1, visible tokens.
        """
        tokens, _ = self._embed(image)
        index = keep.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
        return self._run(tokens.gather(1, index))[-1]

    def map_of_stride(self, stride: int) -> int:
        """All maps share one stride: the deepest is meant."""
        super().map_of_stride(stride)
        return len(self.strides) - 1

    def adapt_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Drop what is no encoder; resize a position embedding of another cube.

        Class token, classification head and the cross attention that old MONAI versions
        saved but never used go. A learnt embedding of p^3 positions is interpolated to
        this network's grid; other shapes are left to be reported.
        """
        dropped = ("cls_token", "classification_head.")
        found = {
            k: v
            for k, v in state.items()
            if not k.startswith(dropped) and ".cross_attn." not in k
        }
        key = "patch_embedding.position_embeddings"
        given = found.get(key)
        if given is not None and given.ndim == 3:
            side = round(given.shape[1] ** (1 / 3))
            if side**3 == given.shape[1] != math.prod(self.grid):
                found[key] = _resized(given, (side, side, side), self.grid)
        return found

    def _embed(self, image: Tensor) -> tuple[Tensor, Index]:
        """Tokens with their positions (B, N, E), and their grid."""
        size = cast("Index", tuple(image.shape[-3:]))
        self.check_size(size)
        grid = _grid(size, self.config.patch)
        patches = self.patch_embedding.patch_embeddings(image)
        positions = self.patch_embedding.position_embeddings
        if grid != self.grid:
            positions = _resized(positions, self.grid, grid)
        return patches.flatten(2).transpose(1, 2) + positions, grid

    def _run(self, tokens: Tensor) -> list[Tensor]:
        """Tokens (B, N, E) after each tap; the last one normalised."""
        found = []
        for number, block in enumerate(self.blocks, start=1):
            tokens = block(tokens)
            if number in self.taps:
                found.append(tokens)
        found[-1] = self.norm(found[-1])
        return found


class _Unused(nn.Module):
    """Values that MONAI saves and never uses: kept under their keys, not learnt."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(hidden))
        self.register_buffer("bias", torch.zeros(hidden))


def _block(config: ViTConfig) -> nn.Module:
    block = TransformerBlock(
        config.hidden,
        config.inner,
        config.heads,
        qkv_bias=config.qkv_bias,
        use_flash_attention=True,
    )
    if hasattr(block, "norm_cross_attn"):
        block.norm_cross_attn = _Unused(config.hidden)
    return cast("nn.Module", block)


def _grid(size: Index, patch: Index) -> Index:
    d, h, w = (n // p for n, p in zip(size, patch, strict=True))
    return d, h, w


def _as_volume(tokens: Tensor, grid: Index) -> Tensor:
    """(B, N, E) -> (B, E, d, h, w), z slowest."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *grid)


def _resized(positions: Tensor, old: Index, new: Index) -> Tensor:
    """(1, N, E) on one grid -> (1, M, E) on another, trilinear, float32 or wider."""
    wide = positions.to(torch.promote_types(positions.dtype, torch.float32))
    resized = functional.interpolate(
        _as_volume(wide, old), size=new, mode="trilinear", align_corners=False
    )
    return resized.flatten(2).transpose(1, 2).to(positions.dtype)


def _even_taps(layers: int) -> tuple[int, ...]:
    """Four blocks, evenly, the last one among them: 3, 6, 9, 12 of 12."""
    return tuple(sorted({max(1, round(layers * i / 4)) for i in (1, 2, 3, 4)}))


def _check(config: ViTConfig) -> None:
    if config.hidden % config.heads:
        raise ConfigError(
            f"heads must divide hidden = {config.hidden}, got {config.heads}."
        )
    if any(
        n % p or n < p for n, p in zip(config.image_size, config.patch, strict=True)
    ):
        raise ConfigError(
            f"image_size must be a multiple of patch = {config.patch}, "
            f"got {config.image_size}."
        )
    taps = config.taps
    if taps and (
        list(taps) != sorted(set(taps)) or taps[0] < 1 or taps[-1] != config.layers
    ):
        raise ConfigError(
            f"taps must rise from at least 1 to layers = {config.layers}, got {taps}."
        )
