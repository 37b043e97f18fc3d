"""Which way up a scan is seen, and letters of the body at the edges of the canvas.

Free of Qt. The world that scans are shown in is LPS mm (z, y, x). napari draws rows
downwards, so that its coronal slices show the head below, and its 3D view, whose depth
runs towards the viewer, a mirrored body (an appendix on the left). Both are settings
of its camera; data and coordinates stay as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from homolog.gui.shared.layers import is_kind, notes_of, shown_to_true

Order: TypeAlias = tuple[int, int, int]
Vector: TypeAlias = NDArray[np.float64]

AXIAL, CORONAL, SAGITTAL = 0, 1, 2
# The hidden axis, then rows and columns: as radiologists look at the three planes.
ORDERS: dict[int, Order] = {AXIAL: (0, 1, 2), CORONAL: (1, 0, 2), SAGITTAL: (2, 0, 1)}
NAMES = {AXIAL: "Axial", CORONAL: "Coronal", SAGITTAL: "Sagittal"}
# napari's button turns from plane to plane; this is the way it goes round.
_NEXT = {AXIAL: SAGITTAL, SAGITTAL: CORONAL, CORONAL: AXIAL}
# Positive and negative end of z, y, x.
_ENDS = (("S", "I"), ("P", "A"), ("L", "R"))
_EDGES = ("left", "right", "top", "bottom")
_POSITIONS = {
    "left": "middle_left", "right": "middle_right",
    "top": "top_center", "bottom": "bottom_center",
}  # fmt: skip
# A second letter where a direction leaves its axis by more than 20 degrees.
_SECOND = 0.342


def letters(direction: Sequence[float] | Vector) -> str:
    """``S``, or ``SA`` where a direction (z, y, x) of LPS lies between two."""
    vector = np.asarray(direction, np.float64)
    length = float(np.linalg.norm(vector))
    if length == 0.0:
        return ""
    share = vector / length
    axes = sorted(range(3), key=lambda axis: -abs(share[axis]))
    kept = [axes[0], *(a for a in axes[1:] if abs(share[a]) > _SECOND)]
    return "".join(_ENDS[a][0 if share[a] > 0 else 1] for a in kept)


def orientation_of(order: Order) -> tuple[str, str, str]:
    """Camera orientation (depth, vertical, horizontal) that shows no body mirrored.

    Args:
        order: Depth, rows and columns: which of z, y, x they run along.
    """
    vertical = "up" if order[1] == 0 else "down"
    towards = _parity(order) * (1 if vertical == "up" else -1) > 0
    return ("towards" if towards else "away", vertical, "right")


def edges(
    order: Order, orientation: Sequence[Any], turn: Vector | None = None
) -> dict[str, str]:
    """Letters at the four edges of a 2D view.

    Args:
        order: As for ``orientation_of``.
        orientation: The camera's.
        turn: (3, 3) from the shown world to the patient's; None where they are one.
    """
    unit = np.eye(3) if turn is None else turn
    down = unit[:, order[1]] * (1 if str(orientation[1]) == "down" else -1)
    right = unit[:, order[2]] * (1 if str(orientation[2]) == "right" else -1)
    return _around(right, down)


def edges_in_space(
    view: Vector, up: Vector, mirrored: bool, turn: Vector | None = None
) -> dict[str, str]:
    """Letters at the four edges of a 3D view.

    Args:
        view: (3,) where the camera looks, z, y, x.
        up: (3,) what is up, z, y, x.
        mirrored: Whether the camera shows the body mirrored.
        turn: As for ``edges``.
    """
    right = np.cross(view[::-1], up[::-1])[::-1] * (-1 if mirrored else 1)
    unit = np.eye(3) if turn is None else turn
    return _around(unit @ right, -(unit @ up))


def _around(right: Vector, down: Vector) -> dict[str, str]:
    return {
        "left": letters(-right), "right": letters(right),
        "top": letters(-down), "bottom": letters(down),
    }  # fmt: skip


def _parity(order: Order) -> int:
    """Handedness of columns, rows, depth in x, y, z: 1 right, -1 left."""
    frame = np.eye(3)[[2 - axis for axis in (order[2], order[1], order[0])]]
    return 1 if np.linalg.det(frame) > 0 else -1


def is_mirrored(order: Order, orientation: Sequence[Any]) -> bool:
    """Whether a 3D camera of this orientation shows a body mirrored."""
    depth, vertical, horizontal = (str(part) for part in orientation)
    signs = (depth == "towards", vertical == "up", horizontal == "right")
    seen = int(np.prod([1 if sign else -1 for sign in signs]))
    return seen != _parity(order)


def is_placed(layer: Any) -> bool:
    """Whether it is known which way a layer's body lies: not of a plain picture."""
    notes = notes_of(layer)
    if not notes.get("affine") or notes.get("oriented") is False:
        return False
    return (is_kind(layer, "Image") or is_kind(layer, "Labels")) and (
        notes.get("sized") is not False
    )


