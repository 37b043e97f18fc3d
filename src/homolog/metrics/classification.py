"""How well scans are told apart: ranking, hits, and whether probabilities mean it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

# Bins of the calibration error.
_BINS = 10


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
