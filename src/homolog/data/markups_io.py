"""Points and landmarks as 3D Slicer keeps them: ``.mrk.json``.

Source: markups-schema v1.0.3 of 3D Slicer. Positions stand in the file as x, y, z.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from homolog.data.landmarks import NAN, Coordinates, Landmark, turned
from homolog.data.points_io import write_text
from homolog.data.volume import Points
from homolog.errors import UnusableInput
from homolog.geometry.affine import Triple
from homolog.geometry.places import named_numbers, place_text

SUFFIX = ".mrk.json"

_SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/"
    "Resources/Schema/markups-schema-v1.0.3.json#"
)
# Files of Slicer 4.11 number them.
_SYSTEMS = {"LPS": "LPS", "RAS": "RAS", "0": "RAS", "1": "LPS"}
# What we write into the description of a point, and find there again.
_A = re.compile(r"A at (x [^,;]+, y [^,;]+, z [^,;]+ mm \(LPS\))")
# So it was written until version 0.1.
_A_BEFORE = re.compile(r"A at z, y, x = (\S+), (\S+), (\S+) mm LPS")
_NUMBERS = {
    "similarity": re.compile(r"similarity (\S+?)[,;]"),
    "margin": re.compile(r"margin (\S+?)[,;]"),
    "cycle_mm": re.compile(r"cycle error (\S+) mm"),
    "stray_mm": re.compile(r"astray (\S+) mm"),
}
_REASON = re.compile(r"; refused: (.*)$")


def write_markups(
    points: Points, path: Path, *, coordinates: Coordinates = "LPS"
) -> None:
    """Named points as a Slicer fiducial list."""
    names = points.names or tuple(f"point_{i + 1}" for i in range(len(points.mm)))
    entries = [
        _entry(number, name, (float(mm[0]), float(mm[1]), float(mm[2])), coordinates)
        for number, (name, mm) in enumerate(zip(names, points.mm, strict=True), start=1)
    ]
    _write(entries, path, coordinates)


def write_landmark_markups(
    landmarks: Sequence[Landmark], path: Path, *, coordinates: Coordinates = "LPS"
) -> None:
    """The places in B as a Slicer fiducial list.

    ``selected`` is whether a match was accepted, ``description`` tells its figures; a
    landmark without a place in B stands there with the position status "undefined".
    """
    entries = [
        _entry(
            mark.id, mark.name, mark.b_mm, coordinates,
            selected=mark.accepted, description=_describe(mark),
        )
        for mark in landmarks
    ]  # fmt: skip
    _write(entries, path, coordinates)


def read_markups(path: Path) -> Points:
    """Points of a Slicer fiducial list, LPS z, y, x; undefined ones are passed over.

    Raises:
        UnusableInput: No such file, or not a list of points.
    """
    found = [e for e in _read(Path(path)) if e["mm"] is not None]
    mm = np.array([e["mm"] for e in found], np.float64).reshape(-1, 3)
    return Points(mm, tuple(e["label"] for e in found))


def read_landmark_markups(path: Path) -> list[Landmark]:
    """Inverse of write_landmark_markups; its numbers to the digits written there.

    Raises:
        UnusableInput: No such file, not a list of points, or a point whose description
            does not tell its place in A.
    """
    return [
        _landmark(number, entry, Path(path))
        for number, entry in enumerate(_read(Path(path)), start=1)
    ]


def _entry(
    number: int,
    name: str,
    mm: Triple | None,
    coordinates: Coordinates,
    *,
    selected: bool = True,
    description: str = "",
) -> dict[str, Any]:
    z, y, x = (0.0, 0.0, 0.0) if mm is None else turned(mm, coordinates)
    # Slicer keeps the orientation as the columns' axes in the file's own coordinates.
    sign = -1.0 if coordinates == "LPS" else 1.0
    return {
        "id": str(number),
        "label": name,
        "description": description,
        "associatedNodeID": "",
        "position": [x, y, z],
        "orientation": [sign, 0.0, 0.0, 0.0, sign, 0.0, 0.0, 0.0, 1.0],
        "selected": selected,
        "locked": False,
        "visibility": True,
        "positionStatus": "undefined" if mm is None else "defined",
    }


def _write(entries: list[dict[str, Any]], path: Path, coordinates: Coordinates) -> None:
    document = {
        "@schema": _SCHEMA,
        "markups": [
            {
                "type": "Fiducial",
                "coordinateSystem": coordinates,
                "coordinateUnits": "mm",
                "locked": False,
                "fixedNumberOfControlPoints": False,
                "labelFormat": "%N-%d",
                "lastUsedControlPointNumber": len(entries),
                "controlPoints": entries,
            }
        ],
    }
    write_text(Path(path), json.dumps(document, indent=1) + "\n")


def _describe(mark: Landmark) -> str:
    text = (
        f"similarity {mark.similarity:.4f}, margin {mark.margin:.4f}, cycle error "
        f"{mark.cycle_mm:.2f} mm, astray {mark.stray_mm:.2f} mm; "
        f"A at {place_text(mark.a_mm, None)}"
    )
    if mark.manual:
        text += "; set by hand"
    return text + (f"; refused: {mark.reason}" if mark.reason else "")


def _read(path: Path) -> list[dict[str, Any]]:
    """Label, id, selected, description and LPS position (or None) of each point."""
    if not path.is_file():
        raise UnusableInput(f"there is no list of points {path}.")
    try:
        markups = json.loads(path.read_text(encoding="utf-8"))["markups"]
        entries: list[dict[str, Any]] = []
        for markup in markups:
            system = _SYSTEMS[str(markup.get("coordinateSystem", "LPS")).upper()]
            for point in markup.get("controlPoints") or ():
                entries.append(_parsed(point, system, len(entries) + 1))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnusableInput(
            f"{path} is not a list of points of 3D Slicer (markups with "
            f"controlPoints in LPS or RAS were expected): {error!r}."
        ) from None
    return entries


def _parsed(point: Mapping[str, Any], system: str, number: int) -> dict[str, Any]:
    defined = point.get("positionStatus", "defined") != "undefined"
    mm: Triple | None = None
    if defined:
        x, y, z = (float(v) for v in point["position"])
        if not np.isfinite((x, y, z)).all():
            raise ValueError(f"position {x}, {y}, {z} of point {number}")
        mm = turned((z, y, x), "RAS" if system == "RAS" else "LPS")
    return {
        "id": point.get("id", number),
        "label": str(point.get("label") or f"point_{number}"),
        "mm": mm,
        "selected": bool(point.get("selected", True)),
        "description": str(point.get("description") or ""),
    }


def _landmark(number: int, entry: Mapping[str, Any], path: Path) -> Landmark:
    text = entry["description"]
    reason = _REASON.search(text)
    try:
        a_mm = _place_in_a(text)
        numbers = {
            name: float(hit.group(1)) if (hit := pattern.search(text)) else NAN
            for name, pattern in _NUMBERS.items()
        }
    except ValueError as error:
        raise UnusableInput(
            f"{path}: point {number} was not written by homolog match: {error}."
        ) from None
    own = str(entry["id"])
    return Landmark(
        id=int(own) if own.isdecimal() else number,
        name=entry["label"],
        a_mm=a_mm,
        b_mm=entry["mm"],
        **numbers,
        accepted=entry["selected"],
        reason=reason.group(1) if reason else "",
        manual="; set by hand" in text,
    )


def _place_in_a(text: str) -> Triple:
    """The place in A (z, y, x) that a description tells.

    Raises:
        ValueError: It tells none.
    """
    now, before = _A.search(text), _A_BEFORE.search(text)
    found = None if now is None else named_numbers(now.group(1))
    if before is not None:
        z, y, x = (float(v) for v in before.groups())
        found = z, y, x
    if found is None:
        raise ValueError("no place in A")
    return found
