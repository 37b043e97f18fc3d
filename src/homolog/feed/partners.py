"""The other patient of a sample: who it is, and which places of both belong together.

Partners are drawn from matching places, from places at random (for comparison), or from
the same data set without any place. Matching places also tell where scans lie in the
body they share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import lsqr

from homolog.feed.batches import Frames
from homolog.feed.reading import CaseRef
from homolog.geometry.affine import Array
from homolog.store.pairs import PairTable
from homolog.views.random import generator

_ROUNDS = 5
_DOUBT_MM = 20.0  # matches farther out than this count less and less
_LENGTH_MM = 100.0  # a stretch by 1 counts as much as a shift by this
_DAMP = 0.05
_RANDOM_PLACES = 64  # per case


class Partners:
    """Accepted rows by case, ready to be drawn from.

    Args:
        rows: Per case of the feed (position), (K, 7) float64: place mm (3), position of
            the partner, its place mm (3).
        matched: Whether the places show the same anatomy.
    """

    def __init__(
        self, rows: Sequence[NDArray[np.float64]], *, matched: bool = True
    ) -> None:
        self._rows = tuple(rows)
        self.matched = matched

    def __len__(self) -> int:
        return sum(len(rows) for rows in self._rows)

    @property
    def lonely(self) -> int:
        """Cases without any partner."""
        return sum(len(rows) == 0 for rows in self._rows)

    @property
    def rows(self) -> tuple[NDArray[np.float64], ...]:
        """As given."""
        return self._rows

    def frames(self) -> Frames | None:
        """The body's frames that the places imply; None where they are not matched."""
        return frames_of(self._rows) if self.matched else None

    def draw(
        self, case: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.float64], int, NDArray[np.float64]] | None:
        """Place mm (3,), partner's position and place mm (3,); None if it has none."""
        share = rng.random()
        rows = self._rows[case]
        if len(rows) == 0:
            return None
        row = rows[int(share * len(rows))]
        return row[:3], int(row[3]), row[4:]


def partners_of(
    cases: Sequence[tuple[Path, str]],
    tables: Mapping[Path, PairTable],
    least_score: float,
    largest_cycle_mm: float = 0.0,
    best_share: float = 1.0,
) -> Partners:
    """Accepted matches among the cases a training sees.

    Args:
        cases: Store folder and case id of each case, in the feed's order.
        tables: Store folder -> its table.
        least_score: See ``PairTable.accepted``.
        largest_cycle_mm: See ``PairTable.accepted``.
        best_share: See ``PairTable.accepted``.
    """
    position = {case: i for i, case in enumerate(cases)}
    parts: list[NDArray[np.float64]] = [np.zeros((0, 8))]
    for store, table in tables.items():
        where = np.array([position.get((store, case), -1) for case in table.ids])
        rows = table.accepted(least_score, largest_cycle_mm, best_share)
        mine, theirs = where[rows["case"]], where[rows["partner"]]
        kept = (mine >= 0) & (theirs >= 0)
        columns = (mine, rows["mm"], theirs, rows["partner_mm"])
        parts.append(np.column_stack([c[kept] for c in columns]).astype(np.float64))
    whole = np.concatenate(parts)
    whole = whole[np.argsort(whole[:, 0], kind="stable")]
    stops = np.searchsorted(whole[:, 0], np.arange(1, len(cases)))
    return Partners([rows[:, 1:] for rows in np.split(whole, stops)])


def random_partners(cases: Sequence[CaseRef], seed: int) -> Partners:
    """Random places paired with random places of random other cases: the control."""
    count = len(cases)
    rows = []
    for position in range(count):
        rng = generator(seed, position, stream="random partners")
        own = _places(cases[position], rng, _RANDOM_PLACES)
        if count > 1:
            others = (position + rng.integers(1, count, _RANDOM_PLACES)) % count
        else:
            others = np.zeros(_RANDOM_PLACES, dtype=np.int64)
        theirs = np.concatenate([_places(cases[int(o)], rng, 1) for o in others])
        rows.append(np.column_stack([own, others.astype(np.float64), theirs]))
    return Partners(rows, matched=False)


def _places(case: CaseRef, rng: np.random.Generator, count: int) -> Array:
    """(count, 3) mm, anywhere in the foreground box."""
    start, stop = (np.asarray(c, dtype=np.float64) for c in case.card.foreground)
    voxels = start - 0.5 + rng.random((count, 3)) * (stop - start)
    return case.card.affine.apply(voxels)


