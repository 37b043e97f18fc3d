"""Searches of landmarks on threads: new ones, all again, and under the mouse."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QObject, Signal

from homolog.errors import UnusableInput
from homolog.features.search import Search, body_of, kept_inside, query_at
from homolog.geometry.affine import Affine, Index, Triple
from homolog.gui.landmarks.control import LandmarksControl, LandmarkTable
from homolog.gui.shared.layers import layer_volume
from homolog.gui.shared.scans import Ready, Scan
from homolog.gui.shared.threads import in_background
from homolog.landmarks.config import LandmarksConfig
from homolog.landmarks.match import judged, match_landmarks
from homolog.scans.points import NAN, Landmark
from homolog.scans.volume import Points

# Searching landmarks of A in B, on threads; what is prepared once is kept. No Qt.


@dataclass(frozen=True)
class Side:
    """One scan of a pair, ready to be searched.

    Attributes:
        search: Of its features.
        body: (d, h, w) cells in the body; None where nothing was found.
        grid: Voxel -> true mm of the scan, and its shape.
    """

    search: Search
    body: NDArray[np.bool_] | None
    grid: tuple[Affine, Index]


class Sides:
    """Prepared scans, each made once; any thread may ask."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[Ready, Side]] = {}
        self._lock = threading.Lock()

    def of(self, scan: Scan, ready: Ready, layer: Any) -> Side:
        """A scan, prepared now if it was not; seconds for large ones.

        Args:
            scan: The scan.
            ready: Its features.
            layer: Its layer; the values tell the body from the air.
        """
        with self._lock:
            known = self._made.get(id(ready))
            if known is None or known[0] is not ready:
                body = body_of(layer_volume(layer), ready.features)
                grid = (scan.to_true @ scan.grid, scan.ref.shape)
                side = Side(Search(ready.features), body if body.any() else None, grid)
                known = (ready, side)
                self._made[id(ready)] = known
            return known[1]

    def keep(self, wanted: Sequence[Ready | None]) -> None:
        """Let go of all others."""
        with self._lock:
            kept = {id(r) for r in wanted if r is not None}
            self._made = {k: v for k, v in self._made.items() if k in kept}


def search_points(
    a: Side, b: Side, marks: Sequence[Landmark], config: LandmarksConfig | None = None
) -> list[Landmark]:
    """Landmarks with what was found of them in B, in their order and with their ids."""
    points = Points(
        np.array([m.a_mm for m in marks], np.float64).reshape(-1, 3),
        tuple(m.name for m in marks),
    )
    found, _ = match_landmarks(
        a.search, b.search, points, config, body_a=a.body, body_b=b.body, scan_b=b.grid
    )
    return found


def similarity_between(a: Side, b: Side, a_mm: Triple, b_mm: Triple) -> float:
    """Cosine of a place of A and a place of B; NaN where one has no feature."""
    try:
        one = query_at(a.search.features, np.array([a_mm]))[0]
        other = query_at(b.search.features, np.array([b_mm]))[0]
    except UnusableInput:
        return NAN
    return float(one @ other)


def follow(a: Side, b: Side, a_mm: NDArray[np.float64]) -> tuple[Triple, float] | None:
    """Where a place of A lies in B and how similar it is there; no check, so quick."""
    try:
        query = query_at(a.search.features, a_mm[None])
    except UnusableInput:
        return None
    match = kept_inside(b.search.find(query, where=b.body)[0], *b.grid)
    return match.mm, match.similarity


# Landmarks searched by one errand: the table fills while the rest is searched.
_AT_ONCE = 8


