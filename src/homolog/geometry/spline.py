"""Uniform cubic B-splines over a coarse grid of control points. numpy only.

The control points of an axis are spread evenly from the first to the last voxel of the
grid; one more is imagined on either side, equal to its neighbour. Weights are never
negative and sum to one, so the field stays within its control points' range.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from homolog.geometry.affine import Array, Index


@lru_cache(maxsize=64)
def spline_weights(points: int, samples: int) -> Array:
    """How much each control point counts at each of evenly spread samples.

    Args:
        points: Control points along the axis, at least 1.
        samples: Samples from the first control point to the last, ends included.

    Returns:
        (samples, points) float64, read-only; rows sum to 1.
    """
    return _weights(points, samples, derivative=False)


@lru_cache(maxsize=64)
def spline_slopes(points: int, samples: int) -> Array:
    """Derivative of the weights, per control point spacing; (samples, points)."""
    return _weights(points, samples, derivative=True)


def _weights(points: int, samples: int, *, derivative: bool) -> Array:
    if points < 1 or samples < 1:
        raise ValueError(
            f"a spline needs at least one control point and one sample, "
            f"got {points} and {samples}."
        )
    place = np.linspace(0.0, points - 1.0, samples) if samples > 1 else np.zeros(1)
    cell = np.minimum(np.floor(place), max(points - 2, 0)).astype(int)
    t = place - cell
    if derivative:
        terms = (
            -0.5 * (1 - t) ** 2,
            1.5 * t**2 - 2 * t,
            -1.5 * t**2 + t + 0.5,
            0.5 * t**2,
        )
    else:
        terms = (
            (1 - t) ** 3 / 6,
            (3 * t**3 - 6 * t**2 + 4) / 6,
            (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6,
            t**3 / 6,
        )
    weights = np.zeros((samples, points))
    rows = np.arange(samples)
    for step, term in zip((-1, 0, 1, 2), terms, strict=True):
        np.add.at(weights, (rows, np.clip(cell + step, 0, points - 1)), term)
    weights.setflags(write=False)
    return weights


def spline_spread(points: Index, size: Index) -> float:
    """Standard deviation of the field when its control points have one of 1.

    The mean over the grid; independent control points are assumed.
    """
    shares = [
        (spline_weights(p, n) ** 2).sum(1).mean()
        for p, n in zip(points, size, strict=True)
    ]
    return float(np.sqrt(np.prod(shares)))
