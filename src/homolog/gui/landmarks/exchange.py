"""Landmarks from files and into files; nothing is ever replaced. No Qt."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from homolog.data.landmark_files import read_landmark_points
from homolog.data.landmarks import (
    NAN,
    Coordinates,
    Landmark,
    read_landmarks,
    write_landmarks,
)
from homolog.data.markups_io import (
    SUFFIX,
    read_landmark_markups,
    write_landmark_markups,
    write_markups,
)
from homolog.data.volume import Points
from homolog.errors import UnusableInput
from homolog.geometry.affine import Affine
from homolog.gui.landmarks.table import SEARCHING

ENDINGS = (SUFFIX, ".csv", ".json")
NO_B = "not searched yet"


def read_marks(path: Path, affine_a: Affine | None) -> list[Landmark]:
    """Landmarks of a file; where it holds points alone, they are places in A.

    Args:
        path: ``.csv``, ``.json`` or ``.mrk.json``.
        affine_a: Voxel -> mm of scan A, for tables of voxel indices.

    Raises:
        UnusableInput: It is none of these; the sentence says why.
    """
    try:
        if path.name.lower().endswith(SUFFIX):
            return read_landmark_markups(path)
        return read_landmarks(path)
    except UnusableInput:
        points = read_landmark_points(path, affine=affine_a)
    names = points.names or tuple(f"point {i + 1}" for i in range(len(points.mm)))
    return [
        Landmark(
            i + 1, name, (float(mm[0]), float(mm[1]), float(mm[2])), None,
            NAN, NAN, NAN, False, SEARCHING,
        )
        for i, (name, mm) in enumerate(zip(names, points.mm, strict=True))
    ]  # fmt: skip


def write_marks(
    marks: list[Landmark],
    path: Path,
    coordinates: Coordinates,
    affine_b: Affine | None = None,
) -> list[Path]:
    """Write landmarks in the format of the file's ending; ``.csv`` where it has none.

    A ``.mrk.json`` becomes two lists, one of each scan, since Slicer shows one scan's
    points per list. A name that is taken gets ``_v2``.

    Returns:
        The files that were written.

    Raises:
        UnusableInput: There is nothing to write.
        OSError: It cannot be written.
    """
    if not marks:
        raise UnusableInput("there are no landmarks to save.")
    stem, ending = split_name(path)
    if ending != SUFFIX:
        free = free_name(path.parent, stem, [ending])[0]
        write_landmarks(marks, free, coordinates=coordinates, affine_b=affine_b)
        return [free]
    in_a, in_b = free_name(path.parent, stem, [f"_A{SUFFIX}", f"_B{SUFFIX}"])
    places = np.array([m.a_mm for m in marks], np.float64)
    names = tuple(m.name for m in marks)
    write_markups(Points(places, names), in_a, coordinates=coordinates)
    write_landmark_markups(marks, in_b, coordinates=coordinates)
    return [in_a, in_b]


def split_name(path: Path) -> tuple[str, str]:
    """Stem and one of ENDINGS; ``.csv`` where the name has another one or none."""
    name = path.name
    for ending in ENDINGS:
        if name.lower().endswith(ending):
            return name[: -len(ending)] or "landmarks", ending
    return name or "landmarks", ".csv"


def free_name(folder: Path, stem: str, endings: list[str]) -> list[Path]:
    """Files of a common stem, none of which is there yet: ``stem``, ``stem_v2`` ..."""
    number = 1
    while True:
        tried = stem if number == 1 else f"{stem}_v{number}"
        found = [folder / f"{tried}{ending}" for ending in endings]
        if not any(p.exists() for p in found):
            return found
        number += 1
