"""Opening scans without freezing the window: read on a thread, added when ready."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from qtpy.QtCore import QObject, Signal

from homolog.gui.files import opening
from homolog.gui.files.layers import LayerData
from homolog.gui.files.opening import Source, series_name, sources_of
from homolog.gui.files.series_chooser import ask
from homolog.gui.hub import Hub
from homolog.gui.telling import tell_once
from homolog.gui.threads import in_background


class ScanOpener(QObject):
    """Opens files and DICOM folders one after the other.

    Signals:
        working: What is being read, "" when all is done.
        opened: Path and the new layer.
        failed: Path and one sentence.
        crowded: A folder of more scans than anybody opens at once.
    """

    working = Signal(str)
    opened = Signal(object, object)
    failed = Signal(object, str)
    crowded = Signal(object)

    def __init__(self, hub: Hub, parent: QObject) -> None:
        super().__init__(parent)
        self.hub = hub
        self._waiting: deque[tuple[Path, str]] = deque()
        self._busy = False

    def open(self, paths: Iterable[str | Path]) -> None:
        """Open files (pictures too) and DICOM folders; returns at once."""
        found = [Path(p).absolute() for p in paths]
        if found:
            self.working.emit(f"Looking at {_said(found)} ...")
            in_background(
                sources_of, found, owner=self, done=self._take, failed=self._lost
            )

    def make(self, function: Callable[[], list[LayerData]], what: str) -> None:
        """Add layers that a function makes on a thread, such as sample data."""
        self.working.emit(f"Making {what} ...")

        def done(layers: list[LayerData]) -> None:
            for layer in layers:
                self._add(Path(what), layer)

        in_background(function, owner=self, done=done, failed=self._lost)

    def _take(self, sources: list[Source]) -> None:
        for source in sources:
            if source.crowd:
                self.crowded.emit(source.path)
            elif source.trouble:
                self._fail(source.path, source.trouble)
            elif len(source.series) > 1:
                chosen = ask(list(source.series), self._window())
                if chosen is not None:
                    self._waiting.append(
                        (chosen.path, series_name(chosen, source.path))
                    )
            else:
                if source.warning:
                    self.hub.say(source.warning)
                self._waiting.append((source.path, source.name))
        self._next()

    def _next(self) -> None:
        if self._busy:
            return
        if not self._waiting:
            self.working.emit("")
            return
        path, name = self._waiting.popleft()
        self._busy = True
        self.working.emit(f"Reading {name or path.name} ...")

        def done(layer: LayerData) -> None:
            self._add(path, layer)

        def failed(error: Exception) -> None:
            self._busy = False
            self._fail(path, opening.why_not(path, error))
            self._next()

        in_background(
            opening.read_layer, path, name, owner=self, done=done, failed=failed
        )

    def _add(self, path: Path, layer: LayerData) -> None:
        self._busy = False
        try:
            for new in opening.add_to(self.hub.viewer, layer):
                self.opened.emit(path, new)
        except Exception as error:  # noqa: BLE001 - the other files still open
            self._fail(path, opening.why_not(path, error))
        else:
            for sentence in opening.notes_to_tell(layer):
                tell_once(sentence)
        self._next()

    def _window(self) -> Any:
        """The widget that questions stand above."""
        parent = self.parent()
        return parent.window() if hasattr(parent, "window") else None

    def _fail(self, path: Path, sentence: str) -> None:
        self.hub.say(sentence, "warning")
        self.failed.emit(path, sentence)

    def _lost(self, error: Exception) -> None:
        self.hub.say(f"The files cannot be looked at: {error}", "warning")
        self.working.emit("")


def _said(paths: list[Path]) -> str:
    return paths[0].name if len(paths) == 1 else f"{len(paths)} files"
