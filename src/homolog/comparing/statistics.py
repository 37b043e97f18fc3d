"""From scores of the same test patients to differences, intervals and tests.

All functions take plain arrays and nothing of how they were made. A score matrix is
(S, P): seeds by test patients; a patient's cases were averaged before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Scores = NDArray[np.float64]
Interval = tuple[float, float]

RESAMPLES = 10000
_TINY, _DECIMALS = 1e-9, 9
_MOST_EXACT = 16  # patients whose signs are all tried


@dataclass(frozen=True)
class Difference:
    """How much better one arm is than another on the same patients and seeds.

    Attributes:
        mean: Of all patients and seeds; positive is better.
        patients: 95 % interval over patients (these seeds): another sample of patients.
        both: 95 % interval over patients and seeds; None with one seed.
        p: Two-sided Wilcoxon signed-rank test over patients; None below two patients.
        wins: Patients that are better, means over seeds.
        losses: Patients that are worse.
        count: Patients.
    """

    mean: float
    patients: Interval | None
    both: Interval | None
    p: float | None
    wins: int
    losses: int
    count: int


def difference(ours: Scores, theirs: Scores, seed: int = 0) -> Difference:
    """Paired comparison of two score matrices.

    Args:
        ours: (S, P), higher is better.
        theirs: (S, P), the same seeds and patients in the same order.
        seed: Of the resampling.
    """
    if ours.shape != theirs.shape or ours.ndim != 2 or not ours.size:
        raise ValueError(
            f"both must be (seeds, patients), got {ours.shape} and {theirs.shape}."
        )
    gains = ours - theirs
    each = gains.mean(axis=0)
    return Difference(
        mean=float(each.mean()),
        patients=bootstrap_interval(each, seed),
        both=crossed_interval(gains),
        p=signed_rank(each),
        wins=int((each > _TINY).sum()),
        losses=int((each < -_TINY).sum()),
        count=each.size,
    )


def bootstrap_interval(
    values: Scores, seed: int = 0, resamples: int = RESAMPLES
) -> Interval | None:
    """95 % percentile interval of the mean of (P,) values; None below two.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    count = values.size
    if count < 2:
        return None
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    for first in range(0, resamples, 1000):  # a thousand at a time: little memory
        last = min(first + 1000, resamples)
        drawn = rng.integers(0, count, (last - first, count))
        means[first:last] = values[drawn].mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def crossed_interval(values: Scores) -> Interval | None:
    """95 % interval of the mean of (S, P) values when both are samples.

    Two crossed random effects: with mean squares of seeds, patients and the rest, the
    variance of the grand mean is (MS_seeds + MS_patients - MS_rest) / (S P), never less
    than patients alone give; degrees of freedom by Satterthwaite. With three seeds
    that differ it is wide, as it should be: resampling three seeds would be too narrow.

    Source: Searle, Casella & McCulloch, Variance Components, 1992, chapter 4.
    """
    seeds, patients = values.shape
    if seeds < 2 or patients < 2:
        return None
    grand = values.mean()
    by_seed, by_patient = values.mean(axis=1), values.mean(axis=0)
    of_seeds = patients * float(((by_seed - grand) ** 2).sum()) / (seeds - 1)
    of_patients = seeds * float(((by_patient - grand) ** 2).sum()) / (patients - 1)
    left = values - by_seed[:, None] - by_patient[None] + grand
    of_rest = float((left**2).sum()) / ((seeds - 1) * (patients - 1))
    parts = (
        (of_seeds, 1.0, seeds - 1),
        (of_patients, 1.0, patients - 1),
        (of_rest, -1.0, (seeds - 1) * (patients - 1)),
    )
    total = sum(sign * square for square, sign, _ in parts)
    alone = max(of_patients, of_rest)
    if total <= alone:
        total, freedom = alone, float(patients - 1)
    else:
        freedom = total**2 / sum(square**2 / free for square, _, free in parts)
        freedom = min(max(freedom, 1.0), patients + seeds - 2.0)
    if total <= 0:
        return float(grand), float(grand)
    reach = float(stats.t.ppf(0.975, freedom)) * math.sqrt(total / (seeds * patients))
    return float(grand - reach), float(grand + reach)


