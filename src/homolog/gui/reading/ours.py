"""Layers that the plugin made: hidden and shown as one, and with the tab they are of.

Free of Qt. A similarity map, pinned or marked places and matches belong to the tab in
front of which they appeared; label maps and predictions are results, and stay when it
is left.
"""

from __future__ import annotations

import weakref
from typing import Any

from homolog.gui.shared.layers import is_kind, itself, notes_of

# Tabs whose layers are of no use elsewhere.
_OWN = ("Explore", "Label", "Landmarks")


def is_ours(layer: Any) -> bool:
    """Whether the plugin made it; an opened file is the user's."""
    return bool(notes_of(layer).get("derived"))


class Ours:
    """The plugin's layers of one viewer.

    Args:
        viewer: napari's.
    """

    def __init__(self, viewer: Any) -> None:
        self._viewer = viewer
        self._tab = ""
        self._of: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
        self._hidden: weakref.WeakSet[Any] = weakref.WeakSet()
        self._left: dict[str, weakref.WeakSet[Any]] = {}

    @property
    def are_hidden(self) -> bool:
        """Whether some were hidden by ``toggle`` and are hidden still."""
        return any(not x.visible for x in self._hidden if x in self._viewer.layers)

    def toggle(self) -> int:
        """Hide all that are shown, or show those again; how many layers changed."""
        again = [x for x in self._hidden if x in self._viewer.layers and not x.visible]
        self._hidden.clear()
        if again:
            for layer in again:
                layer.visible = True
            return len(again)
        shown = [itself(x) for x in self._viewer.layers if is_ours(x) and x.visible]
        for layer in shown:
            layer.visible = False
            self._hidden.add(layer)
        return len(shown)

    def opened(self, layer: Any) -> None:
        """A new layer belongs to the tab in front."""
        if is_ours(layer) and self._tab in _OWN:
            self._of[itself(layer)] = self._tab

    def front(self, tab: str) -> None:
        """Another tab is in front: layers of the one left go, those of this one come.

        Args:
            tab: Its title.
        """
        before, self._tab = self._tab, tab
        if before == tab:
            return
        if before in _OWN:
            left = self._left[before] = weakref.WeakSet()
            for layer, owner in list(self._of.items()):
                if owner == before and self._goes(layer):
                    layer.visible = False
                    left.add(layer)
        for layer in list(self._left.pop(tab, ())):
            if layer in self._viewer.layers and not layer.visible:
                layer.visible = True

    def _goes(self, layer: Any) -> bool:
        if layer not in self._viewer.layers or not layer.visible:
            return False
        return not is_kind(layer, "Labels") and not is_kind(layer, "Shapes")
