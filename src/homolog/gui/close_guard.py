"""Closing the window while a training of ours runs: it asks first.

Only trainings that this program started are asked about, and only by its last window;
closing the dock asks nothing and stops nothing.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

from qtpy.QtCore import QEvent, QObject
from qtpy.QtWidgets import QMainWindow, QWidget

from homolog.gui import preferences, questions
from homolog.gui.close_words import question_about
from homolog.gui.hub import Hub
from homolog.gui.threads import Helper, in_background
from homolog.runs import launch
from homolog.runs.run import Run

KEEP, STOP, CANCEL = "keep", "stop", "cancel"
_PATIENCE_S = 60.0
_guards: weakref.WeakSet[CloseGuard] = weakref.WeakSet()


class CloseGuard(QObject):
    """Watches the main window that a panel is docked in.

    Args:
        hub: Its ``closing`` is emitted when the window is about to close.
        panel: In the dock.
    """

    def __init__(self, hub: Hub, panel: QWidget) -> None:
        super().__init__(panel)
        self.ask = questions.ask
        self._hub, self._panel = hub, panel
        self._window: QMainWindow | None = None
        self._allowed = self._stopping = False

    def watch(self) -> None:
        """Find the main window, once; a floating dock still has it as its parent."""
        if self._window is not None:
            return
        place = self._panel
        while place is not None and not isinstance(place, QMainWindow):
            place = place.parentWidget()
        if place is not None:
            self._window = place
            place.installEventFilter(self)
            _guards.add(self)

    def leave(self) -> None:
        """Watch no more: the dock was closed, its runs go on."""
        _guards.discard(self)
        if self._window is not None:
            self._window.removeEventFilter(self)
            self._window = None

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:
        """Answer the window's Close; let everything else pass."""
        if event is None or watched is not self._window:
            return False
        if event.type() == QEvent.Type.Close:
            if self._may_close():
                self._hub.closing.emit()
                return False
            event.ignore()
            return True
        if event.type() == QEvent.Type.Hide and not event.spontaneous():
            end_helpers(self._panel)  # napari hides the window it closes
        return False

    def _may_close(self) -> bool:
        if self._allowed:
            return True
        if self._stopping:
            self._hub.say("Still saving; the window closes by itself when it is done.")
            return False
        runs = launch.started_here() if self._is_last() else []
        if not runs:
            return True
        answer = self._answer(runs)
        if answer == STOP:
            self._stop_and_close(runs)
        return answer == KEEP

    def _answer(self, runs: Sequence[Run]) -> str:
        told = str(preferences.get("session", "close_answer", "ask"))
        if told in (KEEP, STOP):
            return told
        answer = self.ask(self._window, question_about(runs))
        if answer.always and answer.key in (KEEP, STOP):
            preferences.put("session", "close_answer", answer.key)
        return answer.key

    def _stop_and_close(self, runs: Sequence[Run]) -> None:
        self._stopping = True
        names = ", ".join(run.folder.name for run in runs)
        self._hub.say(f"Saving {names}; the window closes when it is done.")
        in_background(
            stop_all, list(runs), owner=self,
            done=self._close, failed=self._not_stopped,
        )  # fmt: skip

    def _close(self, _: object) -> None:
        self._stopping, self._allowed = False, True
        if self._window is not None:
            self._window.close()

    def _not_stopped(self, error: Exception) -> None:
        self._stopping = False
        self._hub.say(f"A training could not be stopped: {error}", "error")

    def _is_last(self) -> bool:
        return all(guard is self for guard in _guards)


def stop_all(runs: Sequence[Run]) -> None:
    """Stop runs together, state saved; none is alive afterwards. Blocks.

    One that does not obey within a minute is ended; its last checkpoint stays.
    """
    for run in runs:
        if run.is_alive():
            run.ask("stop")
    for run in runs:
        launch.stop(run, _PATIENCE_S, kill=True)


def end_helpers(panel: QWidget) -> None:
    """Jobs that only serve this window end with it."""
    for helper in panel.findChildren(Helper):
        if helper.running:
            helper.stop()
