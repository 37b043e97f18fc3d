"""The Data tab as a user meets it: drop, check, build, use, delete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")

from qtpy.QtCore import QEvent, QMimeData, QPointF, Qt, QUrl
from qtpy.QtGui import QDropEvent, QGuiApplication
from qtpy.QtWidgets import QAbstractButton, QComboBox, QLineEdit, QWidget

from homolog.geometry.affine import Affine
from homolog.gui import window as window_module
from homolog.gui.data.panel import DataPanel
from homolog.gui.files import choosing, reader
from homolog.gui.files.choosing import HIDDEN, SeriesChooser
from homolog.gui.files.sources import Source
from homolog.gui.shared import models, notices, preferences
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.preferences import PLUGIN
from homolog.gui.shared.threads import wait_for_threads
from homolog.gui.shared.widgets import Answer
from homolog.index.tree import SeriesInfo
from homolog.runs.run import Run
from homolog.scans.volume import LabelMap, Volume
from homolog.scans.write import write_labels, write_volume
from homolog.store.store import Store

BUILD_MS = 60_000


@pytest.fixture
def hub(make_napari_viewer_proxy, tmp_path: Path, monkeypatch, qtbot) -> Any:
    monkeypatch.setattr(preferences, "home", lambda: tmp_path / "home")
    made = Hub(make_napari_viewer_proxy())
    made.said = []
    monkeypatch.setattr(made, "say", lambda text, level="info": made.said.append(text))
    notices.forget()
    return made


@pytest.fixture
def panel(hub, qtbot) -> Any:
    made = DataPanel(hub)
    qtbot.addWidget(made)
    made.show()
    yield made
    made.tear_down()
    wait_for_threads()


def write_scan(path: Path, seed: int = 0, shift: float = 0.0) -> Path:
    data = np.random.default_rng(seed).normal(300, 90, (1, 24, 26, 28))
    affine = Affine.of((2.0, 1.5, 1.5), (shift, 0.0, 0.0))
    write_volume(Volume(data.astype(np.int16), affine), path)
    return path


def drop(panel: Any, *paths: Path) -> None:
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(p)) for p in paths])
    event = QDropEvent(
        QPointF(5, 5), Qt.DropAction.CopyAction, data, Qt.MouseButton.LeftButton,
        Qt.KeyboardModifier.NoModifier, QEvent.Type.Drop,
    )  # fmt: skip
    panel.dropEvent(event)


def test_drop_build_and_use(panel, hub, qtbot, tmp_path: Path, monkeypatch) -> None:
    assert panel.empty.isVisibleTo(panel)
    assert not panel.build.build.isEnabled()
    a = write_scan(tmp_path / "t1_a.nii.gz")
    b = write_scan(tmp_path / "t1_b.nii.gz", 1)
    bad = tmp_path / "torn.nii"
    bad.write_bytes(b"x")
    drop(panel, a, bad, b)
    qtbot.waitUntil(lambda: len(hub.viewer.layers) == 2, timeout=10_000)
    qtbot.waitUntil(lambda: len(panel.list.rows) == 2, timeout=10_000)
    assert "torn.nii cannot be opened" in panel.trouble.text()
    assert len(hub.said) == 1
    assert not panel.empty.isVisibleTo(panel)
    assert [layer.visible for layer in hub.viewer.layers] == [True, True]
    for layer in hub.viewer.layers:
        assert [str(u) for u in layer.units] == ["millimeter"] * 3
    # A folder is listed, not opened.
    folder = tmp_path / "more"
    folder.mkdir()
    write_scan(folder / "t1_c.nii.gz", 2)
    (folder / "broken.nii").write_bytes(b"y")
    panel.add([folder])
    qtbot.waitUntil(lambda: len(panel.list.rows) == 3, timeout=10_000)
    assert len(hub.viewer.layers) == 2
    panel.check_all_values()
    qtbot.waitUntil(lambda: not panel._to_check, timeout=20_000)
    said = [r.badge.text for r in panel.list.rows.values()]
    assert said[:2] == ["✔ sound: all values read."] * 2
    assert "1 of 2 left out" in said[2]
    # A scan of another place is brought into view, the others are hidden.
    choosing.NewScans(hub, panel)  # as the dock has one
    hub.viewer.open(str(write_scan(tmp_path / "far.nii", 4, 900.0)), plugin=PLUGIN)
    qtbot.waitUntil(lambda: not hub.viewer.layers[0].visible, timeout=10_000)
    assert hub.viewer.layers[2].visible
    assert hub.viewer.dims.point[0] > 900
    hub.viewer.layers.remove(hub.viewer.layers[2])
    qtbot.waitUntil(lambda: len(panel.list.rows) == 3, timeout=10_000)
    # Build, with the worker itself.
    panel.build.name.setText("mine")
    panel.build._name_typed("mine")
    rows = panel.build.more.rows
    assert rows["axes"].value == "auto"
    assert rows["axes"].field.hint("auto").endswith("Default: auto.")
    rows["subjects"].editor.setText("t1_([ab])")
    with qtbot.waitSignal(panel.build.built, timeout=BUILD_MS) as built:
        panel.build.build.click()
        assert not panel.build.build.isEnabled()
    store = Store.open(built.args[0])
    assert (store.path.name, len(store)) == ("mine", 3)
    assert (
        "3 scans prepared, none with labels, 1 left out" in panel.build.summary.text()
    )
    assert "3 patients (2 by 'Patients by name'; 1" in panel.build.summary.text()
    assert "broken.nii" in panel.build.rejected.toPlainText()
    panel.build.show_rejected.click()
    panel.build.copy.click()
    assert "broken.nii" in QGuiApplication.clipboard().text()
    assert not panel.build.finetune.isEnabled()
    with qtbot.waitSignal(hub.go, timeout=2000) as sent:
        panel.build.pretrain.click()
    assert sent.args == ["Pretrain", {"store": str(store.path)}]
    # The store is listed, and goes to the trash after a question.
    stores = panel.stores
    qtbot.waitUntil(lambda: stores.list.count() == 1, timeout=10_000)
    assert stores.list.item(0).text().startswith("▣ mine: 3 scans, 0 labelled")
    asked: list[Any] = []
    stores.ask = lambda _, question: asked.append(question) or Answer("cancel")
    home = tmp_path / "home"
    Run.create(home / "runs" / "learner", "slow", {"stores": [str(store.path)]})
    stores.delete.click()
    qtbot.waitUntil(lambda: len(asked) == 1, timeout=10_000)
    assert "Used by learner: these cannot be resumed" in asked[0].more
    assert store.path.is_dir()
    # No trash on this disk: it goes to ours, and says where.
    stores.ask = lambda *_: Answer("delete")
    monkeypatch.setattr(models.QFile, "moveToTrash", lambda *_: False, raising=False)
    stores.delete.click()
    binned = home / "trash" / store.path.name
    qtbot.waitUntil(binned.is_dir, timeout=10_000)
    assert not store.path.exists()
    qtbot.waitUntil(lambda: stores.list.count() == 0, timeout=10_000)


def test_cancel_and_problems_are_said(panel, hub, qtbot, tmp_path: Path) -> None:
    panel.add([write_scan(tmp_path / f"s{i}.nii", i) for i in range(2)])
    qtbot.waitUntil(lambda: len(panel.list.rows) == 2, timeout=10_000)
    panel.build.name.setText("../evil")
    panel.build._name_typed("../evil")
    panel.build.build.click()
    qtbot.waitUntil(lambda: bool(panel.build.problem.text()), timeout=10_000)
    assert "Give the store a name" in panel.build.problem.text()
    panel.build.name.setText("stopped")
    panel.build.build.click()
    qtbot.waitUntil(lambda: panel.build.helper is not None, timeout=10_000)
    panel.build.stop()
    qtbot.waitUntil(lambda: panel.build.helper is None, timeout=BUILD_MS)
    assert panel.build.problem.text().startswith("Stopped.")
    assert panel.build.build.isEnabled()
    run = tmp_path / "run-1"
    run.mkdir()
    (run / "run.json").write_text("{}")
    with qtbot.waitSignal(hub.go, timeout=2000) as sent:
        drop(panel, run)
    assert sent.args == ["Runs", {"run": str(run)}]
    for i in range(panel.list.topLevelItemCount()):
        panel.list.topLevelItem(i).setCheckState(0, Qt.CheckState.Unchecked)
    assert not panel.build.build.isEnabled()


@pytest.fixture
def clinic(tmp_path: Path) -> Path:
    """A folder of two scans, one with a label map of 1 and 2."""
    folder = tmp_path / "clinic"
    (folder / "labels").mkdir(parents=True)
    a = write_scan(folder / "a.nii.gz")
    write_scan(folder / "b.nii.gz", 1)
    labels = np.zeros((24, 26, 28), np.uint8)
    labels[4:9], labels[12:20] = 1, 2
    write_labels(
        LabelMap(labels, Affine.of((2.0, 1.5, 1.5))), folder / "labels" / a.name
    )
    return folder


def test_labels_are_named_where_a_store_is_built(panel, qtbot, clinic) -> None:
    box = panel.build
    line = box.label_names
    panel.add([clinic])
    qtbot.waitUntil(lambda: len(panel.list.rows) == 1, timeout=10_000)
    assert line.isVisibleTo(panel)
    line.field.setText("1")
    assert not line.problem.isVisibleTo(panel)  # who types is not yet done
    line.field.editingFinished.emit()
    assert "✖ Label names must be VALUE=NAME" in line.problem.text()
    assert line.problem.isVisibleTo(panel)
    box.build.click()
    assert box.helper is None
    assert box.build.isEnabled()
    line.field.setText("1=liver, 7=spleen")
    assert not line.problem.isVisibleTo(panel)
    with qtbot.waitSignal(box.built, timeout=BUILD_MS) as built:
        box.build.click()
        assert not line.isEnabled()
    assert line.isEnabled()
    assert line.isVisibleTo(panel)
    names = Store.open(built.args[0]).label_names
    assert names == {1: "liver", 2: "label 2", 7: "spleen"}
    assert "No label map holds 7 (spleen)." in box.summary.text()


def test_label_names_are_asked_for_where_label_maps_come_in(
    panel, hub, qtbot, clinic, tmp_path: Path
) -> None:
    line = panel.build.label_names
    panel.add([clinic / "b.nii.gz"])
    qtbot.waitUntil(lambda: len(panel.list.rows) == 1, timeout=10_000)
    assert not line.isVisibleTo(panel)
    panel.build.labels.setText(str(clinic / "labels"))
    assert line.isVisibleTo(panel)
    line.field.setText("no names")
    assert not line.is_sound()
    panel.build.labels.clear()
    assert not line.isVisibleTo(panel)
    assert (line.text, line.is_sound()) == ("", True)
    panel.add([clinic])
    qtbot.waitUntil(lambda: len(panel.list.rows) == 2, timeout=10_000)
    assert line.isVisibleTo(panel)
    folder = panel.list.topLevelItem(1)
    assert folder.text(0).startswith("clinic")
    folder.setCheckState(0, Qt.CheckState.Unchecked)
    assert not line.isVisibleTo(panel)
    hub.viewer.add_labels(np.zeros((24, 26, 28), np.uint8))
    qtbot.waitUntil(lambda: panel.use_labels.isVisibleTo(panel), timeout=10_000)
    assert not line.isVisibleTo(panel)
    panel.use_labels.setChecked(True)
    assert line.isVisibleTo(panel)
    hub.viewer.layers.clear()
    qtbot.waitUntil(lambda: not line.isVisibleTo(panel), timeout=10_000)


def test_the_offer_is_made_once(panel) -> None:
    settings = reader._settings()
    before = dict(settings.extension2reader)
    try:
        settings.extension2reader = {"*.tif": "napari"}
        assert reader.should_offer()
        panel.offer.use.click()
        assert settings.extension2reader["*.nii.gz"] == "napari-homolog"
        assert settings.extension2reader["*.tif"] == "napari"
        assert not reader.should_offer()
        assert not panel.offer.isVisibleTo(panel)
    finally:
        settings.extension2reader = before


def test_every_widget_has_a_name_and_a_tooltip(panel) -> None:
    for kind in (QAbstractButton, QLineEdit, QComboBox):
        for widget in panel.findChildren(kind):
            if widget.objectName().startswith("qt_"):
                continue
            where = f"{type(widget).__name__} {widget.accessibleName()!r}"
            assert widget.accessibleName(), where
            assert widget.toolTip(), where
    wide = {
        w.accessibleName(): w.minimumSizeHint().width()
        for w in panel.findChildren(QWidget)
        if w.minimumSizeHint().width() > 300
    }
    assert not wide
    assert panel.minimumSizeHint().width() <= 300


def test_commands_show_their_tab(
    make_napari_viewer_proxy, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(preferences, "home", lambda: tmp_path / "home")
    viewer = make_napari_viewer_proxy()
    window_module.show_data()
    _, main = viewer.window.add_plugin_dock_widget("napari-homolog", "Homolog")
    assert main.current() == "Data"
    window_module.show_runs()
    assert main.current() == "Runs"
    window_module.show_data()
    assert main.current() == "Data"
    assert len(viewer.window.dock_widgets) == 1


def test_a_choice_among_series_is_asked(
    panel, hub, qtbot, tmp_path, monkeypatch
) -> None:
    from homolog.gui.files import choosing

    a, b = write_scan(tmp_path / "a.nii"), write_scan(tmp_path / "b.nii", 1)
    found = [
        SeriesInfo(p, "CT", "Doe", (9, 8, 8), (1.0, 1.0, 1.0), (p,)) for p in (a, b)
    ]
    asked: list[Any] = []
    source = Source(tmp_path, series=tuple(found))
    monkeypatch.setattr(choosing, "sources_of", lambda paths: [source])
    monkeypatch.setattr(
        choosing, "ask", lambda series, parent: asked.append(series) or series[1]
    )
    panel.opener.open([tmp_path])
    qtbot.waitUntil(lambda: len(hub.viewer.layers) == 1, timeout=10_000)
    assert asked == [found]
    assert hub.viewer.layers[0].name == f"{tmp_path.name} b"


def test_the_series_chooser_hides_descriptions(qtbot, tmp_path: Path) -> None:
    def series(number: int, trouble: str = "") -> SeriesInfo:
        return SeriesInfo(
            tmp_path / str(number), "CT", "Doe, Jane", (number, 8, 8),
            (2.0, 1.0, 1.0), (tmp_path / "a",), trouble,
        )  # fmt: skip

    dialog = SeriesChooser([series(9), series(5), series(3, "slices missing.")])
    qtbot.addWidget(dialog)
    assert dialog.chosen().shape == (9, 8, 8)
    assert dialog.table.item(0, 1).text() == HIDDEN
    dialog.show_text.setChecked(True)
    assert dialog.table.item(0, 1).text() == "Doe, Jane"
    dialog.table.selectRow(1)
    assert dialog.chosen().shape == (5, 8, 8)
    assert "slices missing" in dialog.table.item(2, 5).text()
    assert choosing.row_texts(series(4))[2:5] == (
        "4",
        "8 x 8",
        "1 x 1 x 2 mm (x, y, z)",
    )
