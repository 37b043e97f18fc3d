"""Parts of the training screen: buttons, trouble, health, picture, log."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qtpy.QtCore import QEvent, QSize, Qt
from qtpy.QtGui import QFontDatabase, QImage, QPixmap
from qtpy.QtWidgets import (
    QFrame,
    QGridLayout,
    QLabel,
    QLayout,
    QPlainTextEdit,
    QProgressBar,
    QPushButton,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from homolog.gui import rows
from homolog.gui.runs.monitor_words import SIGNS, Reading
from homolog.gui.runs.words import Trouble
from homolog.gui.threads import in_background

_LOG_PX = 220
_NARROWEST_PX = 60


def column_of(
    widget: QWidget, parts: Iterable[Any], *, stretch: bool = False
) -> QVBoxLayout:
    """A column of widgets and layouts in a widget; ``stretch`` pushes it to the top."""
    column = QVBoxLayout(widget)
    column.setContentsMargins(0, 0, 0, 0)
    for part in parts:
        if isinstance(part, QLayout):
            column.addLayout(part)
        else:
            column.addWidget(part)
    if stretch:
        column.addStretch()
    return column


def text_label(name: str, *, bold: bool = False) -> QLabel:
    """A text that wraps, can be selected with the mouse and is named for readers."""
    label = QLabel()
    label.setWordWrap(True)
    label.setAccessibleName(name)
    label.setToolTip(name)
    label.setTextFormat(Qt.TextFormat.PlainText)
    label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    label.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
    if bold:
        font = label.font()
        font.setBold(True)
        label.setFont(font)
    return label


def headline(name: str) -> rows.Sentence:
    """A bold sentence of two lines at most."""
    label: rows.Sentence = rows.named(rows.Sentence(2), name, name)
    font = label.font()
    font.setBold(True)
    label.setFont(font)
    return label


def thin_bar(name: str) -> QProgressBar:
    """A progress bar; its text stands below it, where there is room."""
    bar = QProgressBar()
    bar.setTextVisible(False)
    bar.setAccessibleName(name)
    bar.setToolTip(name)
    bar.setMaximumHeight(12)
    return bar


class ActionButtons(QWidget):
    """What can be done with a run; only what helps now is seen, each in its place.

    Args:
        specs: Name -> (words on the button, tooltip).
        act: Called with the name of the action.
        one_place: Names of one action and its opposite, which share a place.
    """

    def __init__(
        self,
        specs: Mapping[str, tuple[str, str]],
        act: Callable[[str], None],
        one_place: tuple[str, str] = ("pause", "go_on"),
    ) -> None:
        super().__init__()
        self._one_place = one_place
        self.buttons: dict[str, QPushButton] = {}
        self._offered: frozenset[str] | None = None
        self._columns = 0
        self._grid = QGridLayout(self)
        self._grid.setContentsMargins(0, 0, 0, 0)
        for name, (words, tip) in specs.items():
            button = QPushButton(words, self)
            button.setAccessibleName(words.rstrip("."))
            button.setToolTip(tip)
            button.clicked.connect(lambda _=False, what=name: act(what))
            button.setVisible(False)
            button.setMinimumWidth(_NARROWEST_PX)
            # No button ever stands where another one was: "Delete" for "Pause".
            rows.keep_room(button)
            self.buttons[name] = button

    def offer(self, names: frozenset[str]) -> None:
        """Show these buttons only."""
        if names == self._offered:
            return
        self._offered = names
        for name, button in self.buttons.items():
            button.setVisible(name in names)
        self._arrange()

    def resizeEvent(self, event: Any) -> None:  # noqa: D102 - Qt's name
        super().resizeEvent(event)
        self._arrange()

    def changeEvent(self, event: Any) -> None:  # noqa: D102 - Qt's name
        super().changeEvent(event)
        if event.type() in (QEvent.Type.FontChange, QEvent.Type.StyleChange):
            self._arrange()

    def _arrange(self) -> None:
        """As many in a row as the longest text allows, three at most."""
        buttons = list(self.buttons.values())
        widest = max((b.sizeHint().width() for b in buttons), default=1) + 6
        columns = min(3, max(1, self.width() // widest))
        if columns == self._columns:
            return
        self._columns = columns
        for button in buttons:
            self._grid.removeWidget(button)
        places: dict[str, int] = {}
        first, second = self._one_place
        for name, button in self.buttons.items():
            place = places.get(first) if name == second else None
            places[name] = len(set(places.values())) if place is None else place
            row, column = divmod(places[name], columns)
            self._grid.addWidget(button, row, column)


class TroubleBox(QFrame):
    """Why a run ended, what is safe and what to do."""

    def __init__(self) -> None:
        super().__init__()
        self.setFrameShape(QFrame.Shape.StyledPanel)
        self.setAccessibleName("What went wrong")
        self.what = text_label("What went wrong", bold=True)
        self.advice = text_label("What is safe and what to do")
        self.detail = text_label("The engine's own words")
        column_of(self, (self.what, self.advice, self.detail)).setContentsMargins(
            6, 6, 6, 6
        )
        self.setVisible(False)

    def tell(self, trouble: Trouble | None) -> None:
        """Show a trouble, or nothing."""
        self.setVisible(trouble is not None)
        if trouble is not None:
            self.what.setText(f"✖ {trouble.what}")
            self.advice.setText(trouble.advice)
            self.detail.setText(trouble.detail and f"Details: {trouble.detail}")
            self.detail.setVisible(bool(trouble.detail))


class HealthBox(QWidget):
    """Is it learning well: one verdict, then the monitors in words."""

    def __init__(self) -> None:
        super().__init__()
        self.verdict = text_label("Is the training well", bold=True)
        self.lines = text_label("Monitors of the training")
        column_of(self, (self.verdict, self.lines))

    def tell(self, light: str, sentence: str, found: Sequence[Reading]) -> None:
        """Show what the monitors say."""
        self.setVisible(bool(found))
        self.verdict.setText(f"{SIGNS[light]}: {sentence}")
        lines = [f"{r.sign.split()[0]} {r.title}: {r.value}" for r in found]
        self.lines.setText("\n".join(lines))
        self.lines.setToolTip("\n\n".join(f"{r.title}: {r.meaning}" for r in found))


class PictureBox(QWidget):
    """The newest preview, as wide as the panel.

    Args:
        owner: Pictures are read on a thread for it.
    """

    def __init__(self, owner: QWidget) -> None:
        super().__init__()
        self._owner = owner
        self._shown: tuple[str, int] | None = None
        self._pixmap: QPixmap | None = None
        self.caption = text_label("What the picture shows")
        self.picture = QLabel()
        self.picture.setAccessibleName("Newest preview picture")
        self.picture.setSizePolicy(
            QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred
        )
        column_of(self, (self.caption, self.picture))
        self.setVisible(False)

    def offer(self, path: Path, title: str, step: int) -> None:
        """Show this picture unless it is shown already."""
        key = (str(path), step)
        if key == self._shown:
            return
        self._shown = key

        def take(image: QImage) -> None:
            if self._shown == key and not image.isNull():
                self._take(image, title, step)

        in_background(_read_image, path, owner=self._owner, done=take)

    def forget(self) -> None:
        """Show nothing."""
        self._shown = self._pixmap = None
        self.setVisible(False)

    def resizeEvent(self, event: Any) -> None:  # noqa: D102 - Qt's name
        super().resizeEvent(event)
        self._fit()

    def _take(self, image: QImage, title: str, step: int) -> None:
        self._pixmap = QPixmap.fromImage(image)
        when = "" if "step" in title else f" (step {step})"
        self.caption.setText(f"{title or 'Preview'}{when}")
        self.picture.setToolTip(title or "Preview")
        self.setVisible(True)
        self._fit()

    def _fit(self) -> None:
        if self._pixmap is None or self.width() < 20:
            return
        wide = min(self.width(), 2 * self._pixmap.width())
        size = QSize(wide, 4 * wide)
        keep = Qt.AspectRatioMode.KeepAspectRatio
        smooth = Qt.TransformationMode.SmoothTransformation
        scaled = self._pixmap.scaled(size, keep, smooth)
        self.picture.setPixmap(scaled)
        self.picture.setFixedHeight(scaled.height())


class LogBox(QPlainTextEdit):
    """The end of a log, to read and to copy."""

    def __init__(self) -> None:
        super().__init__()
        self.setReadOnly(True)
        self.setAccessibleName("Log of the run")
        self.setToolTip("The end of log.txt; select and copy what you need")
        self.setFixedHeight(_LOG_PX)
        self.setLineWrapMode(QPlainTextEdit.LineWrapMode.NoWrap)
        self.setFont(QFontDatabase.systemFont(QFontDatabase.SystemFont.FixedFont))
        self.setVisible(False)

    def tell(self, text: str) -> None:
        """Show a log, at its end."""
        self.setPlainText(text)
        self.setVisible(True)
        bar = self.verticalScrollBar()
        bar.setValue(bar.maximum())


def _read_image(path: Path) -> QImage:
    return QImage(str(path))
