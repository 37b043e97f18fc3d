"""Features that need no network: intensity at some widths, its gradient, the place.

Every value is the same sum of the same numbers whether a block, a slice or a single
voxel is asked for: nothing changes where two blocks meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, prod

import numpy as np
from numpy.typing import NDArray

from homolog.data.preprocess import Intensities
from homolog.data.volume import Volume
from homolog.geometry.affine import Index, Triple

Floats = NDArray[np.float32]

# Gaussians end at this many sigmas.
_TRUNCATE = 3.0
# Voxels read at once around single places: 32 MB of float32.
_READ_AT_ONCE = 8_000_000
# Knots nearer than this in normalised values are one.
_APART = 0.01
# Places are told in this unit, so that their numbers are near 1.
_PLACE_MM = 100.0


@dataclass(frozen=True)
class SimpleSpec:
    """Which simple features there are.

    Attributes:
        smoothing_mm: Widths (sigma) of the intensities; 0 is the voxel itself.
        position: Whether the place counts: z, y, x from the middle of the body box
            and their products.
        knots: Per channel, ascending normalised values. Each smoothed intensity is also
            told by how near it is to each of them, since organs are bands of grey.
    """

    smoothing_mm: tuple[float, ...]
    position: bool
    knots: tuple[tuple[float, ...], ...] = ((),)

    @property
    def channels(self) -> int:
        """Of the scan."""
        return len(self.knots)

    @property
    def intensities(self) -> int:
        """How many features tell the intensity."""
        widths = len(self.smoothing_mm)
        return sum(widths * (1 + len(k)) + 1 for k in self.knots)

    @property
    def size(self) -> int:
        """How many features there are."""
        return self.intensities + 9 * self.position


@dataclass(frozen=True, eq=False)
class SimpleFeatures:
    """The simple features of one scan, computed where they are asked for.

    Attributes:
        volume: The scan as stored in its file.
        intensity: How its values are normalised.
        centre_mm: Middle of its body box, world mm (z, y, x).
        spec: Which features.
    """

    volume: Volume
    intensity: Intensities
    centre_mm: Triple
    spec: SimpleSpec

    def block(self, start: Index, stop: Index) -> Floats:
        """Features (F, d, h, w) of the voxels from ``start`` to before ``stop``."""
        halo = self._halo()
        index = [
            np.clip(np.arange(a - h, b + h), 0, n - 1)
            for a, b, h, n in zip(start, stop, halo, self.volume.shape, strict=True)
        ]
        result = []
        for channel, knots in zip(self.volume.data, self.spec.knots, strict=True):
            values = self.intensity.normalise(channel[np.ix_(*index)])
            result += self._filtered(values[None], halo, knots)
        if self.spec.position:
            axes = [np.arange(a, b) for a, b in zip(start, stop, strict=True)]
            shape = tuple(len(a) for a in axes)
            result += [
                np.broadcast_to(p, (1, *shape)) for p in self._place(*np.ix_(*axes))
            ]
        return np.concatenate(result).astype(np.float32, copy=False)

    def at(self, voxels: NDArray[np.int64]) -> Floats:
        """Features (N, F) of single voxels (N, 3)."""
        halo = self._halo()
        size = prod(2 * h + 1 for h in halo)
        step = max(1, _READ_AT_ONCE // size)
        found = np.empty((len(voxels), self.spec.size), np.float32)
        for first in range(0, len(voxels), step):
            some = voxels[first : first + step]
            z, y, x = (
                np.clip(some[:, a, None] + np.arange(-h, h + 1), 0, n - 1)
                for a, (h, n) in enumerate(zip(halo, self.volume.shape, strict=True))
            )
            columns = []
            for channel, knots in zip(self.volume.data, self.spec.knots, strict=True):
                read = channel[
                    z[:, :, None, None], y[:, None, :, None], x[:, None, None, :]
                ]
                columns += self._filtered(self.intensity.normalise(read), halo, knots)
            if self.spec.position:
                columns += self._place(*some.T)
            for i, column in enumerate(columns):
                found[first : first + step, i] = column.reshape(-1)
        return found

    def _halo(self) -> list[int]:
        """Voxels needed around a place, per axis; one more for the gradient."""
        radii = [self._radii(s) for s in self.spec.smoothing_mm]
        slope = [r + 1 for r in self._radii(self._slope_mm())]
        return [max(column) for column in zip(*radii, slope, strict=True)]

    def _slope_mm(self) -> float:
        """Width at which the gradient is taken: the first that smooths."""
        return next((s for s in sorted(self.spec.smoothing_mm) if s > 0), 0.0)

    def _radii(self, sigma_mm: float) -> list[int]:
        return [ceil(_TRUNCATE * sigma_mm / s) for s in self.volume.affine.spacing_mm]

    def _filtered(
        self, values: Floats, halo: list[int], knots: tuple[float, ...]
    ) -> list[Floats]:
        """Intensity features of (B, ...) values with a halo around."""
        found = [self._smooth(values, halo, s, 0) for s in self.spec.smoothing_mm]
        wide = self._smooth(values, halo, self._slope_mm(), 1)
        total = np.zeros_like(found[0])
        for axis, spacing in enumerate(self.volume.affine.spacing_mm):
            ends = []
            for side in (0, 2):
                cut = [slice(None), *[slice(1, -1)] * 3]
                cut[axis + 1] = slice(side, wide.shape[axis + 1] - 2 + side)
                ends.append(wide[tuple(cut)])
            total += ((ends[1] - ends[0]) / np.float32(2 * spacing)) ** 2
        bands = [hat for smooth in found for hat in _hats(smooth, knots)]
        return [*found, np.sqrt(total), *bands]

    def _smooth(
        self, values: Floats, halo: list[int], sigma_mm: float, extra: int
    ) -> Floats:
        """A Gaussian of (B, ...) values; ``extra`` voxels of the halo remain."""
        for axis, (radius, h, spacing) in enumerate(
            zip(self._radii(sigma_mm), halo, self.volume.affine.spacing_mm, strict=True)
        ):
            cut = [slice(None)] * 4
            spare = h - radius - extra
            cut[axis + 1] = slice(spare, values.shape[axis + 1] - spare)
            values = _along(
                values[tuple(cut)], _kernel(radius, sigma_mm / spacing), axis + 1
            )
        return values

    def _place(self, *index: NDArray[np.int64]) -> list[Floats]:
        """z, y, x in units of 100 mm from the middle of the body, and products."""
        matrix = self.volume.affine.matrix
        z, y, x = (
            np.asarray(
                sum(matrix[w, a] * index[a] for a in range(3) if matrix[w, a])
                + (matrix[w, 3] - self.centre_mm[w]),
                np.float64,
            )
            / _PLACE_MM
            for w in range(3)
        )
        both = (z, y, x, z * z, y * y, x * x, z * y, z * x, y * x)
        return [np.asarray(p, np.float32) for p in both]


def _kernel(radius: int, sigma: float) -> Floats:
    if radius == 0:
        return np.ones(1, np.float32)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    scaled: Floats = (weights / weights.sum()).astype(np.float32)
    return scaled


def _along(values: Floats, kernel: Floats, axis: int) -> Floats:
    """Symmetric filter along an axis, without the ends that lack neighbours."""
    radius = len(kernel) // 2
    size = values.shape[axis] - 2 * radius

    def shifted(by: int) -> Floats:
        cut = [slice(None)] * values.ndim
        cut[axis] = slice(by, by + size)
        return values[tuple(cut)]

    total: Floats = shifted(radius) * kernel[radius]
    for t in range(1, radius + 1):
        total += (shifted(radius - t) + shifted(radius + t)) * kernel[radius + t]
    return total


def _hats(values: Floats, knots: tuple[float, ...]) -> list[Floats]:
    """How near values are to each knot: 1 at it, 0 at its neighbours; sum 1."""
    if len(knots) < 2:
        return [np.ones_like(values) for _ in knots]
    k = np.array(knots, np.float32)
    before, found = None, []
    for a, b in pairwise(k):
        ramp = values - a  # 0 up to the one knot, 1 from the next on
        ramp *= 1 / (b - a)
        np.clip(ramp, 0, 1, out=ramp)
        found.append(1 - ramp if before is None else before - ramp)
        before = ramp
    assert before is not None
    return [*found, before]


def knots_of(
    values: Sequence[NDArray[np.float32]], most: int = 12
) -> tuple[float, ...]:
    """Knots where painted values lie, every class counting the same.

    Args:
        values: Normalised values (N_k,) of each class.
        most: Knots, at most.

    Returns:
        Ascending; fewer than two distinct values give none.
    """
    levels = np.linspace(0, 1, 21)
    pool = np.concatenate([np.quantile(v, levels) for v in values if len(v)])
    found: list[float] = []
    for value in np.quantile(pool, np.linspace(0, 1, most)).astype(np.float32).tolist():
        if not found or value - found[-1] > _APART:
            found.append(value)
    return tuple(found) if len(found) > 1 else ()
