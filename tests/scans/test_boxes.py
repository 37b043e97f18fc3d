"""Boxes of scans, and what their files keep."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from homolog.errors import UnusableInput
from homolog.geometry.affine import Affine
from homolog.scans.boxes import (
    COLUMNS,
    BoxList,
    ScanBox,
    box_files,
    boxes_path,
    read_box_json,
    read_regions,
    write_box_table,
    write_regions,
)

TURN = math.radians(30)
OBLIQUE = Affine.of(
    (5.0, 2.0, 3.0), (-40.0, 30.0, 10.0),
    # axes permuted, one mirrored, two turned: left-handed too
    [[0, math.cos(TURN), -math.sin(TURN)], [0, math.sin(TURN), math.cos(TURN)],
     [1, 0, 0]],
)  # fmt: skip
BOX = ScanBox("cyst", 0.875, (2.0, 3.5, 4.0), (5.0, 9.5, 6.0))


def told(affine: Affine | None = OBLIQUE) -> BoxList:
    return BoxList(
        "scan", (20, 20, 20), (BOX, ScanBox("node", None, (0, 0, 0), (1, 1, 1))), affine
    )


def test_millimetres_of_a_box_counted_by_hand() -> None:
    plain = Affine.of((5.0, 2.0, 3.0), (100.0, 10.0, 1.0))
    # voxel 0 is centred at the origin: edge 2 lies 1.5 voxels beyond
    assert BOX.middle_mm(plain) == pytest.approx([115.0, 22.0, 14.5])
    assert BOX.size_mm(plain) == pytest.approx((15.0, 12.0, 6.0))
    assert BOX.size_mm(OBLIQUE) == pytest.approx((15.0, 12.0, 6.0))


def test_regions_of_slicer_come_back_onto_the_grid_they_were_made_on(
    tmp_path: Path,
) -> None:
    path = tmp_path / "scan.mrk.json"
    write_regions(told(), path)
    first, second = read_regions(path)
    back = first.on_grid(OBLIQUE)
    assert back.low == pytest.approx(BOX.low)
    assert back.high == pytest.approx(BOX.high)
    assert (back.label, back.score, second.score) == ("cyst", 0.875, None)


def test_regions_hold_what_slicer_asks_for(tmp_path: Path) -> None:
    path = tmp_path / "scan.mrk.json"
    write_regions(told(), path)
    mark = json.loads(path.read_text())["markups"][0]
    assert (mark["type"], mark["roiType"], mark["coordinateSystem"]) == (
        "ROI",
        "Box",
        "LPS",
    )
    axes = np.array(mark["orientation"]).reshape(3, 3)  # columns: axes in LPS x, y, z
    assert np.linalg.det(axes) == pytest.approx(1.0)
    z, y, x = BOX.middle_mm(OBLIQUE)
    assert mark["center"] == pytest.approx([x, y, z])
    corner = np.array(mark["center"]) + axes @ (np.array(mark["size"]) / 2)
    voxel = OBLIQUE.inverse().apply(corner[::-1]) + 0.5
    near = np.minimum(np.abs(voxel - BOX.low), np.abs(voxel - BOX.high))
    assert near == pytest.approx(np.zeros(3), abs=1e-9)


def test_regions_in_ras_are_turned(tmp_path: Path) -> None:
    mark = {
        "type": "ROI", "roiType": "Box", "coordinateSystem": "RAS", "size": [2, 4, 6],
        "center": [-10, -20, 30], "orientation": [1, 0, 0, 0, 1, 0, 0, 0, 1],
        "name": "node",
    }  # fmt: skip
    path = tmp_path / "r.mrk.json"
    path.write_text(json.dumps({"markups": [mark, {"type": "Fiducial"}]}))
    (region,) = read_regions(path)
    box = region.on_grid(Affine.identity())
    assert box.low == pytest.approx((30 - 3 + 0.5, 20 - 2 + 0.5, 10 - 1 + 0.5))
    path.write_text(json.dumps({"markups": [{"type": "Fiducial"}]}))
    with pytest.raises(UnusableInput, match="no box"):
        read_regions(path)
    path.write_text("{}")
    with pytest.raises(UnusableInput, match="no boxes of 3D Slicer"):
        read_regions(path)


def test_json_keeps_everything_and_tables_have_a_row_each(tmp_path: Path) -> None:
    files = box_files(told(), tmp_path / "scan.nii.gz")
    assert [path.name for path in files] == ["scan.boxes.json", "scan.mrk.json"]
    back = read_box_json(files[0])
    assert back.to_dict() == told().to_dict()
    write_box_table(told().rows(), tmp_path / "boxes.csv")
    with (tmp_path / "boxes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert float(rows[0]["size_z_mm"]) == pytest.approx(15.0)
    assert rows[1]["score"] == ""


def test_pictures_of_unknown_pixel_size_have_no_millimetres(tmp_path: Path) -> None:
    files = box_files(told(None), tmp_path / "picture.nii.gz")
    assert [path.name for path in files] == ["picture.boxes.json"]
    row = told(None).rows()[0]
    assert "z_mm" not in row
    assert row["voxel_max_y"] == 9.5
    assert read_box_json(files[0]).affine is None
    with pytest.raises(UnusableInput, match="no place in mm"):
        write_regions(told(None), tmp_path / "x.mrk.json")


def test_other_files_are_no_boxes(tmp_path: Path) -> None:
    path = tmp_path / "x.boxes.json"
    for text in ("{", '{"format": "other"}', '{"format": "homolog.boxes"}'):
        path.write_text(text)
        with pytest.raises(UnusableInput, match="not a list of boxes"):
            read_box_json(path)
    assert boxes_path(Path("a/b.nii"), ".boxes.json") == Path("a/b.boxes.json")
