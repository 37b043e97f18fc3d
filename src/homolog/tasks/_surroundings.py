"""Where the rest of a scan says that a point lies in another. numpy only.

A match may lead back to its point and still be wrong: of points that scan B does not
show, more than half find a place that leads back. So places drawn all over the body of
A are matched too, once per pair of scans; most right ones agree on one map of A to B,
wrong ones on none. A match far from where that map puts it is refused, and where no
map is agreed on, all are.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from homolog.errors import UnusableInput
from homolog.tasks._consensus import Consensus, fit_consensus
from homolog.tasks._landmark_limits import LITTLE
from homolog.tasks._matching import query_at
from homolog.tasks._search import Search

Mask = NDArray[np.bool_]
Cloud = NDArray[np.float64]

PLACES = 48  # of each scan
# Fewer places that lead back tell nothing, neither for nor against a map.
_ENOUGH = 20
# Of those, this share and this many must agree: chance brings 5 to 12 % within the
# tolerance in scans of different parts of the body.
_SHARE, _LEAST = 0.15, 8
# In small scans the tolerance is this share of their side, or all would agree.
_TOLERANCE_MM, _TOLERANCE_SHARE = 30.0, 0.125
# Grown-ups and children differ by less.
_SCALE = (0.5, 2.0)


@dataclass(frozen=True, eq=False)
class Surroundings:
    """What places all over A and B tell about each other.

    Attributes:
        leading_back: Of the places tried, those whose match led back to them.
        agreed: The map they agree on; None where they do not.
    """

    leading_back: int
    agreed: Consensus | None

    @property
    def known(self) -> bool:
        """Whether enough places led back to tell anything."""
        return self.leading_back >= _ENOUGH

    @property
    def refusal(self) -> str:
        """Why no match between these scans is believed; empty where some may be."""
        if self.agreed is not None or not self.known:
            return ""
        return (
            f"the scans have {LITTLE}: of {self.leading_back} matched places no map "
            "puts enough near their matches"
        )

    def stray_mm(self, a_mm: Cloud, b_mm: Cloud) -> Cloud:
        """(N,) distance of matches (N, 3) from where the map puts them; NaN unknown."""
        if self.agreed is None:
            return np.full(len(a_mm), np.nan)
        gap: Cloud = np.linalg.norm(self.agreed.apply(a_mm) - b_mm, axis=1)
        return gap


_KEPT: WeakKeyDictionary[
    Search, WeakKeyDictionary[Search, dict[tuple[float, ...], Surroundings]]
] = WeakKeyDictionary()


def surroundings_between(
    source: Search,
    target: Search,
    *,
    body_a: Mask | None = None,
    body_b: Mask | None = None,
    least_similarity: float = 0.5,
    largest_cycle_mm: float = 10.0,
    seed: int = 0,
) -> Surroundings:
    """Match places all over both bodies; made once per pair and kept with it.

    Args:
        source: Features of A.
        target: Features of B.
        body_a: (d, h, w) cells of A to draw from and to search; all if None.
        body_b: The same of B.
        least_similarity: Matches less similar do not take part.
        largest_cycle_mm: Matches that lead back farther away do not take part.
        seed: Of the places and of the consensus.
    """
    kept = _KEPT.setdefault(source, WeakKeyDictionary()).setdefault(target, {})
    key = (least_similarity, largest_cycle_mm, float(seed))
    if key not in kept:
        limits = (least_similarity, largest_cycle_mm)
        a, b = _leading_back(source, target, body_a, body_b, limits, seed)
        d, c = _leading_back(target, source, body_b, body_a, limits, seed + 1)
        smaller = min(_side_mm(source), _side_mm(target))
        tolerance = min(_TOLERANCE_MM, _TOLERANCE_SHARE * smaller)
        kept[key] = _agreement(
            np.concatenate([a, c]), np.concatenate([b, d]), tolerance, seed
        )
    return kept[key]


def _leading_back(
    source: Search,
    target: Search,
    body: Mask | None,
    other: Mask | None,
    limits: tuple[float, float],
    seed: int,
) -> tuple[Cloud, Cloud]:
    """Places of one scan whose match in the other leads back to them, and these."""
    mm = _places(source, body, seed)
    there = target.find(query_at(source.features, mm), where=other)
    places = np.array([m.mm for m in there]).reshape(-1, 3)
    back = source.find(query_at(target.features, places), where=body)
    home = np.array([m.mm for m in back]).reshape(-1, 3)
    good = np.array([m.similarity for m in there]) >= limits[0]
    good &= np.linalg.norm(home - mm, axis=1) <= limits[1]
    return mm[good], places[good]


def _places(source: Search, body: Mask | None, seed: int) -> Cloud:
    """Centres (N <= PLACES, 3) mm of cells, evenly drawn."""
    shape = source.shape
    cells = np.argwhere(np.ones(shape, bool) if body is None else body)
    rng = np.random.Generator(np.random.Philox(key=[seed, 0x5022]))
    chosen = cells[rng.permutation(len(cells))[:PLACES]].reshape(-1, 3)
    return source.features.affine.apply(chosen.astype(np.float64))


def _side_mm(search: Search) -> float:
    """Of a cube as large as the scan."""
    sides = np.array(search.shape) * search.features.affine.spacing_mm
    return float(np.prod(sides) ** (1 / 3))


def _agreement(a: Cloud, b: Cloud, tolerance_mm: float, seed: int) -> Surroundings:
    if len(a) < _ENOUGH:
        return Surroundings(len(a), None)
    try:
        found = fit_consensus(
            a, b, kind="similarity", tolerance_mm=tolerance_mm, seed=seed
        )
    except UnusableInput:
        return Surroundings(len(a), None)
    agreeing = int(found.inliers.sum())
    scale = float(np.linalg.det(found.matrix[:3, :3])) ** (1 / 3)
    enough = agreeing >= max(_LEAST, _SHARE * len(a))
    if not (enough and _SCALE[0] <= scale <= _SCALE[1]):
        return Surroundings(len(a), None)
    return Surroundings(len(a), found)
