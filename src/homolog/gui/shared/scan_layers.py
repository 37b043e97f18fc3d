"""Open scans in the viewer: layers of ours over them, and what changes there. No Qt.

Heat, pins and matches are layers; mouse, slices and visibility are listened to. Layers
never take the selection, keep what the user changed on them (name, colours,
opacity, order), and a layer the user deletes is not put back behind their back.
"""

from __future__ import annotations

import contextlib
from collections.abc import (
    Callable,
    Collection,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from homolog.geometry.affine import Affine, Triple
from homolog.gui.shared.feature_slices import Pin
from homolog.gui.shared.layers import AXIS_LABELS, KEY, UNITS, grid_attributes
from homolog.gui.shared.scans import ExploreControl, Ready, Scan

if TYPE_CHECKING:
    from homolog.gui.shared.hub import Hub

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
        chosen = viewer.layers.selection
        if still == {active}:
            # One event: napari's controls do not turn to nothing in between.
            if changed := set(chosen) ^ still:
                chosen.symmetric_difference_update(changed)
        else:
            chosen.clear()
            chosen.update(still)
            if active in still:
                chosen.active = active


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
        self._heat_on = True
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
                visible=scan.visible and self._heat_on,
            )
            layer.contrast_limits_range = (-1.0, 1.0)
            here = self._viewer.layers.index(layer)
            above = self._viewer.layers.index(scan) + 1
            if here != above:
                self._viewer.layers.move(here, above)

        def follow() -> None:
            layer.visible = scan.visible and self._heat_on

        scan.events.visible.connect(follow)
        self._heat[key] = (layer, scan, follow)
        return layer

    def show_all_heat(self, on: bool) -> None:
        """Out of sight or back, over the scans that are shown."""
        self._heat_on = on
        for _, _, follow in self._heat.values():
            follow()

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
        looks = {
            "size": size_mm / float(step.mean()),
            "symbol": [mark.symbol for mark in marks],
            "border_color": [mark.colour for mark in marks],
            "face_color": [mark.colour + "50" for mark in marks],
        }
        features = {"label": [mark.text for mark in marks]}
        move = 0.4 * size_mm / step
        if layer is None:
            layer = self._new_points(name, data, step_mm, features, looks, move)
            self._points[name] = layer
        else:
            layer.editable = True
            if not np.array_equal(layer.scale, step_mm):
                layer.scale = step_mm
            layer.data = data
            layer.features = features
            for attribute, value in looks.items():
                setattr(layer, attribute, value)
            layer.text.translation = move
            layer.text.refresh(layer.features)
            layer.selected_data = set()
        layer.editable = False  # places are managed in the panel

    def _new_points(
        self, name: str, data: NDArray[np.float64], step: Triple,
        features: dict[str, list[str]], looks: dict[str, Any],
        move: NDArray[np.float64],
    ) -> Any:  # fmt: skip
        """All at once: each attribute that is set later costs a redraw."""
        text = {
            "string": "{label}", "color": _TEXT, "size": 11, "anchor": "upper_left",
            "translation": move,
        }  # fmt: skip
        with selection_kept(self._viewer):
            return self._viewer.add_points(
                data,
                **looks,
                ndim=3,
                name=name,
                scale=step,
                border_width=0.15,
                features=features,
                text=text,
                projection_mode="rescale_spherical",
                units=UNITS,
                axis_labels=AXIS_LABELS,
                metadata={KEY: {"derived": True, "points": name}},
            )

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


# What Explore hears from a viewer: begun and ended as one, whatever went before.
#
# A plain Python object, so that it can end when the panel's widgets are gone already.


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


# Which points stand for the pins in the viewer.


def pin_marks(control: ExploreControl, visible: Collection[str]) -> list[Mark]:
    """The pinned places in scans that are shown.

    Args:
        control: Knows the pins.
        visible: Keys of the scans that are shown.
    """
    marks = []
    for pin in control.pins:
        scan = control.scans.get(pin.scan_key)
        if scan is not None and pin.visible and pin.scan_key in visible:
            place = shown_of(scan.to_true, pin.mm)
            marks.append(Mark(place, _text(pin), pin.symbol, pin.colour))
    return marks


def match_marks(control: ExploreControl, visible: Collection[str]) -> list[Mark]:
    """Where pins were found in other scans that are shown."""
    marks = []
    for pin in control.pins:
        for key, answer in pin.answers.items():
            scan = control.scans.get(key)
            if scan is None or key == pin.scan_key or not pin.visible:
                continue
            if key in visible:
                text = f"{_text(pin)} ({answer.similarity:.2f})"
                place = shown_of(scan.to_true, answer.mm)
                marks.append(Mark(place, text, pin.symbol, pin.colour))
    return marks


def mark_size(scans: Collection[Scan]) -> float:
    """Diameter of points in mm: a thirtieth of the smallest scan's largest side."""
    sides = [float((np.array(s.ref.shape) * s.grid.spacing_mm).max()) for s in scans]
    return min(max(min(sides, default=300.0) / 30, 1.0), 12.0)


def slice_steps(scans: Collection[Scan]) -> Triple:
    """The finest distance of slices (z, y, x) of all scans, mm."""
    if not scans:
        return (1.0, 1.0, 1.0)
    z, y, x = np.min([scan.grid.spacing_mm for scan in scans], axis=0)
    return float(z), float(y), float(x)


def _text(pin: Pin) -> str:
    """Number and name; the name a pin is born with holds the number already."""
    plain = pin.name == f"place {pin.number}"
    return str(pin.number) if plain else f"{pin.number} {pin.name}"


# Going from place to place: slices, camera, and which scan lies in front.


class Travel:
    """Shows scans and places of them.

    Args:
        hub: Of the window.
        control: Knows scans and pins.
        layers: Scan key -> its layer; looked at when needed.
    """

    def __init__(
        self, hub: Hub, control: ExploreControl, layers: Mapping[str, Any]
    ) -> None:
        self._hub, self._control, self._layers = hub, control, layers
        self._stop = 0

    def look_at(self, key: str, mm: Triple | None = None) -> None:
        """Bring a scan to the front, and a place of it to the middle of the canvas.

        Args:
            key: Of the scan.
            mm: True mm; None: the middle of the scan.
        """
        scan, layer = self._control.scans.get(key), self._layers.get(key)
        if scan is None or layer is None:
            self._hub.say("This scan is closed; open it again to go there.")
            return
        place = self._hub.viewer.layers.index
        for other, covering in self._layers.items():
            over = other != key and place(covering) > place(layer)
            if over and covering.visible:
                covering.visible = False
        if not layer.visible:  # napari redraws even if it is set to the same
            layer.visible = True
        selection = self._hub.viewer.layers.selection
        if selection.active is None or selection.active in self._layers.values():
            selection.active = layer
        if mm is None:
            shown = scan.grid.apply((np.array(scan.ref.shape) - 1) / 2)
        else:
            shown = shown_of(scan.to_true, mm)
        go_to(self._hub.viewer, shown)

    def go_on(self) -> None:
        """From one place of the chosen pin to the next: matches, then itself."""
        pin = self._control.pins.current
        if pin is None:
            self._hub.say("Pin a place first: Shift+click on a scan.")
            return
        stops = [(pin.scan_key, pin.mm)]
        stops += [(k, a.mm) for k, a in pin.answers.items() if k != pin.scan_key]
        stops = [stop for stop in stops if stop[0] in self._control.scans]
        if stops:
            self._stop = (self._stop + 1) % len(stops)
            self.look_at(*stops[self._stop])
