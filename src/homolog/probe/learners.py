"""What reads frozen features: a linear probe, the nearest neighbours, the centroids."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Classes = NDArray[np.int64]

# Strengths of the fit that are tried, weakest first; features have a spread of 1.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# Where nothing can be held out.
_USUAL = 1e-2
_FOLDS = 3
_ITERATIONS = 100
# How much of the labels' true shares counts for the label of a voxel.
_TEMPERS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, eq=False)
class Taught:
    """What is learnt from.

    Attributes:
        vectors: (N, F).
        classes: (N,) 0..K-1.
        groups: (N,) what must not lie on both sides of a division: patients.
        weight: (N,) how many voxels each stands for.
    """

    vectors: Floats
    classes: Classes
    groups: NDArray[np.int64]
    weight: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear probe, on features as they are.

    Attributes:
        weight: (F, K).
        bias: (K,) every class counting the same.
        prior: (K,) to add for the label of a voxel: large organs are likelier.
        strength: C of the regression.
    """

    weight: Floats
    bias: Floats
    prior: Floats
    strength: float

    def logits(self, vectors: Floats) -> Floats:
        """(N, F) -> (N, K)."""
        found: Floats = vectors @ self.weight + self.bias
        return found


def standard(vectors: Floats) -> tuple[Floats, Floats]:
    """Mean and spread (F,); 1 for what does not vary."""
    mean, spread = vectors.mean(axis=0), vectors.std(axis=0)
    return mean, np.where(spread > 1e-6, spread, np.float32(1.0)).astype(np.float32)


def fit_linear(taught: Taught, count: int) -> Linear:
    """Logistic regression; its strength is chosen on teachers held out in turn.

    Args:
        taught: Features, classes, and the groups that are held out together.
        count: Classes K; those that nobody taught are never said.
    """
    mean, spread = standard(taught.vectors)
    scaled = (taught.vectors - mean) / spread
    best, held = _held_out(scaled, taught, count)
    fit = _Fit(scaled, taught.classes, count)
    for strength in STRENGTHS[: STRENGTHS.index(best) + 1]:
        weight, bias = fit.at(strength)
    weight = weight / spread[:, None]
    return Linear(weight, bias - mean @ weight, _prior(held, taught, count), best)


def _held_out(
    scaled: Floats, taught: Taught, count: int
) -> tuple[float, Floats | None]:
    """The strength that does best on groups held out in turn, and their logits there.

    By log loss, every class counting the same: balanced accuracy prefers fits that are
    sure of what they learnt by heart. On three patients of a CT with 13 organs it chose
    C = 0.1 (0.35 on others) where the loss chooses 0.001 (0.48).
    """
    outs = _divided(taught.groups)
    fits = [_Fit(scaled[~out], taught.classes[~out], count) for out in outs]
    best, least, kept = _USUAL, np.inf, None
    for strength in STRENGTHS if fits else ():
        held = np.zeros((len(scaled), count), np.float32)
        for out, fit in zip(outs, fits, strict=True):
            weight, bias = fit.at(strength)
            held[out] = scaled[out] @ weight + bias
        loss = _loss(held, taught.classes)
        if loss > least:
            break  # stronger ones only learn more by heart
        best, least, kept = strength, loss, held
    return best, kept


def _loss(logits: Floats, classes: Classes) -> float:
    """Log loss, every class counting the same."""
    from scipy.special import log_softmax

    chosen = log_softmax(logits, axis=1)[np.arange(len(classes)), classes]
    # one that no teacher of the others has cannot be said
    chosen = np.maximum(chosen, -50.0)
    return -float(np.mean([chosen[classes == k].mean() for k in np.unique(classes)]))


def _divided(groups: NDArray[np.int64]) -> list[NDArray[np.bool_]]:
    """Which rows are held out, fold by fold; groups stay whole."""
    names = np.unique(groups)
    folds = min(_FOLDS, len(names))
    if folds < 2:
        return []
    place = np.searchsorted(names, groups) % folds
    return [place == fold for fold in range(folds)]


