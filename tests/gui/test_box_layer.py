"""Boxes in napari: where they lie, on which slices, and what opens them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from homolog.geometry.affine import Affine
from homolog.gui.files.boxes import (
    ShownBoxes,
    box_layer,
    boxes_of_file,
    holds_boxes,
)
from homolog.gui.files.opening import read_layer
from homolog.gui.files.reader import get_reader
from homolog.gui.files.sources import sources_of
from homolog.gui.shared.layers import volume_layer
from homolog.scans.boxes import BoxList, ScanBox, box_files
from homolog.scans.volume import Volume

TURN = math.radians(10)
# an array that runs x, z, -y, a little oblique
AFFINE = Affine.of(
    (1.0, 3.0, 2.0), (5.0, -20.0, 40.0),
    [[0, 1, 0], [math.sin(TURN), 0, -math.cos(TURN)],
     [math.cos(TURN), 0, math.sin(TURN)]],
)  # fmt: skip
BOX = ScanBox("cyst", 0.9, (4.0, 2.0, 3.0), (9.0, 5.0, 7.0))


def test_rectangles_lie_on_what_the_box_holds() -> None:
    data = np.zeros((12, 10, 14), np.float32)
    data[4:9, 2:5, 3:7] = 1.0
    boxes = BoxList("scan", data.shape, (BOX,), AFFINE)
    image, attributes, _ = volume_layer(Volume(data[None], AFFINE, "scan", "CT", {}))
    shapes, own, kind = box_layer(boxes)
    assert kind == "shapes"
    assert own["scale"] == pytest.approx(attributes["scale"])
    assert own["translate"] == pytest.approx(attributes["translate"])
    bright = np.argwhere(image > 0)
    assert [s[0, 0] for s in shapes] == sorted(set(bright[:, 0].tolist()))
    for corners in shapes:
        assert (np.ptp(corners[:, 0]) == 0).all()
        assert corners.min(0)[1:] == pytest.approx(bright.min(0)[1:] - 0.5)
        assert corners.max(0)[1:] == pytest.approx(bright.max(0)[1:] + 0.5)


def test_a_box_between_slices_is_on_the_nearer_one() -> None:
    def slices(low: tuple[float, ...], high: tuple[float, ...]) -> list[float]:
        box = ScanBox("x", None, low, high)  # type: ignore[arg-type]
        shown = ShownBoxes(BoxList("s", (9, 9, 9), (box,), Affine.identity()))
        return [float(piece.corners[0, 0]) for piece in shown.rectangles()]

    assert slices((4.6, 1, 1), (5.2, 2, 2)) == [4.0]
    assert slices((4, 1, 1), (5, 2, 2)) == [4.0]


def test_pictures_have_one_rectangle_and_nothing_found_is_an_empty_layer() -> None:
    picture = BoxList(
        "p", (1, 20, 20), (ScanBox("x", 0.5, (0, 2, 3), (1, 9, 9)),), None
    )
    shapes, own, _ = box_layer(picture)
    assert len(shapes) == 1
    assert own["features"]["score"] == [0.5]
    assert own["features"]["title"] == ["x 0.50"]
    empty, _, _ = box_layer(BoxList("p", (1, 20, 20), (), None))
    assert len(empty) == 0


def test_files_of_boxes_open_and_lists_of_points_do_not(tmp_path: Path) -> None:
    ours, slicers = box_files(
        BoxList("scan", (12, 10, 14), (BOX,), AFFINE), tmp_path / "scan.nii.gz"
    )
    points = tmp_path / "points.mrk.json"
    points.write_text(json.dumps({"markups": [{"type": "Fiducial"}]}))
    assert [holds_boxes(p) for p in (ours, slicers, points)] == [True, True, False]
    reader = get_reader(str(slicers))
    assert reader is not None
    assert get_reader(str(points)) is None
    layers = [*reader([str(ours), str(slicers)]), read_layer(ours)]
    assert [kind for _, _, kind in layers] == ["shapes"] * 3
    first, second = (np.stack(data) for data, _, _ in layers[:2])
    assert second == pytest.approx(first)
    assert [source.trouble for source in sources_of([ours])] == [""]
    ours.unlink()  # of a scan that is not known here: in mm of the world
    alone = boxes_of_file(slicers)
    middle = (np.array(alone.boxes[0].low) + np.array(alone.boxes[0].high)) / 2 - 0.5
    assert middle == pytest.approx(BOX.middle_mm(AFFINE))
