"""Where a sliding window stands, how much each of its voxels counts."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from homolog.geometry.affine import Index

# Standard deviation of the Gaussian as a share of the window's side, and the smallest
# weight: MONAI's values, so that both blend alike.
SIGMA = 0.125
SMALLEST_WEIGHT = 1e-3


@dataclass(frozen=True)
class WindowGrid:
    """The windows that cover one volume.

    Attributes:
        window: Voxels (D, H, W) of each window.
        padded: Shape of the volume after padding it up to the window.
        before: Voxels padded in front of each axis.
        axis: The axis along which finished slabs are handed out.
        starts: First voxel of each window, sorted along ``axis`` first.
    """

    window: Index
    padded: Index
    before: Index
    axis: int
    starts: tuple[Index, ...]

    def rows_done(self, index: int) -> int:
        """Rows along ``axis`` that no window from ``index`` on touches any more."""
        if index >= len(self.starts):
            return self.padded[self.axis]
        return self.starts[index][self.axis]


def legal_window(
    shape: Index, window: Index, divisor: Index, smallest: Index = (1, 1, 1)
) -> Index:
    """The window shrunk to a smaller volume, each side still a multiple of ``divisor``.

    Args:
        shape: The volume's size (D, H, W).
        window: The window the network was trained with.
        divisor: What every side must be a multiple of; (1, 1, 1) allows any.
        smallest: No side becomes shorter than this.
    """
    d, h, w = (
        min(side, -(-max(n, least) // m) * m)
        for n, side, m, least in zip(shape, window, divisor, smallest, strict=True)
    )
    return d, h, w


# A window may be this much longer than in training along each axis: beyond that the
# statistics of instance norms are others than those learnt with.
MOST_GROWTH = 1.5


def follow_scan(shape: Index, window: Index, divisor: Index) -> Index:
    """The window with each side that of the scan, where it is not much longer.

    Args:
        shape: The scan's size (D, H, W).
        window: As ``legal_window`` gave it.
        divisor: What every longer side must be a multiple of.

    Returns:
        A side longer than the scan, or too short for it by more than half, stays.
    """
    d, h, w = (
        whole if side < n and (whole := -(-n // m) * m) <= MOST_GROWTH * side else side
        for n, side, m in zip(shape, window, divisor, strict=True)
    )
    return d, h, w


def slices_at_once(depth: int, plane: Index, voxels: int) -> int:
    """Depth of the windows of a slice-wise network: a volume in equal parts.

    Args:
        depth: Slices of the volume.
        plane: A window (., H, W).
        voxels: No window has more, as far as one slice allows.
    """
    most = max(voxels // (plane[1] * plane[2]), 1)
    parts = -(-depth // most)
    return -(-depth // parts)


def place_windows(
    shape: Index,
    window: Index,
    overlap: float | tuple[float, float, float],
    *,
    front: bool = False,
) -> WindowGrid:
    """Windows at regular steps; the last of each axis is moved in to end at the border.

    Args:
        shape: The volume's size (D, H, W); smaller sides are padded evenly.
        window: Window size.
        overlap: Shared part of neighbouring windows, 0 <= overlap < 1; of all axes or
            of each.
        front: An odd voxel of padding goes before the scan, not behind it.

    Raises:
        ValueError: ``overlap`` outside 0..1.
    """
    shared = overlap if isinstance(overlap, tuple) else (overlap,) * 3
    if not all(0.0 <= part < 1.0 for part in shared):
        raise ValueError(f"overlap must be at least 0 and below 1, got {overlap}.")
    padded = _index(max(n, side) for n, side in zip(shape, window, strict=True))
    odd = int(front)
    before = _index((p - n + odd) // 2 for p, n in zip(padded, shape, strict=True))
    per_axis = [
        _starts(n, side, part)
        for n, side, part in zip(padded, window, shared, strict=True)
    ]
    # Sums are only kept for one window's depth along this axis, so take the axis where
    # that is the smallest share of the volume.
    axis = min(range(3), key=lambda a: (window[a] / padded[a], a))
    order = [axis, *(a for a in range(3) if a != axis)]
    starts = []
    for place in itertools.product(*(per_axis[a] for a in order)):
        start = [0, 0, 0]
        for a, n in zip(order, place, strict=True):
            start[a] = n
        starts.append(_index(start))
    return WindowGrid(window, padded, before, axis, tuple(starts))


def _starts(length: int, side: int, overlap: float) -> list[int]:
    step = max(int(side * (1.0 - overlap)), 1)
    count = -(-(length - side) // step) + 1
    return [min(i * step, length - side) for i in range(count)]


def _index(values: Iterable[int]) -> Index:
    d, h, w = values
    return d, h, w


def gaussian_weight(
    window: Index, device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Weight of each voxel of a window, (D, H, W), in 1e-3..1; the middle counts most.

    Source: nnU-Net, Isensee et al., Nature Methods 2021; values as MONAI's
        ``compute_importance_map``.
    """
    weight = torch.ones((1, 1, 1))
    for axis, side in enumerate(window):
        place = torch.arange(side, dtype=torch.float32) - (side - 1) / 2.0
        bell = torch.exp(place**2 / (-2.0 * (SIGMA * side) ** 2))
        shape = [1, 1, 1]
        shape[axis] = side
        weight = weight * bell.view(shape)
    return weight.clamp_min(max(float(weight.min()), SMALLEST_WEIGHT)).to(device, dtype)
