"""Measures in millimetres, values of regions and labels, surfaces, layers of ours."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")

from napari.components import ViewerModel
from qtpy.QtWidgets import QWidget

from homolog.geometry.affine import Affine
from homolog.gui.reading.measures import LabelValues, Measures
from homolog.gui.reading.measuring import (
    Values,
    angle_degrees,
    area_mm2,
    length_mm,
    told_of,
    values_in,
    values_of_labels,
)
from homolog.gui.reading.ours import Ours
from homolog.gui.reading.surfaces import Surfaces, surfaces_of
from homolog.gui.shared.layers import KEY, derived_attributes, volume_layer
from homolog.scans.volume import Volume

FLAT = Affine.of((5.0, 2.0, 1.0), (10.0, 20.0, 30.0))


def tilted() -> Affine:
    angle = np.radians(30.0)
    turn = np.eye(4)
    turn[0, 0] = turn[1, 1] = np.cos(angle)
    turn[0, 1], turn[1, 0] = -np.sin(angle), np.sin(angle)
    return Affine(turn @ FLAT.matrix)


def circle(z: float, y: float, x: float, ry: float, rx: float) -> Any:
    return np.array([(z, y - ry, x - rx), (z, y - ry, x + rx), (z, y + ry, x + rx),
                     (z, y + ry, x - rx)])  # fmt: skip


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Any:
    said: list[str] = []
    return SimpleNamespace(
        viewer=ViewerModel(),
        said=said,
        say=lambda text, level="info": said.append(text),
    )


def add_ct(viewer: Any, affine: Affine = FLAT) -> Any:
    rng = np.random.default_rng(0)
    values = rng.integers(-900, 900, (1, 6, 30, 40)).astype(np.int16)
    data, attributes, _ = volume_layer(Volume(values, affine, "chest", "CT"))
    return viewer.add_image(data, **attributes)


@pytest.mark.parametrize("affine", [FLAT, tilted()])
def test_lengths_angles_and_areas_are_millimetres_whatever_the_voxels(
    affine: Affine,
) -> None:
    assert length_mm(affine, np.array([(0, 0, 0), (0, 3, 8)])) == pytest.approx(10)
    assert length_mm(affine, np.array([(0, 0, 0), (2, 0, 0), (2, 5, 0)])) == (
        pytest.approx(20)
    )
    right = np.array([(0, 0, 9), (0, 0, 0), (2, 0, 0)])
    assert angle_degrees(affine, right) == pytest.approx(90)
    half = np.array([(0, 0, 4), (0, 0, 0), (0, 2, 4)])  # 4 mm beside 4 mm
    assert angle_degrees(affine, half) == pytest.approx(45)
    assert area_mm2(affine, "ellipse", circle(1, 10, 20, 5, 10)) == (
        pytest.approx(np.pi * 100)
    )
    assert area_mm2(affine, "rectangle", circle(1, 10, 20, 5, 10)) == pytest.approx(400)
    triangle = np.array([(0, 0, 0), (0, 0, 6), (0, 4, 0)])
    assert area_mm2(affine, "polygon", triangle) == pytest.approx(24)
    assert np.isnan(angle_degrees(affine, np.zeros((3, 3))))


def test_values_of_a_region_are_those_of_the_voxels_in_it() -> None:
    rng = np.random.default_rng(1)
    data = rng.normal(size=(4, 30, 40))
    rows, columns = np.mgrid[:30, :40]
    inside = ((rows - 12) / 6.5) ** 2 + ((columns - 20) / 9.5) ** 2 <= 1
    found = values_in(data, "ellipse", circle(2, 12, 20, 6.5, 9.5))
    wanted = data[2][inside]
    assert found.count == inside.sum()
    assert found.mean == pytest.approx(wanted.mean())
    assert found.sd == pytest.approx(wanted.std(ddof=1))
    assert (found.low, found.high) == (wanted.min(), wanted.max())
    upright = circle(2, 12, 20, 3.2, 4.2)[:, [1, 0, 2]]  # a coronal slice
    assert values_in(data, "rectangle", upright).count == 0  # z 12 is no slice
    coronal = np.array([(0.6, 7, 3.6), (0.6, 7, 8.4), (2.4, 7, 8.4), (2.4, 7, 3.6)])
    assert values_in(data, "rectangle", coronal) == Values.of(data[1:3, 7, 4:9])
    polygon = np.array([(1, 2, 2), (1, 2, 12), (1, 12, 12), (1, 12, 2)]) + 0.1
    assert values_in(data, "polygon", polygon).count == 100
    beyond = circle(2, 0, 0, 3, 3)  # a quarter of it
    assert 0 < values_in(data, "ellipse", beyond).count < 15
    assert values_in(data, "ellipse", circle(9, 5, 5, 2, 2)).count == 0
    assert "no voxel" in told_of(FLAT, data, "ellipse", circle(2, 5.5, 5.5, 0, 0), "")


def test_values_under_labels_match_those_counted_one_by_one() -> None:
    rng = np.random.default_rng(2)
    data = rng.normal(size=(5, 6, 7)).astype(np.float32)
    labels = rng.integers(0, 4, data.shape)
    labels[labels == 2] = 9
    data[0, 0, 0] = np.nan
    found = values_of_labels(data, labels, {1: "liver"})
    assert [(v, n) for v, n, _ in found] == [(1, "liver"), (3, "label 3"),
                                             (9, "label 9")]  # fmt: skip
    for value, _, values in found:
        assert values == Values.of(data[labels == value])
    assert values_of_labels(data, labels * 0, {}) == []


def test_figures_are_written_beside_what_was_drawn(hub: Any, qtbot: Any) -> None:
    parent = QWidget()
    qtbot.addWidget(parent)
    scan = add_ct(hub.viewer, tilted())
    measures = Measures(hub, parent)
    measures.begin("Distance")
    layer = hub.viewer.layers[-1]
    assert str(layer.mode) == "add_line"
    assert hub.viewer.layers.selection.active is layer
    layer.add(np.array([(1, 0, 0), (1, 3, 8)]), shape_type="line")
    qtbot.waitUntil(lambda: list(layer.features["told"]) == ["10.0 mm"], timeout=3000)
    assert str(layer.mode) == "pan_zoom"
    assert hub.viewer.layers.selection.active is scan
    measures.begin("Circle or ellipse")
    layer.add(circle(2, 12, 20, 5, 10), shape_type="ellipse")
    qtbot.waitUntil(lambda: "HU, SD" in layer.features["told"][1], timeout=3000)
    told = layer.features["told"][1]
    assert told.endswith("314.2 mm²")
    mean = values_in(np.asarray(scan.data), "ellipse", circle(2, 12, 20, 5, 10)).mean
    assert told.startswith(f"mean {mean:.4g} HU")
    assert len(hub.viewer.layers) == 2
    assert tuple(hub.viewer.dims.nsteps) == scan.data.shape  # sliders stay
    measures.forget()
    assert len(hub.viewer.layers) == 1
    measures.begin("Distance")  # and again
    assert len(hub.viewer.layers) == 2


def test_a_picture_is_measured_in_pixels(hub: Any, qtbot: Any) -> None:
    parent = QWidget()
    qtbot.addWidget(parent)
    scan = add_ct(hub.viewer, Affine.of((1.0, 1.0, 1.0)))
    scan.metadata[KEY]["sized"] = False  # as the reader says of a picture
    measures = Measures(hub, parent)
    measures.begin("Distance")
    layer = hub.viewer.layers[-1]
    layer.add(np.array([(1, 0, 0), (1, 3, 4)]), shape_type="line")
    qtbot.waitUntil(lambda: list(layer.features["told"]) == ["5.0 px"], timeout=3000)
    square = np.array([(2, 2, 2), (2, 2, 6), (2, 6, 6), (2, 6, 2)])
    told = told_of(None, np.asarray(scan.data), "rectangle", square, "")
    assert told.endswith("16 px²")
    rows = [(1, "lung", Values(7, 1.0, 0.5, 0.0, 2.0))]
    table = LabelValues("lungs", rows, 0.0, "", None)
    qtbot.addWidget(table)
    assert (table.titles[-1], table.rows[0][-1]) == ("Voxels", "7")


def test_without_a_scan_it_says_what_to_do(hub: Any, qtbot: Any) -> None:
    parent = QWidget()
    qtbot.addWidget(parent)
    Measures(hub, parent).begin("Angle")
    Measures(hub, parent).label_values()
    Surfaces(hub, parent).show()
    assert [text.split()[0] for text in hub.said] == ["Open", "Show", "Open"]
    assert not hub.viewer.layers


def test_a_surface_has_the_size_of_its_label_and_no_stairs() -> None:
    scale = (4.0, 1.0, 1.0)
    z, y, x = np.mgrid[:16, :48, :48]
    ball = ((z - 8) * 4) ** 2 + (y - 24) ** 2 + (x - 24) ** 2 <= 18**2
    labels = np.where(ball, 7, 0)
    labels[0, 0, :3] = 9  # a thread, thinner than the filter
    large, small = surfaces_of(labels, scale)
    assert (large.value, small.value) == (7, 9)
    assert len(small.faces) > 0
    mm = large.vertices * scale
    radius = np.linalg.norm(mm - np.array([8, 24, 24]) * scale, axis=1)
    assert radius.mean() == pytest.approx(18, abs=0.8)
    assert radius.std() < 0.6  # the stairs of 4 mm slices would be 1.2
    fine = surfaces_of(np.where(ball[::2, ::4, ::4] > 0, 1, 0), (8.0, 4.0, 4.0))[0]
    assert len(fine.faces) > 100
    with pytest.raises(ValueError, match="empty"):
        surfaces_of(labels * 0, scale)


def test_surfaces_keep_names_and_colours_and_leave_2d_alone(
    hub: Any, qtbot: Any
) -> None:
    parent = QWidget()
    qtbot.addWidget(parent)
    scan = add_ct(hub.viewer)
    values = np.zeros(scan.data.shape, np.int32)
    values[1:4, 5:15, 5:15], values[2:5, 18:26, 20:35] = 1, 2
    attributes = derived_attributes(scan, "organs")
    attributes["metadata"]["homolog"]["label_names"] = {1: "liver"}
    labels = hub.viewer.add_labels(values, **attributes)
    surfaces = Surfaces(hub, parent)
    surfaces.show()
    qtbot.waitUntil(lambda: len(hub.viewer.layers) == 4, timeout=20_000)
    liver, other = hub.viewer.layers[2:]
    assert (liver.name, other.name) == ("liver (surface)", "label 2 (surface)")
    seen, told = liver.vertex_colors[:, :3], np.asarray(labels.get_color(1)[:3])
    shade = seen.max(axis=1) / told.max()
    assert np.allclose(seen, shade[:, None] * told, atol=1e-3)
    assert 0.3 < shade.min() < shade.max() <= 1.01
    assert hub.viewer.dims.ndisplay == 3
    assert liver.visible
    assert not labels.visible
    assert not scan.visible
    middle = liver.extent.world.mean(axis=0)
    assert np.allclose(middle, labels.data_to_world((2, 9.5, 9.5)), atol=1.0)
    hub.viewer.dims.ndisplay = 2
    assert [x.visible for x in (scan, labels, liver, other)] == [
        True,
        True,
        False,
        False,
    ]
    surfaces.end()


def test_one_button_hides_all_of_ours_and_a_tab_takes_its_own() -> None:
    viewer = ViewerModel()
    scan = add_ct(viewer)
    ours = Ours(viewer)
    ours.front("Explore")
    heat = viewer.add_image(scan.data * 0, **derived_attributes(scan, "similarity"))
    paint = viewer.add_labels(
        np.zeros(scan.data.shape, np.uint8), **derived_attributes(scan, "paint")
    )
    for layer in (heat, paint):
        ours.opened(layer)
    assert ours.toggle() == 2
    assert [x.visible for x in (scan, heat, paint)] == [True, False, False]
    assert ours.are_hidden
    assert ours.toggle() == 2
    assert all(x.visible for x in viewer.layers)
    assert not ours.are_hidden
    ours.front("Label")
    assert [x.visible for x in (scan, heat, paint)] == [True, False, True]
    ours.front("Explore")
    assert heat.visible
    heat.visible = False  # the user's own wish
    ours.front("Label")
    ours.front("Explore")
    assert not heat.visible
    viewer.layers.remove(heat)
    ours.front("Label")
    mark = viewer.add_points(np.zeros((1, 3)), metadata={KEY: {"derived": True}})
    ours.opened(mark)
    ours.front("Runs")
    assert [x.visible for x in (mark, paint)] == [False, True]
    ours.front("Label")
    assert mark.visible
    viewer.layers.remove(mark)
    assert ours.toggle() == 1
