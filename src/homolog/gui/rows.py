"""Small pieces of the panels: named rows, buttons, sentences, file dialogs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from qtpy.QtCore import QEvent, QRect, QSize, Qt, QTimer
from qtpy.QtGui import QAction, QCursor, QPainter
from qtpy.QtWidgets import (
    QAbstractButton,
    QAbstractItemView,
    QAbstractScrollArea,
    QApplication,
    QComboBox,
    QFileDialog,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QToolButton,
    QToolTip,
    QVBoxLayout,
    QWidget,
)

_LAID_OUT_MS = 60
_MNEMONIC = int(Qt.TextFlag.TextShowMnemonic.value)
_WRAPPED = int(
    Qt.TextFlag.TextWordWrap.value
    | Qt.AlignmentFlag.AlignLeft.value
    | Qt.AlignmentFlag.AlignTop.value
)


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


def sentence(name: str, lines: int = 0, texts: Iterable[str] = ()) -> QLabel:
    """An empty wrapping label, hidden until it has something to say.

    Args:
        name: For screen readers.
        lines: It keeps the room of so many lines, said or unsaid, so that nothing
            below it ever moves; 0 where nothing stands below.
        texts: All it may say, where that is known: it keeps room for the longest.
    """
    texts = tuple(texts)
    label = QLabel() if not lines and not texts else Sentence(lines, texts)
    label.setWordWrap(True)
    named(label, name, name)
    label.hide()
    return label


def keep_room(*widgets: QWidget, keep: bool = True) -> None:
    """Widgets keep their place while they are hidden: nothing jumps into it."""
    for widget in widgets:
        policy = widget.sizePolicy()
        policy.setRetainSizeWhenHidden(keep)
        widget.setSizePolicy(policy)


class OneOf(QPushButton):
    """A button that says one thing or another, always as wide as the longest.

    Args:
        texts: All it may say.
    """

    def __init__(self, *texts: str) -> None:
        super().__init__(texts[0])
        self._texts = texts

    def sizeHint(self) -> QSize:  # noqa: D102 - Qt's name
        return _for_longest(self, super().sizeHint(), self._texts)


class ToolOneOf(QToolButton):
    """As OneOf, for a small button."""

    def __init__(self, *texts: str) -> None:
        super().__init__()
        self._texts = texts
        self.setText(texts[0])

    def sizeHint(self) -> QSize:  # noqa: D102 - Qt's name
        return _for_longest(self, super().sizeHint(), self._texts)


def _for_longest(button: QAbstractButton, hint: QSize, texts: Iterable[str]) -> QSize:
    def wide(text: str) -> int:
        return int(button.fontMetrics().size(_MNEMONIC, text).width())

    more = max(map(wide, texts)) - wide(button.text())
    return QSize(hint.width() + max(0, more), hint.height())


def one_place(*parts: QWidget) -> QGridLayout:
    """Parts that stand in one place, since no two of them are seen at a time."""
    place = QGridLayout()
    place.setContentsMargins(0, 0, 0, 0)
    for part in parts:
        place.addWidget(part, 0, 0)
    return place


def keep_scrolled(area: QAbstractScrollArea, fill: Callable[[], Any]) -> None:
    """Fill a list anew without moving what is looked at."""
    bar = area.verticalScrollBar()
    before = 0 if bar is None else bar.value()
    fill()
    if isinstance(area, QAbstractItemView):
        area.doItemsLayout()
    if bar is not None:
        bar.setValue(before)


class Sentence(QLabel):
    """A label of a fixed number of lines; what is longer is cut, and told in the tip.

    A click shows all of it, until it says something else.

    Args:
        lines: Of its height.
        texts: Its height is what the longest of them needs, where that is more.
        grows: It becomes as high as what it says, and never smaller again: for what
            must be read, and stands last.
    """

    def __init__(
        self, lines: int = 1, texts: Sequence[str] = (), *, grows: bool = False
    ) -> None:
        super().__init__()
        self._lines, self._texts = lines, tuple(texts)
        self._grows, self._tallest = grows, 0
        self._whole = False
        self._spacing = 0
        # A style sheet gives its font after the change was told.
        self._later = QTimer(self)
        self._later.setSingleShot(True)
        self._later.timeout.connect(self._new_font)
        self.setWordWrap(True)
        self.setTextFormat(Qt.TextFormat.PlainText)
        self.setAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignTop)
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Fixed)
        self.setMinimumWidth(1)
        copy = QAction("Copy", self)
        copy.triggered.connect(self._copy)
        self.addAction(copy)
        self.setContextMenuPolicy(Qt.ContextMenuPolicy.ActionsContextMenu)
        keep_room(self)

    @property
    def is_cut(self) -> bool:
        """Whether it says more than it shows."""
        return bool(self._high(self.text()) > self.height())

    def setText(self, text: str | None) -> None:  # noqa: D102 - Qt's name
        super().setText(text or "")
        self._whole = False
        self._fit()

    def resizeEvent(self, event: Any) -> None:  # noqa: D102 - Qt's name
        super().resizeEvent(event)
        if event.size().width() != event.oldSize().width():
            self._tallest = 0
        self._fit()

    def changeEvent(self, event: Any) -> None:  # noqa: D102 - Qt's name
        super().changeEvent(event)
        if event.type() in (QEvent.Type.FontChange, QEvent.Type.StyleChange):
            later = getattr(self, "_later", None)
            if later is not None:  # Qt calls before all is made
                later.start(0)

    def event(self, event: Any) -> bool:
        """The tip of a cut sentence is the sentence."""
        if event.type() == QEvent.Type.ToolTip and self.is_cut:
            more = self.toolTip()
            told = [self.text()] + ([more] if more != self.accessibleName() else [])
            QToolTip.showText(event.globalPos(), "\n\n".join(told), self)
            return True
        done = bool(super().event(event))
        if event.type() == QEvent.Type.Polish:
            self._new_font()
        return done

    def mousePressEvent(self, event: Any) -> None:
        """Show all, or fold it again."""
        left = event.button() == Qt.MouseButton.LeftButton
        if left and (self.is_cut or self._whole):
            self._whole = not self._whole
            self._fit()
        else:
            super().mousePressEvent(event)

    def paintEvent(self, event: Any) -> None:
        """Qt's own drawing, with an ellipsis where text is cut."""
        if self.fontMetrics().lineSpacing() != self._spacing:
            self._later.start(0)
        if not self.is_cut:
            super().paintEvent(event)
            return
        painter = QPainter(self)
        style = self.style()
        if style is not None:
            style.drawItemText(
                painter, self._room(), _WRAPPED, self.palette(), self.isEnabled(),
                self._shown(), self.foregroundRole(),
            )  # fmt: skip

    def _copy(self) -> None:
        clipboard = QApplication.clipboard()
        if clipboard is not None:
            clipboard.setText(self.text())

    def _shown(self) -> str:
        """As many words as find room, and an ellipsis."""
        words: str = self.text()
        low, high = 0, len(words)
        while low < high:
            middle = (low + high + 1) // 2
            if self._high(words[:middle].rstrip() + "\N{HORIZONTAL ELLIPSIS}") > (
                self.height()
            ):
                high = middle - 1
            else:
                low = middle
        return words[:low].rstrip() + "\N{HORIZONTAL ELLIPSIS}"

    def _room(self) -> QRect:
        """Where the text stands: within the frame of the style, indented as Qt does."""
        return self.contentsRect().adjusted(max(self.indent(), 0), 0, 0, 0)

    def _high(self, text: str) -> int:
        """Pixels that a text needs at the width there is, the frame included."""
        room = QRect(0, 0, max(self._room().width(), 40), 1 << 16)
        high: int = self.fontMetrics().boundingRect(room, _WRAPPED, text).height()
        return high + self._frame()

    def _frame(self) -> int:
        margins = self.contentsMargins()
        return int(margins.top() + margins.bottom())

    def _new_font(self) -> None:
        self._tallest = 0
        self._fit()

    def _fit(self) -> None:
        self._spacing = self.fontMetrics().lineSpacing()
        framed = self.frameWidth() > 0
        self.setIndent(self.fontMetrics().horizontalAdvance("x") // 2 if framed else 0)
        # Not lines times their spacing: that is rounded.
        high = max(map(self._high, ("\n".join("x" * self._lines), *self._texts)))
        if self._whole or self._grows:
            high = max(high, self._high(self.text()))
        if self._grows:
            high = self._tallest = max(high, self._tallest)
        if high != self.minimumHeight():
            self.setFixedHeight(high)
        cut = self._whole or self.is_cut
        shape = Qt.CursorShape.PointingHandCursor if cut else Qt.CursorShape.ArrowCursor
        self.setCursor(shape)


def tell(label: QLabel, text: str) -> None:
    """Show a sentence, or nothing."""
    label.setText(text)
    label.setVisible(bool(text))


def bring_into_view(widget: QWidget, *, asked: bool = False) -> None:
    """Scroll to a widget, once it has been laid out.

    Args:
        widget: What is new.
        asked: Whether someone has just pressed for it. Else nothing is scrolled away
            from under a pointer that is in the panel.
    """
    _IntoView(widget, asked)


class _IntoView(QTimer):
    """A child of the widget: it ends with it.

    Its slot is a method and no closure over the widget: such a closure and the widget's
    wrapper are a cycle, and where the garbage collector cleared it before the timer
    fired, Qt called a function without its variables (a segmentation fault).
    """

    def __init__(self, widget: QWidget, asked: bool) -> None:
        super().__init__(widget)
        self._asked = asked
        self.setSingleShot(True)
        self.timeout.connect(self._scroll)
        self.start(_LAID_OUT_MS)

    def _scroll(self) -> None:
        widget = area = self.parent()
        while area is not None and not isinstance(area, QScrollArea):
            area = area.parent()
        if area is not None and (self._asked or not _is_under_mouse(area)):
            area.ensureWidgetVisible(widget, 0, 8)
        self.deleteLater()


def _is_under_mouse(widget: QWidget) -> bool:
    at = QApplication.widgetAt(QCursor.pos())
    return at is not None and (at is widget or widget.isAncestorOf(at))


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
