"""Small pieces of the panels: named rows, buttons, sentences, file dialogs."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from qtpy.QtCore import QEvent, QObject, QRect, QSize, Qt, QTimer, Signal
from qtpy.QtGui import QAction, QCursor, QPainter
from qtpy.QtWidgets import (
    QAbstractButton,
    QAbstractItemView,
    QAbstractScrollArea,
    QAbstractSlider,
    QAbstractSpinBox,
    QApplication,
    QCheckBox,
    QComboBox,
    QFileDialog,
    QFrame,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QMessageBox,
    QProgressBar,
    QPushButton,
    QScrollArea,
    QScrollBar,
    QSizePolicy,
    QStyle,
    QStyleOptionComboBox,
    QStylePainter,
    QTabBar,
    QToolButton,
    QToolTip,
    QVBoxLayout,
    QWidget,
)
from superqt import QCollapsible

from homolog.events import Event, Progress
from homolog.gui.shared import engine, preferences
from homolog.gui.shared.choices import no_gpu_hint
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.threads import Helper, in_background, soon
from homolog.words import human_bytes

# Folds: parts of a panel under a title, closed until someone opens them.


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


# The only modal dialogs: questions before something that cannot be taken back.


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        title: Of the dialog.
        text: One sentence.
        more: What is safe, what is lost.
        answers: (key, text on the button), the last one changes nothing.
        default: Key that Enter chooses; Escape chooses the last answer.
        remember: Text of a tick box, or empty for none.
    """

    title: str
    text: str
    more: str
    answers: Sequence[tuple[str, str]]
    default: str
    remember: str = ""


@dataclass(frozen=True)
class Answer:
    """What was chosen, and whether to choose it by itself from now on."""

    key: str
    always: bool = False


Ask: TypeAlias = Callable[[QWidget | None, Question], Answer]


def ask(parent: QWidget | None, question: Question) -> Answer:
    """Show the dialog; tests and scripts put another function in its place."""
    box = QMessageBox(parent)
    box.setIcon(QMessageBox.Icon.Question)
    box.setWindowTitle(question.title)
    box.setText(question.text)
    box.setInformativeText(question.more)
    box.setAccessibleName(question.title)
    buttons: dict[str, QPushButton] = {}
    for key, words in question.answers:
        last = key == question.answers[-1][0]
        role = QMessageBox.ButtonRole.RejectRole if last else _PLAIN
        buttons[key] = box.addButton(words, role)
        buttons[key].setAccessibleName(words)
    box.setDefaultButton(buttons[question.default])
    box.setEscapeButton(buttons[question.answers[-1][0]])
    tick = QCheckBox(question.remember)
    if question.remember:
        box.setCheckBox(tick)
    box.exec()
    clicked = box.clickedButton()
    key = next(
        (k for k, button in buttons.items() if button is clicked),
        question.answers[-1][0],
    )
    return Answer(key, bool(tick.isChecked()))


_PLAIN = QMessageBox.ButtonRole.AcceptRole

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


def labelled(text: str, widget: QWidget, hint: str, *more: QWidget) -> QVBoxLayout:
    """A label above a widget, joined for screen readers and Alt keys.

    Args:
        text: Of the label.
        widget: Below it.
        hint: Tip of both.
        more: They stand beside the widget, in equal shares.
    """
    named(widget, text, hint)
    label = QLabel(text)
    label.setBuddy(widget)
    label.setToolTip(hint)
    column = QVBoxLayout()
    column.setSpacing(2)
    column.addWidget(label)
    # Never into a layout and out again: PySide6 6.12 crashes on that.
    if more:
        column.addLayout(beside(widget, *more))
    else:
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


def copy(text: str) -> None:
    """Put a text on the clipboard."""
    clipboard = QApplication.clipboard()
    if clipboard is not None:
        clipboard.setText(text)


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


