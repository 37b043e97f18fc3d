"""Named points of a scan, landmarks (a point and where it lies in another scan), files.

Points are kept as tables (``.csv``), JSON or fiducial lists of 3D Slicer
(``.mrk.json``); lists of its older versions (``.fcsv``), its tables and napari's points
are read. They come out in world millimetres, LPS, z, y, x, whatever a file has.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import numpy as np

from homolog.errors import UnusableInput
from homolog.geometry.affine import Affine, Triple
from homolog.geometry.places import named_numbers, place_text
from homolog.json_files import OTHER_SHAPE, parsed, read_object
from homolog.scans.volume import Points
from homolog.words import as_csv, cell_text
from homolog.writing import write_json, write_table, write_text

Coordinates: TypeAlias = Literal["LPS", "RAS"]

NAN = float("nan")
SUFFIX = ".mrk.json"
_AXES = ("z", "y", "x")
_MM = tuple(f"{axis}_mm" for axis in _AXES)
_A = tuple(f"a_{axis}_mm" for axis in _AXES)
_B = tuple(f"b_{axis}_mm" for axis in _AXES)
_VOXEL = tuple(f"b_voxel_{axis}" for axis in _AXES)
_POINT_VOXEL = tuple(f"voxel_{axis}" for axis in _AXES)
_NUMBERS = ("similarity", "margin", "cycle_mm", "stray_mm")
POINT_COLUMNS = ("name", *_MM)
COLUMNS = (
    "id", "name", *_A, *_B, *_VOXEL, *_NUMBERS, "accepted", "reason", "manual",
    "coordinates",
)  # fmt: skip
_NAMES = ("name", "label", "id")
# napari's own table of a points layer; 3D Slicer's "export to table".
_NAPARI = ("axis-0", "axis-1", "axis-2")
_SLICER = {"RAS": ("s", "a", "r"), "LPS": ("s", "p", "l")}
# What stands for a point that was not found.
_ABSENT = {"missing", "undefined", "unset", "preview", "not found"}
_TEXTS = (*_NAMES, "reason")


@dataclass(frozen=True)
class Landmark:
    """A point of scan A and its match in scan B. Positions are LPS z, y, x.

    Attributes:
        id: Number, unique in its list.
        name: For people.
        a_mm: World position in A.
        b_mm: World position in B; None where there is no match.
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


def write_points(points: Points, path: Path) -> None:
    """Named points as CSV: ``name, z_mm, y_mm, x_mm``, world mm, LPS."""
    names = points.names or tuple(f"point_{i + 1}" for i in range(len(points.mm)))
    rows = [
        [name, *(f"{v:.6f}" for v in row)]
        for name, row in zip(names, points.mm, strict=True)
    ]
    write_text(path, as_csv(POINT_COLUMNS, rows))


def read_points(path: Path) -> Points:
    """Inverse of write_points; other columns are passed over.

    Of a table of matches (see write_landmarks) it gives the places in B.

    Raises:
        UnusableInput: No such file, a missing column or a value that is no number.
    """
    path = Path(path)
    if not path.is_file():
        raise UnusableInput(f"there is no table of points {path}.")
    columns, rows = _table(path)
    chosen, numbered = _MM, list(enumerate(rows, start=1))
    if set(columns).issuperset(_B) and not set(columns).issuperset(_MM):
        chosen = _B
        numbered = [(n, row) for n, row in numbered if any(row[c] for c in _B)]
    missing = [c for c in chosen if c not in columns]
    if missing:
        raise UnusableInput(
            f"{path} must have the columns {', '.join(POINT_COLUMNS)}; "
            f"{missing[0]} is missing."
        )
    return _points(numbered, chosen, path, names=("name",))


