"""Which widgets lack an accessible name or a tooltip."""

from __future__ import annotations

from qtpy.QtWidgets import (
    QAbstractButton,
    QAbstractSlider,
    QAbstractSpinBox,
    QComboBox,
    QLineEdit,
    QListView,
    QPlainTextEdit,
    QProgressBar,
    QScrollBar,
    QTableView,
    QWidget,
)

_KINDS = (
    QAbstractButton, QAbstractSlider, QAbstractSpinBox, QComboBox, QLineEdit, QListView,
    QPlainTextEdit, QProgressBar, QTableView,
)  # fmt: skip


def nameless(panel: QWidget) -> list[str]:
    """Class and text of every control without a name or a tooltip."""
    found = []
    for widget in panel.findChildren(QWidget):
        inner = _is_inside(widget)
        module = type(widget).__module__
        private = module.startswith("pyqtgraph")
        if module.startswith("superqt.sliders"):  # labels and handles of a named slider
            private = bool(widget.parentWidget().accessibleName())
        # Parts that Qt makes by itself: arrows, popups, header corners, clear buttons.
        if not isinstance(widget, _KINDS) or isinstance(widget, QScrollBar):
            continue
        if inner or private or widget.objectName().startswith("qt_"):
            continue
        if not widget.accessibleName() or not widget.toolTip():
            text = widget.text() if isinstance(widget, QAbstractButton) else ""
            found.append(f"{type(widget).__name__} {text!r} {widget.objectName()}")
    return found


def _is_inside(widget: QWidget) -> bool:
    """Whether it is a part of a compound widget that has a name itself."""
    place = widget.parentWidget()
    while place is not None:
        if isinstance(place, QComboBox | QLineEdit | QTableView | QPlainTextEdit):
            return True
        place = place.parentWidget()
    return False
