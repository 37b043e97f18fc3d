"""Swin: the encoder of MONAI's SwinUNETR, key for key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import cast

import torch
from monai.networks.blocks import MLPBlock, PatchEmbed, UnetrBasicBlock
from monai.networks.layers import DropPath
from monai.networks.nets.swin_unetr import MERGING_MODE
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from homolog.backbones._window_attention import WindowAttention, cut, join, plan_windows
from homolog.backbones.base import Backbone, BackboneConfig
from homolog.config import ConfigError, option
from homolog.geometry.affine import Index
from homolog.small_maps import guard_small_maps


@dataclass(frozen=True)
class SwinConfig(BackboneConfig):
    """Defaults are MONAI's SwinUNETR (S2DC: feature_size 48, use_v2)."""

    feature_size: int = option(24, "channels of the finest map", minimum=3)
    depths: tuple[int, int, int, int] = option(
        (2, 2, 2, 2), "attention blocks per stage", minimum=1
    )
    heads: tuple[int, int, int, int] = option(
        (3, 6, 12, 24), "attention heads per stage", minimum=1
    )
    window: tuple[int, int, int] = option(
        (7, 7, 7), "window of attention (z, y, x)", unit="cells", minimum=1
    )
    patch: int = option(2, "side of a patch", unit="voxels", minimum=1, maximum=8)
    use_v2: bool = option(False, "a residual convolution block before each stage")
    downsample: str = option(
        "merging", "patch merging of MONAI 0.9 or v2", choices=("merging", "mergingv2")
    )
    drop_path: float = option(
        0.0, "stochastic depth of the last block", minimum=0, maximum=0.9, advanced=True
    )
    normalize: bool = option(True, "layer norm on the returned maps", advanced=True)
    checkpoint: bool = option(
        False, "recompute blocks in the backward pass to save memory", advanced=True
    )


class Swin(Backbone):
    """Swin Transformer in 3D, weights interchangeable with MONAI's SwinUNETR.

    Returns five maps: the patches and the output of each stage, strides 2, 4, 8, 16, 32
    (times ``patch`` / 2) and ``feature_size`` times 1, 2, 4, 8, 16 channels.
    ``normalize`` applies a parameter-free layer norm over channels to what is returned,
    never to what goes on.

    Sizes must be multiples of half the coarsest stride. There an odd number of cells
    meets the last merging, which pads by one as MONAI's does, so that the coarsest map
    has ceil(n / 32) cells: a scan of 35 x 50 x 35 voxels needs 48 x 64 x 48, not 64^3.

    In bfloat16 autocast on a CPU MONAI's SwinUNETR yields non-finite gradients after a
    few steps; homolog.small_maps says why, and cures it here (``use_v2``) and in our
    decoders. The bias and mask of attention stay float32 under autocast.

    Source: Hatamizadeh et al., Swin UNETR, 2022; He et al., SwinUNETR-V2, 2023; MONAI
    1.6.1, networks/nets/swin_unetr.py.
    Differs from MONAI: attention takes scaled_dot_product_attention in training too
    (MONAI only without gradients); masks are cached; equal numbers.
    """

    Config = SwinConfig
    title = "Swin Transformer (SwinUNETR encoder)"
    decoder = "swin_unetr"
    prefixes = ("swinViT.",)
    # Windows of 4: at 48 voxels a window of 7 is mostly padding. 16 channels: what
    # oneDNN computes in one block (12 take longer).
    SMALL = MappingProxyType(
        {"feature_size": 16, "heads": [2, 4, 8, 16], "window": [4, 4, 4]}
    )
    FINETUNE = MappingProxyType(
        {
            "segment": {
                "cpu": {"learning_rate": 1e-3, "warmup_steps": 20},
                "gpu": {"learning_rate": 4e-4},
            },
            "translate": {
                "cpu": {"learning_rate": 1e-3, "warmup_steps": 20},
                "gpu": {"learning_rate": 4e-4},
            },
        }
    )

    def __init__(self, config: SwinConfig) -> None:
        super().__init__(config)
        _check_heads(config)
        dims = [config.feature_size * 2**i for i in range(5)]
        self.channels = tuple(dims)
        steps = [config.patch * 2**i for i in range(5)]
        self.strides = tuple((s, s, s) for s in steps)
        self.size_divisor = (steps[3], steps[3], steps[3])
        self.patch_embed = PatchEmbed(
            patch_size=config.patch,
            in_chans=config.in_channels,
            embed_dim=dims[0],
            norm_layer=None,
        )
        rates = torch.linspace(0, config.drop_path, sum(config.depths)).tolist()
        for i in range(4):
            first = sum(config.depths[:i])
            stage = _Stage(config, i, rates[first : first + config.depths[i]])
            # lists of one, for MONAI's key names: layers1.0., layers1c.0.
            setattr(self, f"layers{i + 1}", nn.ModuleList([stage]))
            if config.use_v2:
                setattr(self, f"layers{i + 1}c", nn.ModuleList([_mixer(dims[i])]))
        guard_small_maps(self)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, C, D, H, W) -> five maps (B, E_i, d_i, h_i, w_i), fine to coarse."""
        size = cast("Index", tuple(image.shape[-3:]))
        self.check_size(size)
        maps = self.patch_embed(image)
        found = [self._out(maps.permute(0, 2, 3, 4, 1))]
        for i in range(1, 5):
            if self.config.use_v2:
                maps = getattr(self, f"layers{i}c")[0](maps.contiguous())
            cells = getattr(self, f"layers{i}")[0](maps.permute(0, 2, 3, 4, 1))
            found.append(self._out(cells))
            maps = cells.permute(0, 4, 1, 2, 3)
        return tuple(found)

    def adapt_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """MONAI's self-supervised Swin weights call the layers of the MLP fc1, fc2."""
        return {
            key.replace(".mlp.fc1.", ".mlp.linear1.").replace(
                ".mlp.fc2.", ".mlp.linear2."
            ): value
            for key, value in state.items()
        }

    def _out(self, cells: Tensor) -> Tensor:
        """(B, D, H, W, E) -> (B, E, D, H, W), normalised if asked for."""
        if self.config.normalize:
            cells = functional.layer_norm(cells, (int(cells.shape[-1]),))
        return cells.permute(0, 4, 1, 2, 3).contiguous()


