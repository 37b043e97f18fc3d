"""Landmarks of one scan with the places where they were found in another."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

from homolog.data.points_io import write_text
from homolog.errors import UnusableInput
from homolog.geometry.affine import Affine, Triple
from homolog.safe_text import UnixRows, cell_row, cell_text

Coordinates: TypeAlias = Literal["LPS", "RAS"]

NAN = float("nan")
_AXES = ("z", "y", "x")
_A = tuple(f"a_{axis}_mm" for axis in _AXES)
_B = tuple(f"b_{axis}_mm" for axis in _AXES)
_VOXEL = tuple(f"b_voxel_{axis}" for axis in _AXES)
_NUMBERS = ("similarity", "margin", "cycle_mm", "stray_mm")
COLUMNS = (
    "id", "name", *_A, *_B, *_VOXEL, *_NUMBERS, "accepted", "reason", "manual",
    "coordinates",
)  # fmt: skip


@dataclass(frozen=True)
class Landmark:
    """A point of scan A and where it was found in scan B. Positions are LPS z, y, x.

    Attributes:
        id: Number, unique in its list.
        name: For people.
        a_mm: World position in A.
        b_mm: World position in B; None where nothing was found.
        similarity: Cosine of both features, -1..1; NaN where unknown.
        margin: How far that is above the second-best place; NaN where unknown.
        cycle_mm: How far from ``a_mm`` the match leads when it is searched for in A;
            NaN where unknown.
        accepted: Whether the match is believed.
        reason: Why not, in one short sentence; empty when accepted.
        manual: Whether a person set or corrected it.
        stray_mm: How far ``b_mm`` lies from where the matches of places all over A put
            the point; NaN where unknown.
    """

    id: int
    name: str
    a_mm: Triple
    b_mm: Triple | None
    similarity: float
    margin: float
    cycle_mm: float
    accepted: bool
    reason: str = ""
    manual: bool = False
    stray_mm: float = NAN


def turned(mm: Triple, coordinates: Coordinates) -> Triple:
    """A position (z, y, x) from LPS to the coordinates named, and back."""
    z, y, x = mm
    return (z, -y, -x) if coordinates == "RAS" else (z, y, x)


def landmark_rows(
    landmarks: Sequence[Landmark],
    *,
    coordinates: Coordinates = "LPS",
    affine_b: Affine | None = None,
) -> list[dict[str, Any]]:
    """One dict per landmark, keys COLUMNS, JSON types; None where unknown.

    Args:
        landmarks: In LPS.
        coordinates: What the rows are written in.
        affine_b: Voxel -> world of scan B; without it the voxel columns are None.
    """
    return [_row(mark, coordinates, affine_b) for mark in landmarks]


def write_landmarks(
    landmarks: Sequence[Landmark],
    path: Path,
    *,
    coordinates: Coordinates = "LPS",
    affine_b: Affine | None = None,
) -> None:
    """A table of landmarks, ``.json`` or ``.csv`` by the name's ending.

    The column (or JSON field) ``coordinates`` states LPS or RAS. Voxel indices of B
    are for people and are not read back.

    Raises:
        UnusableInput: Another ending.
    """
    path = Path(path)
    rows = landmark_rows(landmarks, coordinates=coordinates, affine_b=affine_b)
    if path.suffix.lower() == ".json":
        plain = [{k: v for k, v in row.items() if k != "coordinates"} for row in rows]
        document = {"coordinates": coordinates, "unit": "mm", "landmarks": plain}
        write_text(path, json.dumps(document, indent=1) + "\n")
    elif path.suffix.lower() == ".csv":
        text = io.StringIO()
        writer = csv.DictWriter(UnixRows(text), COLUMNS, lineterminator="\r\n")
        writer.writeheader()
        writer.writerows(
            cell_row({k: _text(v) for k, v in row.items()}) for row in rows
        )
        write_text(path, text.getvalue())
    else:
        raise UnusableInput(
            f"a table of landmarks must end in .csv or .json, got {path}."
        )


def read_landmarks(
    path: Path, *, coordinates: Coordinates | None = None
) -> list[Landmark]:
    """Inverse of write_landmarks; returns LPS whatever the file holds.

    Args:
        path: ``.csv`` or ``.json``.
        coordinates: What a file that does not say it is in; LPS if None.

    Raises:
        UnusableInput: No such file, not a table of landmarks, or a file that states
            other coordinates than were asked for.
    """
    path = Path(path)
    rows = _json_rows(path) if path.suffix.lower() == ".json" else _csv_rows(path)
    found = []
    for number, row in enumerate(rows, start=1):
        kind = stated(row.get("coordinates"), coordinates, path)
        try:
            found.append(_landmark(row, kind))
        except (KeyError, TypeError, ValueError) as error:
            raise UnusableInput(
                f"{path}: landmark {number} needs an id, a name and numbers, "
                f"got {error}."
            ) from None
    return found


def stated(told: Any, asked: str | None, path: Path) -> Coordinates:
    """The coordinates of a file: what it states, else what was asked for, else LPS.

    Raises:
        UnusableInput: It states neither LPS nor RAS, or not what was asked for.
    """
    if not told:
        kind = asked or "LPS"
    else:
        kind = str(told).strip().upper()
        if asked is not None and kind != asked:
            raise UnusableInput(
                f"{path} states {kind} coordinates, but was to be read as {asked}."
            )
    if kind not in ("LPS", "RAS"):
        raise UnusableInput(f"{path}: coordinates must be LPS or RAS, got {kind!r}.")
    return cast("Coordinates", kind)


def _row(
    mark: Landmark, coordinates: Coordinates, affine: Affine | None
) -> dict[str, Any]:
    none = (None, None, None)
    a, b = turned(mark.a_mm, coordinates), none
    voxel: Sequence[float | None] = none
    if mark.b_mm is not None:
        b = turned(mark.b_mm, coordinates)  # type: ignore[assignment]
        if affine is not None:
            voxel = [float(v) for v in affine.inverse().apply(mark.b_mm)]
    return {
        "id": mark.id,
        "name": mark.name,
        **dict(zip(_A, a, strict=True)),
        **dict(zip(_B, b, strict=True)),
        **dict(zip(_VOXEL, voxel, strict=True)),
        **{n: _known(getattr(mark, n)) for n in _NUMBERS},
        "accepted": mark.accepted,
        "reason": mark.reason,
        "manual": mark.manual,
        "coordinates": coordinates,
    }


def _known(value: float) -> float | None:
    return None if isnan(value) else float(value)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float) else str(value)


def _landmark(row: Mapping[str, Any], coordinates: Coordinates) -> Landmark:
    a = [float(row[c]) for c in _A]
    b = [_number(row.get(c)) for c in _B]
    similarity, margin, cycle, stray = (_number(row.get(n)) for n in _NUMBERS)
    return Landmark(
        id=int(row["id"]),
        name=str(row["name"]),
        a_mm=turned((a[0], a[1], a[2]), coordinates),
        b_mm=(
            None
            if any(isnan(v) for v in b)
            else turned((b[0], b[1], b[2]), coordinates)
        ),
        similarity=similarity,
        margin=margin,
        cycle_mm=cycle,
        accepted=_truth(row.get("accepted")),
        reason=str(row.get("reason") or ""),
        manual=_truth(row.get("manual")),
        stray_mm=stray,
    )


def _number(value: Any) -> float:
    return NAN if value in (None, "") else float(value)


def _truth(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value or "").strip().lower()
    if word not in ("", "true", "false", "1", "0", "yes", "no"):
        raise ValueError(f"{value!r} where true or false was expected")
    return word in ("true", "1", "yes")


def _csv_rows(path: Path) -> list[dict[str, Any]]:
    _there(path)
    with path.open(newline="", encoding="utf-8-sig") as handle:
        reader = csv.DictReader(handle)
        missing = [c for c in ("id", "name", *_A) if c not in (reader.fieldnames or ())]
        if missing:
            raise UnusableInput(
                f"{path} is not a table of landmarks: the column {missing[0]} is "
                "missing."
            )
        named = ("id", "name", "reason")
        return [
            {k: cell_text(v) if v and k in named else v for k, v in row.items()}
            for row in reader
        ]


def _json_rows(path: Path) -> list[dict[str, Any]]:
    _there(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        told = document.get("coordinates")
        return [{**row, "coordinates": told} for row in document["landmarks"]]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UnusableInput(
            f"{path} is not a table of landmarks: a JSON object with a list "
            "'landmarks' was expected."
        ) from None


def _there(path: Path) -> None:
    if not path.is_file():
        raise UnusableInput(f"there is no table of landmarks {path}.")
