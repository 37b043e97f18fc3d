"""The layers that Explore adds: heat over each scan, pins and matches. No Qt.

They never take the selection, keep what the user changed on them (name, colours,
opacity, order), and a layer the user deletes is not put back behind their back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.geometry.affine import Affine, Triple
from homolog.gui.explore.scan import Ready
from homolog.gui.files.layer_geometry import KEY
from homolog.gui.files.layer_scan import AXIS_LABELS, UNITS, grid_attributes

PINS, MATCHES = "Pinned places", "Best matches"
# Readable on black, on grey tissue and on bright heat alike.
_TEXT = "#1e90ff"


@dataclass(frozen=True)
class Mark:
    """A point to show.

    Attributes:
        shown_mm: (3,) in the shown world.
        text: Beside it.
        symbol: napari's name.
        colour: ``#rrggbb``.
    """

    shown_mm: NDArray[np.float64]
    text: str
    symbol: str
    colour: str


@contextlib.contextmanager
def selection_kept(viewer: Any) -> Iterator[None]:
    """Adding a layer selects it in napari; here the user's selection stays."""
    selected = set(viewer.layers.selection)
    active = viewer.layers.selection.active
    try:
        yield
    finally:
        still = {layer for layer in selected if layer in viewer.layers}
        viewer.layers.selection.clear()
        viewer.layers.selection.update(still)
        if active in still:
            viewer.layers.selection.active = active


