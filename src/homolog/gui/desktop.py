"""What panels ask of the desktop: the trash, and a menu of what a model is good for."""

from __future__ import annotations

from pathlib import Path

from qtpy.QtCore import QFile, Qt
from qtpy.QtWidgets import QMenu, QWidget

from homolog.gui.hub import Hub
from homolog.gui.models.control import ModelCard, uses


def use_menu(hub: Hub, model: ModelCard, parent: QWidget) -> QMenu:
    """What a model is good for; choosing sends the user to that tab."""
    menu = QMenu(parent)
    menu.setToolTipsVisible(True)
    menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
    for words, tab, what in uses(model):
        action = menu.addAction(words)
        action.setToolTip(f"Go to the tab {tab} with {model.name}")
        action.triggered.connect(
            lambda _=False, tab=tab, what=what: hub.go.emit(tab, what)
        )
    return menu


def to_trash(folder: Path) -> None:
    """Move a folder to the desktop's trash; on a background thread.

    Raises:
        OSError: There is no trash for that disk; nothing was touched.
    """
    done = QFile.moveToTrash(str(folder))
    if not (done[0] if isinstance(done, tuple) else done):
        raise OSError(
            f"this system has no trash for {folder}; nothing was deleted. Delete the "
            "folder in the file manager."
        )
