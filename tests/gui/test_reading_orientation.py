"""Which way up scans are seen, and the letters of the body at the canvas's edges."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")

from napari.components import ViewerModel

from homolog.geometry.affine import Affine
from homolog.gui.reading.orientation import (
    AXIAL,
    CORONAL,
    ORDERS,
    SAGITTAL,
    Orientation,
    edges,
    edges_in_space,
    is_mirrored,
    letters,
    orientation_of,
)
from homolog.gui.reading.status import StatusLine, rewritten
from homolog.gui.shared.layers import shown_to_true, volume_layer
from homolog.scans.volume import Volume

PLANES = {
    AXIAL: ("R", "L", "A", "P"),
    CORONAL: ("R", "L", "S", "I"),
    SAGITTAL: ("A", "P", "S", "I"),
}


def scan(viewer: Any, affine: Affine | None = None, **meta: Any) -> Any:
    data = np.arange(4 * 5 * 6, dtype=np.int16).reshape(1, 4, 5, 6)
    turned = affine or Affine.of((3.0, 2.0, 1.0), (10.0, 20.0, 30.0))
    values, attributes, _ = volume_layer(Volume(data, turned, "scan", "MR", meta))
    return viewer.add_image(values, **attributes)


def around(viewer: Any) -> tuple[str, ...]:
    overlays = viewer.canvas.overlays
    return tuple(
        overlays[f"homolog_{edge}"].text for edge in ("left", "right", "top", "bottom")
    )


@pytest.fixture
def viewer() -> Any:
    model = ViewerModel()
    orientation = Orientation(model)
    orientation.begin()
    yield model, orientation
    orientation.end()


def test_letters_name_where_a_direction_leads() -> None:
    assert letters((1, 0, 0)) == "S"
    assert letters((0, -1, 0)) == "A"
    assert letters((0, 0, -2)) == "R"
    assert letters((0.1, 0.0, 1.0)) == "L"  # 6 degrees
    assert letters((0.5, 0.0, 1.0)) == "LS"
    assert letters((0.0, -1.0, -0.9)) == "AR"
    assert letters((0, 0, 0)) == ""


def test_no_plane_shows_a_body_mirrored_in_3d() -> None:
    for order in itertools.permutations(range(3)):
        assert not is_mirrored(order, orientation_of(order))
        assert not is_mirrored(order, orientation_of(order, in_space=True))
    # napari's own default does
    assert is_mirrored((0, 1, 2), ("towards", "down", "right"))


def test_the_front_of_a_body_in_3d_has_its_left_on_the_right() -> None:
    from_front = edges_in_space(
        np.array([0.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0]), False
    )
    assert from_front == {"left": "R", "right": "L", "top": "S", "bottom": "I"}
    from_behind = edges_in_space(
        np.array([0.0, -1.0, 0.0]), np.array([1.0, 0.0, 0.0]), False
    )
    assert (from_behind["left"], from_behind["right"]) == ("L", "R")


def test_letters_follow_what_is_up_and_transposed() -> None:
    usual = edges((1, 0, 2), ("away", "up", "right"))
    assert usual == {"left": "R", "right": "L", "top": "S", "bottom": "I"}
    below = edges((1, 0, 2), ("away", "down", "left"))
    assert below == {"left": "L", "right": "R", "top": "I", "bottom": "S"}
    lying = edges((1, 2, 0), ("away", "down", "right"))
    assert lying == {"left": "I", "right": "S", "top": "R", "bottom": "L"}


@pytest.mark.parametrize("plane", list(PLANES))
def test_each_plane_is_the_radiological_way_up(viewer: Any, plane: int) -> None:
    model, orientation = viewer
    scan(model)
    orientation.look(plane)
    assert tuple(model.dims.order) == ORDERS[plane]
    assert around(model) == PLANES[plane]
    assert all(model.canvas.overlays[f"homolog_{e}"].visible for e in ("left", "top"))


def test_naparis_turn_leads_through_the_three_planes(viewer: Any) -> None:
    model, orientation = viewer
    scan(model)
    seen = [orientation.plane]
    for _ in range(3):
        model.dims.roll()
        assert tuple(model.dims.order) == ORDERS[orientation.plane]
        assert around(model) == PLANES[orientation.plane]
        seen.append(orientation.plane)
    assert seen == [AXIAL, SAGITTAL, CORONAL, AXIAL]
    model.dims.transpose()  # asked for, and left as it is
    assert tuple(model.dims.order) == (0, 2, 1)
    assert around(model) == ("A", "P", "R", "L")


def test_a_flipped_and_permuted_file_has_the_same_letters(viewer: Any) -> None:
    model, _ = viewer
    matrix = np.zeros((4, 4))
    matrix[0, 2], matrix[1, 0], matrix[2, 1], matrix[3, 3] = -1.0, -2.0, 3.0, 1.0
    scan(model, Affine(matrix))
    assert around(model) == PLANES[AXIAL]


def test_a_tilted_scan_names_its_own_directions(viewer: Any) -> None:
    model, _ = viewer
    turn = np.eye(4)
    angle = np.radians(40.0)
    turn[0, 0] = turn[1, 1] = np.cos(angle)
    turn[0, 1], turn[1, 0] = -np.sin(angle), np.sin(angle)
    scan(model, Affine(turn))
    assert around(model)[:2] == ("R", "L")
    assert sorted(around(model)[2]) == sorted("AS")
    assert sorted(around(model)[3]) == sorted("PI")


def test_in_3d_it_begins_from_the_front_and_letters_turn_along(viewer: Any) -> None:
    model, _ = viewer
    scan(model)
    model.dims.ndisplay = 3
    assert around(model) == ("R", "L", "S", "I")
    # napari's own orientation, else its light shines from behind
    own = [str(part) for part in model.scene.camera.orientation]
    assert own == ["towards", "down", "right"]
    assert tuple(model.dims.order) == (1, 0, 2)  # directions below are y, z, x
    model.scene.camera.set_view_direction((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
    assert around(model) == ("L", "R", "S", "I")
    model.scene.camera.set_view_direction((0.0, 1.0, 0.0), (-1.0, 0.0, 0.0))
    assert around(model)[2:] == ("A", "P")  # from the feet, as axial slices
    assert around(model)[:2] == ("R", "L")
    model.dims.ndisplay = 2
    assert tuple(model.dims.order) == (0, 1, 2)
    assert around(model) == PLANES[AXIAL]


def test_what_lies_nobody_knows_how_has_no_letters(viewer: Any) -> None:
    model, orientation = viewer
    before = model.scene.camera.orientation
    model.add_image(np.zeros((3, 4, 5)))
    scan(model, oriented=False)
    orientation.look(CORONAL)
    assert model.scene.camera.orientation == before
    assert "homolog_left" not in model.canvas.overlays
    known = scan(model)
    assert around(model) == PLANES[CORONAL]
    model.layers.remove(known)
    assert model.scene.camera.orientation == before
    assert not any(model.canvas.overlays[f"homolog_{e}"].visible for e in ("left",))


def test_letters_can_be_hidden_and_all_goes_with_the_panel(viewer: Any) -> None:
    model, orientation = viewer
    before = model.scene.camera.orientation
    scan(model)
    orientation.show_letters(False)
    assert not model.canvas.overlays["homolog_left"].visible
    orientation.end()
    assert "homolog_left" not in model.canvas.overlays
    assert model.scene.camera.orientation == before


def test_a_click_means_the_same_place_in_every_plane(viewer: Any) -> None:
    model, orientation = viewer
    layer = scan(model)
    middle = layer.data_to_world((1, 2, 3))
    model.dims.set_point(range(3), middle)
    for plane in PLANES:
        orientation.look(plane)
        assert np.allclose(np.asarray(model.dims.point), middle)
        assert np.allclose(layer.world_to_data(model.dims.point), (1, 2, 3))


def test_the_status_line_names_places_of_the_patient(viewer: Any) -> None:
    model, orientation = viewer
    layer = scan(model)
    line = StatusLine(model, orientation.scan)
    line.begin()
    model.status = {"layer_base": "scan", "coordinates": "[-5.00, 20.25, 30.50]: 7"}
    assert model.status["coordinates"] == "x 30.5, y 20.2, z -5.0 mm (LPS): 7"
    model.status = "scan [1.00 2.00 3.00]: 9  |  similarity 0.8"
    assert model.status == "scan x 3.0, y 2.0, z 1.0 mm (LPS): 9  |  similarity 0.8"
    model.layers.remove(layer)
    model.status = "[1.00, 2.00, 3.00]"
    assert model.status == "[1.00, 2.00, 3.00]"
    line.end()
    scan(model)
    model.status = "[4.00, 2.00, 3.00]"
    assert model.status == "[4.00, 2.00, 3.00]"


def test_a_place_of_a_tilted_scan_is_told_as_it_truly_lies() -> None:
    model = ViewerModel()
    angle = np.radians(25.0)
    turn = np.eye(4)
    turn[0, 0] = turn[1, 1] = np.cos(angle)
    turn[0, 1], turn[1, 0] = -np.sin(angle), np.sin(angle)
    layer = scan(model, Affine(turn))
    true = shown_to_true(layer).apply(np.array([1.0, 2.0, 3.0]))
    wanted = f"x {true[2]:.1f}, y {true[1]:.1f}, z {true[0]:.1f} mm (LPS)"
    assert rewritten("[1.00, 2.00, 3.00]", layer) == wanted
