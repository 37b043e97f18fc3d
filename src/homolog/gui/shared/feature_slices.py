"""Slices of feature maps beside a scan, and pins set in them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.geometry.affine import Affine, Index, Triple
from homolog.scans.volume import FeatureMap
from homolog.writing import write_json, write_table

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


# Pinned queries: a place of a scan, what it looks like, and where else it was found.
#
# No Qt, no napari. Places are true millimetres (z, y, x) of LPS.


# Okabe and Ito: told apart by nearly everyone; the symbol differs as well.
COLOURS = (
    "#56b4e9", "#e69f00", "#009e73", "#f0e442", "#cc79a7", "#0072b2", "#d55e00",
)  # fmt: skip
SYMBOLS = (
    "disc", "diamond", "square", "triangle_up", "cross", "star", "triangle_down",
)  # fmt: skip
# The same shapes as characters, for tables.
MARKS = dict(zip(SYMBOLS, "●◆■▲✚★▼", strict=True))

# A best match this little above the next one is worth a doubt.
CLEAR_MARGIN = 0.02

COLUMNS = (
    "number", "name", "kind", "scan", "z_mm", "y_mm", "x_mm", "similarity", "margin",
)  # fmt: skip


@dataclass
class Answer:
    """Where a pin's query was found in a scan.

    Attributes:
        scan: Name of the scan.
        mm: Best match, true mm (z, y, x).
        similarity: Cosine there.
        margin: How far that is above the best place further than 20 mm away.
        whole: The map (d, h, w) of all cells.
    """

    scan: str
    mm: Triple
    similarity: float
    margin: float
    whole: NDArray[np.float32] | None = None

    @property
    def is_clear(self) -> bool:
        """Whether no place further away is nearly as similar."""
        return self.margin >= CLEAR_MARGIN


@dataclass
class Pin:
    """A pinned query.

    Attributes:
        number: Counts from 1, never given twice.
        name: Given by the user.
        scan_key: Which open scan it lies in.
        scan: Name of that scan.
        mm: True mm (z, y, x), LPS.
        query: (E,) float32 of unit norm.
        encoder: Which encoder made the query.
        visible: Whether its points are shown.
        answers: Scan key -> where it was found there.
    """

    number: int
    name: str
    scan_key: str
    scan: str
    mm: Triple
    query: NDArray[np.float32]
    encoder: str = ""
    visible: bool = True
    answers: dict[str, Answer] = field(default_factory=dict)

    @property
    def colour(self) -> str:
        """Of its points, ``#rrggbb``."""
        return COLOURS[(self.number - 1) % len(COLOURS)]

    @property
    def symbol(self) -> str:
        """Of its points, a napari symbol."""
        return SYMBOLS[(self.number - 1) % len(SYMBOLS)]

    @property
    def mark(self) -> str:
        """Number and symbol as text: told without colour."""
        return f"{MARKS[self.symbol]} {self.number}"


class Pins:
    """All pinned queries, and the one whose map is shown."""

    def __init__(self) -> None:
        self._pins: dict[int, Pin] = {}
        self._next = 1
        self.chosen: int | None = None

    def __iter__(self) -> Iterator[Pin]:
        return iter(self._pins.values())

    def __len__(self) -> int:
        return len(self._pins)

    def get(self, number: int | None) -> Pin | None:
        """A pin by its number."""
        return None if number is None else self._pins.get(number)

    @property
    def current(self) -> Pin | None:
        """The chosen pin."""
        return self.get(self.chosen)

    def add(
        self,
        scan_key: str,
        scan: str,
        mm: Triple,
        query: NDArray[np.float32],
        encoder: str = "",
        name: str = "",
    ) -> Pin:
        """Pin a query; it becomes the chosen one."""
        number, self._next = self._next, self._next + 1
        pin = Pin(number, name or f"place {number}", scan_key, scan, mm, query, encoder)
        self._pins[number] = pin
        self.chosen = number
        return pin

    def rename(self, number: int, name: str) -> str:
        """Give a pin a name; an empty one changes nothing. Returns the name it has."""
        pin = self._pins[number]
        pin.name = " ".join(name.split()) or pin.name
        return pin.name

    def delete(self, number: int) -> None:
        """Forget a pin; its neighbour becomes the chosen one."""
        numbers = list(self._pins)
        place = numbers.index(number)
        del self._pins[number]
        if self.chosen == number:
            left = list(self._pins)
            self.chosen = left[min(place, len(left) - 1)] if left else None

    def forget_answers(self, scan_key: str | None = None) -> None:
        """Of one scan, or all; whole maps hold memory."""
        for pin in self:
            if scan_key is None:
                pin.answers.clear()
            else:
                pin.answers.pop(scan_key, None)

    def requery(
        self, look: Callable[[Pin], NDArray[np.float32] | None], encoder: str
    ) -> None:
        """Another encoder: ask anew at the same places; what cannot be asked rests."""
        for pin in self:
            if pin.encoder == encoder:
                continue
            query = look(pin)
            if query is not None:
                pin.query, pin.encoder = query, encoder
                pin.answers.clear()

    def rows(self) -> list[dict[str, Any]]:
        """One row per pinned place and per match, as exported."""
        found = []
        for pin in self:
            found.append(_row(pin, "query", pin.scan, pin.mm, None))
            found += [
                _row(pin, "match", a.scan, a.mm, a)
                for key, a in pin.answers.items()
                if key != pin.scan_key
            ]
        return found


def _row(
    pin: Pin, kind: str, scan: str, mm: Triple, answer: Answer | None
) -> dict[str, Any]:
    z, y, x = (round(float(v), 3) for v in mm)
    return {
        "number": pin.number, "name": pin.name, "kind": kind, "scan": scan,
        "z_mm": z, "y_mm": y, "x_mm": x,
        "similarity": None if answer is None else round(answer.similarity, 4),
        "margin": None if answer is None else round(answer.margin, 4),
    }  # fmt: skip


def export_pins(pins: Pins, path: Path, encoder: str = "") -> None:
    """Write all places and matches as CSV or JSON, by suffix; coordinates are LPS mm.

    The CSV is also read by ``homolog match --points``.
    """
    rows = pins.rows()
    if path.suffix.lower() == ".json":
        content = {
            "format": 1,
            "coordinates": "world millimetres, LPS: left, posterior, superior positive",
            "encoder": encoder,
            "points": rows,
        }
        write_json(path, content)
        return
    lines = ({**row, "coordinates": "LPS"} for row in rows)
    write_table(path, [*COLUMNS, "coordinates"], lines)
