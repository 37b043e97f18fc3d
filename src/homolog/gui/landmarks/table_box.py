"""The table of landmarks: rename, accept, choose, delete, next uncertain."""

from __future__ import annotations

from qtpy.QtCore import QEvent, Qt
from qtpy.QtGui import QColor
from qtpy.QtWidgets import (
    QAbstractItemView,
    QLabel,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from homolog.gui.landmarks.cohort_box import OwnColour
from homolog.gui.landmarks.control import COLOURS, MARKS, WORDS, number_text, place_text
from homolog.gui.landmarks.pair import LandmarkPair
from homolog.gui.shared import widgets
from homolog.scans.points import Landmark

TITLES = (
    "", "Name", "Sim.", "Margin", "Cycle\nmm", "A x, y, z mm", "B x, y, z mm", "Why",
)  # fmt: skip
_TIPS = (
    "Ticked: accepted. Number and symbol as in both views",
    "Double-click or F2 to change it",
    "Similarity of both places, -1 to 1",
    "How far the similarity is above the best place further than 20 mm away",
    "Distance between the place in A and where its match leads back to",
    "Place in scan A: x, y, z in mm, LPS",
    "Place in scan B: x, y, z in mm, LPS",
    "Why it is refused or worth a look",
)
NAME = 1
_ROWS_SHOWN = 4
# Columns are made as wide as these many rows need: hundreds would take long.
_ROWS_MEASURED = 30
_ROOM_PX = 8
_PLAIN = Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable


class TableBox(QWidget):
    """Landmarks of the chosen pair.

    Args:
        pair: Asked and told.
    """

    def __init__(self, pair: LandmarkPair) -> None:
        super().__init__()
        self._pair = pair
        self._filling = False
        self._shown: list[tuple[Landmark, str]] = []
        self.title = QLabel("&Landmarks")
        self.table = QTableWidget(0, len(TITLES))
        widgets.named(
            self.table, "Landmarks",
            "Select a row: both views go there. More columns to the right",
        )  # fmt: skip
        self.table.setHorizontalHeaderLabels(TITLES)
        for column, tip in enumerate(_TIPS):
            item = self.table.horizontalHeaderItem(column)
            if item is not None:
                item.setToolTip(tip)
        header, vertical = self.table.horizontalHeader(), self.table.verticalHeader()
        assert header is not None
        assert vertical is not None
        vertical.hide()
        header.setSectionResizeMode(header.ResizeMode.ResizeToContents)
        header.setResizeContentsPrecision(_ROWS_MEASURED)
        header.setStretchLastSection(True)
        self.table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.table.setEditTriggers(
            QAbstractItemView.EditTrigger.DoubleClicked
            | QAbstractItemView.EditTrigger.EditKeyPressed
        )
        self.table.setTabKeyNavigation(False)
        self.table.setWordWrap(False)
        self.table.setHorizontalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.table.setItemDelegateForColumn(0, OwnColour(self.table))
        self.table.itemSelectionChanged.connect(self._choose)
        self.table.itemChanged.connect(self._change)
        self.title.setBuddy(self.table)
        self.next = widgets.button(
            "Next uncertain", "Go to the next landmark worth a look (Shift+N)",
            pair.placing.next_uncertain,
        )  # fmt: skip
        self.delete = widgets.button(
            "Delete", "Forget the chosen landmark", self._delete
        )
        self.again = widgets.button(
            "Search again", "Search all landmarks anew; those set by hand stay",
            pair.placing.search_again,
        )  # fmt: skip
        column_ = QVBoxLayout(self)
        column_.setContentsMargins(0, 0, 0, 0)
        for widget in (self.title, self.table):
            column_.addWidget(widget)
        column_.addLayout(widgets.beside(self.next, self.again, self.delete))
        pair.placing.table_changed.connect(self.refresh)
        self.refresh()

    def refresh(self) -> None:
        """Show the landmarks as they are."""
        landmarks = self._pair.control.table
        self.setVisible(len(landmarks) > 0)
        if self.table.state() == QAbstractItemView.State.EditingState:
            return  # a name is being typed
        self._filling = True
        self.table.setRowCount(len(landmarks))
        del self._shown[len(landmarks) :]
        for row, mark in enumerate(landmarks):
            self._refresh_row(row, mark)
            if mark.id == landmarks.chosen and self.table.currentRow() != row:
                self.table.setCurrentCell(row, NAME)
        if landmarks.chosen is None:
            self.table.clearSelection()
        self._fit()
        self._filling = False
        here = landmarks.current is not None
        self.delete.setEnabled(here)
        self.next.setEnabled(bool(landmarks.uncertain()))
        count = len(landmarks.uncertain())
        self.title.setText(
            f"&Landmarks: {len(landmarks)}" + (f", {count} uncertain" if count else "")
        )

    def changeEvent(self, event: QEvent) -> None:
        """Rows grow with the font."""
        super().changeEvent(event)
        if event.type() in (QEvent.Type.FontChange, QEvent.Type.StyleChange):
            self._fit()

    def _refresh_row(self, row: int, mark: Landmark) -> None:
        """Fill a row, if it does not show that already."""
        table = self._pair.control.table
        new = (mark, f"{table.trust(mark)} {mark.id in table.outliers}")
        if row == len(self._shown):
            self._shown.append(new)
        elif self._shown[row] == new:
            return
        self._shown[row] = new
        self._fill(row, mark)

    def _fill(self, row: int, mark: Landmark) -> None:
        table = self._pair.control.table
        trust = table.trust(mark)
        why = mark.reason
        if mark.id in table.outliers:
            why = f"{why}; outlier of the fit" if why else "outlier of the fit"
        if not why:
            why = "" if trust == "sure" else WORDS[trust]
        texts = (
            f"{MARKS[trust]} {mark.id}", mark.name, number_text(mark.similarity),
            number_text(mark.margin, 3), number_text(mark.cycle_mm, 1),
            place_text(mark.a_mm), place_text(mark.b_mm), why,
        )  # fmt: skip
        tip = f"{mark.name}: {WORDS[trust]}"
        tip += f"; {why}" if why and why != WORDS[trust] else ""
        for column, text in enumerate(texts):
            item = QTableWidgetItem(text)
            item.setToolTip(tip)
            item.setFlags(_PLAIN)
            if column == 0:
                item.setForeground(QColor(COLOURS[trust]))
                item.setData(Qt.ItemDataRole.UserRole, mark.id)
                if mark.b_mm is not None:
                    item.setFlags(_PLAIN | Qt.ItemFlag.ItemIsUserCheckable)
                item.setCheckState(
                    Qt.CheckState.Checked if mark.accepted else Qt.CheckState.Unchecked
                )
            elif column == NAME:
                item.setFlags(_PLAIN | Qt.ItemFlag.ItemIsEditable)
            self.table.setItem(row, column, item)

    def _fit(self) -> None:
        """As high as a few rows, however many there are: what is below stays."""
        vertical = self.table.verticalHeader()
        one = self.table.fontMetrics().height() + _ROOM_PX
        if vertical is not None and vertical.defaultSectionSize() != one:
            vertical.setMinimumSectionSize(one)
            vertical.setDefaultSectionSize(one)
        height = _ROWS_SHOWN * one
        header = self.table.horizontalHeader()
        bar = self.table.horizontalScrollBar()
        extra = 2 * self.table.frameWidth() + 2
        for part in (header, bar):
            extra += part.sizeHint().height() if part is not None else 0
        self.table.setFixedHeight(height + extra)

    def _choose(self) -> None:
        number = self._number(self.table.currentRow())
        landmarks = self._pair.control.table
        if not self._filling and number is not None and number != landmarks.chosen:
            self._pair.placing.choose(number)

    def _change(self, item: QTableWidgetItem) -> None:
        number = self._number(item.row())
        landmarks = self._pair.control.table
        if self._filling or landmarks.get(number) is None or number is None:
            return
        if item.column() == NAME:
            landmarks.rename(number, item.text())
        elif item.column() == 0:
            landmarks.accept(number, item.checkState() == Qt.CheckState.Checked)
        self._pair.placing.table_edited()
        if number == landmarks.chosen:
            self._pair.placing.chosen_changed.emit()

    def _delete(self) -> None:
        number = self._pair.control.table.chosen
        if number is not None:
            self._pair.placing.delete(number)

    def _number(self, row: int) -> int | None:
        item = self.table.item(row, 0) if row >= 0 else None
        return None if item is None else int(item.data(Qt.ItemDataRole.UserRole))
