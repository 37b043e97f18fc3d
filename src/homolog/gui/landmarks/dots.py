"""Landmarks as points in a viewer; only what changed is told to napari. No Qt.

Each attribute of a points layer that is set costs a redraw, so nothing is set twice;
and the layer stays when it is empty, since removing one collects garbage for long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from homolog.geometry.affine import Triple
from homolog.gui.explore.layers import Mark, selection_kept
from homolog.gui.files.layer_geometry import KEY
from homolog.gui.files.layer_scan import AXIS_LABELS, UNITS

_TEXT = "#1e90ff"  # readable on black and on grey tissue


class Dots:
    """One points layer.

    Args:
        viewer: napari's, or a model.
        name: Of the layer.
        removed: Called when the user deletes the layer.
    """

    def __init__(
        self, viewer: Any, name: str, removed: Callable[[], None] = lambda: None
    ) -> None:
        self._viewer, self._name, self._removed = viewer, name, removed
        self._layer: Any | None = None
        self._shown: dict[str, Any] = {}
        viewer.layers.events.removed.connect(self._on_removed)

    def show(self, marks: Sequence[Mark], size_mm: float, step: Triple) -> None:
        """Show these points and no others.

        Args:
            marks: Where, with text, symbol and colour.
            size_mm: Diameter.
            step: Slice distances (z, y, x); a layer of another scale would change the
                steps of napari's sliders.
        """
        if self._layer is None:
            if not marks:
                return
            self._make(step)
        layer, steps = self._layer, np.array(step)
        assert layer is not None
        places = np.array([m.shown_mm for m in marks]).reshape(-1, 3) / steps
        texts = [m.text for m in marks]
        if self._is_new("scale", tuple(step)):
            layer.scale = step
        if self._is_new("data", places.tolist()):
            layer.data = places
            layer.selected_data = set()
            for name in ("size", "symbol", "colour", "text"):
                self._shown.pop(name, None)  # napari fills new points by itself
        if not marks:
            return
        size = size_mm / float(steps.mean())
        if self._is_new("text", texts):
            layer.features = {"label": texts}
            layer.text.refresh(layer.features)
        if self._is_new("size", size):
            layer.size = size
        if self._is_new("symbol", [m.symbol for m in marks]):
            layer.symbol = [m.symbol for m in marks]
        if self._is_new("colour", [m.colour for m in marks]):
            layer.border_color = [m.colour for m in marks]
            layer.face_color = [m.colour + "50" for m in marks]

    def close(self) -> None:
        """Remove the layer and listen no more."""
        self._viewer.layers.events.removed.disconnect(self._on_removed)
        layer, self._layer = self._layer, None
        if layer is not None and layer in self._viewer.layers:
            with selection_kept(self._viewer):
                self._viewer.layers.remove(layer)

    def _make(self, step: Triple) -> None:
        with selection_kept(self._viewer):
            self._layer = self._viewer.add_points(
                np.empty((0, 3)),
                ndim=3,
                name=self._name,
                scale=step,
                border_width=0.15,
                features={"label": np.empty(0, "<U8")},
                text={
                    "string": "{label}", "color": _TEXT, "size": 11,
                    "anchor": "upper_left",
                },
                projection_mode="rescale_spherical",
                units=UNITS,
                axis_labels=AXIS_LABELS,
                metadata={KEY: {"derived": True, "points": self._name}},
            )  # fmt: skip
            self._layer.editable = False  # places are managed in the panel
        self._shown = {"scale": tuple(step)}

    def _is_new(self, name: str, value: Any) -> bool:
        """Whether a value is another than the one shown; it counts as shown now."""
        if name in self._shown and self._shown[name] == value:
            return False
        self._shown[name] = value
        return True

    def _on_removed(self, event: Any) -> None:
        if self._layer is not None and event.value == self._layer:
            self._layer, self._shown = None, {}
            self._removed()
