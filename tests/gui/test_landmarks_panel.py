"""Landmarks in a real window: two viewers, clicks, drags, files, all gone after."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk

pytest.importorskip("napari")

from explore_files import unit_features, write_encoder, write_features
from named import nameless
from napari.utils.key_bindings import coerce_keybinding
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication, QWidget

from homolog.geometry.affine import Affine
from homolog.gui.beside.scan_b import IN_B
from homolog.gui.files.reader import read_layers
from homolog.gui.landmarks.pair import IN_A
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.threads import wait_for_threads
from homolog.gui.window import dock_panel
from homolog.scans.volume import Volume
from homolog.scans.write import write_volume

pytestmark = [
    pytest.mark.filterwarnings("error::FutureWarning"),
    pytest.mark.usefixtures("workers"),
]
SHAPE, CELLS = (16, 20, 24), (8, 10, 12)
BLOBS = [(3, 4, 5), (2, 6, 7), (5, 3, 3), (4, 6, 4)]
THERE = [(4, 5, 6), (3, 3, 8), (5, 6, 4), (2, 4, 4)]


def until(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        QApplication.processEvents()
        time.sleep(0.005)


def settle(seconds: float = 0.2) -> None:
    end = time.monotonic() + seconds
    until(lambda: time.monotonic() > end)


def body(folder: Path, name: str, affine: Affine, seed: int) -> Path:
    """A scan of soft tissue in air."""
    rng = np.random.default_rng(seed)
    data = np.full((1, *SHAPE), -1000, np.int16)
    data[:, :, 2:-2, 2:-2] = rng.integers(20, 60, (1, SHAPE[0], 16, 20))
    path = folder / f"{name}.nii.gz"
    write_volume(Volume(data, affine, name, "CT"), path)
    return path


@pytest.fixture
def scans(home: Path, tmp_path: Path) -> list[Path]:
    """Two patients with the same four blobs."""
    write_encoder(home / "runs" / "run")
    found = []
    for i, blobs in enumerate((BLOBS, THERE)):
        affine = Affine.of((2, 2, 2), (5 + 200 * i, 6, 7))
        path = body(tmp_path, f"scan_{i}", affine, i)
        cells = unit_features(CELLS)  # the rest of the body is alike
        for number, blob in enumerate(blobs):
            cells[blob] = np.eye(16)[number]
        write_features(home / "features", path, affine, SHAPE, cells)
        found.append(path)
    return found


@pytest.fixture
def window(make_napari_viewer_proxy, home: Path, monkeypatch):
    """Makes (viewer, main panel, landmark panel) with scans open."""
    monkeypatch.setattr(Hub, "want_schema", lambda self: None)

    def make(paths):
        viewer = make_napari_viewer_proxy(show=True)
        viewer.window.resize(1280, 720)
        panel = dock_panel(viewer)
        for path in paths:
            for data, attributes, _ in read_layers(str(path)):
                viewer.add_image(data, **attributes)
        settle()
        panel.show_tab("Landmarks")
        assert "Landmarks" in panel.panels, panel._areas["Landmarks"].widget().text()
        return viewer, panel, panel.panels["Landmarks"]

    yield make
    # The window closes with both viewers open; napari's fixture looks for what leaks.
    wait_for_threads()
    settle(0.05)


def all_ready(tab) -> None:
    control = tab.pair.control
    until(lambda: control.is_ready and not tab.pair.searching.is_preparing)


def click(tab, blob) -> None:
    """As Shift+click on a blob of A."""
    pair = tab.pair
    shown = pair.control.scan_a.ready.shown.apply(blob)
    pair.viewer.dims.set_point(range(3), list(shown))
    pair.placing.pressed(tuple(shown))
    table = pair.control.table
    until(lambda: all(table.trust(m) != "searching" for m in table))


def test_click_table_drag_fit_and_leaving(window, scans, tmp_path) -> None:
    loaded = set(sys.modules)
    viewer, main, tab = window(scans)
    pair, control = tab.pair, tab.pair.control
    all_ready(tab)
    assert "Shift+click" in tab.hint.hint.text()
    assert tab.a.scan.currentText() == "scan_0"
    for blob in BLOBS:
        click(tab, blob)
    model = pair.view.model
    table = control.table
    for mark, there in zip(table, THERE, strict=True):
        true = control.scan_b.ready.features.affine.apply(there)
        assert np.linalg.norm(np.array(mark.b_mm) - true) < 2.5
        assert mark.accepted
    assert tab.table.table.rowCount() == 4
    assert "● 1" in tab.table.table.item(0, 0).text()

    # Both viewers show the same numbers, in millimetres, and go to the chosen one.
    for layers, name, side in ((viewer.layers, IN_A, "a"), (model.layers, IN_B, "b")):
        points = layers[name]
        assert list(points.features["label"]) == ["1", "2", "3", "4"]
        assert [str(u) for u in points.units] == ["millimeter"] * 3
        shown = [m.shown_mm for m in control.marks(side)]
        assert np.allclose([points.data_to_world(p) for p in points.data], shown)
    tab.table.table.selectRow(1)
    assert table.chosen == 2
    assert np.allclose(model.dims.point, control.shown_in_b(table.get(2)), atol=1.1)
    assert np.allclose(viewer.dims.point, control.shown_in_a(table.get(2)), atol=1.1)
    for seen, shown in ((viewer, "shown_in_a"), (model, "shown_in_b")):
        cross = seen.layers["Cross"]
        assert cross.visible
        starts = np.array([cross.data_to_world(p) for p in cross.data[:, 0]])
        assert np.allclose(
            starts.mean(axis=0), getattr(control, shown)(table.get(2)), atol=1e-6
        )
    assert [str(u) for u in viewer.dims.units] == ["millimeter"] * 3
    assert tab.detail.isVisible()
    told_as_x_y_z(tab, table.get(2), scans)
    for label in tab.detail.pictures.values():
        image = label.pixmap().toImage()
        greys = {image.pixel(x, 64) for x in range(128)}
        assert len(greys) > 3  # a picture of the scan, not an empty one
    assert np.allclose(viewer.dims.range[0].step, 2.0)

    # Drag in B: kept as the user's own, also by another search.
    start = control.shown_in_b(table.get(2))
    before = table.get(2)
    drag(model, [start, start + np.array([0, 2, 2]), start + np.array([0, 4, 2])])
    moved = table.get(2)
    assert moved.manual
    assert np.allclose(np.array(moved.b_mm) - before.b_mm, (0, 4, 2))
    until(lambda: not np.isnan(table.get(2).similarity))
    assert table.get(2).similarity < 0.9
    pair.placing.search_again()
    settle(0.5)
    assert table.get(2).b_mm == moved.b_mm
    assert "■ 2" in tab.table.table.item(1, 0).text()
    elsewhere = start - np.array([0, 14, 14])
    drag(model, [elsewhere, elsewhere + 2])  # nothing there: the camera's
    assert table.get(2).b_mm == moved.b_mm

    # Names, verdicts, fit, files.
    tab.table.table.item(0, 1).setText("carina")
    tab.table.table.item(2, 0).setCheckState(Qt.CheckState.Unchecked)
    assert table.get(1).name == "carina"
    assert not table.get(3).accepted
    tab.fit.rigid.click()
    assert "fit" in tab.fit.words.text()
    tab.files.export_to(tmp_path / "out.mrk.json")
    until(lambda: "Saved 4 landmarks" in tab.said.text())
    assert "LPS" in tab.said.text()
    pair.placing.delete(4)
    tab.files.import_from(tmp_path / "out_B.mrk.json")
    until(lambda: len(table) == 7)
    assert table.get(5).name == "point 4" or any(m.name == "point 4" for m in table)
    tab.files.import_from(tmp_path / "missing.csv")
    settle()

    # The cohort: the other open scan, with a thumbnail.
    pair.placing.choose(1)
    tab.cohort.search.click()
    until(lambda: all(r.state == "found" for r in tab.cohort.found.values()))
    assert len(tab.cohort.found) == 1
    settle()  # the table is filled a moment later
    assert not tab.cohort.table.item(0, 0).icon().isNull()

    # Another tab: the second view steps aside; its keys are the other tab's.
    key = coerce_keybinding("Shift-N")
    assert key in viewer.keymap
    main.show_tab("Explore")
    assert not pair.view.is_visible
    until(lambda: main.width() <= 400)  # the canvas gets the room, not our panel
    assert not pair.placing.listening.on
    assert key in viewer.keymap
    main.show_tab("Landmarks")
    until(lambda: pair.view.is_visible)
    assert nameless(tab) == []
    assert tab.minimumSizeHint().width() <= 320
    pair.end()
    settle()
    assert pair.view is None
    left = [layer.name for layer in viewer.layers]
    assert [name for name in left if "similarity" not in name] == ["scan_0", "scan_1"]
    assert not {"torch", "monai"} & (set(sys.modules) - loaded)


def told_as_x_y_z(tab, mark, scans) -> None:
    """The details line and the table name LPS as ITK has it: x, y, z."""
    words = tab.detail.words.text()
    told = [
        [float(v) for v in found]
        for found in re.findall(r"at x (\S+), y (\S+), z (\S+) mm \(LPS\)", words)
    ]
    assert len(told) == 2, words
    assert told[0] == pytest.approx(mark.a_mm[::-1], abs=0.06)
    assert told[1] == pytest.approx(mark.b_mm[::-1], abs=0.06)
    image = sitk.ReadImage(str(scans[0]))
    voxel = image.TransformPhysicalPointToContinuousIndex(told[0])
    cell = np.array(BLOBS[1][::-1])  # of two voxels
    np.testing.assert_allclose(voxel, 2 * cell + 0.5, atol=0.6)
    table = tab.table.table
    for column, numbers in ((5, told[0]), (6, told[1])):
        assert "x, y, z mm" in table.horizontalHeaderItem(column).text()
        cell_text = table.item(1, column).text()
        assert [float(v) for v in cell_text.split(", ")] == numbers


def drag(model, places) -> None:
    """As the mouse does it: press, moves, release."""
    event = SimpleNamespace(
        type="mouse_press", button=1, modifiers=(), position=tuple(places[0]),
        handled=False, pos=(0, 0),
    )  # fmt: skip
    ours = [c for c in model.mouse_drag_callbacks if "homolog" in c.__module__]
    assert len(ours) == 1
    for generator in filter(None, (callback(model, event) for callback in ours)):
        next(generator)
        assert event.handled  # the camera stays
        event.type = "mouse_move"
        for place in places[1:]:
            event.position = tuple(place)
            next(generator)
        event.type = "mouse_release"
        with contextlib.suppress(StopIteration):
            next(generator)


def test_real_clicks_follow_and_a_closed_second_view(window, scans) -> None:
    viewer, _, tab = window(scans)
    pair, control = tab.pair, tab.pair.control
    all_ready(tab)
    pair.open_view()
    settle(0.4)
    pair.travel.look_at(control.a)
    canvas = next(
        w for w in tab.window().findChildren(QWidget)
        if type(w).__name__ == "CanvasBackendDesktop" and w.isVisible()
        and not pair.view.widget.isAncestorOf(w)
    )  # fmt: skip
    centre = canvas.rect().center()
    viewer.mouse_over_canvas = True
    QTest.mouseMove(canvas, centre)
    settle(0.05)
    # A plain click picks only while picking, a drag never.
    plain(canvas, centre, centre)
    assert len(control.table) == 0
    tab.pick.setChecked(True)
    camera = viewer.scene.camera.center
    plain(canvas, centre, centre + QPoint(40, 30))
    assert len(control.table) == 0
    assert not np.allclose(viewer.scene.camera.center, camera)  # it was a pan
    plain(canvas, centre, centre)
    assert len(control.table) == 1
    tab.pick.setChecked(False)
    QTest.mouseClick(
        canvas, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.ShiftModifier,
        centre + QPoint(12, 0),
    )  # fmt: skip
    assert len(control.table) == 2
    table = control.table
    until(lambda: all(table.trust(m) != "searching" for m in table))

    # B follows the mouse of A; the latest place wins.
    tab.follow.setChecked(True)
    blob = control.scan_a.ready.shown.apply(BLOBS[1])
    viewer.dims.set_point(range(3), list(blob))
    for step in range(5, -1, -1):
        pair.placing.moved(tuple(blob + np.array([0, step, 0])))
        pair.placing._ask_follow()
    there = control.scan_b.ready.shown.apply(THERE[1])
    until(lambda: np.allclose(pair.view.model.dims.point, there, atol=1.1))
    until(lambda: "in B" in pair.placing.listening._words)
    tab.follow.setChecked(False)

    # The user closes the second dock; it comes back with what it showed.
    viewer.window.remove_dock_widget(pair.view.widget)
    until(lambda: pair.view is None)
    assert tab.second.isVisible()
    tab.second.click()
    until(lambda: pair.view is not None and pair.view.is_visible)
    assert pair.view.model.layers[0].name == "scan_1"
    assert len(pair.view.model.layers[IN_B].data) == sum(
        m.b_mm is not None for m in table
    )


def plain(canvas, start: QPoint, end: QPoint) -> None:
    """Press, move, release without keys."""
    left = Qt.MouseButton.LeftButton
    QTest.mousePress(canvas, left, Qt.KeyboardModifier.NoModifier, start)
    settle(0.02)
    if end != start:
        for share in (0.5, 1.0):
            QTest.mouseMove(canvas, start + (end - start) * share)
            settle(0.02)
    QTest.mouseRelease(canvas, left, Qt.KeyboardModifier.NoModifier, end)
    settle(0.02)


def test_one_scan_then_a_file_as_b_and_hints(window, scans) -> None:
    viewer, _, tab = window(scans[:1])
    control = tab.pair.control
    until(lambda: "two scans" in tab.hint.hint.text())
    assert tab.hint.act.text() == "Choose a file as B..."
    assert not tab.pick.isEnabled()
    assert tab.pair.placing.pick_here() is None
    tab.pair.open_view()
    tab.pair.open_b(scans[1])
    all_ready(tab)
    assert tab.b.scan.currentText() == "scan_1"
    assert not tab.swap.isEnabled()
    assert [layer.name for layer in viewer.layers] == ["scan_0"]
    assert tab.pair.view.model.layers[0].name == "scan_1"
    click(tab, BLOBS[0])
    assert control.table.get(1).accepted
    # Dropped onto B: another scan B.
    for data, attributes, _ in read_layers(str(scans[0])):
        tab.pair.view.model.add_image(data, **{**attributes, "name": "dropped"})
    until(lambda: tab.b.scan.currentText() == "dropped")
    tab.pair.open_b(scans[0].parent / "no_such.nii.gz")
    until(lambda: "no_such" in tab.said.text() and "Reading" not in tab.said.text())
