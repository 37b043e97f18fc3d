"""Tab Runs: every training of the runs folder, and the training screen of one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qtpy.QtCore import Qt, QTimer, QUrl
from qtpy.QtGui import QCursor, QDesktopServices
from qtpy.QtWidgets import (
    QAbstractItemView,
    QHeaderView,
    QLabel,
    QPushButton,
    QSizePolicy,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from homolog.errors import UnusableInput
from homolog.gui.runs import control as runs_control
from homolog.gui.runs.compare_page import CompareForm, ComparePage, compare_button
from homolog.gui.runs.comparisons import SUMMARY
from homolog.gui.runs.control import COLUMNS, Row, RunList
from homolog.gui.runs.curves import SPARK_ROLE, SparkDelegate
from homolog.gui.runs.report_page import ReportPage
from homolog.gui.runs.training_screen import (
    ActionButtons,
    LogBox,
    TrainingScreen,
    text_label,
)
from homolog.gui.shared import widgets
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.models import read_model, to_trash, use_menu
from homolog.gui.shared.threads import in_background, soon, start_run
from homolog.gui.shared.widgets import sentence, tell
from homolog.runs.run import Run
from homolog.words import human_bytes
from homolog.writing import folder_bytes

# The table of the tab Runs: two lines per run and a small curve.


_TABLE_PX = 260


def runs_table(changed: Callable[[], Any], opened: Callable[[], Any]) -> QTableWidget:
    """An empty table.

    Args:
        changed: Called when another run is chosen.
        opened: Called by a double click or Enter.
    """
    table = QTableWidget(0, len(COLUMNS))
    table.setHorizontalHeaderLabels(list(COLUMNS))
    table.setAccessibleName("Runs")
    table.setToolTip("Double click or Enter shows a training")
    table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
    table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
    table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
    table.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
    table.setTabKeyNavigation(False)
    table.setWordWrap(False)
    table.setShowGrid(False)
    table.verticalHeader().setVisible(False)
    header = table.horizontalHeader()
    header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
    header.setSectionResizeMode(1, QHeaderView.ResizeMode.ResizeToContents)
    header.setSectionResizeMode(2, QHeaderView.ResizeMode.Fixed)
    table.setItemDelegateForColumn(2, SparkDelegate(table))
    table.setMinimumHeight(_TABLE_PX)
    table.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Expanding)
    table.itemSelectionChanged.connect(changed)
    table.itemActivated.connect(lambda _: opened())
    fit_table(table)
    return table


def fit_table(table: QTableWidget) -> None:
    """Rows of two lines and a column for the curve, in the font of the moment."""
    metrics = table.fontMetrics()
    rows = table.verticalHeader()
    height = 2 * metrics.lineSpacing() + 10
    if rows.defaultSectionSize() != height:
        rows.setDefaultSectionSize(height)
    wide = metrics.horizontalAdvance("PSNR 00.00 dB") + 34
    if table.columnWidth(2) != wide:
        table.horizontalHeader().resizeSection(2, wide)


_LOOK_MS = 2000
_BUTTONS = {
    "follow": ("Show", "Curves, health and pictures of this training"),
    "use": ("Use model...", "Explore, fine-tune or segment with its model"),
    "report": ("Full report...", "Pictures and figures of what its model learnt"),
    "log": ("Show log", "What libraries printed, and the details of errors"),
    "open": ("Open folder", "Show the run's folder in the file manager"),
    "delete": ("Delete...", "Move the run to the trash, after a question"),
    "resume": ("Resume", "Continue exactly where the last saved state was"),
    "pause": ("Pause", "Wait between two steps; memory stays taken"),
    "go_on": ("Go on", "Continue the paused training"),
    "stop": ("Stop and keep", "Save state and model; it can be resumed later"),
}  # each keeps its place, so those of a finished run come first


class RunsPanel(QWidget):
    """The list, and behind it the training screen.

    Args:
        hub: Of the window.
    """

    title = "Runs"

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self.hub = hub
        self.ask = widgets.ask
        self.rows: list[Row] = []
        self._list = RunList(hub.runs)
        self._reading = self._wants_more = False
        self._build()
        self._timer = QTimer(self)
        self._timer.setInterval(_LOOK_MS)
        self._timer.timeout.connect(self.read)
        hub.changed.connect(self._changed)

    def visit(self, what: dict[str, Any]) -> None:
        """``{"run": path}`` shows that run, ``{"compare": store}`` the form."""
        if run := what.get("run"):
            self.follow(Path(run))
        elif "compare" in what:
            self.new_comparison(str(what["compare"] or ""))

    def shown(self) -> None:
        """The tab came to the front."""
        self.read()

    def showEvent(self, event: Any) -> None:  # noqa: D102 - Qt's name
        super().showEvent(event)
        self._timer.start()
        self.read()

    def hideEvent(self, event: Any) -> None:  # noqa: D102 - Qt's name
        super().hideEvent(event)
        self._timer.stop()

    def follow(self, folder: Path) -> None:
        """Open the training screen of a run, or the table of a comparison."""
        if is_comparison(folder):
            self.screen.leave()
            self._show_page(self.compared)
            self.compared.follow(folder)
            return
        self.compared.leave()
        self.screen.follow(folder, [row.folder for row in self.rows])
        self._show_page(self.screen)

    def show_list(self) -> None:
        """Back from the training screen."""
        self.screen.leave()
        self.compared.leave()
        self._show_page(self._page)
        self.read()

    def new_comparison(self, store: str = "") -> None:
        """Open the form of a comparison, perhaps of a store."""
        self._show_page(self.form)
        self.form.shown(store)

    def read(self) -> None:
        """Read the folder anew on a thread; only one reading at a time."""
        if self._reading:
            self._wants_more = True
            return
        if self._list.folder != self.hub.runs:
            self._list = RunList(self.hub.runs)
        self._reading = True
        in_background(
            self._list.read, owner=self, done=self._take, failed=self._not_read
        )

    def act(self, what: str) -> None:
        """Do something with the chosen run."""
        row = self.chosen()
        if row is None or what not in row.actions:
            return
        if what == "follow":
            self.follow(row.folder)
        elif what == "resume":
            self._say(f"Starting {row.name} ...")
            start_run(
                Run(row.folder), owner=self,
                done=lambda _: self.follow(row.folder), failed=self._refused,
            )  # fmt: skip
        elif what == "use":
            self.use(row.folder)
        elif what == "report":
            self.report_on(row.folder)
        elif what == "log":
            self._show_log(row)
        elif what == "open":
            self.open_folder(str(row.folder))
        elif what == "delete":
            self._delete(row)
        else:
            self._wish(what, row)

    def chosen(self) -> Row | None:
        """The selected run."""
        place = self.table.currentRow()
        return self.rows[place] if 0 <= place < len(self.rows) else None

    def choose(self, folder: Path) -> None:
        """Select a run."""
        for place, row in enumerate(self.rows):
            if row.folder == folder:
                self.table.setCurrentCell(place, 0)

    def use(self, folder: Path | str) -> None:
        """A menu of what the run's model is good for."""
        model = read_model(Path(folder) / "model", self.hub.runs, "run")
        if model.damaged:
            self.hub.say(f"This model cannot be used: {model.damaged}", "warning")
            return
        use_menu(self.hub, model, self).popup(QCursor.pos())

    def report_on(self, folder: Path | str) -> None:
        """Ask on which store the run's model is looked at."""
        self.screen.leave()
        self.reports.show_run(Path(folder))
        self._show_page(self.reports)

    def open_folder(self, folder: str) -> None:
        """Show a folder in the file manager."""
        if not QDesktopServices.openUrl(QUrl.fromLocalFile(folder)):
            self.hub.say(
                f"No file manager was found; the folder is {folder}", "warning"
            )

    def _show_page(self, page: QWidget) -> None:
        """One page; hidden ones take no room (a stack would)."""
        pages = (self.screen, self.compared, self.form, self.reports, self._page)
        for other in pages:
            other.setVisible(page is other)

    def _wish(self, what: str, row: Row) -> None:
        function = {
            "pause": runs_control.pause,
            "go_on": runs_control.go_on,
            "stop": runs_control.ask_to_stop,
        }[what]
        words = {"pause": "Pausing", "go_on": "Continuing", "stop": "Stopping"}[what]
        self._say(f"{words} {row.name} ...")
        in_background(
            function, row.folder, owner=self,
            done=lambda _: self.read(), failed=self._refused,
        )  # fmt: skip

    def _delete(self, row: Row) -> None:
        root = self.hub.runs

        def ask(size: int) -> None:
            question = widgets.Question(
                "Delete a run",
                f"Move {row.name} to the trash?",
                f"{human_bytes(size)}: settings, curves, checkpoints"
                + (" and its model." if row.has_model else "."),
                (("delete", "Move to trash"), ("keep", "Keep it")),
                "keep",
            )
            if self.ask(self, question).key == "delete":
                in_background(
                    _trash_run, row.folder, root, owner=self,
                    done=lambda where: self._deleted(row, where), failed=self._refused,
                )  # fmt: skip

        in_background(folder_bytes, row.folder, owner=self, done=ask)

    def _deleted(self, row: Row, where: str) -> None:
        self._say(f"{row.name} is {where}.")
        self.hub.changed.emit("runs")
        self.hub.changed.emit("models")

    def _show_log(self, row: Row) -> None:
        def take(text: str) -> None:
            self._log_title.setText(f"log.txt of {row.name}")
            self._log_title.setVisible(True)
            self.log.tell(text)

        in_background(runs_control.read_log, row.folder, owner=self, done=take)

    def _refused(self, error: Exception) -> None:
        self._say("")
        self.hub.say(f"That did not work: {error}", "error")
        self.read()

    def _changed(self, what: str) -> None:
        if what == "runs" and self.isVisible():
            self.read()

    def _not_read(self, error: Exception) -> None:
        self._reading = False
        self._say(f"The runs folder {self.hub.runs} cannot be read: {error}")

    def _take(self, rows: list[Row]) -> None:
        self._reading = False
        if self._wants_more:
            self._wants_more = False
            soon(self, self.read)
        fit_table(self.table)
        if rows != self.rows:
            self._fill(rows)
        self.screen.know([row.folder for row in rows])
        has = bool(rows)
        self._empty.setVisible(not has)
        self._offer_pretrain.setVisible(not has)
        for widget in (self.table, self.buttons):
            widget.setVisible(has)
        self._heading.setText(f"{len(rows)} in {self.hub.runs}" if has else "")
        self._heading.setVisible(has)

    def _fill(self, rows: list[Row]) -> None:
        """Write what changed; the chosen run stays chosen wherever it moves."""
        chosen = self.chosen()
        self.table.blockSignals(True)
        if len(rows) != self.table.rowCount():
            self.table.setRowCount(len(rows))
        for place, row in enumerate(rows):
            if place < len(self.rows) and self.rows[place] == row:
                continue
            for column, text in enumerate(row.cells):
                item = self.table.item(place, column)
                if item is None:
                    item = QTableWidgetItem()
                    self.table.setItem(place, column, item)
                item.setText(text)
                item.setToolTip(row.tooltip)
                if column == len(COLUMNS) - 1:
                    item.setData(SPARK_ROLE, row.losses)
        self.rows = rows
        places = [
            i for i, row in enumerate(rows) if chosen and row.folder == chosen.folder
        ]
        self.table.setCurrentCell(places[0] if places else 0, 0)
        self.table.blockSignals(False)
        self._offer()

    def _offer(self) -> None:
        row = self.chosen()
        names = row.actions if row is not None else frozenset()
        self.buttons.offer(names)

    def _say(self, text: str) -> None:
        tell(self._news, text)

    def _build(self) -> None:
        self._heading = text_label("Runs folder")
        self.table = runs_table(self._offer, lambda: self.act("follow"))
        self._empty = text_label("No runs yet")
        self._empty.setText("No training yet. Pretraining needs no labels.")
        self._offer_pretrain = QPushButton("Pretrain on your scans")
        self._offer_pretrain.setAccessibleName("Go to the Pretrain tab")
        self._offer_pretrain.setToolTip("Start a first training")
        self._offer_pretrain.clicked.connect(lambda: self.hub.go.emit("Pretrain", {}))
        self.buttons = ActionButtons(_BUTTONS, self.act)
        self._news = sentence("What is happening", lines=2)
        self._log_title = QLabel()
        self._log_title.setVisible(False)
        self.log = LogBox()
        self._log_title.setBuddy(self.log)
        self._page = QWidget()
        column = QVBoxLayout(self._page)
        column.setContentsMargins(0, 0, 0, 0)
        for widget in (
            self._heading, self._empty, self._offer_pretrain, self.table,
            self.buttons, compare_button(self.new_comparison), self._news,
            self._log_title, self.log,
        ):  # fmt: skip
            column.addWidget(widget)
        column.addStretch()
        self._say("")
        self.screen = TrainingScreen(self.hub)
        self.screen.back.connect(self.show_list)
        self.screen.use.connect(self.use)
        self.screen.report.connect(self.report_on)
        self.screen.open_folder.connect(self.open_folder)
        self.reports = ReportPage(self.hub)
        self.reports.back.connect(self.show_list)
        self.compared, self.form = ComparePage(self.hub), CompareForm(self.hub)
        self.compared.back.connect(self.show_list)
        self.form.back.connect(self.show_list)
        self.form.follow.connect(lambda folder: self.follow(Path(folder)))
        outer = QVBoxLayout(self)
        outer.setContentsMargins(4, 4, 4, 4)
        for page in (
            self._page, self.screen, self.compared, self.form, self.reports,
        ):  # fmt: skip
            outer.addWidget(page)
        self._show_page(self._page)
        self._offer()
        for widget in (self._empty, self._offer_pretrain, self.table, self.buttons):
            widget.setVisible(False)  # until the folder is read


def is_comparison(folder: Path) -> bool:
    """Whether a folder holds a comparison: a run of that kind, or its table."""
    try:
        return str(Run.open(folder).spec["kind"]) == "compare"
    except UnusableInput:
        return (folder / SUMMARY).is_file() or not (folder / "run.json").is_file()


def _trash_run(folder: Path, root: Path) -> str:
    runs_control.check_deletable(folder, root)
    return to_trash(folder)
