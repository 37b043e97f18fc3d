"""Which cells: hidden ones, and samples of cells for losses."""

from __future__ import annotations

import math
import struct

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool3d

from homolog.geometry.affine import Index
from homolog.losses.similarity import hidden_patch_error, to_patches
from homolog.views.view import View

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


def keys_of(view: View, progress: float) -> Tensor:
    """``view_keys`` of a group of views, (B V,) int64 in the order of ``View.flat``."""
    origin = view.origin
    if origin is not None and origin.shape[:2] == view.affine.shape[:2]:
        keys = torch.from_numpy(_keys_on_host(origin, progress))
        return keys.to(view.affine.device, non_blocking=True)
    case = view.case.repeat_interleave(view.affine.shape[1])
    return view_keys(view.affine.flatten(0, 1), case, progress)


def _keys_on_host(origin: Tensor, progress: float) -> NDArray[np.int64]:
    """``view_keys`` of ``View.origin``, (B V,)."""

    def mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
        x = (x ^ (x >> np.uint64(30))) * first
        x = (x ^ (x >> np.uint64(27))) * second
        return x ^ (x >> np.uint64(31))

    first, second, time = np.array(
        [_FIRST, _SECOND, *struct.unpack("<q", struct.pack("<d", progress))]
    ).view(np.uint64)
    case, *rest = origin.flatten(0, 1).T.contiguous().numpy().view(np.uint64)
    keys = mixed(case + time)
    for number in rest:
        keys = mixed(keys ^ number)
    return keys.view(np.int64)


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

    Paper: Alice 3.1, masks.
    """
    hidden = hidden_count(count, ratio)
    order = uniform(keys, count).argsort(dim=1)
    mask = torch.zeros(len(keys), count, dtype=torch.bool, device=keys.device)
    return mask.scatter(1, order[:, :hidden], value=True)


def hidden_patches(view: View, progress: float, count: int, ratio: float) -> Tensor:
    """``random_mask`` of a group of views, the same whenever it is asked for.

    Args:
        view: The group.
        progress: Share of the training done.
        count: Patches per view (N).
        ratio: Share hidden.

    Returns:
        (B V, N) bool in the order of ``View.flat``.
    """
    return random_mask(keys_of(view, progress), count, ratio)


def visible_tokens(mask: Tensor, ratio: float) -> Tensor:
    """Indices of the visible patches of ``random_mask(.., ratio)``, (B, n), rising."""
    order = mask.to(torch.uint8).argsort(dim=1, stable=True)
    return order[:, : mask.shape[1] - hidden_count(mask.shape[1], ratio)]


def cells_shown(view: View, cell: Index, least: float) -> Tensor:
    """(B V, N) bool: cells that show the scan and not padding alone.

    Args:
        view: Its sides are multiples of the cell's.
        cell: Voxels (z, y, x) per cell.
        least: Share of a cell that must lie in the scan, 0..1; more than none must.
    """
    inside = view.valid.flatten(0, 1)[:, None].float()
    return avg_pool3d(inside, cell).flatten(1) >= max(least, 1e-6)


def voxels_shown(view: View, patch: Index) -> Tensor:
    """(B V, N, P) bool, as ``to_patches``: voxels that show the scan, no padding."""
    inside = view.valid.flatten(0, 1)[:, None]
    return to_patches(inside.expand(view.flat().shape), patch)


def hidden_voxel_error(
    predicted: Tensor, view: View, hidden: Tensor, patch: Index, *, normalise: bool
) -> Tensor:
    """Mean squared error of the hidden voxels that show the scan, none of padding.

    Args:
        predicted: (B V, N, P) patches.
        view: Shows the true ones.
        hidden: (B V, N) bool, patches that were hidden and count.
        patch: Voxels (z, y, x) per patch.
        normalise: See ``hidden_patch_error``.
    """
    return hidden_patch_error(
        predicted,
        to_patches(view.flat(), patch),
        hidden[:, :, None] & voxels_shown(view, patch),
        normalise=normalise,
    )


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


# Which cells of feature maps a loss looks at: drawn by weight, without a random state.
#
# Draws are a function of keys (homolog.nn.masking.view_keys) alone, so they are the
# same on every device and after a resume. The number of drawn cells never depends on
# values: nothing waits for the device.


def at_cells(values: Tensor, stride: Index, grid: Index) -> Tensor:
    """Values (B, D, H, W) at the cells of a map, nearest, flattened: (B, N).

    The voxel taken is the one after the cell's middle; of a side that the stride does
    not divide, the last voxel stands for the last cell.

    Args:
        values: Per voxel, e.g. labels.
        stride: Voxels (z, y, x) per cell.
        grid: Cells (d, h, w).
    """
    for axis, (step, cells) in enumerate(zip(stride, grid, strict=True), start=1):
        index = torch.arange(cells, device=values.device) * step + step // 2
        index = index.clamp_max(values.shape[axis] - 1)
        values = values.index_select(axis, index)
    return values.flatten(1)


def depth_weights(depth: Tensor, mu: float = 8.0, epsilon: float = 0.05) -> Tensor:
    """Weight of a voxel by its depth in its label: 0.5 sqrt(D) exp(-D / mu) + epsilon.

    Largest (0.66 with the defaults) four voxels inside, ``epsilon`` on the boundary.

    Source: MixCL, Eq. 7.

    Paper: MixCL Eq. 7.
    """
    return 0.5 * depth.clamp_min(0).sqrt() * torch.exp(-depth / mu) + epsilon


def draw_cells(weight: Tensor, keys: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Draw cells without repeats, each next one with probability ~ weight.

    Args:
        weight: (B, N), at least 0; cells of weight 0 are drawn only where no other is
            left, and not counted.
        keys: (B,) int64.
        count: How many per row, at most N are drawn.

    Returns:
        (B, K) cell numbers, and (B, K) bool, whether the cell has a weight.

    Source: Efraimidis and Spirakis 2006, as Gumbel keys.
    """
    score = _gumbel(weight, keys)
    best, index = score.topk(min(count, weight.shape[1]), dim=1)
    return index, torch.isfinite(best)


