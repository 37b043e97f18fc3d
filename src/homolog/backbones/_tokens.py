"""What vision transformers share: grids of patches, positions, which blocks to tap."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from homolog.backbones.base import BackboneConfig
from homolog.config import ConfigError, option
from homolog.geometry.affine import Index


@dataclass(frozen=True)
class TokenConfig(BackboneConfig):
    """What every network of one grid of patches knows."""

    image_size: tuple[int, int, int] = option(
        (96, 96, 96), "size of the position embedding (z, y, x)", unit="voxels"
    )
    patch: tuple[int, int, int] = option(
        (16, 16, 16), "side of a patch (z, y, x)", unit="voxels", minimum=1
    )
    layers: int = option(12, "transformer blocks", minimum=1)
    taps: tuple[int, ...] = option(
        (),
        "blocks whose output is returned, from 1; empty: four, evenly",
        advanced=True,
    )


def grid_of(size: Index, patch: Index) -> Index:
    """Patches (z, y, x) of an image."""
    d, h, w = (n // p for n, p in zip(size, patch, strict=True))
    return d, h, w


def as_volume(tokens: Tensor, grid: Index) -> Tensor:
    """(B, N, E) -> (B, E, d, h, w), z slowest."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *grid)


def resized(positions: Tensor, old: Index, new: Index, offset: float = 0.0) -> Tensor:
    """(1, N, E) on one grid -> (1, M, E) on another, trilinear, float32 or wider.

    Args:
        positions: z slowest.
        old: Their grid.
        new: The grid wanted.
        offset: Added to the new sides before they are divided by the old ones; the
            quotient says where the new cells lie.
    """
    wide = positions.to(torch.promote_types(positions.dtype, torch.float32))
    if offset:
        factors = [(n + offset) / o for n, o in zip(new, old, strict=True)]
        moved = functional.interpolate(
            as_volume(wide, old), scale_factor=factors, mode="trilinear",
            align_corners=False,
        )  # fmt: skip
    else:
        moved = functional.interpolate(
            as_volume(wide, old), size=new, mode="trilinear", align_corners=False
        )
    return moved.flatten(2).transpose(1, 2).to(positions.dtype)


def even_taps(layers: int) -> tuple[int, ...]:
    """Four blocks, evenly, the last one among them: 3, 6, 9, 12 of 12."""
    return tuple(sorted({max(1, round(layers * i / 4)) for i in (1, 2, 3, 4)}))


def check_tokens(
    image_size: Index, patch: Index, taps: tuple[int, ...], layers: int
) -> None:
    """Raise ConfigError where patches do not fill the image, or taps do not rise."""
    if any(n % p or n < p for n, p in zip(image_size, patch, strict=True)):
        raise ConfigError(
            f"image_size must be a multiple of patch = {patch}, got {image_size}."
        )
    if taps and (list(taps) != sorted(set(taps)) or taps[0] < 1 or taps[-1] != layers):
        raise ConfigError(
            f"taps must rise from at least 1 to layers = {layers}, got {taps}."
        )
