"""Scans of thick slices: which axis lies across them, and what follows from it.

Source: Isensee et al., Nature Methods 2021 (nnU-Net), Supplementary Note 2: axes are
halved when their voxels are within a factor of 2 of the finest; from a ratio of 3 on
slices are augmented in two dimensions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np

from homolog.geometry.affine import Index, Triple

# An axis whose voxels are so many times as long as the finest is halved later.
_HALVED_WITHIN = 2.0
# Voxels so many times as long as wide are not mixed across slices.
_THICK = 3.0
# An axis that is halved later keeps at least so many voxels.
_LEAST_VOXELS = 4


def thick_axis(spacing_mm: Sequence[float], ratio: float = _THICK) -> int | None:
    """The axis across thick slices, 0 to 2; None where voxels are no thick slices.

    Args:
        spacing_mm: Voxel size (z, y, x).
        ratio: A voxel must be at least so many times as long as its finest side.
    """
    longest = max(range(3), key=lambda axis: spacing_mm[axis])
    if spacing_mm[longest] < ratio * min(spacing_mm):
        return None
    return longest


def median_grid(grids: Iterable[tuple[Triple, Index]]) -> tuple[Triple, Index]:
    """Median voxel size and median size of scans, axis by axis.

    Args:
        grids: Of each scan voxel size (mm) and voxels, both z, y, x. Single slices
            count only where there is nothing else.
    """
    found = list(grids)
    deep = [grid for grid in found if min(grid[1]) > 1] or found
    z, y, x = np.median([spacing for spacing, _ in deep], axis=0).tolist()
    d, h, w = np.median([shape for _, shape in deep], axis=0).astype(int).tolist()
    return (z, y, x), (d, h, w)


def halving_steps(
    spacing_mm: Triple, shape: Index, stages: int
) -> tuple[Index, ...] | None:
    """Stride of each stage of a network that halves coarse axes later.

    An axis is halved when its voxels are, after the halvings so far, less than twice
    as long as the finest that can still be halved. One that began coarser keeps at
    least four voxels. The axis of a single slice is never halved.

    Args:
        spacing_mm: Voxel size (z, y, x).
        shape: Voxels (D, H, W) of a typical scan.
        stages: Of the network.

    Returns:
        A stride (z, y, x) of 1 or 2 per stage; None where all axes are halved alike.
    """
    solid = [axis for axis in range(3) if shape[axis] > 1]
    if not solid:
        return None
    sides, voxels = list(spacing_mm), list(shape)
    finest = min(sides[axis] for axis in solid)
    fine = [axis for axis in solid if sides[axis] < _HALVED_WITHIN * finest]
    if len(fine) == 3:
        return None
    steps: list[Index] = []
    for _ in range(stages):
        open_axes = [
            axis for axis in solid if axis in fine or voxels[axis] >= 2 * _LEAST_VOXELS
        ]
        limit = _HALVED_WITHIN * min(sides[axis] for axis in open_axes)
        halved = [axis for axis in open_axes if sides[axis] < limit]
        z, y, x = (2 if axis in halved else 1 for axis in range(3))
        steps.append((z, y, x))
        for axis in halved:
            sides[axis] *= 2
            voxels[axis] = math.ceil(voxels[axis] / 2)
    return tuple(steps)


def crop_like(
    voxels: float,
    spacing_mm: Triple,
    shape: Index,
    divisor: Index,
    smallest: Index,
) -> Index:
    """A crop of about so many voxels, as long in mm along every axis as scans allow.

    Args:
        voxels: Wanted in all.
        spacing_mm: Voxel size (z, y, x).
        shape: Voxels (D, H, W) of a typical scan: no side is longer, to the nearest
            multiple of the divisor.
        divisor: What every side must be a multiple of.
        smallest: No side is shorter.

    Returns:
        (D, H, W), multiples of the divisor.
    """
    most = [
        max(round(n / m) * m, least)
        for n, m, least in zip(shape, divisor, smallest, strict=True)
    ]
    exact = _cube(voxels, spacing_mm, most)
    near = [
        {min(max(k * m, least), top) for k in (int(n // m), int(n // m) + 1)}
        for n, m, least, top in zip(exact, divisor, smallest, most, strict=True)
    ]

    def apart(sides: Sequence[int]) -> tuple[float, int]:
        """How far from the number of voxels, and from the form; then the size."""
        form = sum(abs(math.log(a / b)) for a, b in zip(sides, exact, strict=True))
        size = math.prod(sides)
        return round(2 * abs(math.log(size / voxels)) + form, 9), size

    z, y, x = min(itertools.product(*(sorted(n) for n in near)), key=apart)
    return z, y, x


def _cube(voxels: float, spacing_mm: Triple, most: Sequence[int]) -> list[float]:
    """Sides in voxels of a box of equal sides in mm, but where the scan ends before."""
    sides = [0.0, 0.0, 0.0]
    ends: set[int] = set()
    for _ in range(3):
        rest = [axis for axis in range(3) if axis not in ends]
        share = voxels / math.prod(most[axis] for axis in ends)
        volume = share * math.prod(spacing_mm[axis] for axis in rest)
        mm = volume ** (1 / len(rest))
        for axis in rest:
            sides[axis] = mm / spacing_mm[axis]
        over = {axis for axis in rest if sides[axis] > most[axis]}
        for axis in over:
            sides[axis] = float(most[axis])
        if not over or len(over) == len(rest):
            break
        ends |= over
    return sides
