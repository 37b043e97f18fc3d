"""A second viewer beside napari's own: another scan with slices of its own."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import (
    QDockWidget,
    QLabel,
    QMainWindow,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from homolog.geometry.affine import Triple
from homolog.gui.shared import widgets
from homolog.gui.shared.layers import AXIS_LABELS, KEY, UNITS, shown_affine
from homolog.gui.shared.scan_layers import Hearer, Listening, Mark, selection_kept
from homolog.gui.shared.scans import Scan
from homolog.gui.shared.threads import soon

# A cross at the chosen place: lines along the axes that leave the place itself free.
#
# No Qt. Works on napari's viewer and on a ``ViewerModel`` alike.


CROSS = "Cross"
_COLOUR = "#f0e442"
_GAP, _REACH, _WIDTH = 1.2, 3.5, 0.25  # in sizes of a mark


class Cross:
    """The cross of one viewer; a deleted one comes back with the next place.

    Args:
        viewer: napari's, or a model.
    """

    def __init__(self, viewer: Any) -> None:
        self._viewer = viewer
        self._layer: Any | None = None
        self._step: Triple | None = None

    def show(
        self, shown_mm: NDArray[np.float64], size_mm: float, step: Triple, scan: Scan
    ) -> None:
        """Put it at a place.

        Args:
            shown_mm: (3,).
            size_mm: Diameter of the marks.
            step: Slice distances (z, y, x); the layer must not change the sliders'.
            scan: Lines end at its border, else sliders would reach beyond it.
        """
        steps = np.array(step)
        lines = within(cross_lines(shown_mm, size_mm, step), scan) / steps
        if self._layer is None or self._layer not in self._viewer.layers:
            with selection_kept(self._viewer):
                self._layer = self._viewer.add_vectors(
                    lines,
                    name=CROSS,
                    edge_color=_COLOUR,
                    vector_style="line",
                    edge_width=_WIDTH * size_mm / float(steps.mean()),
                    scale=step,
                    units=UNITS,
                    axis_labels=AXIS_LABELS,
                    metadata={KEY: {"derived": True, "points": CROSS}},
                )
            self._step = step
            return
        if step != self._step:
            self._step = step
            self._layer.scale = step
        self._layer.data = lines
        if not self._layer.visible:  # napari redraws even if it is set to the same
            self._layer.visible = True

    def hide(self) -> None:
        """Out of sight; removing a layer would cost napari a long while."""
        if self._layer is not None and self._layer.visible:
            self._layer.visible = False

    def close(self) -> None:
        """Take it away."""
        layer, self._layer = self._layer, None
        if layer is not None and layer in self._viewer.layers:
            with selection_kept(self._viewer):
                self._viewer.layers.remove(layer)


def cross_lines(
    shown_mm: NDArray[np.float64], size_mm: float, step: Triple
) -> NDArray[np.float64]:
    """(36, 2, 3): start and vector of lines, mm; four in every plane through a place.

    A viewer's slice may lie up to half a step beside the place, and napari shows a line
    only in the slice nearest to its start: so each is drawn in three planes.
    """
    lines = []
    for hidden in range(3):
        for beside in (-0.45, 0.0, 0.45):
            middle = shown_mm.copy()
            middle[hidden] += beside * step[hidden]
            for axis in (a for a in range(3) if a != hidden):
                for sign in (-1.0, 1.0):
                    along = np.zeros(3)
                    along[axis] = sign * size_mm
                    lines.append((middle + along * _GAP, along * (_REACH - _GAP)))
    return np.array(lines)


def within(lines: NDArray[np.float64], scan: Scan) -> NDArray[np.float64]:
    """Lines (N, 2, 3) cut where a scan ends."""
    low = scan.grid.apply(np.zeros(3))
    high = scan.grid.apply(np.array(scan.ref.shape) - 1.0)
    start = np.clip(lines[:, 0], low, high)
    end = np.clip(lines[:, 0] + lines[:, 1], low, high)
    return np.stack([start, end - start], axis=1)


# Landmarks as points in a viewer; only what changed is told to napari. No Qt.
#
# Each attribute of a points layer that is set costs a redraw, so nothing is set twice;
# and the layer stays when it is empty, since removing one collects garbage for long.


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


# Mouse in both viewers: picking in A, dragging in B. Panning and zooming stay.


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


# How large two scans are shown side by side. No Qt.


# Of the canvas that the larger of two bodies takes, along its tighter side.
_FILLED = 0.95
# A body is looked for among this many voxels along an axis, and begins where this share
# of a plane across is no air: a wire is not enough.
_LOOKED_AT, _BODY_SHARE = 64, 0.03


def body_box(layer: Any) -> NDArray[np.float64]:
    """(2, 3): lowest and highest edge (z, y, x) of what is no air, in shown mm.

    What is darker than the layer's window counts as air; all of the scan where nothing,
    or everything, does.
    """
    shape = np.array(layer.data.shape[-3:])
    steps = np.maximum(shape // _LOOKED_AT, 1)
    z, y, x = (slice(int(s) // 2, None, int(s)) for s in steps)
    bright = np.asarray(layer.data[z, y, x]) > float(layer.contrast_limits[0])
    box = np.stack([np.zeros(3), shape.astype(np.float64)])
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        there = np.flatnonzero(bright.mean(axis=others) > _BODY_SHARE)
        if len(there):
            box[:, axis] = there[0] * steps[axis], (there[-1] + 1) * steps[axis]
    box = np.minimum(box, shape)
    corners = np.stack(np.meshgrid(*box.T, indexing="ij"), -1).reshape(-1, 3) - 0.5
    placed = shown_affine(layer).apply(corners)
    return np.stack([placed.min(axis=0), placed.max(axis=0)])


def fill_both(sides: Sequence[tuple[Any, Any]]) -> float:
    """Show scans so that a millimetre is as long in all, and all bodies fill and fit.

    Args:
        sides: Each a viewer and the scan's layer that it shows.

    Returns:
        The zoom of all, pixels of the canvas a millimetre.
    """
    zooms = []
    for viewer, layer in sides:
        shown = [axis - (viewer.dims.ndim - 3) for axis in viewer.dims.displayed[-2:]]
        size = np.ptp(body_box(layer), axis=0)[shown]
        room = np.asarray(viewer.canvas.viewbox_size(viewer.layers), np.float64)
        zooms.append(float((room / np.maximum(size, 1e-6)).min()))
    zoom = _FILLED * min(zooms)
    for viewer, _ in sides:
        viewer.scene.camera.zoom = zoom
    return zoom


TITLE = "Scan B"
# The window is laid out in several steps; and a zoom this much off is the user's.
_SIZED_MS, _ZOOMED = 80, 0.02
# napari deletes a dock a while after it was closed.
_TAKEN_DOWN_MS = 150


class SecondView:
    """A ``ViewerModel`` in a ``QtViewer``, docked between the canvas and our panel.

    A docked widget gets no close event (``anchors/napari.md`` 0.4), so whoever opened
    it calls ``close``: when its panel goes and before the window closes.

    Args:
        viewer: napari's main viewer.
        panel: Our panel; the view is docked on its left.
        closed: Called when the user closes its dock.

    Attributes:
        sized: Called when its canvas has another size.
    """

    def __init__(
        self, viewer: Any, panel: QWidget, closed: Callable[[], None] = lambda: None
    ) -> None:
        from napari.components import ViewerModel
        from napari.qt import QtViewer

        self._main = viewer
        self._dock: QDockWidget | None = None
        self._window: QMainWindow | None = None
        self._ours: QDockWidget | None = None
        self._widths = (250, 340)
        self._zoom: float | None = None
        self.sized: Callable[[], Any] = lambda: None
        self.model = ViewerModel(title=TITLE)
        self._canvas: Any = QtViewer(self.model)
        self.widget = _Frame(self._canvas, closed)
        self._put_beside(panel)
        self.model.canvas.overlays.scale_bar.visible = True
        self._later = QTimer(self.widget)  # both canvases have their size by then
        self._later.setSingleShot(True)
        self._later.setInterval(_SIZED_MS)
        self._later.timeout.connect(self._tell_size)
        self.model.canvas.events.size.connect(self._resized)

    def fill(self, own: Any, beside: Any) -> bool:
        """Both scans as large as both views allow; see ``fill_both``.

        Args:
            own: The layer that the main viewer shows.
            beside: The one shown here.

        Returns:
            False where the user has zoomed meanwhile: nothing is done then.
        """
        now = float(self.model.scene.camera.zoom)
        if self._zoom is not None and abs(now - self._zoom) > _ZOOMED * now:
            return False
        self.model.reset_view()
        self._zoom = fill_both([(self._main, own), (self.model, beside)])
        return True

    def fill_anew(self) -> None:
        """Another scan is shown: it is fitted, however the last one was zoomed."""
        self._zoom = None
        self._later.start()

    def _tell_size(self) -> None:
        self.sized()

    def _resized(self, event: Any = None) -> None:
        with contextlib.suppress(RuntimeError):  # the view is gone
            self._later.start()

    @property
    def is_open(self) -> bool:
        """Whether the user has not closed its dock, and we have not either."""
        return self._canvas is not None and self._dock is not None

    @property
    def is_visible(self) -> bool:
        """Whether it can be seen."""
        if self._dock is None:
            return False
        try:
            return bool(self._dock.isVisible())
        except RuntimeError:  # deleted with the window
            return False

    def show(self) -> None:
        """Bring it back where the user hid it."""
        if self._dock is not None and not self._dock.isVisible():
            self._dock.setVisible(True)
            soon(self.widget, self._share)

    def hide(self) -> None:
        """Take it out of sight; what it shows stays."""
        if self._dock is not None and self._dock.isVisible():
            if self._ours is not None:
                self._widths = (self._dock.width(), self._ours.width())
            self._dock.setVisible(False)
            soon(self.widget, self._give_back)

    def tell(self, text: str) -> None:
        """A line above the canvas: which scan this is."""
        self.widget.name.setText(text)
        self.widget.name.setToolTip(text)

    def close(self) -> None:
        """Give everything back: layers, canvas, dock. A second call does nothing."""
        canvas, self._canvas = self._canvas, None
        if canvas is None:
            return
        dock, self._dock = self._dock, None
        self.widget.forget()
        self.model.layers.clear()
        with contextlib.suppress(RuntimeError):  # Qt was faster
            canvas.close()
            self.widget.layout().removeWidget(canvas)
            canvas.setParent(None)
            canvas.deleteLater()
        if dock is not None:
            with contextlib.suppress(Exception):  # the window closes, its docks too
                self._main.window.remove_dock_widget(self.widget)
        with contextlib.suppress(RuntimeError):
            self.widget.deleteLater()
        if self._window is None or self._ours is None:
            return
        # Weak, so that a window that closes is kept by nothing of ours.
        window, ours = weakref.ref(self._window), weakref.ref(self._ours)
        wide = self._widths[1]
        self._window = self._ours = None
        QTimer.singleShot(_TAKEN_DOWN_MS, lambda: _give(window(), ours(), wide))

    def _put_beside(self, panel: QWidget) -> None:
        window, ours = _docked_in(panel)
        centre = None if window is None else window.centralWidget()
        canvas = 500 if centre is None else centre.width()
        self._main.window.add_dock_widget(
            self.widget, name=TITLE, area="right", add_vertical_stretch=False
        )
        _, dock = _docked_in(self.widget)
        self._dock = dock
        if dock is None or window is None or ours is None or ours.isFloating():
            return
        # Else Qt puts one above the other.
        window.splitDockWidget(dock, ours, Qt.Orientation.Horizontal)
        # One less than half: what is too much, Qt would take from our panel, too.
        self._widths = (max(canvas // 2, 200) - 1, ours.width())
        self._window, self._ours = window, ours
        soon(self.widget, self._share)  # once Qt has laid it out

    def _share(self) -> None:
        """Both scans get half of what the canvas had."""
        if self._dock is None or self._window is None or self._ours is None:
            return
        with contextlib.suppress(RuntimeError):  # closed meanwhile
            self._window.resizeDocks(
                [self._dock, self._ours], list(self._widths), Qt.Orientation.Horizontal
            )

    def _give_back(self) -> None:
        """Its width goes to the canvas, not to our panel."""
        _give(self._window, self._ours, self._widths[1])


def _give(window: QMainWindow | None, dock: QDockWidget | None, wide: int) -> None:
    if window is not None and dock is not None:
        with contextlib.suppress(RuntimeError):  # the window is gone
            window.resizeDocks([dock], [wide], Qt.Orientation.Horizontal)


class _Frame(widgets.DockedFrame):
    """The canvas with a line of text above."""

    def __init__(self, canvas: QWidget, closed: Callable[[], None]) -> None:
        super().__init__(closed)
        widgets.named(self, TITLE, "The second scan, with slices of its own")
        self.name = widgets.named(QLabel("B"), "Scan shown in the second view", "")
        self.name.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.name.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        column = QVBoxLayout(self)
        column.setContentsMargins(2, 2, 2, 2)
        column.setSpacing(2)
        column.addWidget(self.name)
        column.addWidget(canvas, 1)


def _docked_in(panel: QWidget) -> tuple[QMainWindow | None, QDockWidget | None]:
    place: QWidget | None = panel
    dock = None
    while place is not None and not isinstance(place, QMainWindow):
        dock = place if isinstance(place, QDockWidget) else dock
        place = place.parentWidget()
    return place, dock
