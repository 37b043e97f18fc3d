"""The pair at work: encoder, scan A in napari's viewer, scan B in the second one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QObject, Signal
from qtpy.QtWidgets import QWidget
from superqt.utils import QSignalThrottler

from homolog.geometry.affine import Triple
from homolog.gui.beside.scan_b import ScanB
from homolog.gui.beside.second_view import (
    Cross,
    Dots,
    MouseInA,
    MouseInB,
    SecondView,
)
from homolog.gui.files.scan_layer import read_scan_layer, why_not
from homolog.gui.landmarks.control import NOT_IN_A, LandmarksControl
from homolog.gui.landmarks.searching import Searching
from homolog.gui.shared.choices import ModelChoice
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.layers import layer_scan
from homolog.gui.shared.model_row import FeatureWork
from homolog.gui.shared.scan_layers import (
    Travel,
    mark_size,
    point_of,
    shown_of,
    slice_axis,
    slice_steps,
)
from homolog.gui.shared.scans import ExploreControl, Scan, open_scans
from homolog.gui.shared.threads import in_background
from homolog.landmarks.config import LandmarksConfig
from homolog.scans.points import Landmark

# Another scan as B with a landmark of A in it: from the rows of a cohort.


class GoingToB:
    """Makes a scan scan B and goes to what was found there.

    Args:
        pair: Whose scan B.
    """

    def __init__(self, pair: LandmarkPair) -> None:
        self._pair = pair
        self._lent: Any | None = None

    def scan(
        self, key: str, mark: Landmark | None, found: Landmark | None = None
    ) -> None:
        """An open scan as B, with a landmark of A that is searched there if it is new.

        Args:
            key: Of the scan.
            mark: A landmark of this A, of any pair.
            found: What is known of it in that scan; None: search it.
        """
        pair = self._pair
        control = pair.control
        if key not in control.book.scans or key == control.a:
            return
        pair.choose_b(key)
        if mark is None:
            return
        table = control.table
        same = next((m for m in table if m.a_mm == mark.a_mm), None)
        if same is None:
            same = table.add(mark.a_mm, mark.name)
            if found is None:
                pair.searching.search([same])
            else:
                table.found(same.id, found)
        pair.open_view()
        if pair.view is not None:  # a millimetre is as long in A as in B
            zoom = pair.viewer.scene.camera.zoom
            pair.view.model.scene.camera.zoom = zoom
        pair.placing.choose(same.id)

    def file(
        self, path: Path, name: str, mark: Landmark | None, found: Landmark | None
    ) -> None:
        """As ``scan`` for one that may not be open yet.

        Of scans opened so, only the last one stays: a cohort may have hundreds.

        Args:
            path: Of the scan.
            name: Of its layer.
            mark: As in ``scan``.
            found: Likewise.
        """
        pair = self._pair

        def show(key: str) -> None:
            pair.told.emit(f"{name} is scan B now.")
            self.scan(key, mark, found)

        for key, scan in pair.control.book.scans.items():
            if scan.ref.path == path and key != pair.control.a:
                show(key)
                return

        def take(layer: Any) -> None:
            before, self._lent = self._lent, layer
            pair.take_b(layer, instead_of=before)
            show(str(layer.unique_id))

        pair.open_b(path, name, take)


# Landmarks at work: picked in A, dragged in B, followed. Decides nothing.
#
# What a click means and how far a match is trusted is in ``control`` and ``table``;
# here their answers reach napari's layers.


IN_A = "Landmarks in A"
FOLLOW_MS = 50


class Placing(QObject):
    """Mouse, points and crosses of a pair.

    Signals:
        table_changed: Landmarks, or what is known of them.
        chosen_changed: Another landmark is chosen, or more is known of it.

    Attributes:
        picking: Whether a plain click in A picks.
        show_points: Whether landmarks are shown as points.
    """

    table_changed = Signal()
    chosen_changed = Signal()

    def __init__(self, pair: LandmarkPair) -> None:
        super().__init__(pair)
        self.pair = pair
        self.picking = False
        self.show_points = True
        self._position: NDArray[np.float64] | None = None
        self._grabbed: Landmark | None = None
        self.points = Dots(pair.viewer, IN_A, self._layer_removed)
        self.cross = Cross(pair.viewer)
        pair.searching.found.connect(self._found)
        pair.searching.followed.connect(self._followed)
        self._throttle = QSignalThrottler(parent=self)
        self._throttle.setTimeout(FOLLOW_MS)
        self._throttle.triggered.connect(self._ask_follow)
        self.listening = MouseInA(pair.viewer, self)

    def pair_changed(self) -> None:
        """Other scans: their landmarks."""
        self.cross.hide()
        if self.pair.scan_b is not None:
            self.pair.scan_b.cross.hide()
        self.table_edited()
        self.chosen_changed.emit()

    def sync(self) -> None:
        """Layers came or went."""
        self.pair.sync()

    def end(self) -> None:
        """Nothing of ours stays with napari's viewer."""
        self.listening.end()
        self.points.close()
        self.cross.close()

    # Landmarks

    def pressed(self, position: Any) -> None:
        """Shift and a click in A, or a click while picking."""
        place = np.array(position, np.float64)[-3:]
        if len(place) == 3:
            self._position = place
        self.pick_here()

    def pick_here(self) -> Landmark | None:
        """A landmark at the place under the mouse; it is searched in B."""
        control = self.pair.control
        if not control.is_ready or slice_axis(self.pair.viewer) is None:
            self.pair.hub.say(control.hint(self.pair.viewer.dims.ndisplay).text)
            return None
        place = None if self._position is None else control.place_in_a(self._position)
        if place is None:
            self.pair.hub.say(NOT_IN_A)
            return None
        self.pair.open_view()
        mark = control.table.add(place)
        self.choose(mark.id, travel=False)
        self.pair.searching.search([mark])
        return mark

    def search_again(self) -> None:
        """Search all landmarks anew, but those set by hand."""
        marks = self.pair.control.table.to_search()
        if marks:
            self.pair.searching.search(marks)

    def choose(self, number: int | None, *, travel: bool = True) -> None:
        """Both viewers go to a landmark and draw the cross there."""
        table = self.pair.control.table
        table.chosen = number
        mark = table.current
        self.refresh_marks()
        self.table_changed.emit()
        self.chosen_changed.emit()
        self._go(mark, travel=travel)

    def next_uncertain(self) -> None:
        """The next landmark worth a look."""
        number = self.pair.control.table.next_uncertain()
        if number is None:
            self.pair.hub.say("No landmark is uncertain.")
        else:
            self.choose(number)

    def delete(self, number: int) -> None:
        """Forget a landmark."""
        self.pair.control.table.delete(number)
        self.choose(self.pair.control.table.chosen)

    def table_edited(self) -> None:
        """Names or verdicts were changed in the panel."""
        self.refresh_marks()
        self.table_changed.emit()

    def _found(self, numbers: list[int]) -> None:
        self.table_edited()
        table = self.pair.control.table
        if table.chosen in numbers:
            self.chosen_changed.emit()
            self._go(table.current, travel=False)

    def _go(self, mark: Landmark | None, *, travel: bool) -> None:
        control = self.pair.control
        a, b = control.scan_a, control.scan_b
        if mark is None or a is None:
            self.cross.hide()
            if self.pair.scan_b is not None:
                self.pair.scan_b.cross.hide()
            return
        shown = control.shown_in_a(mark)
        assert shown is not None
        if travel:
            self.pair.travel.look_at(a.key, mark.a_mm)
        size, step = self._size_a()
        self.cross.show(shown, size, step, a)
        there = control.shown_in_b(mark)
        if self.pair.scan_b is None or b is None:
            return
        if there is None:
            self.pair.scan_b.cross.hide()
        else:
            self.pair.scan_b.go(there, mark_size([b]), b)

    # Dragging in B

    def grab(self, shown_mm: NDArray[np.float64]) -> bool:
        """Whether a landmark lies at a place of B."""
        b = self.pair.control.scan_b
        if b is None or not self.show_points:
            return False
        self._grabbed = self.pair.control.near_in_b(shown_mm, 0.75 * mark_size([b]))
        return self._grabbed is not None

    def dragged(self, shown_mm: NDArray[np.float64]) -> None:
        """The cross shows where it would be put."""
        b = self.pair.control.scan_b
        if b is not None and self.pair.scan_b is not None:
            self.pair.scan_b.look(shown_mm, mark_size([b]), b)

    def dropped(self, shown_mm: NDArray[np.float64] | None) -> None:
        """A corrected place is kept as the user's own; a mere click only chooses."""
        mark, self._grabbed = self._grabbed, None
        table = self.pair.control.table
        if mark is None or table.get(mark.id) is None:
            return
        if shown_mm is None:
            self.choose(mark.id)
            return
        place = self.pair.control.place_in_b(shown_mm)
        if place is None:
            self.pair.hub.say("That place is not in scan B; the landmark stays.")
        else:
            table.set_by_hand(mark.id, place)
            self.pair.searching.compare(table.get(mark.id) or mark)
        self.choose(mark.id, travel=False)

    # Mouse in A

    def moved(self, position: Any) -> None:
        """The mouse moved over A; B follows where that is wanted."""
        place = np.array(position, np.float64)[-3:]
        if len(place) == 3:
            self._position = place
            if self.pair.control.follow:
                self._throttle.throttle()

    def left(self) -> None:
        """The mouse left A."""
        self._position = None
        self.listening.set_words("")

    def sliced(self) -> None:
        """Another slice: another place is under the mouse."""
        axis = slice_axis(self.pair.viewer)
        if axis is not None and self._position is not None:
            self._position[axis] = point_of(self.pair.viewer)[axis]
            if self.pair.control.follow:
                self._throttle.throttle()
        self.pair.hint_changed.emit()

    def scan_shown(self) -> None:
        """A scan was shown or hidden."""

    def _ask_follow(self) -> None:
        control = self.pair.control
        if self._position is None or not control.follow or not control.is_ready:
            return
        place = control.place_in_a(self._position)
        if place is not None:
            self.pair.searching.follow(np.array(place))

    def _followed(self, answer: tuple[Triple, float] | None) -> None:
        b = self.pair.control.scan_b
        if answer is None or b is None or self.pair.scan_b is None:
            self.listening.set_words("")
            return
        mm, similarity = answer
        self.pair.scan_b.look(shown_of(b.to_true, mm), mark_size([b]), b)
        self.listening.set_words(f"similarity {similarity:.2f} in B")

    # Layers

    def refresh_marks(self) -> None:
        """Points in both viewers as the control has them."""
        shown = self.show_points and not self.pair.is_ended
        size, step = self._size_a()
        marks = (
            self.pair.control.marks("a") if shown and self.pair.control.scan_a else []
        )
        self.points.show(marks, size, step)
        b = self.pair.control.scan_b
        if self.pair.scan_b is not None:
            marks = self.pair.control.marks("b") if shown and b is not None else []
            step_b = (1.0, 1.0, 1.0) if b is None else b.grid.spacing_mm
            self.pair.scan_b.mark(marks, mark_size([b] if b else []), step_b)

    def _size_a(self) -> tuple[float, Triple]:
        scans = self.pair.control.a_choices()
        a = self.pair.control.scan_a
        return mark_size([a] if a else []), slice_steps(scans)

    def _layer_removed(self) -> None:
        self.show_points = False
        self.table_changed.emit()


