"""Searches of landmarks on threads: new ones, all again, and under the mouse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QObject, Signal

from homolog.data.landmarks import NAN, Landmark
from homolog.geometry.affine import Triple
from homolog.gui.explore.scan import Scan
from homolog.gui.landmarks.control import LandmarksControl
from homolog.gui.landmarks.matching import (
    Sides,
    follow,
    search_points,
    similarity_between,
)
from homolog.gui.landmarks.table import LandmarkTable
from homolog.gui.threads import in_background
from homolog.tasks._landmark_rules import LandmarksConfig, judged

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
