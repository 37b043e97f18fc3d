"""Whether the user changed a label layer since it was saved. No Qt."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np

from homolog.gui.files.layer_geometry import is_kind, notes_of
from homolog.gui.files.layer_scan import sample

# The last two come with undo, but also with every other slice that is shown.
_CHANGES, _DOUBTS = ("data", "paint", "labels_update"), ("set_data",)


class Watched:
    """A labels layer: whether the user changed it, and what of it is saved."""

    def __init__(self, layer: Any, number: int) -> None:
        self.layer, self.number = layer, number
        self.changes = self.saved = 0
        self.doubt = False
        self.file = ""
        self.checksum: int | None = None
        for name, function in self._emitters():
            getattr(layer.events, name).connect(function)

    @property
    def wants(self) -> bool:
        """Whether it may differ from its file; undo only follows a change."""
        return self.changes > self.saved or (bool(self.file) and self.doubt)

    def leave(self) -> None:
        """Hear no more."""
        for name, function in self._emitters():
            with contextlib.suppress(Exception):
                getattr(self.layer.events, name).disconnect(function)

    def changed(self, event: Any = None) -> None:
        """Its voxels changed."""
        self.changes += 1

    def doubted(self, event: Any = None) -> None:
        """Its voxels may have changed."""
        self.doubt = True

    def _emitters(self) -> list[tuple[str, Callable[..., None]]]:
        return [(n, self.changed) for n in _CHANGES] + [
            (n, self.doubted) for n in _DOUBTS
        ]


def has_values(layer: Any) -> bool:
    """Whether a layer is not empty, by some of its voxels."""
    data = layer.data
    return isinstance(data, np.ndarray) and bool(sample(data).any())


def is_labels(layer: Any) -> bool:
    """Whether a layer can be drawn on."""
    return is_kind(layer, "Labels")


def is_scan(layer: Any) -> bool:
    """Whether a layer is a scan as opened from its file."""
    notes = notes_of(layer)
    return is_kind(layer, "Image") and bool(
        notes.get("source") and not notes.get("derived")
    )
