"""Scans dropped on napari's canvas open with Homolog while its panel is open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("napari")

from explore_files import write_scan
from learn_fakes import until
from qtpy.QtCore import QEvent, QMimeData, QPoint, QPointF, Qt, QUrl
from qtpy.QtGui import QDragEnterEvent, QDropEvent
from qtpy.QtWidgets import QApplication, QWidget

from homolog.geometry.affine import Affine
from homolog.gui.files import dropping, reader
from homolog.gui.shared import preferences
from homolog.gui.shared.threads import wait_for_threads
from homolog.gui.window import dock_panel
from homolog.scans.files import read_scan
from homolog.scans.write import write_volume


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Which reader the user chose, by pattern; empty as a newcomer's."""
    chosen: dict[str, str] = {}

    class Settings:
        extension2reader = chosen

    monkeypatch.setattr(reader, "_settings", Settings)
    return chosen


def drop(widget: QWidget, path: Path) -> bool:
    """Drag a file over a widget and let go; whether it was taken."""
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(path))])
    enter = QDragEnterEvent(
        QPoint(5, 5), Qt.DropAction.CopyAction, data, Qt.MouseButton.LeftButton,
        Qt.KeyboardModifier.NoModifier,
    )  # fmt: skip
    QApplication.sendEvent(widget, enter)
    event = QDropEvent(
        QPointF(5, 5), Qt.DropAction.CopyAction, data, Qt.MouseButton.LeftButton,
        Qt.KeyboardModifier.NoModifier,
    )  # fmt: skip
    event.ignore()
    QApplication.sendEvent(widget, event)
    return event.isAccepted()


def test_a_scan_on_the_canvas_opens_without_a_question(
    make_napari_viewer_proxy: Any, home: Path, tmp_path: Path,
    table: dict[str, str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    scan = write_scan(tmp_path, "CT_1", Affine.of((2, 2, 2)), (8, 10, 12), seed=0)
    zipped = tmp_path / "CT_2.nii.gz"
    other = write_scan(tmp_path, "b", Affine.of((2, 2, 2)), (8, 10, 12), seed=1)
    write_volume(read_scan(other), zipped)
    viewer = make_napari_viewer_proxy(show=True)
    panel = dock_panel(viewer)
    until(lambda: panel.drops._watched)
    middle = panel.window().centralWidget()
    assert all(w is middle or middle.isAncestorOf(w) for w in panel.drops._watched)
    assert drop(panel.drops._watched[0], zipped)
    until(lambda: len(viewer.layers) == 1)
    assert str(viewer.layers[0].units[0]) == "millimeter"
    assert viewer.layers[0].name == "CT_2"
    assert drop(panel.drops._watched[0], scan)
    until(lambda: len(viewer.layers) == 2)
    # With Alt or Shift, or another reader chosen, it is napari's.
    left: list[Path] = []
    monkeypatch.setattr(panel.drops.opener, "open", left.extend)
    alt = Qt.KeyboardModifier.AltModifier
    monkeypatch.setattr(dropping.QApplication, "keyboardModifiers", lambda: alt)
    event = QEvent(QEvent.Type.Drop)
    monkeypatch.setattr(dropping, "local_paths", lambda event: [zipped])
    assert not panel.drops.eventFilter(middle, event)
    panel.tear_down()
    assert panel.drops._watched == []
    assert left == []
    wait_for_threads()


def test_whose_a_dropped_file_is(
    tmp_path: Path, table: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = write_scan(tmp_path, "CT_1", Affine.of((2, 2, 2)), (8, 10, 12), seed=0)
    picture, text = tmp_path / "a.png", tmp_path / "a.txt"
    picture.write_bytes(b"")
    text.write_text("")
    assert reader.takes_drops([scan])
    assert not reader.takes_drops([])
    assert not reader.takes_drops([picture])
    assert not reader.takes_drops([text])
    assert not reader.takes_drops([scan, text])
    table[f"*{scan.suffix}"] = "napari"
    assert not reader.takes_drops([scan])
    table[f"*{scan.suffix}"] = reader.PLUGIN
    assert reader.takes_drops([scan])
    table.clear()
    monkeypatch.setattr(preferences, "get", lambda *_: False)  # "Not now" was said
    assert not reader.takes_drops([scan])
