"""Boxes from every side: what planes show, what hands change, what is saved."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")

from learn_fakes import unnamed, until
from napari.layers import Layer
from test_box_layer import AFFINE

from homolog.errors import UnusableInput
from homolog.gui.files.boxes import (
    ShownBoxes,
    box_layer,
    boxes_of_layer,
    edges,
    features_of,
    shown_boxes,
)
from homolog.gui.files.live_boxes import up_to_date
from homolog.gui.files.opening import add_to, read_layer
from homolog.gui.files.writer import save_boxes, write_boxes
from homolog.gui.segment.boxes_box import BoxesBox
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.layers import volume_layer
from homolog.gui.shared.threads import wait_for_threads
from homolog.scans.boxes import BoxList, ScanBox, read_box_json, read_regions
from homolog.scans.volume import Volume

SHAPE = (12, 10, 14)
CYST = ScanBox("cyst", 0.9, (4.0, 2.0, 3.0), (9.0, 5.0, 7.0))
NODE = ScanBox("node", 0.6, (1.0, 6.5, 8.0), (3.0, 9.5, 12.0))
BOXES = BoxList("scan", SHAPE, (CYST, NODE), AFFINE)


def same(one: ScanBox, other: ScanBox) -> bool:
    return (
        one.label == other.label
        and one.low == pytest.approx(other.low)
        and one.high == pytest.approx(other.high)
    )


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_plane_shows_what_the_box_holds(axis: int) -> None:
    data = np.zeros(SHAPE, np.float32)
    data[4:9, 2:5, 3:7] = 1.0
    image, _, _ = volume_layer(Volume(data[None], AFFINE, "scan", "CT", {}))
    shown = ShownBoxes(BoxList("scan", SHAPE, (CYST,), AFFINE), axis)
    bright = np.argwhere(image > 0)
    drawn = [piece.corners for piece in shown.rectangles()]
    places = [float(corners[0, axis]) for corners in drawn]
    assert places == sorted(set(bright[:, axis].tolist()))
    others = [i for i in range(3) if i != axis]
    for corners in drawn:
        assert np.ptp(corners[:, axis]) == 0
        assert corners.min(0)[others] == pytest.approx(bright.min(0)[others] - 0.5)
        assert corners.max(0)[others] == pytest.approx(bright.max(0)[others] + 0.5)


def test_in_3d_four_faces_have_all_edges_and_one_name() -> None:
    shown = ShownBoxes(BOXES, None)
    drawn = shown.rectangles()
    assert [piece.number for piece in drawn] == [1] * 4 + [2] * 4
    low, high = edges(CYST, shown.grid)
    corners = np.concatenate([piece.corners for piece in drawn[:4]])
    assert (corners.min(0), corners.max(0)) == (
        pytest.approx(low), pytest.approx(high),
    )  # fmt: skip
    titles = shown.features(drawn)["title"]
    assert titles == ["cyst 0.90", "", "", "", "node 0.60", "", "", ""]


@pytest.mark.parametrize("axis", [0, 1, 2, None])
def test_untouched_rectangles_are_the_same_boxes(axis: int | None) -> None:
    shown = ShownBoxes(BOXES, axis)
    drawn = shown.rectangles()
    data = [piece.corners for piece in drawn]
    assert shown.taken(data, shown.features(drawn)).known.to_dict() == BOXES.to_dict()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_moved_edge_moves_the_box_on_all_slices(axis: int) -> None:
    shown = ShownBoxes(BOXES, axis)
    drawn = shown.rectangles()
    data = [piece.corners.copy() for piece in drawn]
    along = (axis + 1) % 3
    low, high = (list(ends) for ends in edges(CYST, shown.grid))
    edge = data[1][:, along] == data[1][:, along].max()
    data[1][edge, along] += 1.5
    after = shown.taken(data, shown.features(drawn))
    now_low, now_high = edges(after.known.boxes[0], shown.grid)
    high[along] = min(high[along] + 1.5, shown.grid.turned_shape[along] - 0.5)
    assert (now_low, now_high) == (pytest.approx(low), pytest.approx(high))
    assert after.known.boxes[0].score is None  # a person's word
    assert after.known.boxes[1].score == 0.6
    widths = {
        round(float(np.ptp(p.corners[:, along])), 6)
        for p in after.rectangles()
        if p.number == 1
    }
    assert len(widths) == 1


def test_deleted_drawn_copied_and_renamed_boxes() -> None:
    shown = ShownBoxes(BOXES, 0)
    drawn = shown.rectangles()
    data = [piece.corners for piece in drawn]
    told = shown.features(drawn)
    first = [piece.number == 1 for piece in drawn]
    rest = [i for i in range(len(data)) if i != first.index(True)]
    less = shown.taken([data[i] for i in rest], {k: [v[i] for i in rest]
                                                 for k, v in told.items()})  # fmt: skip
    assert [box.label for box in less.known.boxes] == ["node"]
    new = np.array([(5, 1, 1), (5, 1, 4), (5, 6, 4), (5, 6, 1)], float)
    more = shown.taken([*data, new], told)  # napari gives it the defaults, or nothing
    assert [box.label for box in more.known.boxes] == ["cyst", "node", "node"]
    low, high = edges(more.known.boxes[2], shown.grid)
    assert (low, high) == (pytest.approx((4.5, 1, 1)), pytest.approx((5.5, 6, 4)))
    copied = {name: [*values, values[0]] for name, values in told.items()}
    assert (
        len(shown.taken([*data, data[0] + np.array([0, 1, 1])], copied).known.boxes)
        == 3
    )
    named = {**told, "label": ["cyst"] * 2 + ["mass"] + told["label"][3:]}
    renamed = shown.taken(data, named).known.boxes
    assert [(box.label, box.score) for box in renamed] == [
        ("mass", None),
        ("node", 0.6),
    ]
    outside = new + np.array([0, 500, 0])
    assert len(shown.taken([*data, outside], told).known.boxes) == 2


@pytest.fixture
def viewer(make_napari_viewer_proxy: Any) -> Any:
    made = make_napari_viewer_proxy()
    data = np.random.default_rng(0).random((1, *SHAPE)).astype(np.float32)
    add_to(made, volume_layer(Volume(data, AFFINE, "scan", "CT", {})))
    yield made
    wait_for_threads()


def test_the_view_turns_and_edits_go_with_it(viewer: Any) -> None:
    layer = add_to(viewer, box_layer(BOXES))[0]
    before = len(layer.data)
    colour = layer.edge_color[0].copy()
    for order, axis in (((1, 0, 2), 1), ((2, 0, 1), 2)):
        viewer.dims.order = order
        until(lambda a=axis: shown_boxes(layer).axis == a)
        assert all(np.ptp(corners[:, axis]) == 0 for corners in layer.data)
        assert layer.features["label"][0] == "cyst"
        assert layer.features["score"][0] == 0.9
        assert np.allclose(layer.edge_color[0], colour)
        assert str(layer.text.values[0]) == "cyst 0.90"
    grown = layer.data[0].copy()
    grown[grown[:, 0] == grown[:, 0].max(), 0] += 1
    getattr(layer, "__wrapped__", layer)._data_view.edit(0, grown)
    layer.events.data(
        value=layer.data, action="changed", data_indices=(0,), vertex_indices=((),)
    )
    until(lambda: math.isnan(layer.features["score"][0]))
    viewer.dims.ndisplay = 3
    until(lambda: shown_boxes(layer).axis is None)
    assert len(layer.data) == 8
    viewer.dims.ndisplay = 2
    viewer.dims.order = (0, 1, 2)
    until(lambda: shown_boxes(layer).axis == 0)
    assert len(layer.data) == before + 1  # a slice more
    shown = boxes_of_layer(layer)
    assert same(shown.boxes[1], NODE)
    layer.selected_data = {0}
    layer.remove_selected()
    viewer.dims.order = (1, 0, 2)  # at once, before it was drawn anew
    until(lambda: shown_boxes(layer).axis == 1)
    assert [box.label for box in boxes_of_layer(layer).boxes] == ["node"]


def test_an_empty_layer_takes_what_is_drawn(viewer: Any) -> None:
    empty = BoxList("scan", SHAPE, (), AFFINE)
    layer = add_to(viewer, box_layer(empty))[0]
    layer.add(np.array([(3, 1, 1), (3, 1, 4), (3, 6, 4), (3, 6, 1)], float))
    until(lambda: len(shown_boxes(layer).known.boxes) == 1)
    assert boxes_of_layer(layer).boxes[0].label == "box"
    assert features_of(layer)["title"] == ["box"]


def test_corrected_boxes_are_saved_where_they_are_learnt_from(
    viewer: Any, tmp_path: Path
) -> None:
    layer = add_to(viewer, box_layer(BOXES))[0]
    viewer.dims.order = (1, 0, 2)
    up_to_date(layer)
    ours = save_boxes(layer, tmp_path / "scan.boxes.json")
    kept = read_box_json(ours)
    assert [b.score for b in kept.boxes] == [0.9, 0.6]
    assert [same(*pair) for pair in zip(kept.boxes, BOXES.boxes, strict=True)] == [
        True, True,
    ]  # fmt: skip
    again = save_boxes(layer, tmp_path / "scan.boxes.json")
    assert again.name == "scan_v2.boxes.json"
    slicer = save_boxes(layer, tmp_path / "scan.mrk.json")
    assert [r.label for r in read_regions(slicer)] == ["cyst", "node"]
    with pytest.raises(UnusableInput, match="must end in one of"):
        save_boxes(layer, tmp_path / "scan.csv")
    data, attributes, kind = read_layer(ours)
    assert kind == "shapes"
    (written,) = write_boxes(str(tmp_path / "b.boxes.json"), data, attributes)
    assert read_box_json(Path(written)).to_dict() == kept.to_dict()


def test_shapes_drawn_by_hand_are_boxes_of_the_scan(
    viewer: Any, tmp_path: Path
) -> None:
    scan = viewer.layers["scan"]
    ends = np.array([(3.0, 1.0, 1.0), (3.0, 6.0, 4.0)])
    corners = [(3, 1, 1), (3, 1, 4), (3, 6, 4), (3, 6, 1)]
    world = np.array([scan.data_to_world(c) for c in corners])
    drawn = Layer.create([world], {"name": "mine"}, "shapes")
    found = read_box_json(
        save_boxes(drawn, tmp_path / "m.boxes.json", list(viewer.layers))
    )
    shown = ShownBoxes(found)
    low, high = edges(found.boxes[0], shown.grid)
    assert low == pytest.approx((2.5, *ends[0, 1:]), abs=1e-4)
    assert high == pytest.approx((3.5, *ends[1, 1:]), abs=1e-4)
    with pytest.raises(UnusableInput, match="open the scan"):
        save_boxes(drawn, tmp_path / "n.boxes.json")


def test_the_table_lists_renames_and_saves(viewer: Any, tmp_path: Path) -> None:
    box = BoxesBox(Hub(viewer))
    viewer.window.add_dock_widget(box, name="boxes")
    assert not box.isVisible()
    layer = add_to(viewer, box_layer(BOXES))[0]
    box.adopt(layer)
    until(lambda: box.table.rowCount() == 2)
    texts = [box.table.item(0, c).text() for c in range(3)]
    assert texts == ["cyst", "0.90", "8 x 9 x 5"]
    box.table.selectRow(1)
    box.go.click()
    low, high = edges(NODE, shown_boxes(layer).grid)
    middle = (np.array(low) + np.array(high)) / 2
    steps = np.abs(np.array(viewer.dims.point) - layer.data_to_world(middle))
    assert (steps <= np.array(layer.scale)).all()
    box.table.item(0, 0).setText("mass")
    until(lambda: box.table.item(0, 1).text() == "")
    assert boxes_of_layer(layer).boxes[0].label == "mass"
    box.save_to(tmp_path / "out")
    until(lambda: box.words.text().startswith("✓"))
    assert read_box_json(tmp_path / "out.boxes.json").boxes[0].label == "mass"
    assert unnamed(box) == []
    viewer.layers.remove(layer)
    assert not box.isVisible()


def test_a_flat_picture_keeps_its_boxes(viewer: Any) -> None:
    picture = BoxList(
        "p", (1, 20, 30), (ScanBox("x", 0.5, (0, 2, 3), (1, 9, 9)),), None
    )
    data, attributes, _ = box_layer(picture)
    flat = {k: attributes[k] for k in ("metadata", "features", "text", "edge_color")}
    layer = add_to(viewer, ([data[0][:, 1:]], {**flat, "name": "flat"}, "shapes"))[0]
    layer.add(np.array([(1, 1), (1, 5), (6, 5), (6, 1)], float))
    until(lambda: len(shown_boxes(layer).known.boxes) == 2)
    found = boxes_of_layer(layer)
    assert (found.boxes[1].low, found.boxes[1].high) == (
        pytest.approx((0, 1.5, 1.5)), pytest.approx((1, 6.5, 5.5)),
    )  # fmt: skip
    assert found.affine is None
