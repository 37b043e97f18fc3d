"""Coarse-to-fine search of a feature map: prepared once, searched often. numpy only.

Cells are grouped into blocks of 2 x 2 x 2 whose mean features, in the main directions
of the scan's features, stay in memory. A query is compared with every block, and only
the cells of the most promising blocks are read from the file. The best cell is then
followed uphill over the borders of its block.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from homolog.errors import UnusableInput
from homolog.geometry.affine import Affine, Index, Triple
from homolog.geometry.places import place_text
from homolog.scans.volume import FeatureMap, Volume
from homolog.store.preprocess import inside, spread_sample

# Where a feature comes back: cosine maps, best matches, cycle errors. numpy only.
#
# Features have unit norm, so a cosine is a dot product. Maps are read slab by slab:
# they are memory-mapped and may be larger than the memory.


Vector = NDArray[np.float32]

# Cells multiplied at once: 64 MB of float32 at 256 features.
_CELLS_AT_ONCE = 65_536


@dataclass(frozen=True)
class Match:
    """The place whose feature is most like a query's.

    Attributes:
        mm: World position (z, y, x), refined below the cell size.
        similarity: Cosine at the best cell, -1..1.
        margin: How far it is above the best cosine further than ``apart_mm`` away.
    """

    mm: Triple
    similarity: float
    margin: float


def grid_shape(features: FeatureMap) -> Index:
    """Cells (d, h, w)."""
    d, h, w = features.data.shape[1:]
    return d, h, w


def query_at(features: FeatureMap, mm: NDArray[np.float64]) -> Vector:
    """Features at world positions, trilinear between cells, of unit norm.

    Args:
        features: (E, d, h, w).
        mm: (N, 3) world positions (z, y, x). The grid reaches half a cell beyond the
            outermost cell centres; there the border cell counts.

    Returns:
        (N, E) float32.

    Raises:
        UnusableInput: A position lies outside the grid.
    """
    shape = np.array(grid_shape(features))
    index = features.affine.inverse().apply(np.atleast_2d(mm))
    outside = ((index < -0.5 - 1e-6) | (index > shape - 0.5 + 1e-6)).any(axis=1)
    if outside.any():
        place = place_text(np.atleast_2d(mm)[outside][0])
        raise UnusableInput(f"the point {place} lies outside the scan.")
    index = np.clip(index, 0, shape - 1)
    low = np.minimum(index.astype(np.int64), np.maximum(shape - 2, 0))
    share = index - low
    cells = np.moveaxis(features.data, 0, -1)
    total = np.zeros((len(index), features.data.shape[0]), np.float32)
    for corner in np.ndindex(2, 2, 2):
        picked = np.minimum(low + corner, shape - 1)
        weight = np.prod(np.where(corner, share, 1 - share), axis=1)
        used = weight > 0
        z, y, x = picked[used].T
        total[used] += weight[used, None] * cells[z, y, x].astype(np.float32)
    return unit(total)


def unit(vectors: Vector) -> Vector:
    """Vectors (N, E) scaled to unit norm; zero stays zero."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Vector = (vectors / np.maximum(length, 1e-6)).astype(np.float32)
    return scaled