class ExploreLayers:
    """All layers of one Explore panel.

    Args:
        viewer: napari's.
        removed: Called when the user deletes one: ``heat`` and the scan's key, or the
            name of a points layer and "".
    """

    def __init__(self, viewer: Any, removed: Callable[[str, str], None]) -> None:
        self._viewer = viewer
        self._removed = removed
        self._heat: dict[str, tuple[Any, Any, Callable[[], None]]] = {}
        self._points: dict[str, Any] = {}
        viewer.layers.events.removed.connect(self._on_removed)

    def heat(self, key: str) -> Any | None:
        """The heat layer of a scan."""
        found = self._heat.get(key)
        return None if found is None else found[0]

    def add_heat(self, key: str, scan: Any, ready: Ready, low: float) -> Any:
        """A heat layer right above its scan.

        Args:
            key: Of the scan.
            scan: Its layer.
            ready: Its features; the layer shows ``ready.buffer.data``.
            low: Where colours begin.
        """
        attributes = grid_attributes(scan, ready.features.affine)
        attributes["name"] = f"{scan.name} similarity"
        with selection_kept(self._viewer):
            layer = self._viewer.add_image(
                ready.buffer.data,
                **attributes,
                colormap="inferno",
                blending="additive",
                opacity=0.7,
                interpolation2d="linear",
                contrast_limits=(low, 1.0),
                visible=scan.visible,
            )
            layer.contrast_limits_range = (-1.0, 1.0)
            here = self._viewer.layers.index(layer)
            above = self._viewer.layers.index(scan) + 1
            if here != above:
                self._viewer.layers.move(here, above)

        def follow() -> None:
            layer.visible = scan.visible

        scan.events.visible.connect(follow)
        self._heat[key] = (layer, scan, follow)
        return layer

    def drop_heat(self, key: str) -> None:
        """Remove the heat layer of a scan, if there is one."""
        found = self._heat.pop(key, None)
        if found is not None:
            layer, scan, follow = found
            scan.events.visible.disconnect(follow)
            self._remove(layer)

    def set_range(self, low: float) -> None:
        """Colours of all heat layers begin at another similarity."""
        for layer, _, _ in self._heat.values():
            layer.contrast_limits = (min(low, 0.999), 1.0)

    def redraw(self, key: str) -> None:
        """Show what was written into a heat layer's array."""
        layer = self.heat(key)
        if layer is not None and layer.visible:
            layer.refresh(extent=False, thumbnail=False)

    def show_marks(
        self, name: str, marks: Sequence[Mark], size_mm: float, step_mm: Triple
    ) -> None:
        """Put points into the layer ``name``; without any, the layer goes.

        Args:
            name: PINS or MATCHES.
            marks: What to show.
            size_mm: Diameter.
            step_mm: Slice distances (z, y, x) of the scans; a layer of another scale
                would change the steps of napari's sliders.
        """
        layer = self._points.get(name)
        if not marks:
            if layer is not None:
                del self._points[name]
                self._remove(layer)
            return
        step = np.array(step_mm)
        data = np.array([mark.shown_mm for mark in marks]) / step
        size = size_mm / float(step.mean())
        texts = [mark.text for mark in marks]
        if layer is None:
            with selection_kept(self._viewer):
                layer = self._viewer.add_points(
                    data,
                    ndim=3,
                    name=name,
                    size=size,
                    scale=step_mm,
                    border_width=0.15,
                    features={"label": texts},
                    text={
                        "string": "{label}",
                        "color": _TEXT,
                        "size": 11,
                        "anchor": "upper_left",
                    },
                    projection_mode="rescale_spherical",
                    units=UNITS,
                    axis_labels=AXIS_LABELS,
                    metadata={KEY: {"derived": True, "points": name}},
                )
            self._points[name] = layer
        else:
            layer.editable = True
            layer.scale = step_mm
            layer.data = data
            layer.features = {"label": texts}
        layer.size = size
        layer.text.translation = 0.4 * size_mm / step
        layer.symbol = [mark.symbol for mark in marks]
        layer.border_color = [mark.colour for mark in marks]
        layer.face_color = [mark.colour + "50" for mark in marks]
        layer.text.refresh(layer.features)
        layer.selected_data = set()
        layer.editable = False  # places are managed in the panel
        layer.refresh()

    def close(self) -> None:
        """Remove all our layers and listen no more."""
        self._viewer.layers.events.removed.disconnect(self._on_removed)
        for key in list(self._heat):
            self.drop_heat(key)
        for name in list(self._points):
            self.show_marks(name, [], 1.0, (1.0, 1.0, 1.0))

    def _remove(self, layer: Any) -> None:
        if layer in self._viewer.layers:
            with selection_kept(self._viewer):
                self._viewer.layers.remove(layer)

    def _on_removed(self, event: Any) -> None:
        for key, (layer, scan, _) in list(self._heat.items()):
            if scan == event.value:
                self.drop_heat(key)
            elif layer == event.value:
                self.drop_heat(key)
                self._removed("heat", key)
        for name, layer in list(self._points.items()):
            if layer == event.value:
                del self._points[name]
                self._removed(name, "")


def slice_axis(viewer: Any) -> int | None:
    """The world axis (0 z, 1 y, 2 x) a 2D view looks along; None in any other view."""
    first = viewer.dims.ndim - 3
    hidden = [axis - first for axis in viewer.dims.not_displayed if axis >= first]
    if viewer.dims.ndisplay != 2 or first < 0 or len(hidden) != 1:
        return None
    return int(hidden[0])


def point_of(viewer: Any) -> NDArray[np.float64]:
    """Shown mm (3,) of the displayed slices."""
    return np.asarray(viewer.dims.point, np.float64)[-3:]


def go_to(viewer: Any, shown_mm: NDArray[np.float64]) -> None:
    """Show a place: slices through it, and the middle of the canvas on it."""
    dims = viewer.dims
    first = dims.ndim - 3
    dims.set_point(range(first, dims.ndim), [float(v) for v in shown_mm])
    place = {first + i: float(v) for i, v in enumerate(shown_mm)}
    centre = tuple(place.get(axis, 0.0) for axis in dims.displayed)
    viewer.scene.camera.center = centre if len(centre) == 3 else (0.0, *centre)


def shown_of(to_true: Affine, mm: Sequence[float]) -> NDArray[np.float64]:
    """True mm -> shown mm of a scan."""
    shown: NDArray[np.float64] = to_true.inverse().apply(np.asarray(mm, np.float64))
    return shown
