"""How well left-out strokes are told: cross-validation that neighbours cannot help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.tasks._few_head import Samples, fit_head
from homolog.tasks._few_settings import FewClass, FewConfig
from homolog.tasks._few_simple import SimpleSpec

# A stroke longer than this is cut into blocks of that size.
_BLOCK_MM = 25.0
# Training voxels nearer than this to a left-out one are left out too.
GUARD_MM = 5.0
_FOLDS = 5


@dataclass(frozen=True)
class FewScore:
    """The left-out score.

    Attributes:
        accuracy: Share of left-out voxels that got their class, 0..1; None where
            nothing could be left out.
        recall: Class name -> share of its left-out voxels that were found.
        dice: Class name -> Dice over all left-out voxels.
        voxels: How many were left out.
        folds: How many times a head was fitted.
        unscored: Names of classes painted in one place only.
        reason: Why there is no score; empty where there is one.
    """

    accuracy: float | None
    recall: dict[str, float] = field(default_factory=dict)
    dice: dict[str, float] = field(default_factory=dict)
    voxels: int = 0
    folds: int = 0
    unscored: tuple[str, ...] = ()
    reason: str = ""


def leave_out_score(
    samples: Samples,
    classes: Sequence[FewClass],
    spec: SimpleSpec,
    config: FewConfig,
) -> FewScore:
    """Fit without some strokes, predict them, in turn.

    Connected strokes are left out whole (long ones in blocks), together with all paint
    nearer than 5 mm; a class painted in one place only is always learnt from.

    Args:
        samples: Painted voxels.
        classes: What the values mean.
        spec: Which simple features the vectors end with.
        config: Of the head.
    """
    names = {c.value: c.name for c in classes}
    groups = strokes(samples)
    places = {
        int(v): len(np.unique(groups[samples.values == v]))
        for v in np.unique(samples.values)
    }
    scored = [v for v, n in places.items() if n >= 2]
    alone = tuple(names[v] for v, n in places.items() if n < 2)
    if len(places) < 2:
        return FewScore(None, reason="only one class is painted.")
    if not scored:
        return FewScore(
            None, unscored=alone,
            reason="every class is painted in one place only; paint each in a second.",
        )  # fmt: skip
    truth: list[NDArray[np.int64]] = []
    told: list[NDArray[np.int64]] = []
    folds = 0
    for test, train in left_out(samples, groups, scored, config.seed):
        if len(np.unique(samples.values[train])) < 2:
            continue
        head = fit_head(samples.only(train), classes, spec, config)
        chances = head.probabilities(samples.vectors[test])
        values = np.array([c.value for c in head.classes])
        told.append(values[chances.argmax(axis=1)])
        truth.append(samples.values[test])
        folds += 1
    if not truth:
        return FewScore(
            None, unscored=alone,
            reason="all strokes lie within 5 mm of each other; paint further apart.",
        )  # fmt: skip
    return _figures(np.concatenate(truth), np.concatenate(told), names, folds, alone)


def left_out(
    samples: Samples, groups: NDArray[np.int64], scored: Sequence[int], seed: int
) -> list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Which samples (N,) are tested on and which are learnt from, fold by fold."""
    from scipy.spatial import cKDTree

    fold = np.full(len(groups), -1)
    for value in scored:
        own = np.unique(groups[samples.values == value])
        rng = np.random.Generator(np.random.Philox(key=[seed, value]))
        place = dict(zip(rng.permutation(own).tolist(), range(len(own)), strict=True))
        for g in own.tolist():
            fold[groups == g] = place[g] % _FOLDS
    found = []
    for number in range(int(fold.max()) + 1):
        test = fold == number
        if not test.any():
            continue
        train = ~test
        for scan in np.unique(samples.scan[test]):
            here = samples.scan == scan
            tree = cKDTree(samples.mm[test & here])
            near = np.isfinite(
                tree.query(samples.mm[here], distance_upper_bound=GUARD_MM)[0]
            )
            train[np.flatnonzero(here)[near]] = False
        # a class of which nothing is left to learn from cannot be told
        left = np.isin(samples.values, np.unique(samples.values[train]))
        test = test & left
        if test.any():
            found.append((test, train))
    return found


def strokes(samples: Samples) -> NDArray[np.int64]:
    """Number (N,) of the stroke each sample belongs to: one class, one scan, touching.

    Voxels touch that share a face, an edge or a corner, or that a choice among very
    many has parted by less than 5 mm.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    groups = np.zeros(len(samples.values), np.int64)
    count = 0
    keys = np.stack([samples.scan, samples.values], 1)
    for key in np.unique(keys, axis=0):
        own = np.flatnonzero((keys == key).all(axis=1))
        pairs = np.concatenate(
            [
                cKDTree(samples.voxels[own]).query_pairs(
                    1.0, p=np.inf, output_type="ndarray"
                ),
                cKDTree(samples.mm[own]).query_pairs(GUARD_MM, output_type="ndarray"),
            ]
        )
        graph = coo_array(
            (np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (len(own), len(own))
        )
        _, parts = connected_components(graph, directed=False)
        blocks = _blocks(samples.mm[own], parts)
        groups[own] = count + blocks
        count += int(blocks.max()) + 1
    return groups


def _blocks(mm: NDArray[np.float64], parts: NDArray[Any]) -> NDArray[np.int64]:
    """Strokes (N,) with the long ones cut into blocks."""
    cells = np.zeros((len(mm), 4), np.int64)
    cells[:, 0] = parts
    for part in np.unique(parts):
        own = parts == part
        size = np.ptp(mm[own], axis=0)
        if size.max() > _BLOCK_MM:
            cells[own, 1:] = (mm[own] - mm[own].min(axis=0)) // _BLOCK_MM
    _, number = np.unique(cells, axis=0, return_inverse=True)
    return np.asarray(number, np.int64).reshape(-1)


def _figures(
    truth: NDArray[np.int64],
    told: NDArray[np.int64],
    names: dict[int, str],
    folds: int,
    alone: tuple[str, ...],
) -> FewScore:
    recall, dice = {}, {}
    for value in np.unique(truth).tolist():
        both = int(((truth == value) & (told == value)).sum())
        true, guessed = int((truth == value).sum()), int((told == value).sum())
        recall[names[value]] = both / true
        dice[names[value]] = 2 * both / (true + guessed)
    accuracy = float((truth == told).mean())
    return FewScore(accuracy, recall, dice, len(truth), folds, alone)
