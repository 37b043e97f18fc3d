"""Small pictures around a place: the same millimetres in every scan. No Qt."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.geometry.affine import Affine

Picture = NDArray[np.uint8]
SIDE_PX = 64
# A thorax is a good 300 mm wide: this shows an organ with its neighbours.
MM_PER_PX = 1.25
_BEYOND = 24  # grey of what lies outside the scan


def patch(
    data: Any,
    grid: Affine,
    shown_mm: NDArray[np.float64],
    limits: tuple[float, float],
    *,
    axis: int = 0,
    side_px: int = SIDE_PX,
    mm_per_px: float = MM_PER_PX,
) -> Picture:
    """A square of the slice through a place, by the nearest voxels.

    Args:
        data: (D, H, W).
        grid: Voxel -> shown mm, scale and translate only.
        shown_mm: (3,) the middle.
        limits: Values shown black and white.
        axis: Along which the slice is seen: 0 z, 1 y, 2 x.
        side_px: Pixels along each side.
        mm_per_px: Size of a pixel.

    Returns:
        (side_px, side_px) with 0 black and 255 white; dark grey outside the scan.
    """
    index = grid.inverse().apply(shown_mm)
    spacing = np.array(grid.spacing_mm)
    steps = (np.arange(side_px) - (side_px - 1) / 2) * mm_per_px
    down, right = (a for a in range(3) if a != axis)
    places = [np.array([index[axis]])] * 3
    places[down] = index[down] + steps / spacing[down]
    places[right] = index[right] + steps / spacing[right]
    near = [np.rint(p).astype(np.int64) for p in places]
    inside = [(n >= 0) & (n < size) for n, size in zip(near, data.shape, strict=True)]
    cut = [np.clip(n, 0, size - 1) for n, size in zip(near, data.shape, strict=True)]
    values = np.asarray(data[np.ix_(*cut)], np.float32).reshape(side_px, side_px)
    z, y, x = inside
    seen = (z[:, None, None] & y[:, None] & x).reshape(side_px, side_px)
    low, high = limits
    grey = np.clip((values - low) / max(high - low, 1e-6), 0, 1) * 255
    picture: Picture = np.where(seen, grey, _BEYOND).astype(np.uint8)
    return picture
