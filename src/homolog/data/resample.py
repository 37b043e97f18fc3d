"""Change the voxel size along an array's own axes: separable, centred, undoable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.geometry.affine import Affine, Index, Triple

# Output voxels computed by one matrix product: small enough that the band of a
# resampling matrix wastes little, large enough for BLAS.
_BLOCK = 32
# Two spacings this close (relative) are one; saves an interpolation of 1.0000002 mm.
_SAME = 1e-3


@dataclass(frozen=True, eq=False)
class _Band:
    """Rows of a resampling matrix and the range of input they read."""

    rows: slice
    given: slice
    matrix: NDArray[np.float32]


@dataclass(frozen=True)
class Regrid:
    """How a grid is laid over another one with the same centre and the same axes.

    Attributes:
        source: Shape of the given grid (z, y, x).
        shape: Shape of the new grid.
        step: New voxel size in units of the given one, per axis.
    """

    source: Index
    shape: Index
    step: Triple

    @classmethod
    def between(
        cls, source: Index, spacing_mm: Triple, target_mm: Triple | None
    ) -> Regrid:
        """Grid of ``target_mm`` voxels which covers the same extent, to half a voxel.

        Args:
            source: Shape of the given grid.
            spacing_mm: Its voxel size.
            target_mm: Voxel size wanted; None keeps the grid.
        """
        shape, step = list(source), [1.0, 1.0, 1.0]
        for axis in range(3) if target_mm is not None else ():
            assert target_mm is not None
            ratio = target_mm[axis] / spacing_mm[axis]
            if abs(ratio - 1.0) > _SAME and source[axis] > 1:
                shape[axis] = max(1, round(source[axis] / ratio))
                step[axis] = ratio
        return cls(source, (shape[0], shape[1], shape[2]), (step[0], step[1], step[2]))

    @property
    def is_identity(self) -> bool:
        """Whether nothing has to be interpolated."""
        return self.step == (1.0, 1.0, 1.0)

    def start(self, axis: int) -> float:
        """Given-grid index of the new grid's first voxel."""
        half = (self.shape[axis] - 1) / 2.0 * self.step[axis]
        return (self.source[axis] - 1) / 2.0 - half

    def positions(self, axis: int) -> NDArray[np.float64]:
        """Given-grid index of each new voxel along an axis, (shape[axis],)."""
        steps = np.arange(self.shape[axis]) * self.step[axis]
        return np.asarray(self.start(axis) + steps, dtype=np.float64)

    def inverse_positions(self, axis: int) -> NDArray[np.float64]:
        """New-grid index of each given voxel along an axis, (source[axis],)."""
        offsets = np.arange(self.source[axis]) - self.start(axis)
        return np.asarray(offsets / self.step[axis], dtype=np.float64)

    def affine(self, source: Affine) -> Affine:
        """Affine of the new grid, given that of the source grid."""
        if self.is_identity:
            return source
        start = [self.start(axis) for axis in range(3)]
        return source @ Affine.shift(start) @ Affine.scale(self.step)


def resample(data: NDArray[Any], grid: Regrid) -> NDArray[np.float32]:
    """Values on the new grid: cubic convolution, widened against aliasing.

    Shrinking averages over what a new voxel covers; the result stays in the range of
    the input. Slices are resampled one by one, while they lie in the processor's cache
    (the input is never copied as a whole), then the slice axis.

    Args:
        data: (C, D, H, W) real numbers.
        grid: Its ``source`` is (D, H, W).

    Returns:
        (C, *grid.shape) float32.

    Source: Keys, IEEE TASSP 1981 (a = -0.5); widening as in Pillow and torch.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    bands = [_bands(grid, axis) for axis in range(3)]
    channels, depth = data.shape[:2]
    slices = np.empty((channels, depth, *grid.shape[1:]), np.float32)
    # The products are small: BLAS threads gain little and, on a busy machine, spin.
    with threadpool_limits(1, user_api="blas"):
        for channel in range(channels):
            for z in range(depth):
                plane = np.ascontiguousarray(data[channel, z], dtype=np.float32)
                rows = _multiply(bands[1], plane)
                slices[channel, z] = _multiply(bands[2], rows.T).T
        flat = slices.reshape(channels, depth, -1)
        result = np.stack([_multiply(bands[0], volume) for volume in flat])
    low, high = float(data.min()), float(data.max())
    np.clip(result, low, high, out=result)
    return result.reshape(channels, *grid.shape)


def nearest(data: NDArray[Any], positions: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """The voxel nearest to each grid position; outside, the border voxel.

    Args:
        data: (..., D, H, W), any type.
        positions: Index along each of the last three axes, one array per axis.

    Returns:
        Array of the positions' lengths along the last three axes.
    """
    lead = data.ndim - 3
    result = data
    for axis, wanted in enumerate(positions):
        length = data.shape[lead + axis]
        index = np.clip(np.floor(wanted + 0.5).astype(np.int64), 0, length - 1)
        if not np.array_equal(index, np.arange(length)):
            result = np.take(result, index, axis=lead + axis)
    return result


def _bands(grid: Regrid, axis: int) -> list[_Band] | None:
    """The resampling matrix of one axis as blocks of rows; None changes nothing.

    Each row sums to 1 and reaches only a few voxels, so a block of rows needs only a
    narrow range of the input.
    """
    if grid.step[axis] == 1.0:
        return None
    width = max(1.0, grid.step[axis])
    centres = grid.positions(axis)[:, None]
    distance = np.abs(np.arange(grid.source[axis])[None, :] - centres) / width
    near = (1.5 * distance - 2.5) * distance**2 + 1.0
    far = ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    weights /= weights.sum(axis=1, keepdims=True)
    bands = []
    for first in range(0, len(weights), _BLOCK):
        rows = slice(first, min(first + _BLOCK, len(weights)))
        used = np.flatnonzero(weights[rows].any(axis=0))
        given = slice(int(used[0]), int(used[-1]) + 1)
        matrix = np.ascontiguousarray(weights[rows, given], dtype=np.float32)
        bands.append(_Band(rows, given, matrix))
    return bands


def _multiply(
    bands: list[_Band] | None, data: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Resample the first axis of a matrix (given, n) -> (new, n)."""
    if bands is None:
        return data
    result = np.empty((bands[-1].rows.stop, data.shape[1]), np.float32)
    for band in bands:
        np.matmul(band.matrix, data[band.given], out=result[band.rows])
    return result