# Paper: MixCL views.
class SameDataset:
    """Partners of one data set: the scan itself, or another one of its store.

    A labelled scan is paired with labelled ones, where there are any.

    Args:
        cases: As the feed has them.
        same_share: Share of partners that are the scan itself.
    """

    def __init__(self, cases: Sequence[CaseRef], same_share: float) -> None:
        self._same_share = same_share
        kinds = [(c.store.path, c.card.has_label) for c in cases]
        members: dict[tuple[Path, bool], list[int]] = {}
        for position, kind in enumerate(kinds):
            members.setdefault(kind, []).append(position)
        self._others = [members[kind] for kind in kinds]

    def draw(self, case: int, rng: np.random.Generator) -> tuple[None, int, None]:
        """Any place of the partner at position ``int``; see ``Pairing``."""
        same, which = rng.random(2)
        others = self._others[case]
        if same < self._same_share or len(others) == 1:
            return None, case, None
        other = others[int(which * (len(others) - 1))]
        # the last one stands in for the case itself
        return None, others[-1] if other == case else other, None

    def frames(self) -> None:
        """Any place of a partner will do: none is known to match."""
        return


# Where scans lie in a body they share, as far as matching places tell.


def frames_of(rows: Sequence[Array]) -> Frames:
    """Shift and stretch along each axis that bring matching places together.

    Cases that matches link, directly or through others, share a frame; a case without
    any has its own, in which it lies as it is.

    Args:
        rows: Per case, (K, 7): place mm (3), position of the partner, its place mm (3).

    Returns:
        The frames; least squares over all matches, those that disagree by much counting
        less, with as little shift and stretch as they allow.

    Paper: Alice 4.4, InfoNCE.
    """
    count = len(rows)
    case = np.repeat(np.arange(count), [len(r) for r in rows])
    whole = np.concatenate([np.zeros((0, 7)), *rows])
    partner = whole[:, 3].astype(np.int64)
    links = coo_array((np.ones(len(case)), (case, partner)), shape=(count, count))
    _, number = connected_components(links, directed=False)
    to_body = np.tile(np.eye(4), (count, 1, 1))
    if len(case):
        middle = _middles(count, case, whole[:, :3], partner, whole[:, 4:])
        for axis in range(3):
            shift, stretch = _solved(
                count, case, whole[:, axis], partner, whole[:, 4 + axis],
                middle[:, axis], number,
            )  # fmt: skip
            to_body[:, axis, axis] = stretch
            to_body[:, axis, 3] = shift - stretch * middle[:, axis]
    return Frames(to_body, number.astype(np.int64))


def _middles(
    count: int,
    case: NDArray[np.int64],
    mm: Array,
    partner: NDArray[np.int64],
    other: Array,
) -> Array:
    """(N, 3) mean place of each case, 0 where it has none."""
    sums, seen = np.zeros((count, 3)), np.zeros((count, 1))
    for index, places in ((case, mm), (partner, other)):
        np.add.at(sums, index, places)
        np.add.at(seen, index, 1.0)
    found: Array = sums / np.maximum(seen, 1.0)
    return found


def _solved(
    count: int,
    case: NDArray[np.int64],
    mm: Array,
    partner: NDArray[np.int64],
    other: Array,
    middle: Array,
    number: NDArray[np.int64],
) -> tuple[Array, Array]:
    """Shift (N,) mm of each middle, and stretch (N,) about it, along one axis."""
    lines = len(case)
    a, b = mm - middle[case], other - middle[partner]
    line = np.arange(lines)
    # unknowns: shifts, then stretches less 1 in units of _LENGTH_MM
    row = np.concatenate([line, line, line, line])
    column = np.concatenate([case, partner, count + case, count + partner])
    value = np.concatenate(
        [np.ones(lines), -np.ones(lines), a / _LENGTH_MM, -b / _LENGTH_MM]
    )
    # the stretches of a frame are 1 on average, or all would shrink to nothing
    firm = 1000.0 * np.sqrt(lines)
    row = np.concatenate([row, lines + number])
    column = np.concatenate([column, count + np.arange(count)])
    value = np.concatenate([value, np.full(count, firm / _LENGTH_MM)])
    shape = (lines + int(number.max()) + 1, 2 * count)
    system = coo_array((value, (row, column)), shape=shape).tocsr()
    wanted = np.concatenate([b - a, np.zeros(shape[0] - lines)])
    weight = np.ones(shape[0])
    found = np.zeros(2 * count)
    for _ in range(_ROUNDS):
        scaled = system * weight[:, None]
        found = lsqr(scaled, wanted * weight, damp=_DAMP)[0]
        off = np.abs(system @ found - wanted)[:lines]
        weight[:lines] = np.sqrt(_DOUBT_MM / np.maximum(off, _DOUBT_MM))
    mean = np.bincount(number, weights=middle) / np.bincount(number)
    return mean[number] + found[:count], 1 + found[count:] / _LENGTH_MM
