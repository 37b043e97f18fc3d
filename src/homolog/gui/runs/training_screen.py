"""A training, live: headline, curves, health, newest picture, pause and stop.

Everything is read on a background thread (``RunStory.read_on``); the GUI thread only
writes the words and hands the points to the charts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qtpy.QtCore import QEvent, QSize, Qt, QTimer, Signal
from qtpy.QtGui import QFontDatabase, QImage, QPixmap
from qtpy.QtWidgets import (
    QComboBox,
    QFrame,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QLayout,
    QPlainTextEdit,
    QProgressBar,
    QPushButton,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from homolog.gui.runs.control import (
    LIVE,
    actions,
    ask_to_stop,
    go_on,
    pause,
    read_log,
    stop_now,
)
from homolog.gui.runs.curves import CurveView
from homolog.gui.shared import widgets
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.runs import (
    SIGNS,
    Curve,
    Reading,
    RunStory,
    Trouble,
    View,
    cases_words,
    earlier_curve,
    headline,
    plateau_hint,
    state_words,
    verdict,
)
from homolog.gui.shared.threads import in_background, soon, start_run
from homolog.runs.run import Run
from homolog.words import counted

# What the training screen offers in each state, and what it says meanwhile; no Qt.


# What was asked for -> what stands there until the worker has done it.
_MEANWHILE = {
    "stop": "stopping",
    "stop_now": "stopping",
    "pause": "pausing",
    "go_on": "starting",
    "resume": "starting",
}
# Each keeps its place, so those of a finished run come first.
BUTTONS = {
    "log": ("Open log", "What libraries printed, and the details of errors"),
    "open": ("Open folder", "Show the run's folder in the file manager"),
    "use": ("Use model...", "Explore, fine-tune or segment with this model"),
    "report": ("Full report...", "Pictures and figures of what this model learnt"),
    "resume": ("Resume", "Continue exactly where the last saved state was"),
    "pause": ("Pause", "Wait between two steps; memory stays taken"),
    "go_on": ("Go on", "Continue the paused training"),
    "stop": (
        "Stop and keep",
        "Finish the step, save state and model; it can be resumed later",
    ),
    "stop_now": (
        "Stop now",
        "End within seconds; what was saved last stays, newer steps are lost",
    ),
}


def is_settled(asked: str, state: str) -> bool:
    """Whether what was asked for has happened (or no longer can)."""
    if asked == "pause":
        return state != "running"
    if asked in ("go_on", "resume"):
        return state == "running"
    return state not in LIVE


def shown_state(view: View, asked: str) -> str:
    """State in words a user understands: at once ``stopping``, later ``stopped``."""
    if asked and not is_settled(asked, view.state):
        return _MEANWHILE[asked]
    if view.state in LIVE and view.wish == "stop":
        return "stopping"
    return view.state


def offered(shown: str, has_model: bool) -> frozenset[str]:
    """Buttons of a state; while something is under way only what still helps."""
    if shown == "stopping":
        return frozenset({"stop_now", "log", "open"})
    if shown in ("pausing", "starting"):
        return frozenset({"stop", "log", "open"})
    if shown in ("deleted", "damaged"):
        return frozenset()
    return actions(shown, has_model)


def title_of(view: View, shown: str, now: float | None = None) -> str:
    """The headline."""
    return headline(
        view.kind, view.name, shown, view.step, view.total,
        view.seconds_per_step, view.remaining_s, now,
    )  # fmt: skip


def bar_of(view: View, shown: str) -> tuple[int, int, str]:
    """(done, total, text) of the bar; total 0 is a busy one."""
    sign = state_words(shown)
    if view.phase and view.phase_total and shown in LIVE:
        words = f"{sign}: {view.phase} {view.phase_index}/{view.phase_total}"
        return view.phase_index, view.phase_total, words
    if view.total and view.step >= view.total and shown == "running":
        return view.step, view.total, f"{sign}: saving the model ..."
    if view.total:
        share = f"{view.step / view.total:.0%}"
        return view.step, view.total, f"{sign}  {share}"
    busy = shown in ("running", "starting")
    return 0, 0 if busy else 1, f"{sign}: preparing" if busy else sign


def facts_of(view: View) -> str:
    """Device, memory, best validation and what is saved, one line each."""
    lines = []
    if view.device:
        lines.append(f"On {view.device}.")
    if view.best:
        lines.append(f"Best validation: {view.best}.")
        lines += [told] if (told := cases_words(view.validation_cases)) else []
    if view.state in LIVE:
        saved = "nothing yet" if view.saved_step is None else f"step {view.saved_step}"
        lines.append(f"Saved: {saved}.")
    return "\n".join(lines)


def health_of(view: View) -> tuple[str, str]:
    """(light, sentence): monitors first, then a validation that stands still.

    Nothing good is said of a run that failed, or of one of a few steps.
    """
    light, sentence = verdict(view.monitors)
    if light == "good" and view.state in ("failed", "crashed"):
        return "none", "It did not reach its end: see above what happened."
    if light == "good" and view.step < FEWEST_STEPS:
        told = counted(view.step, "step")
        return "none", f"Too early to judge: {told} so far."
    for curve in view.validation:
        if light == "good" and (hint := plateau_hint(list(curve.y))):
            return "look", hint
        break
    return light, sentence


# Parts of the training screen: buttons, trouble, health, picture, log.


# Before so many steps, losses and monitors say more of the start than of the training.
FEWEST_STEPS = 200
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


def headline_label(name: str) -> widgets.Sentence:
    """A bold sentence of three lines at most."""
    label: widgets.Sentence = widgets.named(widgets.Sentence(3), name, name)
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
            widgets.keep_room(button)
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


_LOOK_MS = 300
_AGAIN_MS = 20
_LIVE_ACTIONS = {"stop": ask_to_stop, "pause": pause, "go_on": go_on}


class TrainingScreen(QWidget):
    """Follows one run at a time; looking away or closing it never touches the run.

    Signals:
        back: The user wants the list.
        use: Use the model of this run folder (str).
        report: Make a report on the model of this run folder (str).
        open_folder: Show this folder (str).

    Args:
        hub: Of the window.
        parent: Of the widget.
    """

    back = Signal()
    use = Signal(str)
    report = Signal(str)
    open_folder = Signal(str)

    def __init__(self, hub: Hub, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.hub = hub
        self.view: View | None = None
        self.shown = ""
        self._story: RunStory | None = None
        self._asked = ""
        self._reading = False
        self._earlier: Curve | None = None
        self._others: list[Path] = []
        self._build()
        self._timer = QTimer(self)
        self._timer.setInterval(_LOOK_MS)
        self._timer.timeout.connect(self._look)

    def follow(self, folder: Path, others: list[Path] | None = None) -> None:
        """Show a run from its beginning.

        Args:
            folder: Of the run.
            others: Runs that its curve may be compared with.
        """
        self._story, self.view, self._asked, self.shown = RunStory(folder), None, "", ""
        self._reading, self._earlier = False, None
        self.title.setText(f"Reading {folder.name} ...")
        self.picture.forget()
        self.log.setVisible(False)
        for chart in (self.loss, self.validation):
            chart.show_curves([])
        self.compare.clear()
        self.know(others or [])
        self._look()
        self._timer.start()

    def leave(self) -> None:
        """Follow no more."""
        self._timer.stop()
        self._story = None

    def act(self, what: str) -> None:
        """A button was pressed; the text changes at once, the run soon after."""
        if self._story is None:
            return
        folder = self._story.folder
        if what == "use":
            self.use.emit(str(folder))
        elif what == "report":
            self.report.emit(str(folder))
        elif what == "open":
            self.open_folder.emit(str(folder))
        elif what == "log":
            self._toggle_log(folder)
        else:
            self._begin(what, folder)

    def showEvent(self, event: Any) -> None:  # noqa: D102 - Qt's name
        super().showEvent(event)
        if self._story is not None:
            self._timer.start()

    def hideEvent(self, event: Any) -> None:  # noqa: D102 - Qt's name
        super().hideEvent(event)
        self._timer.stop()

    def _begin(self, what: str, folder: Path) -> None:
        self._asked = what
        self._write()
        if what == "resume":
            start_run(Run(folder), owner=self, done=self._started, failed=self._refused)
            return
        function = stop_now if what == "stop_now" else _LIVE_ACTIONS[what]
        in_background(function, folder, owner=self, failed=self._refused)

    def _started(self, _: int) -> None:
        self._asked = ""
        self.hub.changed.emit("runs")
        self._look()

    def _refused(self, error: Exception) -> None:
        self._asked = ""
        self.hub.say(f"That did not work: {error}", "error")
        self._look()

    def _look(self) -> None:
        story = self._story
        if story is None or self._reading:
            return
        self._reading = True
        in_background(
            story.read_on, owner=self,
            done=lambda view: self._take(story, view),
            failed=lambda error: self._not_read(story, error),
        )  # fmt: skip

    def _not_read(self, story: RunStory, error: Exception) -> None:
        if story is self._story:
            self._reading = False
            self._timer.stop()
            self.title.setText(f"{story.folder.name} cannot be read: {error}")

    def _take(self, story: RunStory, view: View) -> None:
        if story is not self._story:
            return  # another run is shown by now
        self._reading = False
        before, self.view = self.view, view
        if self._asked and is_settled(self._asked, view.state):
            if self._asked != "resume" or view.state == "running":
                self._asked = ""
        self._write()
        if view.behind:
            soon(self, self._look, _AGAIN_MS)
        elif before is not None and before.state != view.state:
            self.hub.changed.emit("runs")
            if view.state == "finished":
                self.hub.changed.emit("models")

    def _write(self) -> None:
        """Put the newest view on the screen; cheap, as all is prepared."""
        view = self.view
        if view is None:
            return
        self.shown = shown = shown_state(view, self._asked)
        self.title.setText(title_of(view, shown))
        done, total, words = bar_of(view, shown)
        self.bar.setRange(0, total)
        self.bar.setValue(done)
        trouble = view.trouble if shown in ("failed", "crashed") else None
        self.state.setText(f"{words}\n✖ {trouble.what}" if trouble else words)
        self.buttons.offer(offered(shown, self._has_model(view)))
        self.trouble.tell(trouble)
        self.facts.setText(facts_of(view))
        self.loss.show_curves(view.losses, self._earlier)
        self.validation.setVisible(bool(view.validation))
        self.validation.show_curves(view.validation)
        self.health.tell(*health_of(view), view.monitors)
        if view.preview is not None:
            self.picture.offer(*view.preview)
        self.notes.setText("\n".join(_note(*note) for note in view.notes[-4:]))
        self.notes.setVisible(bool(view.notes))

    def _has_model(self, view: View) -> bool:
        return view.state not in ("running", "paused", "new") and (
            (view.folder / "model" / "model.json").is_file()
        )

    def _toggle_log(self, folder: Path) -> None:
        if self.log.isVisible():
            self.log.setVisible(False)
            return
        in_background(read_log, folder, owner=self, done=self.log.tell)

    def know(self, others: list[Path]) -> None:
        """These runs can be compared with; the chosen one stays chosen."""
        if self._story is None:
            return
        found = [other for other in others if other != self._story.folder]
        chosen = self.compare.currentData()
        if found == self._others and self.compare.count():
            return
        self._others = found
        self.compare.blockSignals(True)
        self.compare.clear()
        self.compare.addItem("no other run", None)
        for other in found:
            self.compare.addItem(other.name, str(other))
        self.compare.setCurrentIndex(max(0, self.compare.findData(chosen)))
        self.compare.blockSignals(False)
        self.compare.setEnabled(self.compare.count() > 1)

    def _compare(self, _: int) -> None:
        chosen = self.compare.currentData()
        self._earlier = None
        if chosen is None:
            self._write()
            return

        def take(curve: Curve | None) -> None:
            self._earlier = curve
            if curve is None:
                self.hub.say("That run has no curve yet.", "warning")
            self._write()

        in_background(earlier_curve, Path(chosen), owner=self, done=take)

    def _build(self) -> None:
        self.title = headline_label("Headline of the training")
        self.bar = thin_bar("Progress of the training")
        self.state = widgets.named(
            widgets.Sentence(3), "State of the training", "State of the training"
        )
        self.leave_button = QPushButton("◀ All runs")
        self.leave_button.setAccessibleName("Back to all runs")
        self.leave_button.setToolTip("Back to the list; the training goes on")
        self.leave_button.clicked.connect(lambda: self.back.emit())
        self.buttons = ActionButtons(BUTTONS, self.act)
        self.trouble = TroubleBox()
        self.facts = widgets.named(
            widgets.Sentence(8), "Device, memory and what is saved",
            "Device, memory and what is saved",
        )  # fmt: skip
        self.loss = CurveView("Training loss")
        self.validation = CurveView("Validation")
        self.compare = widgets.Choice()
        self.compare.setAccessibleName("Run to compare with")
        self.compare.setToolTip("Show the loss of another run in grey")
        self.compare.setMinimumContentsLength(4)
        self.compare.setSizeAdjustPolicy(
            QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon
        )
        self.compare.currentIndexChanged.connect(self._compare)
        label = QLabel("Compare with")
        label.setBuddy(self.compare)
        line = QHBoxLayout()
        line.addWidget(label)
        line.addWidget(self.compare, 1)
        self.health = HealthBox()
        self.picture = PictureBox(self)
        self.notes = text_label("What the training said last")
        self.log = LogBox()
        parts = (
            self.leave_button, self.title, self.bar, self.state, self.buttons,
            self.facts, self.loss, line, self.log, self.trouble, self.validation,
            self.health, self.picture, self.notes,
        )  # fmt: skip  # what comes by itself stands below all that is pressed
        column_of(self, parts, stretch=True)
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)


def _note(level: str, text: str) -> str:
    return f"⚠ {text}" if level == "warning" else text
