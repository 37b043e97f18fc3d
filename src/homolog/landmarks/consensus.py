"""What most of many matched points agree on: one map of A to B. numpy only.

RANSAC over the smallest samples, then least squares over those that agree (rigid:
Kabsch 1976; similarity: Umeyama 1991; affine: linear least squares), until the set of
those no longer changes. All in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

from homolog.errors import UnusableInput

Cloud = NDArray[np.float64]

KINDS = ("rigid", "similarity", "affine")
# Points a map needs, and across how many dimensions they must spread.
_NEEDS = {"rigid": (3, 2), "similarity": (3, 2), "affine": (4, 3)}
_WORDS = {2: "not on one line", 3: "not in one plane"}
# Samples tried; all of them where there are no more.
_SAMPLES = 1000
# A sample that spreads less than this share of its length predicts nothing.
_FLAT = 0.02


@dataclass(frozen=True, eq=False)
class Consensus:
    """A map on which most points agree.

    Attributes:
        kind: ``rigid``, ``similarity`` or ``affine``.
        matrix: (4, 4) float64, world mm of A -> world mm of B, both z, y, x, LPS.
        inliers: (N,) whether a point agrees within the tolerance.
        rms_mm: Root mean square distance of those that agree.
        leave_one_out_mm: (N,) how far each point lies from where the others that
            agree put it; NaN where too few others are left.
    """

    kind: str
    matrix: Cloud
    inliers: NDArray[np.bool_]
    rms_mm: float
    leave_one_out_mm: Cloud

    def apply(self, a_mm: Cloud) -> Cloud:
        """Positions (N, 3) of A where the map puts them in B."""
        return _moved(self.matrix, np.asarray(a_mm, np.float64))


def fit_consensus(
    a_mm: Cloud,
    b_mm: Cloud,
    *,
    kind: str = "rigid",
    tolerance_mm: float = 15.0,
    seed: int = 0,
    weights: Cloud | None = None,
) -> Consensus:
    """The map that most pairs of points agree on.

    Args:
        a_mm: (N, 3) positions in A, z, y, x.
        b_mm: (N, 3) their matches in B.
        kind: ``rigid``; ``similarity`` adds one scale; ``affine`` is any linear map.
        tolerance_mm: Pairs nearer than this to the map agree with it.
        seed: Of the samples; the result is a function of the arguments alone.
        weights: (N,) positive, how much each pair counts; all alike if None.

    Raises:
        UnusableInput: Too few pairs, all on one line (affine: in one plane), or no map
            on which enough of them agree.
        ValueError: Unknown kind or shapes that do not fit.
    """
    a, b = np.asarray(a_mm, np.float64), np.asarray(b_mm, np.float64)
    weight = np.ones(len(a)) if weights is None else np.asarray(weights, np.float64)
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}.")
    if a.shape != b.shape or a.shape[-1:] != (3,) or weight.shape != a.shape[:1]:
        raise ValueError(
            f"points must both be (N, 3) and weights (N,), got {a.shape}, {b.shape} "
            f"and {weight.shape}."
        )
    count, dimensions = _NEEDS[kind]
    if len(a) < count or _flat(a, dimensions, 1e-9):
        raise UnusableInput(
            f"a consensus of kind {kind} needs at least {count} points "
            f"{_WORDS[dimensions]}, got {len(a)}."
        )
    inliers = _agreeing(a, b, weight, kind, tolerance_mm, seed)
    matrix = fit_map(a[inliers], b[inliers], kind, weight[inliers])
    residual = np.linalg.norm(_moved(matrix, a) - b, axis=1)
    share = weight[inliers] / weight[inliers].sum()
    return Consensus(
        kind,
        matrix,
        inliers,
        float(np.sqrt(share @ residual[inliers] ** 2)),
        _left_out(a, b, weight, kind, inliers, residual),
    )


def fit_map(a: Cloud, b: Cloud, kind: str, weights: Cloud | None = None) -> Cloud:
    """Least squares map (4, 4) of points a (N, 3) to b (N, 3), all of them counting."""
    weight = np.ones(len(a)) if weights is None else weights
    share = weight / weight.sum()
    centre_a, centre_b = share @ a, share @ b
    p, q = a - centre_a, b - centre_b
    if kind == "affine":
        root = np.sqrt(share)[:, None]
        linear = np.linalg.lstsq(root * p, root * q, rcond=None)[0].T
    else:
        u, sizes, v = np.linalg.svd((share[:, None] * q).T @ p)
        # A mirror image fits better only where the points are flat or wrong.
        signs = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ v))])
        linear = (u * signs) @ v
        if kind == "similarity":
            linear = linear * ((sizes @ signs) / (share @ (p**2).sum(axis=1)))
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = centre_b - linear @ centre_a
    return matrix


def _agreeing(
    a: Cloud, b: Cloud, weight: Cloud, kind: str, tolerance_mm: float, seed: int
) -> NDArray[np.bool_]:
    """Which pairs agree on the best map found."""
    count, dimensions = _NEEDS[kind]
    best = np.zeros(len(a), bool)
    best_rank = (0.0, 0.0)
    for sample in _samples(len(a), count, seed):
        if _flat(a[sample], dimensions, _FLAT):
            continue
        residual = _residual(fit_map(a[sample], b[sample], kind), a, b)
        agree = residual <= tolerance_mm
        if agree.sum() < count:
            continue
        rank = (float(weight[agree].sum()), -float(residual[agree].mean()))
        if not best.any() or rank > best_rank:
            best, best_rank = agree, rank
    for _ in range(50):
        if best.sum() < count or _flat(a[best], dimensions, 1e-9):
            break
        matrix = fit_map(a[best], b[best], kind, weight[best])
        agree = _residual(matrix, a, b) <= tolerance_mm
        if (agree == best).all():
            return best
        # Growing only, after the first fit: a set that shrinks could swing for ever.
        best = agree if agree.sum() >= best.sum() else best & agree
    if best.sum() < count or _flat(a[best], dimensions, 1e-9):
        raise UnusableInput(
            f"no {kind} map brings {count} of {len(a)} points {_WORDS[dimensions]} "
            f"within {tolerance_mm:g} mm of their matches."
        )
    return best


def _samples(total: int, count: int, seed: int) -> list[NDArray[np.intp]]:
    if comb(total, count) <= _SAMPLES:
        return [np.array(c) for c in combinations(range(total), count)]
    rng = np.random.Generator(np.random.Philox(key=[seed, 0xC045]))
    return [rng.choice(total, count, replace=False) for _ in range(_SAMPLES)]


def _flat(points: Cloud, dimensions: int, share: float) -> bool:
    """Whether points spread across fewer dimensions than are needed."""
    if len(points) <= dimensions:
        return True
    sizes = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
    return bool(sizes[dimensions - 1] <= share * max(float(sizes[0]), 1e-12))


def _left_out(
    a: Cloud,
    b: Cloud,
    weight: Cloud,
    kind: str,
    inliers: NDArray[np.bool_],
    residual: Cloud,
) -> Cloud:
    """Distances (N,) to where the others put each point; outliers left out already."""
    dimensions = _NEEDS[kind][1]
    result = residual.copy()
    for i in np.flatnonzero(inliers):
        others = inliers.copy()
        others[i] = False
        if _flat(a[others], dimensions, 1e-9):
            result[i] = np.nan
            continue
        matrix = fit_map(a[others], b[others], kind, weight[others])
        result[i] = np.linalg.norm(_moved(matrix, a[i : i + 1]) - b[i])
    return result


def _residual(matrix: Cloud, a: Cloud, b: Cloud) -> Cloud:
    distance: Cloud = np.linalg.norm(_moved(matrix, a) - b, axis=1)
    return distance


def _moved(matrix: Cloud, points: Cloud) -> Cloud:
    moved: Cloud = points @ matrix[:3, :3].T + matrix[:3, 3]
    return moved
