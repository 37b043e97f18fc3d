"""Saves what was drawn and pinned in a window every few minutes, behind its back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from qtpy.QtCore import QObject, QTimer, Signal

from homolog.gui import preferences
from homolog.gui.autosave.restoring import pins_of
from homolog.gui.autosave.sessions import Session
from homolog.gui.autosave.snapshot import (
    Copying,
    Labels,
    entry_of,
    file_name,
    save,
    why_not_saved,
)
from homolog.gui.autosave.watched import Watched, has_values, is_labels, is_scan
from homolog.gui.files.layer_geometry import notes_of
from homolog.gui.hub import Hub
from homolog.gui.landmarks.keeping import kept
from homolog.gui.threads import in_background

_SLICE_S, _PAUSE_MS = 0.004, 4
_MINUTE_MS = 60_000


class Autosaver(QObject):
    """Of one window; begins with ``start``.

    Signals:
        saved: A round ended well; the number of label layers that were looked at.
    """

    saved = Signal(int)

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub)
        self.session = Session()
        self._hub = hub
        self._panel: Callable[[bool], Any] = lambda make: None
        # The landmark panel, as ``start``'s ``panel`` is Explore's.
        self.landmark_panel: Callable[[bool], Any] = lambda make: None
        # Layers whose paint is offered again even after a regular close.
        self.kept_at_close: Callable[[], list[Any]] = list
        self._is_open: Callable[[], bool] = lambda: True
        self._on = self._busy = self._again = False
        self._watched: dict[str, Watched] = {}
        self._count = self._looked = 0
        self._queue: list[Watched] = []
        self._now: tuple[Watched, Copying, int] | None = None
        self._written: Any = None
        self._told: set[str] = set()
        self._after: list[Callable[[], None]] = []
        self._due: list[Callable[[], None]] = []
        self._timer = QTimer(self)
        self._timer.timeout.connect(self.tick)
        self._slices = QTimer(self)
        self._slices.setInterval(_PAUSE_MS)
        self._slices.timeout.connect(self._copy_on)

    def start(self, panel: Callable[[bool], Any], is_open: Callable[[], bool]) -> None:
        """Watch the viewer's label layers.

        Args:
            panel: The Explore panel; None where it is not there and the argument, to
                make it, is False.
            is_open: Whether the window is still there.
        """
        if self._on or self._hub.viewer is None:
            return
        self._on, self._panel, self._is_open = True, panel, is_open
        layers = self._hub.viewer.layers
        for layer in filter(is_labels, layers):
            # What was drawn before we came is not known.
            self._watch(layer, drawn=not notes_of(layer))
        layers.events.inserted.connect(self._inserted)
        layers.events.removed.connect(self._removed)
        self._hub.closing.connect(self.close)
        self._timer.start(max(1, _minutes()) * _MINUTE_MS)

    def end(self) -> None:
        """The panel goes: watch no more, and count that as closed."""
        if not self._on:
            return
        self._on = False
        self._timer.stop()
        self._slices.stop()
        events = self._hub.viewer.layers.events
        for emitter, function in (
            (events.inserted, self._inserted), (events.removed, self._removed),
        ):  # fmt: skip
            with contextlib.suppress(Exception):
                emitter.disconnect(function)
        for watched in self._watched.values():
            watched.leave()
        self.close()

    def close(self) -> None:
        """The window closes regularly; unsaved paint of ``kept_at_close`` is kept."""
        try:
            if not self._kept():
                self.session.close()
        except OSError as error:
            self._tell(error)

    def _kept(self) -> bool:
        """Save paint in one go, since the window ends; whether there is some."""
        own = {str(layer.unique_id) for layer in self.kept_at_close()}
        held = [w for key, w in self._watched.items() if key in own]
        held = [w for w in held if has_values(w.layer)]
        if not held or self.session.is_closed or _minutes() <= 0:
            return False
        scans = [Labels(x) for x in self._hub.viewer.layers if is_scan(x)]
        for watched in held:
            copy = Labels(watched.layer, np.asarray(watched.layer.data))
            file = watched.file or file_name(watched.number, copy.name)
            watched.checksum = _save(
                self.session, _root(), copy, scans, file, watched.checksum
            )
            watched.file = file
        self.session.write(_root(), *self._content())
        return True

    def explorer(self, make: bool = False) -> Any:
        """Explore's state, or None while its tab was never shown.

        Args:
            make: Make the panel where there is none.
        """
        return getattr(self._panel(make), "explorer", None)

    def landmarks(self, make: bool = False) -> Any:
        """The landmark session, or None while its tab was never shown."""
        return getattr(self.landmark_panel(make), "session", None)

    def take_over(self, layers: list[Any], done: Callable[[], None]) -> None:
        """Count layers as drawn by hand; ``done`` once they are saved."""
        if not self._on or _minutes() <= 0:
            return  # it is offered again
        for layer in layers:
            watched = self._watched.get(str(layer.unique_id))
            if watched is not None:
                watched.changed()
        self._after.append(done)
        self.tick()

    def tick(self) -> None:
        """Save what changed; returns at once."""
        minutes = _minutes()
        self._timer.setInterval(max(1, minutes) * _MINUTE_MS)
        if minutes <= 0 or not self._on:
            return
        if self._busy:
            self._again = bool(self._after)
            return
        if self.session.is_closed:
            if not self._is_open():
                return
            self.session.reopen()
            self._written = None
        self._busy, self._looked = True, 0
        self._due, self._after = self._after, []
        self._queue = [w for w in self._watched.values() if w.wants]
        self._next()

    def _next(self) -> None:
        while self._queue:
            watched = self._queue.pop()
            reason = why_not_saved(watched.layer)
            if reason:
                self._tell(reason)
                watched.saved = watched.changes
                continue
            try:
                copying = Copying(watched.layer)
            except Exception as error:  # noqa: BLE001 - too large for the memory left
                self._due = []
                self._tell(error)
                continue
            watched.doubt = False
            self._now = (watched, copying, watched.changes)
            self._slices.start()
            return
        self._write()

    def _copy_on(self) -> None:
        if self._now is None:
            self._slices.stop()
            return
        watched, copying, changes = self._now
        try:
            if not copying.step(_SLICE_S):
                return
            copy = copying.taken()
            others = [Labels(x) for x in self._hub.viewer.layers if is_scan(x)]
        except Exception as error:  # noqa: BLE001 - the layer went or was replaced
            self._slices.stop()
            self._now = None
            self._not_saved(error)
            return
        self._slices.stop()
        self._now = None
        file = watched.file or file_name(watched.number, copy.name)

        def done(checksum: int) -> None:
            watched.file, watched.checksum = file, checksum
            watched.saved = changes
            self._looked += 1
            self._write()  # each layer counts at once

        in_background(
            _save, self.session, _root(), copy, others, file, watched.checksum,
            owner=self, done=done, failed=self._not_saved,
        )  # fmt: skip

    def _not_saved(self, error: Exception) -> None:
        """One layer; the others are saved all the same."""
        self._due = []
        self._tell(error)
        self._next()

    def _write(self) -> None:
        """The list of files, pins and open scans, where it is another than before."""
        try:
            whole = content, pins = self._content()
        except Exception as error:  # noqa: BLE001 - a timer's slot never raises
            self._failed(error)
            return
        there = content["labels"] or pins or content.get("landmarks")
        is_empty = not (there or self.session.folder)
        if whole == self._written or is_empty:
            self._finish()
            return

        def done(_: object) -> None:
            self._written = whole
            self._finish()

        in_background(
            self.session.write, _root(), content, pins,
            owner=self, done=done, failed=self._failed,
        )  # fmt: skip

    def _content(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """What session.json tells, and the pins."""
        layers = list(self._hub.viewer.layers)
        labels = [
            entry_of(w.layer, w.file, layers) for w in self._watched.values() if w.file
        ]
        explorer, marks = self.explorer(), self.landmarks()
        scans = [str(notes_of(x)["source"]) for x in layers if is_scan(x)]
        content: dict[str, Any] = {
            "labels": labels, "scans": list(dict.fromkeys(scans)),
        }  # fmt: skip
        landmarks = [] if marks is None else kept(marks.control)
        if landmarks:
            content["landmarks"] = landmarks
        return content, [] if explorer is None else pins_of(explorer)

    def _finish(self) -> None:
        if self._queue:
            self._next()
            return
        due, self._due = self._due, []
        self._busy = False
        for function in due:
            function()
        self.saved.emit(self._looked)
        if self._again:
            self._again = False
            self.tick()

    def _failed(self, error: Exception) -> None:
        """Told once per cause; what is not saved is tried again at the next tick."""
        self._slices.stop()
        self._now = None
        self._queue, self._due = [], []
        self._busy = False
        self._tell(error)

    def _tell(self, problem: Exception | str) -> None:
        text = str(problem)
        if isinstance(problem, Exception):
            text = (
                f"Your labels cannot be saved by themselves: {text or problem!r} "
                "Save them with File > Save Selected Layers."
            )
        if text not in self._told:
            self._told.add(text)
            self._hub.say(text, "warning")

    def _watch(self, layer: Any, drawn: bool) -> None:
        self._count += 1
        watched = Watched(layer, self._count)
        self._watched[str(layer.unique_id)] = watched
        if drawn:
            watched.changed()

    def _inserted(self, event: Any) -> None:
        if is_labels(event.value):
            # Such as the copy of a drawn one; predictions have notes of ours.
            drawn = not notes_of(event.value) and has_values(event.value)
            self._watch(event.value, drawn)

    def _removed(self, event: Any) -> None:
        watched = self._watched.pop(str(event.value.unique_id), None)
        if watched is not None:
            watched.leave()


def autosave_of(hub: Hub) -> Autosaver:
    """The autosave of a window, made when first asked for."""
    found: Autosaver | None = getattr(hub, "_homolog_autosave", None)
    if found is None:
        found = Autosaver(hub)
        hub._homolog_autosave = found
    return found


def _save(
    session: Session, root: Path, copy: Labels, others: list[Any], file: str,
    known: int | None,
) -> int:  # fmt: skip
    return save(copy, others, session.begin(root), file, known)


def _root() -> Path:
    return preferences.home() / "sessions"


def _minutes() -> int:
    return int(preferences.get("session", "autosave_minutes", 2))