def read_landmark_points(
    path: Path,
    *,
    coordinates: Literal["LPS", "RAS", "voxel"] | None = None,
    affine: Affine | None = None,
) -> Points:
    """Named points of a ``.csv``, ``.tsv``, ``.json``, ``.mrk.json`` or ``.fcsv``.

    Points whose ``status`` (or ``defined``, ``positionStatus``) says that they are
    missing are passed over. Of napari's tables the axes are those of the file's voxels.

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
    if name.endswith(".fcsv"):
        return _old_markups(path, coordinates)
    if name.endswith((".csv", ".tsv")):
        columns, rows = _table(path)
        columns, rows = _known_table(columns, [r for r in rows if _is_there(r)])
        return _chosen_points(rows, columns, coordinates, affine, path)
    if name.endswith(".json"):
        return _json_points(path, coordinates, affine)
    raise UnusableInput(
        f"points are read from .csv, .tsv, .json, .fcsv and {SUFFIX} files, got {path}."
    )


def _table(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns and rows of a CSV file; names as they were before they became cells."""
    text = _text_of(path)
    first = text.splitlines()[0] if text.strip() else ""
    reader = csv.DictReader(
        io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count)
    )
    try:
        columns = [c.strip() for c in reader.fieldnames or ()]
        reader.fieldnames = columns
        rows = [
            {k: cell_text(v) if v and k in _TEXTS else v for k, v in row.items()}
            for row in reader
        ]
    except csv.Error as error:
        raise UnusableInput(f"{path} cannot be read as a table ({error}).") from None
    return columns, rows


