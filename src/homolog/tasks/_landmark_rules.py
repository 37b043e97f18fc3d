"""Landmarks of A found in B, and which of them are believed. numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from homolog.data.landmarks import NAN, Landmark
from homolog.data.volume import FeatureMap, Points
from homolog.errors import UnusableInput
from homolog.geometry.affine import Affine, Index, Triple
from homolog.tasks._body import in_mask
from homolog.tasks._consensus import Consensus, fit_consensus
from homolog.tasks._landmark_limits import (
    ELSEWHERE,
    LandmarksConfig,
    judged,
    reason_of,
)
from homolog.tasks._matching import Match, grid_shape, kept_inside, query_at
from homolog.tasks._search import Search, search_of
from homolog.tasks._surroundings import Surroundings, surroundings_between

__all__ = [
    "LandmarksConfig", "Mask", "judged", "match_landmarks", "reason_of",
    "with_consensus",
]  # fmt: skip

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
        One Landmark per point; and the consensus, None where none was asked for or
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
    asked = np.flatnonzero([not r for r in refusals])
    found: dict[int, tuple[Match, float]] = {}
    if asked.size:
        source, target = search_of(source), search_of(target)
        there = _search(source, target, mm[asked], config, body_b)
        if scan_b is not None:
            there = [kept_inside(m, *scan_b) for m in there]
        places = np.array([m.mm for m in there])
        back = _search(target, source, _on_grid(target, places), config, body_a)
        cycle = np.linalg.norm(np.array([m.mm for m in back]) - mm[asked], axis=1)
        found = {
            int(i): (m, float(c)) for i, m, c in zip(asked, there, cycle, strict=True)
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
        where none was asked for or too few agree.
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