class _Fit:
    """Logistic regression at rising strengths, each begun where the last one ended."""

    def __init__(self, scaled: Floats, classes: Classes, count: int) -> None:
        from sklearn.linear_model import LogisticRegression

        self._scaled, self._classes, self._count = scaled, classes, count
        self._known = np.unique(classes)
        self._model: Any = LogisticRegression(
            class_weight="balanced", max_iter=_ITERATIONS, tol=1e-3, warm_start=True
        )

    def at(self, strength: float) -> tuple[Floats, Floats]:
        """Weight (F, K) and bias (K,)."""
        from sklearn.exceptions import ConvergenceWarning

        known, count = self._known, self._count
        weight = np.zeros((self._scaled.shape[1], count), np.float32)
        bias = np.full(count, -1e9, np.float32)  # never taught, never said
        bias[known] = 0.0
        if len(known) < 2:
            return weight, bias
        self._model.set_params(C=strength)
        with warnings.catch_warnings():
            # nearly converged is good enough
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._model.fit(self._scaled, self._classes)
        rows, start = self._model.coef_, self._model.intercept_
        if len(known) == 2:  # softmax of (0, z) is the sigmoid of z
            rows = np.concatenate([np.zeros_like(rows), rows])
            start = np.concatenate([np.zeros(1), start])
        weight[:, known], bias[known] = rows.T, start
        return weight, bias


def _prior(held: Floats | None, taught: Taught, count: int) -> Floats:
    """Log of the classes' shares, as much of it as labels held-out teachers best.

    Every class counted the same in the fit. With their true shares small organs are
    never said where features are weak, without them they are said everywhere.
    """
    sizes = np.bincount(taught.classes, taught.weight, count)
    logs: Floats = np.log(np.maximum(sizes, 1e-9) / sizes.sum()).astype(np.float32)
    logs[sizes == 0] = 0.0

    if held is None or count < 2:
        return 0.5 * logs

    def dice(temper: float) -> float:
        guess = (held + temper * logs).argmax(axis=1)
        hit = np.bincount(
            taught.classes, taught.weight * (guess == taught.classes), count
        )
        said = np.bincount(guess, taught.weight, count)
        scores = 2 * hit[1:] / np.maximum(sizes[1:] + said[1:], 1e-9)
        return float(scores[sizes[1:] > 0].mean())

    return max(_TEMPERS, key=lambda t: (dice(t), -t)) * logs


def even_share(taught: Taught, most: int, seed: int) -> Taught:
    """At most so many of each class, drawn by the seed, so that each counts the same.

    Args:
        taught: All.
        most: Of each class; no class but the first (the background) decides how many
            there are at most.
        seed: Of the choice.
    """
    rng = np.random.default_rng(seed)
    classes = np.unique(taught.classes)
    parts = [rng.permutation(np.flatnonzero(taught.classes == k)) for k in classes]
    least = min(most, max(len(p) for p in parts[1:] or parts))
    kept = np.sort(np.concatenate([p[:least] for p in parts]))
    return Taught(
        taught.vectors[kept], taught.classes[kept], taught.groups[kept],
        taught.weight[kept],
    )  # fmt: skip


def neighbour_shares(
    taught: Taught, vectors: Floats, neighbours: int, count: int
) -> NDArray[np.float64]:
    """Share (N, K) of each class among the nearest teachers of features (N, F)."""
    from sklearn.neighbors import KNeighborsClassifier

    mean, spread = standard(taught.vectors)
    voters = KNeighborsClassifier(
        min(neighbours, len(taught.classes)), algorithm="brute"
    )
    voters.fit((taught.vectors - mean) / spread, taught.classes)
    found = np.zeros((len(vectors), count))
    found[:, voters.classes_] = voters.predict_proba((vectors - mean) / spread)
    return found


def centroid(taught: Taught, vectors: Floats) -> Classes:
    """The class whose mean feature is nearest."""
    mean, spread = standard(taught.vectors)
    classes = np.unique(taught.classes)
    scaled = (taught.vectors - mean) / spread
    middles = np.stack([scaled[taught.classes == k].mean(axis=0) for k in classes])
    own = (vectors - mean) / spread
    far = (middles**2).sum(axis=1) - 2 * own @ middles.T
    found: Classes = classes[far.argmin(axis=1)]
    return found
