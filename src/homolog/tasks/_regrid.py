"""Maps of feature cells read at every voxel of a scan's own grid. numpy only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.geometry.affine import Affine, Index

Array = NDArray[np.float64]


def on_grid(
    values: NDArray[np.float32], affine: Affine, shape: Index, target: Affine
) -> NDArray[np.float32]:
    """Cell values at every voxel of another grid, trilinear.

    Beyond the outermost cell centres the border cell's value holds. Any pair of affines
    will do; where the axes agree up to order and direction, which is so for a scan and
    its own features, it is done axis by axis.

    Args:
        values: (d, h, w).
        affine: Cell -> world mm.
        shape: Voxels (D, H, W) of the wanted grid.
        target: Its voxel -> world mm.

    Returns:
        (D, H, W) float32.
    """
    matrix = (affine.inverse() @ target).matrix
    linear, offset = matrix[:3, :3], matrix[:3, 3]
    values = np.asarray(values, np.float32)
    axes = np.abs(linear).argmax(axis=0)  # the cell axis along each voxel axis
    main = np.zeros((3, 3), bool)
    main[axes, range(3)] = True
    drift = np.abs(np.where(main, 0.0, linear)) @ (np.array(shape) - 1.0)
    if sorted(axes) == [0, 1, 2] and drift.max() < 1e-3:
        turned = np.transpose(values, axes)
        places = [
            linear[a, voxel] * np.arange(shape[voxel]) + offset[a]
            for voxel, a in enumerate(axes)
        ]
        return _axis_by_axis(turned, places)
    return _anyhow(values, linear, offset, shape)


def _axis_by_axis(
    values: NDArray[np.float32], places: list[Array]
) -> NDArray[np.float32]:
    """Linear interpolation along one axis after the other; the last grows it most."""
    order = sorted(range(3), key=lambda a: len(places[a]) / values.shape[a])
    for axis in order:
        length = values.shape[axis]
        index = np.clip(places[axis], 0, length - 1)
        low = np.minimum(index.astype(np.int64), max(length - 2, 0))
        wide = [1, 1, 1]
        wide[axis] = -1
        share = (index - low).astype(np.float32).reshape(wide)
        first = np.take(values, low, axis=axis)
        second = np.take(values, np.minimum(low + 1, length - 1), axis=axis)
        second -= first
        second *= share
        first += second
        values = first
    return np.ascontiguousarray(values)


def _anyhow(
    values: NDArray[np.float32], linear: Array, offset: Array, shape: Index
) -> NDArray[np.float32]:
    from scipy import ndimage

    result: NDArray[Any] = ndimage.affine_transform(
        values, linear, offset, output_shape=shape, output=np.float32, order=1,
        mode="nearest",
    )  # fmt: skip
    return result
