"""Folds: parts of a panel under a title, closed until someone opens them."""

from __future__ import annotations

from qtpy.QtCore import QSize, Qt
from qtpy.QtWidgets import QVBoxLayout, QWidget
from superqt import QCollapsible


def _wrapped(widget: QWidget, hint: QSize) -> QSize:
    """A size hint as high as wrapped text is at the width the widget has.

    A fold is no higher than its hint. Qt's own supposes a width that a narrow dock does
    not give, and lines of text were cut off.
    """
    layout = widget.layout()
    if layout is not None and layout.hasHeightForWidth():
        high = layout.totalHeightForWidth(widget.width())
        return QSize(hint.width(), max(hint.height(), high))
    return hint


class _Content(QWidget):
    """What is folded."""

    def sizeHint(self) -> QSize:
        return _wrapped(self, super().sizeHint())


class _Fold(QCollapsible):
    """Its title and what is folded."""

    def sizeHint(self) -> QSize:
        return _wrapped(self, super().sizeHint())


def fold_of(title: str) -> QCollapsible:
    """A closed fold with a title that can be reached by key."""
    fold = _Fold(title)
    fold.setDuration(0)
    unused = fold.content()
    content = _Content()
    column = QVBoxLayout(content)
    column.setContentsMargins(4, 0, 0, 0)
    content.setMaximumHeight(0)
    fold.layout().removeWidget(unused)
    fold.setContent(content)
    unused.deleteLater()
    fold.layout().setContentsMargins(0, 0, 0, 0)
    fold.setAccessibleName(title)
    fold.setToolTip(f"Show or hide: {title}")
    button = fold.toggleButton()
    button.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
    button.setAccessibleName(title)
    button.setToolTip(f"Show or hide: {title}")
    return fold


def lay_out_again(fold: QCollapsible) -> None:
    """An open fold takes the height of words that are new."""
    if fold.isExpanded():
        fold.expand(animate=False)
