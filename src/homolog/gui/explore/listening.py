"""What Explore hears from a viewer: begun and ended as one, whatever went before.

A plain Python object, so that it can end when the panel's widgets are gone already.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable
from typing import Any, Protocol

# Between napari's words in the status bar and ours.
_MARK = "  |  "


class Hearer(Protocol):
    """Who is told."""

    def moved(self, position: Any) -> None:
        """The mouse moved over the canvas, shown position."""

    def pressed(self, position: Any) -> None:
        """Shift and a click."""

    def left(self) -> None:
        """The mouse left the canvas."""

    def sliced(self) -> None:
        """Another slice, order of axes or number of displayed dimensions."""

    def sync(self) -> None:
        """Layers came or went."""

    def scan_shown(self) -> None:
        """A scan was shown or hidden."""


class Listening:
    """Callbacks on a napari viewer.

    Args:
        viewer: napari's.
        hearer: Who is told.
    """

    def __init__(self, viewer: Any, hearer: Hearer) -> None:
        self._viewer, self._hearer = viewer, hearer
        self._words = ""
        self._on = False
        self._watched: list[Any] = []

    @property
    def on(self) -> bool:
        """Whether it listens."""
        return self._on

    def begin(self) -> None:
        """Listen, if not yet."""
        if self._on:
            return
        self._on = True
        self._viewer.mouse_move_callbacks.append(self._move)
        self._viewer.mouse_drag_callbacks.append(self._drag)
        for emitter, function in self._emitters():
            emitter.connect(function)

    def end(self) -> None:
        """Listen no more; nothing of ours stays with the viewer."""
        if not self._on:
            return
        self._on = False
        for callbacks, function in (
            (self._viewer.mouse_move_callbacks, self._move),
            (self._viewer.mouse_drag_callbacks, self._drag),
        ):
            with contextlib.suppress(ValueError):
                callbacks.remove(function)
        for emitter, function in self._emitters():
            with contextlib.suppress(Exception):
                emitter.disconnect(function)
        self.watch_visible([])
        self._words = ""

    def watch_visible(self, layers: Iterable[Any]) -> None:
        """Also hear when these layers are shown or hidden, and no others."""
        for layer in self._watched:
            with contextlib.suppress(Exception):
                layer.events.visible.disconnect(self._visible)
        self._watched = list(layers)
        for layer in self._watched:
            layer.events.visible.connect(self._visible)

    def set_words(self, words: str) -> None:
        """Words beside napari's own in the status bar; "" leaves it to napari."""
        self._words = words
        if not self._on:
            return
        if words:
            self._status()
        elif isinstance(self._viewer.status, str) and _MARK in self._viewer.status:
            self._viewer.status = self._viewer.status.split(_MARK)[0]

    def _emitters(self) -> list[tuple[Any, Callable[..., None]]]:
        events, dims, layers = (
            self._viewer.events, self._viewer.dims.events, self._viewer.layers.events,
        )  # fmt: skip
        return [
            (events.mouse_over_canvas, self._over),
            (events.status, self._status),
            (dims.point, self._sliced),
            (dims.order, self._sliced),
            (dims.ndisplay, self._sliced),
            (layers.inserted, self._sync),
            (layers.removed, self._sync),
        ]

    def _move(self, _: Any, event: Any) -> None:
        self._hearer.moved(event.position)

    def _drag(self, _: Any, event: Any) -> Generator[None, None, None] | None:
        if any(key == "Shift" for key in event.modifiers):
            event.handled = True  # the camera stays where it is
            self._hearer.pressed(event.position)
        return None

    def _over(self, event: Any = None) -> None:
        if not self._viewer.mouse_over_canvas:
            self._hearer.left()

    def _sliced(self, event: Any = None) -> None:
        self._hearer.sliced()

    def _sync(self, event: Any = None) -> None:
        self._hearer.sync()

    def _visible(self, event: Any = None) -> None:
        self._hearer.scan_shown()

    def _status(self, event: Any = None) -> None:
        """Napari writes the status in a thread of its own; ours is added to it."""
        if not self._words or not self._viewer.mouse_over_canvas:
            return
        status = self._viewer.status
        if isinstance(status, dict):
            told = str(status.get("coordinates", ""))
            if not told.endswith(_MARK + self._words):
                words = told.split(_MARK)[0] + _MARK + self._words
                self._viewer.status = {**status, "coordinates": words}
        elif status and not status.endswith(_MARK + self._words):
            self._viewer.status = status.split(_MARK)[0] + _MARK + self._words
