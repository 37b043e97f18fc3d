"""Landmarks at work: picked in A, dragged in B, followed. Decides nothing.

What a click means and how far a match is trusted is in ``control`` and ``table``; here
their answers reach napari's layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QObject, Signal
from superqt.utils import QSignalThrottler

from homolog.data.landmarks import Landmark
from homolog.geometry.affine import Triple
from homolog.gui.explore.layers import point_of, shown_of, slice_axis
from homolog.gui.explore.marks import mark_size, slice_steps
from homolog.gui.landmarks.control import NOT_IN_A
from homolog.gui.landmarks.crosses import Cross
from homolog.gui.landmarks.dots import Dots
from homolog.gui.landmarks.mouse import MouseInA
from homolog.gui.landmarks.scan_b import IN_A

if TYPE_CHECKING:
    from homolog.gui.landmarks.session import Session

FOLLOW_MS = 50


class Placing(QObject):
    """Mouse, points and crosses of a session.

    Signals:
        table_changed: Landmarks, or what is known of them.
        chosen_changed: Another landmark is chosen, or more is known of it.

    Attributes:
        picking: Whether a plain click in A picks.
        show_points: Whether landmarks are shown as points.
    """

    table_changed = Signal()
    chosen_changed = Signal()

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.session = session
        self.picking = False
        self.show_points = True
        self._position: NDArray[np.float64] | None = None
        self._grabbed: Landmark | None = None
        self.points = Dots(session.viewer, IN_A, self._layer_removed)
        self.cross = Cross(session.viewer)
        session.searching.found.connect(self._found)
        session.searching.followed.connect(self._followed)
        self._throttle = QSignalThrottler(parent=self)
        self._throttle.setTimeout(FOLLOW_MS)
        self._throttle.triggered.connect(self._ask_follow)
        self.listening = MouseInA(session.viewer, self)

    def pair_changed(self) -> None:
        """Other scans: their landmarks."""
        self.cross.hide()
        if self.session.scan_b is not None:
            self.session.scan_b.cross.hide()
        self.table_edited()
        self.chosen_changed.emit()

    def sync(self) -> None:
        """Layers came or went."""
        self.session.sync()

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
        control = self.session.control
        if not control.is_ready or slice_axis(self.session.viewer) is None:
            self.session.hub.say(control.hint(self.session.viewer.dims.ndisplay).text)
            return None
        place = None if self._position is None else control.place_in_a(self._position)
        if place is None:
            self.session.hub.say(NOT_IN_A)
            return None
        self.session.open_view()
        mark = control.table.add(place)
        self.choose(mark.id, travel=False)
        self.session.searching.search([mark])
        return mark

    def search_again(self) -> None:
        """Search all landmarks anew, but those set by hand."""
        marks = self.session.control.table.to_search()
        if marks:
            self.session.searching.search(marks)

    def choose(self, number: int | None, *, travel: bool = True) -> None:
        """Both viewers go to a landmark and draw the cross there."""
        table = self.session.control.table
        table.chosen = number
        mark = table.current
        self.refresh_marks()
        self.table_changed.emit()
        self.chosen_changed.emit()
        self._go(mark, travel=travel)

    def next_uncertain(self) -> None:
        """The next landmark worth a look."""
        number = self.session.control.table.next_uncertain()
        if number is None:
            self.session.hub.say("No landmark is uncertain.")
        else:
            self.choose(number)

    def delete(self, number: int) -> None:
        """Forget a landmark."""
        self.session.control.table.delete(number)
        self.choose(self.session.control.table.chosen)

    def table_edited(self) -> None:
        """Names or verdicts were changed in the panel."""
        self.refresh_marks()
        self.table_changed.emit()

    def _found(self, numbers: list[int]) -> None:
        self.table_edited()
        table = self.session.control.table
        if table.chosen in numbers:
            self.chosen_changed.emit()
            self._go(table.current, travel=False)

    def _go(self, mark: Landmark | None, *, travel: bool) -> None:
        control = self.session.control
        a, b = control.scan_a, control.scan_b
        if mark is None or a is None:
            self.cross.hide()
            if self.session.scan_b is not None:
                self.session.scan_b.cross.hide()
            return
        shown = control.shown_in_a(mark)
        assert shown is not None
        if travel:
            self.session.travel.look_at(a.key, mark.a_mm)
        size, step = self._size_a()
        self.cross.show(shown, size, step, a)
        there = control.shown_in_b(mark)
        if self.session.scan_b is None or b is None:
            return
        if there is None:
            self.session.scan_b.cross.hide()
        else:
            self.session.scan_b.go(there, mark_size([b]), b)

    # Dragging in B

    def grab(self, shown_mm: NDArray[np.float64]) -> bool:
        """Whether a landmark lies at a place of B."""
        b = self.session.control.scan_b
        if b is None or not self.show_points:
            return False
        self._grabbed = self.session.control.near_in_b(shown_mm, 0.75 * mark_size([b]))
        return self._grabbed is not None

    def dragged(self, shown_mm: NDArray[np.float64]) -> None:
        """The cross shows where it would be put."""
        b = self.session.control.scan_b
        if b is not None and self.session.scan_b is not None:
            self.session.scan_b.look(shown_mm, mark_size([b]), b)

    def dropped(self, shown_mm: NDArray[np.float64] | None) -> None:
        """A corrected place is kept as the user's own; a mere click only chooses."""
        mark, self._grabbed = self._grabbed, None
        table = self.session.control.table
        if mark is None or table.get(mark.id) is None:
            return
        if shown_mm is None:
            self.choose(mark.id)
            return
        place = self.session.control.place_in_b(shown_mm)
        if place is None:
            self.session.hub.say("That place is not in scan B; the landmark stays.")
        else:
            table.set_by_hand(mark.id, place)
            self.session.searching.compare(table.get(mark.id) or mark)
        self.choose(mark.id, travel=False)

    # Mouse in A

    def moved(self, position: Any) -> None:
        """The mouse moved over A; B follows where that is wanted."""
        place = np.array(position, np.float64)[-3:]
        if len(place) == 3:
            self._position = place
            if self.session.control.follow:
                self._throttle.throttle()

    def left(self) -> None:
        """The mouse left A."""
        self._position = None
        self.listening.set_words("")

    def sliced(self) -> None:
        """Another slice: another place is under the mouse."""
        axis = slice_axis(self.session.viewer)
        if axis is not None and self._position is not None:
            self._position[axis] = point_of(self.session.viewer)[axis]
            if self.session.control.follow:
                self._throttle.throttle()
        self.session.hint_changed.emit()

    def scan_shown(self) -> None:
        """A scan was shown or hidden."""

    def _ask_follow(self) -> None:
        control = self.session.control
        if self._position is None or not control.follow or not control.is_ready:
            return
        place = control.place_in_a(self._position)
        if place is not None:
            self.session.searching.follow(np.array(place))

    def _followed(self, answer: tuple[Triple, float] | None) -> None:
        b = self.session.control.scan_b
        if answer is None or b is None or self.session.scan_b is None:
            self.listening.set_words("")
            return
        mm, similarity = answer
        self.session.scan_b.look(shown_of(b.to_true, mm), mark_size([b]), b)
        self.listening.set_words(f"similarity {similarity:.2f} in B")

    # Layers

    def refresh_marks(self) -> None:
        """Points in both viewers as the control has them."""
        shown = self.show_points and not self.session.is_ended
        size, step = self._size_a()
        marks = (
            self.session.control.marks("a")
            if shown and self.session.control.scan_a
            else []
        )
        self.points.show(marks, size, step)
        b = self.session.control.scan_b
        if self.session.scan_b is not None:
            marks = self.session.control.marks("b") if shown and b is not None else []
            step_b = (1.0, 1.0, 1.0) if b is None else b.grid.spacing_mm
            self.session.scan_b.mark(marks, mark_size([b] if b else []), step_b)

    def _size_a(self) -> tuple[float, Triple]:
        scans = self.session.control.a_choices()
        a = self.session.control.scan_a
        return mark_size([a] if a else []), slice_steps(scans)

    def _layer_removed(self) -> None:
        self.show_points = False
        self.table_changed.emit()
