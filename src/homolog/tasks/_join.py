"""Several feature maps of one scan as one: the coarse ones read on the finest grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from homolog.geometry.affine import Index


def join_features(
    maps: Sequence[NDArray[np.float16]],
    strides: Sequence[Index],
    result: NDArray[np.float16],
) -> None:
    """Concatenate unit vectors of several grids, each with an equal share.

    The cosine of two joined vectors is the mean of the cosines of their parts, as SAM
    averages its fine and coarse similarity.

    Args:
        maps: (d_i, h_i, w_i, E_i) each, unit norm, cells aligned at the scan's corner.
        strides: Voxels (z, y, x) per cell of each.
        result: (d, h, w, sum E_i) to fill; the grid of the first map's stride.

    Source: methods reference, section 4 (fine and coarse embeddings are averaged).
    """
    share = np.float32(1 / np.sqrt(len(maps)))
    finest = strides[0]
    for z in range(result.shape[0]):
        first = 0
        for values, stride in zip(maps, strides, strict=True):
            size = values.shape[-1]
            if stride == finest:
                plane = np.asarray(values[z], np.float32)
            else:
                ratio = [f / c for f, c in zip(finest, stride, strict=True)]
                plane = _plane_on_finer_grid(values, z, result.shape[1:3], ratio)
                length = np.linalg.norm(plane, axis=-1, keepdims=True)
                plane /= np.maximum(length, 1e-6)
            result[z, :, :, first : first + size] = plane * share
            first += size


def _plane_on_finer_grid(
    values: NDArray[np.float16], z: int, plane: tuple[int, int], ratio: Sequence[float]
) -> NDArray[np.float32]:
    """One plane (h, w, E) of the finer grid, trilinear; borders are held."""
    rows = _between(np.array([z]), ratio[0], values.shape[0])
    low, high, share = (v[0] for v in rows)
    near = np.asarray(values[low], np.float32)
    upper = np.asarray(values[high], np.float32)
    result: NDArray[np.float32] = near + share * (upper - near)
    for axis, count in enumerate(plane):
        low_i, high_i, part = _between(
            np.arange(count), ratio[axis + 1], result.shape[axis]
        )
        wide = part.reshape([-1 if a == axis else 1 for a in range(3)])
        near = np.take(result, low_i, axis=axis)
        result = near + wide * (np.take(result, high_i, axis=axis) - near)
    return result


def _between(
    cells: NDArray[np.int64], ratio: float, length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Lower and upper coarse cell of fine cells, and the share of the upper one."""
    place = np.clip((cells + 0.5) * ratio - 0.5, 0, length - 1)
    low = np.floor(place).astype(np.int64)
    share = (place - low).astype(np.float32)
    return low, np.minimum(low + 1, length - 1), share
