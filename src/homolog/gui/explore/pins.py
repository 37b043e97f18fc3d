"""Pinned queries: a place of a scan, what it looks like, and where else it was found.

No Qt, no napari. Places are true millimetres (z, y, x) of LPS.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.data.points_io import write_text
from homolog.geometry.affine import Triple
from homolog.safe_text import UnixRows, cell_row

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
        write_text(path, json.dumps(content, indent=1) + "\n")
        return
    text = io.StringIO()
    writer = csv.DictWriter(
        UnixRows(text), [*COLUMNS, "coordinates"], lineterminator="\r\n", restval="LPS"
    )
    writer.writeheader()
    writer.writerows(cell_row(row) for row in rows)
    write_text(path, text.getvalue())
