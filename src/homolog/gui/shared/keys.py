"""Keys of our own in the napari window: with Shift, while our panel is visible.

How a panel adds one, any time after it was made::

    from homolog.gui.shared import keys

    keys.add(hub, "Shift-F", "find similar here", self.find_here)
    keys.add(hub, "Shift-R", "segment this layer", self.go, while_shown=self)

The function takes no argument and runs on the GUI thread; what it raises becomes a
message, never a traceback. Adding a key again for the same widget replaces what it
did; tabs of one dock, of which one is visible, may share a key. Keys are bound
only while the dock is visible (with ``while_shown``: only while that widget is), do
nothing while a text field has the focus (Qt gives it the key), and are gone when the
dock is closed. A key that napari, the user or another plugin has already is left to
them; the list under "?" says so. Only ``Shift-LETTER``, ``Alt-DIGIT`` and ``Escape``
are allowed, since napari keeps bare letters and digits for itself.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qtpy.QtCore import QObject
from qtpy.QtWidgets import QWidget

from homolog.gui.shared.hub import Hub

_ALLOWED = re.compile(r"Shift-[A-Z]|Alt-[1-9]|Escape")


@dataclass
class _Entry:
    key: str
    words: str
    function: Callable[[], Any]
    while_shown: QWidget | None
    bound: Callable[[Any], None] | None = None
    taken: str = ""


def add(
    hub: Hub,
    key: str,
    words: str,
    function: Callable[[], Any],
    while_shown: QWidget | None = None,
) -> None:
    """Let a key do something; see the module's text.

    Args:
        hub: Of the window.
        key: ``Shift-F``, ``Alt-1`` or ``Escape``.
        words: What it does, for the list under "?"; lower case, no full stop.
        function: Called without arguments.
        while_shown: Bound only while this widget is visible; None: while the dock is.

    Raises:
        ValueError: Not a key that we may take.
    """
    keys_of(hub).add(key, words, function, while_shown)


def keys_of(hub: Hub) -> Keys:
    """The keys of a window, made when first asked for."""
    found: Keys | None = getattr(hub, "_homolog_keys", None)
    if found is None:
        found = Keys(hub)
        hub._homolog_keys = found
    return found


class Keys(QObject):
    """All keys of one window; the dock says when they are bound.

    Args:
        hub: Its viewer gets the bindings.
    """

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub)
        self._hub = hub
        self._entries: dict[tuple[str, int], _Entry] = {}
        self._active = False

    def add(
        self,
        key: str,
        words: str,
        function: Callable[[], Any],
        while_shown: QWidget | None = None,
    ) -> None:
        """See ``homolog.gui.shared.keys.add``."""
        if not _ALLOWED.fullmatch(key):
            raise ValueError(
                f"own keys are Shift-LETTER, Alt-DIGIT or Escape, got {key!r}."
            )
        place = (key, id(while_shown))
        old = self._entries.pop(place, None)
        if old is not None:
            self._unbind(old)
        self._entries[place] = _Entry(key, words, function, while_shown)
        self.refresh()

    def remove(self, key: str) -> None:
        """Forget a key; nothing where it is not ours."""
        for place in [p for p in self._entries if p[0] == key]:
            self._unbind(self._entries.pop(place))

    def set_active(self, active: bool) -> None:
        """Called by the dock: it is visible now, or it is not."""
        self._active = active
        self.refresh()

    def refresh(self) -> None:
        """Bind what should be bound; called when another tab comes to the front."""
        wanted: list[_Entry] = []
        others: list[_Entry] = []
        for entry in self._entries.values():
            shown = entry.while_shown is None or _is_shown(entry.while_shown)
            (wanted if self._active and shown else others).append(entry)
        for entry in others:  # first, since a tab to come may have the same key
            self._unbind(entry)
        for entry in wanted:
            self._bind(entry)

    def clear(self) -> None:
        """Unbind and forget everything."""
        for entry in self._entries.values():
            self._unbind(entry)
        self._entries.clear()

    def lines(self) -> list[tuple[str, str]]:
        """``("Shift+F", "find similar here")`` for the list under "?"."""
        return [
            (
                entry.key.replace("-", "+"),
                entry.words + (f" (not active: {entry.taken})" if entry.taken else ""),
            )
            for entry in sorted(self._entries.values(), key=lambda e: e.key)
        ]

    def _bind(self, entry: _Entry) -> None:
        viewer = self._hub.viewer
        if entry.bound is not None or viewer is None:
            return
        entry.taken = _owner_of(viewer, entry.key)
        if entry.taken:
            return

        def press(_: Any) -> None:
            try:
                entry.function()
            except Exception as error:  # noqa: BLE001 - a key never raises into napari
                self._hub.say(f"{entry.words} did not work: {error}", "error")

        viewer.bind_key(entry.key, press)
        entry.bound = press

    def _unbind(self, entry: _Entry) -> None:
        if entry.bound is None:
            return
        viewer, bound = self._hub.viewer, entry.bound
        entry.bound = None
        if viewer.keymap.get(_coerced(entry.key)) is bound:
            viewer.bind_key(entry.key, None)


def _owner_of(viewer: Any, key: str) -> str:
    """Who has a key already, in words; empty when it is free."""
    if _coerced(key) in viewer.keymap:
        return "bound by another plugin"
    if key == "Escape":
        return ""  # napari's Escape belongs to layer modes, which come first anyway
    for action, bindings in _napari_shortcuts().items():
        if _coerced(key) in bindings:
            return f"napari's {action.removeprefix('napari:').replace('_', ' ')}"
    return ""


def _napari_shortcuts() -> dict[str, list[Any]]:
    """Action -> keys, as the user has set them in napari's preferences."""
    from napari.settings import get_settings

    return dict(get_settings().shortcuts.shortcuts)


@functools.cache
def _coerced(key: str) -> Any:
    from napari.utils.key_bindings import coerce_keybinding

    return coerce_keybinding(key)


def _is_shown(widget: QWidget) -> bool:
    try:
        return bool(widget.isVisible())
    except RuntimeError:  # deleted
        return False
