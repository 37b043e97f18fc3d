"""What a window's reading room knows and does; one per window. No Qt widgets."""

from __future__ import annotations

import contextlib
from typing import Any

from homolog.gui.reading.orientation import Orientation
from homolog.gui.reading.ours import Ours
from homolog.gui.reading.status import StatusLine
from homolog.gui.reading.windows import Windows
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.threads import soon


def reading_of(hub: Hub) -> Reading:
    """The reading room of a window, made when first asked for."""
    found: Reading | None = getattr(hub, "_homolog_reading", None)
    if found is None:
        found = Reading(hub)
        hub._homolog_reading = found
    return found


class Reading:
    """Windows, orientation and the plugin's own layers of a window's viewers.

    Args:
        hub: Of the window.
    """

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.windows = Windows(hub.viewer)
        self.orientation = Orientation(hub.viewer, lambda call: soon(hub, call))
        self.ours = Ours(hub.viewer)
        self.status = StatusLine(hub.viewer, self.orientation.scan)
        self._others: list[tuple[Any, Orientation]] = []
        self._on = False

    def begin(self) -> None:
        """Follow the viewer; a second call does nothing."""
        if self._on or self.hub.viewer is None:
            return
        self._on = True
        self.hub.viewer.layers.events.inserted.connect(self._opened)
        self.hub.view_opened.connect(self.also)
        self.hub.view_closed.connect(self.without)
        self.orientation.begin()
        self.status.begin()

    def end(self) -> None:
        """Let go of all viewers."""
        if not self._on:
            return
        self._on = False
        with contextlib.suppress(Exception):
            self.hub.viewer.layers.events.inserted.disconnect(self._opened)
        self.hub.view_opened.disconnect(self.also)
        self.hub.view_closed.disconnect(self.without)
        self.status.end()
        self.orientation.end()
        for model, _ in list(self._others):
            self.without(model)

    def also(self, model: Any) -> None:
        """Another viewer of this window: it is windowed and oriented as well."""
        self.windows.also(model)
        orientation = Orientation(model, lambda call: soon(self.hub, call))
        orientation.show_letters(self.orientation.shown)
        orientation.begin()
        self._others.append((model, orientation))

    def without(self, model: Any) -> None:
        """A viewer that is closed; nothing where it is not one of ours."""
        for pair in [p for p in self._others if p[0] is model]:
            self._others.remove(pair)
            pair[1].end()

    def show_letters(self, shown: bool) -> None:
        """Letters of the body on all canvases, or on none."""
        for orientation in (self.orientation, *(one for _, one in self._others)):
            orientation.show_letters(shown)

    def _opened(self, event: Any) -> None:
        self.windows.opened(event.value)
        self.ours.opened(event.value)
