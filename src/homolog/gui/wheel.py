"""The mouse wheel scrolls the panel; a control takes it only with the focus.

Qt turns combo boxes, number boxes, sliders and tab bars under the pointer, and gives
them the focus for it: whoever scrolled a form changed what it passed, unseen.
"""

from __future__ import annotations

from typing import Any

from qtpy.QtCore import QEvent, QObject, Qt, QTimer
from qtpy.QtWidgets import (
    QAbstractSlider,
    QAbstractSpinBox,
    QApplication,
    QComboBox,
    QScrollBar,
    QTabBar,
    QWidget,
)

_TURNED = (QComboBox, QAbstractSpinBox, QAbstractSlider, QTabBar)
_WHEEL = QEvent.Type.Wheel
_ADDED, _POLISHED = QEvent.Type.ChildAdded, QEvent.Type.ChildPolished


class WheelGuard(QObject):
    """Watches a widget and all that is or will be in it.

    Args:
        root: Owns the guard.
    """

    def __init__(self, root: QWidget) -> None:
        super().__init__(root)
        self._root = root
        self._soon = QTimer(self)
        self._soon.setSingleShot(True)
        self._soon.setInterval(0)
        self._soon.timeout.connect(self._adopt_all)
        self.adopt()

    def adopt(self, root: QWidget | None = None) -> None:
        """Watch what is there now; what comes later is adopted by itself.

        Args:
            root: With all that is in it; the guard's own if None.
        """
        root = root or self._root
        for widget in (root, *root.findChildren(QWidget)):
            widget.installEventFilter(self)  # once, however often it is asked for
            if widget.focusPolicy() == Qt.FocusPolicy.WheelFocus:
                # Else the first notch would give the focus, and the second turn.
                widget.setFocusPolicy(Qt.FocusPolicy.StrongFocus)

    def eventFilter(self, watched: Any, event: Any) -> bool:  # noqa: D102 - Qt's name
        kind = event.type()
        if kind == _WHEEL:
            if turns(watched) and not _has_focus(watched):
                event.ignore()  # Qt offers it to the parents: they scroll
                return True
        elif kind == _POLISHED:  # the child is whole, and about to be seen
            child = event.child()
            if isinstance(child, QWidget):
                self.adopt(child)
        elif kind == _ADDED and not self._soon.isActive():
            # The child may be half made: no hand is laid on it now.
            self._soon.start()
        return False

    def _adopt_all(self) -> None:
        self.adopt()


def turns(widget: Any) -> bool:
    """Whether the wheel would change a value of the widget."""
    return isinstance(widget, _TURNED) and not isinstance(widget, QScrollBar)


def _has_focus(widget: QWidget) -> bool:
    focus = QApplication.focusWidget()
    return focus is not None and (focus is widget or widget.isAncestorOf(focus))
