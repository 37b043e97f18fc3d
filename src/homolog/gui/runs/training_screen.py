"""A training, live: headline, curves, health, newest picture, pause and stop.

Everything is read on a background thread (``RunStory.read_on``); the GUI thread only
writes the words and hands the points to the charts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qtpy.QtCore import Qt, QTimer, Signal
from qtpy.QtWidgets import QComboBox, QHBoxLayout, QLabel, QPushButton, QWidget

from homolog.gui import rows
from homolog.gui.hub import Hub
from homolog.gui.runs import training_control as control
from homolog.gui.runs.control import ask_to_stop, go_on, pause, read_log, stop_now
from homolog.gui.runs.curve_points import Curve
from homolog.gui.runs.curves import CurveView
from homolog.gui.runs.story import RunStory, View, earlier_curve
from homolog.gui.runs.training_parts import (
    ActionButtons,
    HealthBox,
    LogBox,
    PictureBox,
    TroubleBox,
    column_of,
    headline,
    text_label,
    thin_bar,
)
from homolog.gui.threads import in_background, start_run
from homolog.runs.run import Run

_LOOK_MS = 300
_AGAIN_MS = 20
_LIVE_ACTIONS = {"stop": ask_to_stop, "pause": pause, "go_on": go_on}


class TrainingScreen(QWidget):
    """Follows one run at a time; looking away or closing it never touches the run.

    Signals:
        back: The user wants the list.
        use: Use the model of this run folder (str).
        open_folder: Show this folder (str).

    Args:
        hub: Of the window.
        parent: Of the widget.
    """

    back = Signal()
    use = Signal(str)
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
        if self._asked and control.is_settled(self._asked, view.state):
            if self._asked != "resume" or view.state == "running":
                self._asked = ""
        self._write()
        if view.behind:
            QTimer.singleShot(_AGAIN_MS, self._look)
        elif before is not None and before.state != view.state:
            self.hub.changed.emit("runs")
            if view.state == "finished":
                self.hub.changed.emit("models")

    def _write(self) -> None:
        """Put the newest view on the screen; cheap, as all is prepared."""
        view = self.view
        if view is None:
            return
        self.shown = shown = control.shown_state(view, self._asked)
        self.title.setText(control.title_of(view, shown))
        done, total, words = control.bar_of(view, shown)
        self.bar.setRange(0, total)
        self.bar.setValue(done)
        trouble = view.trouble if shown in ("failed", "crashed") else None
        self.state.setText(f"{words}\n✖ {trouble.what}" if trouble else words)
        self.buttons.offer(control.offered(shown, self._has_model(view)))
        self.trouble.tell(trouble)
        self.facts.setText(control.facts_of(view))
        self.loss.show_curves(view.losses, self._earlier)
        self.validation.setVisible(bool(view.validation))
        self.validation.show_curves(view.validation)
        self.health.tell(*control.health_of(view), view.monitors)
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
        self.title = headline("Headline of the training")
        self.bar = thin_bar("Progress of the training")
        self.state = rows.named(
            rows.Sentence(3), "State of the training", "State of the training"
        )
        self.leave_button = QPushButton("◀ All runs")
        self.leave_button.setAccessibleName("Back to all runs")
        self.leave_button.setToolTip("Back to the list; the training goes on")
        self.leave_button.clicked.connect(lambda: self.back.emit())
        self.buttons = ActionButtons(control.BUTTONS, self.act)
        self.trouble = TroubleBox()
        self.facts = rows.named(
            rows.Sentence(3), "Device, memory and what is saved",
            "Device, memory and what is saved",
        )  # fmt: skip
        self.loss = CurveView("Training loss")
        self.validation = CurveView("Validation")
        self.compare = QComboBox()
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