def signed_rank(values: Scores) -> float | None:
    """Two-sided p of Wilcoxon's signed-rank test of (P,) differences against 0.

    Zeros count in the ranks and for no side (Pratt); 1 where all are zero; None below
    two. Exact for few patients, ties included: all signs of the ranks are tried.
    """
    if values.size < 2:
        return None
    rounded = np.round(values, _DECIMALS)
    if not rounded.any():
        return 1.0
    if np.count_nonzero(rounded) > _MOST_EXACT:
        found = stats.wilcoxon(rounded, zero_method="pratt", method="approx")
        return float(found.pvalue)
    ranks = stats.rankdata(np.abs(rounded))[rounded != 0]
    signs = np.sign(rounded[rounded != 0])
    sums = np.zeros(1)
    for rank in ranks:
        sums = np.concatenate([sums - rank, sums + rank])
    reached = np.abs(sums) >= abs(float(ranks @ signs)) - _TINY
    return float(reached.mean())


def resampled(
    rows: Sequence[Mapping[str, Any]],
    patients: Sequence[str],
    score: Callable[[Sequence[Mapping[str, Any]]], float | None],
    seed: int = 0,
    resamples: int = 300,
) -> Scores:
    """(R,) scores of whole sets, such as an area under ROC, over drawn patients.

    The same seed draws the same patients, so that two models can be compared draw by
    draw; NaN where a draw has no score.

    Args:
        rows: One or several of each patient.
        patients: Whose each row is.
        score: Of a set of rows.
        seed: Of the draws.
        resamples: How many.
    """
    own: dict[str, list[Mapping[str, Any]]] = {}
    for row, patient in zip(rows, patients, strict=True):
        own.setdefault(patient, []).append(row)
    names = sorted(own)
    rng = np.random.default_rng(seed)
    found = np.full(resamples, np.nan)
    for i in range(resamples):
        drawn = rng.integers(0, len(names), len(names))
        value = score(
            [
                {**row, "case": f"{row.get('case')} {place}"}
                for place, number in enumerate(drawn)
                for row in own[names[number]]
            ]
        )
        found[i] = np.nan if value is None else value
    return found


def of_draws(mean: float, draws: Scores, seeds: int) -> Difference:
    """A difference whose scores are those of whole sets.

    Args:
        mean: Of the sets as they are.
        draws: (R,) of drawn patients, see ``resampled``.
        seeds: How many the mean is of.

    Returns:
        As ``difference``; ``p`` is the bootstrap's, and nobody wins or loses.
    """
    known = draws[np.isfinite(draws)]
    if not known.size:
        return Difference(mean, None, None, None, 0, 0, seeds)
    low, high = np.percentile(known, (2.5, 97.5))
    less = min(float((known <= 0).sum()), float((known >= 0).sum()))
    p = min(1.0, 2 * (less + 1) / (known.size + 1))
    return Difference(mean, (float(low), float(high)), None, p, 0, 0, seeds)


def holm(values: Sequence[float | None]) -> list[float | None]:
    """p-values corrected for their number; None stays and does not count.

    Source: Holm, Scandinavian Journal of Statistics 6, 1979.
    """
    known = sorted((p, i) for i, p in enumerate(values) if p is not None)
    corrected: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[place] = largest
    return corrected


def area_over_steps(steps: Sequence[float], values: Sequence[float]) -> float | None:
    """Mean height of a curve between its first and last mark; None below two marks."""
    if len(steps) < 2:
        return None
    x, y = np.asarray(steps, np.float64), np.asarray(values, np.float64)
    return float(np.trapezoid(y, x) / (x[-1] - x[0]))


def steps_to(
    steps: Sequence[float], values: Sequence[float], wanted: float
) -> float | None:
    """Steps until a curve first reaches a height, between marks by a straight line.

    None where it never does; the first mark where it is there already.
    """
    for i, value in enumerate(values):
        if value < wanted:
            continue
        if i == 0:
            return float(steps[0])
        share = (wanted - values[i - 1]) / (value - values[i - 1])
        return float(steps[i - 1] + share * (steps[i] - steps[i - 1]))
    return None


def steps_to_best(
    steps: Sequence[float], values: Sequence[float], share: float = 0.98
) -> float | None:
    """Steps until a curve first reaches a share of its own best; None if best <= 0."""
    if not len(values) or max(values) <= 0:
        return None
    return steps_to(steps, values, share * max(values))
