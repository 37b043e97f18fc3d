"""Heat of the shown query in every scan with features: slices now, whole maps later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qtpy.QtCore import QObject, Signal

from homolog.gui.explore.control import ExploreControl, Latest
from homolog.gui.explore.feature_slices import Cut
from homolog.gui.explore.layers import ExploreLayers, point_of, slice_axis
from homolog.gui.explore.pins import Answer, Pin
from homolog.gui.explore.scan import Query, Ready, Scan, answer_of
from homolog.gui.hub import Hub
from homolog.gui.threads import in_background


class HeatDrawing(QObject):
    """Writes heat layers; reading files and whole maps happen on threads.

    Signals:
        drawn: What is shown changed.
        answered: A pin was answered in a scan.
    """

    drawn = Signal()
    answered = Signal()

    def __init__(
        self, hub: Hub, control: ExploreControl, layers: ExploreLayers, parent: QObject
    ) -> None:
        super().__init__(parent)
        self._hub, self._control, self._layers = hub, control, layers
        self._loading: set[str] = set()
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
            else:
                ready.buffer.forget_whole()
                self._ask(scan, ready, query, outdated)
        self.draw()

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
        def done(answer: Answer | None) -> None:
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
                self.drawn.emit()

        def failed(error: Exception) -> None:
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
        if axis is not None:
            place = float(point_of(self._hub.viewer)[axis])
            cut = self._control.cut(scan, axis, place)
        ready.buffer.show_whole(whole, cut, self._control.high)
        self._layers.redraw(scan.key)
