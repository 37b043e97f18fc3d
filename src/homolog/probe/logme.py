"""LogME: how well frozen features could explain labels, without training anything.

You, Liu, Wang and Long, "LogME: Practical Assessment of Pre-trained Models for Transfer
Learning", ICML 2021. Each class, as ones and zeros, is explained by a linear model of
the features, with a normal prior on its weights (precision alpha) and normal noise
(precision beta). The evidence of the labels, weights integrated out, is maximised over
both; its logarithm per sample is averaged over the classes. No weights are fitted that
could learn by heart, and nothing is held out.

Differs from the paper: the sums run over the eigenvalues of the smaller of the two Gram
matrices instead of the singular values of all features, which gives the same numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

_ROUNDS, _CLOSE = 200, 1e-7
_LEAST = 1e-12


def logme(vectors: NDArray[np.float32], classes: NDArray[np.int64]) -> float | None:
    """The score; larger is better, and only comparable for the same samples.

    Args:
        vectors: (N, F), as they are: no bias is added, nothing is scaled.
        classes: (N,) which class each sample has.

    Returns:
        None where there are fewer than two classes, or nothing varies.
    """
    names = np.unique(classes)
    if len(names) < 2 or not np.any(vectors):
        return None
    told = (classes[:, None] == names).astype(np.float64)
    sigma, seen = _in_eigenbasis(vectors.astype(np.float64), told)
    scores = [
        _evidence(sigma, seen[:, k], float(told[:, k].sum()), len(vectors))
        for k in range(len(names))
    ]
    return float(np.mean(scores))


def _in_eigenbasis(vectors: Matrix, told: Matrix) -> tuple[Matrix, Matrix]:
    """Eigenvalues (R,) of the Gram matrix, and of each class V^T F^T y (R, K)."""
    count, length = vectors.shape
    if length <= count:
        sigma, basis = np.linalg.eigh(vectors.T @ vectors)
        seen = basis.T @ (vectors.T @ told)
    else:
        sigma, basis = np.linalg.eigh(vectors @ vectors.T)
        seen = np.sqrt(np.maximum(sigma, 0.0))[:, None] * (basis.T @ told)
    real = sigma > sigma[-1] * 1e-12  # the rest adds nothing to the evidence
    return sigma[real], seen[real]


def _evidence(sigma: Matrix, seen: Matrix, square: float, count: int) -> float:
    """Largest log evidence per sample of one class.

    Args:
        sigma: (R,) eigenvalues.
        seen: (R,) the class in the eigenbasis.
        square: Sum of its squares.
        count: Samples N.
    """
    alpha = beta = 1.0
    for _ in range(_ROUNDS):
        mean, misfit = _posterior(sigma, seen, square, alpha, beta)
        used = float((beta * sigma / (alpha + beta * sigma)).sum())
        before = alpha / beta
        alpha = used / max(float(mean @ mean), _LEAST)
        beta = max(count - used, _LEAST) / max(misfit, _LEAST)
        if abs(alpha / beta - before) <= _CLOSE * before:
            break
    mean, misfit = _posterior(sigma, seen, square, alpha, beta)
    total = (
        len(sigma) * np.log(alpha)
        + count * np.log(beta)
        - np.log(alpha + beta * sigma).sum()
        - beta * misfit
        - alpha * float(mean @ mean)
        - count * np.log(2 * np.pi)
    )
    return float(total / 2 / count)


def _posterior(
    sigma: Matrix, seen: Matrix, square: float, alpha: float, beta: float
) -> tuple[Matrix, float]:
    """Mean weights (R,), and the squares of what they leave unexplained."""
    mean = beta * seen / (alpha + beta * sigma)
    misfit = square - 2 * float(mean @ seen) + float(mean**2 @ sigma)
    return mean, max(misfit, _LEAST)
