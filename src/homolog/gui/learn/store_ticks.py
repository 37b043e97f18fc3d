"""A list of stores with ticks: one or several are learnt from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from qtpy.QtCore import QEvent, Qt, Signal
from qtpy.QtWidgets import (
    QAbstractItemView,
    QListWidget,
    QListWidgetItem,
    QWidget,
)

from homolog.gui.learn.store_list import StoreChoice

_PATH = Qt.ItemDataRole.UserRole
_ROWS_SHOWN = 3


class StoreTicks(QListWidget):
    """Stores with ticks, which keep the order they were ticked in.

    Signals:
        ticked: The user ticked a store, or took a tick away.
    """

    ticked = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._stores: dict[str, StoreChoice] = {}
        self._chosen: list[str] = []
        self.setSelectionMode(QAbstractItemView.SelectionMode.NoSelection)
        self.setTextElideMode(Qt.TextElideMode.ElideMiddle)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.itemChanged.connect(self._changed)
        self._fit()

    @property
    def stores(self) -> list[StoreChoice]:
        """All that are listed, in their order."""
        return list(self._stores.values())

    @property
    def chosen(self) -> list[StoreChoice]:
        """The stores with a tick, the one ticked first in front."""
        return [self._stores[path] for path in self._chosen]

    def show_stores(
        self,
        stores: Sequence[StoreChoice],
        chosen: Sequence[str],
        trouble: Callable[[StoreChoice], str],
    ) -> None:
        """Fill the list, without a signal.

        Args:
            stores: In the order to list them.
            chosen: Paths of those that get a tick, in their order; others are left out.
            trouble: Asked for what a store lacks; empty where it lacks nothing.
        """
        self._stores = {str(store.path): store for store in stores}
        self._chosen = [p for p in dict.fromkeys(chosen) if p in self._stores]
        self.blockSignals(True)
        self.clear()
        for path, store in self._stores.items():
            self.addItem(_item(store, path in self._chosen, trouble(store)))
        self.blockSignals(False)

    def changeEvent(self, event: Any) -> None:  # noqa: D102 - Qt's name
        super().changeEvent(event)
        if event.type() in (QEvent.Type.FontChange, QEvent.Type.StyleChange):
            self._fit()

    def _fit(self) -> None:
        """As high as a few rows, however many there are: what is below stays."""
        height = self.fontMetrics().height() + 4
        self.setFixedHeight(_ROWS_SHOWN * height + 2 * self.frameWidth() + 4)

    def tick(self, path: str, on: bool = True) -> None:
        """Do what the user does: tick a store, or take its tick away."""
        state = Qt.CheckState.Checked if on else Qt.CheckState.Unchecked
        for row in range(self.count()):
            if self.item(row).data(_PATH) == path:
                self.item(row).setCheckState(state)

    def _changed(self, item: QListWidgetItem) -> None:
        path = str(item.data(_PATH))
        on = item.checkState() == Qt.CheckState.Checked
        if on == (path in self._chosen):
            return
        if on:
            self._chosen.append(path)
        else:
            self._chosen.remove(path)
        self.ticked.emit()


def _item(store: StoreChoice, ticked: bool, trouble: str) -> QListWidgetItem:
    item = QListWidgetItem(f"⚠ {store.title}" if trouble else store.title)
    item.setData(_PATH, str(store.path))
    item.setToolTip(trouble or f"{store.title}\n{store.path}")
    item.setFlags(Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsUserCheckable)
    state = Qt.CheckState.Checked if ticked else Qt.CheckState.Unchecked
    item.setCheckState(state)
    return item
