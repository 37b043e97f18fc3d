"""Mouse in both viewers: picking in A, dragging in B. Panning and zooming stay."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from homolog.gui.explore.listening import Hearer, Listening

# A press that moved farther than this was a pan, not a pick.
_STILL_PX = 4.0


class PickHearer(Hearer, Protocol):
    """Who is told of the mouse in A."""

    picking: bool


class MouseInA(Listening):
    """As ``Listening``; while picking, a plain click counts like one with Shift.

    Args:
        viewer: napari's.
        hearer: Who is told.
    """

    def __init__(self, viewer: Any, hearer: PickHearer) -> None:
        super().__init__(viewer, hearer)
        self._picker = hearer

    def _drag(self, viewer: Any, event: Any) -> Generator[None, None, None] | None:
        if any(key == "Shift" for key in event.modifiers):
            return super()._drag(viewer, event)
        return self._click(event) if self._picker.picking else None

    def _click(self, event: Any) -> Generator[None, None, None]:
        """A press and a release at one place; the camera has the drag in between."""
        if event.button != 1:
            return
        start, place = np.array(event.pos, np.float64), tuple(event.position)
        yield
        while event.type == "mouse_move":
            yield
        if np.abs(np.array(event.pos, np.float64) - start).max() <= _STILL_PX:
            self._picker.pressed(place)


class DragHearer(Protocol):
    """Who is told of the mouse in B."""

    def grab(self, shown_mm: NDArray[np.float64]) -> bool:
        """Whether there is something to drag at a place."""

    def dragged(self, shown_mm: NDArray[np.float64]) -> None:
        """It is being dragged; now it is here."""

    def dropped(self, shown_mm: NDArray[np.float64] | None) -> None:
        """It was let go; None: where it was grabbed."""


class MouseInB:
    """Dragging of points in a model; all else is the camera's.

    Args:
        model: The second viewer's.
        hearer: Who is told.
    """

    def __init__(self, model: Any, hearer: DragHearer) -> None:
        self._model, self._hearer = model, hearer
        model.mouse_drag_callbacks.append(self._drag)

    def end(self) -> None:
        """Listen no more."""
        with contextlib.suppress(ValueError):
            self._model.mouse_drag_callbacks.remove(self._drag)

    def _drag(self, _: Any, event: Any) -> Generator[None, None, None] | None:
        place = _place(event)
        if event.button != 1 or place is None or event.modifiers:
            return None
        return self._carry(event) if self._hearer.grab(place) else None

    def _carry(self, event: Any) -> Generator[None, None, None]:
        event.handled = True  # the camera stays where it is
        moved = None
        yield
        while event.type == "mouse_move":
            event.handled = True
            moved = _place(event)
            if moved is not None:
                self._hearer.dragged(moved)
            yield
        event.handled = True
        self._hearer.dropped(moved)


def _place(event: Any) -> NDArray[np.float64] | None:
    place = np.array(event.position, np.float64)[-3:]
    return place if len(place) == 3 else None