class Orientation:
    """Turns the camera of one viewer and writes letters on its canvas.

    Args:
        viewer: napari's, or a ``ViewerModel``.
        later: Calls in a later turn of the event loop: the first letters cost napari
            60 ms, which a scan that is just being opened need not wait for.
    """

    def __init__(
        self, viewer: Any, later: Callable[[Callable[[], Any]], Any] | None = None
    ) -> None:
        self._viewer, self._later = viewer, later
        self._asked = False
        self._on = False
        self._turned = False
        self._was: Any = None
        self._order: Order | None = None
        self._letters: dict[str, Any] = {}
        self.shown = True

    def begin(self) -> None:
        """Follow the viewer from now on."""
        if self._on:
            return
        self._on = True
        for emitter, function in self._emitters():
            # After napari's own: an order set in between leaves its layers behind.
            emitter.connect(function, position="last")
        self.refresh()

    def end(self) -> None:
        """Follow no more; the camera is as it was before."""
        if not self._on:
            return
        self._on = False
        for emitter, function in self._emitters():
            with contextlib.suppress(Exception):
                emitter.disconnect(function)
        self._give_back()
        overlays = self._viewer.canvas.overlays
        for edge in self._letters:
            with contextlib.suppress(KeyError):
                del overlays[_name(edge)]
        self._letters.clear()

    def show_letters(self, shown: bool) -> None:
        """Whether the user wants them."""
        self.shown = shown
        self.refresh()

    def look(self, plane: int) -> None:
        """Show a plane: AXIAL, CORONAL or SAGITTAL."""
        dims = self._viewer.dims
        if dims.ndim < 3:
            return
        if dims.ndisplay != 2:
            dims.ndisplay = 2
        self._arrange(ORDERS[plane])

    def look_along_slices(self) -> None:
        """Show the plane in which the scan was taken: across its longest voxel side."""
        scan = self.scan()
        if scan is not None:
            self.look(int(np.argmax(np.asarray(scan.scale, np.float64)[-3:])))

    @property
    def plane(self) -> int | None:
        """The plane a 2D view shows; None in 3D and without three axes."""
        order = self._axes()
        return None if order is None or self._viewer.dims.ndisplay != 2 else order[0]

    def refresh(self, event: Any = None) -> None:
        """Camera and letters for what is shown now."""
        if self.scan() is None:
            self._give_back()
            self._write({})
            return
        order = self._axes()
        if order is None:
            self._write({})
            return
        self._turn(order)
        self._write(self._edges(order))

    def _emitters(self) -> list[tuple[Any, Callable[..., None]]]:
        dims, layers = self._viewer.dims.events, self._viewer.layers.events
        camera = self._viewer.scene.camera.events
        return [
            (dims.order, self._ordered),
            (dims.ndisplay, self._displayed),
            (layers.inserted, self._listed),
            (layers.removed, self._listed),
            (self._viewer.layers.selection.events.active, self._listed),
            (camera.angles, self._moved),
            (camera.orientation, self._moved),
        ]

    def _ordered(self, event: Any = None) -> None:
        """Napari's turn to the next plane leads to it as it is looked at in clinics."""
        now, before = self._axes(), self._order
        self._order = now
        flat = self._viewer.dims.ndisplay == 2
        if now is None or before is None or not flat or self.scan() is None:
            self.refresh()
            return
        if now == (before[2], before[0], before[1]):
            wanted = ORDERS[_NEXT[before[0]]]
            if wanted != now:
                self._turn(wanted)
                self.look(wanted[0])
        self.refresh()

    def _displayed(self, event: Any = None) -> None:
        order = self._axes()
        in_space = self._viewer.dims.ndisplay == 3
        if in_space and order is not None and self.scan() is not None:
            camera = self._viewer.scene.camera
            self._turn(order)
            if np.allclose(camera.angles, 0.0):  # nobody has turned it: from the front
                view, up = _seen(order, (0.0, 1.0, 0.0)), _seen(order, (1.0, 0.0, 0.0))
                camera.set_view_direction(view, up)
        self.refresh()

    def _arrange(self, axes: Order) -> None:
        """Put the axes in an order, those before z, y, x left where they are."""
        dims = self._viewer.dims
        first = dims.ndim - 3
        self._order = axes
        order = (*range(first), *(first + axis for axis in axes))
        if tuple(dims.order) != order:
            dims.order = order

    def _listed(self, event: Any = None) -> None:
        if self._order is None:
            self._order = self._axes()
        self.refresh()

    def _moved(self, event: Any = None) -> None:
        order = self._axes()
        if order is not None and self._turned:
            self._write(self._edges(order))

    def _axes(self) -> Order | None:
        """Depth, rows and columns of z, y, x; None where time or the like is shown."""
        dims = self._viewer.dims
        first = dims.ndim - 3
        order = tuple(int(axis) - first for axis in dims.order[-3:])
        if first < 0 or sorted(order) != [0, 1, 2]:
            return None
        return order[0], order[1], order[2]

    def scan(self) -> Any | None:
        """The scan whose body is named: the active layer, else the topmost shown."""
        active = self._viewer.layers.selection.active
        if active is not None and is_placed(active):
            return active
        placed = [x for x in reversed(self._viewer.layers) if is_placed(x)]
        return next((x for x in placed if x.visible), placed[0] if placed else None)

    def _turn(self, order: Order) -> None:
        camera = self._viewer.scene.camera
        if not self._turned:
            self._was, self._turned = camera.orientation, True
        wanted = orientation_of(order)
        if tuple(str(part) for part in camera.orientation) != wanted:
            camera.orientation = wanted

    def _give_back(self) -> None:
        if self._turned:
            self._turned = False
            self._viewer.scene.camera.orientation = self._was

    def _edges(self, order: Order) -> dict[str, str]:
        scan = self.scan()
        if scan is None or not self.shown:
            return {}
        camera = self._viewer.scene.camera
        turn = shown_to_true(scan).matrix[:3, :3]
        if self._viewer.dims.ndisplay == 2:
            return edges(order, camera.orientation, turn)
        view, up = np.zeros(3), np.zeros(3)
        view[list(order)] = camera.view_direction
        up[list(order)] = camera.up_direction
        return edges_in_space(view, up, is_mirrored(order, camera.orientation), turn)

    def _write(self, texts: dict[str, str]) -> None:
        if texts and not self._letters:
            if self._later is not None and not self._asked:
                self._asked = True
                self._later(self._made_late)
            if self._later is not None:
                return
            self._make()
        for edge, overlay in self._letters.items():
            text = texts.get(edge, "")
            if overlay.text != text:
                overlay.text = text
            if overlay.visible != bool(text):
                overlay.visible = bool(text)

    def _made_late(self) -> None:
        self._later = None
        if self._on:
            self.refresh()

    def _make(self) -> None:
        from napari.components.overlays import TextOverlay

        for edge in _EDGES:
            overlay = TextOverlay(
                position=_POSITIONS[edge], font_size=13, gridded=True, visible=False
            )
            self._viewer.canvas.overlays[_name(edge)] = overlay
            self._letters[edge] = overlay


def _name(edge: str) -> str:
    return f"homolog_{edge}"


def _seen(order: Order, vector: Sequence[float]) -> tuple[float, float, float]:
    """A vector (z, y, x) in the order of the axes displayed."""
    depth, row, column = (vector[axis] for axis in order)
    return depth, row, column
