"""ViT: MONAI's vision transformer, key for key, that can leave out masked patches."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import cast

import torch
from monai.networks.blocks.patchembedding import PatchEmbeddingBlock
from monai.networks.blocks.transformerblock import TransformerBlock
from torch import Tensor, nn

from homolog.backbones._tokens import (
    TokenConfig,
    as_volume,
    check_tokens,
    even_taps,
    grid_of,
    resized,
)
from homolog.backbones.base import Backbone
from homolog.config import ConfigError, option
from homolog.geometry.affine import Index


@dataclass(frozen=True)
class ViTConfig(TokenConfig):
    """Defaults are ViT-S/16 on 96^3; MONAI's own are 768 wide, 12 heads, 3072 inner."""

    hidden: int = option(384, "channels of a token", minimum=6)
    inner: int = option(1536, "channels inside the perceptrons", minimum=1)
    heads: int = option(6, "attention heads", minimum=1)
    qkv_bias: bool = option(False, "bias in the attention's input", advanced=True)
    class_token: bool = option(
        False, "a token of the whole image (DINOv2, 3DINO)", advanced=True, later=True
    )
    registers: int = option(
        0, "further tokens beside those of patches (DINOv2)", minimum=0, advanced=True,
        later=True,
    )  # fmt: skip
    layer_scale: float = option(
        0.0, "start of the learnt factors of what a block adds (DINOv2: 1e-5); 0: none",
        minimum=0, advanced=True, later=True,
    )  # fmt: skip
    norm_epsilon: float = option(
        1e-5, "added to the variance in layer norms (DINOv2: 1e-6)", minimum=1e-12,
        advanced=True, later=True,
    )  # fmt: skip
    position_offset: float = option(
        0.0, "added to the sides of a grid that positions are interpolated to (DINOv2, "
        "3DINO: 0.1)", minimum=0, maximum=0.5, advanced=True, later=True,
    )  # fmt: skip