def _text_of(path: Path) -> str:
    """A table's text; not every program writes UTF-8."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")


def _is_there(row: Mapping[str, Any]) -> bool:
    """Whether a row does not say that its point is missing."""
    said = [row.get(k) for k in ("status", "positionStatus", "position_status")]
    if any(str(s or "").strip().lower() in _ABSENT for s in said):
        return False
    defined = str(row.get("defined", "")).strip().lower()
    return defined not in ("0", "false", "no")


def _known_table(
    columns: list[str], rows: list[dict[str, Any]]
) -> tuple[list[str], list[dict[str, Any]]]:
    """Tables of napari and 3D Slicer with our names of columns; others as they are."""
    known = set(columns)
    if known.issuperset(_NAPARI[:2]) and not known & {*_MM, *_AXES}:
        axes = [c for c in _NAPARI if c in known]
        names = dict(zip(_POINT_VOXEL[3 - len(axes) :], axes, strict=True))
        rows = [
            {**r, "voxel_z": 0, **{n: r[c] for n, c in names.items()}} for r in rows
        ]
        return [*columns, *_POINT_VOXEL], rows
    for system, letters in _SLICER.items():
        if known.issuperset(letters) and not known & {*_MM, *_AXES}:
            names = dict(zip(_MM, letters, strict=True))
            own = {"coordinates": system}
            rows = [{**r, **own, **{n: r[c] for n, c in names.items()}} for r in rows]
            return [*columns, *_MM, "coordinates"], rows
    return columns, rows


def _old_markups(path: Path, coordinates: str | None) -> Points:
    """Points of a fiducial list of 3D Slicer 4 (``.fcsv``).

    Its comments state the coordinates: RAS or 0 in lists of 4.10 and before.
    """
    if coordinates == "voxel":
        raise UnusableInput(f"{path} holds millimetres, but was to be read as voxels.")
    text = _text_of(path)
    comments = [s.lstrip("# ") for s in text.splitlines() if s.startswith("#")]
    told = dict(s.partition("=")[::2] for s in comments if "=" in s)
    told = {k.strip().lower(): v.strip() for k, v in told.items()}
    columns = [c.strip() for c in told.get("columns", "id,x,y,z").split(",")]
    system = _SYSTEMS.get(told.get("coordinatesystem", "RAS").upper())
    if system is None or not {"x", "y", "z"} <= set(columns):
        raise UnusableInput(
            f"{path} is not a list of points of 3D Slicer: columns x, y, z in LPS or "
            f"RAS were expected, got {told.get('columns')} in "
            f"{told.get('coordinatesystem')}."
        )
    lines = [s for s in text.splitlines() if s.strip() and not s.startswith("#")]
    try:
        rows = [dict(zip(columns, cells, strict=False)) for cells in csv.reader(lines)]
    except csv.Error as error:
        raise UnusableInput(f"{path} cannot be read as a table ({error}).") from None
    points = [
        {
            "name": r.get("label") or r.get("id"), "coordinates": system,
            **{mm: r.get(axis) for mm, axis in zip(_MM, _AXES, strict=True)},
        }
        for r in rows
    ]  # fmt: skip
    return _points(enumerate(points, start=1), _MM, path, names=("name",))


def _markups(path: Path, coordinates: str | None) -> Points:
    if coordinates == "voxel":
        raise UnusableInput(f"{path} holds millimetres, but was to be read as voxels.")
    return read_markups(path)  # the file states its coordinates; they are obeyed


def _json_points(path: Path, coordinates: str | None, affine: Affine | None) -> Points:
    try:
        document = parsed(path.read_bytes())
    except ValueError as error:
        raise UnusableInput(f"{path} is not JSON: {error}.") from None
    written = None
    if isinstance(document, dict):
        if "markups" in document:
            return _markups(path, coordinates)
        written = document.get("coordinates")
        document = document.get("points", document.get("landmarks"))
    if not isinstance(document, list) or not all(
        isinstance(row, dict) for row in document
    ):
        raise UnusableInput(f"{path} must hold a list of points, one object each.")
    rows = [{"coordinates": written, **row} for row in document if _is_there(row)]
    columns = [c for c in rows[0] if rows[0][c] is not None] if rows else list(_MM)
    return _chosen_points(rows, columns, coordinates, affine, path)


def _chosen_points(
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
    kind = None if coordinates == "voxel" else coordinates
    numbered = enumerate(rows, start=1)
    return _points(numbered, chosen, path, kind, affine if voxel else None)


def _points(
    rows: Iterable[tuple[int, Mapping[str, Any]]],
    columns: Sequence[str],
    path: Path,
    coordinates: str | None = None,
    voxel_to_mm: Affine | None = None,
    names: Sequence[str] = _NAMES,
) -> Points:
    """Points of numbered rows.

    Args:
        rows: Number (for sentences and for points without a name) and row.
        columns: Of the numbers, z first.
        path: The file, for sentences.
        coordinates: Of millimetres: what a row must state, if it states any.
        voxel_to_mm: Given where the numbers are voxel indices.
        names: Columns of the name, the first that holds one counts.
    """
    called, places = [], []
    for number, row in rows:
        try:
            place = np.array([float(row[c]) for c in columns])
        except OTHER_SHAPE:
            place = np.full(3, np.nan)
        if not np.isfinite(place).all():
            raise UnusableInput(
                f"{path}: point {number} needs three numbers, got "
                f"{[row.get(c) for c in columns]}."
            )
        if voxel_to_mm is not None:
            place = voxel_to_mm.apply(place)
        elif stated(row.get("coordinates"), coordinates, path) == "RAS":
            place = place * (1.0, -1.0, -1.0)
        places.append(place)
        called.append(
            next((str(row[n]) for n in names if row.get(n)), f"point_{number}")
        )
    return Points(np.array(places, np.float64).reshape(-1, 3), tuple(called))


def _columns(
    columns: Sequence[str], coordinates: str | None, path: Path
) -> tuple[tuple[str, ...], bool]:
    """The three columns that are read, z first, and whether they are voxel indices."""
    known = set(columns)
    if coordinates != "voxel":
        for choice in (_MM, _A):
            if known.issuperset(choice):
                return choice, False
    if coordinates in (None, "voxel"):
        for choice in (_POINT_VOXEL, _AXES):
            if known.issuperset(choice):
                return choice, True
    wanted = "z, y, x" if coordinates == "voxel" else "z_mm, y_mm, x_mm"
    raise UnusableInput(
        f"{path} must have the columns {wanted} (or see the help), got "
        f"{', '.join(columns) or 'none'}."
    )


def stated(written: Any, wanted: str | None, path: Path) -> Coordinates:
    """The coordinates of a file: what it states, else what is wanted, else LPS.

    Raises:
        UnusableInput: It states neither LPS nor RAS, or not what is wanted.
    """
    if not written:
        kind = wanted or "LPS"
    else:
        kind = str(written).strip().upper()
        if wanted is not None and kind != wanted:
            raise UnusableInput(
                f"{path} states {kind} coordinates, but was to be read as {wanted}."
            )
    if kind not in ("LPS", "RAS"):
        raise UnusableInput(f"{path}: coordinates must be LPS or RAS, got {kind!r}.")
    return cast("Coordinates", kind)


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
        write_json(path, document)
    elif path.suffix.lower() == ".csv":
        texts = ({k: _text(v) for k, v in row.items()} for row in rows)
        write_table(path, COLUMNS, texts)
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
        coordinates: What a file is in that does not state it; LPS if None.

    Raises:
        UnusableInput: No such file, not a table of landmarks, or a file that states
            other coordinates than requested.
    """
    path = Path(path)
    rows = _json_rows(path) if path.suffix.lower() == ".json" else _csv_rows(path)
    found = []
    for number, row in enumerate(rows, start=1):
        kind = stated(row.get("coordinates"), coordinates, path)
        try:
            found.append(_landmark(row, kind))
        except OTHER_SHAPE as error:
            raise UnusableInput(
                f"{path}: landmark {number} needs an id, a name and numbers, "
                f"got {error}."
            ) from None
    return found


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
    columns, rows = _table(path)
    missing = [c for c in ("id", "name", *_A) if c not in columns]
    if missing:
        raise UnusableInput(
            f"{path} is not a table of landmarks: the column {missing[0]} is missing."
        )
    return rows


