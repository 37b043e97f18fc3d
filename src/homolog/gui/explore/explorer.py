"""Explore at work: mouse and slices in, heat and points out. Decides nothing itself.

What is meant by a position, what is asked and what is told is in ``explore_control``;
here its answers reach napari's layers, and slow work goes to threads.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QObject, QTimer, Signal
from superqt.utils import QSignalThrottler

from homolog.features.files import read_card
from homolog.geometry.affine import Triple
from homolog.gui.shared.choices import ModelChoice
from homolog.gui.shared.feature_slices import Answer, Cut, Pin
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.layers import (
    KEY,
    derived_attributes,
    grid_attributes,
    scan_file,
)
from homolog.gui.shared.model_row import FeatureWork
from homolog.gui.shared.scan_layers import (
    MATCHES,
    PINS,
    ExploreLayers,
    Listening,
    Travel,
    mark_size,
    match_marks,
    pin_marks,
    point_of,
    selection_kept,
    slice_axis,
    slice_steps,
)
from homolog.gui.shared.scans import (
    ExploreControl,
    Latest,
    Query,
    Ready,
    Scan,
    answer_of,
    find_card,
    labels_of,
    open_scans,
)
from homolog.gui.shared.threads import Helper, in_background
from homolog.words import counted

# Heat of the shown query in every scan with features: slices now, whole maps later.


class HeatDrawing(QObject):
    """Writes heat layers; reading files and whole maps happen on threads.

    Signals:
        drawn: What is shown changed.
        answered: A pin was answered in a scan.
        found: Where what is shown was found: a scan's key, Answer.
    """

    drawn = Signal()
    answered = Signal()
    found = Signal(str, object)

    def __init__(
        self, hub: Hub, control: ExploreControl, layers: ExploreLayers, parent: QObject
    ) -> None:
        super().__init__(parent)
        self._hub, self._control, self._layers = hub, control, layers
        self._loading: set[str] = set()
        self._asking: set[tuple[int, str]] = set()
        self._latest = Latest()

    def draw(self) -> None:
        """Write the displayed slice of every visible heat layer."""
        axis, query = slice_axis(self._hub.viewer), self._control.query
        if axis is not None and query is not None:
            place = float(point_of(self._hub.viewer)[axis])
            for scan, ready in self._control.ready():
                self._draw_scan(scan, ready, query, axis, place)
        self.drawn.emit()

    def new_query(self) -> None:
        """Whole maps shown so far belong to another query."""
        self._latest.next()
        for _, ready in self._control.ready():
            ready.buffer.forget_whole()

    def ask_hovered(self, query: Query) -> None:
        """Whole maps of the place the mouse rests on; the next move outdates them."""
        outdated = self._latest.next()
        for scan, ready in self._control.ready():
            if self._layers.heat(scan.key) is not None:
                self._ask(scan, ready, query, outdated)

    def ask_pin(self, query: Query, pin: Pin) -> None:
        """Show the maps of a pin that are known; compute the others and keep them."""
        self._latest.next()
        encoder = self._control.encoder

        def outdated() -> bool:
            gone = self._control.pins.get(pin.number) is not pin
            return gone or self._control.encoder is not encoder

        for scan, ready in self._control.ready():
            answer = pin.answers.get(scan.key)
            if answer is not None and answer.whole is not None:
                self._show(scan, ready, answer)
                self.found.emit(scan.key, answer)
            else:
                ready.buffer.forget_whole()
                self._ask(scan, ready, query, outdated)
        self.draw()

    def answer_pin(self, pin: Pin) -> None:
        """Compute the maps of a pin that is not the one shown."""
        query, encoder = self._control.query_of_pin(pin), self._control.encoder

        def outdated() -> bool:
            gone = self._control.pins.get(pin.number) is not pin
            return gone or self._control.encoder is not encoder

        for scan, ready in self._control.ready():
            known = pin.answers.get(scan.key)
            if query is not None and (known is None or known.whole is None):
                self._ask(scan, ready, query, outdated)

    def redraw_whole(self) -> None:
        """The range of shown similarities changed, or the view did."""
        for scan, ready in self._control.ready():
            if ready.buffer.whole is not None:
                self._show(scan, ready, None)
        self.draw()

    def clear(self) -> None:
        """Nothing is asked: nothing is shown."""
        self._latest.next()
        for scan, ready in self._control.ready():
            ready.buffer.clear()
            self._layers.redraw(scan.key)

    def _draw_scan(
        self, scan: Scan, ready: Ready, query: Query, axis: int, place: float
    ) -> None:
        layer, cut = self._layers.heat(scan.key), self._control.cut(scan, axis, place)
        if layer is None or not layer.visible or cut is None:
            return
        if ready.buffer.whole is not None:
            values = cut.read(ready.buffer.whole)
        elif ready.cache.ready(cut):
            values = ready.cache.similarity(query.vector, cut)
        else:
            self._load(scan.key, ready, cut)
            return
        ready.buffer.show(cut, values, self._control.high)
        self._layers.redraw(scan.key)

    def _load(self, key: str, ready: Ready, cut: Cut) -> None:
        """A slice's features from the file; then what is asked by then is drawn."""
        if key in self._loading:
            return
        self._loading.add(key)

        def done(_: Any) -> None:
            self._loading.discard(key)
            self.draw()

        def failed(error: Exception) -> None:
            self._loading.discard(key)
            self._hub.say(f"The features could not be read: {error}", "error")

        in_background(ready.cache.load, cut, owner=self, done=done, failed=failed)

    def _ask(
        self, scan: Scan, ready: Ready, query: Query, outdated: Callable[[], bool]
    ) -> None:
        asked = None if query.pin is None else (query.pin, scan.key)
        if asked in self._asking:
            return

        def done(answer: Answer | None) -> None:
            self._asking.discard(asked or (0, ""))
            known = self._control.scans.get(scan.key)
            if answer is None or outdated() or known is None:
                return
            if known.ready is not ready:
                return
            pin = self._control.pins.get(query.pin)
            if pin is not None:
                pin.answers[scan.key] = answer
                self.answered.emit()
            if self._shows(query):
                self._show(scan, ready, answer)
                self.found.emit(scan.key, answer)
                self.drawn.emit()

        if asked is not None:
            self._asking.add(asked)

        def failed(error: Exception) -> None:
            self._asking.discard(asked or (0, ""))
            self._hub.say(f"The map of {scan.ref.name} failed: {error}", "error")

        in_background(
            answer_of, scan, ready, query.vector, outdated,
            owner=self, done=done, failed=failed,
        )  # fmt: skip

    def _shows(self, query: Query) -> bool:
        """Whether this query is still the one shown."""
        now = self._control.query
        if now is query:
            return True
        return now is not None and now.pin is not None and now.pin == query.pin

    def _show(self, scan: Scan, ready: Ready, answer: Answer | None) -> None:
        whole = ready.buffer.whole if answer is None else answer.whole
        if whole is None:
            return
        axis, cut = slice_axis(self._hub.viewer), None
        layer = self._layers.heat(scan.key)
        if axis is not None and layer is not None and layer.visible:
            place = float(point_of(self._hub.viewer)[axis])
            cut = self._control.cut(scan, axis, place)
        ready.buffer.show_whole(whole, cut, self._control.high)
        self._layers.redraw(scan.key)