class LandmarkPair(QObject):
    """All that happens between the panel and the two viewers.

    Signals:
        scans_changed: Scans came or went, the pair or the encoder is another.
        scan_changed: One scan's state; its key.
        hint_changed: What to tell the user may be another.
        limits_changed: Landmarks are believed by other limits.
        told: A sentence about what was done.
    """

    scans_changed = Signal()
    scan_changed = Signal(str)
    hint_changed = Signal()
    limits_changed = Signal()
    told = Signal(str)

    def __init__(self, hub: Hub, panel: QWidget) -> None:
        super().__init__(panel)
        self.hub, self.viewer, self._panel = hub, hub.viewer, panel
        book = ExploreControl(engine_missing=tuple(hub.engine_missing()))
        self.control = LandmarksControl(book)
        self.is_ended = False
        self.view: SecondView | None = None
        self.scan_b: ScanB | None = None
        self._mouse_b: MouseInB | None = None
        self._layers: dict[str, Any] = {}
        self._own: list[Any] = []
        # A scan of B alone is none of the main viewer's: nobody travels there.
        self._in_a: dict[str, Any] = {}
        self.travel = Travel(hub, book, self._in_a)
        self.work = FeatureWork(hub, book, self)
        self.work.changed.connect(self._scan_changed)
        self.work.ready.connect(self._scan_ready)
        self.searching = Searching(self.control, self._layers.get, self)
        self.searching.preparing.connect(lambda _: self.hint_changed.emit())
        self.placing = Placing(self)
        self.going = GoingToB(self)

    # Scans and encoders

    def choose_encoder(self, encoder: ModelChoice | None) -> None:
        """Search with another encoder; landmarks found before stay as they are."""
        if not self.control.book.choose_encoder(encoder):
            return
        self.work.cancel_all()
        for key, layer in self._layers.items():
            self.work.look(key, layer)
        self.scans_changed.emit()

    def sync(self) -> None:
        """Look at the layers anew: which scans are open."""
        layers, scans = open_scans([*self.viewer.layers, *self._own])
        book = self.control.book
        new, gone = book.set_scans(scans)
        self._layers.clear()
        self._layers.update(layers)
        own_b = self.control.own_b = {str(layer.unique_id) for layer in self._own}
        self._in_a.clear()
        self._in_a.update({k: v for k, v in layers.items() if k not in own_b})
        for key in [*gone, *(scan.key for scan in new)]:
            self.work.forget(key)
        for scan in new:
            self.work.look(scan.key, layers[scan.key])
        self.searching.sides.keep([s.ready for s in book.scans.values()])
        if self.control.settle() or new or gone:
            self.pair_changed()

    def look_again(self) -> None:
        """Features may have been computed elsewhere."""
        for key, scan in self.control.book.scans.items():
            if scan.state in ("none", "failed"):
                scan.state = "looking"
                self.work.look(key, self._layers[key])
        self.scans_changed.emit()

    def layer_of(self, scan: Scan | None) -> Any | None:
        """The layer of a scan."""
        return None if scan is None else self._layers.get(scan.key)

    def choose_a(self, key: str) -> None:
        """Another scan A; it comes to the front."""
        self.control.a = key
        self.control.settle()
        self.pair_changed()
        self.travel.look_at(key)

    def choose_b(self, key: str) -> None:
        """Another scan B."""
        self.control.b = key
        self.pair_changed()

    def set_limits(self, limits: LandmarksConfig) -> None:
        """Believe or refuse all landmarks by other limits; nothing is searched."""
        self.control.set_limits(limits)
        self.placing.table_edited()
        self.placing.chosen_changed.emit()
        self.limits_changed.emit()

    def swap(self) -> None:
        """A and B change places."""
        if not self.control.swap():
            self.hub.say("Scan B is open in the second view only; open it here first.")
            return
        self.pair_changed()
        self.travel.look_at(self.control.a)

    def open_b(
        self, path: Path, name: str = "", take: Callable[[Any], None] | None = None
    ) -> None:
        """Read a file for the second view alone.

        Args:
            path: The file.
            name: Of its layer; from the file if empty.
            take: Called with the layer; ``take_b`` if None.
        """
        self.told.emit(f"Reading {path.name} ...")

        def done(made: Any) -> None:
            from napari.layers import Layer

            if self.is_ended:
                return
            data, attributes, kind = made
            layer = Layer.create(data, attributes, kind)
            if layer_scan(layer) is None:
                self.told.emit(f"{path.name} is no scan; choose another file.")
                return
            self.told.emit("")
            (take or self.take_b)(layer)

        in_background(
            read_scan_layer, path, name, owner=self, done=done,
            failed=lambda error: self.told.emit(why_not(path, error)),
        )  # fmt: skip

    def take_b(self, layer: Any, instead_of: Any | None = None) -> None:
        """A layer of nobody else's becomes scan B.

        Args:
            layer: The layer.
            instead_of: One that was taken before and is closed now.
        """
        if layer_scan(layer) is None or layer.ndim != 3:
            self.hub.say(f"{layer.name} is no scan in three dimensions.", "warning")
            return
        self._own = [own for own in self._own if own is not instead_of]
        self._own.append(layer)
        self.control.b = str(layer.unique_id)
        self.sync()

    def pair_changed(self) -> None:
        """Show the pair as it is chosen now."""
        control = self.control
        layer = self.layer_of(control.scan_b)
        if self.scan_b is not None and self.view is not None:
            if layer is None:
                self.scan_b.clear()
                self.view.tell("B: no scan yet")
            else:
                self.scan_b.show(layer, self._same_window())
                self.view.tell(f"B: {layer.name}")
                self.view.fill_anew()
        self.placing.pair_changed()
        self.scans_changed.emit()
        self.searching.prepare()

    # The second view

    def open_view(self) -> None:
        """Dock the second viewer, or bring it back."""
        if self.is_ended:
            return
        if self.view is not None and self.view.is_open:
            self.view.show()
            return
        self.view = SecondView(self.viewer, self._panel, self._view_closed)
        self.hub.view_opened.emit(self.view.model)
        self.scan_b = ScanB(self.view.model, self.take_b)
        self._mouse_b = MouseInB(self.view.model, self.placing)
        self.pair_changed()
        self.hint_changed.emit()
        self.view.sized = self._same_scale
        self.view.fill_anew()

    def _same_scale(self) -> None:
        """A millimetre is as long in A as in B."""
        if self.view is None or self.is_ended:
            return
        in_a = self.layer_of(self.control.scan_a)
        in_b = None if self.scan_b is None else self.scan_b.layer
        if in_a is None or in_b is None or not self.view.fill(in_a, in_b):
            return
        mark = self.control.table.current
        if mark is None:
            self.travel.look_at(self.control.a)
        self.placing.choose(self.control.table.chosen)

    def close_view(self) -> None:
        """Take the second viewer away; nothing is lost."""
        view, self.view = self.view, None
        scan_b, self.scan_b = self.scan_b, None
        mouse, self._mouse_b = self._mouse_b, None
        if mouse is not None:
            mouse.end()
        if scan_b is not None:
            scan_b.end()
        if view is not None:
            self.hub.view_closed.emit(view.model)
            view.close()

    def _view_closed(self) -> None:
        """The user closed its dock."""
        self.close_view()
        self.hint_changed.emit()

    # Layers

    def end(self) -> None:
        """The panel or the window goes: threads, workers and the second viewer end."""
        if self.is_ended:
            return
        self.is_ended = True
        self.work.cancel_all()
        # First: what remains is drawn again while layers are removed from it.
        self.close_view()
        self.placing.end()

    def _same_window(self) -> Any | None:
        """A's layer, where its brightness means the same in B (CT numbers)."""
        a, b = self.control.scan_a, self.control.scan_b
        if a is None or b is None or (a.ref.modality, b.ref.modality) != ("CT", "CT"):
            return None
        return self.layer_of(a)

    def _scan_changed(self, key: str) -> None:
        self.scan_changed.emit(key)
        self.hint_changed.emit()

    def _scan_ready(self, key: str) -> None:
        self._scan_changed(key)
        if key in (self.control.a, self.control.b):
            self.searching.prepare()
