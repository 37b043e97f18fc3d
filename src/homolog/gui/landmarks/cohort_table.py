"""The table of a cohort: thumbnail, scan, figures, why. Shows rows, decides nothing."""

from __future__ import annotations

from collections.abc import Sequence

from qtpy.QtCore import QSize, Qt, Signal
from qtpy.QtGui import QColor, QIcon
from qtpy.QtWidgets import QAbstractItemView, QTableWidget, QTableWidgetItem

from homolog.gui import rows
from homolog.gui.landmarks.cohort import Row
from homolog.gui.landmarks.drawings import OwnColour, pixmap_of
from homolog.gui.landmarks.table import COLOURS, MARKS, number_text

_TITLES = ("", "Scan", "Sim.", "Margin", "Cycle\nmm", "Why")
_THUMB, _ROWS_SHOWN = 48, 4
# Long names of files would push the figures out of sight: they are broken into lines.
_NAME_PX = 96
_MAY_BREAK = str.maketrans({c: f"{c}\u200b" for c in "_-. "})


class CohortTable(QTableWidget):
    """Rows in the order given.

    Signals:
        opened: Key of a row that was double-clicked, or chosen with Enter.
    """

    opened = Signal(str)

    def __init__(self) -> None:
        super().__init__(0, len(_TITLES))
        self._shown: list[Row] = []
        rows.named(
            self, "The landmark in all scans",
            "Double-click a row, or press Enter, to make it scan B",
        )  # fmt: skip
        self.setHorizontalHeaderLabels(_TITLES)
        header, vertical = self.horizontalHeader(), self.verticalHeader()
        assert header is not None
        assert vertical is not None
        vertical.hide()
        vertical.setDefaultSectionSize(_THUMB + 4)
        header.setSectionResizeMode(header.ResizeMode.ResizeToContents)
        header.setSectionResizeMode(1, header.ResizeMode.Interactive)
        header.resizeSection(1, _NAME_PX)
        header.setStretchLastSection(True)
        self.setIconSize(QSize(_THUMB, _THUMB))
        self.setTextElideMode(Qt.TextElideMode.ElideMiddle)
        self.setTabKeyNavigation(False)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setHorizontalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.setItemDelegateForColumn(0, OwnColour(self))
        self.itemActivated.connect(self._open)

    def show_rows(self, wanted: Sequence[Row]) -> None:
        """Show rows; the chosen one stays chosen wherever it moved to."""
        chosen = self.key_at(self.currentRow())
        self.setRowCount(len(wanted))
        for line, row in enumerate(wanted):
            self._fill(line, row)
            if row.key == chosen:
                self.setCurrentCell(line, max(self.currentColumn(), 0))
        self._fit()

    def key_at(self, line: int) -> str:
        """Key of a row; "" where there is none."""
        first = self.item(line, 0) if line >= 0 else None
        return "" if first is None else str(first.data(Qt.ItemDataRole.UserRole))

    def _fill(self, line: int, row: Row) -> None:
        mark, trust = row.mark, row.trust
        figures = ("–", "–", "–")
        if mark is not None:
            figures = (
                number_text(mark.similarity), number_text(mark.margin, 3),
                number_text(mark.cycle_mm, 1),
            )  # fmt: skip
        name = row.name.translate(_MAY_BREAK)
        texts = (MARKS[trust], name, *figures, row.told())
        for column, text in enumerate(texts):
            item = QTableWidgetItem(text)
            item.setToolTip(f"{row.name}: {row.told()}")
            if column == 0:
                item.setData(Qt.ItemDataRole.UserRole, row.key)
                item.setForeground(QColor(COLOURS[trust]))
                if row.picture is not None:
                    item.setIcon(QIcon(pixmap_of(row.picture, _THUMB)))
            self.setItem(line, column, item)

    def _open(self, item: QTableWidgetItem) -> None:
        self.opened.emit(self.key_at(item.row()))

    def _fit(self) -> None:
        header, bar = self.horizontalHeader(), self.horizontalScrollBar()
        extra = 2 * self.frameWidth() + 2
        for part in (header, bar):
            extra += part.sizeHint().height() if part is not None else 0
        shown = min(max(self.rowCount(), 1), _ROWS_SHOWN)
        self.setFixedHeight(shown * (_THUMB + 4) + extra)