class ShownBeside(Protocol):
    """A scan in a view of its own."""

    key: str

    def goes(self, key: str, mm: Triple | None) -> bool:
        """Whether that scan is beside, and its place is shown now."""


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
        range_changed: Other similarities are lit.
        pinned_in_view: A place was pinned by a click on the scan, or by key.

    Attributes:
        beside: A scan that is shown beside napari's viewer.
    """

    scans_changed = Signal()
    scan_changed = Signal(str)
    pins_changed = Signal()
    told = Signal(str)
    hint_changed = Signal()
    range_changed = Signal()
    pinned_in_view = Signal()

    def __init__(self, hub: Hub, parent: QObject) -> None:
        super().__init__(parent)
        self.hub, self.viewer = hub, hub.viewer
        self.beside: ShownBeside | None = None
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
        before = self.control.query
        query = self.control.ask(scan, self.position) if self.control.hover else None
        if query is not None and query.is_as(before):
            self.control.query = before  # told once more: what is asked of it goes on
            self._read_out()
        elif query is not None:
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
        self.pin_in_view()

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

    def pin_in_view(self) -> None:
        """As ``pin_here``, while the pointer is over a scan and no control of ours."""
        if self.pin_here() is not None:
            self.pinned_in_view.emit()

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
        if self.beside is not None and self.beside.goes(key, mm):
            return
        self._rest.stop()
        self.position = None
        self.travel.look_at(key, mm)

    def go_on(self) -> None:
        """See ``Travel.go_on``; the scan beside goes to its match."""
        pin, beside = self.control.pins.current, self.beside
        if pin is not None and beside is not None:
            answer = pin.answers.get(beside.key)
            if answer is not None and beside.goes(beside.key, answer.mm):
                return
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
        self.range_changed.emit()

    def refresh_marks(self) -> None:
        """Points of pins and matches as the control has them."""
        visible = [k for k, layer in self._scan_layers.items() if layer.visible]
        shown = visible if self.show_points else []
        scans = self.control.scans.values()
        size, step = mark_size(scans), slice_steps(scans)
        self.layers.show_marks(PINS, pin_marks(self.control, shown), size, step)
        self.layers.show_marks(MATCHES, match_marks(self.control, shown), size, step)

    def end(self) -> None:
        """The window closes: workers of ours end."""
        self._rest.stop()
        self.work.cancel_all()

    def leave(self) -> None:
        """The panel goes: nothing of ours stays with the viewer."""
        self.listening.end()
        self.layers.close()

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


# What Explore makes for keeps: labels from a range, and features as colours.


NOTHING_ASKED = "Pin a place first, or move the mouse over one: labels need a map."


class Products(QObject):
    """Layers the user asked for by a button.

    Signals:
        told: A sentence about what was made, or why not.
        busy: Whether colours are being computed.
    """

    told = Signal(str)
    busy = Signal(bool)

    def __init__(self, explorer: Explorer) -> None:
        super().__init__(explorer)
        self._explorer = explorer
        self._helper: Helper | None = None

    # Labels

    def make_labels(self) -> None:
        """Labels from the lit range of the shown query, in every scan that shows it."""
        control = self._explorer.control
        query = control.query
        asked = [
            (scan, ready) for scan, ready in control.ready() if self._lit(scan.key)
        ]
        if query is None or not asked:
            self.told.emit(NOTHING_ASKED)
            return
        pin = control.pins.get(query.pin)
        name = pin.name if pin is not None else "similar"
        colour = pin.colour if pin is not None else "#56b4e9"
        told: list[str] = []
        for scan, ready in asked:
            whole = ready.buffer.whole

            def work(
                scan: Scan = scan, ready: Ready = ready, whole: Any = whole
            ) -> NDArray[np.uint8]:
                if whole is None:
                    answer = answer_of(scan, ready, query.vector, lambda: False)
                    whole = None if answer is None else answer.whole
                return labels_of(scan, ready, whole, control.low, control.high)

            def done(labels: NDArray[np.uint8], key: str = scan.key) -> None:
                told.append(self._add_labels(key, labels, name, colour))
                self.told.emit(" ".join(told))

            in_background(
                work, owner=self, done=done,
                failed=lambda error: self.told.emit(f"No labels were made: {error}"),
            )  # fmt: skip

    def _lit(self, key: str) -> bool:
        heat = self._explorer.layers.heat(key)
        return heat is not None and bool(heat.visible)

    def _add_labels(
        self, key: str, labels: NDArray[np.uint8], name: str, colour: str
    ) -> str:
        """Add a label layer; tells what was labelled."""
        from napari.utils import DirectLabelColormap

        layer, scan = (
            self._explorer.layer_of(key),
            self._explorer.control.scans.get(key),
        )
        if layer is None or scan is None:
            return ""
        count = int(np.count_nonzero(labels))
        if not count:
            return f"Nothing in {scan.ref.name} lies in this range: lower it."
        attributes = derived_attributes(layer, f"{scan.ref.name} {name}")
        attributes["metadata"][KEY]["label_names"] = {1: name}
        attributes["metadata"]["label_names"] = {1: name}
        colours = {None: "transparent", 0: "transparent", 1: colour}
        viewer = self._explorer.viewer
        with selection_kept(viewer):
            viewer.add_labels(
                labels.astype(np.int32), **attributes, opacity=0.6,
                colormap=DirectLabelColormap(color_dict=colours),
            )  # fmt: skip
        millilitres = count * float(np.prod(scan.ref.spacing_mm)) / 1000
        return f"Labelled {millilitres:.1f} ml in {scan.ref.name}."

    # Colours

    def colour(self) -> None:
        """Features of all scans that have them as red, green and blue."""
        explorer = self._explorer
        if self._helper is not None:
            return
        found = [
            (scan.key, explorer.layer_of(scan.key), ready.features.scan_id,
             ready.features.encoder_id)
            for scan, ready in explorer.control.ready()
        ]  # fmt: skip
        if not found:
            self.told.emit("Compute features of a scan first.")
            return
        self.busy.emit(True)
        folder, scratch = explorer.hub.features, explorer.hub.scratch
        choice = explorer.control.encoder

        def look() -> list[tuple[str, str, str]]:
            rows = []
            for key, layer, scan_hash, encoder in found:
                learnt = None if choice is None else choice.learnt
                card = find_card(folder, scan_hash, encoder, learnt)
                if card is not None and layer is not None:
                    rows.append((key, str(card), str(scan_file(layer, scratch))))
            return rows

        in_background(look, owner=self, done=self._start, failed=self._fail)

    def cancel(self) -> None:
        """Compute colours no more."""
        if self._helper is not None:
            self._helper.stop()

    def _start(self, rows: list[tuple[str, str, str]]) -> None:
        if not rows:
            self._end("The features are no longer on disk: compute them again.")
            return
        keys, cards, scans = (list(column) for column in zip(*rows, strict=True))
        helper = Helper("colours", {"cards": cards, "scans": scans}, self)
        self._helper = helper
        by_card = dict(zip(cards, keys, strict=True))
        helper.done.connect(lambda result: self._coloured(by_card, result))
        helper.failed.connect(self._end)
        helper.stopped.connect(lambda: self._end(""))
        helper.start()

    def _coloured(self, by_card: dict[str, str], result: dict[str, Any]) -> None:
        def read() -> list[tuple[str, NDArray[np.uint8], Any]]:
            return [
                (
                    by_card[entry["card"]],
                    np.load(entry["npy"]),
                    read_card(Path(entry["card"])).affine,
                )
                for entry in result.get("maps", [])
                if entry["card"] in by_card
            ]

        def done(maps: list[tuple[str, NDArray[np.uint8], Any]]) -> None:
            for key, rgb, affine in maps:
                self._add_colours(key, rgb, affine)
            share = sum(float(v) for v in result.get("explained", []))
            many = "the same colour means the same feature in all of them; "
            self._end(
                f"Coloured {counted(len(maps), 'scan')}: "
                + (many if len(maps) > 1 else "")
                + f"the colours tell {share:.0%} of what differs."
            )

        in_background(read, owner=self, done=done, failed=self._fail)

    def _add_colours(self, key: str, rgb: NDArray[np.uint8], affine: Any) -> None:
        from homolog.geometry.affine import Affine

        layer = self._explorer.layer_of(key)
        if layer is None:
            return
        attributes = grid_attributes(layer, Affine(np.array(affine)))
        attributes["name"] = f"{layer.name} features"
        viewer = self._explorer.viewer
        with selection_kept(viewer):
            added = viewer.add_image(
                rgb, rgb=True, **attributes, opacity=0.6, interpolation2d="linear",
                visible=layer.visible,
            )  # fmt: skip
            here, above = viewer.layers.index(added), viewer.layers.index(layer) + 1
            if here != above:
                viewer.layers.move(here, above)

    def _fail(self, error: Exception) -> None:
        self._end(str(error))

    def _end(self, sentence: str) -> None:
        if self._helper is not None:
            self._helper.deleteLater()
        self._helper = None
        self.busy.emit(False)
        if sentence:
            self.told.emit(sentence)
