"""Boxes of a scan and their files: tables, JSON, and regions of 3D Slicer.

A box lies on its scan's own grid and keeps the directions of an oblique one. Files
give its place in world millimetres, LPS, z, y, x; of pictures whose pixels have no
known size only in pixels, which files of 3D Slicer cannot hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from homolog.errors import UnusableInput
from homolog.geometry.affine import Affine, Array, Index, Triple
from homolog.json_files import OTHER_SHAPE, read_object
from homolog.scans.points import SUFFIX
from homolog.writing import write_json, write_table

FORMAT = "homolog.boxes"
# The endings of the two files of a scan.
JSON_SUFFIX = ".boxes.json"
_SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/"
    "Resources/Schema/markups-schema-v1.0.3.json#"
)
_AXES = ("z", "y", "x")
_EDGES = tuple(f"voxel_{end}_{axis}" for end in ("min", "max") for axis in _AXES)
_MM = tuple(f"{axis}_mm" for axis in _AXES)
_SIZES = tuple(f"size_{axis}_mm" for axis in _AXES)
_LARGEST = 1e9  # voxels or mm; no box reaches so far
COLUMNS = ("scan", "label", "score", *_MM, *_SIZES, *_EDGES)


@dataclass(frozen=True, eq=False)
class ScanBox:
    """A box on a scan, whatever it stands for.

    Attributes:
        label: Name of what it holds.
        score: How sure a model is, 0..1; None for one that a person drew.
        low: Edges (z, y, x) in voxels of the scan's own grid; voxel i reaches from i to
            i + 1.
        high: The other edges.
    """

    label: str
    score: float | None
    low: Triple
    high: Triple

    def middle_mm(self, affine: Affine) -> Array:
        """(3,) of a scan with this affine."""
        return affine.apply((np.array(self.low) + np.array(self.high)) / 2 - 0.5)

    def faces_mm(self, affine: Affine) -> Array:
        """(3, 3): row i leads from the middle to that of the face along axis i."""
        half = (np.array(self.high) - np.array(self.low)) / 2
        return np.asarray((affine.matrix[:3, :3] * half).T)

    def size_mm(self, affine: Affine) -> Triple:
        """Sides along the scan's own axes z, y, x."""
        z, y, x = 2 * np.linalg.norm(self.faces_mm(affine), axis=1)
        return float(z), float(y), float(x)


@dataclass(frozen=True, eq=False)
class BoxList:
    """The boxes of one scan.

    Attributes:
        scan: Its name.
        shape: Its voxels (D, H, W).
        boxes: On its own grid.
        affine: Voxel -> world mm; None where pixels have no known size.
    """

    scan: str
    shape: Index
    boxes: tuple[ScanBox, ...]
    affine: Affine | None

    def rows(self) -> list[dict[str, Any]]:
        """A row per box with COLUMNS; without millimetres where none are known."""
        rows = []
        for box in self.boxes:
            score = None if box.score is None else round(box.score, 4)
            row: dict[str, Any] = {
                "scan": self.scan, "label": box.label, "score": score,
            }  # fmt: skip
            if self.affine is not None:
                middle = (round(float(v), 3) for v in box.middle_mm(self.affine))
                sizes = (round(v, 3) for v in box.size_mm(self.affine))
                row |= dict(zip(_MM, middle, strict=True))
                row |= dict(zip(_SIZES, sizes, strict=True))
            edges = (round(float(v), 3) for v in (*box.low, *box.high))
            rows.append({**row, **dict(zip(_EDGES, edges, strict=True))})
        return rows

    def to_dict(self) -> dict[str, Any]:
        """JSON types; ``from_dict`` reads it back."""
        return {
            "format": FORMAT, "coordinates": "LPS", "axes": "z, y, x",
            "scan": self.scan, "shape": list(self.shape),
            "affine": None if self.affine is None else self.affine.to_list(),
            "boxes": [
                {
                    "label": box.label, "score": box.score,
                    "min": list(box.low), "max": list(box.high),
                    **({} if self.affine is None else {
                        "middle_mm": box.middle_mm(self.affine).tolist(),
                        "size_mm": list(box.size_mm(self.affine)),
                    }),
                }
                for box in self.boxes
            ],
        }  # fmt: skip

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> BoxList:
        """Inverse of ``to_dict``.

        Raises:
            ValueError: It holds something else.
        """
        if told.get("format") != FORMAT:
            raise ValueError(f'"format" is not "{FORMAT}"')
        affine = told.get("affine")
        d, h, w = (int(n) for n in told["shape"])
        boxes = []
        for box in told["boxes"]:
            score = box.get("score")
            boxes.append(
                ScanBox(
                    str(box["label"]), None if score is None else float(score),
                    _triple(box["min"]), _triple(box["max"]),
                )
            )  # fmt: skip
        matrix = np.array(np.eye(4) if affine is None else affine, float)
        if not (np.abs(matrix) <= _LARGEST).all():
            raise ValueError("its affine leads to no place")
        return cls(
            str(told["scan"]), (d, h, w), tuple(boxes),
            None if affine is None else Affine(matrix),
        )  # fmt: skip


