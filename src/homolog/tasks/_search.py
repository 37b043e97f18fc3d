"""Coarse-to-fine search of a feature map: prepared once, asked often. numpy only.

Cells are grouped into blocks of 2 x 2 x 2 whose mean features, in the main directions
of the scan's features, stay in memory. A query is compared with every block, and only
the cells of the most promising blocks are read from the file. The best cell is then
followed uphill over the borders of its block.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from homolog.data.volume import FeatureMap
from homolog.errors import UnusableInput
from homolog.geometry.affine import Index, Triple
from homolog.tasks._matching import (
    Match,
    Vector,
    best_match,
    cosine_maps,
    grid_shape,
    peak_offset,
)

Mask = NDArray[np.bool_]
Cells = NDArray[np.int64]

# Cells along each side of a block, and directions in which its mean is kept.
_SIDE = 2
_DIRECTIONS = 32
# Blocks read for a query, and blocks far from the best place for its second best.
_BLOCKS = 1024
_SECOND = 512
# The most promising blocks from which both are taken.
_SHORT = 4096
# A block of mixed cells may hold a better one than its mean tells: this share of the
# cells' spread is added. On phantom features of random weights 0.25 and 0.5 find the
# same place as reading everything for 97 % of the queries, 0 for 93 %.
_HOPE = 0.25
# Cells looked at for the main directions.
_SAMPLE = 16_384
# One score of so many is looked at to tell which can be among the best.
_THIN = 16
# Steps uphill at most; each goes to the best of 26 neighbours.
_STEPS = 64
_AROUND = np.indices((3, 3, 3)).reshape(3, -1).T - 1
_INNER = np.indices((_SIDE,) * 3).reshape(3, -1).T
# Queries compared with all cells at once, as in match_points.
_AT_ONCE = 16


class Search:
    """Where queries come back in one scan.

    Args:
        features: (E, d, h, w) of unit norm, may be memory-mapped. All of it is read
            once, here; about 17 bytes per cell stay in memory.

    Attributes:
        features: What is searched.
    """

    def __init__(self, features: FeatureMap) -> None:
        self.features = features
        self._cells = np.moveaxis(np.asarray(features.data), 0, -1)
        size = self._cells.shape[3]
        # One index per cell is read faster than three, where that needs no copy.
        flat = self._cells.flags.c_contiguous
        self._lines = self._cells.reshape(-1, size) if flat else None
        self._blocks: Index = _counts(self.shape)
        self._basis = _directions(self._cells)
        self._means, self._spread = _block_means(self._cells, self._blocks, self._basis)
        # No cell of a block is farther from its middle.
        steps = np.linalg.norm(features.affine.matrix[:3, :3], axis=0)
        self._reach = float(steps.sum() * _SIDE / 2)
        self._steps = steps
        self._last: tuple[Mask, Mask] | None = None

    @property
    def shape(self) -> Index:
        """Cells (d, h, w)."""
        return grid_shape(self.features)

    def find(
        self,
        queries: Vector,
        *,
        apart_mm: float = 20.0,
        where: Mask | None = None,
        exhaustive: bool = False,
    ) -> list[Match]:
        """The best place of each query, refined below the cell size.

        Args:
            queries: (N, E) of unit norm.
            apart_mm: Cells nearer than this to the best one are no second choice.
            where: (d, h, w) cells that may be found; all if None.
            exhaustive: Compare with every cell instead; slow, misses nothing.

        Returns:
            One Match per query. Without ``exhaustive`` its similarity is never above
            the true maximum, and its margin may be too large where the second-best
            place was missed.

        Raises:
            UnusableInput: The queries have another length than the features, or
                ``where`` allows no cell.
        """
        size = self._cells.shape[-1]
        if queries.ndim != 2 or queries.shape[1] != size:
            raise UnusableInput(
                f"features of length {size} were asked for, got queries of shape "
                f"{queries.shape}: the maps come from different encoders."
            )
        if where is not None and (where.shape != self.shape or not where.any()):
            raise UnusableInput(
                f"a mask of {self.shape} cells, some of them true, was expected, got "
                f"{where.shape} with {int(where.sum())} true."
            )
        queries = np.asarray(queries, np.float32)
        if exhaustive:
            return self._exhaustive(queries, apart_mm, where)
        return [self._find(query, apart_mm, where) for query in queries]

    def _exhaustive(
        self, queries: Vector, apart_mm: float, where: Mask | None
    ) -> list[Match]:
        found: list[Match] = []
        affine = self.features.affine
        for first in range(0, len(queries), _AT_ONCE):
            maps = cosine_maps(self.features, queries[first : first + _AT_ONCE])
            found += [
                best_match(m, affine, apart_mm=apart_mm, where=where) for m in maps
            ]
        return found

    def _find(self, query: Vector, apart_mm: float, where: Mask | None) -> Match:
        scores = self._means @ (query @ self._basis)
        scores += self._spread
        if where is not None:
            scores[~self._allowed(where)] = -np.inf
        short = _best(scores, _SHORT)
        index, cosine = self._read(short[:_BLOCKS], query, where)
        best = self._climb(index[int(cosine.argmax())], query, where)
        last = np.array(self.shape) - 1
        around = self._cosine(np.clip(best + _AROUND, 0, last), query)
        top = float(around[len(_AROUND) // 2])
        place = best + [self._offset(best, around, axis) for axis in range(3)]
        mm = self.features.affine.apply(place)
        # The second best: of what was read anyway, and of the best blocks far away.
        near = self._blocks_near(best, apart_mm)
        left = short[_BLOCKS:]
        left = left[~np.isin(left, near)]
        if len(left) < min(_SECOND, len(scores) - _BLOCKS - len(near)):
            scores[near] = scores[short[:_BLOCKS]] = -np.inf
            left = _best(scores, _SECOND)
        more = self._read(left[:_SECOND], query, where)
        centre = self.features.affine.apply(best)
        second = -1.0
        for cells, values in ((index, cosine), more):
            apart = np.linalg.norm(self.features.affine.apply(cells) - centre, axis=1)
            far = values[(apart > apart_mm) & (values > -1.5)]
            second = max(second, float(far.max(initial=-1.0)))
        return Match(_triple(mm), top, top - second)

    def _blocks_near(self, best: Cells, apart_mm: float) -> Cells:
        """Blocks that lie within ``apart_mm`` of a cell as a whole."""
        wide = np.ceil(apart_mm / self._steps).astype(int) + _SIDE
        low = np.maximum(best - wide, 0) // _SIDE
        high = np.minimum(
            np.minimum(best + wide, self.shape) // _SIDE + 1, self._blocks
        )
        sides = [np.arange(a, b) for a, b in zip(low, high, strict=True)]
        index = np.stack(np.meshgrid(*sides, indexing="ij"), -1).reshape(-1, 3)
        middle = self.features.affine.apply(index * _SIDE + (_SIDE - 1) / 2)
        gap = np.linalg.norm(middle - self.features.affine.apply(best), axis=1)
        index = index[gap + self._reach <= apart_mm]
        return np.asarray(np.ravel_multi_index(tuple(index.T), self._blocks))

    def _read(
        self, blocks: Cells, query: Vector, where: Mask | None
    ) -> tuple[Cells, Vector]:
        """Cells (M, 3) of blocks and their cosines (M,); -2 where not allowed."""
        low = np.stack(np.unravel_index(blocks, self._blocks), -1) * _SIDE
        index = (low[:, None] + _INNER).reshape(-1, 3)
        index = index[(index < np.array(self.shape)).all(axis=1)]
        cosine = self._cosine(index, query)
        if where is not None:
            cosine = np.where(where[tuple(index.T)], cosine, np.float32(-2))
        return index, cosine

    def _cosine(self, index: Cells, query: Vector) -> Vector:
        """Cosines (M,) of cells (M, 3)."""
        z, y, x = index.T
        if self._lines is None:
            cells = self._cells[z, y, x]
        else:
            _, h, w = self.shape
            cells = self._lines[(z * h + y) * w + x]
        values: Vector = np.asarray(cells, np.float32) @ query
        return np.clip(values, -1.0, 1.0)

    def _climb(self, best: Cells, query: Vector, where: Mask | None) -> Cells:
        """The local maximum that a cell leads to."""
        for _ in range(_STEPS):
            near = np.clip(best + _AROUND, 0, np.array(self.shape) - 1)
            cosine = self._cosine(near, query)
            if where is not None:
                cosine = np.where(where[tuple(near.T)], cosine, np.float32(-2))
            highest = int(cosine.argmax())
            if cosine[highest] <= cosine[len(_AROUND) // 2]:
                break
            best = near[highest]
        return best

    def _offset(self, best: Cells, around: Vector, axis: int) -> float:
        at = int(best[axis])
        if at == 0 or at == self.shape[axis] - 1:
            return 0.0
        line = np.moveaxis(around.reshape(3, 3, 3), axis, 0)[:, 1, 1]
        return peak_offset(*(float(v) for v in line))

    def _allowed(self, where: Mask) -> Mask:
        """Which blocks hold a cell of the mask; the last mask's answer is kept."""
        if self._last is None or self._last[0] is not where:
            starts = [np.arange(0, n, _SIDE) for n in self.shape]
            some = where
            for axis, start in enumerate(starts):
                some = np.logical_or.reduceat(some, start, axis=axis)
            self._last = where, some.ravel()
        return self._last[1]


