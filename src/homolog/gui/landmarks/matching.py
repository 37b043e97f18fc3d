"""Searching landmarks of A in B, on threads; what is prepared once is kept. No Qt."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.data.landmarks import NAN, Landmark
from homolog.data.volume import Points
from homolog.errors import UnusableInput
from homolog.geometry.affine import Affine, Index, Triple
from homolog.gui.explore.scan import Ready, Scan
from homolog.gui.files.layer_scan import layer_volume
from homolog.tasks._body import body_of
from homolog.tasks._landmark_rules import LandmarksConfig, match_landmarks
from homolog.tasks._matching import kept_inside, query_at
from homolog.tasks._search import Search


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