def draw_per_class(
    label: Tensor, weight: Tensor, keys: Tensor, *, per_class: int, most: int
) -> tuple[Tensor, Tensor]:
    """Draw up to ``per_class`` cells of every class of every row.

    Renaming classes changes nothing: a cell's random number belongs to the cell.

    Args:
        label: (B, N) int64; cells below 0 belong to no class.
        weight: (B, N) at least 0, probability within the class; cells of weight 0 are
            not drawn.
        keys: (B,) int64.
        per_class: Cells per class; classes with fewer give all they have.
        most: Cells per row at most. Where classes are too many for it, each gives
            fewer.

    Returns:
        (B, K) cell numbers, rising where drawn, K = min(most, N); and (B, K) bool,
        whether the slot holds a drawn cell.
    """
    open_cells = (label >= 0) & (weight > 0)
    score = _gumbel(torch.where(open_cells, weight, torch.zeros_like(weight)), keys)
    # rank of every cell among those of its class: by class, then by falling score
    falling = score.argsort(dim=1, descending=True, stable=True)
    by_class = label.gather(1, falling).argsort(dim=1, stable=True)
    order = falling.gather(1, by_class)
    sorted_label = label.gather(1, order)
    place = torch.arange(label.shape[1], device=label.device).expand_as(label)
    starts = torch.ones_like(sorted_label, dtype=torch.bool)
    starts[:, 1:] = sorted_label[:, 1:] != sorted_label[:, :-1]
    first = torch.where(starts, place, torch.zeros_like(place)).cummax(1).values
    rank = torch.empty_like(place).scatter(1, order, place - first)
    wanted = open_cells & (rank < per_class)
    # lowest ranks first, so that no class is squeezed out by another
    far = torch.full_like(rank, label.shape[1])
    slots = min(most, label.shape[1])
    chosen = torch.where(wanted, rank, far).argsort(dim=1, stable=True)[:, :slots]
    chosen = chosen.sort(dim=1).values
    drawn = wanted.gather(1, chosen)
    return chosen, drawn


def cells_of(maps: Tensor, index: Tensor) -> Tensor:
    """Feature vectors of drawn cells: (B, E, d, h, w), (B, K) -> (B, K, E)."""
    flat = maps.flatten(2)
    return flat.gather(2, index[:, None].expand(-1, flat.shape[1], -1)).mT


def _gumbel(weight: Tensor, keys: Tensor) -> Tensor:
    """log(weight) - log(-log(u)); -inf where the weight is 0."""
    share = uniform(keys, weight.shape[1]).clamp(2.0**-60, 1.0 - 2.0**-53)
    noise = -torch.log(-torch.log(share))
    low = torch.full_like(noise, -math.inf)
    heavy = weight.double()
    return torch.where(heavy > 0, heavy.clamp_min(1e-300).log() + noise, low)
