"""Named points in world millimetres, as a table every spreadsheet opens."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import numpy as np

from homolog.data.leftovers import beside
from homolog.data.volume import Points
from homolog.errors import UnusableInput
from homolog.private_files import create, make_private
from homolog.safe_text import UnixRows, cell, cell_text

POINT_COLUMNS = ("name", "z_mm", "y_mm", "x_mm")
_MATCHED = ("b_z_mm", "b_y_mm", "b_x_mm")


def write_points(points: Points, path: Path) -> None:
    """Named points as CSV: ``name, z_mm, y_mm, x_mm``, world mm, LPS."""
    text = io.StringIO()
    writer = csv.writer(UnixRows(text), lineterminator="\r\n")
    writer.writerow(POINT_COLUMNS)
    names = points.names or tuple(f"point_{i + 1}" for i in range(len(points.mm)))
    for name, row in zip(names, points.mm, strict=True):
        writer.writerow([cell(name), *(f"{v:.6f}" for v in row)])
    write_text(path, text.getvalue())


def read_points(path: Path) -> Points:
    """Inverse of write_points; other columns are passed over.

    Of a table of matches (homolog.data.landmarks) it gives the places found in B.

    Raises:
        UnusableInput: No such file, a missing column or a value that is no number.
    """
    path = Path(path)
    if not path.is_file():
        raise UnusableInput(f"there is no table of points {path}.")
    with path.open(newline="", encoding="utf-8-sig") as handle:
        reader = csv.DictReader(handle)
        known = reader.fieldnames or ()
        columns = POINT_COLUMNS[1:]
        if set(known).issuperset(_MATCHED) and not set(known).issuperset(columns):
            columns = _MATCHED
        missing = [c for c in columns if c not in known]
        if missing:
            raise UnusableInput(
                f"{path} must have the columns {', '.join(POINT_COLUMNS)}; "
                f"{missing[0]} is missing."
            )
        rows = list(reader)
    names, places = [], []
    for number, row in enumerate(rows, start=1):
        if columns is _MATCHED and not any(row[c] for c in columns):
            continue  # nothing was found
        try:
            z, y, x = (float(row[c]) for c in columns)
        except (TypeError, ValueError):
            raise UnusableInput(
                f"{path}: point {number} needs three numbers, got "
                f"{[row[c] for c in columns]}."
            ) from None
        ras = row.get("coordinates") == "RAS"
        places.append([z, -y, -x] if ras else [z, y, x])
        names.append(cell_text(row.get("name") or "") or f"point_{number}")
    return Points(np.array(places, dtype=np.float64).reshape(-1, 3), tuple(names))


def write_text(path: Path, text: str) -> None:
    """Write a text file at once: a reader sees the old one or the whole new one."""
    half = beside(path)
    try:
        create(half)
        with half.open("w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        make_private(half, path)
        os.replace(half, path)
    finally:
        half.unlink(missing_ok=True)
