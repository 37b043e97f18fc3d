"""The reading room in a real napari window, with its keys and menus."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")

from qtpy.QtCore import Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QMainWindow, QWidget

from homolog.geometry.affine import Affine
from homolog.gui.reading.bar import ReadingBar
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
    QTest.keyClick(canvas, Qt.Key.Key_Y, Qt.KeyboardModifier.ShiftModifier)
    qtbot.waitUntil(lambda: bar.views.text() == "Coronal", timeout=3000)
    assert tuple(viewer.dims.order) == (1, 0, 2)
    bar.windows.menu().aboutToShow.emit()
    told = [a.text() for a in bar.windows.menu().actions() if a.text()]
    assert told[1].startswith("Soft tissue   W 400, L 40 HU")
    checked = [a.text() for a in bar.windows.menu().actions() if a.isChecked()]
    assert [text[:4] for text in checked] == ["Bone"]
