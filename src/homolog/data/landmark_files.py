"""Points of a scan from any file that people keep them in."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from homolog.data.landmarks import stated
from homolog.data.markups_io import SUFFIX, read_markups
from homolog.data.volume import Points
from homolog.errors import UnusableInput
from homolog.geometry.affine import Affine
from homolog.safe_text import cell_text

_AXES = ("z", "y", "x")
_MM = tuple(f"{a}_mm" for a in _AXES)
# A table of matches lists its points of A first.
_MM_OF_A = tuple(f"a_{a}_mm" for a in _AXES)
_VOXEL = tuple(f"voxel_{a}" for a in _AXES)
_NAMES = ("name", "label", "id")


def read_landmark_points(
    path: Path,
    *,
    coordinates: Literal["LPS", "RAS", "voxel"] | None = None,
    affine: Affine | None = None,
) -> Points:
    """Named points of a ``.csv``, ``.json`` or Slicer ``.mrk.json`` file.

    Tables have the columns ``name`` and either ``z_mm, y_mm, x_mm`` (in any order; also
    ``a_z_mm``... of a table of matches) or the voxel indices ``z, y, x`` or
    ``voxel_z``...; JSON is a list of such rows, alone or under ``points`` or
    ``landmarks``. Millimetres are preferred where a table has both.

    Args:
        path: The file.
        coordinates: What the numbers are. None takes what the file states, and LPS
            where it states nothing.
        affine: Voxel -> world mm of the scan; needed for voxel indices.

    Returns:
        World mm (N, 3), z, y, x, LPS.

    Raises:
        UnusableInput: No such file, missing columns, something that is no number, a
            file that states other coordinates, or voxels without an affine.
    """
    path = Path(path)
    if not path.is_file():
        raise UnusableInput(f"there is no list of points {path}.")
    name = path.name.lower()
    if name.endswith(SUFFIX):
        return _markups(path, coordinates)
    if name.endswith(".csv"):
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            columns = [c.strip() for c in reader.fieldnames or ()]
            reader.fieldnames = columns
            rows = [
                {k: cell_text(v) if v and k in _NAMES else v for k, v in row.items()}
                for row in reader
            ]
            return _points(rows, columns, coordinates, affine, path)
    if name.endswith(".json"):
        return _json(path, coordinates, affine)
    raise UnusableInput(
        f"points are read from .csv, .json and {SUFFIX} files, got {path}."
    )


def _markups(path: Path, coordinates: str | None) -> Points:
    if coordinates == "voxel":
        raise UnusableInput(f"{path} holds millimetres, but was to be read as voxels.")
    return read_markups(path)  # the file states its coordinates; they are obeyed


def _json(path: Path, coordinates: str | None, affine: Affine | None) -> Points:
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnusableInput(f"{path} is not JSON: {error}.") from None
    told = None
    if isinstance(document, dict):
        if "markups" in document:
            return _markups(path, coordinates)
        told = document.get("coordinates")
        document = document.get("points", document.get("landmarks"))
    if not isinstance(document, list) or not all(
        isinstance(row, dict) for row in document
    ):
        raise UnusableInput(f"{path} must hold a list of points, one object each.")
    rows = [{"coordinates": told, **row} for row in document]
    columns = [c for c in rows[0] if rows[0][c] is not None] if rows else list(_MM)
    return _points(rows, columns, coordinates, affine, path)


def _points(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    coordinates: str | None,
    affine: Affine | None,
    path: Path,
) -> Points:
    chosen, voxel = _columns(columns, coordinates, path)
    if voxel and affine is None:
        raise UnusableInput(
            f"{path} holds voxel indices; they need the scan they belong to."
        )
    names, places = [], []
    for number, row in enumerate(rows, start=1):
        try:
            place = np.array([float(row[c]) for c in chosen])
        except (KeyError, TypeError, ValueError):
            place = np.full(3, np.nan)
        if not np.isfinite(place).all():
            raise UnusableInput(
                f"{path}: point {number} needs three numbers, got "
                f"{[row.get(c) for c in chosen]}."
            )
        if voxel:
            assert affine is not None
            place = affine.apply(place)
        else:
            asked = None if coordinates == "voxel" else coordinates
            if stated(row.get("coordinates"), asked, path) == "RAS":
                place = place * (1.0, -1.0, -1.0)
        places.append(place)
        named = next((str(row[n]) for n in _NAMES if row.get(n)), f"point_{number}")
        names.append(named)
    return Points(np.array(places, np.float64).reshape(-1, 3), tuple(names))


def _columns(
    columns: Sequence[str], coordinates: str | None, path: Path
) -> tuple[tuple[str, ...], bool]:
    """The three columns that are read, z first, and whether they are voxel indices."""
    known = set(columns)
    if coordinates != "voxel":
        for choice in (_MM, _MM_OF_A):
            if known.issuperset(choice):
                return choice, False
    if coordinates in (None, "voxel"):
        for choice in (_VOXEL, _AXES):
            if known.issuperset(choice):
                return choice, True
    wanted = "z, y, x" if coordinates == "voxel" else "z_mm, y_mm, x_mm"
    raise UnusableInput(
        f"{path} must have the columns {wanted} (or see the help), got "
        f"{', '.join(columns) or 'none'}."
    )
