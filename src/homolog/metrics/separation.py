"""Whether a similarity map tells an organ from the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


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
