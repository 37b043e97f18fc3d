"""One landmark in many scans: what was found where, on threads. No Qt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from homolog.data.landmarks import Landmark
from homolog.gui.explore.layers import shown_of
from homolog.gui.explore.scan import Scan
from homolog.gui.landmarks.matching import Sides, search_points
from homolog.gui.landmarks.patches import Picture, patch
from homolog.gui.landmarks.table import Trust, trust_of


@dataclass
class Row:
    """A scan of the cohort.

    Attributes:
        key: Of the scan.
        name: Of the scan.
        state: ``searching``, ``found``, ``waiting`` (no features yet) or ``failed``.
        mark: The landmark as found in it.
        picture: Around that place.
        words: Why it failed.
    """

    key: str
    name: str
    state: str = "searching"
    mark: Landmark | None = None
    picture: Picture | None = None
    words: str = ""

    @property
    def trust(self) -> Trust:
        """How far its match is to be trusted."""
        return "searching" if self.mark is None else trust_of(self.mark)

    def told(self) -> str:
        """What is known, in words."""
        if self.mark is not None:
            return self.mark.reason or "accepted"
        waiting = "no features yet; press Compute missing"
        return self.words or (waiting if self.state == "waiting" else "searching ...")


def find_in(
    sides: Sides,
    source: tuple[Scan, Any, Any],
    target: tuple[Scan, Any, Any],
    mark: Landmark,
) -> tuple[Landmark, Picture | None]:
    """A landmark in one scan, and what it looks like there.

    Args:
        sides: Prepared scans.
        source: Scan A, its features, its layer.
        target: The scan to search.
        mark: With its place in A.
    """
    (found,) = search_points(sides.of(*source), sides.of(*target), [mark])
    if found.b_mm is None:
        return found, None
    scan, _, layer = target
    low, high = (float(v) for v in layer.contrast_limits)
    shown = np.asarray(shown_of(scan.to_true, found.b_mm))
    return found, patch(layer.data, scan.grid, shown, (low, high))
