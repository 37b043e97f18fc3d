"""Explore at work: mouse and slices in, heat and points out. Decides nothing itself.

What is meant by a position, what is asked and what is told is in ``explore_control``;
here its answers reach napari's layers, and slow work goes to threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QObject, QTimer, Signal
from superqt.utils import QSignalThrottler

from homolog.geometry.affine import Triple
from homolog.gui.explore.control import ExploreControl
from homolog.gui.explore.drawing import HeatDrawing
from homolog.gui.explore.features import FeatureWork
from homolog.gui.explore.layers import (
    MATCHES,
    PINS,
    ExploreLayers,
    point_of,
    slice_axis,
)
from homolog.gui.explore.listening import Listening
from homolog.gui.explore.marks import mark_size, match_marks, pin_marks, slice_steps
from homolog.gui.explore.pins import Pin
from homolog.gui.explore.scan import Scan, open_scans
from homolog.gui.explore.travel import Travel
from homolog.gui.hub import Hub
from homolog.gui.learn.model_choice import ModelChoice

HOVER_MS = 33
REST_MS = 150


class Explorer(QObject):
    """Joins a viewer with the control of Explore.

    Signals:
        scans_changed: Scans came or went, or another encoder was chosen.
        scan_changed: One scan's state; its key.
        pins_changed: Pins or their answers.
        told: What is under the cursor, or "".
        hint_changed: What to tell the user may be another.
    """

    scans_changed = Signal()
    scan_changed = Signal(str)
    pins_changed = Signal()
    told = Signal(str)
    hint_changed = Signal()

    def __init__(self, hub: Hub, parent: QObject) -> None:
        super().__init__(parent)
        self.hub, self.viewer = hub, hub.viewer
        self.control = ExploreControl(engine_missing=tuple(hub.engine_missing()))
        self.layers = ExploreLayers(self.viewer, self._layer_removed)
        self.work = FeatureWork(hub, self.control, self)
        self.work.changed.connect(self._scan_changed)
        self.work.ready.connect(self._scan_ready)
        self.position: NDArray[np.float64] | None = None
        self.over: bool | None = None
        self.show_points = True
        self._scan_layers: dict[str, Any] = {}
        self.travel = Travel(hub, self.control, self._scan_layers)
        self.drawing = HeatDrawing(hub, self.control, self.layers, self)
        self.drawing.drawn.connect(self._read_out)
        self.drawing.answered.connect(self.pins_told)
        self._words = ""
        self._throttle = QSignalThrottler(parent=self)
        self._throttle.setTimeout(HOVER_MS)
        self._throttle.triggered.connect(self.hover)
        self._rest = QTimer(self)
        self._rest.setSingleShot(True)
        self._rest.setInterval(REST_MS)
        self._rest.timeout.connect(self.rested)
        self.listening = Listening(self.viewer, self)

    # Scans and encoders

    def choose(self, encoder: ModelChoice | None) -> None:
        """Explore with another encoder."""
        if not self.control.choose_encoder(encoder):
            return
        self.work.cancel_all()
        for key in self.control.scans:
            self.layers.drop_heat(key)
        for key, layer in self._scan_layers.items():
            self.work.look(key, layer)
        self.refresh_marks()
        self.scans_changed.emit()

    def sync(self) -> None:
        """Look at the viewer's layers anew: which scans are open."""
        layers, scans = open_scans(self.viewer.layers)
        new, gone = self.control.set_scans(scans)
        self._scan_layers.clear()
        self._scan_layers.update(layers)
        self.listening.watch_visible(layers.values())
        for key in [*gone, *(scan.key for scan in new)]:
            self.layers.drop_heat(key)
            self.work.forget(key)
        for scan in new:
            self.work.look(scan.key, layers[scan.key])
        if new or gone:
            self.refresh_marks()
            self.scans_changed.emit()

    def look_again(self) -> None:
        """Features may have been computed elsewhere."""
        for key, scan in self.control.scans.items():
            if scan.state in ("none", "failed"):
                scan.state = "looking"
                self.work.look(key, self._scan_layers[key])
        self.scans_changed.emit()

    def layer_of(self, key: str) -> Any | None:
        """The layer of a scan."""
        return self._scan_layers.get(key)

    def show_heat(self, key: str, shown: bool) -> None:
        """Whether a scan's heat is wanted."""
        scan = self.control.scans.get(key)
        if scan is None:
            return
        scan.shown = shown
        if not shown:
            self.layers.drop_heat(key)
        elif scan.ready is not None and self.layers.heat(key) is None:
            layer = self._scan_layers[key]
            self.layers.add_heat(key, layer, scan.ready, self.control.low)
            self.drawing.draw()

    # Mouse

    def moved(self, position: Any) -> None:
        """The mouse moved over the canvas; 30 times a second at most we act on it."""
        place = np.array(position, np.float64)[-3:]
        if len(place) == 3:
            self.position = place
            self._throttle.throttle()

    def left(self) -> None:
        """The mouse left the canvas: back to the chosen pin."""
        self._rest.stop()
        self.position, self.over = None, None
        self._tell("")
        if self.control.pins.current is not None:
            self.show_pin(self.control.pins.chosen)

    def hover(self) -> None:
        """Ask what is under the mouse, and show the answer in the displayed slice."""
        if self.position is None or not self.control.ready():
            return
        scan = self._scan_under()
        if self.over != (scan is not None):
            self.over = scan is not None
            self.hint_changed.emit()
        if scan is None:
            self._tell("")
            return
        if self.control.hover and self.control.ask(scan, self.position) is not None:
            self.drawing.new_query()
            self._rest.start()
            self.drawing.draw()
        else:
            self._read_out()

    def rested(self) -> None:
        """The mouse rests: the whole map of what is under it."""
        query = self.control.query
        if query is not None and query.pin is None:
            self.drawing.ask_hovered(query)

    def pressed(self, position: Any) -> None:
        """Shift and a click."""
        place = np.array(position, np.float64)[-3:]
        if len(place) == 3:
            self.position = place
        self.pin_here()

    def sliced(self) -> None:
        """Another slice or another view of it."""
        axis, query = slice_axis(self.viewer), self.control.query
        if axis is None:
            self._rest.stop()
            self._tell("")
            self.drawing.redraw_whole()
        else:
            if self.position is not None:
                self.position[axis] = point_of(self.viewer)[axis]
            if self.position is not None and (query is None or query.pin is None):
                self._throttle.throttle()  # another place is under the mouse now
            self.drawing.draw()
        self.hint_changed.emit()

    def scan_shown(self) -> None:
        """A scan was shown or hidden: its points come or go, its heat is drawn."""
        self.refresh_marks()
        self.drawing.draw()

    # Pins

    def pin_here(self) -> Pin | None:
        """Keep the place under the mouse, or the last one that was asked about."""
        query = self.control.query
        if self.position is not None:
            scan = self._scan_under()
            query = None
            if scan is not None:
                query = self.control.ask(scan, self.position)
        if query is None or query.scan_key not in self.control.scans:
            self.hub.say(self.control.hint(self.viewer.dims.ndisplay, over=False).text)
            return None
        pin = self.control.pin(query)
        self.show_pin(pin.number)
        return pin

    def show_pin(self, number: int | None) -> None:
        """Show a pin's map in every scan with features."""
        self.control.pins.chosen = number
        pin = self.control.pins.get(number)
        query = self.control.query_of_pin(pin)
        self._rest.stop()
        if query is not None and pin is not None:
            self.control.query = query
            self.drawing.ask_pin(query, pin)
        self.pins_told()

    def delete_pin(self, number: int) -> None:
        """Forget a pin; its neighbour's map is shown."""
        self.control.pins.delete(number)
        query = self.control.query
        if query is not None and query.pin == number:
            self.control.query = None
            self.drawing.clear()
        self.show_pin(self.control.pins.chosen)

    def look_at(self, key: str, mm: Triple | None = None) -> None:
        """See ``Travel.look_at``; what was under the mouse is there no more."""
        self._rest.stop()
        self.position = None
        self.travel.look_at(key, mm)

    def go_on(self) -> None:
        """See ``Travel.go_on``."""
        self._rest.stop()
        self.position = None
        self.travel.go_on()

    def toggle_heat(self) -> None:
        """Show or hide all heat layers."""
        on = not any(self.layers.heat(key) for key in self.control.scans)
        for key in self.control.scans:
            self.show_heat(key, on)
            self.scan_changed.emit(key)

    def set_range(self, low: float, high: float) -> None:
        """What is lit, and what labels are made from."""
        self.control.low, self.control.high = low, high
        self.layers.set_range(low)
        self.drawing.redraw_whole()

    def refresh_marks(self) -> None:
        """Points of pins and matches as the control has them."""
        visible = [k for k, layer in self._scan_layers.items() if layer.visible]
        shown = visible if self.show_points else []
        scans = self.control.scans.values()
        size, step = mark_size(scans), slice_steps(scans)
        self.layers.show_marks(PINS, pin_marks(self.control, shown), size, step)
        self.layers.show_marks(MATCHES, match_marks(self.control, shown), size, step)

    def end(self) -> None:
        """The panel goes: workers of ours end."""
        self._rest.stop()
        self.work.cancel_all()

    def pins_told(self) -> None:
        """Pins were renamed, hidden or answered: points and tables follow."""
        self.refresh_marks()
        self._read_out()
        self.pins_changed.emit()

    def _scan_ready(self, key: str) -> None:
        scan, layer = self.control.scans.get(key), self._scan_layers.get(key)
        if scan is None or scan.ready is None or layer is None:
            return
        if scan.shown and self.layers.heat(key) is None:
            try:
                self.layers.add_heat(key, layer, scan.ready, self.control.low)
            except ValueError as error:
                self.control.scans[key].ready = None
                self.control.failed([key], str(error))
        self.layers.set_range(self.control.low)
        if self.control.pins.current is not None:
            self.show_pin(self.control.pins.chosen)
        self.scan_changed.emit(key)
        self.hint_changed.emit()

    def _scan_changed(self, key: str) -> None:
        self.scan_changed.emit(key)
        self.hint_changed.emit()

    def _layer_removed(self, kind: str, key: str) -> None:
        """The user deleted one of our layers: it is not put back unasked."""
        if kind == "heat":
            scan = self.control.scans.get(key)
            if scan is not None:
                scan.shown = False
                self.scan_changed.emit(key)
        else:
            self.show_points = False
            self.refresh_marks()
            self.pins_changed.emit()

    def _scan_under(self) -> Scan | None:
        if self.position is None or slice_axis(self.viewer) is None:
            return None
        return self.control.under(self.position, self._order(), self._active())

    def _order(self) -> list[str]:
        """Keys of visible scans, topmost first."""
        keys = [str(layer.unique_id) for layer in self.viewer.layers if layer.visible]
        return [key for key in reversed(keys) if key in self._scan_layers]

    def _active(self) -> str | None:
        """Key of the selected scan, or of the scan whose heat is selected."""
        active = self.viewer.layers.selection.active
        for key, layer in self._scan_layers.items():
            if active is not None and active in (layer, self.layers.heat(key)):
                return key
        return None

    def _read_out(self) -> None:
        scan = self._scan_under()
        words = ""
        if scan is not None and self.position is not None:
            words = self.control.readout(self.position, scan)
        self._tell(words)

    def _tell(self, words: str) -> None:
        if words != self._words:
            self._words = words
            self.told.emit(words)
            self.listening.set_words(words)