def _json_rows(path: Path) -> list[dict[str, Any]]:
    _there(path)
    try:
        document = read_object(path, {"landmarks": list[dict[str, Any]]})
    except UnusableInput:
        raise UnusableInput(
            f"{path} is not a table of landmarks: a JSON object with a list "
            "'landmarks' was expected."
        ) from None
    written = document.get("coordinates")
    return [{**row, "coordinates": written} for row in document["landmarks"]]


def _there(path: Path) -> None:
    if not path.is_file():
        raise UnusableInput(f"there is no table of landmarks {path}.")


# 3D Slicer's fiducial lists. Source: markups-schema v1.0.3. Positions are x, y, z.
_SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/"
    "Resources/Schema/markups-schema-v1.0.3.json#"
)
# Files of Slicer 4.11 number them.
_SYSTEMS = {"LPS": "LPS", "RAS": "RAS", "0": "RAS", "1": "LPS"}
# What we write into the description of a point, and read back.
_A_TEXT = re.compile(r"A at (x [^,;]+, y [^,;]+, z [^,;]+ mm \(LPS\))")
# So it was written until version 0.1.
_A_TEXT_BEFORE = re.compile(r"A at z, y, x = (\S+), (\S+), (\S+) mm LPS")
_NUMBER_TEXTS = {
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

    ``selected`` is whether a match was accepted, ``description`` holds its figures; a
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
            does not hold its place in A.
    """
    return [
        _landmark_of_entry(number, entry, Path(path))
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
    write_json(Path(path), document)


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
        markups = read_object(path, {"markups": list[dict[str, Any]]})["markups"]
        entries: list[dict[str, Any]] = []
        for markup in markups:
            system = _SYSTEMS[str(markup.get("coordinateSystem", "LPS")).upper()]
            for point in markup.get("controlPoints") or ():
                entries.append(_parsed(point, system, len(entries) + 1))
    except (OSError, *OTHER_SHAPE) as error:
        raise UnusableInput(
            f"{path} is not a list of points of 3D Slicer (markups with "
            f"controlPoints in LPS or RAS were expected): {error!r}."
        ) from None
    return entries


def _parsed(point: Mapping[str, Any], system: str, number: int) -> dict[str, Any]:
    defined = point.get("positionStatus", "defined") not in _ABSENT
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


def _landmark_of_entry(number: int, entry: Mapping[str, Any], path: Path) -> Landmark:
    text = entry["description"]
    reason = _REASON.search(text)
    try:
        a_mm = _place_in_a(text)
        numbers = {
            name: float(hit.group(1)) if (hit := pattern.search(text)) else NAN
            for name, pattern in _NUMBER_TEXTS.items()
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
    """The place in A (z, y, x) that a description holds.

    Raises:
        ValueError: It holds none.
    """
    now, before = _A_TEXT.search(text), _A_TEXT_BEFORE.search(text)
    found = None if now is None else named_numbers(now.group(1))
    if before is not None:
        z, y, x = (float(v) for v in before.groups())
        found = z, y, x
    if found is None:
        raise ValueError("no place in A")
    return found
