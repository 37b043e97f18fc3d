"""Estimate, start, and copy as a command: the foot of both learning panels."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import (
    QApplication,
    QGridLayout,
    QLabel,
    QLineEdit,
    QPushButton,
    QVBoxLayout,
)

from homolog.events import Event, Note, Started
from homolog.gui.learn.control import Wish
from homolog.gui.shared import engine
from homolog.gui.shared.choices import estimate_lines, name_problem, next_name
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.threads import in_background, start_run
from homolog.gui.shared.widgets import (
    HelperBox,
    Sentence,
    beside,
    bring_into_view,
    named,
)
from homolog.runs.jobs import run_text
from homolog.runs.run import Run


class StartBox(HelperBox):
    """Buttons that act on the panel's wish; disabled ones say why.

    Signals:
        estimated: A dry run's answer (dict).
        started: A run was created (its path).
    """

    estimated = Signal(object)
    started = Signal(str)

    def __init__(
        self,
        hub: Hub,
        wish: Callable[[], Wish | None],
        problem: Callable[[], str],
    ) -> None:
        """Make the box.

        Args:
            hub: Of the window.
            wish: Asked for what the panel holds; None while nothing can be said.
            problem: Asked for the first setting that cannot be meant.
        """
        super().__init__("the estimate", "Stop the trial")
        self._hub, self._wish, self._problem = hub, wish, problem
        self._told_of: dict[str, Any] | None = None
        self._starting = False
        self._stem = ""
        self.trouble = ""
        self.name = QLineEdit()
        self.name.setAccessibleName("Name of the run")
        self.name.setToolTip("Name of the run; its folder in the runs folder")
        self.name.textEdited.connect(lambda: self.refresh())
        label = QLabel("Run name")
        label.setBuddy(self.name)
        self.estimate = _button("Estimate", "Try a few steps: time and memory needed")
        self.start = _button("Start", "Start in a process of its own")
        self.copy = _button("Copy as command", "Copy the command line that does this")
        self.copy_python = _button(
            "Copy as Python", "Copy a Python program that does this"
        )
        self.cancel.setText("Cancel estimate")
        # Last, for it may be long, and never lower again: else the foot of a
        # scrolled tab would slip down.
        self.words = Sentence(2, grows=True)
        named(
            self.words, "Estimate and problems", "What was measured, or what is missing"
        )
        self._lay_out(label)
        self.estimate.clicked.connect(self.begin_estimate)
        self.start.clicked.connect(self.begin_run)
        self.copy.clicked.connect(self.copy_command)
        self.copy_python.clicked.connect(self.copy_program)

    def _lay_out(self, label: QLabel) -> None:
        grid = QGridLayout()
        grid.setContentsMargins(0, 0, 0, 0)
        grid.addWidget(label, 0, 0)
        grid.addWidget(self.name, 0, 1)
        grid.addWidget(self.estimate, 1, 0)
        grid.addWidget(self.start, 1, 1)
        grid.setColumnStretch(0, 1)
        grid.setColumnStretch(1, 1)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(grid)
        column.addLayout(beside(self.copy, self.copy_python))
        column.addLayout(self.working())
        column.addWidget(self.words)

    @property
    def busy(self) -> bool:
        """Whether an estimate is made, or a run about to start."""
        return super().busy or self._starting

    def enable(self) -> None:
        """An estimate began or ended."""
        self.refresh()

    def refresh(self) -> None:
        """Look at the wish again: propose a name, enable what can be done."""
        wish = self._wish()
        if wish is not None and wish.stem != self._stem:
            self._stem = wish.stem
            self.name.setText(next_name(wish.stem, self._hub.runs))
            self.name.setCursorPosition(0)
        self.trouble = self._trouble(wish)
        busy = self.busy
        for button in (self.estimate, self.start):
            button.setEnabled(not self.trouble and not busy)
        for copy in (self.copy, self.copy_python):
            copy.setEnabled(wish is not None and not wish.problem())
        self.start.setToolTip(self.trouble or "Start in a process of its own")
        self.estimate.setToolTip(
            self.trouble or "Try a few steps: time and memory needed"
        )
        if busy:
            return
        if wish is None and not self._hub.engine_missing():
            self._say("")  # the panel says that the engine is being asked
        elif self.trouble:
            self._say(f"⚠ {self.trouble}")
        elif wish is not None and wish.config() != self._told_of:
            self._say("")  # an estimate of other settings

    def begin_estimate(self) -> None:
        """The dry run, in a worker that ends with the window."""
        wish = self._wish()
        if wish is None or self.busy or self._trouble(wish):
            self.refresh()
            return
        config = {"kind": wish.kind, "config": wish.config()}
        self.launch("plan", config, self._estimated, "Trying a few steps...")

    def begin_run(self) -> None:
        """Create the run and hand it to a process of its own."""
        wish = self._wish()
        if wish is None or self.busy or self._trouble(wish):
            self.refresh()
            return
        self._starting = True
        self.refresh()
        self._say("Starting...")
        in_background(
            Run.create, self._hub.runs / self.name.text().strip(), wish.kind,
            wish.config(), owner=self, done=self._created, failed=self._not_started,
        )  # fmt: skip

    def copy_command(self) -> None:
        """The command line that does the same, on the clipboard."""
        wish = self._wish()
        if wish is None or wish.problem():
            return
        QApplication.clipboard().setText(wish.command(self._folder(wish)))
        self._tell_words("The command was copied.")

    def copy_program(self) -> None:
        """A Python program that does the same, on the clipboard."""
        wish = self._wish()
        if wish is None or wish.problem():
            return
        text = run_text(self._folder(wish), wish.kind, wish.config())
        QApplication.clipboard().setText(text)
        self._tell_words("The program was copied.")

    def _folder(self, wish: Wish) -> Path:
        return self._hub.runs / (self.name.text().strip() or wish.stem)

    def _trouble(self, wish: Wish | None) -> str:
        missing = self._hub.engine_missing()
        if missing:
            return (
                "The training engine is not installed in this Python "
                f"({', '.join(missing)} missing). Install it with: "
                f"{engine.install_command()}"
            )
        if wish is None:
            return "The engine is being asked what it offers..."
        named = name_problem(self.name.text().strip(), self._hub.runs)
        return self._problem() or wish.problem() or named

    def _created(self, run: Run) -> None:
        start_run(
            run, owner=self, done=lambda _: self._running(run), failed=self._not_started
        )

    def _running(self, run: Run) -> None:
        self._starting = False
        self._stem = ""
        self.refresh()
        self._tell_words(f"{run.folder.name} has started; follow it in Runs.")
        self.started.emit(str(run.folder))
        self._hub.changed.emit("runs")
        self._hub.go.emit("Runs", {"run": str(run.folder)})

    def _not_started(self, error: Exception) -> None:
        self._starting = False
        self._stem = ""
        self.refresh()
        self._tell_words(f"⚠ It could not be started: {error}")
        self._hub.changed.emit("runs")

    def take(self, event: Event) -> None:
        """How many steps there will be, and are done."""
        super().take(event)
        if isinstance(event, Started) and event.total > 0:
            self.bar.setRange(0, event.total)
        elif isinstance(event, Note):
            self._say(f"Trying a few steps... {event.text}")

    def _estimated(self, plan: dict[str, Any]) -> None:
        now = datetime.datetime.now()
        self.end("\n".join(estimate_lines(plan, now)))
        self.estimated.emit(plan)

    def fail(self, text: str) -> None:
        """It could not be tried."""
        super().fail(_sentence(text))

    def halt(self) -> None:
        """It was stopped."""
        self.end("The estimate was cancelled.")

    def end(self, words: str) -> None:
        """The words stand as long as the settings."""
        super().end("")
        self._tell_words(words)

    def _tell_words(self, words: str) -> None:
        """Words that stand until another thing is wished for."""
        wish = self._wish()
        self._told_of = None if wish is None or self.trouble else wish.config()
        self._say(words)
        bring_into_view(self.words)

    def _say(self, text: str) -> None:
        self.words.setText(text)
        self.words.setVisible(bool(text))


def _button(text: str, hint: str) -> QPushButton:
    button = QPushButton(text)
    button.setAccessibleName(text)
    button.setToolTip(hint)
    return button


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:]