def search_of(features: Search | FeatureMap) -> Search:
    """A search, prepared unless it is one already."""
    return features if isinstance(features, Search) else Search(features)


def _counts(shape: Index) -> Index:
    d, h, w = (-(-n // _SIDE) for n in shape)
    return d, h, w


def _directions(cells: NDArray[np.generic]) -> Vector:
    """The main directions (E, P) of a sample of the cells, columns of unit norm."""
    flat = _thinned(cells)
    _, vectors = np.linalg.eigh(flat.T @ flat)
    return np.asarray(vectors[:, ::-1][:, :_DIRECTIONS], np.float32)


def _thinned(cells: NDArray[np.generic]) -> Vector:
    """Evenly spread cells (M, E)."""
    step = max(1, int((np.prod(cells.shape[:3]) / _SAMPLE) ** (1 / 3)))
    flat = np.asarray(cells[::step, ::step, ::step], np.float32)
    return flat.reshape(-1, cells.shape[3])


def _block_means(
    cells: NDArray[np.generic], blocks: Index, basis: Vector
) -> tuple[Vector, Vector]:
    """Mean feature (B, P) of each block in the basis, and what to add to its cosine."""
    shape = cells.shape[:3]
    starts = [np.arange(0, n, _SIDE) for n in shape]
    lengths = [np.diff([*s, n]) for s, n in zip(starts, shape, strict=True)]
    total = np.empty((*blocks, basis.shape[1]), np.float32)
    squares = np.empty(blocks, np.float32)
    for row, z in enumerate(starts[0]):
        slab = np.asarray(cells[z : z + _SIDE], np.float32)
        power = np.einsum("zyxe,zyxe->yx", slab, slab)
        lines = slab.sum(axis=0)
        for axis in (0, 1):
            lines = np.add.reduceat(lines, starts[axis + 1], axis=axis)
            power = np.add.reduceat(power, starts[axis + 1], axis=axis)
        total[row], squares[row] = lines @ basis, power
    d, h, w = np.ix_(*lengths)
    count = (d * h * w).astype(np.float32)
    total /= count[..., None]
    means = total.reshape(-1, basis.shape[1])
    left = (squares / count).ravel() - np.einsum("be,be->b", means, means)
    return means, np.float32(_HOPE) * np.sqrt(np.maximum(left, 0)).astype(np.float32)


def _best(scores: Vector, count: int) -> Cells:
    """Indices of the highest finite scores, best first."""
    chosen = np.arange(len(scores)) if len(scores) <= count else None
    if chosen is None and len(scores) > _THIN * count:
        # Nearly all are worse than what the best of a sample tell.
        sample = scores[::_THIN]
        rank = min(len(sample), 2 * count // _THIN)
        chosen = np.flatnonzero(scores > np.partition(sample, -rank)[-rank])
    if chosen is None or len(chosen) < min(count, len(scores)):
        chosen = np.argpartition(scores, -count)[-count:]
    chosen = chosen[scores[chosen] > -np.inf]
    return np.asarray(chosen[np.argsort(-scores[chosen])[:count]], np.int64)


def _triple(mm: NDArray[np.float64]) -> Triple:
    z, y, x = (float(v) for v in mm)
    return z, y, x
