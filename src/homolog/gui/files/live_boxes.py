"""Boxes seen from every side: their rectangles follow the plane that is shown.

napari draws a flat shape in its own plane alone. Whenever the view turns, the layer's
rectangles are drawn anew for the plane shown, or as edges in 3D; what was moved,
deleted or added by hand is taken over first, and shown on all slices of the box.
"""

from __future__ import annotations

import weakref
from typing import Any

from qtpy.QtCore import QTimer

from homolog.gui.files.boxes import (
    TEXT,
    ShownBoxes,
    feature_defaults,
    features_of,
    shown_boxes,
)
from homolog.gui.shared.layers import KEY

_DONE = ("added", "removed", "changed")
_watched: weakref.WeakSet[Any] = weakref.WeakSet()
_live: weakref.WeakKeyDictionary[Any, LiveBoxes] = weakref.WeakKeyDictionary()


def watch(viewer: Any) -> None:
    """Let the boxes of a viewer follow its view, those that come later too."""
    viewer = _itself(viewer)
    if viewer not in _watched:
        _watched.add(viewer)
        viewer.layers.events.inserted.connect(_inserted)
    for layer in viewer.layers:
        if layer not in _live and shown_boxes(layer) is not None:
            _live[layer] = LiveBoxes(viewer, layer)


def _inserted(event: Any) -> None:
    for viewer in list(_watched):
        if viewer.layers is event.source:
            watch(viewer)


def up_to_date(layer: Any) -> None:
    """Draw a layer's boxes anew now, where that is still to come."""
    if (live := _live.get(_itself(layer))) is not None:
        live.draw()


def in_hand(layer: Any) -> bool:
    """Whether a shape is being moved or drawn right now."""
    own = _itself(layer)
    return any(getattr(own, name, False) for name in ("_is_moving", "_is_creating"))


def _itself(thing: Any) -> Any:
    """What napari hands plugins in a proxy, without it: a proxy is soon gone."""
    return getattr(thing, "__wrapped__", thing)


class LiveBoxes:
    """The boxes of one layer, as long as it lives.

    Args:
        viewer: Whose view they follow.
        layer: Of ``box_layer``.
    """

    def __init__(self, viewer: Any, layer: Any) -> None:
        self._viewer, self._layer = weakref.ref(viewer), weakref.ref(layer)
        self._drawing = self._due = False
        layer.events.data.connect(self._changed)
        layer.events.features.connect(self._relabelled)
        viewer.dims.events.order.connect(self._turned)
        viewer.dims.events.ndisplay.connect(self._turned)
        self._turned()

    def _changed(self, event: Any) -> None:
        if str(event.action).rpartition(".")[2].lower() in _DONE:
            self._soon()

    def _relabelled(self, event: Any = None) -> None:
        self._soon()

    def _turned(self, event: Any = None) -> None:
        layer, viewer = self._layer(), self._viewer()
        if layer is None or viewer is None or layer not in viewer.layers:
            return
        shown = shown_boxes(layer)
        if shown is not None and shown.axis != _axis_of(viewer, layer):
            self._soon()

    def _soon(self) -> None:
        """After what napari is doing now: it still holds on to the shapes."""
        if self._drawing or self._due:
            return
        self._due = True
        QTimer.singleShot(0, self.draw)

    def draw(self) -> None:
        """Take over what was changed, and draw what the view shows."""
        self._due = False
        layer, viewer = self._layer(), self._viewer()
        if layer is None or viewer is None or layer not in viewer.layers:
            return
        if in_hand(layer):
            self._soon()
            return
        before = shown_boxes(layer)
        if before is None:
            return
        now = before.taken(list(layer.data), features_of(layer))
        now = ShownBoxes(now.known, _axis_of(viewer, layer))
        same = now.axis == before.axis and now.known.to_dict() == before.known.to_dict()
        if same and len(layer.data) == len(now.rectangles()):
            return
        self._drawing = True
        try:
            _redraw(layer, before, now)
        finally:
            self._drawing = False


def _axis_of(viewer: Any, layer: Any) -> int | None:
    """Which axis of a layer is sliced; None in 3D. Flat layers are seen as they are."""
    if layer.ndim < 3:
        return 0
    if viewer.dims.ndisplay == 3:
        return None
    offset = viewer.dims.ndim - layer.ndim
    hidden = [axis - offset for axis in viewer.dims.not_displayed if axis >= offset]
    return hidden[-1] if hidden else 0


def _redraw(layer: Any, before: ShownBoxes, now: ShownBoxes) -> None:
    drawn = now.rectangles()
    chosen = _selected_places(layer, before)
    notes = {**layer.metadata[KEY], **now.notes()}
    if len(layer.data):
        layer.selected_data = set(range(len(layer.data)))
        layer.remove_selected()
    layer.metadata = {**layer.metadata, KEY: notes}
    layer.feature_defaults = feature_defaults(now)
    if drawn:
        corners = [piece.corners[:, -layer.ndim :] for piece in drawn]
        layer.add(
            corners, shape_type="rectangle", edge_width=now.edge_width,
            edge_color=now.colours(drawn), face_color="transparent",
        )  # fmt: skip
        layer.features = now.features(drawn)
        if not before.known.boxes:
            layer.text = TEXT
    if chosen and now.axis == before.axis and now.axis is not None:
        layer.selected_data = {
            row for row, piece in enumerate(drawn)
            if (piece.number, round(piece.corners[0, now.axis])) in chosen
        }  # fmt: skip


def _selected_places(layer: Any, before: ShownBoxes) -> set[tuple[int, int]]:
    """Number and slice of what is selected, for boxes that were there before."""
    drawn = before.rectangles()
    rows = [row for row in layer.selected_data if row < len(drawn)]
    if before.axis is None or len(layer.data) != len(drawn):
        return set()
    return {
        (drawn[row].number, round(drawn[row].corners[0, before.axis])) for row in rows
    }
