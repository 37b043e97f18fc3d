"""Pages of the tab Runs: a comparison's table and curves, and the form of a new one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qtpy.QtCore import QByteArray, QRectF, QSize, Qt, QTimer, QUrl, Signal
from qtpy.QtGui import QDesktopServices, QPainter
from qtpy.QtSvg import QSvgRenderer
from qtpy.QtWidgets import (
    QAbstractItemView,
    QApplication,
    QHBoxLayout,
    QHeaderView,
    QLineEdit,
    QListWidget,
    QListWidgetItem,
    QPushButton,
    QSizePolicy,
    QSpinBox,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from homolog.gui.runs.comparisons import (
    HEAD,
    TASKS,
    CompareWish,
    Comparison,
    read_comparison,
    teaching,
)
from homolog.gui.runs.control import ask_to_stop
from homolog.gui.runs.training_screen import (
    ActionButtons,
    headline_label,
    text_label,
    thin_bar,
)
from homolog.gui.shared.choices import (
    ModelChoice,
    StoreChoice,
    list_encoders,
    list_stores,
    name_problem,
    next_name,
)
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.threads import in_background, start_run
from homolog.gui.shared.widgets import (
    Choice,
    DeviceBox,
    ask_folder,
    beside,
    button,
    fill,
    labelled,
    named,
    sentence,
    tell,
)
from homolog.runs.run import Run
from homolog.words import metric_title

_LOOK_MS = 2000
_PATH = int(Qt.ItemDataRole.UserRole)
_BUTTONS = {
    "report": ("Report", "The page with curves, tests and settings, in the browser"),
    "open": ("Open folder", "Show its folder in the file manager"),
    "resume": ("Resume", "Go on where it was; finished cells are not repeated"),
    "stop": ("Stop and keep", "States are saved; it can be resumed later"),
}


class Drawing(QWidget):
    """An SVG drawing on white, as wide as there is room."""

    def __init__(self) -> None:
        super().__init__()
        named(self, "Learning curves", "Scores by number of labelled patients")
        self._renderer = QSvgRenderer(self)
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self._text = ""

    def show_svg(self, text: str) -> None:
        """Draw another one."""
        if text == self._text:
            return
        self._text = text
        self._renderer.load(QByteArray(text.encode()))
        self._fit()
        self.update()

    def resizeEvent(self, event: Any) -> None:  # noqa: D102 - Qt's name
        super().resizeEvent(event)
        self._fit()

    def paintEvent(self, event: Any) -> None:  # noqa: D102 - Qt's name
        painter = QPainter(self)
        painter.fillRect(self.rect(), Qt.GlobalColor.white)
        if self._renderer.isValid():
            self._renderer.render(painter, QRectF(self.rect()))
        painter.end()

    def _fit(self) -> None:
        size: QSize = self._renderer.defaultSize()
        if self._renderer.isValid() and size.width():
            height = round(self.width() * size.height() / size.width())
            if height != self.height():
                self.setFixedHeight(max(1, height))


class ComparePage(QWidget):
    """A comparison: where it is, its curves, its table.

    Signals:
        back: To the list of runs.
    """

    back = Signal()

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self.hub = hub
        self.folder: Path | None = None
        self.shown: Comparison | None = None
        self._reading = False
        self._build()
        self._timer = QTimer(self)
        self._timer.setInterval(_LOOK_MS)
        self._timer.timeout.connect(self.read)

    def follow(self, folder: Path) -> None:
        """Show a comparison, and what becomes of it."""
        self.folder, self.shown = folder, None
        self.headline.setText(folder.name)
        tell(self.news, "")
        self.drawing.hide()
        self.table.hide()
        self.buttons.offer(frozenset())
        self._timer.start()
        self.read()

    def leave(self) -> None:
        """Look no more."""
        self._timer.stop()
        self.folder = None

    def read(self) -> None:
        """Read the folder on a thread; one reading at a time."""
        if self.folder is None or self._reading or not self.isVisible():
            return
        self._reading = True
        in_background(
            read_comparison, self.folder, owner=self, done=self._take,
            failed=self._not_read,
        )  # fmt: skip

    def act(self, what: str) -> None:
        """Do what a button says."""
        if self.folder is None:
            return
        if what == "resume":
            start_run(
                Run(self.folder), owner=self, done=lambda _: self.read(),
                failed=lambda e: self.hub.say(f"That did not work: {e}", "error"),
            )  # fmt: skip
        elif what == "stop":
            tell(self.news, "Stopping: states are being saved ...")
            in_background(
                ask_to_stop, self.folder, owner=self, done=lambda _: self.read()
            )
        else:
            place = self.folder / "report.html" if what == "report" else self.folder
            if not QDesktopServices.openUrl(QUrl.fromLocalFile(str(place))):
                self.hub.say(f"Nothing here opens {place}", "warning")

    def showEvent(self, event: Any) -> None:  # noqa: D102 - Qt's name
        super().showEvent(event)
        self.read()

    def _take(self, found: Comparison) -> None:
        self._reading = False
        if found.folder != self.folder:
            self.read()
            return
        self.shown = found
        self.headline.setText(found.headline)
        self.bar.setRange(0, max(1, found.total))
        self.bar.setValue(found.done)
        tell(self.news, found.item)
        tell(self.notes, "\n".join(f"⚠ {note}" for note in found.notes))
        self.drawing.setVisible(bool(found.curves))
        self.drawing.show_svg(found.curves)
        self.explained.setVisible(bool(found.rows))
        self._fill(found)
        self.buttons.offer(_offered(found))

    def _fill(self, found: Comparison) -> None:
        self.table.setVisible(bool(found.rows))
        heads = list(HEAD)
        heads[HEAD.index("Score")] = metric_title(found.metric) or "Score"
        self.table.setHorizontalHeaderLabels(heads)
        self.table.setRowCount(len(found.rows))
        for place, (row, tip) in enumerate(zip(found.rows, found.tips, strict=True)):
            for column, text in enumerate(row):
                item = self.table.item(place, column)
                if item is None:
                    item = QTableWidgetItem()
                    self.table.setItem(place, column, item)
                item.setText(text)
                item.setToolTip(tip)
        self.table.resizeRowsToContents()
        rows = sum(self.table.rowHeight(i) for i in range(self.table.rowCount()))
        head = self.table.horizontalHeader().height()
        self.table.setFixedHeight(rows + head + 2 * self.table.frameWidth() + 2)

    def _not_read(self, error: Exception) -> None:
        self._reading = False
        tell(self.notes, f"⚠ {error}")

    def _build(self) -> None:
        self.headline = headline_label("Comparison")
        self.bar = thin_bar("Cells that are done")
        self.news = sentence("What is being worked on", lines=2)
        self.drawing = Drawing()
        self.table = QTableWidget(0, len(HEAD))
        self.table.setHorizontalHeaderLabels(list(HEAD))
        named(self.table, "Results", "Point at a row for all its figures")
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.setTabKeyNavigation(False)
        self.table.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.table.verticalHeader().setVisible(False)
        header = self.table.horizontalHeader()
        header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        self.explained = text_label("How to read the table")
        self.explained.setText(
            "Means over test patients and seeds. Differences, positive ones are "
            "better, are paired by test patient, with their 95 % interval over "
            "patients; Ahead: on how many of them it is better."
        )
        self.notes = text_label("What went wrong")
        self.buttons = ActionButtons(_BUTTONS, self.act, ("resume", "stop"))
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        back = button("◀ All runs", "Back to the list of runs", self.back.emit)
        for widget in (
            back, self.headline, self.bar, self.news, self.buttons, self.table,
            self.explained, self.drawing, self.notes,  # what grows stands below
        ):  # fmt: skip
            column.addWidget(widget)
        column.addStretch()


def _offered(found: Comparison) -> frozenset[str]:
    names = {"open"} | ({"report"} if found.report else set())
    if found.is_run and found.state == "running":
        names.add("stop")
    elif found.is_run and found.state != "finished":
        names.add("resume")
    return frozenset(names)


class CompareForm(QWidget):
    """What a new comparison is asked for.

    Signals:
        back: To the list of runs.
        follow: Show a comparison (its folder).
    """

    back = Signal()
    follow = Signal(str)

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self.hub = hub
        self.stores: list[StoreChoice] = []
        self.others: list[Path] = []
        self._encoders: dict[str, ModelChoice] = {}
        self._kept: Any = None
        self._stem = ""
        self._busy = False
        self._build()
        hub.schema_ready.connect(lambda _: self._fill_arms())
        hub.schema_ready.connect(lambda _: self._fill_tasks())

    def shown(self, store: str = "") -> None:
        """It came to front: read lists anew; perhaps choose a store."""
        if store:
            self._kept = str(Path(store))
            if Path(store).parent.resolve() != self.hub.stores.resolve():
                self.others.append(Path(store))
        self.hub.want_schema()
        self.device.want()
        self._read()

    def wish(self) -> CompareWish:
        """What is chosen."""
        ticked = [str(item.data(_PATH)) for item in self._items() if _is_on(item)]
        path = self.store.currentData()
        return CompareWish(
            task=str(self.task.currentData() or "segment"),
            store=next((s for s in self.stores if str(s.path) == path), None),
            methods=tuple(name for name in ticked if name not in self._encoders),
            encoders=tuple(self._encoders[n] for n in ticked if n in self._encoders),
            patients=self.patients.text(),
            seeds=self.seeds.value(),
            steps=self.steps.value(),
            pretrain_steps=self.pretrain_steps.value(),
            test_patients=self.tests.value(),
            device=self.device.device,
        )

    def refresh(self) -> None:
        """Look at the wish again: a name, and what is missing."""
        wish = self.wish()
        if wish.stem != self._stem:
            self._stem = wish.stem
            self.name.setText(next_name(wish.stem, self.hub.runs))
        missing = self.hub.engine_missing()
        trouble = wish.problem() or name_problem(
            self.name.text().strip(), self.hub.runs
        )
        if missing:
            trouble = f"The training engine is not installed: {', '.join(missing)}."
        self.start.setEnabled(not trouble and not self._busy)
        self.copy.setEnabled(not wish.problem())
        tell(self.words, f"⚠ {trouble}" if trouble else "")

    def begin(self) -> None:
        """Create the run and hand it to a process of its own."""
        self.refresh()
        if not self.start.isEnabled():
            return
        self._busy = True
        self.start.setEnabled(False)
        tell(self.words, "Starting ...")
        in_background(
            Run.create, self.hub.runs / self.name.text().strip(), "compare",
            self.wish().config(), owner=self, done=self._created,
            failed=self._not_started,
        )  # fmt: skip

    def copy_command(self) -> None:
        """The command line that does the same, on the clipboard."""
        name = self.name.text().strip() or self.wish().stem
        QApplication.clipboard().setText(self.wish().command(self.hub.runs / name))
        tell(self.words, "The command was copied.")

    def _created(self, run: Run) -> None:
        start_run(
            run, owner=self, done=lambda _: self._running(run),
            failed=self._not_started,
        )  # fmt: skip

    def _running(self, run: Run) -> None:
        self._busy, self._stem = False, ""
        self.hub.changed.emit("runs")
        self.follow.emit(str(run.folder))

    def _not_started(self, error: Exception) -> None:
        self._busy = False
        self.refresh()
        tell(self.words, f"⚠ It could not be started: {error}")

    def _read(self) -> None:
        in_background(
            list_stores, self.hub.stores, list(self.others), owner=self,
            done=self._got_stores,
            failed=lambda e: self.hub.say(f"Stores: {e}", "warning"),
        )  # fmt: skip
        in_background(
            list_encoders, self.hub.runs, self.hub.models, owner=self,
            done=self._got_encoders,
            failed=lambda e: self.hub.say(f"Encoders: {e}", "warning"),
        )  # fmt: skip

    def _got_stores(self, stores: Sequence[StoreChoice]) -> None:
        self.stores = list(stores)
        self._list_stores()

    def _list_stores(self) -> None:
        """Those that teach the task first."""
        task = str(self.task.currentData() or "segment")
        found = sorted(self.stores, key=lambda s: not teaching(s, task))
        kept = self._kept or self.store.currentData()
        chosen = next((s for s in found if str(s.path) == kept), None)
        if not self._kept and chosen is not None and not teaching(chosen, task):
            kept = None  # another one teaches it
        fill(self.store, [(s.title, str(s.path)) for s in found], kept)
        self._kept = None
        self.refresh()

    def _fill_tasks(self) -> None:
        """All tasks that are learnt, by their titles."""
        tasks = (self.hub.schema or {}).get("tasks", {})
        learnt = [(str(told.get("title") or name), name)
                  for name, told in tasks.items() if told.get("learned")]  # fmt: skip
        known = [entry for entry in learnt if entry[1] in TASKS]
        usual = [(title, name) for name, title in TASKS.items()]
        fill(self.task, known or usual, self.task.currentData() or "segment")

    def _got_encoders(self, encoders: Sequence[ModelChoice]) -> None:
        self._encoders = {str(e.path): e for e in encoders}
        self._fill_arms()

    def _items(self) -> list[QListWidgetItem]:
        found = [self.arms.item(row) for row in range(self.arms.count())]
        return [item for item in found if item is not None]

    def _fill_arms(self) -> None:
        """Scratch, methods, ready encoders; what was ticked stays ticked."""
        on = {str(item.data(_PATH)) for item in self._items() if _is_on(item)}
        first = not self.arms.count()
        methods = (self.hub.schema or {}).get("methods", {})
        entries = [
            ("scratch", "From scratch (random weights)", "The control"),
            ("carried", "Carried labels first", "No pretraining: the few labels are "
             "carried to all other scans by their grey values, a network learns from "
             "these, then from both"),
        ]  # fmt: skip
        entries += [
            (name, f"Pretrain here: {told.get('title') or name}", f"Method {name}")
            for name, told in methods.items()
        ]
        entries += [
            (path, f"Ready: {encoder.title}", path)
            for path, encoder in self._encoders.items()
        ]
        self.arms.blockSignals(True)
        self.arms.clear()
        for key, text, tip in entries:
            item = QListWidgetItem(text)
            item.setData(_PATH, key)
            item.setToolTip(tip)
            item.setFlags(Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsUserCheckable)
            ticked = key in on or (first and key == "scratch")
            state = Qt.CheckState.Checked if ticked else Qt.CheckState.Unchecked
            item.setCheckState(state)
            self.arms.addItem(item)
        self.arms.blockSignals(False)
        self.refresh()

    def _choose(self) -> None:
        ask_folder(self, "Choose a store", lambda path: self.shown(str(path)))

    def _open(self) -> None:
        ask_folder(
            self, "Choose the folder of a comparison",
            lambda path: self.follow.emit(str(path)),
        )  # fmt: skip

    def _build(self) -> None:
        self.store = Choice()
        self.task = Choice()
        self._fill_tasks()
        self.arms = QListWidget()
        self.arms.setMinimumHeight(150)
        self.arms.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.patients = QLineEdit("1,2,5,all")
        self.seeds, self.tests = _number(1, 100, 3), _number(0, 10_000, 0)
        self.steps, self.pretrain_steps = (_number(0, 10_000_000, 0) for _ in range(2))
        for box in (self.steps, self.pretrain_steps):
            box.setSpecialValueText("the recipe's")
        self.tests.setSpecialValueText("the store's test split")
        self.device = DeviceBox(self.hub, "compare")
        self.name = QLineEdit()
        self.start = button("Start", "In a process of its own; it can be stopped and "
                            "goes on where it was", self.begin)  # fmt: skip
        self.copy = button("Copy as command", "Copy the command line that does this",
                           self.copy_command)  # fmt: skip
        self.words = sentence("What is missing", lines=3)
        self._lay_out()
        self.store.currentIndexChanged.connect(lambda: self.refresh())
        self.task.currentIndexChanged.connect(lambda: self._list_stores())
        self.arms.itemChanged.connect(lambda _: self.refresh())
        for line in (self.patients, self.name):
            line.textEdited.connect(lambda: self.refresh())
        for number in (self.seeds, self.tests, self.steps, self.pretrain_steps):
            number.valueChanged.connect(lambda: self.refresh())

    def _lay_out(self) -> None:
        lead = text_label("What a comparison is")
        lead.setText(
            "Which pretraining helps on your scans, with how many labelled patients? "
            "Every way to begin learns from the same patients and is tested on others "
            "that nothing has seen. It takes hours."
        )
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        back = button("◀ All runs", "Back to the list of runs", self.back.emit)
        column.addWidget(back)
        column.addWidget(lead)
        rows: tuple[tuple[str, QWidget, str], ...] = (
            ("Store", self.store, "Scans that teach the task, those first"),
            ("What is learnt", self.task, "Segmentations are scored by Dice, classes "
             "by AUC, boxes by AP50, images that are made by PSNR"),
            ("Ways to begin", self.arms, "Tick at least two; methods are pretrained "
             "here, on all scans but the test patients'"),
            ("Labelled patients", self.patients, "Numbers with commas; all: as many as "
             "there are"),
            ("Seeds", self.seeds, "Each is a pretraining and a fine-tuning; three show "
             "how much is chance"),
            ("Steps of a fine-tuning", self.steps, "The same for all"),
            ("Steps of a pretraining", self.pretrain_steps, "The same for all"),
            ("Test patients", self.tests, "Drawn by chance, or those of the store"),
            ("Device", self.device, "Where to compute"),
            ("Run name", self.name, "Its folder in the runs folder"),
        )  # fmt: skip
        for text, widget, hint in rows:
            column.addLayout(labelled(text, widget, hint))
            if widget is self.store:
                column.addLayout(
                    beside(
                        button("Add store...", "Choose a store that lies elsewhere",
                               self._choose),
                        button("Open comparison...", "Show one made on the terminal",
                               self._open),
                    )
                )  # fmt: skip
        foot = QHBoxLayout()
        foot.addWidget(self.start)
        foot.addWidget(self.copy)
        column.addLayout(foot)
        column.addWidget(self.words)
        column.addStretch()


def compare_button(act: Any) -> QPushButton:
    """The way to the form, in the list of runs."""
    return button(
        "Compare methods...",
        "Which pretraining helps on your scans, with how many labelled patients?",
        act,
    )


def _number(low: int, high: int, value: int) -> QSpinBox:
    box = QSpinBox()
    box.setRange(low, high)
    box.setValue(value)
    return box


def _is_on(item: QListWidgetItem) -> bool:
    return bool(item.checkState() == Qt.CheckState.Checked)
