"""Cosine maps of dense features, a displayed slice at a time. numpy only.

A slice of cells is widened from the memory-mapped float16 once and kept; then a map
costs well under a millisecond. No BLAS: its threads take longer to wake up than the
product takes, and limiting them is a setting of the whole process that two threads
would quarrel about.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from homolog.data.volume import FeatureMap
from homolog.geometry.affine import Affine, Index

Vector = NDArray[np.float32]
Map = NDArray[np.float32]

# Cells widened at once for a whole map: 16 MB of float32 at 256 features.
_CELLS_AT_ONCE = 16_384
_CACHE_BYTES = 160_000_000


@dataclass(frozen=True)
class Cut:
    """Where a displayed slice cuts a grid of cells.

    Attributes:
        axis: Cell axis (0 z, 1 y, 2 x) that the slice is perpendicular to.
        low: The nearer plane of cells below it.
        high: The one above; ``low`` where the slice lies on a plane or at the border.
        share: How far it lies from ``low`` to ``high``, 0..1.
    """

    axis: int
    low: int
    high: int
    share: float

    @classmethod
    def at(cls, axis: int, place: float, length: int) -> Cut | None:
        """The cut at a fractional cell index; None further than half a cell outside."""
        if not -0.5 - 1e-6 <= place <= length - 0.5 + 1e-6:
            return None
        place = min(max(place, 0.0), length - 1.0)
        low = min(int(place), max(length - 2, 0))
        share = place - low
        if share < 1e-6:
            return cls(axis, low, low, 0.0)
        if share > 1 - 1e-6:
            return cls(axis, low + 1, low + 1, 0.0)
        return cls(axis, low, low + 1, share)

    def read(self, cells: Map) -> Map:
        """The slice through a map of cells (d, h, w), linear between two planes."""
        first = cells[_plane(self.axis, self.low)]
        if self.high == self.low:
            return np.array(first, np.float32)
        second = cells[_plane(self.axis, self.high)]
        between: Map = (first + np.float32(self.share) * (second - first)).astype(
            np.float32
        )
        return between

    def write(self, cells: Map, values: Map) -> None:
        """Put a slice into both planes of cells it lies between, in place.

        Whichever of the two a viewer rounds to, it shows the slice that was meant.
        """
        cells[_plane(self.axis, self.low)] = values
        cells[_plane(self.axis, self.high)] = values


class SliceCache:
    """Displayed slices of one scan's features, widened once.

    Args:
        features: (E, d, h, w) float16 or float32 of unit norm, E lying together.
        most_bytes: Of kept slices; the two in use are always kept.
    """

    def __init__(self, features: FeatureMap, most_bytes: int = _CACHE_BYTES) -> None:
        self._cells = np.moveaxis(features.data, 0, -1)
        self._most = most_bytes
        self._kept: OrderedDict[tuple[int, int], Map] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def shape(self) -> Index:
        """Cells (d, h, w)."""
        d, h, w = self._cells.shape[:3]
        return d, h, w

    @property
    def bytes(self) -> int:
        """What is kept now."""
        with self._lock:
            return sum(plane.nbytes for plane in self._kept.values())

    def ready(self, cut: Cut) -> bool:
        """Whether ``similarity`` of this cut touches no file."""
        with self._lock:
            return all((cut.axis, i) in self._kept for i in (cut.low, cut.high))

    def load(self, cut: Cut) -> None:
        """Widen what a cut needs; may read a file, so not on the GUI thread."""
        for index in (cut.low, cut.high):
            self.plane(cut.axis, index)

    def plane(self, axis: int, index: int) -> Map:
        """Cells (rows, columns, E) float32 of one plane."""
        key = (axis, index)
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
                return found
        wide = np.ascontiguousarray(self._cells[_plane(axis, index)], np.float32)
        with self._lock:
            self._kept[key] = wide
            total = sum(p.nbytes for p in self._kept.values())
            while total > self._most and len(self._kept) > 2:
                total -= self._kept.popitem(last=False)[1].nbytes
        return wide

    def similarity(self, query: Vector, cut: Cut) -> Map:
        """Cosine (rows, columns) of a query (E,) with the slice, -1..1."""
        first = cosine(self.plane(cut.axis, cut.low), query)
        if cut.high != cut.low:
            second = cosine(self.plane(cut.axis, cut.high), query)
            second -= first
            second *= np.float32(cut.share)
            first += second
        return np.clip(first, -1.0, 1.0, out=first)


def cosine(cells: Map, query: Vector) -> Map:
    """Dot product of cells (..., E) float32 with a query (E,), on one thread."""
    result: Map = np.einsum("...e,e->...", cells, query)
    return result


def whole_map(
    features: FeatureMap, query: Vector, outdated: Callable[[], bool] = lambda: False
) -> Map | None:
    """Cosine of a query with every cell, slab by slab.

    Args:
        features: (E, d, h, w) of unit norm.
        query: (E,) of unit norm.
        outdated: Asked between slabs; True ends the work.

    Returns:
        (d, h, w) float32 in -1..1; None when outdated.
    """
    cells = np.moveaxis(features.data, 0, -1)
    d, h, w = cells.shape[:3]
    result = np.empty((d, h, w), np.float32)
    rows = max(1, _CELLS_AT_ONCE // (h * w))
    for first in range(0, d, rows):
        if outdated():
            return None
        slab = np.asarray(cells[first : first + rows], np.float32)
        result[first : first + rows] = cosine(slab, query)
    return np.clip(result, -1.0, 1.0, out=result)


def usual_similarity(features: FeatureMap, count: int = 600) -> float:
    """The median cosine of two places of a scan: what says nothing.

    Heat maps begin there, for all queries alike, so that colours do not pump.
    """
    cells = np.moveaxis(features.data, 0, -1)
    shape = cells.shape[:3]
    flat = np.linspace(0, np.prod(shape) - 1, count).astype(np.int64)
    sample = np.asarray(cells[np.unravel_index(flat, shape)], np.float32)
    sample = sample[np.abs(sample).sum(axis=1) > 0]
    if len(sample) < 2:
        return 0.0
    pairs = np.einsum("ie,je->ij", sample[::3], sample)
    return float(np.median(pairs))


class HeatBuffer:
    """The array of a heat layer: the displayed slice is written in place.

    Where a whole map is known, scrolling shows it; before, planes that were not hovered
    over stay as they were.

    Attributes:
        data: (d, h, w) float32, what the layer shows. Never replaced, only written.
        whole: The whole map, or None while unknown.
    """

    def __init__(self, shape: Index) -> None:
        self.data: Map = np.full(shape, -1.0, np.float32)
        self.whole: Map | None = None
        self._cut: Cut | None = None
        self._values: Map | None = None
        self._last: tuple[float, float] | None = None

    def show(self, cut: Cut, values: Map, highest: float = 1.0) -> None:
        """A slice of a new or the same query.

        Args:
            cut: Where.
            values: (rows, columns).
            highest: Values above it are shown as nothing, see ``show_whole``.
        """
        if self._cut is not None and self._cut != cut and self.whole is not None:
            for index in (self._cut.low, self._cut.high):  # what scrolling should show
                plane = _plane(self._cut.axis, index)
                self.data[plane] = _below(self.whole[plane], highest)
        self._cut, self._values = cut, values
        cut.write(self.data, _below(values, highest))

    def forget_whole(self) -> None:
        """Another query: the whole map is not known yet."""
        self.whole = None

    def show_whole(self, whole: Map, cut: Cut | None, highest: float = 1.0) -> None:
        """A whole map, and the displayed slice of it."""
        self.whole = whole
        self.data[...] = _below(whole, highest)
        self._cut = self._values = None
        if cut is not None:
            self.show(cut, cut.read(whole), highest)

    def clear(self) -> None:
        """Show nothing."""
        self.data[...] = -1.0
        self.whole = self._cut = self._values = None

    def value_at(self, cell: NDArray[np.float64]) -> float | None:
        """What is shown at a fractional cell index (3,), bilinear in the slice.

        None where nothing is shown or the place lies outside of the grid.
        """
        shape = np.array(self.data.shape)
        if ((cell < -0.5 - 1e-6) | (cell > shape - 0.5 + 1e-6)).any():
            return None
        if self._cut is None or self._values is None:
            return None
        inside = [axis for axis in range(3) if axis != self._cut.axis]
        place = np.clip(cell, 0, shape - 1)[inside]
        low = np.minimum(place.astype(int), np.maximum(shape[inside] - 2, 0))
        high = np.minimum(low + 1, shape[inside] - 1)
        a, b = place - low
        v = self._values
        first = (1 - b) * v[low[0], low[1]] + b * v[low[0], high[1]]
        second = (1 - b) * v[high[0], low[1]] + b * v[high[0], high[1]]
        return float((1 - a) * first + a * second)


def cut_of(shown: Affine, shape: Index, axis: int, place_mm: float) -> Cut | None:
    """Where a displayed slice cuts a grid that lies straight in the shown world.

    Args:
        shown: Cell -> shown mm; scale and translate only.
        shape: Cells (d, h, w).
        axis: World axis perpendicular to the slice.
        place_mm: Of the slice, along that axis.
    """
    place = (place_mm - shown.matrix[axis, 3]) / shown.matrix[axis, axis]
    return Cut.at(axis, float(place), shape[axis])


def _plane(axis: int, index: int) -> tuple[slice | int, ...]:
    return (*[slice(None)] * axis, index)


def _below(values: Map, highest: float) -> Map:
    return values if highest >= 1.0 else np.where(values > highest, -1.0, values)
