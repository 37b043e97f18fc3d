"""The list of a batch: one line per scan, with what became of it."""

from __future__ import annotations

from collections.abc import Sequence

from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QAbstractItemView,
    QListWidget,
    QListWidgetItem,
    QWidget,
)

from homolog.gui.segment.batch import BatchItem
from homolog.gui.segment.chances import chance_rows

_ROWS_SHOWN = 5


class BatchList(QListWidget):
    """Scans of a batch; files dropped on it fall through to the box around it."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        self.setAcceptDrops(False)
        self.viewport().setAcceptDrops(False)
        self.setTextElideMode(Qt.TextElideMode.ElideMiddle)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)

    @property
    def chosen(self) -> list[int]:
        """Numbers of the selected lines."""
        return [index.row() for index in self.selectedIndexes()]

    def show_items(self, items: Sequence[BatchItem]) -> None:
        """The lines anew; the selection stays."""
        chosen = set(self.chosen)
        if self.count() != len(items):
            self.clear()
            for _ in items:
                self.addItem(QListWidgetItem())
            for row in chosen & set(range(len(items))):
                self.item(row).setSelected(True)
        for row, item in enumerate(items):
            self.show_line(row, item)
        height = self.fontMetrics().height() + 4
        self.setFixedHeight(_ROWS_SHOWN * height + 2 * self.frameWidth() + 4)

    def show_line(self, row: int, item: BatchItem) -> None:
        """One line anew."""
        line = self.item(row)
        if line is None:
            return
        line.setText(item.line)
        numbers = [f"{n}: {v:,.2f} ml" for n, v in item.volumes_ml.items() if v > 0]
        if item.told:
            numbers = [f"{r.name}: {r.text}" for r in chance_rows(item.told)]
        told = [str(item.scan), item.note, item.words, *numbers]
        line.setToolTip("\n".join(t for t in told if t))
