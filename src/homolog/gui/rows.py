"""Small pieces of the panels: named rows, buttons, sentences, file dialogs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from qtpy.QtCore import QTimer
from qtpy.QtWidgets import (
    QComboBox,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QScrollArea,
    QVBoxLayout,
    QWidget,
)

_LAID_OUT_MS = 60


def named(widget: Any, name: str, hint: str) -> Any:
    """Give a widget its accessible name and its tooltip."""
    widget.setAccessibleName(name)
    widget.setToolTip(hint)
    return widget


def labelled(text: str, widget: QWidget, hint: str) -> QVBoxLayout:
    """A label above a widget, joined for screen readers and Alt keys."""
    named(widget, text, hint)
    label = QLabel(text)
    label.setBuddy(widget)
    label.setToolTip(hint)
    column = QVBoxLayout()
    column.setSpacing(2)
    column.addWidget(label)
    column.addWidget(widget)
    return column


def beside(*widgets: QWidget) -> QHBoxLayout:
    """Widgets in one row of equal shares."""
    row = QHBoxLayout()
    row.setContentsMargins(0, 0, 0, 0)
    for widget in widgets:
        row.addWidget(widget, 1)
    return row


def button(text: str, hint: str, act: Callable[[], Any]) -> QPushButton:
    """A button that does one thing."""
    made = named(QPushButton(text), text.rstrip("."), hint)
    made.clicked.connect(lambda: act())
    return made


def sentence(name: str) -> QLabel:
    """An empty wrapping label, hidden until it has something to say."""
    label = QLabel()
    label.setWordWrap(True)
    named(label, name, name)
    label.hide()
    return label


def tell(label: QLabel, text: str) -> None:
    """Show a sentence, or nothing."""
    label.setText(text)
    label.setVisible(bool(text))


def bring_into_view(widget: QWidget) -> None:
    """Scroll to a widget, once it has been laid out."""
    _IntoView(widget)


class _IntoView(QTimer):
    """A child of the widget: it ends with it.

    Its slot is a method and no closure over the widget: such a closure and the widget's
    wrapper are a cycle, and where the garbage collector cleared it before the timer
    fired, Qt called a function without its variables (a segmentation fault).
    """

    def __init__(self, widget: QWidget) -> None:
        super().__init__(widget)
        self.setSingleShot(True)
        self.timeout.connect(self._scroll)
        self.start(_LAID_OUT_MS)

    def _scroll(self) -> None:
        widget = area = self.parent()
        while area is not None and not isinstance(area, QScrollArea):
            area = area.parent()
        if area is not None:
            area.ensureWidgetVisible(widget, 0, 8)
        self.deleteLater()


def narrow(combo: QComboBox) -> QComboBox:
    """A combo box that long entries do not widen beyond the panel."""
    combo.setMinimumContentsLength(8)
    combo.setSizeAdjustPolicy(
        QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon
    )
    return combo


def fill(combo: QComboBox, entries: Iterable[tuple[str, Any]], keep: Any) -> None:
    """Replace a combo's entries without a signal, and keep what was chosen.

    Args:
        combo: To fill.
        entries: Text and data of each entry.
        keep: Data of the entry to choose; the first one where it is gone.
    """
    combo.blockSignals(True)
    combo.clear()
    for text, data in entries:
        combo.addItem(text, data)
    combo.setCurrentIndex(max(0, combo.findData(keep)) if combo.count() else -1)
    combo.blockSignals(False)


class EmptyState(QWidget):
    """A sentence and one or two buttons, where there is nothing to choose from."""

    def __init__(
        self, text: str, *buttons: QPushButton, parent: QWidget | None = None
    ) -> None:
        super().__init__(parent)
        self.words = QLabel(text)
        self.words.setWordWrap(True)
        named(self.words, "What to do first", text)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 4, 0, 4)
        column.addWidget(self.words)
        column.addLayout(beside(*buttons))


def ask_folder(parent: QWidget, title: str, done: Callable[[Path], Any]) -> None:
    """Let the user choose a folder; nothing waits for the answer."""
    dialog = QFileDialog(parent, title)
    dialog.setFileMode(QFileDialog.FileMode.Directory)
    dialog.setOption(QFileDialog.Option.ShowDirsOnly, True)
    _open(dialog, lambda files: done(Path(files[0])))


def ask_files(
    parent: QWidget, title: str, kinds: str, done: Callable[[list[Path]], Any]
) -> None:
    """Let the user choose existing files; nothing waits for the answer."""
    dialog = QFileDialog(parent, title, "", kinds)
    dialog.setFileMode(QFileDialog.FileMode.ExistingFiles)
    _open(dialog, lambda files: done([Path(f) for f in files]))


def ask_new_file(
    parent: QWidget, title: str, name: str, kinds: str, done: Callable[[Path], Any]
) -> None:
    """Let the user name a file to write; whoever writes never replaces one."""
    dialog = QFileDialog(parent, title, name, kinds)
    dialog.setOption(QFileDialog.Option.DontConfirmOverwrite, True)
    dialog.setAcceptMode(QFileDialog.AcceptMode.AcceptSave)
    dialog.setFileMode(QFileDialog.FileMode.AnyFile)
    dialog.selectFile(name)
    _open(dialog, lambda files: done(Path(files[0])))


def _open(dialog: QFileDialog, done: Callable[[list[str]], Any]) -> None:
    def take(files: list[str]) -> None:
        if files:
            done(files)

    dialog.filesSelected.connect(take)
    dialog.finished.connect(dialog.deleteLater)
    dialog.open()