class DockedFrame(QWidget):
    """What is docked beside the canvas, and tells when the user closes it.

    Args:
        closed: Called once napari has taken it out of its dock.
    """

    def __init__(self, closed: Callable[[], None]) -> None:
        super().__init__()
        self._closed, self._docked = closed, False

    def forget(self) -> None:
        """Its end is ours now, nobody needs to be told."""
        self._closed = lambda: None

    def event(self, event: QEvent | None) -> bool:
        """Taken out of its dock means closed by the user."""
        if event is not None and event.type() == QEvent.Type.ParentChange:
            if self.parentWidget() is not None:
                self._docked = True
            elif self._docked:
                self._docked = False
                # Later: napari is still taking the dock down.
                soon(self, self._closed)
        return bool(super().event(event))


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
        action = QAction("Copy", self)
        action.triggered.connect(self._copy)
        self.addAction(action)
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
        elif event.type() == QEvent.Type.ParentChange and hasattr(self, "_later"):
            self._later.start(0)
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
        copy(self.text())

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
        indent = max(self.indent(), 0)  # Qt's holds at the top, too
        return self.contentsRect().adjusted(indent, indent, 0, 0)

    def _high(self, text: str) -> int:
        """Pixels that a text needs at the width there is, the frame included."""
        room = QRect(0, 0, max(self._room().width(), 40), 1 << 16)
        high: int = self.fontMetrics().boundingRect(room, _WRAPPED, text).height()
        return high + self._frame()

    def _frame(self) -> int:
        margins = self.contentsMargins()
        return int(margins.top() + margins.bottom() + max(self.indent(), 0))

    def _new_font(self) -> None:
        self.ensurePolished()  # a hidden label would keep room by another font
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


class Tall(QWidget):
    """A panel as high as its wrapped sentences need: a scroll area would cut them."""

    def event(self, event: QEvent) -> bool:
        """Take the height that goes with the width there is."""
        done = bool(super().event(event))
        kind, kinds = event.type(), QEvent.Type
        if kind in (kinds.LayoutRequest, kinds.Resize):
            self._be_tall()
        elif kind in (kinds.Show, kinds.FontChange, kinds.StyleChange):
            # Children get their fonts after this, and tell nobody.
            soon(self, self._look_anew)
        return done

    def _look_anew(self) -> None:
        layout = self.layout()
        if layout is not None:
            layout.invalidate()
            self._be_tall()

    def _be_tall(self) -> None:
        layout = self.layout()
        if layout is not None and layout.hasHeightForWidth():
            high = layout.totalHeightForWidth(self.width())
            if high != self.minimumHeight():
                self.setMinimumHeight(high)


class Choice(QComboBox):
    """A combo box that long entries do not widen beyond the panel.

    Facts behind a name are cut at their end, a name that is too long itself in its
    middle, where names differ least; the tip has all of it, and the open list is as
    wide as its entries.
    """

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setMinimumContentsLength(8)
        self.setSizeAdjustPolicy(
            QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon
        )

    @property
    def is_cut(self) -> bool:
        """Whether the chosen name is longer than its room."""
        return self._elided() != str(self.currentText())

    def paintEvent(self, _: Any) -> None:
        """Qt's own drawing, with the name cut in its middle."""
        painter, option = QStylePainter(self), QStyleOptionComboBox()
        self.initStyleOption(option)
        option.currentText = self._elided()
        painter.drawComplexControl(QStyle.ComplexControl.CC_ComboBox, option)
        painter.drawControl(QStyle.ControlElement.CE_ComboBoxLabel, option)

    def event(self, event: Any) -> bool:
        """The tip of a cut name begins with the name."""
        if event.type() == QEvent.Type.ToolTip and self.is_cut:
            told = "\n\n".join(t for t in (self.currentText(), self.toolTip()) if t)
            QToolTip.showText(event.globalPos(), told, self)
            return True
        done: bool = super().event(event)
        return done

    def showPopup(self) -> None:
        """Open the list as wide as its longest entry, within the screen."""
        view = self.view()
        if view is not None and self.count():
            bar = 2 * self.fontMetrics().height()
            wide = min(view.sizeHintForColumn(0) + bar, _WIDEST_PX)
            view.setMinimumWidth(max(wide, self.width()))
        super().showPopup()

    def _elided(self) -> str:
        option = QStyleOptionComboBox()
        self.initStyleOption(option)
        style = self.style()
        if style is None:
            return str(self.currentText())
        part = QStyle.SubControl.SC_ComboBoxEditField
        kind = QStyle.ComplexControl.CC_ComboBox
        room = style.subControlRect(kind, option, part, self).width() - _TEXT_PX
        text, metrics = str(self.currentText()), self.fontMetrics()
        how = Qt.TextElideMode.ElideMiddle
        name = re.split(r" \(|: ", text, maxsplit=1)[0]
        if metrics.horizontalAdvance(f"{name} (…") <= room:
            how = Qt.TextElideMode.ElideRight  # the facts behind it are cut
        return str(metrics.elidedText(text, how, room))


