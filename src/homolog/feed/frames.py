"""Where scans lie in a body they share, as far as matching places tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import lsqr

from homolog.geometry.affine import Array

_ROUNDS = 5
_DOUBT_MM = 20.0  # matches farther out than this count less and less
_LENGTH_MM = 100.0  # a stretch by 1 counts as much as a shift by this
_DAMP = 0.05


@dataclass(frozen=True, eq=False)
class Frames:
    """A frame of the body for each case of a feed.

    Attributes:
        to_body: (N, 4, 4) float64, world mm -> mm in the frame (z, y, x).
        number: (N,) int64; places of cases with one number can be compared.
    """

    to_body: Array
    number: NDArray[np.int64]


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