class ViT(Backbone):
    """Vision transformer in 3D, weights interchangeable with MONAI's ViT.

    Returns the tokens after some blocks (3, 6, 9 and 12 of 12, as in UNETR's figure),
    all of the patch's stride, shallow to deep; the deepest is layer-normalised. MONAI's
    UNETR taps one block later (4, 7, 10), which ``taps=(4, 7, 10, 12)`` gives.

    Sizes other than ``image_size`` take the position embedding interpolated to their
    grid, each axis on its own.

    A network of DINOv2's kind has a ``class_token``, ``layer_scale``, ``qkv_bias`` and,
    in some, ``registers``; its files (3DINO) load, too. These tokens are attended to,
    not returned.

    Source: Dosovitskiy et al., ICLR 2021; Hatamizadeh et al., UNETR, WACV 2022; MONAI
    1.6.1, networks/nets/vit.py; Oquab et al., DINOv2, 2023; Xu et al., 3DINO, 2025.
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
        taps = config.taps or even_taps(config.layers)
        self.taps = taps
        self.channels = (config.hidden,) * len(taps)
        self.strides = (config.patch,) * len(taps)
        self.size_divisor = config.patch
        self.grid = grid_of(config.image_size, config.patch)
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
        self.norm = nn.LayerNorm(config.hidden, config.norm_epsilon)
        numbers = {"cls_token": int(config.class_token)}
        numbers["register_tokens"] = config.registers
        for name, number in numbers.items():
            if number:
                token = nn.Parameter(torch.randn(1, number, config.hidden) * 0.02)
                self.register_parameter(name, token)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, C, D, H, W) -> one map (B, E, d, h, w) per tap, shallow to deep."""
        tokens, grid = self._embed(image)
        found = self._run(tokens)
        return tuple(as_volume(t, grid).contiguous() for t in found)

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

        DINOv2's names become MONAI's. Class token (where this network has none),
        classification head and the cross attention that old MONAI versions saved but
        never used go. A learnt embedding of p^3 positions is interpolated to this
        network's grid; other shapes are left to be reported.
        """
        dropped = ["classification_head."]
        if not self.config.class_token:
            dropped.append("cls_token")
        if "patch_embed.proj.weight" in state:
            state = self._from_dino(state)
        found = {
            k: v
            for k, v in state.items()
            if not k.startswith(tuple(dropped)) and ".cross_attn." not in k
        }
        given = found.get(_POSITIONS)
        if given is not None and given.ndim == 3:
            side = round(given.shape[1] ** (1 / 3))
            if side**3 == given.shape[1] != math.prod(self.grid):
                found[_POSITIONS] = resized(
                    given, (side, side, side), self.grid, self.config.position_offset
                )
        return found

    def _from_dino(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """DINOv2's names in ours; the class token takes in its position.

        Blocks may lie in chunks (``blocks.2.13.``): the last number counts. The token
        that stands in for masked patches is of no use here.
        """
        own = self.state_dict()
        found = {k: v for k, v in own.items() if ".norm_cross_attn." in k}
        for key, value in state.items():
            block = _BLOCK.fullmatch(key)
            if block is not None:
                name = _OURS.get(block[2], block[2])
                found[f"blocks.{block[1]}.{name}{block[3]}"] = value
            elif key.startswith("patch_embed.proj"):
                tail = key.removeprefix("patch_embed.proj")
                found[f"patch_embedding.patch_embeddings{tail}"] = value
            elif key == "pos_embed":
                found[_POSITIONS] = value[:, int("cls_token" in state) :]
            elif key == "cls_token":
                place = state.get("pos_embed")
                found[key] = value if place is None else value + place[:, :1]
            elif key != "mask_token" and not key.startswith("head."):
                found[key] = value
        return found

    def _embed(self, image: Tensor) -> tuple[Tensor, Index]:
        """Tokens with their positions (B, N, E), and their grid."""
        size = cast("Index", tuple(image.shape[-3:]))
        self.check_size(size)
        grid = grid_of(size, self.config.patch)
        patches = self.patch_embedding.patch_embeddings(image)
        positions = self.patch_embedding.position_embeddings
        if grid != self.grid:
            offset = self.config.position_offset
            positions = resized(positions, self.grid, grid, offset)
        return patches.flatten(2).transpose(1, 2) + positions, grid

    def _run(self, tokens: Tensor) -> list[Tensor]:
        """Tokens (B, N, E) after each tap, of patches only; the last one normalised."""
        names = ("cls_token", "register_tokens")
        beside = [getattr(self, name) for name in names if hasattr(self, name)]
        extra = sum(token.shape[1] for token in beside)
        if extra:
            copies = [t.expand(len(tokens), -1, -1).to(tokens.dtype) for t in beside]
            tokens = torch.cat([*copies, tokens], dim=1)
        found = []
        for number, block in enumerate(self.blocks, start=1):
            tokens = block(tokens)
            if number in self.taps:
                found.append(tokens[:, extra:])
        found[-1] = self.norm(found[-1])
        return found


_POSITIONS = "patch_embedding.position_embeddings"
_BLOCK = re.compile(
    r"blocks\.(?:\d+\.)*(\d+)\.(\w+(?:\.\w+)?)(\.(?:weight|bias|gamma))"
)
_OURS = {
    "attn.proj": "attn.out_proj",
    "mlp.fc1": "mlp.linear1",
    "mlp.fc2": "mlp.linear2",
}


class _Unused(nn.Module):
    """Values that MONAI saves and never uses: kept under their keys, not learnt."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(hidden))
        self.register_buffer("bias", torch.zeros(hidden))


class _Scale(nn.Module):
    """LayerScale: a learnt factor for each channel."""

    def __init__(self, hidden: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((hidden,), start))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens * self.gamma


class _ScaledBlock(TransformerBlock):  # type: ignore[misc]
    """MONAI's block, what it adds scaled."""

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens)))
        done: Tensor = tokens + self.ls2(self.mlp(self.norm2(tokens)))
        return done


def _block(config: ViTConfig) -> nn.Module:
    kind = _ScaledBlock if config.layer_scale else TransformerBlock
    block = kind(
        config.hidden,
        config.inner,
        config.heads,
        qkv_bias=config.qkv_bias,
        use_flash_attention=True,
    )
    block.norm1.eps = block.norm2.eps = config.norm_epsilon
    if config.layer_scale:
        block.ls1 = _Scale(config.hidden, config.layer_scale)
        block.ls2 = _Scale(config.hidden, config.layer_scale)
    if hasattr(block, "norm_cross_attn"):
        block.norm_cross_attn = _Unused(config.hidden)
    return cast("nn.Module", block)


def _check(config: ViTConfig) -> None:
    if config.hidden % config.heads:
        raise ConfigError(
            f"heads must divide hidden = {config.hidden}, got {config.heads}."
        )
    check_tokens(config.image_size, config.patch, config.taps, config.layers)
