"""The chosen landmark in all open scans: a table with thumbnails."""

from __future__ import annotations

from typing import Any

from qtpy.QtCore import QSize, Qt, Signal
from qtpy.QtGui import QColor, QIcon
from qtpy.QtWidgets import (
    QAbstractItemView,
    QLabel,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from homolog.data.landmarks import Landmark
from homolog.gui import rows
from homolog.gui.explore.scan import Scan
from homolog.gui.landmarks.cohort import Row, find_in
from homolog.gui.landmarks.drawings import pixmap_of
from homolog.gui.landmarks.session import Session
from homolog.gui.landmarks.table import COLOURS, MARKS, number_text
from homolog.gui.threads import in_background

_TITLES = ("", "Scan", "Sim.", "Margin", "Cycle\nmm", "Why")
_THUMB, _ROWS_SHOWN = 48, 4


class CohortBox(QWidget):
    """Searches one landmark in every open scan but A.

    Scans with features answer at once; the others are listed, and computed on demand.

    Signals:
        told: A sentence about what was done.

    Args:
        session: Asked and told.
    """

    told = Signal(str)

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session
        self._mark: Landmark | None = None
        self.found: dict[str, Row] = {}
        self.search = rows.button(
            "Find in all open scans",
            "Search the chosen landmark in every open scan that has features",
            self.find_all,
        )  # fmt: skip
        self.missing = rows.button(
            "Compute missing", "Compute features of the listed scans that have none",
            self._compute,
        )  # fmt: skip
        self.title = QLabel("In all open &scans")
        self.table = QTableWidget(0, len(_TITLES))
        rows.named(
            self.table, "The landmark in all open scans",
            "Double-click a row to make it scan B",
        )  # fmt: skip
        self.title.setBuddy(self.table)
        self.table.setHorizontalHeaderLabels(_TITLES)
        header, vertical = self.table.horizontalHeader(), self.table.verticalHeader()
        assert header is not None
        assert vertical is not None
        vertical.hide()
        vertical.setDefaultSectionSize(_THUMB + 4)
        header.setSectionResizeMode(header.ResizeMode.ResizeToContents)
        header.setStretchLastSection(True)
        self.table.setIconSize(QSize(_THUMB, _THUMB))
        self.table.setWordWrap(False)
        self.table.setTabKeyNavigation(False)
        self.table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.setHorizontalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.table.itemDoubleClicked.connect(self._go)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.search)
        column.addWidget(self.title)
        column.addWidget(self.table)
        column.addWidget(self.missing)
        session.placing.chosen_changed.connect(self._enable)
        session.scans_changed.connect(self._scans_changed)
        session.scan_changed.connect(self._scan_changed)
        self.refresh()

    def find_all(self) -> None:
        """Search the chosen landmark everywhere."""
        control = self._session.control
        mark, a = control.table.current, control.scan_a
        if mark is None or a is None or a.ready is None:
            self._session.hub.say("Choose a landmark first.")
            return
        self._mark, self.found = mark, {}
        for scan in control.book.scans.values():
            if scan.key != a.key:
                self._find(scan)
        count = sum(row.state == "searching" for row in self.found.values())
        self.told.emit(
            f"Searching '{mark.name}' in {count} of {len(self.found)} other scans."
        )
        self.refresh()

    def refresh(self) -> None:
        """Show what was found so far."""
        self.table.setRowCount(len(self.found))
        for line, row in enumerate(self.found.values()):
            self._fill(line, row)
        shown = bool(self.found)
        self.title.setVisible(shown)
        self.table.setVisible(shown)
        self.missing.setVisible(any(r.state == "waiting" for r in self.found.values()))
        if self._mark is not None:
            self.title.setText(f"'{self._mark.name}' in all open &scans")
        self._fit()
        self._enable()

    def _find(self, scan: Scan) -> None:
        row = self.found[scan.key] = Row(scan.key, scan.ref.name)
        mark, session = self._mark, self._session
        a = session.control.scan_a
        if mark is None or a is None or a.ready is None:
            return
        if scan.ready is None:
            row.state = "waiting"
            return

        def done(answer: tuple[Landmark, Any]) -> None:
            row.mark, row.picture = answer
            row.state = "found"
            self.refresh()

        def failed(error: Exception) -> None:
            row.state, row.words = "failed", str(error)
            self.refresh()

        in_background(
            find_in, session.searching.sides, (a, a.ready, session.layer_of(a)),
            (scan, scan.ready, session.layer_of(scan)), mark,
            owner=self, done=done, failed=failed,
        )  # fmt: skip

    def _compute(self) -> None:
        keys = [key for key, row in self.found.items() if row.state == "waiting"]
        self._session.work.compute(keys)
        self.told.emit(f"Computing features of {len(keys)} scans, one by one.")

    def _scan_changed(self, key: str) -> None:
        """Features came: a waiting scan is searched; work is told."""
        scan, row = self._session.control.book.scans.get(key), self.found.get(key)
        if scan is None or row is None or row.state != "waiting":
            return
        if scan.ready is not None:
            self._find(scan)
        else:
            row.words = scan.line()
        self.refresh()

    def _scans_changed(self) -> None:
        """Another A: what was found belongs to it no more; closed scans go."""
        scans = self._session.control.book.scans
        mark = self._mark
        gone = mark is None or self._session.control.table.get(mark.id) is None
        self.found = {} if gone else {k: r for k, r in self.found.items() if k in scans}
        self.refresh()

    def _fill(self, line: int, row: Row) -> None:
        mark, trust = row.mark, row.trust
        figures = ("–", "–", "–")
        if mark is not None:
            figures = (
                number_text(mark.similarity), number_text(mark.margin, 3),
                number_text(mark.cycle_mm, 1),
            )  # fmt: skip
        for column, text in enumerate((MARKS[trust], row.name, *figures, row.told())):
            item = QTableWidgetItem(text)
            item.setToolTip(f"{row.name}: {row.told()}")
            if column == 0:
                item.setData(Qt.ItemDataRole.UserRole, row.key)
                item.setForeground(QColor(COLOURS[trust]))
                if row.picture is not None:
                    item.setIcon(QIcon(pixmap_of(row.picture, _THUMB)))
            self.table.setItem(line, column, item)

    def _go(self, item: QTableWidgetItem) -> None:
        first = self.table.item(item.row(), 0)
        if first is not None:
            self._session.show_in_b(
                str(first.data(Qt.ItemDataRole.UserRole)), self._mark
            )

    def _enable(self) -> None:
        control = self._session.control
        here = control.table.current is not None and control.is_ready
        self.search.setEnabled(here)
        self.setVisible(bool(self.found) or len(control.table) > 0)

    def _fit(self) -> None:
        header, bar = self.table.horizontalHeader(), self.table.horizontalScrollBar()
        extra = 2 * self.table.frameWidth() + 2
        for part in (header, bar):
            extra += part.sizeHint().height() if part is not None else 0
        shown = min(max(self.table.rowCount(), 1), _ROWS_SHOWN)
        self.table.setFixedHeight(shown * (_THUMB + 4) + extra)