_WIDEST_PX, _TEXT_PX = 640, 4


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
    first = kinds.split(";;")[0]

    def take(files: list[str]) -> None:
        kind = dialog.selectedNameFilter()
        done(Path(with_ending(files[0], kind, kinds, asked=kind != first)))

    _open(dialog, take)


def with_ending(name: str, kind: str, kinds: str, *, asked: bool = True) -> str:
    """A file name with an ending of the kind that was chosen in a dialog.

    Args:
        name: As typed, or as it was proposed.
        kind: The chosen kind, ``NIfTI (*.nii.gz *.nii)``.
        kinds: All that were offered, parted by ``;;``.
        asked: Whether somebody chose the kind. Else an ending of another one stands.
    """
    own = _endings(kind)
    others = sorted(_endings(kinds), key=len, reverse=True)
    now = next((e for e in others if name.lower().endswith(e)), "")
    if not own or (now and (now in own or not asked)):
        return name
    return name[: len(name) - len(now)] + own[0]


def _endings(kinds: str) -> list[str]:
    return [word[1:].lower() for word in re.findall(r"\*\.[\w.]+", kinds)]


def _open(dialog: QFileDialog, done: Callable[[list[str]], Any]) -> None:
    def take(files: list[str]) -> None:
        if files:
            done(files)

    dialog.filesSelected.connect(take)
    dialog.finished.connect(dialog.deleteLater)
    dialog.open()


# Where to compute: the devices of this machine with their free memory.


