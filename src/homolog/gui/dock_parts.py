"""Parts of the dock: rows of tabs, the banner without an engine, the list of keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qtpy.QtCore import QEvent, Qt, Signal
from qtpy.QtWidgets import (
    QApplication,
    QButtonGroup,
    QFrame,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QPushButton,
    QSizePolicy,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from homolog.gui import engine

_NARROWEST_PX = 30
# Greys that stand out on light and on dark themes; the blue is napari's own.
_LOOK = """
QToolButton { border: 1px solid rgba(128, 128, 128, 110); border-radius: 3px;
  padding: 3px; background: rgba(128, 128, 128, 25); }
QToolButton:checked { font-weight: bold; background: rgba(128, 128, 128, 95);
  border-bottom: 3px solid rgb(0, 122, 204); }
QToolButton:focus, QToolButton:hover { border: 2px solid rgb(0, 122, 204); }
"""


class TabRows(QWidget):
    """Seven tabs that are all visible in 320 pixels: as many rows as are needed.

    Signals:
        picked: Title of the tab the user chose.

    Args:
        tabs: (title, tooltip) of each.
    """

    picked = Signal(str)

    def __init__(self, tabs: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self.chosen = ""
        self.buttons: dict[str, QToolButton] = {}
        self._corner: list[QWidget] = []
        self._columns = 0
        self._group = QButtonGroup(self)
        self._group.setExclusive(True)
        self._grid = QGridLayout(self)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setSpacing(2)
        self.setAccessibleName("Tabs")
        self.setStyleSheet(_LOOK)
        for title, tip in tabs:
            button = QToolButton()
            button.setText(title)
            button.setCheckable(True)
            button.setAccessibleName(f"Tab {title}")
            button.setToolTip(tip)
            button.setSizePolicy(
                QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Preferred
            )
            # Else one wide row could never shrink again to become two.
            button.setMinimumWidth(_NARROWEST_PX)
            button.clicked.connect(lambda _=False, t=title: self.picked.emit(t))
            self._group.addButton(button)
            self.buttons[title] = button
        self._arrange(4)

    def add_corner(self, widget: QWidget) -> None:
        """Put a small button behind the last tab."""
        widget.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Preferred)
        widget.setMinimumWidth(_NARROWEST_PX)
        self._corner.append(widget)
        self._columns = 0
        self._arrange(4)

    def choose(self, title: str) -> None:
        """Mark a tab as the one in front."""
        self.chosen = title
        self.buttons[title].setChecked(True)

    def resizeEvent(self, event: Any) -> None:  # noqa: D102 - Qt's name
        super().resizeEvent(event)
        self._fit()

    def changeEvent(self, event: Any) -> None:  # noqa: D102 - Qt's name
        super().changeEvent(event)
        if event.type() in (QEvent.Type.FontChange, QEvent.Type.StyleChange):
            self._fit()

    def _fit(self) -> None:
        """As many columns as the widest title allows, eight at most."""
        if not self.buttons:
            return
        widest = max(b.sizeHint().width() for b in self.buttons.values()) + 2
        fitting = max(1, self.width() // widest)
        cells = len(self.buttons) + len(self._corner)
        columns = next((n for n in (8, 4, 3, 2) if n <= fitting and n <= cells), 2)
        self._arrange(columns)

    def _arrange(self, columns: int) -> None:
        if columns == self._columns:
            return
        self._columns = columns
        widgets = [*self.buttons.values(), *self._corner]
        for widget in widgets:
            self._grid.removeWidget(widget)
        for place, widget in enumerate(widgets):
            self._grid.addWidget(widget, place // columns, place % columns)


class EngineBanner(QFrame):
    """Without torch and MONAI the panel opens and says what to type.

    Args:
        missing: Names of the libraries.
    """

    def __init__(self, missing: Sequence[str]) -> None:
        super().__init__()
        self.setFrameShape(QFrame.Shape.StyledPanel)
        self.setAccessibleName("The training engine is missing")
        text = QLabel(
            "⚠ The training engine is not installed in this Python. Scans can be "
            "opened and looked at; to train or segment, type this in a terminal and "
            "start napari again:"
        )
        text.setWordWrap(True)
        text.setToolTip(f"Missing: {', '.join(missing)}")
        self.command = QLineEdit(engine.install_command())
        self.command.setReadOnly(True)
        self.command.setAccessibleName("Command that installs the engine")
        self.command.setToolTip(self.command.text())
        self.command.setCursorPosition(0)
        text.setBuddy(self.command)
        self.copy = QPushButton("Copy")
        self.copy.setAccessibleName("Copy the command")
        self.copy.setToolTip("Copy the command to the clipboard")
        self.copy.clicked.connect(self._copy)
        line = QHBoxLayout()
        line.addWidget(self.command, 1)
        line.addWidget(self.copy)
        column = QVBoxLayout(self)
        column.setContentsMargins(6, 4, 6, 4)
        column.addWidget(text)
        column.addLayout(line)

    def _copy(self) -> None:
        clipboard = QApplication.clipboard()
        if clipboard is not None:
            clipboard.setText(self.command.text())
        self.copy.setText("Copied")


class KeyList(QFrame):
    """What our keys do; folded away until the user asks.

    Args:
        parent: Of the widget.
    """

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self.setFrameShape(QFrame.Shape.StyledPanel)
        self.setAccessibleName("Keys")
        self.text = QLabel()
        self.text.setWordWrap(True)
        self.text.setTextFormat(Qt.TextFormat.PlainText)
        self.text.setAccessibleName("List of keys")
        self.text.setToolTip("Keys that work while this panel is visible")
        column = QVBoxLayout(self)
        column.setContentsMargins(6, 4, 6, 4)
        column.addWidget(self.text)
        self.setVisible(False)

    def toggle(self, lines: Sequence[tuple[str, str]]) -> None:
        """Show the list, or fold it away."""
        if self.isVisible():
            self.setVisible(False)
            return
        rows = [f"{key}: {words}" for key, words in lines]
        rows = rows or ["No keys yet; open the tab Explore for some."]
        rows.append("Tab and Shift+Tab move between fields, Space presses a button.")
        rows.append("For research use only.")
        self.text.setText("\n".join(rows))
        self.setVisible(True)
