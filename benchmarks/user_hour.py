"""An hour with the window as a clinician spends it, from an empty napari to a result.

A real napari window is used with mouse, keys and dropped files: a similarity map,
labels from a few strokes, a store, a fine-tuning to its end, one that is stopped and
kept, segmenting with it, a batch of ten, classes from a table, boxes, two patients
side by side, landmarks, carried labels, a file for 3D Slicer read back; the window is
closed while a training runs, and another one finds it. Each step prints its seconds,
what was pressed, and the longest own work of the GUI thread between two rests of its
event loop (processor time without OpenGL drawing, which is told beside it). A step that
does not reach its end fails the script by its name. Every step leaves a picture.

Needs a folder of scans that holds ``ct_body``, ``msd_hippocampus`` and ``cxr_nih``;
trainings are of a few steps, so what they find is not to be looked at.

    xvfb-run -a -s "-screen 0 1600x1000x24" python benchmarks/user_hour.py SCANS \
        --out FOLDER [--only STEP ...] [--profile] [--json FILE]

``--clicks`` (after an hour in the same ``--home``, whose features and first model are
used) counts instead what leads from an empty napari to the first similarity map, labels
and segmentation, of a dropped scan and of one that the door asks for.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from qtpy.QtCore import QPoint, Qt
from qtpy.QtWidgets import (
    QApplication,
    QPushButton,
    QTableWidget,
    QToolButton,
    QWidget,
)

from hand import Clock, Hand, Sampler, Unreached, Used, question

WINDOW_PX = (1440, 940)
FIRST, SECOND = "ts_example_ct", "cptac_pda_C3L-00189"
ORGAN = "vertebrae_L1"
STORED, BATCH = 16, 10  # hippocampi in the store, and in the batch
XRAYS, BOXED = 24, 16
STEPS, MANY_STEPS = 4, 100_000
SOON_S, WORK_S = 60.0, 420.0


@dataclass
class Told:
    """One step's outcome."""

    step: str
    seconds: float
    used: Used
    own_ms: float
    drawing_ms: float


@dataclass
class Hour:
    """The window and what the steps need of it.

    Attributes:
        scans: Folder of the scans.
        home: Of stores, runs, models and features.
        out: Of the pictures.
    """

    scans: Path
    home: Path
    out: Path
    viewer: Any = None
    panel: Any = None
    hand: Hand = None  # type: ignore[assignment]
    sampler: Sampler | None = None
    told: list[Told] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    picture: int = 0

    # Where things are

    def tab(self, title: str) -> Any:
        """Click a tab of the side bar; its panel."""
        self.hand.press(QToolButton, f"Tab {title}")
        return self.wait(lambda: self.panel.panels.get(title), f"the tab {title}")

    def front(self) -> Any:
        """The panel of the tab in front."""
        return self.panel.panels[self.panel.current()]

    def press(self, name: str) -> None:
        """Click a button of the tab in front."""
        self.hand.press(QPushButton, name, self.front())

    def wait(self, condition: Callable[[], Any], what: str, seconds: float = SOON_S):
        """See Hand.wait; an error anywhere ends it."""

        def look() -> Any:
            if self.errors:
                raise Unreached(self.errors[0])
            return condition()

        return self.hand.wait(look, seconds, what)

    @property
    def canvas(self) -> QWidget:
        """napari's own canvas."""
        canvases = [
            w
            for w in self.hand.window.centralWidget().findChildren(QWidget)
            if type(w).__name__ == "CanvasBackendDesktop" and w.isVisible()
        ]
        return max(canvases, key=lambda w: w.width() * w.height())

    def place(self, shown: Any) -> QPoint:
        """Where on the canvas a place (z, y, x of the shown world) lies.

        Raises:
            Unreached: The pointer there is told to be somewhere else.
        """
        camera, displayed = self.viewer.scene.camera, self.viewer.dims.displayed
        aim = np.asarray(shown, float)[-3:]
        middle = np.array(camera.center)[-2:]
        offset = (aim[list(displayed)][-2:] - middle) * camera.zoom
        centre = self.canvas.rect().center()
        for up, left in ((1, 1), (-1, 1), (1, -1), (-1, -1)):
            place = centre + QPoint(round(left * offset[1]), round(up * offset[0]))
            self.hand.hover(self.canvas, place)
            self.hand.pause(0.1)
            there = np.array(self.viewer.cursor.position)[-3:]
            if np.abs(there - aim)[list(displayed)].max() < 3 / camera.zoom + 1:
                return place
        raise Unreached(f"the pointer at {there} should be at {aim}")

    def layer(self, words: str) -> Any | None:
        """The newest layer that is called so."""
        found = [x for x in self.viewer.layers if words in x.name]
        return found[-1] if found else None

    def go_to(self, shown: Any) -> None:
        """Turn to the slice of a place, as the slider does."""
        point = list(self.viewer.dims.point)
        axis = next(iter(self.viewer.dims.not_displayed))
        point[axis] = float(np.asarray(shown)[axis])
        self.viewer.dims.point = point
        self.hand.pause(0.5)

    # Steps

    def step(self, name: str, do: Callable[[Hour], None]) -> bool:
        """Do a step, time it, look at it; whether it reached its end."""
        self.hand.take()
        self.hand.clock.clear()
        self.errors.clear()
        began, trouble = time.monotonic(), ""
        try:
            do(self)
            if self.errors:
                raise Unreached(self.errors[0])
        except Exception as error:  # noqa: BLE001 - told with the step's name
            trouble = "".join(traceback.format_exception(error)[-6:])
        seconds = time.monotonic() - began
        self.look("FAILED " + name if trouble else name)
        busy = self.hand.clock.longest()
        told = Told(name, seconds, self.hand.take(), busy.own, busy.drawing)
        self.told.append(told)
        print(
            f"{self.picture:2d} {name:34s} {seconds:6.1f} s  {told.used.text():44s}"
            f" own {busy.own:5.0f} ms, drawing {busy.drawing:.0f}",
            flush=True,
        )
        if self.sampler is not None:
            print("\n".join(self.sampler.lines()), flush=True)
        if trouble:
            print(f"FAILED at {name!r}: {trouble}", flush=True)
        return not trouble

    def look(self, name: str) -> None:
        """A picture of the screen."""
        self.hand.pause(0.4)
        self.picture += 1
        self.hand.shot(self.out / f"{self.picture:02d}_{name.replace(' ', '_')}.png")
        for text in self.hand.cut():
            print(f"   cut in {self.picture:02d}: {text}", flush=True)