class HelperBox(QFrame):
    """Base of a box whose work a helper process does: progress, Cancel, a sentence.

    A subclass lays out ``bar``, ``cancel`` and ``words``, enables its own buttons in
    ``enable``, starts by ``launch`` and ends by ``end``.

    Args:
        what: What is worked on, told to who cannot see the bar: "carrying".
        stopping: What Cancel does to what is half-made.
        lines: Room of the sentence.
    """

    Result: TypeAlias = Callable[[dict[str, Any]], Any]

    def __init__(self, what: str, stopping: str, lines: int = 3) -> None:
        super().__init__()
        self.helper: Helper | None = None
        self._gathering = self._wants_stop = False
        self.bar = named(QProgressBar(), f"Progress of {what}", "Done so far")
        self.cancel = button("Cancel", stopping, self.stop)
        self.cancel.setAccessibleName(f"Cancel {what}")
        self.words = sentence(f"State of {what}", lines=lines)
        keep_room(self.bar, self.cancel)
        self._show_work(False)

    @property
    def busy(self) -> bool:
        """Whether work is under way."""
        return self._gathering or self.helper is not None

    def enable(self) -> None:
        """Work began or ended: what can be done now."""

    def launch(
        self,
        kind: str,
        config: Mapping[str, Any] | Callable[[], Mapping[str, Any]],
        done: Result,
        words: str = "Starting the worker ...",
    ) -> None:
        """Let a helper do a job. The box is busy until ``end``.

        Args:
            kind: Of the job.
            config: The job's, or what makes it on a thread: files may be written first.
            done: Gets the job's result.
            words: Told meanwhile.
        """
        self._gathering, self._wants_stop = True, False
        self.bar.setRange(0, 0)
        self._show_work(True)
        self.enable()
        tell(self.words, words)
        if not callable(config):
            self._start(kind, done, config)
            return
        in_background(
            config, owner=self, done=partial(self._start, kind, done),
            failed=lambda error: self.fail(str(error)),
        )  # fmt: skip

    def stop(self) -> None:
        """Ask the work to end; ``halt`` follows."""
        if not self.busy:
            return
        self._wants_stop = True
        self.cancel.setEnabled(False)
        tell(self.words, "Stopping ...")
        if self.helper is not None:
            self.helper.stop()

    def take(self, event: Event) -> None:
        """The helper tells something; the bar follows what has a length."""
        if isinstance(event, Progress) and event.total > 0:
            self.bar.setRange(0, event.total)
            self.bar.setValue(event.index)

    def fail(self, text: str) -> None:
        """It did not work, for this reason."""
        self.end(f"⚠ {text}")

    def halt(self) -> None:
        """It was stopped."""
        self.end("Stopped.")

    def end(self, words: str) -> None:
        """Nothing is under way any more; say what became of it."""
        if self.helper is not None:
            # Later: it still stands on the stack when it calls.
            soon(self, self.helper.deleteLater)
        self.helper, self._gathering = None, False
        self._show_work(False)
        self.enable()
        tell(self.words, words)

    def _start(self, kind: str, done: Result, config: Mapping[str, Any]) -> None:
        if self._wants_stop:
            self.halt()
            return
        helper = Helper(kind, config, self)
        helper.news.connect(self.take)
        helper.done.connect(lambda result: self._worked(done, result))
        helper.failed.connect(self.fail)
        helper.stopped.connect(self.halt)
        self.helper, self._gathering = helper, False
        helper.start()

    def working(self) -> QHBoxLayout:
        """Bar and Cancel in one row."""
        row = beside(self.bar, self.cancel)
        row.setStretch(1, 0)
        return row

    def _worked(self, done: Result, result: dict[str, Any]) -> None:
        self.cancel.setEnabled(False)  # what follows is short
        done(result)

    def _show_work(self, works: bool) -> None:
        self.bar.setVisible(works)
        self.cancel.setVisible(works)
        self.cancel.setEnabled(works)


def _best_words(answer: Mapping[str, Any]) -> str:
    """``CPU, 19 GB free``: short, for its own line of the list tells all."""
    best = str(answer.get("best", "cpu"))
    told = next((d for d in answer.get("devices", ()) if d["name"] == best), None)
    if told is None:
        return best
    name = str(told["title"]).split(", ")[0]
    free = told.get("free_bytes")
    return f"{name}, {human_bytes(free)} free" if free else name


