"""The first screen: what its doors say, and that each leads to its end."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("napari")

from dropping import drop
from explore_files import write_scan
from learn_fakes import FakeHelper, until
from named import nameless
from qtpy.QtCore import QEvent, Qt
from qtpy.QtWidgets import QApplication
from test_label_panel import (
    BACKGROUND,
    LEFT,
    RIGHT,
    patient,
    predicted,
    settle,
    stroke,
)
from test_segment_panel import write_model
from toy_runs import slow_run

import homolog
from homolog.geometry.affine import Affine
from homolog.gui.segment.panel import ScanBox
from homolog.gui.shared import model_row
from homolog.gui.shared.choices import read_choice
from homolog.gui.shared.layers import KEY
from homolog.gui.shared.threads import wait_for_threads
from homolog.gui.start import panel as module
from homolog.gui.start.steps import (
    DONE,
    LATER,
    NEXT,
    Known,
    alike_words,
    front_scan,
    look,
    segment_words,
    steps,
)
from homolog.gui.window import dock_panel
from homolog.model_files import library

pytestmark = pytest.mark.usefixtures("workers")
SHAPE = (12, 16, 20)


@pytest.fixture
def start(make_napari_viewer_proxy, home: Path, monkeypatch):
    """Makes (viewer, dock, first screen) of an empty window."""
    monkeypatch.setattr(model_row, "Helper", FakeHelper)

    def make():
        viewer = make_napari_viewer_proxy(show=True)
        viewer.window.resize(1280, 700)
        panel = dock_panel(viewer)
        until(lambda: "Start" in panel.panels)
        return viewer, panel, panel.panels["Start"]

    yield make
    for helper in FakeHelper.made:
        with contextlib.suppress(RuntimeError):  # gone with its panel
            helper.stopped.emit()  # its panel lets it go
    FakeHelper.made.clear()
    for _ in range(3):  # what came from threads is heard, whoever is slow
        wait_for_threads()
        QApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
        settle(0.1)


def press(qtbot, button) -> None:
    assert button.isEnabled()
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)


def test_without_a_scan_doors_say_that_they_open_one(start, home: Path) -> None:
    _, panel, tab = start()
    assert panel.current() == "Start"
    assert "No scan is open" in tab.scan.text()
    for door in (tab.alike, tab.label, tab.segment):
        assert "asks for a scan" in door.title.text()
    assert [row.sign.text() for row in tab.rows] == ["▶", "○", "○", "○", "○"]
    assert tab.open.isEnabled()
    assert tab.phantom.isEnabled()
    assert nameless(tab) == []


def test_a_door_without_a_scan_asks_for_one_and_leads_on(
    start, qtbot, tmp_path, monkeypatch
) -> None:
    """One click and a file; a file that cannot be read leads nowhere, later ones do."""
    viewer, panel, tab = start()
    scan = write_scan(tmp_path, "CT_1", Affine.of((2, 2, 2)), SHAPE, seed=0)
    asked = []
    monkeypatch.setattr(
        module.widgets, "ask_files", lambda *given: asked.append(given[-1])
    )
    press(qtbot, tab.label)
    asked[0]([tmp_path / "none.nii"])
    until(lambda: tab.trouble.text())
    until(lambda: not tab.status.text())
    assert panel.current() == "Start"
    assert drop(tab, write_scan(tmp_path, "a", Affine.of((2, 2, 2)), SHAPE, seed=1))
    until(lambda: len(viewer.layers) == 1)
    assert panel.current() == "Start"  # the wish was of the file that is not there
    viewer.layers.clear()
    press(qtbot, tab.label)
    asked[1]([scan])
    asked.clear()  # they know the window
    until(lambda: panel.current() == "Label")
    assert viewer.layers.selection.active.name == "CT_1 painted"


@pytest.fixture
def shipped(monkeypatch) -> None:
    """What comes with the package; other tests see an empty folder."""
    place = Path(homolog.__file__).parent / "resources" / "encoders"
    monkeypatch.setattr(library, "ENCODERS", place)


@pytest.mark.usefixtures("shipped")
def test_two_clicks_to_the_first_similarity_map(start, qtbot, monkeypatch) -> None:
    """The phantom, then the door: the model is chosen and its features are computed."""
    viewer, panel, tab = start()
    small = np.zeros(SHAPE, np.float32)
    grid = {
        "scale": (2, 2, 2),
        "units": ("mm",) * 3,
        "metadata": {KEY: {"modality": "CT"}},
    }
    monkeypatch.setattr(
        module, "phantom_patient",
        lambda: [(small, {"name": "phantom CT", **grid}, "image"),
                 (small.astype(np.uint8), {"name": "organs", **grid}, "labels")],
    )  # fmt: skip
    press(qtbot, tab.phantom)
    until(lambda: "Open:" in tab.scan.text())
    assert not viewer.layers["organs"].visible
    press(qtbot, tab.alike)
    assert panel.current() == "Explore"
    until(lambda: FakeHelper.made)
    assert FakeHelper.made[0].config["encoder"].endswith("body-ct")
    assert "phantom" in FakeHelper.made[0].config["scans"][0]
    FakeHelper.made[0].failed.emit("no")
    explorer = panel.panels["Explore"].explorer
    panel.visit("Start")
    panel.visit("Explore")  # by itself nothing is computed again
    explorer.look_again()
    until(lambda: [s.state for s in explorer.control.scans.values()] == ["none"])
    assert len(FakeHelper.made) == 1


@pytest.mark.usefixtures("shipped")
@pytest.mark.parametrize("door", ["alike", "label"])
def test_a_door_begins_with_the_model_of_what_is_open_now(
    start, qtbot, tmp_path, door: str
) -> None:
    """The tab was there before, with the model of other scans."""
    viewer, panel, tab = start()
    title = {"alike": "Explore", "label": "Label"}[door]
    panel.visit(title)
    models = panel.panels[title].models.model
    until(lambda: models.count() > 1)
    panel.visit("Start")
    assert drop(tab, patient(tmp_path, "ct")[0])
    until(lambda: "Open:" in tab.scan.text())
    viewer.layers["ct"].metadata[KEY]["modality"] = "CT"
    press(qtbot, getattr(tab, door))
    until(lambda: models.currentText().startswith("body-ct"))
    until(
        lambda: FakeHelper.made and "body-ct" in FakeHelper.made[-1].config["encoder"]
    )
    settle(0.5)
    owner = panel.panels[title]
    book = owner.explorer.control if door == "alike" else owner.labelling.book
    assert [s.state for s in book.scans.values()] == ["computing"]
    count = len(FakeHelper.made)
    FakeHelper.made[-1].stopped.emit()  # whoever stops it gets no other one for it
    settle(0.3)
    assert len(FakeHelper.made) == count


def test_the_second_door_puts_a_brush_in_the_hand(start, qtbot, tmp_path) -> None:
    viewer, panel, tab = start()
    assert drop(tab, write_scan(tmp_path, "CT_1", Affine.of((2, 2, 2)), SHAPE, seed=0))
    until(lambda: "Open:" in tab.scan.text())
    assert "CT_1" in tab.scan.text()
    press(qtbot, tab.label)
    assert panel.current() == "Label"
    painted = viewer.layers.selection.active
    assert painted.name == "CT_1 painted"
    assert painted.mode == "paint"
    press(qtbot, panel.tabs.buttons["Start"])
    press(qtbot, tab.label)  # again: the same layer
    assert viewer.layers.selection.active.unique_id == painted.unique_id


@pytest.mark.usefixtures("shipped")
def test_the_second_door_has_features_of_the_package_computed(
    start, qtbot, tmp_path
) -> None:
    """The models are listed after the door was opened: the wish is not forgotten."""
    viewer, _, tab = start()
    assert drop(tab, patient(tmp_path, "ct")[0])
    until(lambda: "Open:" in tab.scan.text())
    viewer.layers["ct"].metadata[KEY]["modality"] = "CT"
    press(qtbot, tab.label)
    until(lambda: FakeHelper.made)
    assert FakeHelper.made[0].config["encoder"].endswith("body-ct")
    assert viewer.layers.selection.active.mode == "paint"


def test_five_acts_to_the_first_labels(start, qtbot, tmp_path) -> None:
    """Drop, door, stroke, class, stroke: then the whole scan is labelled."""
    viewer, panel, tab = start()
    assert drop(tab, patient(tmp_path, "ct")[0])
    until(lambda: "Open:" in tab.scan.text())
    press(qtbot, tab.label)
    label, painted = panel.panels["Label"], viewer.layers.selection.active
    first = painted.selected_label
    assert first != BACKGROUND
    painted.brush_size = 1
    stroke(painted, RIGHT, first)
    label.classes.table.selectRow(1)
    assert painted.selected_label == BACKGROUND
    stroke(painted, LEFT, painted.selected_label)
    predicted(label)
    found = np.asarray(viewer.layers["ct prediction"].data)
    assert (found[:, :, 14:] == first).mean() > 0.9
    panel.visit("Start")
    assert [row.sign.text() for row in tab.rows][2] == "✓"


def test_the_third_door_leads_to_a_ready_button(start, qtbot, home, tmp_path) -> None:
    viewer, panel, tab = start()
    write_model(home / "runs" / "seg")
    write_model(home / "runs" / "other")
    assert drop(tab, write_scan(tmp_path, "CT_1", Affine.of((2, 1, 1)), SHAPE, seed=0))
    viewer.add_labels(np.zeros(SHAPE, np.uint8))
    until(lambda: "Open:" in tab.scan.text())
    panel.hub.changed.emit("models")
    until(lambda: "seg" in tab.segment.words.text())
    press(qtbot, tab.segment)
    segment = panel.panels["Segment"]
    until(lambda: segment.models)
    assert viewer.layers.selection.active.name == "CT_1"
    assert segment.scan.start.isEnabled()
    assert not segment.scan.busy  # which of two models is not for a door to say


def test_the_third_door_begins_with_the_only_model(
    start, qtbot, home, tmp_path, monkeypatch
) -> None:
    """Drop and door; a scan unlike those of the model is warned of first."""
    _, panel, tab = start()
    write_model(home / "runs" / "seg")
    begun = []
    monkeypatch.setattr(ScanBox, "begin", lambda box: begun.append(box.scan.text()))
    assert drop(tab, write_scan(tmp_path, "CT_1", Affine.of((2, 1, 1)), SHAPE, seed=0))
    until(lambda: "Open:" in tab.scan.text())
    press(qtbot, tab.segment)
    until(lambda: begun)
    assert "CT_1" in begun[0]
    panel.visit("Start")
    panel.visit("Segment")  # by itself nothing is begun again
    settle(0.3)
    assert len(begun) == 1


def test_what_is_dropped_goes_where_it_belongs(start, home, tmp_path) -> None:
    _, panel, tab = start()
    run = slow_run(home / "runs" / "r")
    assert drop(tab, run.folder)
    assert panel.current() == "Runs"
    assert drop(tab, tmp_path / "none.nii")
    until(lambda: tab.trouble.text())
    panel.visit("Data", {"list": [str(tmp_path)]})
    assert panel.current() == "Data"
    panel.show_tab("Start")
    table = tmp_path / "classes.csv"
    table.write_text("file,label\nCT_1.nii.gz,benign\nCT_2.nii.gz,malignant\n")
    assert drop(tab, table)
    assert panel.current() == "Data"
    until(lambda: str(table) in panel.panels["Data"].added)


class Layer:
    """As much of a layer as the list of steps asks for."""

    def __init__(self, kind: str, *, visible: bool = True, **notes: object) -> None:
        self._type_string, self.visible = kind, visible
        self.name, self.metadata = kind, {KEY: notes}


def test_the_first_open_step_is_next(home: Path, monkeypatch) -> None:
    states = [step.state for step in steps([], Known())]
    assert states == [NEXT, *[LATER] * 4]
    write_model(home / "models" / "seg")
    known = look(home / "runs", home / "models", home / "features")
    assert not known.has_features
    states = [step.state for step in steps([], known)]
    assert states == [NEXT, LATER, LATER, DONE, LATER]


@pytest.mark.usefixtures("shipped")
def test_doors_name_the_model_and_warn_of_another_modality(home: Path) -> None:
    known = look(home / "runs", home / "models", home / "features")
    assert "ct-mr, learnt from CT and MR" in alike_words(known, None)
    assert "no model that segments" in segment_words(known)
    ref = module.ScanRef("a", None, "PET", (4, 4, 4), (1.0, 1.0, 1.0))
    assert "This is PET: expect less." in alike_words(known, ref)
    assert "pretrain one" in alike_words(Known(), ref)
    write_model(home / "models" / "seg")
    one = read_choice(home / "models" / "seg")
    assert "seg" in segment_words(Known(models=(one,)))
    assert "It learnt from CT, this is PET." in segment_words(Known(models=(one,)), ref)
    assert "or one of 1 more" in segment_words(Known(models=(one, one)))


def test_the_scan_in_front_is_the_selected_or_the_topmost_seen(
    make_napari_viewer_proxy,
):
    viewer = make_napari_viewer_proxy()
    assert front_scan([], None) is None
    one = viewer.add_image(np.zeros(SHAPE), name="one")
    two = viewer.add_image(np.zeros(SHAPE), name="two", visible=False)
    labels = viewer.add_labels(np.zeros(SHAPE, np.uint8))
    layers = list(viewer.layers)
    assert front_scan(layers, labels)[1].name == "one"
    assert front_scan(layers, two)[1].name == "two"
    one.visible = False
    assert front_scan(layers, None)[1].name == "two"
