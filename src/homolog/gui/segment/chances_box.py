"""Classes of a scan with their probabilities, and the slices that speak for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QAbstractItemView,
    QApplication,
    QHeaderView,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from homolog.gui.hub import Hub
from homolog.gui.rows import (
    beside,
    bring_into_view,
    button,
    named,
    sentence,
    tell,
)
from homolog.gui.segment.chances import (
    best_slices,
    chance_rows,
    short_text,
    slice_heading,
    slice_measure,
    slices_sentence,
    table_text,
)

_ROWS_SHOWN = 8
_NOT_A_DIAGNOSIS = "A model's estimate, to be checked on the scan; no diagnosis."


class ChancesBox(QWidget):
    """What a classifier said of one scan; hidden until it did."""

    def __init__(self, hub: Hub, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._hub = hub
        self._layer: Any = None
        self.name, self.told = "", {}  # type: str, Mapping[str, Any]
        self.headline = sentence("What the scan is told to show")
        font = self.headline.font()
        font.setBold(True)
        self.headline.setFont(font)
        self.table = _table("Classes of the scan", "Probability of each class")
        self.table.setHorizontalHeaderLabels(["Class", "Probability"])
        self.caution = sentence("How to take this")
        self.where = sentence("Slices that look positive")
        self.slices = _table(
            "Slices", "Numbers as on the slider; double-click one to go there"
        )
        self.slices.cellActivated.connect(lambda row, _: self._go_to_row(row))
        self.go = button("Go to slice", "Show the selected slice", self.go_to)
        self.copy = button(
            "Copy table", "Copy the table for a spreadsheet", self.copy_table
        )
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        for widget in (self.headline, self.table, self.caution, self.where):
            column.addWidget(widget)
        column.addWidget(self.slices)
        column.addLayout(beside(self.go, self.copy))
        self.hide()

    def show_answer(
        self, name: str, told: Mapping[str, Any], layer: Any = None
    ) -> None:
        """Show what was told of a scan.

        Args:
            name: Of the scan.
            told: Its entry of the ``predict`` job's result.
            layer: The scan's layer, where it is open.
        """
        self.name, self.told, self._layer = name, told, layer
        rows = chance_rows(told)
        tell(self.headline, f"{name}: {short_text(told)}")
        self.table.setRowCount(len(rows))
        for number, row in enumerate(rows):
            prefix = "type: " if row.kind == "type" else ""
            mark = "✓ " if row.told else ""
            _fill_row(self.table, number, f"{mark}{prefix}{row.name}", row.text,
                      bold=row.told)  # fmt: skip
        _fit(self.table, len(rows))
        tell(self.caution, _NOT_A_DIAGNOSIS)
        self._show_slices()
        self.show()
        bring_into_view(self.table)

    def forget(self) -> None:
        """Another model or scan: what was told no longer stands."""
        self.name, self.told, self._layer = "", {}, None
        self.hide()

    def go_to(self) -> None:
        """Show the selected slice, or the first of the table."""
        self._go_to_row(max(self.slices.currentRow(), 0))

    def copy_table(self) -> None:
        """Put the table on the clipboard."""
        QApplication.clipboard().setText(table_text(self.name, self.told))

    def _show_slices(self) -> None:
        measure, best = slice_measure(self.told), best_slices(self.told)
        tell(self.where, slices_sentence(self.told))
        self.slices.setVisible(bool(best))
        self.go.setVisible(bool(best))
        self.go.setEnabled(self._layer is not None)
        if measure is None or not best:
            return
        self.slices.setHorizontalHeaderLabels(["Slice", slice_heading(measure)])
        self.slices.setRowCount(len(best))
        for row, (number, value) in enumerate(best):
            _fill_row(self.slices, row, str(number), f"{value:.0%}".replace("%", " %"))
        _fit(self.slices, len(best))

    def _go_to_row(self, row: int) -> None:
        layer, best = self._layer, best_slices(self.told)
        layers = self._hub.viewer.layers
        if layer is None or layer not in layers or not row < len(best):
            return
        place = [0.0] * layer.ndim
        place[-3] = float(best[row][0])
        dims = self._hub.viewer.dims
        dims.ndisplay = 2
        dims.order = tuple(range(dims.ndim))  # slices along z
        dims.set_point(dims.ndim - 3, float(layer.data_to_world(place)[-3]))


def _table(name: str, hint: str) -> QTableWidget:
    table = QTableWidget(0, 2)
    named(table, name, hint)
    table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
    table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
    table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
    table.verticalHeader().hide()
    header = table.horizontalHeader()
    header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
    header.setSectionResizeMode(1, QHeaderView.ResizeMode.ResizeToContents)
    return table


def _fill_row(
    table: QTableWidget, row: int, text: str, value: str, *, bold: bool = False
) -> None:
    for column, words in enumerate((text, value)):
        item = QTableWidgetItem(words)
        item.setToolTip(words)
        if column:
            item.setTextAlignment(
                Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
            )
        font = item.font()
        font.setBold(bold)
        item.setFont(font)
        table.setItem(row, column, item)


def _fit(table: QTableWidget, rows: int) -> None:
    """As high as its rows, up to a limit."""
    shown = min(max(rows, 1), _ROWS_SHOWN)
    height = table.verticalHeader().defaultSectionSize()
    frame = table.horizontalHeader().sizeHint().height() + 2 * table.frameWidth()
    table.setFixedHeight(shown * height + frame + 2)