class Searching(QObject):
    """Fills the tables of a control.

    Signals:
        found: Ids of landmarks that were searched.
        followed: True mm in B of the place under the mouse in A, and its similarity;
            None where there is none.
        preparing: Whether a scan is being made ready for its first search.

    Args:
        control: Knows scans and tables.
        layer_of: Key of a scan -> its layer.
        parent: Owner.
    """

    found = Signal(object)
    followed = Signal(object)
    preparing = Signal(bool)

    def __init__(
        self,
        control: LandmarksControl,
        layer_of: Callable[[str], Any],
        parent: QObject,
    ) -> None:
        super().__init__(parent)
        self.sides = Sides()
        self._control, self._layer_of = control, layer_of
        self._wanted: NDArray[np.float64] | None = None
        self._following = self.is_preparing = False

    def prepare(self) -> None:
        """Make both scans ready now, so that the first click is answered quickly."""
        control = self._control
        scans = [s for s in (control.scan_a, control.scan_b) if s is not None]
        if not control.is_ready or self.is_preparing:
            return
        self.is_preparing = True
        self.preparing.emit(True)

        def ended(_: object) -> None:
            self.is_preparing = False
            self.preparing.emit(False)

        in_background(
            _warm_up, self.sides, [self._asked(s) for s in scans], control.limits,
            owner=self, done=ended, failed=ended,
        )  # fmt: skip

    def search(self, marks: list[Landmark]) -> None:
        """Search landmarks of the chosen pair; a person's own places stay."""
        control, table = self._control, self._control.table
        pair = self._pair()
        if pair is None:
            for mark in marks:
                table.lost(mark.id, control.hint().text)
            self.found.emit([m.id for m in marks])
            return
        for first in range(0, len(marks), _AT_ONCE):
            self._errand(pair, table, marks[first : first + _AT_ONCE])

    def compare(self, mark: Landmark) -> None:
        """Tell how similar the two places of a landmark set by hand are."""
        table, pair, b_mm = self._control.table, self._pair(), mark.b_mm
        if pair is None or b_mm is None:
            return

        def done(similarity: float) -> None:
            now = table.get(mark.id)
            if now is not None and now.manual and now.b_mm == b_mm:
                table.set_by_hand(mark.id, b_mm, similarity)
                self.found.emit([mark.id])

        in_background(
            _compare, self.sides, *pair, mark.a_mm, b_mm,
            owner=self, done=done, failed=lambda _: None,
        )  # fmt: skip

    def follow(self, a_mm: NDArray[np.float64]) -> None:
        """Where a place of A lies in B; one search at a time, the latest place wins."""
        self._wanted = a_mm
        if not self._following:
            self._follow_on()

    def _follow_on(self) -> None:
        pair, place = self._pair(), self._wanted
        self._wanted = None
        if pair is None or place is None:
            return
        self._following = True

        def done(answer: tuple[Triple, float] | None) -> None:
            self._following = False
            if self._control.follow:
                self.followed.emit(answer)
            self._follow_on()

        in_background(
            _follow, self.sides, *pair, place,
            owner=self, done=done, failed=lambda _: done(None),
        )  # fmt: skip

    def _errand(
        self, pair: tuple[_Asked, _Asked], table: LandmarkTable, marks: list[Landmark]
    ) -> None:
        def done(answers: list[Landmark]) -> None:
            # The limits may have been changed meanwhile.
            for mark, answer in zip(marks, answers, strict=True):
                table.found(mark.id, judged(answer, self._control.limits))
            self.found.emit([m.id for m in marks])

        def failed(error: Exception) -> None:
            for mark in marks:
                table.lost(mark.id, f"could not be searched: {error}")
            self.found.emit([m.id for m in marks])

        in_background(
            _search, self.sides, *pair, marks, self._control.limits,
            owner=self, done=done, failed=failed,
        )  # fmt: skip

    def _pair(self) -> tuple[_Asked, _Asked] | None:
        control = self._control
        a, b = control.scan_a, control.scan_b
        if not control.is_ready or a is None or b is None:
            return None
        return self._asked(a), self._asked(b)

    def _asked(self, scan: Scan) -> _Asked:
        return scan, scan.ready, self._layer_of(scan.key)


# A scan, its features and its layer, as they were when asked.
_Asked = tuple[Scan, Any, Any]


def _warm_up(sides: Sides, asked: list[_Asked], limits: LandmarksConfig) -> None:
    """What the first search of a pair makes and keeps is made before it is asked."""
    a, b = (sides.of(*one) for one in asked)
    body = np.ones(a.search.shape, bool) if a.body is None else a.body
    cells = np.argwhere(body)
    z, y, x = a.search.features.affine.apply(cells[len(cells) // 2])
    some = Landmark(1, "", (z, y, x), None, NAN, NAN, NAN, False)
    search_points(a, b, [some], limits)


def _search(
    sides: Sides,
    a: _Asked,
    b: _Asked,
    marks: list[Landmark],
    limits: LandmarksConfig,
) -> list[Landmark]:
    return search_points(sides.of(*a), sides.of(*b), marks, limits)


def _compare(sides: Sides, a: _Asked, b: _Asked, a_mm: Triple, b_mm: Triple) -> float:
    return similarity_between(sides.of(*a), sides.of(*b), a_mm, b_mm)


def _follow(
    sides: Sides, a: _Asked, b: _Asked, a_mm: NDArray[np.float64]
) -> tuple[Triple, float] | None:
    return follow(sides.of(*a), sides.of(*b), a_mm)