class DeviceBox(QWidget):
    """A choice of devices; asks the engine in the background when first shown.

    Signals:
        changed: Another device was chosen, or the list arrived.
    """

    changed = Signal()

    def __init__(self, hub: Hub, kind: str, parent: QWidget | None = None) -> None:
        """Make the box.

        Args:
            hub: Of the window.
            kind: ``pretrain``, ``finetune`` or ``segment``; chooses the hint.
            parent: Of the widget.
        """
        super().__init__(parent)
        self._hub, self._kind = hub, kind
        self._asked = False
        self.best = "cpu"
        self.known = False
        self.choice = Choice()
        self.choice.setAccessibleName("Device")
        self.choice.setToolTip("Where to compute. Automatic takes the best device.")
        self.choice.addItem("Automatic", "auto")
        self._keep_preferred()
        self.again = QToolButton()
        self.again.setText("Look again")
        self.again.setAccessibleName("Look for devices again")
        self.again.setToolTip("Ask again which devices there are and what is free")
        self.again.clicked.connect(self.ask)
        self.hint = sentence("Note on the device", lines=3 if kind == "pretrain" else 2)
        row = QHBoxLayout()
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self.choice, 1)
        row.addWidget(self.again)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(row)
        column.addWidget(self.hint)
        self.choice.currentIndexChanged.connect(lambda: self.changed.emit())

    @property
    def device(self) -> str:
        """``auto``, ``cpu`` or ``cuda:i``."""
        return str(self.choice.currentData() or "auto")

    @property
    def on_cpu(self) -> bool:
        """Whether the CPU will compute, as far as is known."""
        chosen = self.device
        return (self.best if chosen == "auto" else chosen) == "cpu"

    def choose(self, device: str) -> None:
        """Choose a device; one that is not here is passed over."""
        place = self.choice.findData(device)
        if place >= 0:
            self.choice.setCurrentIndex(place)

    def want(self) -> None:
        """Ask once."""
        if not self._asked and not self._hub.engine_missing():
            self.ask()

    def ask(self) -> None:
        """Ask the engine what can compute; the list is filled when it answers."""
        self._asked = True
        self.again.setEnabled(False)
        in_background(
            engine.ask, "devices", owner=self, done=self._got, failed=self._failed
        )

    def tell_estimate(self, total_s: float) -> None:
        """After a dry run: say what having no GPU means."""
        if self.known and self.best == "cpu":
            self._say(no_gpu_hint(total_s, self._kind))

    def _got(self, answer: dict[str, Any]) -> None:
        self.again.setEnabled(True)
        before = self.device
        self.known, self.best = True, str(answer.get("best", "cpu"))
        titles = {d["name"]: d["title"] for d in answer.get("devices", ())}
        self.choice.blockSignals(True)
        self.choice.clear()
        self.choice.addItem(f"Auto: {_best_words(answer)}", "auto")
        for name, title in titles.items():
            self.choice.addItem(title, name)
        self.choose(before)
        self.choice.blockSignals(False)
        self.choice.setToolTip(
            "Where to compute. Here: " + "; ".join(titles.values()) + "."
        )
        if self.best == "cpu" and self._kind == "pretrain":
            self._say(no_gpu_hint(None, self._kind))
        else:
            self.hint.hide()
        self.changed.emit()

    def _failed(self, error: Exception) -> None:
        self.again.setEnabled(True)
        self._say(f"The devices could not be listed: {error}")

    def _say(self, text: str) -> None:
        tell(self.hint, text)

    def _keep_preferred(self) -> None:
        """The device of the settings page, even before the list is known."""
        device = str(preferences.get("compute", "device", "auto") or "auto")
        if device != "auto":
            self.choice.addItem(device, device)
            self.choose(device)


# The mouse wheel scrolls the panel; a control takes it only with the focus.
#
# Qt turns combo boxes, number boxes, sliders and tab bars under the pointer, and gives
# them the focus for it: whoever scrolled a form changed what it passed, unseen.


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
        self._grown: list[QWidget] = []
        self._soon = QTimer(self)
        self._soon.setSingleShot(True)
        self._soon.setInterval(0)
        self._soon.timeout.connect(self._adopt_new)
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
        elif kind == _ADDED and isinstance(watched, QWidget):
            # The child may be half made: no hand is laid on it now.
            if watched not in self._grown:
                self._grown.append(watched)
            self._soon.start()
        return False

    def _adopt_new(self) -> None:
        """What came into the widgets that grew; not all there is, again and again."""
        grown, self._grown = self._grown, []
        for widget in grown:
            with contextlib.suppress(RuntimeError):  # gone again
                self.adopt(widget)


def turns(widget: Any) -> bool:
    """Whether the wheel would change a value of the widget."""
    return isinstance(widget, _TURNED) and not isinstance(widget, QScrollBar)


def _has_focus(widget: QWidget) -> bool:
    focus = QApplication.focusWidget()
    return focus is not None and (focus is widget or widget.isAncestorOf(focus))
