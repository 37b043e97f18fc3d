"""How well scans are told apart, and how far landmarks lie from their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

# Bins of the calibration error.
_BINS = 10
# Told of each class, but no measure of it.
_COUNTS = ("positives", "negatives")


def classification_scores(
    truth: Sequence[int], chances: Numbers
) -> dict[str, float | None]:
    """Metrics of one class per scan.

    Args:
        truth: (N,) class of each scan.
        chances: (N, K) probabilities, rows sum to 1.

    Returns:
        ``auc`` and ``average_precision``: of class 1 where K is 2, else the mean over
        classes against the rest; None where only one class is there. ``accuracy``,
        ``balanced_accuracy`` (mean over the classes there), ``calibration_error`` (mean
        distance of confidence and accuracy, ten bins of confidence; Guo et al., ICML
        2017) and ``brier`` (mean squared error over all classes).
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    known = np.asarray(truth, np.int64)
    hits = np.eye(chances.shape[1])[known]
    ranked = [1] if chances.shape[1] == 2 else range(chances.shape[1])
    told = [k for k in ranked if 0 < hits[:, k].sum() < len(known)]
    guess = chances.argmax(axis=1)
    recall = [float((guess == k)[known == k].mean()) for k in np.unique(known)]

    def mean(score: object) -> float | None:
        values = [score(hits[:, k], chances[:, k]) for k in told]  # type: ignore[operator]
        return float(np.mean(values)) if values else None

    return {
        "auc": mean(roc_auc_score),
        "average_precision": mean(average_precision_score),
        "accuracy": float((guess == known).mean()),
        "balanced_accuracy": float(np.mean(recall)),
        "calibration_error": _calibration_error(guess == known, chances.max(axis=1)),
        "brier": float(np.square(chances - hits).sum(axis=1).mean()),
    }


def _calibration_error(right: NDArray[np.bool_], confidence: Numbers) -> float:
    """Share-weighted mean of |accuracy - confidence| over bins of confidence."""
    bins = np.minimum((confidence * _BINS).astype(np.int64), _BINS - 1)
    total = 0.0
    for number in np.unique(bins):
        inside = bins == number
        gap = right[inside].mean() - confidence[inside].mean()
        total += abs(float(gap)) * float(inside.mean())
    return total