def _triple(values: Any) -> Triple:
    z, y, x = (float(v) for v in values)
    if not all(abs(v) <= _LARGEST for v in (z, y, x)):  # NaN neither
        raise ValueError(f"an edge {values} is no place in a scan")
    return z, y, x


def write_box_json(boxes: BoxList, path: Path) -> None:
    """All that is known of the boxes."""
    write_json(path, boxes.to_dict())


def write_box_table(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Boxes of many scans as one CSV, a row per box: what ``BoxList.rows`` gives."""
    write_table(path, COLUMNS, rows)


def read_box_json(path: Path) -> BoxList:
    """Inverse of ``write_box_json``.

    Raises:
        UnusableInput: No such file, or it holds something else.
    """
    try:
        return BoxList.from_dict(read_object(path))
    except (OSError, *OTHER_SHAPE) as error:
        raise UnusableInput(f"{path} is not a list of boxes: {error}.") from None


# Regions of 3D Slicer.


def write_regions(boxes: BoxList, path: Path) -> None:
    """The boxes as regions of interest of 3D Slicer (``.mrk.json``), LPS.

    Raises:
        UnusableInput: The scan's voxels have no known size.
    """
    if boxes.affine is None:
        raise UnusableInput(
            f"the boxes of {boxes.scan} have no place in mm, which {path} needs."
        )
    marks = [
        _region(number, box, boxes.affine)
        for number, box in enumerate(boxes.boxes, start=1)
    ]
    write_json(path, {"@schema": _SCHEMA, "markups": marks})


def _region(number: int, box: ScanBox, affine: Affine) -> dict[str, Any]:
    faces = box.faces_mm(affine)[::-1, ::-1]  # rows: the scan's x, y, z; LPS x, y, z
    half = np.linalg.norm(faces, axis=1)
    axes = faces / half[:, None]
    if np.linalg.det(axes) < 0:  # a box looks the same from behind
        axes[2] *= -1
    middle = box.middle_mm(affine)[::-1].tolist()
    turn = axes.T.ravel().tolist()  # columns are the axes
    score = "" if box.score is None else f"score {box.score:.4f}"
    return {
        "name": box.label, "type": "ROI", "coordinateSystem": "LPS",
        "coordinateUnits": "mm", "locked": False, "fixedNumberOfControlPoints": False,
        "labelFormat": "%N-%d", "lastUsedControlPointNumber": 1,
        "roiType": "Box", "center": middle, "orientation": turn,
        "size": (2 * half).tolist(), "insideOut": False,
        "controlPoints": [
            {
                "id": str(number), "label": box.label, "description": score,
                "associatedNodeID": "", "position": middle, "orientation": turn,
                "selected": True, "locked": False, "visibility": True,
                "positionStatus": "defined",
            }
        ],
        "display": {
            "visibility": True, "fillVisibility": False, "handlesInteractive": False,
        },
    }  # fmt: skip


@dataclass(frozen=True, eq=False)
class Region:
    """A box in the world, as 3D Slicer keeps it.

    Attributes:
        label: Name.
        score: Where a model gave one.
        middle_mm: (3,) LPS, z, y, x.
        faces_mm: (3, 3), row i leads from the middle to the middle of a face.
    """

    label: str
    score: float | None
    middle_mm: Array
    faces_mm: Array

    def on_grid(self, affine: Affine) -> ScanBox:
        """On a scan's grid: as it was where it was made there, else what holds it."""
        inverse = affine.inverse()
        middle = inverse.apply(self.middle_mm) + 0.5
        half = np.abs(self.faces_mm @ inverse.matrix[:3, :3].T).sum(0)
        return ScanBox(
            self.label, self.score, _triple(middle - half), _triple(middle + half)
        )


def read_regions(path: Path) -> list[Region]:
    """The box regions of a ``.mrk.json`` of 3D Slicer; other markups are passed over.

    Raises:
        UnusableInput: No such file, or none of its markups is a box.
    """
    if not path.is_file():
        raise UnusableInput(f"there is no list of boxes {path}.")
    try:
        marks = read_object(path, {"markups": list[dict[str, Any]]})["markups"]
        found = [
            _parsed(m) for m in marks
            if m.get("type") == "ROI" and m.get("roiType", "Box") == "Box"
        ]  # fmt: skip
    except (OSError, *OTHER_SHAPE) as error:
        raise UnusableInput(f"{path} holds no boxes of 3D Slicer: {error!r}.") from None
    if marks and not found:
        raise UnusableInput(f"{path} holds other markups, but no box (ROI).")
    return found


def _parsed(mark: Mapping[str, Any]) -> Region:
    point: Mapping[str, Any] = (mark.get("controlPoints") or [{}])[0]
    sign = np.array([-1.0, -1.0, 1.0])
    if str(mark.get("coordinateSystem", "LPS")).upper() in ("LPS", "1"):
        sign = np.ones(3)
    middle = np.array(mark.get("center") or point["position"], float) * sign
    axes = np.array(mark.get("orientation", np.eye(3).ravel()), float).reshape(3, 3)
    half = np.array(mark["size"], float) / 2
    if middle.shape != (3,) or half.shape != (3,):
        raise ValueError("a box needs three numbers for its middle and its size")
    if not all((np.abs(part) <= _LARGEST).all() for part in (middle, axes, half)):
        raise ValueError("a box lies at no place in a scan")  # NaN neither
    faces = (axes.T * sign) * half[:, None]
    text = str(point.get("description") or "")
    score = float(text.removeprefix("score ")) if text.startswith("score ") else None
    label = str(mark.get("name") or point.get("label") or "box")
    return Region(label, score, middle[::-1], faces[::-1, ::-1])


def boxes_path(scan_result: Path, suffix: str) -> Path:
    """``DIR/scan.nii.gz`` -> ``DIR/scan.boxes.json`` or ``DIR/scan.mrk.json``."""
    name = scan_result.name
    for ending in (".nii.gz", ".nii", ".nrrd", ".mha"):
        if name.lower().endswith(ending):
            name = name[: -len(ending)]
            break
    return scan_result.with_name(name + suffix)


def box_files(boxes: BoxList, scan_result: Path) -> list[Path]:
    """Write the files of one scan; the regions only where millimetres are known.

    Args:
        boxes: Of the scan.
        scan_result: Where a label map of it would be written.
    """
    table = boxes_path(scan_result, JSON_SUFFIX)
    write_box_json(boxes, table)
    if boxes.affine is None:
        return [table]
    regions = boxes_path(scan_result, SUFFIX)
    write_regions(boxes, regions)
    return [table, regions]