# What is dropped: folders as people have them, made of the scans.


def hippocampi(hour: Hour) -> Path:
    """A data set of sixteen with labels, in the layout of a Decathlon."""
    source, to = hour.scans / "msd_hippocampus", hour.home / "given" / "hippocampus"
    card = json.loads((source / "dataset.json").read_text())
    card["training"] = card["training"][:STORED]
    card["numTraining"] = STORED
    for case in card["training"]:
        for kind in ("image", "label"):
            (to / case[kind]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / case[kind], to / case[kind])
    (to / "dataset.json").write_text(json.dumps(card))
    return to


def more_hippocampi(hour: Hour) -> list[Path]:
    """Ten that no store has."""
    found = sorted((hour.scans / "msd_hippocampus" / "imagesTr").glob("*.nii.gz"))
    return found[STORED : STORED + BATCH]


def table_of(hour: Hour, name: str, most: int) -> Path:
    """The X-rays' table, shortened, with its pictures beside it."""
    source, to = hour.scans / "cxr_nih", hour.home / "given" / name
    with (source / f"{name}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    by_class: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        by_class.setdefault(row["label"], []).append(row)
    share = max(1, most // len(by_class))
    chosen = [row for group in by_class.values() for row in group[:share]]
    for row in chosen:
        (to / row["file"]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / row["file"], to / row["file"])
    with (to / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(chosen)
    return to / f"{name}.csv"


def ct(hour: Hour, name: str) -> Path:
    """A body CT."""
    return hour.scans / "ct_body" / f"{name}.nii.gz"


def organ_mm(hour: Hour) -> np.ndarray:
    """Middle (z, y, x of the shown world) of a vertebra of the first CT."""
    from homolog.gui.shared.layers import shown_affine
    from homolog.scans.files import read_labels
    from homolog.scans.names import names_beside

    path = hour.scans / "ct_body" / "labels" / "ts_example_ct_vertebrae.nii.gz"
    labels = read_labels(path)
    named = {name: value for value, name in names_beside(path).items()}
    data = np.asarray(labels.data).reshape(labels.data.shape[-3:])
    value = named.get(ORGAN) or int(np.unique(data)[2])
    cells = np.argwhere(data == value)
    middle = cells[np.abs(cells - cells.mean(0)).sum(1).argmin()]
    scan = hour.layer(FIRST)
    true = labels.affine.apply(middle)
    own = next(iter([scan]))
    from homolog.gui.shared.layers import true_affine

    voxel = true_affine(own).inverse().apply(true)
    return np.asarray(shown_affine(own).apply(voxel))


# The steps.


def empty(hour: Hour) -> None:
    """napari alone."""
    hour.wait(lambda: hour.hand.window.isVisible(), "napari")


def plugin(hour: Hour) -> None:
    """Plugins > Homolog."""
    hour.hand.menu("Plugins", "Homolog")
    hour.panel = hour.wait(lambda: _panel(hour), "the panel")
    hour.wait(lambda: "Start" in hour.panel.panels, "the first screen")


def _panel(hour: Hour) -> Any:
    from homolog.gui.dock import MainPanel

    return next(iter(hour.hand.window.findChildren(MainPanel)), None)


def open_ct(hour: Hour) -> None:
    """A body CT dropped on the first screen."""
    hour.hand.drop(hour.front(), [ct(hour, FIRST)])
    hour.wait(lambda: hour.layer(FIRST), "the scan")
    hour.wait(lambda: hour.front().front, "the doors")


def alike(hour: Hour) -> None:
    """Door 1, and the pointer on a vertebra: the map."""
    hour.hand.click(hour.front().alike)
    _see_map(hour)


def _see_map(hour: Hour) -> None:
    """Once features are there, the pointer lights the map."""
    explorer = hour.wait(lambda: hour.panel.panels.get("Explore"), "Explore").explorer
    hour.wait(lambda: explorer.control.ready(), "features", WORK_S)
    aim = organ_mm(hour)
    hour.go_to(aim)
    hour.place(aim)

    def lit() -> bool:
        (_, ready) = explorer.control.ready()[0]
        return bool(np.asarray(ready.buffer.data).max() > 0.5)

    hour.wait(lit, "a similarity map")
    hour.hand.pause(1)


def pin(hour: Hour) -> None:
    """Shift and a click keep the place."""
    explorer = hour.front().explorer
    where = hour.place(organ_mm(hour))
    hour.hand.click(hour.canvas, where, shift=True)
    hour.wait(lambda: len(explorer.control.pins) == 1, "the pin")
    first = explorer.control.pins.current
    hour.wait(lambda: first.answers, "its answer")
    hour.hand.hover(hour.canvas, QPoint(5, 5))
    hour.hand.pause(1)


def label(hour: Hour) -> None:
    """Door 2, a stroke of each of two classes: the whole scan is labelled."""
    hour.tab("Start")
    hour.hand.click(hour.front().label)
    panel = hour.wait(lambda: hour.panel.panels.get("Label"), "the tab Label")
    hour.wait(lambda: hour.layer(" painted"), "a layer to paint on")
    hour.wait(lambda: panel.classes.table.isVisible(), "the classes")
    paint_two(hour, panel)
    hour.wait(lambda: _predicted(hour), "the prediction", WORK_S)
    hour.wait(lambda: not panel.labelling.trainer.busy, "the whole scan", WORK_S)
    hour.hand.pause(1)


def paint_two(hour: Hour, panel: Any, *, by_key: bool = False) -> None:
    """A stroke in a vertebra; another class; a stroke in what lies ahead of it."""
    aim = organ_mm(hour)
    hour.go_to(aim)
    hour.hand.stroke(hour.canvas, _line(hour.place(aim)))
    table = panel.classes.table
    row = table.visualItemRect(table.item(1, 0)).center()
    if by_key:
        shift = Qt.KeyboardModifier.ShiftModifier
        hour.hand.key(hour.canvas, Qt.Key.Key_W, shift)
    else:
        hour.hand.click(table.viewport(), row)
    ahead = aim + np.array((0, -45.0, 0))
    hour.hand.stroke(hour.canvas, _line(hour.place(ahead)))


def _line(at: QPoint) -> list[QPoint]:
    return [at + QPoint(4 * i, 0) for i in range(-2, 3)]


def _predicted(hour: Hour) -> bool:
    layer = hour.layer(" prediction")
    return layer is not None and bool(np.asarray(layer.data).any())


def where_next(hour: Hour) -> None:
    """Label says where one more stroke helps."""
    from homolog.gui.label.labelling import NEXT

    hour.press("Where to click next (⇧N)")
    hour.wait(lambda: hour.layer(NEXT), "the mark")
    hour.hand.pause(0.6)


def keep_painted(hour: Hour) -> None:
    """What was painted, as a model."""
    hour.press("Save model")
    hour.wait(lambda: _shown(hour, "Segment with it"), "the saved model", WORK_S)


def _shown(hour: Hour, name: str) -> bool:
    try:
        return hour.hand.find(QPushButton, name, hour.front()).isEnabled()
    except Unreached:
        return False


def build(hour: Hour) -> None:
    """A data set dropped on Data becomes a store."""
    hour.tab("Data")
    hour.hand.drop(hour.front(), [hippocampi(hour)])
    _untick_open(hour)
    _build(hour)


def _untick_open(hour: Hour) -> None:
    """Take the tick from scans that are open in the window."""
    panel = hour.front()
    hour.wait(lambda: any(r.scans for r in panel.list.rows.values()), "the folder")
    hour.hand.pause(0.5)
    for i in range(panel.list.topLevelItemCount()):
        item = panel.list.topLevelItem(i)
        row = item.data(0, Qt.ItemDataRole.UserRole)
        if row.is_layer and item.checkState(0) == Qt.CheckState.Checked:
            rect = panel.list.visualItemRect(item)
            at = QPoint(rect.left() + 9, rect.center().y())
            hour.hand.click(panel.list.viewport(), at)


def _build(hour: Hour) -> None:
    hour.press("Build store")
    hour.wait(lambda: _shown(hour, "Fine-tune on it"), "the store", WORK_S)
    hour.hand.pause(0.5)


def finetune(hour: Hour, steps: int = STEPS) -> None:
    """From Data to a training of some steps; Runs shows it."""
    hour.press("Fine-tune on it")
    _start(hour, steps)


def _start(hour: Hour, steps: int) -> None:
    panel = hour.wait(lambda: hour.panel.panels.get("Fine-tune"), "Fine-tune")
    hour.wait(lambda: panel.length.choice.isVisible(), "the form")
    hour.wait(lambda: panel.entry.count() and panel.list.chosen, "the engine", WORK_S)
    hour.hand.choose(panel.length.choice, "Own steps")
    hour.hand.type(panel.length.number.lineEdit(), str(steps))
    hour.wait(lambda: panel.box.start.isEnabled(), "Start")
    hour.look("form filled")
    hour.hand.click(panel.box.start)
    hour.wait(lambda: hour.panel.current() == "Runs", "the run", WORK_S)


def _newest(hour: Hour) -> Any:
    from homolog.runs.run import Run

    folders = [p for p in (hour.home / "runs").iterdir() if (p / "run.json").is_file()]
    return Run.open(max(folders, key=lambda p: p.stat().st_ctime_ns))


def to_its_end(hour: Hour) -> None:
    """The first training ends by itself, and has a model."""
    finetune(hour)
    run = _newest(hour)
    hour.wait(lambda: run.state() not in ("new", "running"), "its end", WORK_S)
    if run.state() != "finished":
        raise Unreached(f"the training ended as {run.state()}: {run.log}")
    hour.wait(lambda: _shown(hour, "Use model"), "Use model...")
    hour.hand.pause(2.5)


def stop_and_keep(hour: Hour) -> None:
    """Another one, stopped within its first steps, keeps its model."""
    hour.tab("Fine-tune")
    _start(hour, MANY_STEPS)
    run = _newest(hour)
    hour.wait(lambda: run.last_step() is not None, "its first step", WORK_S)
    hour.wait(lambda: _shown(hour, "Stop and keep"), "Stop and keep")
    hour.press("Stop and keep")
    hour.wait(lambda: run.state() == "stopped", "its stop", WORK_S)
    if not (run.folder / "model" / "model.json").is_file():
        raise Unreached("no model was kept")
    hour.wait(lambda: _shown(hour, "Use model"), "Use model...")
    hour.hand.pause(2.5)


def segment(hour: Hour) -> None:
    """Door 3 with the kept model."""
    hour.tab("Start")
    hour.hand.drop(hour.front(), more_hippocampi(hour)[:1])
    name = more_hippocampi(hour)[0].name.removesuffix(".nii.gz")
    hour.wait(lambda: hour.layer(name), "the scan")
    hour.hand.pause(1)
    hour.hand.click(hour.front().segment)
    panel = hour.wait(lambda: hour.panel.panels.get("Segment"), "Segment")
    hour.wait(lambda: panel.chosen is not None, "a model")
    choose_model(hour, _newest(hour).folder.name)
    if panel.scan.start.isVisible() and panel.scan.start.isEnabled():
        hour.hand.click(panel.scan.start)
    hour.wait(lambda: "was added" in panel.scan.words.text(), "the labels", WORK_S)
    hour.hand.pause(1)


def choose_model(hour: Hour, name: str) -> None:
    """Choose a model of the list, if it is not chosen."""
    combo = hour.front().model
    hour.wait(
        lambda: any(name in combo.itemText(i) for i in range(combo.count())),
        f"the model {name}",
    )
    text = next(
        combo.itemText(i) for i in range(combo.count()) if name in combo.itemText(i)
    )
    hour.hand.choose(combo, text)


def export(hour: Hour) -> None:
    """The labels as .seg.nrrd, and read back with names and voxels."""
    from homolog.scans.files import read_labels

    panel = hour.front()
    layer = panel.classes.layer
    before = {int(v): int(n) for v, n in zip(*np.unique(layer.data, return_counts=True),
                                             strict=True)}  # fmt: skip
    path = hour.home / "given" / "for_slicer.seg.nrrd"
    hour.press("Save...")
    hour.hand.file_dialog(path)
    hour.wait(path.is_file, "the file")
    hour.wait(lambda: "aved" in panel.classes.words.text(), "its being told")
    back = read_labels(path)
    data = np.asarray(back.data)
    if int((data > 0).sum()) != sum(n for v, n in before.items() if v):
        raise Unreached("other voxels came back")
    text = path.read_bytes()[:4000].decode("latin1")
    if "anterior" not in text or "Segment0_Color" not in text:
        raise Unreached("names or colours are missing in the file")


def batch(hour: Hour) -> None:
    """Ten scans dropped on Segment, into a folder with a table of volumes."""
    hour.tab("Segment")
    panel = hour.front()
    hour.hand.drop(panel.batch.list, more_hippocampi(hour))
    hour.wait(lambda: len(panel.batch.batch.items) == BATCH, "the list")
    hour.hand.click(panel.all)
    hour.wait(lambda: panel.batch.busy, "the worker")
    hour.wait(lambda: not panel.batch.busy, "all ten", WORK_S)
    states = [item.state for item in panel.batch.batch.items]
    if states != ["done"] * BATCH:
        raise Unreached(f"{states}: {panel.batch.words.text()}")
    if not list(Path(panel.batch.out).glob("volumes*.csv")):
        raise Unreached("no table of volumes")
    hour.hand.pause(0.5)
    hour.hand.see(panel.batch.words)


def one_of_ten(hour: Hour) -> None:
    """A result of the batch is opened by a double click."""
    panel = hour.front()
    count = len(hour.viewer.layers)
    rows = panel.batch.list
    place = rows.visualItemRect(rows.item(2)).center()
    hour.hand.click(rows.viewport(), place, double=True)
    hour.wait(lambda: len(hour.viewer.layers) == count + 2, "scan and labels")
    hour.hand.pause(1)


def xray_store(hour: Hour) -> None:
    """The X-rays' table dropped on the first screen becomes a store of classes."""
    hour.tab("Start")
    hour.hand.drop(hour.front(), [table_of(hour, "labels", XRAYS)])
    hour.wait(lambda: hour.panel.current() == "Data", "the list")
    _only(hour, "labels")
    _build(hour)


def _only(hour: Hour, name: str) -> None:
    """Leave a tick at one row alone."""
    panel = hour.front()

    def there() -> bool:
        return any(r.name.startswith(name) for r in panel.list.rows.values())

    hour.wait(there, "the table")
    hour.hand.pause(0.6)
    for i in range(panel.list.topLevelItemCount()):
        item = panel.list.topLevelItem(i)
        row = item.data(0, Qt.ItemDataRole.UserRole)
        if not row.name.startswith(name) and item.checkState(0).value:
            panel.list.scrollToItem(item)
            rect = panel.list.visualItemRect(item)
            at = QPoint(rect.left() + 9, rect.center().y())
            hour.hand.click(panel.list.viewport(), at)


def classify(hour: Hour) -> None:
    """Their classes are learnt, to the end; an X-ray is told."""
    to_its_end(hour)
    picture = sorted((hour.scans / "cxr_nih" / "classes").glob("*.png"))[-1]
    _use_on(hour, picture)
    panel = hour.front()
    hour.wait(lambda: "chances" in panel.scan.words.text(), "the answer", WORK_S)
    hour.look("told of a whole X-ray")
    hour.wait(lambda: panel.chances.isVisible(), "the chances")
    hour.hand.pause(0.5)
    hour.hand.see(panel.chances.table)
    hour.hand.pause(0.6)


def _use_on(hour: Hour, picture: Path) -> None:
    """Open a picture, and the newest model's tab; use it."""
    model = _newest(hour).folder.name
    hour.tab("Start")
    hour.hand.drop(hour.front(), [picture])
    hour.wait(lambda: hour.layer(picture.stem), "the picture")
    hour.hand.pause(1)
    hour.hand.click(hour.front().segment)
    hour.wait(lambda: hour.panel.current() == "Segment", "Segment")
    choose_model(hour, model)
    hour.wait(lambda: hour.front().scan.start.isEnabled(), "the button")
    hour.hand.click(hour.front().scan.start)


def boxes(hour: Hour) -> None:
    """Boxes are learnt from a table, to the end, and searched in an X-ray."""
    hour.tab("Data")
    hour.hand.drop(hour.front(), [table_of(hour, "boxes", BOXED)])
    _only(hour, "boxes")
    _build(hour)
    to_its_end(hour)
    picture = sorted((hour.scans / "cxr_nih" / "boxed").glob("*.png"))[-1]
    _use_on(hour, picture)
    panel = hour.front()
    hour.wait(
        lambda: "box" in panel.scan.words.text() and not panel.scan.busy,
        "the boxes", WORK_S,
    )  # fmt: skip
    hour.hand.see(panel.scan.words)


def two_patients(hour: Hour) -> None:
    """Two CTs in Explore: a pin in one brings the other beside it, at its match."""
    _close_all(hour)
    hour.tab("Start")
    hour.hand.drop(hour.front(), [ct(hour, FIRST)])
    hour.wait(lambda: hour.layer(FIRST), "the first CT")
    hour.hand.drop(hour.front(), [ct(hour, SECOND)])
    hour.wait(lambda: hour.layer(SECOND), "the second CT")
    hour.hand.pause(1)
    hour.hand.click(hour.front().alike)
    explorer = hour.wait(lambda: hour.panel.panels.get("Explore"), "Explore").explorer
    hour.wait(lambda: len(explorer.control.ready()) == 2, "both features", WORK_S)
    key = next(k for k, s in explorer.control.scans.items() if s.ref.name == FIRST)
    show = hour.hand.find(QPushButton, f"Show {FIRST}", hour.front())
    hour.hand.click(show)
    hour.hand.pause(0.5)
    aim = organ_mm(hour)
    hour.go_to(aim)
    hour.hand.click(hour.canvas, hour.place(aim), shift=True)
    pins = explorer.control.pins
    hour.wait(lambda: pins.current and pins.current.scan_key == key, "the pin")
    hour.wait(lambda: len(pins.current.answers) == 2, "the match", WORK_S)
    hour.wait(lambda: hour.front().beside.view is not None, "the other beside")
    hour.hand.pause(3)


def _close_all(hour: Hour) -> None:
    """Select all layers in napari's list and delete them."""
    from napari._qt.containers import QtLayerList

    listed = hour.hand.window.findChild(QtLayerList)
    if len(hour.viewer.layers):
        hour.hand.click(listed.viewport())
        hour.hand.key(listed, Qt.Key.Key_A, Qt.KeyboardModifier.ControlModifier)
        hour.hand.key(listed, Qt.Key.Key_Delete)
    hour.wait(lambda: not len(hour.viewer.layers), "an empty list")


def landmarks(hour: Hour) -> None:
    """A landmark is set in one and found in the other, side by side."""
    panel = hour.tab("Landmarks")
    hour.wait(lambda: panel.pick.isEnabled(), "both scans", WORK_S)
    hour.hand.click(panel.pick)
    hour.hand.pause(1.5)
    aim = organ_mm(hour)
    hour.go_to(aim)
    hour.hand.click(hour.canvas, hour.place(aim))
    table = panel.pair.control.table
    hour.wait(lambda: len(table) == 1, "the landmark")
    hour.wait(lambda: next(iter(table)).b_mm is not None, "its match", WORK_S)
    hour.hand.pause(2)


def propagate(hour: Hour) -> None:
    """Labels of one patient are carried to the other."""
    path = hour.scans / "ct_body" / "labels" / "ts_example_ct_vertebrae.nii.gz"
    panel = hour.tab("Label")
    hour.hand.drop(hour.canvas, [path])
    hour.wait(lambda: hour.layer("vertebrae"), "the labels")
    hour.hand.pause(1)
    box = panel.carry
    hour.wait(box.isVisible, "Carry these labels")
    hour.hand.click(box.fold.toggleButton())
    hour.hand.pause(0.6)
    hour.hand.choose(box.source, hour.layer("vertebrae").name)
    hour.hand.click(box.start)
    hour.wait(lambda: box.busy, "the worker")
    hour.wait(lambda: not box.busy, "the carried labels", WORK_S)
    hour.wait(lambda: hour.layer("carried"), "their layer")
    show = hour.layer(SECOND)
    hour.viewer.layers.selection.active = show
    hour.hand.pause(1)


def close_while_training(hour: Hour) -> None:
    """The window is closed while a training runs, which goes on."""
    hour.tab("Fine-tune")
    _start(hour, MANY_STEPS)
    run = _newest(hour)
    hour.wait(lambda: run.last_step() is not None, "its first step", WORK_S)
    (hour.home / "left_running").write_text(str(run.folder))
    from qtpy.QtCore import QTimer

    asked: list[str] = []

    def answer() -> None:
        dialog = question()
        if dialog is None:
            timer.start(200)
            return
        hour.look("asked on closing")
        keep = hour.hand.find(QPushButton, "Keep training in background", dialog)
        asked.append(keep.text())
        hour.hand.click(keep)

    timer = QTimer()
    timer.setSingleShot(True)
    timer.timeout.connect(answer)
    timer.start(300)
    hour.hand.used.clicks += 1  # the window's own button
    hour.hand.window.close()
    timer.stop()
    if not asked:
        raise Unreached("nothing was asked")
    hour.hand.pause(1)
    if hour.hand.is_open() or not run.is_alive():
        raise Unreached("the window stayed, or the training did not")


def come_back(hour: Hour) -> None:
    """Another window finds the training in Runs, and stops it."""
    from homolog.runs.run import Run

    run = Run.open(Path((hour.home / "left_running").read_text()))
    if not run.is_alive():
        raise Unreached("the training did not go on")
    panel = hour.tab("Runs")
    table: QTableWidget = panel.table
    hour.wait(lambda: table.isVisible() and table.rowCount(), "the list")
    row = next(i for i, r in enumerate(panel.rows) if r.folder == run.folder)
    place = table.visualItemRect(table.item(row, 0)).center()
    hour.hand.click(table.viewport(), place, double=True)
    hour.wait(lambda: _shown(hour, "Stop and keep"), "the training's screen")
    hour.hand.pause(2)
    hour.look("the run found again")
    hour.press("Stop and keep")
    hour.wait(lambda: run.state() == "stopped", "its stop", WORK_S)
    hour.hand.pause(2.5)


ALL = [
    ("empty napari", empty), ("open the plugin", plugin), ("open a body CT", open_ct),
    ("door see what is alike", alike), ("pin a place", pin),
    ("door label a few voxels", label), ("where to click next", where_next),
    ("keep it as a model", keep_painted),
    ("data set to store", build), ("fine-tune to its end", to_its_end),
    ("stop and keep another", stop_and_keep), ("door segment with it", segment),
    ("export seg nrrd", export), ("batch of ten", batch),
    ("open one of ten", one_of_ten),
    ("X-ray table to store", xray_store), ("classify X-rays", classify),
    ("find boxes", boxes), ("two patients side by side", two_patients),
    ("landmarks", landmarks), ("propagate", propagate),
    ("close while training", close_while_training),
]  # fmt: skip
BACK = [("empty napari again", empty), ("open the plugin again", plugin),
        ("come back", come_back)]  # fmt: skip
_ALWAYS = {"empty napari", "open the plugin"}


# From an empty napari to the first result, as short as it goes.


def _enter(hour: Hour, door: str, path: Path, *, dropped: bool) -> None:
    """The plugin, the scan, the door; or the door, which asks for the scan."""
    plugin(hour)
    if dropped:
        hour.hand.drop(hour.front(), [path])
        hour.wait(lambda: hour.front().front, "the scan")
        hour.hand.pause(1)
    hour.hand.click(getattr(hour.front(), door))
    if not dropped:
        hour.hand.file_dialog(path)


def first_map(hour: Hour, *, dropped: bool) -> None:
    """To a similarity map; the pointer is over the scan."""
    _enter(hour, "alike", ct(hour, FIRST), dropped=dropped)
    _see_map(hour)


def first_labels(hour: Hour, *, dropped: bool) -> None:
    """To a labelled scan; the second class is chosen by the key its row names."""
    _enter(hour, "label", ct(hour, FIRST), dropped=dropped)
    hour.wait(lambda: hour.layer(" painted"), "a layer to paint on")
    panel = hour.wait(lambda: hour.panel.panels.get("Label"), "the tab Label")
    hour.wait(lambda: panel.classes.table.isVisible(), "the classes")
    hour.hand.pause(1)
    paint_two(hour, panel, by_key=not dropped)
    hour.wait(lambda: _predicted(hour), "the prediction", WORK_S)


def first_segmentation(hour: Hour, *, dropped: bool) -> None:
    """To labels of the only model."""
    _enter(hour, "segment", more_hippocampi(hour)[0], dropped=dropped)
    panel = hour.wait(lambda: hour.panel.panels.get("Segment"), "Segment")
    hour.wait(lambda: "was added" in panel.scan.words.text(), "the labels", WORK_S)


ROUTES = {"map": first_map, "labels": first_labels, "segmentation": first_segmentation}


def count_clicks(options: argparse.Namespace) -> bool:
    """Each route in a process and a home of its own."""
    good = True
    for name in (f"{r}-{how}" for r in ROUTES for how in ("dropped", "asked")):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
            home = Path(scratch)
            shutil.copytree(options.home / "features", home / "features")
            if name.startswith("segmentation"):
                runs = options.home / "runs"
                first = min(runs.glob("segment-*"), key=lambda p: p.name)
                shutil.copytree(first, home / "runs" / first.name)
            command = [sys.executable, *sys.argv, "--home", str(home), "--route", name]
            good &= subprocess.run(command, check=False).returncode == 0
    return good


def begin(hour: Hour, *, profile: bool) -> None:
    """An empty napari whose settings and home are new."""
    os.environ["NAPARI_CONFIG"] = str(hour.home / "napari.yaml")
    hour.sampler = Sampler(80) if profile else None
    clock = Clock(hour.sampler)
    import napari

    from homolog.gui.shared import preferences

    preferences.home = lambda: hour.home  # type: ignore[assignment]
    hour.viewer = napari.Viewer(title="napari")
    hour.viewer.window.resize(*WINDOW_PX)
    clock.begin()
    window = hour.viewer.window._qt_window
    hour.hand = Hand(window, clock)

    def failed(kind: Any, error: Any, trace: Any) -> None:
        hour.errors.append("".join(traceback.format_exception(kind, error, trace)))
        print(hour.errors[-1], flush=True)

    sys.excepthook = failed


def spend(hour: Hour, steps: list[tuple[str, Any]], only: list[str]) -> bool:
    """The steps in turn; whether all reached their end."""
    for name, do in steps:
        if only and name not in _ALWAYS and not any(o in name for o in only):
            continue
        if not hour.step(name, do):
            return False
    return True


def write(hour: Hour, path: Path) -> None:
    """What was told, as JSON."""
    rows = [
        {
            "step": t.step, "seconds": round(t.seconds, 1), "clicks": t.used.clicks,
            "keys": t.used.keys, "drops": t.used.drops,
            "longest_own_ms": round(t.own_ms),
            "its_drawing_ms": round(t.drawing_ms),
        }
        for t in hour.told
    ]  # fmt: skip
    known = json.loads(path.read_text())["steps"] if path.exists() else []
    path.write_text(json.dumps({"steps": [*known, *rows]}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scans", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="pictures go here")
    parser.add_argument("--home", type=Path, help="kept, and used again")
    parser.add_argument("--only", nargs="*", default=[], help="parts of steps' names")
    parser.add_argument("--profile", action="store_true", help="tell long stretches")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--clicks", action="store_true")
    parser.add_argument("--route", help=argparse.SUPPRESS)
    parser.add_argument("--back", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.clicks and not options.route:
        raise SystemExit(0 if count_clicks(options) else 1)
    home = (options.home or Path(tempfile.mkdtemp(prefix="hour-"))).absolute()
    home.mkdir(parents=True, exist_ok=True)
    hour = Hour(options.scans.absolute(), home, options.out, picture=options.back)
    begin(hour, profile=options.profile)
    steps = BACK if options.back else ALL
    if options.route:
        route, _, how = options.route.partition("-")
        go = partial(ROUTES[route], dropped=how == "dropped")
        steps = [(f"first {route}, {how}", go)]
    good = spend(hour, steps, options.only)
    if options.json:
        write(hour, options.json)
    wants_back = not options.back and (home / "left_running").exists()
    if good and wants_back:
        command = [*sys.argv, "--home", str(home), "--back", str(hour.picture)]
        good = subprocess.run([sys.executable, *command], check=False).returncode == 0
    if not options.home and not options.back:
        shutil.rmtree(home, ignore_errors=True)
    print("all steps reached their end" if good else "NOT all steps reached their end")
    sys.stdout.flush()
    QApplication.processEvents()
    os._exit(0 if good else 1)


if __name__ == "__main__":
    main()
