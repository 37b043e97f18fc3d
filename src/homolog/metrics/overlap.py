"""Overlap of two label maps: Dice per label, from one pass over the voxels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def dice_per_label(
    predicted: NDArray[Any], truth: NDArray[Any], labels: Sequence[int]
) -> dict[int, float]:
    """Dice of each label, 0..1.

    Equal to MONAI's ``compute_dice`` on the one-hot maps, without making them.

    Args:
        predicted: (D, H, W) integers.
        truth: (D, H, W) integers; negative voxels are unlabelled and left out of both.
        labels: Which labels, non-negative.

    Returns:
        Label -> Dice; NaN where both maps lack the label, 0 where one of them does.

    Raises:
        ValueError: The shapes differ.
    """
    if predicted.shape != truth.shape:
        raise ValueError(
            "both label maps must have one shape, "
            f"got {predicted.shape} and {truth.shape}."
        )
    known = truth >= 0
    predicted, truth = predicted[known], truth[known]
    in_predicted = _count(predicted, labels)
    in_truth = _count(truth, labels)
    in_both = _count(truth[predicted == truth], labels)
    scores = {}
    for label in labels:
        total = in_predicted[label] + in_truth[label]
        scores[label] = 2.0 * in_both[label] / total if total else float("nan")
    return scores


def _count(values: NDArray[Any], labels: Sequence[int]) -> dict[int, int]:
    """Voxels per label; labels not asked for are dropped."""
    found, counts = np.unique(values, return_counts=True)
    table = dict(zip(found.tolist(), counts.tolist(), strict=True))
    return {label: int(table.get(label, 0)) for label in labels}
