"""Slices that lean or are uneven, resampled once to a straight and even grid.

A CT with a tilted gantry has parallel slices whose corners run aslant; a head CT may
have thin slices at the base of the skull and thick ones above. Nothing here is
done unless it is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.geometry.affine import Affine, Index
from homolog.scans.dicom.kinds import DicomFile
from homolog.scans.dicom.placing import positions_of, stack_directions, usual_step
from homolog.words import times

# Pixels that a slice's edge is moved by for no more than rounding.
_ROUNDING = 1e-3


@dataclass(frozen=True, eq=False)
class StraightGrid:
    """A straight grid around slices, and where each slice lies in it.

    Attributes:
        affine: Voxel -> mm.
        shape: (D, H, W); larger than a slice where slices are moved sideways.
        places: (N,) each slice's place in the grid's slices, ascending.
        shifts: (N, 2) rows and columns that each slice is moved by; not negative.
    """

    affine: Affine
    shape: Index
    places: NDArray[np.float64]
    shifts: NDArray[np.float64]

    @classmethod
    def around(cls, slices: Sequence[DicomFile]) -> StraightGrid:
        """The grid of sorted slices with positions: their usual step, their pixels."""
        row, column = stack_directions(slices)
        normal = np.cross(row, column)
        positions = positions_of(slices)
        spacing = np.array(slices[0].numbers("spacing", 2), float)
        away = positions - positions[0]
        heights = away @ normal
        step = usual_step(heights)
        shifts = np.column_stack([away @ column, away @ row]) / spacing
        shifts[np.abs(shifts - np.rint(shifts)) < _ROUNDING] = np.rint(
            shifts[np.abs(shifts - np.rint(shifts)) < _ROUNDING]
        )
        low = np.floor(shifts.min(axis=0))
        size = (slices[0].whole("rows", 0), slices[0].whole("columns", 0))
        high = np.ceil(shifts.max(axis=0)) - low + size
        depth = math.floor(heights[-1] / step + _ROUNDING) + 1
        matrix = np.eye(4)
        columns = (normal * step, column * spacing[0], row * spacing[1])
        matrix[:3, :3] = np.column_stack([np.asarray(c)[::-1] for c in columns])
        start = positions[0] + low[0] * columns[1] + low[1] * columns[2]
        matrix[:3, 3] = start[::-1]
        shape = (depth, int(high[0]), int(high[1]))
        return cls(Affine(matrix), shape, heights / step, shifts - low)

    @property
    def text(self) -> str:
        """What was done, one sentence."""
        size = times([round(v, 3) for v in self.affine.spacing_mm])
        return f"resampled once to a straight, even grid of {size} mm, as was asked."

    def resampled(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values on the grid, linear between slices and pixels.

        Args:
            values: (N, H, W) of the slices.

        Returns:
            ``shape``, of the same number type; beyond the slices their least value.
        """
        fill = float(values.min())
        out = np.empty(self.shape, values.dtype)
        whole = values.dtype.kind in "iu"
        for k in range(self.shape[0]):
            i = int(np.searchsorted(self.places, k + _ROUNDING, side="right")) - 1
            i = min(max(i, 0), len(self.places) - 1)
            plane = self._moved(values, i, fill)
            after = min(i + 1, len(self.places) - 1)
            gap = self.places[after] - self.places[i]
            share = (k - self.places[i]) / gap if gap > 0 else 0.0
            if share > _ROUNDING:
                plane = plane * (1 - share) + self._moved(values, after, fill) * share
            out[k] = np.rint(plane) if whole else plane
        return out

    def _moved(
        self, values: NDArray[Any], number: int, fill: float
    ) -> NDArray[np.float64]:
        """One slice where it lies in the grid's plane."""
        (h, w), (y, x) = values.shape[1:], self.shifts[number]
        rows, columns = int(y), int(x)
        canvas = np.full((self.shape[1] + 1, self.shape[2] + 1), fill)
        canvas[rows : rows + h, columns : columns + w] = values[number]
        for axis, part in ((0, y - rows), (1, x - columns)):
            if part > _ROUNDING:
                before = np.roll(canvas, 1, axis=axis)
                canvas = canvas * (1 - part) + before * part
        plane: NDArray[np.float64] = canvas[: self.shape[1], : self.shape[2]]
        return plane
