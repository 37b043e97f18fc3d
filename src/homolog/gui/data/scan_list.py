"""The list of scans in the Data panel: name, facts and badge of each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from qtpy.QtCore import QRect, QSize, Qt, Signal
from qtpy.QtGui import QBrush, QColor
from qtpy.QtWidgets import (
    QAbstractItemView,
    QHeaderView,
    QStyledItemDelegate,
    QTreeWidget,
    QTreeWidgetItem,
)

from homolog.gui.data.control import BAD, DOUBT, Row
from homolog.gui.rows import keep_scrolled

# Rows of one folder that are shown one by one.
_MOST_SHOWN = 300
_COLOURS = {BAD: "#ff8a80", DOUBT: "#ffd166"}
_KEY = Qt.ItemDataRole.UserRole
# Room of the tick, and between two rows.
_TICK_PX, _GAP_PX = 30, 8


class DataList(QTreeWidget):
    """Scans and folders; ticked ones go into a store.

    Signals:
        asked: A scan was double-clicked, or Enter pressed on it (Row).
        ticked: Which rows are ticked changed.
    """

    asked = Signal(object)
    ticked = Signal()

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self.rows: dict[str, Row] = {}
        self._left_out: set[str] = set()
        self.setColumnCount(1)
        self.setHeaderHidden(True)
        self.header().setSectionResizeMode(QHeaderView.ResizeMode.Stretch)
        self.setWordWrap(True)
        self.setUniformRowHeights(False)
        self.setTextElideMode(Qt.TextElideMode.ElideNone)
        self.setItemDelegate(_Wrapping(self))
        self.setIndentation(14)
        self.setMinimumHeight(170)
        self.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        self.setVerticalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setAccessibleName("Scans")
        self.setToolTip(
            "Ticked scans and folders go into a store; double-click a scan to show it"
        )
        self.itemActivated.connect(self._ask)
        self.itemChanged.connect(self._tick)
        self.itemExpanded.connect(self._fill)

    def show_rows(self, rows: Iterable[Row]) -> None:
        """Show rows; what was open, selected, not ticked or looked at stays so."""
        keep_scrolled(self, lambda: self._show(rows))

    def _show(self, rows: Iterable[Row]) -> None:
        opened = {k for k, item in self._tops() if item.isExpanded()}
        chosen = {row.key for row in self.chosen()}
        self.blockSignals(True)
        self.clear()
        self.rows = {row.key: row for row in rows}
        for row in self.rows.values():
            item = self._item(row)
            state = Qt.CheckState.Checked
            if row.key in self._left_out or row.badge.level == BAD:
                state = Qt.CheckState.Unchecked
            item.setCheckState(0, state)
            self.addTopLevelItem(item)
            if row.scans:
                policy = QTreeWidgetItem.ChildIndicatorPolicy.ShowIndicator
                item.setChildIndicatorPolicy(policy)
            if row.key in opened:
                self._fill(item)
                item.setExpanded(True)
            item.setSelected(row.key in chosen)
        self.blockSignals(False)
        self.ticked.emit()

    def ticked_rows(self) -> list[Row]:
        """Rows that go into a store."""
        checked = Qt.CheckState.Checked
        return [
            self.rows[k] for k, item in self._tops() if item.checkState(0) == checked
        ]

    def chosen(self) -> list[Row]:
        """Selected rows, scans of a folder too."""
        found = [item.data(0, _KEY) for item in self.selectedItems()]
        return [row for row in found if isinstance(row, Row)]

    def _fill(self, item: QTreeWidgetItem) -> None:
        """The scans of a folder become items when it is first unfolded."""
        row = item.data(0, _KEY)
        if item.childCount() or not isinstance(row, Row):
            return
        blocked = self.blockSignals(True)
        item.addChildren([self._item(scan) for scan in row.scans[:_MOST_SHOWN]])
        if len(row.scans) > _MOST_SHOWN:
            more = QTreeWidgetItem([f"and {len(row.scans) - _MOST_SHOWN} more"])
            item.addChild(more)
        self.blockSignals(blocked)

    def resizeEvent(self, event: Any) -> None:  # noqa: D102 - Qt's name
        super().resizeEvent(event)
        self.scheduleDelayedItemsLayout()

    def _item(self, row: Row) -> QTreeWidgetItem:
        item = QTreeWidgetItem([row.text])
        item.setData(0, _KEY, row)
        item.setToolTip(0, f"{row.text}\n{row.path or 'not a file'}")
        if row.badge.level in _COLOURS:
            item.setForeground(0, QBrush(QColor(_COLOURS[row.badge.level])))
        return item

    def _tops(self) -> list[tuple[str, QTreeWidgetItem]]:
        items = [self.topLevelItem(i) for i in range(self.topLevelItemCount())]
        return [(item.data(0, _KEY).key, item) for item in items]

    def _ask(self, item: QTreeWidgetItem) -> None:
        row = item.data(0, _KEY)
        if isinstance(row, Row) and not row.scans:
            self.asked.emit(row)

    def _tick(self, item: QTreeWidgetItem) -> None:
        row = item.data(0, _KEY)
        if not isinstance(row, Row) or item.parent() is not None:
            return
        if item.checkState(0) == Qt.CheckState.Checked:
            self._left_out.discard(row.key)
        else:
            self._left_out.add(row.key)
        self.ticked.emit()


class _Wrapping(QStyledItemDelegate):
    """Rows as high as their wrapped text; Qt itself asks without a width."""

    def __init__(self, tree: DataList) -> None:
        super().__init__(tree)
        self._tree = tree

    def sizeHint(self, option: Any, index: Any) -> QSize:
        depth = 2 if index.parent().isValid() else 1
        room = self._tree.viewport().width() - depth * self._tree.indentation()
        room = max(80, room - _TICK_PX)
        wrap = int(Qt.TextFlag.TextWordWrap.value)
        text = index.data() or ""
        rect = option.fontMetrics.boundingRect(QRect(0, 0, room, 10_000), wrap, text)
        return QSize(room, rect.height() + _GAP_PX)