def finding_scores(
    truth: NDArray[np.int64], chances: Numbers, decided: NDArray[np.bool_]
) -> list[dict[str, float | None]]:
    """Metrics of each class on its own: it is there or not.

    Args:
        truth: (N, K); 1 there, 0 not there, -1 not known.
        chances: (N, K) probabilities.
        decided: (N, K), whether each class is told to be there.

    Returns:
        Per class, over the scans where it is known: ``positives``, ``negatives``,
        ``auc`` and ``average_precision`` (None without both), ``sensitivity`` (None
        without positives), ``specificity`` (None without negatives), ``accuracy``,
        ``calibration_error`` (mean distance of probability and frequency, ten bins) and
        ``brier``; all None where it is known of no scan.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    found: list[dict[str, float | None]] = []
    for true, chance, told in zip(truth.T, chances.T, decided.T, strict=True):
        known = true >= 0
        hit, sure, said = true[known] == 1, chance[known], told[known]
        count, positives = len(hit), int(hit.sum())
        both = 0 < positives < count
        found.append(
            {
                "positives": positives,
                "negatives": count - positives,
                "auc": float(roc_auc_score(hit, sure)) if both else None,
                "average_precision": (
                    float(average_precision_score(hit, sure)) if both else None
                ),
                "sensitivity": float(said[hit].mean()) if positives else None,
                "specificity": float(1.0 - said[~hit].mean())
                if positives < count
                else None,
                "accuracy": float((said == hit).mean()) if count else None,
                "calibration_error": _calibration_error(hit, sure) if count else None,
                "brier": float(np.square(sure - hit).mean()) if count else None,
            }
        )
    return found


def macro_mean(
    scores: Sequence[Mapping[str, float | None]],
) -> dict[str, float | None]:
    """Mean over classes of what ``finding_scores`` tells; undefined ones left out."""
    names = [n for n in (scores[0] if scores else ()) if n not in _COUNTS]
    columns = {n: [s[n] for s in scores if s[n] is not None] for n in names}
    return {n: float(np.mean(v)) if v else None for n, v in columns.items()}  # type: ignore[arg-type]


def best_thresholds(truth: NDArray[np.int64], chances: Numbers) -> list[float]:
    """Per class the threshold of the greatest sensitivity + specificity.

    It lies midway between two probabilities; 0.5 where the class is not both there and
    absent among the scans.

    Args:
        truth: (N, K); 1 there, 0 not there, -1 not known.
        chances: (N, K) probabilities.

    Source: Youden, Cancer 3, 1950.
    """
    found = []
    for true, chance in zip(truth.T, chances.T, strict=True):
        hit, sure = true[true >= 0] == 1, chance[true >= 0]
        levels = np.unique(sure)
        if not 0 < hit.sum() < len(hit) or len(levels) < 2:
            found.append(0.5)
            continue
        middles = (levels[:-1] + levels[1:]) / 2
        told = sure >= middles[:, None]
        worth = told[:, hit].mean(1) - told[:, ~hit].mean(1)
        best = np.flatnonzero(worth >= worth.max() - 1e-12)
        found.append(float(middles[best[np.abs(middles[best] - 0.5).argmin()]]))
    return found


# How far found points lie from where they should be.


@dataclass(frozen=True)
class LandmarkScore:
    """Distances of matched points to the true ones.

    Attributes:
        mean_mm: Mean distance.
        median_mm: Median distance.
        p90_mm: 90th percentile.
        within_10_mm: Share of points found within 10 mm.
        count: Points compared.
    """

    mean_mm: float
    median_mm: float
    p90_mm: float
    within_10_mm: float
    count: int


def landmark_errors(
    found_mm: NDArray[np.float64], true_mm: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Euclidean distances (N,) in mm between points (N, 3).

    Raises:
        ValueError: The shapes differ.
    """
    if found_mm.shape != true_mm.shape or found_mm.shape[-1:] != (3,):
        raise ValueError(
            "found and true points must both be (N, 3), "
            f"got {found_mm.shape} and {true_mm.shape}."
        )
    errors: NDArray[np.float64] = np.linalg.norm(found_mm - true_mm, axis=1)
    return errors


def landmark_score(errors_mm: NDArray[np.float64]) -> LandmarkScore:
    """Summary of distances (N,); NaN where there are none."""
    if errors_mm.size == 0:
        nan = float("nan")
        return LandmarkScore(nan, nan, nan, nan, 0)
    return LandmarkScore(
        mean_mm=float(errors_mm.mean()),
        median_mm=float(np.median(errors_mm)),
        p90_mm=float(np.percentile(errors_mm, 90)),
        within_10_mm=float((errors_mm <= 10.0).mean()),
        count=int(errors_mm.size),
    )


# Whether a similarity map tells an organ from the rest.


def same_organ_auc(similarity: NDArray[Any], organ: NDArray[np.bool_]) -> float:
    """Area under the ROC curve of "this voxel is of the organ", 0..1; 0.5 is chance.

    Args:
        similarity: Any shape, higher means more alike.
        organ: Same shape; True inside the organ.

    Returns:
        The area; NaN where all voxels or none are of the organ.

    Raises:
        ValueError: The shapes differ.
    """
    from sklearn.metrics import roc_auc_score

    _check(similarity, organ)
    if organ.all() or not organ.any():
        return float("nan")
    return float(roc_auc_score(organ.ravel(), similarity.ravel()))


def similarity_contrast(similarity: NDArray[Any], organ: NDArray[np.bool_]) -> float:
    """Mean similarity inside less outside, in units of the spread of all values.

    Args:
        similarity: Any shape.
        organ: Same shape.

    Returns:
        0 where the map tells nothing; NaN where all voxels or none are of the organ.

    Raises:
        ValueError: The shapes differ.
    """
    _check(similarity, organ)
    if organ.all() or not organ.any():
        return float("nan")
    values = np.asarray(similarity, np.float64)
    gap = values[organ].mean() - values[~organ].mean()
    return float(gap / max(values.std(), 1e-12))


def _check(similarity: NDArray[Any], organ: NDArray[np.bool_]) -> None:
    if similarity.shape != organ.shape:
        raise ValueError(
            "the similarity map and the organ must have one shape, "
            f"got {similarity.shape} and {organ.shape}."
        )
