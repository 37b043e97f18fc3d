"""Where the controls of a tab stand: nothing may move under the pointer."""

from __future__ import annotations

from collections.abc import Iterable

from qtpy.QtCore import QPoint
from qtpy.QtWidgets import (
    QAbstractButton,
    QAbstractItemView,
    QAbstractSlider,
    QAbstractSpinBox,
    QComboBox,
    QLineEdit,
    QPlainTextEdit,
    QScrollBar,
    QWidget,
)

_ACTED_ON = (
    QAbstractButton, QAbstractItemView, QAbstractSlider, QAbstractSpinBox, QComboBox,
    QLineEdit, QPlainTextEdit,
)  # fmt: skip


def places(panel: QWidget) -> dict[QWidget, tuple[int, int, int, int]]:
    """Left, top, width and height on the screen of all controls that are seen."""
    found = {}
    for widget in panel.findChildren(QWidget):
        if not isinstance(widget, _ACTED_ON) or isinstance(widget, QScrollBar):
            continue
        if not widget.isVisible() or _is_inside(widget, panel):
            continue
        if _is_folded(widget, panel):
            continue
        corner = widget.mapToGlobal(QPoint(0, 0))
        found[widget] = (corner.x(), corner.y(), widget.width(), widget.height())
    return found


def moved(
    before: dict[QWidget, tuple[int, int, int, int]],
    panel: QWidget,
    but: Iterable[QWidget] = (),
) -> list[str]:
    """Controls that were seen before and stand elsewhere now, or are larger.

    Args:
        before: From ``places``.
        panel: The same tab.
        but: Not looked at.
    """
    now, told = places(panel), []
    for widget, place in before.items():
        if widget in now and widget not in but and now[widget] != place:
            name = widget.accessibleName() or type(widget).__name__
            told.append(f"{name}: {place} -> {now[widget]}")
    return told


def replaced(
    before: dict[QWidget, tuple[int, int, int, int]], panel: QWidget
) -> list[str]:
    """Controls that appeared where another one was."""
    told = []
    for widget, (x, y, w, h) in places(panel).items():
        if widget in before:
            continue
        for other, (left, top, wide, high) in before.items():
            if x < left + wide and left < x + w and y < top + high and top < y + h:
                told.append(f"{widget.accessibleName()} over {other.accessibleName()}")
    return told


def _is_inside(widget: QWidget, panel: QWidget) -> bool:
    """Whether it is a part of a control."""
    place = widget.parentWidget()
    while place is not None and place is not panel:
        if isinstance(place, _ACTED_ON):
            return True
        place = place.parentWidget()
    return False


def _is_folded(widget: QWidget, panel: QWidget) -> bool:
    """Whether a closed fold hides it; Qt itself calls it visible."""
    place = widget.parentWidget()
    while place is not None and place is not panel:
        if not place.height():
            return True
        place = place.parentWidget()
    return False