class _Stage(nn.Module):
    """Blocks of plain and shifted windows in turn, then patch merging."""

    def __init__(self, config: SwinConfig, index: int, rates: list[float]) -> None:
        super().__init__()
        self.checkpoint = config.checkpoint
        dim = config.feature_size * 2**index
        self.blocks = nn.ModuleList(
            _Block(dim, config.heads[index], config.window, bool(i % 2), rate)
            for i, rate in enumerate(rates)
        )
        self.downsample = MERGING_MODE[config.downsample](dim=dim, spatial_dims=3)

    def forward(self, cells: Tensor) -> Tensor:
        """(B, D, H, W, E) -> (B, ceil(D / 2), ceil(H / 2), ceil(W / 2), 2 E)."""
        for block in self.blocks:
            if self.checkpoint and torch.is_grad_enabled():
                cells = checkpoint(block, cells, use_reentrant=False)
            else:
                cells = block(cells)
        merged: Tensor = self.downsample(cells)
        return merged


class _Block(nn.Module):
    """Window attention and a two-layer perceptron, each with a skip."""

    def __init__(
        self, dim: int, heads: int, window: Index, shifted: bool, drop_path: float
    ) -> None:
        super().__init__()
        self.window = window
        d, h, w = window
        self.shift: Index = (d // 2, h // 2, w // 2) if shifted else (0, 0, 0)
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLPBlock(dim, 4 * dim, act="GELU", dropout_mode="swin")

    def forward(self, cells: Tensor) -> Tensor:
        """(B, D, H, W, E) -> the same shape."""
        size = cast("Index", tuple(cells.shape[1:4]))
        plan = plan_windows(size, self.window, self.shift)
        mixed = join(self.attn(cut(self.norm1(cells), plan), plan), plan)
        cells = cells + self.drop_path(mixed)
        done: Tensor = cells + self.drop_path(self.mlp(self.norm2(cells)))
        return done


def _mixer(dim: int) -> nn.Module:
    """The convolution block of SwinUNETR-V2."""
    return UnetrBasicBlock(  # type: ignore[no-any-return]
        spatial_dims=3,
        in_channels=dim,
        out_channels=dim,
        kernel_size=3,
        stride=1,
        norm_name="instance",
        res_block=True,
    )


def _check_heads(config: SwinConfig) -> None:
    for i, heads in enumerate(config.heads):
        dim = config.feature_size * 2**i
        if dim % heads:
            raise ConfigError(
                f"heads[{i}] must divide the {dim} channels of stage {i + 1} "
                f"(feature_size {config.feature_size} x {2**i}), got {heads}."
            )
