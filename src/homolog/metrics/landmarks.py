"""How far found points lie from where they should be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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
