"""All landmarks of a window as plain JSON types, and back; for the autosave. No Qt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from homolog.data.landmarks import Landmark
from homolog.geometry.affine import Triple
from homolog.gui.landmarks.control import LandmarksControl
from homolog.gui.landmarks.table import LandmarkTable


def kept(control: LandmarksControl) -> list[dict[str, Any]]:
    """An entry per pair of scans that has landmarks."""
    return [
        {"a": a, "b": b, "landmarks": [asdict(mark) for mark in table]}
        for (a, b), table in control.tables.items()
        if len(table)
    ]


def put_back(control: LandmarksControl, entries: Iterable[Mapping[str, Any]]) -> int:
    """Add what ``kept`` gave; they are shown when their scans are A and B again.

    Returns:
        How many landmarks were put back.
    """
    count = 0
    for entry in entries:
        pair = (str(entry["a"]), str(entry["b"]))
        table = control.tables.setdefault(pair, LandmarkTable())
        count += len(table.restore([_mark(m) for m in entry["landmarks"]]))
    return count


def _mark(entry: Mapping[str, Any]) -> Landmark:
    b = entry["b_mm"]
    return Landmark(
        **{
            **entry,
            "a_mm": _triple(entry["a_mm"]),
            "b_mm": None if b is None else _triple(b),
        }
    )


def _triple(values: Iterable[float]) -> Triple:
    z, y, x = (float(v) for v in values)
    return z, y, x
