"""What arrives by itself moves no control of a tab."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

pytest.importorskip("napari")

import numpy as np
from explore_files import unit_features, write_encoder, write_features, write_scan
from learn_fakes import FakeHelper, fake_engine, until
from qtpy.QtCore import QEvent, Qt
from qtpy.QtWidgets import QApplication, QScrollArea, QWidget
from steady import moved, places, replaced
from test_compare_page import SUMMARY, compare_run, summary
from test_label_panel import (
    BACKGROUND,
    LEFT,
    RIGHT,
    begin,
    patient,
    predicted,
    row_of,
    settle,
    stroke,
)
from test_segment_panel import write_model
from toy_runs import make_model, slow_run, wait_for_step

from homolog.events import Note, Progress
from homolog.geometry.affine import Affine
from homolog.gui.files import reader
from homolog.gui.files.reader import read_layers
from homolog.gui.learn.tabs import FinetunePanel, PretrainPanel
from homolog.gui.models import probing
from homolog.gui.models.panel import ModelsPanel
from homolog.gui.runs.panel import RunsPanel
from homolog.gui.segment import batch_box
from homolog.gui.segment import panel as segment_panel
from homolog.gui.shared import model_row, widgets
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.runs import Trouble
from homolog.gui.shared.threads import wait_for_threads
from homolog.gui.window import dock_panel
from homolog.runs import launch

pytestmark = pytest.mark.usefixtures("workers")
SHAPE, CELLS = (16, 20, 24), (8, 10, 12)
# One switch in effect, and two ways to leave the same scan alone.
OPPOSITES = {
    "Go on over Pause", "Pause over Go on", "Cancel over Cancel",
    "Cancel the scan over Cancel",
}  # fmt: skip
LONG = "a scan of the archive with a name that is longer than any dock is wide " * 3


def small(viewer, tab) -> None:
    """A window of 1280 x 720, once it has come to rest."""
    viewer.window.resize(1280, 720)
    last, since = places(tab), time.monotonic()
    while time.monotonic() - since < 0.25:
        QApplication.processEvents()
        time.sleep(0.005)
        if (now := places(tab)) != last:
            last, since = now, time.monotonic()


@pytest.fixture
def docked(make_napari_viewer_proxy, home: Path, monkeypatch):
    """Makes (viewer, tab, stands): a small window, and what holds of its controls."""
    monkeypatch.setattr(Hub, "want_schema", lambda self: None)

    def make(title: str, paths: Iterable[Path] = ()):
        viewer = make_napari_viewer_proxy(show=True)
        panel = dock_panel(viewer)
        for path in paths:
            for data, attributes, _ in read_layers(str(path)):
                viewer.add_image(data, **attributes)
        panel.show_tab(title)
        tab = panel.panels[title]
        small(viewer, tab)
        return viewer, tab, Steady(tab)

    yield make
    for helper in FakeHelper.made:
        with contextlib.suppress(RuntimeError):  # gone with its panel
            helper.deleteLater()  # what it is connected to knows the viewer
    FakeHelper.made.clear()
    QApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
    wait_for_threads()
    settle(0.1)


class Steady:
    """Looks whether all controls seen so far stand where they first stood."""

    def __init__(self, tab: QWidget) -> None:
        self._tab, self._before = tab, places(tab)
        self._last = self._before

    def __call__(self, what: str) -> None:
        settle(0.02)
        assert moved(self._before, self._tab) == [], what
        assert set(replaced(self._last, self._tab)) <= OPPOSITES, what
        self._last = places(self._tab)
        self._before = self._before | self._last


@pytest.fixture
def sentence(qtbot):
    label = widgets.sentence("Sentence", lines=2)
    qtbot.addWidget(label)
    label.resize(200, label.height())
    label.show()
    qtbot.waitExposed(label)
    return label


def test_a_sentence_keeps_its_height_and_tells_all(sentence) -> None:
    high = sentence.height()
    assert abs(high - 2 * sentence.fontMetrics().lineSpacing()) <= 2
    for text in ("", "short", LONG):
        widgets.tell(sentence, text)
        QApplication.processEvents()
        assert sentence.height() == high
        assert sentence.text() == text
        assert sentence.is_cut == (text == LONG)
    assert sentence._shown().endswith("…")
    assert LONG.startswith(sentence._shown()[:-1])
    assert sentence._high(sentence._shown()) <= high
    assert not sentence.grab().isNull()


def test_a_click_shows_all_of_a_sentence_until_another_one(sentence, qtbot) -> None:
    high = sentence.height()
    widgets.tell(sentence, LONG)
    qtbot.mouseClick(sentence, Qt.MouseButton.LeftButton)
    assert sentence.height() > high
    assert not sentence.is_cut
    qtbot.mouseClick(sentence, Qt.MouseButton.LeftButton)
    assert sentence.height() == high
    qtbot.mouseClick(sentence, Qt.MouseButton.LeftButton)
    widgets.tell(sentence, "another one")
    assert sentence.height() == high


def test_room_is_kept_for_the_longest_known_sentence(qtbot) -> None:
    label = widgets.sentence("Hint", texts=("short", LONG))
    qtbot.addWidget(label)
    label.resize(200, 20)
    label.show()
    widgets.tell(label, "short")
    narrow = label.height()
    assert narrow >= label._high(LONG)
    label.resize(400, 20)
    assert label.height() < narrow


def test_label_stays_while_one_paints(docked, tmp_path: Path) -> None:
    path, _ = patient(tmp_path, "ct")
    _, tab, stands = docked("Label", [path])
    desk = begin(tab)
    stands("a layer to paint on was made")
    desk.painted.brush_size = 1
    stroke(desk.painted, LEFT, BACKGROUND)
    settle(0.1)
    stands("the first stroke was counted")
    until(lambda: tab.labelling.trainer.problem)
    stands("one class is not enough")
    stroke(desk.painted, RIGHT, 1)
    settle(0.1)
    stands("a second class is painted: the hint goes")
    predicted(tab)
    stands("the first prediction arrived")
    until(lambda: tab.result.score.text())
    stands("the score arrived")
    tab.result.tell(LONG)
    stands("something was told")
    for text in (LONG, ""):
        for label in (tab.result.warnings, tab.result.state, tab.hint, tab.hand.words):
            widgets.tell(label, text)
        stands(f"sentences say {text[:9]!r}")
    for part in (tab.hand.bar, tab.hand.cancel, tab.hand.use):
        part.show()
    stands("a model is being saved")
    for part in (tab.hand.bar, tab.hand.cancel, tab.hand.use):
        part.hide()
    stands("it is saved")
    for _ in range(4):  # more than are shown
        tab.classes.add.click()
    stands("classes were added")
    _, row = row_of(tab, "ct")
    row.bar.show()
    row.take.show()
    stands("features are computed, another layer is selected")


AFFINES = [Affine.of((2, 2, 2), (5 + 100 * i, 6, 7)) for i in (0, 1)]


def two_patients(home: Path, folder: Path) -> list[Path]:
    """Two scans, and a model that has no features of them yet."""
    write_encoder(home / "runs" / "run")
    return [
        write_scan(folder, f"scan_{i}", affine, SHAPE, seed=i)
        for i, affine in enumerate(AFFINES)
    ]


def with_features(home: Path, paths: list[Path]) -> list[Path]:
    for i, (path, affine) in enumerate(zip(paths, AFFINES, strict=True)):
        cells = unit_features(CELLS, seed=i)
        write_features(home / "features", path, affine, SHAPE, cells)
    return paths


def test_explore_stays_while_features_come(
    docked, home: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(model_row, "Helper", FakeHelper)
    paths = two_patients(home, tmp_path)
    viewer, tab, stands = docked("Explore", paths)
    scans = tab.explorer.control.scans
    until(lambda: [s.state for s in scans.values()] == ["none", "none"])
    stands("features were looked for")
    tab.hint.act.click()
    until(lambda: FakeHelper.made)
    stands("features are being computed")
    FakeHelper.made[0].news.emit(Progress("embedding", 5, 20, "scan_0", 42.0))
    stands("progress was told")
    FakeHelper.made[0].failed.emit(LONG)
    until(lambda: len(FakeHelper.made) == 2)
    stands("one failed")
    FakeHelper.made[1].stopped.emit()
    stands("the other one was cancelled")
    with_features(home, paths)
    tab.explorer.look_again()
    until(lambda: len(tab.explorer.control.ready()) == 2)
    stands("features are there")
    for shown in (3, 2):
        viewer.dims.ndisplay = shown
        stands("the hint changed")
    tab.said.setText(LONG)
    tab.mouse.value.setText(LONG)
    stands("something was told")
    key = next(iter(scans))
    tab.explorer.look_at(key)
    for number in range(1, 4):
        shown = scans[key].ready.shown.apply((3, 4, 5 + number % 3))
        tab.explorer.control.ask(scans[key], shown)
        tab.explorer.control.pin(tab.explorer.control.query)
        tab.explorer.pins_told()
        tab.pins.refresh()
        stands(f"{number} places are pinned")
    tab.explorer.show_pin(1)
    until(lambda: tab.pins.matches.rowCount(), 10)
    stands("matches were found")


def test_landmarks_stay_while_one_places_them(
    docked, home: Path, tmp_path: Path
) -> None:
    paths = with_features(home, two_patients(home, tmp_path))
    viewer, tab, stands = docked("Landmarks", paths)
    pair, table = tab.pair, tab.pair.control.table
    until(lambda: pair.control.is_ready)
    until(lambda: not pair.searching.is_preparing)
    stands("both scans are ready")
    for number in range(1, 4):
        shown = pair.control.scan_a.ready.shown.apply((3, 4, 4 + number % 3))
        viewer.dims.set_point(range(3), list(shown))
        pair.placing.pressed(tuple(shown))
        stands(f"{number} places are searched")
        until(lambda: all(table.trust(m) != "searching" for m in table))
        stands(f"{number} places were found")
    for what in (None, 2, 1):
        pair.placing.choose(what)
        stands(f"landmark {what} is chosen")
    tab.fit.rigid.click()
    stands("a fit was told")
    for text in (LONG, ""):
        for label in (tab.said, tab.hint.hint, tab.fit.words, tab.detail.words):
            widgets.tell(label, text)
        stands(f"sentences say {text[:9]!r}")
    for row in (tab.a, tab.b):
        row.bar.show()
        row.state.setText(LONG)
    stands("features are computed")
    tab.cohort.search.click()
    settle(0.2)  # the table is brought into view for who asked
    stands = Steady(tab)
    until(lambda: all(r.state == "found" for r in tab.cohort.found.values()))
    settle(0.3)
    stands("the landmark was searched everywhere")
    for part in (tab.cohort.bar, tab.cohort.cancel, tab.cohort.missing):
        part.show()
    widgets.tell(tab.cohort.doing, LONG)
    stands("features of others are computed")


def test_data_stays_while_scans_come(
    docked, home: Path, tmp_path: Path, monkeypatch
) -> None:
    viewer, tab, stands = docked("Data")
    settle(0.3)
    stands("stores were listed")
    path, _ = patient(tmp_path, "a_scan_of_the_archive_" * 6)
    for text in (LONG, ""):
        widgets.tell(tab.status, text)
        widgets.tell(tab.trouble, text)
        stands(f"sentences say {text[:9]!r}")
    tab.take([path, tmp_path / "none.nii"])
    until(lambda: len(tab.list.rows) == 1)
    until(lambda: tab.trouble.text())
    stands("a scan was opened, another one could not be")
    viewer.add_labels(np.zeros((4, 5, 6), np.uint8))
    until(tab.use_labels.isVisible)
    stands("there are labels")
    tab.use_labels.click()
    stands("they are used")
    tab.use_labels.click()
    box = tab.build
    monkeypatch.setattr(widgets, "Helper", FakeHelper)
    box.launch("prepare", {}, box._finish, LONG)
    stands("a store is being built")
    FakeHelper.made[-1].failed.emit(LONG)
    stands("it could not be built")
    box.launch("prepare", {}, box._finish, LONG)
    store = home / "stores" / "none"
    box._finish({"store": str(store), "labelled": 0, "cases": 1,
                 "rejected": [{"path": "a", "reason": LONG}]})  # fmt: skip
    stands("it is built")
    box.spacing.setCurrentIndex(2)
    stands("a voxel size of one's own")
    # An offer that is answered leaves its room; it is given up later.
    monkeypatch.setattr(reader, "should_offer", lambda: False)
    tab.offer.show()
    settle(0.1)
    before = places(tab)
    tab.offer._answered()
    settle(0.1)
    assert moved(before, tab) == []
    tab.shown()
    settle(0.1)
    assert moved(before, tab)  # not under the pointer: the tab was shown anew


@pytest.fixture
def in_area(qtbot, home: Path, monkeypatch):
    """Makes (panel, stands) of a panel in a narrow scroll area, without a viewer."""
    fake_engine(monkeypatch)
    monkeypatch.setattr(widgets, "_is_under_mouse", lambda area: True)
    kept = []

    def make(kind: type, *, ready=lambda panel: True):
        hub = Hub(None)
        panel, area = kind(hub), QScrollArea()
        kept.append(area)
        hub.setParent(area)
        area.setWidgetResizable(True)
        area.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOn)
        area.setWidget(panel)
        qtbot.addWidget(area)
        area.resize(340, 600)
        area.show()
        qtbot.waitExposed(area)
        settle(0.05)  # laid out: sentences know how wide they are
        stands = Steady(panel)
        panel.shown()
        until(lambda: ready(panel))
        return panel, stands

    yield make
    FakeHelper.made.clear()
    wait_for_threads()


@pytest.mark.parametrize("kind", [PretrainPanel, FinetunePanel])
def test_a_form_stays_while_the_engine_answers(
    in_area, home: Path, monkeypatch, phantom_store, kind: type
) -> None:
    monkeypatch.setattr(widgets, "Helper", FakeHelper)
    (home / "stores").mkdir()
    (home / "stores" / "phantoms").symlink_to(phantom_store.path)
    make_model(home / "models" / "given")

    def answered(panel) -> bool:
        return panel.hub.schema and panel.device.known and panel.stores

    panel, stands = in_area(kind, ready=answered)
    stands("engine, devices, stores and encoders are known")
    until(lambda: not panel.box.trouble)
    stands("nothing is missing any more")
    panel.box.estimate.click()
    until(lambda: FakeHelper.made)
    stands("an estimate is made")
    FakeHelper.made[0].news.emit(Note(LONG))
    panel.box.cancel.click()
    stands("it was cancelled")
    panel.box.estimate.click()
    plan = {"seconds_per_step": 0.5, "steps": 400, "total_s": 200.0, "device": "cpu"}
    FakeHelper.made[1].done.emit(plan)
    stands("the estimate is told")
    panel.device._say(LONG)
    panel._no_schema(LONG)
    stands("sentences are long")
    panel.waiting.hide()
    for entry in range(panel.entry.count()):
        panel.entry.setCurrentIndex(entry)
        stands(f"entry {entry} was chosen")
    panel.stores = []
    panel.show_stores()
    panel.stores = [*panel.list.stores]
    panel.read_stores()
    until(lambda: panel.stores)
    stands("the stores were read anew")
    if kind is FinetunePanel:
        for text in (LONG, ""):
            widgets.tell(panel.fit, text)
            panel.fold.setVisible(not text)
            stands("other stores are ticked")


def test_models_stay_while_one_is_read(in_area, home: Path) -> None:
    make_model(home / "models" / "given")
    make_model(home / "models" / "seg", kind="segment")
    panel, _ = in_area(ModelsPanel, ready=lambda panel: panel.models)
    stands = Steady(panel)
    for row in (1, 0):
        panel.list.setCurrentRow(row)
        stands("another model is chosen")
    for text in (LONG, ""):
        panel._say(text)
        stands("news")
    make_model(home / "models" / "third")
    panel.read()
    until(lambda: len(panel.models) == 3)
    stands("there is another model")
    panel.form.offer(home / "x.pt", "x", "Which network is it?")
    settle(0.05)
    stands = Steady(panel)
    panel.form._tell(LONG)
    stands("it is refused")


def test_runs_keep_their_buttons_in_place(in_area, home: Path) -> None:
    running = slow_run(home / "runs" / "organs", steps=10_000)
    panel, _ = in_area(RunsPanel, ready=lambda panel: panel.rows)
    settle(0.1)
    stands = Steady(panel)
    launch.start(running)
    wait_for_step(running, 2)
    until(lambda: "pause" in panel.chosen().actions, 20)
    stands("it runs")
    panel._say(LONG)
    stands("news")
    panel.follow(running.folder)
    screen = panel.screen
    until(lambda: screen.shown == "running", 20)
    until(lambda: screen.loss.drawn > 1, 20)
    settle(0.1)
    stands = Steady(panel)
    screen.loss._readout.setText(LONG)
    screen.facts.setText(LONG)
    screen.title.setText(LONG)
    stands("sentences are long")
    screen.validation.show()
    screen.loss._legend.setText("one<br>two")
    stands("a validation came")
    screen.buttons.buttons["pause"].click()
    until(lambda: screen.shown == "paused", 20)
    stands("it is paused")
    screen.buttons.buttons["stop_now"].click()
    until(lambda: screen.shown in ("stopped", "crashed"), 20)
    stands("it is stopped")
    screen.trouble.tell(Trouble("other", LONG, LONG, LONG))
    stands("it failed")
    panel.show_list()


def test_the_first_screen_stays_while_scans_and_models_come(
    docked, home: Path, tmp_path: Path
) -> None:
    viewer, tab, stands = docked("Start")
    settle(0.3)
    stands("the disk was looked at")
    path = write_scan(
        tmp_path, "CT_" + "of_the_archive_" * 9, AFFINES[0], SHAPE, seed=0
    )
    tab.take([path])
    stands("a scan is being read")
    until(lambda: tab.front and "asks" not in tab.alike.title.text())
    stands("the doors are open")
    write_model(home / "runs" / "seg")
    write_encoder(home / "runs" / "run")
    tab.hub.changed.emit("models")
    until(lambda: tab.known.models)
    stands("there are models")
    viewer.add_labels(np.zeros(SHAPE, np.uint8))
    tab.take([tmp_path / "none.nii"])
    until(lambda: tab.trouble.text())
    stands("a file could not be opened")
    for text in (LONG, ""):
        for label in (tab.status, tab.trouble):
            widgets.tell(label, text)
        stands(f"sentences say {text[:9]!r}")
    viewer.layers.clear()
    until(lambda: "asks" in tab.alike.title.text())
    stands("the scan was closed")


def test_models_stay_while_they_are_probed(in_area, home: Path, monkeypatch) -> None:
    monkeypatch.setattr(widgets, "Helper", FakeHelper)
    make_model(home / "models" / "given")
    make_model(home / "models" / ("of_another_hospital_" * 4))
    panel, _ = in_area(ModelsPanel, ready=lambda panel: panel.models)
    panel.probe_fold.expand(animate=False)
    settle(0.1)
    box, stands = panel.probe, Steady(panel)
    panel.tick_all()
    stands("all models are asked about")
    box.launch("probe", {}, lambda result: None)
    stands("they are probed")
    FakeHelper.made[-1].news.emit(Progress("features", 1, 9, LONG))
    stands("progress was told")
    FakeHelper.made[-1].failed.emit(LONG)
    stands("it failed")
    answer = probing.Answer(
        ("Model", "All labels"), (("given", "0.60"), ("grey values", "0.40")), 1,
        LONG, None,
    )  # fmt: skip
    box.show_answer(answer)
    stands("there is an answer")


def test_runs_stay_while_a_comparison_and_a_report_go_on(
    in_area, home: Path, monkeypatch
) -> None:
    monkeypatch.setattr(widgets, "Helper", FakeHelper)
    run = compare_run(home / "runs" / "table")
    make_model(slow_run(home / "runs" / "organs").folder / "model")
    whole = (run.folder / SUMMARY).read_text()
    (run.folder / SUMMARY).write_text(json.dumps(summary(table=[])))
    panel, _ = in_area(RunsPanel, ready=lambda panel: len(panel.rows) == 2)
    panel.follow(run.folder)
    until(lambda: panel.compared.shown is not None)
    settle(0.1)
    stands = Steady(panel)
    (run.folder / SUMMARY).write_text(whole)
    panel.compared.read()
    until(lambda: panel.compared.table.rowCount())
    stands("the first results are there")
    for text in (LONG, ""):
        widgets.tell(panel.compared.news, text)
        widgets.tell(panel.compared.notes, text)
        stands(f"sentences say {text[:9]!r}")
    panel.new_comparison()
    settle(0.2)
    stands = Steady(panel)
    widgets.tell(panel.form.words, LONG)
    stands("the form is refused")
    panel.report_on(home / "runs" / "organs")
    settle(0.2)
    page, stands = panel.reports, Steady(panel)
    page.launch("report", {}, page._reported)
    stands("a report is made")
    FakeHelper.made[-1].news.emit(Progress("organs", 1, 9))
    FakeHelper.made[-1].failed.emit(LONG)
    stands("it failed")


def test_segment_stays_while_a_scan_is_labelled(
    docked, home: Path, tmp_path: Path, monkeypatch
) -> None:
    fake_engine(monkeypatch)
    for module in (batch_box, segment_panel, widgets):
        monkeypatch.setattr(module, "Helper", FakeHelper)
    monkeypatch.setattr(widgets, "_is_under_mouse", lambda area: True)
    write_model(home / "runs" / "seg")
    path = write_scan(tmp_path, "CT_03", Affine.of((2, 1, 1)), SHAPE, seed=0)
    viewer, tab, _ = docked("Segment", [path])
    until(lambda: tab.models and tab.device.known)
    settle(0.1)
    stands = Steady(tab)
    for text in (LONG, ""):
        for label in (tab.facts, tab.trouble, tab.batch.words, tab.scan.words):
            widgets.tell(label, text)
        stands(f"sentences say {text[:9]!r}")
    monkeypatch.setattr(segment_panel, "misfit", lambda *_: ["It does not fit."] * 2)
    tab.scan.start.click()
    until(tab.scan.go_on.isVisible)
    stands("there is a warning")
    tab.scan.go_on.click()
    until(lambda: FakeHelper.made)
    FakeHelper.made[0].news.emit(Progress("windows", 3, 12, remaining_s=120.0))
    stands("it is being labelled")
    FakeHelper.made[0].failed.emit(LONG)
    stands("that failed")
    tab.chances.show_answer("CT_03", TOLD)
    stands("a classifier told something")
    tab.chances.forget()
    tab.batch.add([path])
    until(lambda: tab.batch.batch.items)
    stands("a scan was added to the batch")
    tab.batch.bar.show()
    tab.batch.cancel.show()
    tab.batch.pause.show()
    stands("the batch is under way")
    for values in (3, 12, 1):
        data = (np.arange(np.prod(SHAPE)).reshape(SHAPE) % (values + 1)).astype(
            np.uint8
        )
        layer = viewer.add_labels(data)
        tab.classes.adopt(layer)
        until(lambda: len(tab.classes.rows) == values)  # noqa: B023 - at once
        stands(f"{values} classes are listed")
    tab.classes.show_scores({1: {"dice": 0.5, "nsd": 0.5, "hd95_mm": 1.0}})
    for label in (tab.classes.words, tab.compare.words, tab.export.words):
        widgets.tell(label, LONG)
    tab.export.page = tmp_path
    tab.export.enable()
    stands("they are compared, and a report is written")


TOLD = {"class": "a", "chances": {"a": 0.8, "b": 0.2}}