def cosine_maps(features: FeatureMap, queries: Vector) -> NDArray[np.float32]:
    """Cosine of every cell with every query.

    Args:
        features: (E, d, h, w) unit norm, float16 or float32.
        queries: (N, E) unit norm.

    Returns:
        (N, d, h, w) float32 in -1..1.

    Raises:
        UnusableInput: The features have another length than the queries.
    """
    size = features.data.shape[0]
    if queries.shape[1] != size:
        raise UnusableInput(
            f"features of length {size} were asked for, got a query of length "
            f"{queries.shape[1]}: the maps come from different encoders."
        )
    shape = grid_shape(features)
    cells = np.moveaxis(features.data, 0, -1)
    result = np.empty((len(queries), *shape), np.float32)
    rows = max(1, _CELLS_AT_ONCE // (shape[1] * shape[2]))
    for first in range(0, shape[0], rows):
        slab = np.asarray(cells[first : first + rows], np.float32)
        cosine = slab.reshape(-1, size) @ queries.T
        result[:, first : first + rows] = cosine.T.reshape(-1, *slab.shape[:3])
    return np.clip(result, -1.0, 1.0, out=result)


def best_match(
    similarity: NDArray[np.float32],
    affine: Affine,
    *,
    apart_mm: float = 20.0,
    where: NDArray[np.bool_] | None = None,
) -> Match:
    """The peak of a cosine map, refined by a parabola along each axis.

    Args:
        similarity: (d, h, w).
        affine: Cell -> world mm.
        apart_mm: Cells nearer than this to the best one are no second choice.
        where: (d, h, w) cells that may be found, at least one; all if None.
    """
    shape = similarity.shape
    open_to = similarity if where is None else np.where(where, similarity, -2.0)
    best = np.array(np.unravel_index(int(open_to.argmax()), shape))
    place = best + [_parabola(similarity, best, axis) for axis in range(3)]
    top = float(similarity[tuple(best)])
    offsets = [np.arange(n) - b for n, b in zip(shape, best, strict=True)]
    steps = affine.matrix[:3, :3]
    # |M o|^2 expanded, so that no (d, h, w, 3) array is needed.
    gram = steps.T @ steps
    z, y, x = np.ix_(*offsets)
    squared = gram[0, 0] * z**2 + gram[1, 1] * y**2 + gram[2, 2] * x**2
    squared = squared + 2 * (
        gram[0, 1] * z * y + gram[0, 2] * z * x + gram[1, 2] * y * x
    )
    beyond = squared > apart_mm**2
    far = similarity[beyond if where is None else beyond & where]
    second = float(far.max()) if far.size else -1.0
    z, y, x = (float(v) for v in affine.apply(place))
    return Match((z, y, x), top, top - second)


def kept_inside(match: Match, affine: Affine, shape: Index) -> Match:
    """The match moved to the scan's nearest voxel centre line where it lies beyond.

    A border cell's centre may lie half a cell outside a scan that the stride does not
    divide, or in front of the only plane of a single slice.
    """
    index = affine.inverse().apply(np.array(match.mm))
    z, y, x = affine.apply(np.clip(index, 0, np.array(shape) - 1.0))
    return replace(match, mm=(float(z), float(y), float(x)))


def _parabola(
    similarity: NDArray[np.float32], best: NDArray[np.int64], axis: int
) -> float:
    """Offset (-0.5..0.5 cells) of the peak along an axis; none at the border."""
    at = int(best[axis])
    if at == 0 or at == similarity.shape[axis] - 1:
        return 0.0
    line = similarity[
        tuple(slice(None) if a == axis else int(b) for a, b in enumerate(best))
    ]
    left, middle, right = (float(v) for v in line[at - 1 : at + 2])
    return peak_offset(left, middle, right)


def peak_offset(left: float, middle: float, right: float) -> float:
    """Where (-0.5..0.5) the parabola through three neighbouring values peaks."""
    bend = left - 2 * middle + right
    return (
        0.0 if bend > -1e-9 else float(np.clip(0.5 * (left - right) / bend, -0.5, 0.5))
    )


def match_points(
    source: FeatureMap,
    target: FeatureMap,
    mm: NDArray[np.float64],
    *,
    apart_mm: float = 20.0,
    at_once: int = 16,
) -> list[Match]:
    """Where points (N, 3) of one scan lie in another, by their features alone.

    Paper: SAM matching.
    """
    queries = query_at(source, mm)
    found: list[Match] = []
    for first in range(0, len(queries), at_once):
        maps = cosine_maps(target, queries[first : first + at_once])
        found += [best_match(m, target.affine, apart_mm=apart_mm) for m in maps]
    return found


# Where a scan, and the cells of its feature map, show the body. numpy and scipy.


Mask: TypeAlias = NDArray[np.bool_]

# The body is found on a thinned grid of about this voxel size.
_STEP_MM = 4.0
# Parts smaller than this share of the largest one are table, tubes or noise.
_PART = 0.02


@dataclass(frozen=True, eq=False)
class Body:
    """Where a scan shows the body, lungs and bowel gas included.

    Attributes:
        mask: (d, h, w) on a thinned grid: every ``steps``-th voxel of the scan.
        steps: Voxels of the scan (z, y, x) from one to the next.
    """

    mask: NDArray[np.bool_]
    steps: Index

    def at(self, voxels: NDArray[np.floating] | NDArray[np.integer]) -> Mask:
        """Whether places (N, 3), in voxels of the scan, lie in it: (N,)."""
        near = np.rint(voxels / np.array(self.steps)).astype(np.int64)
        near = np.clip(near, 0, np.array(self.mask.shape) - 1)
        return np.asarray(self.mask[tuple(near.T)])

    def block(self, start: Index, stop: Index) -> Mask:
        """The same for all voxels from ``start`` to before ``stop``: (d, h, w)."""
        near = [
            np.minimum(np.rint(np.arange(a, b) / s).astype(np.int64), n - 1)
            for a, b, s, n in zip(start, stop, self.steps, self.mask.shape, strict=True)
        ]
        return np.asarray(self.mask[np.ix_(*near)])


def find_body(scan: Volume) -> Body:
    """The body on a grid of about 4 mm.

    What is darker than the body but enclosed by it in a slice counts as body; small
    separate parts do not.

    Args:
        scan: A scan as stored in its file.
    """
    from scipy import ndimage

    z, y, x = (max(1, round(_STEP_MM / s)) for s in scan.affine.spacing_mm)
    data = scan.data[0, ::z, ::y, ::x]
    values = data.astype(np.float32)
    mask = inside(values, spread_sample(scan.data), scan.modality == "CT")
    labels, count = ndimage.label(mask)
    if count > 1:
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        mask = (sizes >= ceil(_PART * sizes.max()))[labels]
    axis = scan.affine.closest_axes()[0][0]  # slices are axial ones
    for plane in range(mask.shape[axis]):
        at = tuple(plane if a == axis else slice(None) for a in range(3))
        mask[at] = ndimage.binary_fill_holes(mask[at])
    return Body(mask, (z, y, x))


def body_of(
    scan: Volume, features: FeatureMap, body: Body | None = None
) -> NDArray[np.bool_]:
    """Cells (d, h, w) whose centre lies in the body, see ``find_body``.

    Args:
        scan: A scan as stored in its file.
        features: Its features; only their grid is looked at.
        body: Of the scan, where it is known already.
    """
    shape = grid_shape(features)
    index = np.indices(shape).reshape(3, -1).T
    voxel = scan.affine.inverse().apply(features.affine.apply(index))
    known = ((voxel > -1) & (voxel < np.array(scan.shape))).all(axis=1)
    inside = (body or find_body(scan)).at(voxel)
    result: Mask = (inside & known).reshape(shape)
    return result


def in_mask(
    mask: NDArray[np.bool_], features: FeatureMap, mm: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Whether the cells (d, h, w) nearest to positions (N, 3) are in a mask."""
    index = np.rint(features.affine.inverse().apply(mm)).astype(np.int64)
    index = np.clip(index, 0, np.array(mask.shape) - 1)
    found: NDArray[np.bool_] = mask[tuple(index.T)]
    return found


# Maps of feature cells read at every voxel of a scan's own grid. numpy only.


Array = NDArray[np.float64]


def on_grid(
    values: NDArray[np.float32], affine: Affine, shape: Index, target: Affine
) -> NDArray[np.float32]:
    """Cell values at every voxel of another grid, trilinear.

    Beyond the outermost cell centres the border cell's value holds. Any pair of affines
    will do; where the axes agree up to order and direction, which is so for a scan and
    its own features, it is done axis by axis.

    Args:
        values: (d, h, w).
        affine: Cell -> world mm.
        shape: Voxels (D, H, W) of the wanted grid.
        target: Its voxel -> world mm.

    Returns:
        (D, H, W) float32.
    """
    matrix = (affine.inverse() @ target).matrix
    linear, offset = matrix[:3, :3], matrix[:3, 3]
    values = np.asarray(values, np.float32)
    axes = np.abs(linear).argmax(axis=0)  # the cell axis along each voxel axis
    main = np.zeros((3, 3), bool)
    main[axes, range(3)] = True
    drift = np.abs(np.where(main, 0.0, linear)) @ (np.array(shape) - 1.0)
    if sorted(axes) == [0, 1, 2] and drift.max() < 1e-3:
        turned = np.transpose(values, axes)
        places = [
            linear[a, voxel] * np.arange(shape[voxel]) + offset[a]
            for voxel, a in enumerate(axes)
        ]
        return _axis_by_axis(turned, places)
    return _anyhow(values, linear, offset, shape)


def _axis_by_axis(
    values: NDArray[np.float32], places: list[Array]
) -> NDArray[np.float32]:
    """Linear interpolation along one axis after the other; the last grows it most."""
    order = sorted(range(3), key=lambda a: len(places[a]) / values.shape[a])
    for axis in order:
        length = values.shape[axis]
        index = np.clip(places[axis], 0, length - 1)
        low = np.minimum(index.astype(np.int64), max(length - 2, 0))
        wide = [1, 1, 1]
        wide[axis] = -1
        share = (index - low).astype(np.float32).reshape(wide)
        first = np.take(values, low, axis=axis)
        second = np.take(values, np.minimum(low + 1, length - 1), axis=axis)
        second -= first
        second *= share
        first += second
        values = first
    return np.ascontiguousarray(values)


def _anyhow(
    values: NDArray[np.float32], linear: Array, offset: Array, shape: Index
) -> NDArray[np.float32]:
    from scipy import ndimage

    result: NDArray[Any] = ndimage.affine_transform(
        values, linear, offset, output_shape=shape, output=np.float32, order=1,
        mode="nearest",
    )  # fmt: skip
    return result


Cells = NDArray[np.int64]

# Cells along each side of a block, and directions in which its mean is kept.
_SIDE = 2
_DIRECTIONS = 32
# Blocks read for a query, and blocks far from the best place for its second best.
_BLOCKS = 1024
_SECOND = 512
# The most promising blocks from which both are taken.
_SHORT = 4096
# A block of mixed cells may hold a better one than its mean suggests: this share of the
# cells' spread is added. On phantom features of random weights 0.25 and 0.5 find the
# same place as reading everything for 97 % of the queries, 0 for 93 %.
_HOPE = 0.25
# Cells looked at for the main directions.
_SAMPLE = 16_384
# One score of so many is looked at to see which can be among the best.
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
        # Nearly all are worse than the best of a sample.
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


def similarity_volume(
    source: FeatureMap,
    target: FeatureMap,
    point_mm: NDArray[np.float64],
    scan: Volume,
    apart_mm: float = 20.0,
) -> Volume:
    """The cosine map of a point of ``source`` in ``target``, on the scan's own grid.

    Args:
        source: Features of the scan that holds the point.
        target: Features of the scan that is searched.
        point_mm: (3,) world mm.
        scan: The scan that is searched; gives grid and affine.
        apart_mm: See ``best_match``.
    """
    query = query_at(source, point_mm[None])
    cells = cosine_maps(target, query)[0]
    match = best_match(cells, target.affine, apart_mm=apart_mm)
    match = kept_inside(match, scan.affine, scan.shape)
    values = on_grid(cells, target.affine, scan.shape, scan.affine)
    meta = {**scan.meta, "match": match}
    return Volume(values[None], scan.affine, f"{scan.name}_similarity", "OTHER", meta)
