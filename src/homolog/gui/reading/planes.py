"""Axial, coronal and sagittal slices at once, through one place.

napari's own canvas stays as it is; two more viewers beside it show the other planes.
Layers there share arrays, windows and visibility with napari's. A click in one view
moves the others; a line across each view shows where the others cut it. Scrolling in
one view draws two lines anew in the others, and slices nothing there.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QEvent, QObject, QPointF, Qt, QTimer, Signal
from qtpy.QtGui import QColor, QPainter, QPen
from qtpy.QtWidgets import QDockWidget, QMainWindow, QSplitter, QVBoxLayout, QWidget

from homolog.gui.reading.orientation import (
    AXIAL,
    CORONAL,
    NAMES,
    SAGITTAL,
    Orientation,
)
from homolog.gui.shared.layers import is_kind, itself
from homolog.gui.shared.threads import soon
from homolog.gui.shared.widgets import DockedFrame, named

TITLE = "Three planes"
# What a layer beside has in common with napari's; each event has the same name.
_LINKED = (
    "visible", "opacity", "contrast_limits", "colormap", "gamma", "blending",
    "interpolation2d", "contour",
)  # fmt: skip
# A press that moved farther than this was a pan.
_STILL_PX = 4.0
# What is written in place (heat, paint, predictions) is drawn anew this late.
_DRAWN_MS = 150
_TAKEN_DOWN_MS = 150
# Line of each plane: Okabe-Ito, told apart by everyone.
_COLOURS = {AXIAL: "#e69f00", CORONAL: "#56b4e9", SAGITTAL: "#009e73"}
_GAP_PX, _EDGE_PX = 10.0, 38.0  # left free: the place itself, the letters


class Mirror:
    """Layers of one viewer shown in another: their arrays, looks and order.

    Args:
        source: napari's viewer.
        model: Of the other view.
    """

    def __init__(self, source: Any, model: Any) -> None:
        self._source, self._model = source, model
        self._pairs: dict[Any, tuple[Any, list[tuple[Any, Any]]]] = {}

    def sync(self) -> None:
        """Show what is open there now, in its order."""
        wanted = [itself(x) for x in self._source.layers if x.ndim == 3]
        for layer in [x for x in self._pairs if x not in wanted]:
            self._drop(layer)
        for layer in wanted:
            if layer not in self._pairs:
                self._add(layer)
        order = [self._pairs[x][0] for x in wanted if x in self._pairs]
        for place, copy in enumerate(order):
            here = self._model.layers.index(copy)
            if here != place:
                self._model.layers.move(here, place)

    def redraw(self, layer: Any) -> None:
        """Show what was written into the array of a layer."""
        found = self._pairs.get(layer)
        if found is None or not layer.visible:
            return
        copy = found[0]
        if is_kind(layer, "Image") or is_kind(layer, "Labels"):
            if copy.data is not layer.data:
                copy.data = layer.data
            else:
                copy.refresh(extent=False, thumbnail=False)
        else:  # points, shapes and the like are few: made anew
            self._drop(layer)
            self._add(layer)

    def close(self) -> None:
        """Let go of all layers."""
        for layer in list(self._pairs):
            self._drop(layer)

    def _add(self, layer: Any) -> None:
        from napari.layers import Layer

        try:
            data, attributes, kind = layer.as_layer_data_tuple()
            copy = Layer.create(data, dict(attributes), kind)
        except Exception:  # noqa: BLE001 - a layer that cannot be copied stays out
            return
        # Before it is shown: else napari makes its controls and thumbnail twice.
        copy.editable = False
        self._model.layers.append(copy)
        links = []
        for name in _LINKED:
            emitter = getattr(layer.events, name, None)
            if emitter is None or not hasattr(copy, name):
                continue
            follow = _follower(layer, copy, name)
            emitter.connect(follow)
            links.append((emitter, follow))
        self._pairs[layer] = (copy, links)

    def _drop(self, layer: Any) -> None:
        copy, links = self._pairs.pop(layer)
        for emitter, follow in links:
            with contextlib.suppress(Exception):
                emitter.disconnect(follow)
        if copy in self._model.layers:
            self._model.layers.remove(copy)


def _follower(layer: Any, copy: Any, name: str) -> Callable[[Any], None]:
    source, target = weakref.ref(layer), weakref.ref(copy)

    def follow(event: Any = None) -> None:
        there, here = source(), target()
        if there is None or here is None:
            return
        value = getattr(there, name)
        with contextlib.suppress(Exception):
            if name == "contrast_limits":
                here.contrast_limits_range = there.contrast_limits_range
            if name in ("colormap",) or getattr(here, name) != value:
                setattr(here, name, value)

    return follow


class CrossLines(QWidget):
    """Two lines over a canvas, where the other planes cut it; never takes the mouse.

    Args:
        canvas: What napari draws on.
        model: Its viewer.
        main: napari's viewer, which knows the place.
    """

    def __init__(self, canvas: QWidget, model: Any, main: Any) -> None:
        super().__init__(canvas)
        self._model, self._main = model, main
        self.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)
        self.setAttribute(Qt.WidgetAttribute.WA_NoSystemBackground)
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.setGeometry(canvas.rect())
        canvas.installEventFilter(self)
        self.show()

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:
        """As large as the canvas."""
        if event is not None and event.type() == QEvent.Type.Resize:
            canvas = self.parentWidget()
            if canvas is not None:
                self.setGeometry(canvas.rect())
        return False

    def paintEvent(self, event: Any) -> None:
        """Lines that leave the place itself free."""
        dims, camera = self._model.dims, self._model.scene.camera
        if dims.ndisplay != 2 or dims.ndim < 3:
            return
        row, column = (int(axis) - dims.ndim + 3 for axis in dims.displayed)
        if min(row, column) < 0:
            return
        point = np.asarray(self._main.dims.point, np.float64)[-3:]
        sign = [
            1 if str(camera.orientation[1]) == "down" else -1,
            1 if str(camera.orientation[2]) == "right" else -1,
        ]
        centre = np.asarray(camera.center, np.float64)[-2:]
        offset = (point[[row, column]] - centre) * camera.zoom * sign
        y, x = self.height() / 2 + offset[0], self.width() / 2 + offset[1]
        painter = QPainter(self)
        low, right_end = self.height() - _EDGE_PX, self.width() - _EDGE_PX
        for axis, ends in (
            (column, ((x, _EDGE_PX, x, y - _GAP_PX), (x, y + _GAP_PX, x, low))),
            (row, ((_EDGE_PX, y, x - _GAP_PX, y), (x + _GAP_PX, y, right_end, y))),
        ):
            painter.setPen(QPen(QColor(_COLOURS[axis]), 1))
            for left, top, right, bottom in ends:
                if left <= right and top <= bottom:
                    painter.drawLine(QPointF(left, top), QPointF(right, bottom))
        painter.end()


class _Clicks:
    """A press and a release at one place of a viewer tell where.

    Args:
        viewer: napari's or a model.
        clicked: Called with the place, shown mm (3,).
    """

    def __init__(
        self, viewer: Any, clicked: Callable[[NDArray[np.float64]], None]
    ) -> None:
        self._viewer, self._clicked = viewer, clicked
        viewer.mouse_drag_callbacks.append(self._press)

    def end(self) -> None:
        """Listen no more."""
        with contextlib.suppress(ValueError):
            self._viewer.mouse_drag_callbacks.remove(self._press)

    def _press(self, viewer: Any, event: Any) -> Generator[None, None, None] | None:
        active = viewer.layers.selection.active
        mode = str(getattr(active, "mode", "pan_zoom"))
        if event.button != 1 or event.modifiers or mode.rpartition(".")[2] not in (
            "pan_zoom", "PAN_ZOOM",
        ):  # fmt: skip
            return None
        return self._release(event)

    def _release(self, event: Any) -> Generator[None, None, None]:
        start = np.array(event.pos, np.float64)
        place = np.array(event.position, np.float64)[-3:]
        yield
        while event.type == "mouse_move":
            yield
        if np.abs(np.array(event.pos, np.float64) - start).max() <= _STILL_PX:
            self._clicked(place)


class _Side:
    """One of the two views beside the canvas."""

    def __init__(
        self,
        source: Any,
        clicked: Callable[[Any], None],
        scrolled: Callable[[_Side], None],
    ) -> None:
        from napari.components import ViewerModel
        from napari.qt import QtViewer

        self.model = ViewerModel()
        self.canvas: Any = QtViewer(self.model)
        self.orientation = Orientation(self.model)
        self.mirror = Mirror(source, self.model)
        self.cross = CrossLines(canvas_in(self.canvas), self.model, source)
        self.clicks = _Clicks(self.model, clicked)
        self._scrolled = scrolled
        self.orientation.begin()

    def moved(self, event: Any = None) -> None:
        self._scrolled(self)

    def close(self) -> None:
        self.clicks.end()
        self.mirror.close()
        self.orientation.end()
        with contextlib.suppress(RuntimeError):  # Qt was faster
            self.canvas.close()
            self.canvas.setParent(None)
            self.canvas.deleteLater()


def canvas_in(widget: QWidget) -> QWidget:
    """What napari draws on, within one of its widgets.

    Raises:
        LookupError: There is none.
    """
    for child in widget.findChildren(QWidget):
        if type(child).__name__ == "CanvasBackendDesktop":
            return child
    raise LookupError("napari's canvas was not found")


class ThreePlanes(QObject):
    """The two views beside napari's canvas, all three linked.

    Signals:
        changed: They were shown or hidden.

    Args:
        viewer: napari's.
        panel: Ours; the views are docked on its left.
    """

    changed = Signal()

    def __init__(self, viewer: Any, panel: QWidget) -> None:
        super().__init__(panel)
        self._viewer, self._panel = viewer, panel
        self._sides: list[_Side] = []
        self._frame: _Frame | None = None
        self._dock: QDockWidget | None = None
        self._cross: CrossLines | None = None
        self._clicks: _Clicks | None = None
        self._moving = False
        self._listed: list[tuple[Any, Any]] = []
        self._written: set[Any] = set()
        self._draw = QTimer(self)
        self._draw.setSingleShot(True)
        self._draw.setInterval(_DRAWN_MS)
        self._draw.timeout.connect(self._redraw)
        self._sync = QTimer(self)
        self._sync.setSingleShot(True)
        self._sync.setInterval(0)
        self._sync.timeout.connect(self._synced)

    @property
    def is_shown(self) -> bool:
        """Whether the three planes are seen."""
        return self._frame is not None

    def letters(self, shown: bool) -> None:
        """Letters of the body in these views, too."""
        for side in self._sides:
            side.orientation.show_letters(shown)

    def show(self) -> None:
        """Open the views beside the canvas."""
        if self.is_shown:
            return
        if self._viewer.dims.ndisplay != 2:
            self._viewer.dims.ndisplay = 2
        self._sides = [
            _Side(self._viewer, self.go_to, self._side_moved) for _ in range(2)
        ]
        self._frame = _Frame([side.canvas for side in self._sides], self.hide)
        self._put_beside()
        window = _window_of(self._panel)
        centre = None if window is None else window.centralWidget()
        if centre is not None:
            self._cross = CrossLines(canvas_in(centre), self._viewer, self._viewer)
        self._clicks = _Clicks(self._viewer, self.go_to)
        self._connect()
        self._synced()
        self._assign()
        soon(self, self._fit, _TAKEN_DOWN_MS)
        self.changed.emit()

    def hide(self) -> None:
        """Take the views away; napari's canvas has the room again."""
        frame, self._frame = self._frame, None
        if frame is None:
            return
        self._disconnect()
        if self._clicks is not None:
            self._clicks.end()
        cross, self._cross, self._clicks = self._cross, None, None
        if cross is not None:
            with contextlib.suppress(RuntimeError):
                cross.setParent(None)
                cross.deleteLater()
        frame.forget()
        for side in self._sides:
            side.close()
        self._sides = []
        if self._dock is not None:
            with contextlib.suppress(Exception):  # the window closes, its docks too
                self._viewer.window.remove_dock_widget(frame)
        with contextlib.suppress(RuntimeError):
            frame.deleteLater()
        self._dock = None
        self._give_back()
        self.changed.emit()

    def go_to(self, shown_mm: NDArray[np.float64]) -> None:
        """Move all views to a place."""
        dims = self._viewer.dims
        first = dims.ndim - 3
        if first < 0:
            return
        dims.set_point(range(first, dims.ndim), [float(v) for v in shown_mm])

    # Links

    def _emitters(self) -> list[tuple[Any, Any]]:
        viewer = self._viewer
        found = [
            (viewer.dims.events.point, self._moved),
            (viewer.dims.events.order, self._turned),
            (viewer.dims.events.ndisplay, self._turned),
            (viewer.layers.events.inserted, self._soon),
            (viewer.layers.events.removed, self._soon),
            (viewer.layers.events.reordered, self._soon),
        ]
        for camera in (viewer, *(side.model for side in self._sides)):
            for name in ("center", "zoom", "orientation"):
                found.append((getattr(camera.scene.camera.events, name), self._drawn))
        for side in self._sides:
            found.append((side.model.dims.events.point, side.moved))
        return found

    def _connect(self) -> None:
        for emitter, function in self._emitters():
            emitter.connect(function)

    def _disconnect(self) -> None:
        for emitter, function in self._emitters():
            with contextlib.suppress(Exception):
                emitter.disconnect(function)
        self._watch([])

    def _soon(self, event: Any = None) -> None:
        self._sync.start()

    def _synced(self) -> None:
        if not self.is_shown:
            return
        empty = not any(side.model.layers for side in self._sides)
        was, self._moving = self._moving, True  # a first layer moves their slices
        for side in self._sides:
            side.mirror.sync()
        self._moving = was
        self._watch([itself(x) for x in self._viewer.layers if x.ndim == 3])
        self._assign()
        if empty:
            self._fit()

    def _watch(self, layers: list[Any]) -> None:
        for emitter, function in self._listed:
            with contextlib.suppress(Exception):
                emitter.disconnect(function)
        self._listed = []
        for layer in layers:
            for name in ("set_data", "labels_update", "paint", "data", "features"):
                emitter = getattr(layer.events, name, None)
                still = is_kind(layer, "Image") and not _is_written(layer)
                if emitter is None or (name == "set_data" and still):
                    continue
                emitter.connect(self._was_written)
                self._listed.append((emitter, self._was_written))

    def _was_written(self, event: Any) -> None:
        self._written.add(itself(event.source))
        self._draw.start()

    def _redraw(self) -> None:
        written, self._written = self._written, set()
        for layer in written:
            for side in self._sides:
                side.mirror.redraw(layer)

    def _moved(self, event: Any = None) -> None:
        """Napari's view moved: the others follow with what they slice."""
        if self._moving or not self.is_shown:
            return
        self._moving = True
        try:
            point = np.asarray(self._viewer.dims.point, np.float64)[-3:]
            for side in self._sides:
                _slice_at(side.model, point)
        finally:
            self._moving = False
        self._drawn()

    def _side_moved(self, side: _Side) -> None:
        dims = side.model.dims
        if self._moving or not self.is_shown or dims.ndim != 3:
            return
        axis = int(dims.not_displayed[0])
        point = np.array(self._viewer.dims.point, np.float64)[-3:]
        point[axis] = dims.point[axis]
        self.go_to(point)

    def _turned(self, event: Any = None) -> None:
        self._assign()

    def _assign(self) -> None:
        """The two planes that napari's canvas does not show."""
        viewer = self._viewer
        first = viewer.dims.ndim - 3
        hidden = [axis - first for axis in viewer.dims.not_displayed if axis >= first]
        main = hidden[0] if hidden else AXIAL
        others = [plane for plane in (AXIAL, CORONAL, SAGITTAL) if plane != main]
        was, self._moving = self._moving, True
        for side, plane in zip(self._sides, others, strict=False):
            if side.orientation.plane != plane:
                side.orientation.look(plane)
            if self._frame is not None:
                self._frame.tell(side.canvas, NAMES[plane])
        self._moving = was
        self._moved()

    def _drawn(self, event: Any = None) -> None:
        for side in self._sides:
            side.cross.update()
        if self._cross is not None:
            self._cross.update()

    def _fit(self) -> None:
        for side in self._sides:
            side.model.reset_view()

    # Docking

    def _put_beside(self) -> None:
        assert self._frame is not None
        window, ours = _window_of(self._panel), _dock_of(self._panel)
        centre = None if window is None else window.centralWidget()
        wide = 500 if centre is None else centre.width()
        self._viewer.window.add_dock_widget(
            self._frame, name=TITLE, area="right", add_vertical_stretch=False
        )
        self._dock = _dock_of(self._frame)
        if self._dock is None or window is None or ours is None or ours.isFloating():
            return
        # Else Qt puts one above the other.
        window.splitDockWidget(self._dock, ours, Qt.Orientation.Horizontal)
        docks, widths = [self._dock, ours], [max(wide * 2 // 5, 200), ours.width()]

        def share() -> None:
            with contextlib.suppress(RuntimeError):  # closed meanwhile
                window.resizeDocks(docks, widths, Qt.Orientation.Horizontal)

        soon(self, share)  # once Qt has laid it out

    def _give_back(self) -> None:
        """The room goes to the canvas, not to our panel."""
        window, ours = _window_of(self._panel), _dock_of(self._panel)
        if window is None or ours is None or ours.isFloating():
            return
        # Weak, so that a window that closes is kept by nothing of ours.
        kept, dock, wide = weakref.ref(window), weakref.ref(ours), ours.width()

        def give() -> None:
            there, panel = kept(), dock()
            if there is not None and panel is not None:
                with contextlib.suppress(RuntimeError):
                    there.resizeDocks([panel], [wide], Qt.Orientation.Horizontal)

        soon(self, give, _TAKEN_DOWN_MS)


class _Frame(DockedFrame):
    """The two canvases, one above the other."""

    def __init__(self, canvases: list[QWidget], closed: Callable[[], None]) -> None:
        super().__init__(closed)
        named(self, TITLE, "The other two planes; a click moves all three")
        split = QSplitter(Qt.Orientation.Vertical)
        for canvas in canvases:
            split.addWidget(canvas)
        split.setSizes([1000] * len(canvases))
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(split)

    def tell(self, canvas: QWidget, plane: str) -> None:
        """Name a canvas for those who do not see it."""
        named(canvas, f"{plane} slices", f"{plane} slices; a click moves all planes")


def _slice_at(model: Any, point: NDArray[np.float64]) -> None:
    """Only where it is another slice: each set slices all of napari's layers."""
    dims = model.dims
    if dims.ndim != 3 or dims.ndisplay != 2:
        return
    hidden = dims.not_displayed[0]
    if not np.isclose(dims.point[hidden], point[hidden], rtol=0, atol=1e-6):
        dims.set_point(hidden, float(point[hidden]))


def _is_written(layer: Any) -> bool:
    """Whether its array changes while it is shown, as a similarity map's does."""
    metadata = getattr(layer, "metadata", {})
    notes = metadata.get("homolog") if isinstance(metadata, dict) else None
    return bool(notes and notes.get("derived"))


def _window_of(panel: QWidget) -> QMainWindow | None:
    place: QWidget | None = panel
    while place is not None and not isinstance(place, QMainWindow):
        place = place.parentWidget()
    return place


def _dock_of(panel: QWidget) -> QDockWidget | None:
    place: QWidget | None = panel
    while place is not None and not isinstance(place, QDockWidget):
        place = place.parentWidget()
    return place
