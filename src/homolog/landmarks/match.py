"""Landmarks of A matched in B, which are believed, and the map they agree on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import comb
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from homolog.errors import UnusableInput
from homolog.features.search import (
    Match,
    Search,
    grid_shape,
    in_mask,
    kept_inside,
    query_at,
    search_of,
)
from homolog.geometry.affine import Affine, Index, Triple
from homolog.landmarks.config import LandmarksConfig
from homolog.scans.points import NAN, Landmark
from homolog.scans.volume import FeatureMap, Points

# What most of many matched points agree on: one map of A to B. numpy only.
#
# RANSAC over the smallest samples, then least squares over those that agree (rigid:
# Kabsch 1976; similarity: Umeyama 1991; affine: linear least squares), until the set of
# those no longer changes. All in float64.


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


# When a match is believed: the limits, and the words of a refusal.


# Part of the reason of those that disagree with the others.
ELSEWHERE = "from where the other landmarks put it"
# Part of the reason where no match between two scans is believed.
LITTLE = "too little in common"


def judged(mark: Landmark, config: LandmarksConfig) -> Landmark:
    """A landmark found before, judged by other limits; nothing is searched.

    What a person set stays, and so does what has no figures to judge by and what was
    refused because others disagree, which one landmark alone cannot show.
    """
    figures = (mark.similarity, mark.margin, mark.cycle_mm)
    if mark.manual or mark.b_mm is None or np.isnan(figures).any():
        return mark
    reasons = (ELSEWHERE, LITTLE) if config.largest_stray_mm > 0 else (ELSEWHERE,)
    if not mark.accepted and any(words in mark.reason for words in reasons):
        return mark
    reason = _reason(*figures, mark.stray_mm, config)
    return replace(mark, accepted=not reason, reason=reason)


def reason_of(
    match: Match, cycle_mm: float, config: LandmarksConfig, stray_mm: float = NAN
) -> str:
    """Why a match is refused, the gravest reason; empty where it is believed."""
    return _reason(match.similarity, match.margin, cycle_mm, stray_mm, config)


def _reason(
    similarity: float,
    margin: float,
    cycle_mm: float,
    stray_mm: float,
    config: LandmarksConfig,
) -> str:
    if similarity < config.least_similarity:
        return f"similarity {similarity:.3f} is below {config.least_similarity:g}"
    if cycle_mm > config.largest_cycle_mm:
        return (
            f"leads back {cycle_mm:.0f} mm beside the point (at most "
            f"{config.largest_cycle_mm:g})"
        )
    if 0 < config.largest_stray_mm < stray_mm:
        return (
            f"{stray_mm:.0f} mm from where the rest of the body puts it (at most "
            f"{config.largest_stray_mm:g})"
        )
    if margin < config.least_margin:
        return (
            f"only {margin:.3f} better than another place (at least "
            f"{config.least_margin:g})"
        )
    return ""


# Where the rest of a scan says that a point lies in another. numpy only.
#
# A match may lead back to its point and still be wrong: of points that scan B does not
# show, more than half find a place that leads back. So places drawn all over the body
# of A are matched too, once per pair of scans; most right ones agree on one map of A to
# B, wrong ones on none. A match far from where that map puts it is refused, and where
# no map is agreed on, all are.


PLACES = 48  # of each scan
# Fewer places that lead back prove nothing, neither for nor against a map.
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
    """What places all over A and B show of each other.

    Attributes:
        leading_back: Of the places tried, those whose match led back to them.
        agreed: The map they agree on; None where they do not.
    """

    leading_back: int
    agreed: Consensus | None

    @property
    def known(self) -> bool:
        """Whether enough places led back to show anything."""
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


Mask = NDArray[np.bool_]


def match_landmarks(
    source: Search | FeatureMap,
    target: Search | FeatureMap,
    points: Points,
    config: LandmarksConfig | None = None,
    *,
    body_a: Mask | None = None,
    body_b: Mask | None = None,
    scan_b: tuple[Affine, Index] | None = None,
    seed: int = 0,
) -> tuple[list[Landmark], Consensus | None]:
    """Points of A searched in B and back, each accepted or refused with its reason.

    Args:
        source: Features of A, or a prepared search of them.
        target: Features of B, by the same encoder.
        points: Points of A, world mm; ids count from 1 in their order.
        config: When a match is believed; the defaults if None.
        body_a: (d, h, w) cells of A in the body; all if None.
        body_b: The same of B.
        scan_b: Affine and shape of scan B; matches are kept on its grid.
        seed: Of the consensus.

    Returns:
        One Landmark per point; and the consensus, None where none was requested or
        where too few accepted matches agree on one.

    Raises:
        UnusableInput: The features come from different encoders.
    """
    config = config or LandmarksConfig()
    if not config.body_only:
        body_a = body_b = None
    mm = np.asarray(points.mm, np.float64)
    refusals = _refusals(mm, _features(source), body_a)
    if body_b is not None and not body_b.any():
        refusals = [r or "no body was found in scan B" for r in refusals]
    open_ = np.flatnonzero([not r for r in refusals])
    found: dict[int, tuple[Match, float]] = {}
    if open_.size:
        source, target = search_of(source), search_of(target)
        there = _search(source, target, mm[open_], config, body_b)
        if scan_b is not None:
            there = [kept_inside(m, *scan_b) for m in there]
        places = np.array([m.mm for m in there])
        back = _search(target, source, _on_grid(target, places), config, body_a)
        cycle = np.linalg.norm(np.array([m.mm for m in back]) - mm[open_], axis=1)
        found = {
            int(i): (m, float(c)) for i, m, c in zip(open_, there, cycle, strict=True)
        }
    around = None
    if found and config.largest_stray_mm > 0:
        around = surroundings_between(
            search_of(source), search_of(target), body_a=body_a, body_b=body_b,
            least_similarity=config.least_similarity,
            largest_cycle_mm=config.largest_cycle_mm,
        )  # fmt: skip
    names = points.names or tuple(f"point_{i + 1}" for i in range(len(mm)))
    marks = [
        _landmark(i, names[i], mm[i], found.get(i), refusals[i], config, around)
        for i in range(len(mm))
    ]
    return with_consensus(marks, config, seed=seed)


def with_consensus(
    marks: Sequence[Landmark], config: LandmarksConfig, *, seed: int = 0
) -> tuple[list[Landmark], Consensus | None]:
    """The landmarks, those refused against which the agreement of the others speaks.

    Landmarks set by hand take part and are never refused.

    Returns:
        The landmarks, and the consensus over the accepted ones in their order; None
        where none was requested or too few agree.
    """
    taking = [i for i, m in enumerate(marks) if m.accepted and m.b_mm is not None]
    if config.consensus == "none":
        return list(marks), None
    try:
        consensus = fit_consensus(
            np.array([marks[i].a_mm for i in taking]).reshape(-1, 3),
            np.array([marks[i].b_mm for i in taking]).reshape(-1, 3),
            kind=config.consensus,
            tolerance_mm=config.largest_consensus_mm,
            seed=seed,
        )
    except UnusableInput:
        return list(marks), None
    after = list(marks)
    for i, agrees, gap in zip(
        taking, consensus.inliers, consensus.leave_one_out_mm, strict=True
    ):
        if not agrees and not marks[i].manual:
            reason = (
                f"{gap:.0f} mm {ELSEWHERE} (at most {config.largest_consensus_mm:g})"
            )
            after[i] = replace(marks[i], accepted=False, reason=reason)
    return after, consensus


def _search(
    source: Search,
    target: Search,
    mm: NDArray[np.float64],
    config: LandmarksConfig,
    where: Mask | None,
) -> list[Match]:
    return target.find(
        query_at(source.features, mm),
        apart_mm=config.apart_mm,
        where=where,
        exhaustive=config.exhaustive,
    )


def _features(side: Search | FeatureMap) -> FeatureMap:
    return side.features if isinstance(side, Search) else side


def _refusals(
    mm: NDArray[np.float64], features: FeatureMap, body: Mask | None
) -> list[str]:
    """Why points are not searched at all; empty where they are."""
    index = features.affine.inverse().apply(mm)
    shape = np.array(grid_shape(features))
    outside = (index < -0.5 - 1e-6) | (index > shape - 0.5 + 1e-6)
    beyond: Mask = np.asarray(outside.any(axis=1))
    air = np.zeros(len(mm), bool)
    if body is not None:
        air = np.logical_not(in_mask(body, features, mm))
    return [
        "the point lies outside scan A" if b
        else "the point lies outside the body of A" if a
        else ""
        for b, a in zip(beyond, air, strict=True)
    ]  # fmt: skip


def _on_grid(search: Search, mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Positions moved onto the grid of cells, which may end half a cell early."""
    affine = search.features.affine
    last = np.array(search.shape) - 0.5
    return affine.apply(np.clip(affine.inverse().apply(mm), -0.5, last))


def _landmark(
    index: int,
    name: str,
    mm: NDArray[np.float64],
    found: tuple[Match, float] | None,
    refusal: str,
    config: LandmarksConfig,
    around: Surroundings | None,
) -> Landmark:
    z, y, x = (float(v) for v in mm)
    a: Triple = (z, y, x)
    if found is None:
        return Landmark(index + 1, name, a, None, NAN, NAN, NAN, False, refusal)
    match, cycle = found
    stray = NAN
    if around is not None:
        stray = float(around.stray_mm(mm[None], np.array([match.mm]))[0])
    reason = reason_of(match, cycle, config, stray)
    if not reason and around is not None:
        reason = around.refusal
    return Landmark(
        index + 1, name, a, match.mm, match.similarity, match.margin, cycle,
        not reason, reason, stray_mm=stray,
    )  # fmt: skip
