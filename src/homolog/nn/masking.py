"""Which patches are hidden: random, without a random state.

The mask of a view is a function of the view itself (its affine, its scan) and of the
progress of the training. So it is the same on every device and after a resume,
different on every step and rank, and costs no wait for the device.
"""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from homolog.geometry.affine import Index

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed number
_FIRST = -4658895280553007687  # 0xBF58476D1CE4E5B9
_SECOND = -7723592293110705685  # 0x94D049BB133111EB


def view_keys(affine: Tensor, case: Tensor, progress: float) -> Tensor:
    """A 64-bit number per view that changes with view, scan and progress.

    Args:
        affine: (B, 4, 4) float64.
        case: (B,) int64.
        progress: Share of the training done.

    Returns:
        (B,) int64.
    """
    (time,) = struct.unpack("<q", struct.pack("<d", progress))
    keys = _mix(case.to(torch.long) + time)
    for number in affine.double().flatten(1).contiguous().view(torch.long).unbind(1):
        keys = _mix(keys ^ number)
    return keys


def uniform(keys: Tensor, count: int) -> Tensor:
    """Counter-based uniform numbers: (B,) int64 -> (B, count) float64 in 0..1.

    Source: Steele et al., OOPSLA 2014 (SplitMix64).
    """
    counter = torch.arange(1, count + 1, device=keys.device, dtype=torch.long)
    mixed = _mix(keys[:, None] + counter * _GOLDEN)
    return _shift_right(mixed, 11).double() * 2.0**-53


def hidden_count(count: int, ratio: float) -> int:
    """How many of ``count`` patches are hidden; at least one, and not all.

    Raises:
        ValueError: Fewer than two patches.
    """
    if count < 2:
        raise ValueError(f"masking needs at least 2 patches per view, got {count}.")
    return min(max(round(count * ratio), 1), count - 1)


def random_mask(keys: Tensor, count: int, ratio: float) -> Tensor:
    """Hide a fixed share of the patches of every view.

    Args:
        keys: (B,) int64 of ``view_keys``.
        count: Patches per view (N).
        ratio: Share hidden; at least one patch is hidden and one is visible.

    Returns:
        (B, N) bool, True where hidden; every row has the same number.

    Raises:
        ValueError: Fewer than two patches.
    """
    hidden = hidden_count(count, ratio)
    order = uniform(keys, count).argsort(dim=1)
    mask = torch.zeros(len(keys), count, dtype=torch.bool, device=keys.device)
    return mask.scatter(1, order[:, :hidden], value=True)


def visible_tokens(mask: Tensor, ratio: float) -> Tensor:
    """Indices of the visible patches of ``random_mask(.., ratio)``, (B, n), rising."""
    order = mask.to(torch.uint8).argsort(dim=1, stable=True)
    return order[:, : mask.shape[1] - hidden_count(mask.shape[1], ratio)]


def to_voxels(mask: Tensor, grid: Index, patch: Index) -> Tensor:
    """(B, N) per patch (x fastest) -> (B, 1, D, H, W) per voxel."""
    voxels = mask.reshape(len(mask), 1, *grid)
    for axis, size in enumerate(patch):
        voxels = voxels.repeat_interleave(size, dim=axis + 2)
    return voxels


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _FIRST
    x = (x ^ _shift_right(x, 27)) * _SECOND
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift of signed numbers."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
