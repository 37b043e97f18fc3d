"""Where a feature comes back: cosine maps, best matches, cycle errors. numpy only.

Features have unit norm, so a cosine is a dot product. Maps are read slab by slab: they
are memory-mapped and may be larger than the memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from homolog.data.volume import FeatureMap
from homolog.errors import UnusableInput
from homolog.geometry.affine import Affine, Index, Triple
from homolog.geometry.places import place_text

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
    """Where points (N, 3) of one scan lie in another, by their features alone."""
    queries = query_at(source, mm)
    found: list[Match] = []
    for first in range(0, len(queries), at_once):
        maps = cosine_maps(target, queries[first : first + at_once])
        found += [best_match(m, target.affine, apart_mm=apart_mm) for m in maps]
    return found


def cycle_errors(
    source: FeatureMap,
    target: FeatureMap,
    mm: NDArray[np.float64],
    matches: list[Match],
) -> NDArray[np.float64]:
    """Distance (N,) in mm between points and where their matches lead back to."""
    there = np.array([m.mm for m in matches]).reshape(-1, 3)
    back = np.array([m.mm for m in match_points(target, source, there)]).reshape(-1, 3)
    distance: NDArray[np.float64] = np.linalg.norm(back - mm, axis=1)
    return distance
