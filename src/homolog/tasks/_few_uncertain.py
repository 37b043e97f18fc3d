"""How unsure a few-voxel head is, collected on a thinned grid while it predicts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from homolog.data.volume import Volume
from homolog.geometry.affine import Affine

Floats = NDArray[np.float32]

# Uncertainty is kept on a grid of about this voxel size.
_STEP_MM = 4.0


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """How unsure the head is, on a thinned grid.

    Attributes:
        values: (d, h, w) in 0..1: 1 less the lead of the likeliest class over the
            second; 0 where there are no features.
        likely: (2, d, h, w) numbers of the likeliest class and the second.
        affine: Thinned voxel -> world mm.
    """

    values: Floats
    likely: NDArray[np.uint16]
    affine: Affine


class Thin:
    """Collects uncertainty on every n-th voxel along each axis, slab by slab.

    Args:
        volume: The scan.
    """

    def __init__(self, volume: Volume) -> None:
        affine, shape = volume.affine, volume.shape
        self.steps = [max(1, round(_STEP_MM / s)) for s in affine.spacing_mm]
        size = [-(-n // s) for n, s in zip(shape, self.steps, strict=True)]
        self.affine = affine @ Affine.scale([float(s) for s in self.steps])
        self.values = np.zeros(size, np.float32)
        self.likely = np.zeros((2, *size), np.uint16)

    def take(self, first: int, chances: Floats) -> None:
        """A slab of probabilities (K, d, h, w) that begins at plane ``first``."""
        z, y, x = self.steps
        ahead = -first % z
        some = chances[:, ahead::z, ::y, ::x]
        if not some.shape[1]:
            return
        row = (first + ahead) // z
        rows = slice(row, row + some.shape[1])
        if len(some) == 1:
            return
        order = np.argsort(-some, axis=0)[:2]
        top = np.take_along_axis(some, order, axis=0)
        known = top[0] > 0
        self.values[rows] = np.where(known, 1.0 - (top[0] - top[1]), 0.0)
        self.likely[:, rows] = order

    def found(self) -> Uncertainty:
        """What was collected."""
        return Uncertainty(self.values, self.likely, self.affine)
