"""One landmark in many scans: what was found where, on threads. No Qt."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from homolog.data.landmarks import Landmark
from homolog.gui.explore.layers import shown_of
from homolog.gui.explore.scan import Scan
from homolog.gui.landmarks.matching import Sides, search_points
from homolog.gui.landmarks.patches import Picture, patch
from homolog.gui.landmarks.table import Trust, trust_of
from homolog.tasks._landmark_rules import LandmarksConfig, judged


@dataclass
class Row:
    """A scan of the cohort.

    Attributes:
        key: Of the scan.
        name: Of the scan.
        state: ``searching``, ``found``, ``waiting`` (no features yet), ``computing`` or
            ``failed``.
        mark: The landmark as found in it.
        picture: Around that place.
        words: Why it failed, or how far its features are.
        share: Of its features that is computed, 0..1.
    """

    key: str
    name: str
    state: str = "searching"
    mark: Landmark | None = None
    picture: Picture | None = None
    words: str = ""
    share: float = 0.0

    @property
    def trust(self) -> Trust:
        """How far its match is to be trusted."""
        if self.mark is None:
            return "refused" if self.state == "failed" else "searching"
        return trust_of(self.mark)

    def told(self) -> str:
        """What is known, in words."""
        if self.mark is not None:
            return self.mark.reason or "accepted"
        waiting = "no features yet; press Compute missing"
        return self.words or (waiting if self.state == "waiting" else "searching ...")

    def judge(self, limits: LandmarksConfig) -> None:
        """Believe or refuse what was found by other limits."""
        if self.mark is not None:
            self.mark = judged(self.mark, limits)


def best_first(rows: Iterable[Row]) -> list[Row]:
    """The most similar first; rows without a match stay in their order, below."""

    def rank(row: Row) -> float:
        similarity = math.nan if row.mark is None else row.mark.similarity
        return math.inf if math.isnan(similarity) else -similarity

    return sorted(rows, key=rank)


def summary(rows: Iterable[Row]) -> str:
    """``3 of 6 scans accepted, 1 without features``."""
    told = list(rows)
    accepted = sum(r.mark is not None and r.mark.accepted for r in told)
    text = f"{accepted} of {len(told)} scans accepted"
    for state, words in (("waiting", "without features"), ("failed", "failed")):
        count = sum(row.state == state for row in told)
        text += f", {count} {words}" if count else ""
    return text


def computing_words(count: int) -> str:
    """What is said when features of scans are asked for."""
    if count == 1:
        return "Computing features of one scan."
    return f"Computing features of {count} scans, one by one."


def find_in(
    sides: Sides,
    source: tuple[Scan, Any, Any],
    target: tuple[Scan, Any, Any],
    mark: Landmark,
    limits: LandmarksConfig | None = None,
) -> tuple[Landmark, Picture | None]:
    """A landmark in one scan, and what it looks like there.

    Args:
        sides: Prepared scans.
        source: Scan A, its features, its layer.
        target: The scan to search.
        mark: With its place in A.
        limits: When a match is believed; the defaults if None.
    """
    (found,) = search_points(sides.of(*source), sides.of(*target), [mark], limits)
    if found.b_mm is None:
        return found, None
    scan, _, layer = target
    low, high = (float(v) for v in layer.contrast_limits)
    shown = np.asarray(shown_of(scan.to_true, found.b_mm))
    return found, patch(layer.data, scan.grid, shown, (low, high))
