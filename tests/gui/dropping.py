"""Dropping a path onto a panel (Qt 6.12 forbids making its drop events by hand)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qtpy.QtCore import QMimeData, QUrl


class Drop:
    """What a panel asks of a drag or drop event."""

    def __init__(self, path: Path) -> None:
        self.taken = False
        self._data = QMimeData()
        self._data.setUrls([QUrl.fromLocalFile(str(path))])

    def mimeData(self) -> QMimeData:
        return self._data

    def acceptProposedAction(self) -> None:
        self.taken = True


def drop(panel: Any, path: Path) -> bool:
    """Drag a path onto the panel and let go; whether it was taken."""
    enter = Drop(path)
    panel.dragEnterEvent(enter)
    if enter.taken:
        panel.dropEvent(Drop(path))
    return enter.taken
