"""What a user would see wrong in a tab: cut texts, overlaps, boxes for letters."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from qtpy.QtCore import QPoint, QRect, Qt
from qtpy.QtGui import QTextLayout
from qtpy.QtWidgets import (
    QAbstractButton,
    QAbstractItemView,
    QAbstractSlider,
    QAbstractSpinBox,
    QCheckBox,
    QComboBox,
    QLabel,
    QLineEdit,
    QPlainTextEdit,
    QRadioButton,
    QScrollBar,
    QTextEdit,
    QToolButton,
    QWidget,
)
from superqt import QElidingLabel

from homolog.gui.shared.widgets import Choice, Sentence

_CONTROLS = (
    QAbstractButton, QAbstractItemView, QAbstractSlider, QAbstractSpinBox, QComboBox,
    QLabel, QLineEdit, QPlainTextEdit,
)  # fmt: skip
_SLACK_PX = 1


def seen(tab: QWidget) -> Iterator[QWidget]:
    """Labels and controls that are shown, parts of other controls left out."""
    for widget in tab.findChildren(QWidget):
        if isinstance(widget, QScrollBar) or not isinstance(widget, _CONTROLS):
            continue
        if not widget.isVisible() or not widget.width() or not widget.height():
            continue
        if not _inside_control(widget, tab) and not _folded(widget, tab):
            yield widget


def cut_texts(tab: QWidget) -> list[str]:
    """Texts that find no room, where nothing tells that there is more."""
    return [told for widget in seen(tab) if (told := _cut(widget))]


def overlaps(tab: QWidget) -> list[str]:
    """Pairs of things that lie over each other."""
    places = []
    for widget in seen(tab):
        if isinstance(widget, QLabel) and not widget.text():
            continue  # kept room, nothing to see
        corner = widget.mapTo(tab, QPoint(0, 0))
        places.append((widget, QRect(corner, widget.size())))
    found = []
    for (one, a), (other, b) in combinations(places, 2):
        common = a.intersected(b)
        nested = one.isAncestorOf(other) or other.isAncestorOf(one)
        if not nested and common.width() > 1 and common.height() > 1:
            found.append(f"{_name(one)} over {_name(other)}")
    return found


def missing_letters(tab: QWidget) -> list[str]:
    """Letters for which no font here has a picture."""
    found = []
    for widget in seen(tab):
        for text in _texts(widget):
            lost = {c for c in set(text) if not _has_glyph(c, widget)}
            if lost:
                found.append(f"{_name(widget)}: {sorted(map(ascii, lost))}")
    return found


def _has_glyph(letter: str, widget: QWidget) -> bool:
    if letter.isspace() or ord(letter) < 127:
        return True
    layout = QTextLayout(letter, widget.font())
    layout.beginLayout()
    layout.createLine()
    layout.endLayout()
    return all(0 not in run.glyphIndexes() for run in layout.glyphRuns())


def _texts(widget: QWidget) -> list[str]:
    if isinstance(widget, QLabel | QAbstractButton | QLineEdit):
        return [widget.text()]
    if isinstance(widget, QComboBox):
        return [widget.itemText(i) for i in range(widget.count())]
    if isinstance(widget, QAbstractItemView) and widget.model() is not None:
        model = widget.model()
        rows = range(min(model.rowCount(), 50))
        return [str(model.index(row, 0).data() or "") for row in rows]
    return []


def _cut(widget: QWidget) -> str:
    """A sentence on what is cut of a widget, or ""."""
    if isinstance(widget, Sentence | Choice | QElidingLabel):
        return ""  # cut with an ellipsis, and whole in the tip
    metrics = widget.fontMetrics()
    if isinstance(widget, QLabel):
        return _cut_label(widget)
    if isinstance(widget, QToolButton) and not _shows_text(widget):
        return ""
    if isinstance(widget, QAbstractButton) and widget.text():
        flag = Qt.TextFlag.TextShowMnemonic
        need = metrics.size(flag, widget.text())
        room = widget.width()
        if isinstance(widget, QCheckBox | QRadioButton):
            room -= widget.iconSize().width() + 4
        if need.width() > room + _SLACK_PX and not _ignores_width(widget):
            return f"{_name(widget)}: {need.width()} px of text in {room}"
        if need.height() > widget.height() + _SLACK_PX:
            return f"{_name(widget)}: lower than its text"
    if isinstance(widget, QComboBox):
        room = widget.width() - widget.height()
        need = metrics.horizontalAdvance(widget.currentText())
        if need > room:
            return f"{_name(widget)}: {need} px of text in {room}"
    if isinstance(widget, QLineEdit | QAbstractSpinBox):
        if metrics.height() > widget.height() + _SLACK_PX:
            return f"{_name(widget)}: lower than its text"
    return ""


def _shows_text(button: QToolButton) -> bool:
    only = Qt.ToolButtonStyle.ToolButtonIconOnly
    return button.icon().isNull() or button.toolButtonStyle() != only


def _cut_label(label: QLabel) -> str:
    if not label.text() or (label.pixmap() is not None and not label.pixmap().isNull()):
        return ""
    if label.wordWrap():
        need = label.heightForWidth(label.width())
        if need > label.height() + _SLACK_PX:
            return f"{_name(label)}: {need} px high in {label.height()}"
        return ""
    need = label.sizeHint().width()
    if need > label.width() + _SLACK_PX:
        return f"{_name(label)}: {need} px wide in {label.width()}"
    return ""


def _ignores_width(widget: QWidget) -> bool:
    """File names of scans are cut on purpose; the tip has them whole."""
    policy = widget.sizePolicy().horizontalPolicy()
    return policy == type(policy).Ignored and bool(widget.toolTip())


def _name(widget: QWidget) -> str:
    text = ""
    if isinstance(widget, QLabel | QAbstractButton):
        text = widget.text()
    return f"{type(widget).__name__} {(widget.accessibleName() or text)[:40]!r}"


def _inside_control(widget: QWidget, tab: QWidget) -> bool:
    kinds = (QComboBox, QAbstractSpinBox, QAbstractItemView, QLineEdit, QTextEdit)
    place = widget.parentWidget()
    while place is not None and place is not tab:
        module = type(place).__module__
        if isinstance(place, (*kinds, QAbstractButton, QAbstractSlider)):
            return True
        if module.startswith(("superqt.sliders", "pyqtgraph")):
            return True
        place = place.parentWidget()
    return False


def _folded(widget: QWidget, tab: QWidget) -> bool:
    place = widget.parentWidget()
    while place is not None and place is not tab:
        if not place.height():
            return True
        place = place.parentWidget()
    return False
