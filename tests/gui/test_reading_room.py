"""The reading room in a real napari window, with its keys and menus."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")

from napari.components import ViewerModel
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QMainWindow, QWidget

from homolog.geometry.affine import Affine
from homolog.gui.reading.bar import ReadingBar
from homolog.gui.reading.windows import CT_WINDOWS
from homolog.gui.shared.layers import volume_layer
from homolog.gui.window import dock_panel
from homolog.scans.volume import Volume


def add(viewer: Any, modality: str, low: float, high: float) -> Any:
    values = np.linspace(low, high, 4 * 5 * 6).reshape(1, 4, 5, 6).astype(np.float32)
    volume = Volume(values, Affine.of((3.0, 2.0, 1.0)), modality, modality)
    data, attributes, _ = volume_layer(volume)
    return viewer.add_image(data, **attributes)


def canvas_of(panel: QWidget) -> QWidget:
    """What napari draws on, of the window the panel is docked in."""
    place: QWidget | None = panel
    while place is not None and not isinstance(place, QMainWindow):
        place = place.parentWidget()
    assert place is not None
    centre = place.centralWidget()
    assert centre is not None
    return next(
        w for w in centre.findChildren(QWidget)
        if type(w).__name__ == "CanvasBackendDesktop"
    )  # fmt: skip


def test_keys_and_menu_choose_a_window_in_a_real_window(
    make_napari_viewer_proxy: Any, qtbot: Any, home: Path
) -> None:
    viewer = make_napari_viewer_proxy(show=True)
    panel = dock_panel(viewer)
    qtbot.waitUntil(panel.isVisible, timeout=10_000)
    first, second = (add(viewer, "CT", -1000, high) for high in (1500, 900))
    bar = panel.findChild(ReadingBar)
    canvas = canvas_of(panel)
    QTest.keyClick(canvas, Qt.Key.Key_3, Qt.KeyboardModifier.AltModifier)
    qtbot.waitUntil(lambda: bar.windows.text() == "Bone", timeout=3000)
    assert tuple(first.contrast_limits) == (-500.0, 1300.0)
    assert tuple(second.contrast_limits) == (-500.0, 1300.0)
    for name, order in (("Sagittal", (2, 0, 1)), ("Coronal", (1, 0, 2))):
        QTest.keyClick(canvas, Qt.Key.Key_E, Qt.KeyboardModifier.ControlModifier)
        qtbot.waitUntil(lambda n=name: bar.views.text() == n, timeout=3000)
        assert tuple(viewer.dims.order) == order
    bar.windows.menu().aboutToShow.emit()
    told = [a.text() for a in bar.windows.menu().actions() if a.text()]
    assert told[1].startswith("Soft tissue   W 400, L 40 HU")
    checked = [a.text() for a in bar.windows.menu().actions() if a.isChecked()]
    assert [text[:4] for text in checked] == ["Bone"]


def test_another_view_of_the_window_is_windowed_until_it_is_gone(
    make_napari_viewer_proxy: Any, qtbot: Any, home: Path
) -> None:
    viewer = make_napari_viewer_proxy(show=True)
    panel = dock_panel(viewer)
    qtbot.waitUntil(panel.isVisible, timeout=10_000)
    scan, other = add(viewer, "CT", -1000, 1500), ViewerModel()
    beside = add(other, "CT", -1000, 1500)
    room = panel.findChild(ReadingBar).room
    panel.hub.view_opened.emit(other)
    viewer.layers.selection.active = scan
    room.windows.show(next(w for w in CT_WINDOWS if w.name == "Bone"))
    assert tuple(scan.contrast_limits) == tuple(beside.contrast_limits)
    assert room._others
    panel.hub.view_closed.emit(other)
    assert room._others == []


def test_three_planes_move_together_and_leave_nothing_behind(
    make_napari_viewer_proxy: Any, qtbot: Any, home: Path
) -> None:
    viewer = make_napari_viewer_proxy(show=True)
    panel = dock_panel(viewer)
    qtbot.waitUntil(panel.isVisible, timeout=10_000)
    scan = add(viewer, "CT", -1000, 1500)
    bar = panel.findChild(ReadingBar)
    bar.toggle_planes()
    sides = bar.planes._sides
    assert [side.orientation.plane for side in sides] == [1, 2]
    assert all(side.model.layers[0].data is scan.data for side in sides)
    middle = np.array(scan.data_to_world((2, 3, 4)))
    bar.planes.go_to(middle)
    assert np.allclose(viewer.dims.point, middle)
    assert sides[0].model.dims.point[1] == pytest.approx(middle[1])
    assert sides[1].model.dims.point[2] == pytest.approx(middle[2])
    sides[0].model.dims.set_point(1, float(scan.data_to_world((0, 1, 0))[1]))
    assert viewer.dims.point[1] == pytest.approx(scan.data_to_world((0, 1, 0))[1])
    scan.contrast_limits = (-1350.0, 150.0)
    scan.opacity = 0.5
    for side in sides:
        copy = side.model.layers[0]
        assert tuple(copy.contrast_limits) == (-1350.0, 150.0)
        assert copy.opacity == 0.5
    bar.room.orientation.look(1)
    assert [side.orientation.plane for side in sides] == [0, 2]
    labels = viewer.add_labels(
        np.zeros(scan.data.shape, np.uint8), scale=scan.scale, translate=scan.translate
    )
    qtbot.waitUntil(lambda: len(sides[0].model.layers) == 2, timeout=5000)
    viewer.layers.remove(labels)
    qtbot.waitUntil(lambda: len(sides[0].model.layers) == 1, timeout=5000)
    bar.toggle_planes()
    assert not bar.planes.is_shown
    assert bar.planes._sides == []
    viewer.dims.set_point(0, 0.0)  # nobody is told any more
