"""Explore in a real window: mouse in, heat and points out, all gone afterwards."""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("napari")

from explore_files import (
    tilted,
    unit_features,
    write_encoder,
    write_features,
    write_scan,
)
from qtpy.QtCore import QEvent, QObject, QPoint, Qt, Signal
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication, QLabel, QWidget
from scipy.ndimage import map_coordinates

from homolog.events import Progress
from homolog.features.files import open_features
from homolog.features.search import query_at
from homolog.geometry.affine import Affine
from homolog.gui.explore.panel import ExplorePanel
from homolog.gui.files.reader import read_layers
from homolog.gui.shared import model_row, preferences
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.scan_layers import MATCHES, PINS, go_to
from homolog.gui.shared.threads import wait_for_threads

SHAPE = (16, 20, 24)
CELLS = (8, 10, 12)
BLOB = np.ones(16) / 4


def until(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        QApplication.processEvents()
        time.sleep(0.005)


@pytest.fixture
def home(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setattr(preferences, "home", lambda: tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def scans(home: Path, tmp_path: Path) -> list[Path]:
    """A straight scan and a tilted one of another patient, each with a blob."""
    write_encoder(home / "runs" / "run")
    affines = [
        Affine.of((2, 2, 2), (5, 6, 7)),
        Affine.of((2, 2, 2), (5, -30, 60), tilted()),
    ]
    found = []
    for i, (affine, blob) in enumerate(
        zip(affines, [(2, 3, 4), (5, 6, 7)], strict=True)
    ):
        scan = write_scan(tmp_path, f"scan_{i}", affine, SHAPE, seed=i)
        cells = unit_features(CELLS, seed=i)
        cells[blob] = BLOB
        write_features(home / "features", scan, affine, SHAPE, cells)
        found.append(scan)
    return found


@pytest.fixture
def window(make_napari_viewer_proxy, home):
    """(viewer, panel) and, after the test, everything of ours gone."""
    viewer = make_napari_viewer_proxy(show=True)
    made = []

    def make(paths: list[Path]):
        for path in paths:
            for data, attributes, kind in read_layers(str(path)):
                assert kind == "image"
                viewer.add_image(data, **attributes)
        hub = Hub(viewer)
        panel = ExplorePanel(hub)
        panel.resize(320, 700)
        panel.show()
        made.extend((hub, panel))
        return panel

    yield viewer, make
    for thing in reversed(made):
        with contextlib.suppress(RuntimeError):  # deleted by the test
            if isinstance(thing, QWidget):
                thing.close()
            thing.deleteLater()
    wait_for_threads()
    QApplication.processEvents()


def all_ready(panel: ExplorePanel) -> list:
    control = panel.explorer.control
    until(lambda: control.scans and len(control.ready()) == len(control.scans))
    return list(control.scans.values())


def test_hover_pin_match_labels_and_leaving(window, scans) -> None:
    viewer, make = window
    panel = make(scans)
    one, two = all_ready(panel)
    explorer, control = panel.explorer, panel.explorer.control
    first, second = viewer.layers["scan_0"], viewer.layers["scan_1"]
    assert [layer.name for layer in viewer.layers] == [
        "scan_0", "scan_0 similarity", "scan_1", "scan_1 similarity",
    ]  # fmt: skip
    assert viewer.layers.selection.active.name == "scan_1"
    panel.beside.choose("")  # all in one view
    heat = viewer.layers["scan_0 similarity"]
    assert [str(u) for u in heat.units] == ["millimeter"] * 3
    assert heat.metadata["homolog"]["derived"]

    # Hover: the slice shown is the plain cosine, in every order of the axes.
    second.visible = False
    assert not viewer.layers["scan_1 similarity"].visible
    middle = one.ready.shown.apply((2, 3, 4)) + np.array([0.7, -0.9, 0.4])
    features = one.ready.features
    cells = np.moveaxis(features.data, 0, -1).astype(np.float32)
    for order in [(0, 1, 2), (1, 0, 2), (2, 1, 0), (0, 2, 1)]:
        viewer.dims.order = order
        go_to(viewer, middle)
        axis, place = order[0], middle.copy()
        place[axis] = viewer.dims.point[axis]  # the slice on screen
        explorer.moved(place)
        explorer.hover()
        cut = control.cut(one, axis, place[axis])
        # What the mouse rests on long enough is shown from its whole map at once.
        until(
            lambda cut=cut: (
                one.ready.cache.ready(cut) or one.ready.buffer.whole is not None
            )
        )
        explorer.drawing.draw()
        query = query_at(features, place[None])[0]
        expected = np.clip(cut.read(cells @ query), -1, 1)
        shown = heat.data.take(cut.low, axis)
        assert np.abs(shown - expected).max() < 1e-5
        # napari shows this very plane at this place.
        assert heat.get_value(place, world=True) == pytest.approx(
            heat.data[tuple(np.round(heat.world_to_data(place)).astype(int))]
        )
    viewer.dims.order = (0, 1, 2)

    # Resting: the whole map.
    explorer._rest.stop()
    explorer.rested()
    explorer.hover()  # told late once more of the same place: that asks nothing anew
    assert not explorer._rest.isActive()
    until(lambda: one.ready.buffer.whole is not None)
    assert np.abs(one.ready.buffer.whole - cells @ query).max() < 1e-5
    explorer.hover()
    assert one.ready.buffer.whole is not None

    # Pinned: named point, answered in the tilted scan at the right place.
    at_blob = one.ready.shown.apply((2, 3, 4))
    go_to(viewer, at_blob)
    explorer.pressed(at_blob)
    (pin,) = control.pins
    until(lambda: len(pin.answers) == 2)
    answer = pin.answers[two.key]
    true = two.ready.features.affine.apply((5, 6, 7))
    assert np.linalg.norm(np.array(answer.mm) - true) < 2.0
    points = viewer.layers[PINS]
    assert np.allclose(points.data_to_world(points.data[0]), at_blob)
    assert MATCHES not in viewer.layers  # its scan is hidden
    assert viewer.layers.selection.active.name == "scan_1"
    steps = [r.step for r in viewer.dims.range]
    assert np.allclose(steps, 2.0)  # sliders still step by slices
    explorer.go_on()
    assert second.visible
    marks = viewer.layers[MATCHES]
    assert np.allclose(
        two.to_true.apply(marks.data_to_world(marks.data[0])), answer.mm, atol=1e-6
    )
    assert np.allclose(viewer.dims.point, marks.data_to_world(marks.data[0]), atol=1.1)

    # Hovering elsewhere and leaving: the pinned map is back, the value is told.
    whole = pin.answers[one.key].whole
    explorer.look_at(one.key, pin.mm)
    explorer.moved(at_blob + 8)
    explorer.hover()
    until(lambda: control.query.pin is None)
    assert "'place 1'" in panel.mouse.value.text()
    explorer.left()
    assert control.query.pin == 1
    assert np.allclose(one.ready.buffer.whole, whole)
    explorer.control.hover = False
    place = at_blob + np.array([0, 1.5, -0.5])
    place[0] = viewer.dims.point[0]
    explorer.moved(place)
    explorer.hover()
    cell = one.ready.shown.inverse().apply(place)
    value = map_coordinates(whole.astype(np.float64), cell[:, None], order=1)[0]
    assert panel.mouse.value.text() == f"similarity {value:.2f} to 'place 1'"
    assert value > 0.5
    explorer.left()

    # Labels on the scan's own grid.
    explorer.show_heat(two.key, False)
    assert "scan_1 similarity" not in viewer.layers
    panel.tools.range.setValue((0.4, 1.0))
    panel.products.make_labels()
    until(lambda: "scan_0 place 1" in viewer.layers)
    labels = viewer.layers["scan_0 place 1"]
    assert labels.data.shape == first.data.shape
    assert np.allclose(labels.scale, first.scale)
    assert np.allclose(labels.translate, first.translate)
    assert labels.metadata["homolog"]["label_names"] == {1: "place 1"}
    assert (labels.data[4:6, 6:8, 8:10] == 1).all()
    assert "Labelled" in panel.said.text()

    # Layers the user deletes are not put back unasked. (Labels hidden: Mesa's software
    # renderer crashes in drawing any labels after a scan and points were removed.)
    labels.visible = False
    viewer.layers.remove(viewer.layers["scan_0 similarity"])
    assert not one.shown
    viewer.layers.remove(viewer.layers[PINS])
    assert not panel.mouse.points.isChecked()
    viewer.layers.remove(viewer.layers["scan_0"])
    assert list(control.scans) == [two.key]
    assert len(control.pins) == 1
    assert "torch" not in sys.modules or "torch" in _loaded_before


_loaded_before = set(sys.modules)


def test_another_patient_beside_goes_to_the_match(window, scans) -> None:
    viewer, make = window
    panel = make(scans)
    one, two = all_ready(panel)
    explorer, beside, control = panel.explorer, panel.beside, panel.explorer.control
    first, second = viewer.layers["scan_0"], viewer.layers["scan_1"]
    assert beside.view is None
    assert panel.others.choice.count() == 3
    explorer.look_at(one.key)  # scan_1 lay over it
    truth = np.zeros(SHAPE, np.uint8)
    truth[4:6, 6:8, 8:10] = 7
    labels = viewer.add_labels(
        truth, scale=first.scale, translate=first.translate, units=first.units
    )
    labels.metadata["label_names"] = {7: "blob"}
    at_blob = one.ready.shown.apply((2, 3, 4))
    go_to(viewer, at_blob)
    explorer.pressed(at_blob)
    (pin,) = control.pins
    until(lambda: len(pin.answers) == 2 and beside.view is not None)

    # Beside, at its match, and out of sight here.
    assert beside.key == two.key
    assert first.visible
    assert not second.visible
    model = beside.view.model
    until(lambda: "scan_1 similarity" in model.layers)
    match = np.array(pin.answers[two.key].mm)

    def is_there(mm) -> bool:
        place = two.to_true.inverse().apply(mm)
        return np.allclose(model.dims.point, place, atol=1.1)

    until(lambda: is_there(match))
    heat = model.layers["scan_1 similarity"].data
    until(lambda: np.abs(heat - pin.answers[two.key].whole).max() < 1e-6)
    assert np.unravel_index(heat.argmax(), heat.shape) == (5, 6, 7)
    assert "scan_1 is at its match" in panel.others.words.text()

    # The organ under the pin is told from the rest.
    until(lambda: "blob" in panel.pins.organ.text())
    assert "AUC 1.00 in scan_0" in panel.pins.organ.text()

    # Under the mouse it follows only where that is asked for.
    elsewhere = one.ready.shown.apply((6, 8, 3))
    go_to(viewer, elsewhere)
    explorer.moved(elsewhere)
    explorer.hover()
    explorer.rested()
    until(lambda: control.query.pin is None and two.ready.buffer.whole is not None)
    assert is_there(match)
    panel.others.follow.click()
    explorer.rested()
    best = np.unravel_index(two.ready.buffer.whole.argmax(), CELLS)
    until(lambda: is_there(two.ready.features.affine.apply(best)))

    # Two pins as two colours, here and beside; a removed pin takes its colour along.
    explorer.pressed(elsewhere)
    panel.pins.several.click()
    until(lambda: "scan_0 pins" in viewer.layers and "scan_1 pins" in model.layers)
    assert not viewer.layers["scan_0 similarity"].visible
    until(lambda: len(control.pins.get(2).answers) == 2)
    blue, orange = (2, 3, 4), (6, 8, 3)
    rgb = viewer.layers["scan_0 pins"]
    until(lambda: rgb.data[blue].tolist() == [0x56, 0xB4, 0xE9])
    until(lambda: rgb.data[orange].tolist() == [0xE6, 0x9F, 0x00])
    explorer.delete_pin(2)
    until(lambda: rgb.data[orange].tolist() == [0, 0, 0])
    panel.pins.several.click()
    assert "scan_0 pins" not in viewer.layers
    assert "scan_1 pins" not in model.layers
    assert viewer.layers["scan_0 similarity"].visible

    # To the match by key, both change places, and closed it stays closed.
    explorer.go_on()
    assert is_there(match)
    explorer.look_at(two.key)
    assert beside.key == one.key
    assert second.visible
    assert not first.visible
    viewer.window.remove_dock_widget(beside.view.widget)
    until(lambda: beside.view is None)
    explorer.show_pin(1)
    assert beside.view is None
    sent = []
    panel.hub.go.connect(lambda tab, what: sent.append((tab, what)))
    panel.pins.carry.click()
    assert sent == [("Label", {"carry": True})]


def test_real_mouse_events_and_a_panel_that_goes(window, scans) -> None:
    viewer, make = window
    panel = make(scans[:1])
    (one,) = all_ready(panel)
    explorer = panel.explorer
    canvas = next(  # of this viewer: those of others may not be gone yet
        w for w in viewer.__wrapped__.window._qt_window.findChildren(QWidget)
        if type(w).__name__ == "CanvasBackendDesktop" and w.isVisible()
    )  # fmt: skip
    centre = canvas.rect().center()
    until(lambda: canvas.width() > 50)
    explorer.look_at(one.key)
    places = itertools.cycle(range(6))

    def move() -> None:
        """As a hand goes on moving; the real pointer may lie elsewhere and leave."""
        viewer.mouse_over_canvas = True
        QTest.mouseMove(canvas, QPoint(centre.x() + next(places), centre.y()))

    def is_asked() -> bool:
        move()
        return explorer.control.query is not None

    def is_told() -> bool:
        move()
        return "similarity" in str(viewer.status)

    until(is_asked)
    asked = explorer.control.query.mm
    assert np.linalg.norm(asked - one.grid.apply(np.array(SHAPE) / 2)) < 12
    QTest.mouseClick(
        canvas, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.ShiftModifier, centre
    )
    until(lambda: len(explorer.control.pins) == 1)
    until(is_told)
    assert len(viewer.mouse_move_callbacks) == 1
    until(lambda: explorer.control.pins.current.answers)
    panel.hide()
    assert not viewer.mouse_move_callbacks
    assert not _ours(viewer.mouse_drag_callbacks)
    panel.show()
    assert len(viewer.mouse_move_callbacks) == 1
    viewer.dims.ndisplay = 3
    assert "2D view" in panel.hint.hint.text()
    assert explorer._scan_under() is None
    viewer.dims.ndisplay = 2
    panel.hide()  # another tab is in front; the scan is closed meanwhile
    kept = viewer.layers["scan_0"]
    viewer.layers.remove(kept)
    assert "scan_0 similarity" not in viewer.layers
    panel.show()
    assert not explorer.control.scans
    assert "(closed)" in panel.pins.table.item(0, 2).text()
    viewer.add_image(kept.data, **_attributes(kept))
    all_ready(panel)
    assert "scan_0 similarity" in viewer.layers
    panel.deleteLater()
    QApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
    until(lambda: not viewer.mouse_move_callbacks)
    assert [layer.name for layer in viewer.layers] == ["scan_0"]


def test_nothing_open_says_what_to_do(window, home) -> None:
    _, make = window
    panel = make([])
    sent = []
    panel.hub.go.connect(lambda tab, what: sent.append(tab))
    until(lambda: "No model yet" in panel.hint.hint.text())
    assert panel.hint.bring.isVisible()
    panel.hint.act.click()
    panel.hint.bring.click()
    assert sent == ["Pretrain", "Models"]
    write_encoder(home / "runs" / "run")
    panel.hub.changed.emit("runs")
    until(lambda: panel.models.model.count() == 1)
    assert "No scan is open" in panel.hint.hint.text()
    panel.hint.act.click()
    assert sent[-1] == "Data"
    assert not panel.mouse.isVisible()
    for widget in panel.findChildren(QWidget):
        if isinstance(widget, QLabel) or not widget.isVisible():
            continue
        if widget.focusPolicy() == Qt.FocusPolicy.NoFocus or widget.parent() is None:
            continue
        if widget.metaObject().className() in ("QComboBox", "QPushButton", "QCheckBox"):
            assert widget.accessibleName(), widget
            assert widget.toolTip(), widget
    assert panel.minimumSizeHint().width() <= 320


def _attributes(layer) -> dict:
    names = ("name", "scale", "translate", "units", "axis_labels", "metadata")
    return {name: getattr(layer, name) for name in names}


def _ours(callbacks) -> list:
    return [c for c in callbacks if "homolog" in getattr(c, "__module__", "")]


class FakeHelper(QObject):
    """What a worker would tell, told by the test."""

    news = Signal(object)
    done = Signal(object)
    failed = Signal(str)
    stopped = Signal()
    made: list = []  # noqa: RUF012

    def __init__(self, kind, config, parent) -> None:
        super().__init__(parent)
        self.kind, self.config = kind, config
        FakeHelper.made.append(self)

    def start(self) -> None:
        pass

    def stop(self) -> None:
        self.stopped.emit()


def test_features_are_computed_cancelled_and_retried(
    window, home, tmp_path, monkeypatch
) -> None:
    _, make = window
    monkeypatch.setattr(model_row, "Helper", FakeHelper)
    FakeHelper.made = []
    write_encoder(home / "runs" / "run")
    affine = Affine.of((2, 2, 2), (5, 6, 7))
    paths = [write_scan(tmp_path, f"scan_{i}", affine, SHAPE, seed=i) for i in (0, 1)]
    panel = make(paths)
    control = panel.explorer.control
    until(lambda: [s.state for s in control.scans.values()] == ["none", "none"])
    one, two = control.scans.values()
    assert "Compute features" in panel.hint.hint.text()
    panel.hint.act.click()
    until(lambda: len(FakeHelper.made) == 1)
    helper = FakeHelper.made[0]
    assert helper.kind == "embed"
    assert helper.config["scans"] == [str(paths[0])]
    assert helper.config["folder"] == str(home / "features")
    helper.news.emit(Progress("embedding", 5, 20, "scan_0", 42.0))
    row = panel._rows[one.key]
    assert row.state.text() == "… computing 25%, 42 s left"
    assert two.state == "waiting"
    helper.failed.emit("there is no room on the disk.")
    assert row.state.text() == "⚠ there is no room on the disk."
    assert row.button.text() == "Try again"
    until(lambda: len(FakeHelper.made) == 2)
    panel._rows[two.key].button.click()  # cancel
    assert two.state == "none"
    row.button.click()
    until(lambda: len(FakeHelper.made) == 3)
    cells = unit_features(CELLS)
    card = write_features(home / "features", paths[0], affine, SHAPE, cells)
    FakeHelper.made[2].done.emit({"features": [{"card": str(card)}], "stopped": False})
    until(lambda: one.state == "ready")
    assert "scan_0 similarity" in panel.hub.viewer.layers
    assert open_features(card).data.shape == (16, *CELLS)
