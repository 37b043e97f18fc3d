"""LogME is the largest evidence there is; costs are measured, ties are told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from torch import Tensor, nn

from homolog.probe.cost import _Alive
from homolog.probe.logme import logme
from homolog.probe.report import lines, ranking
from homolog.probe.scores import Figure
from homolog.probe.verdict import best_of


def made(count: int, length: int, seed: int, signal: float = 1.0) -> Any:
    """Features of three classes around means of their own."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 3, count)
    means = rng.normal(size=(3, length))
    vectors = signal * means[classes] + rng.normal(size=(count, length))
    return vectors.astype(np.float32), classes


def evidence_by_scipy(vectors: Any, classes: Any) -> float:
    """The evidence written down as a normal density, and maximised by scipy.

    y = F w + noise with w ~ N(0, 1/alpha) and noise ~ N(0, 1/beta), so that
    y ~ N(0, F F^T / alpha + 1 / beta).
    """
    features = vectors.astype(np.float64)
    outer, one = features @ features.T, np.eye(len(features))

    def least(target: Any) -> float:
        def loss(logs: Any) -> float:
            alpha, beta = np.exp(logs)
            normal = multivariate_normal(cov=outer / alpha + one / beta)
            return -float(normal.logpdf(target)) / len(target)

        found = [
            minimize(loss, start, method="Nelder-Mead",
                     options={"xatol": 1e-8, "fatol": 1e-12, "maxiter": 2000})
            for start in ((0.0, 0.0), (3.0, 2.0))
        ]  # fmt: skip
        return min(each.fun for each in found)

    targets = [(classes == k).astype(float) for k in np.unique(classes)]
    return -float(np.mean([least(t) for t in targets]))


@pytest.mark.parametrize(
    ("count", "length"), [(60, 5), (40, 12), (20, 20), (15, 40)]
)  # fmt: skip
def test_it_is_the_largest_evidence(count: int, length: int) -> None:
    vectors, classes = made(count, length, seed=count)
    found = logme(vectors, classes)
    assert found == pytest.approx(evidence_by_scipy(vectors, classes), abs=2e-5)


def test_a_single_feature_by_hand() -> None:
    # f of length 1: y has variance 1/alpha + 1/beta along it and 1/beta across, in
    # N - 1 directions; each is best where it is what was found, z^2 and rest / (N - 1)
    feature = np.array([2.0, 1.0, 1.0, 1.0]) / 7**0.5
    classes = np.array([1, 0, 0, 0])
    parts = ((4 / 7, 3 / 7), (9 / 7, 12 / 7))  # z^2 and rest of either class
    wanted = [
        -0.5 * (np.log(2 * np.pi * z2) + 1) - 1.5 * (np.log(2 * np.pi * rest / 3) + 1)
        for z2, rest in parts
    ]
    found = logme(feature[:, None].astype(np.float32), classes)
    assert found == pytest.approx(np.mean(wanted) / 4, abs=1e-5)


def test_rotated_and_scaled_features_score_alike() -> None:
    vectors, classes = made(80, 6, seed=3)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    own = logme(vectors, classes)
    assert logme((vectors @ turn).astype(np.float32), classes) == pytest.approx(own)
    assert logme(7 * vectors, classes) == pytest.approx(own, abs=1e-4)


def test_what_tells_classes_apart_scores_more() -> None:
    scores = [logme(*made(300, 8, seed=1, signal=s)) for s in (0.0, 0.5, 1.0, 2.0)]
    assert scores == sorted(scores)
    # many numbers that say nothing do not help, as they would a fit
    vectors, classes = made(300, 8, seed=1, signal=0.0)
    noise = np.random.default_rng(5).normal(size=(300, 400)).astype(np.float32)
    assert logme(np.hstack([vectors, noise]), classes) < scores[1]


def test_nothing_to_tell_apart_has_no_score() -> None:
    vectors, classes = made(20, 4, seed=0)
    assert logme(vectors, np.zeros_like(classes)) is None
    assert logme(np.zeros_like(vectors), classes) is None


class Doubling(nn.Module):
    """Maps of known sizes: two of them alive at once, then one."""

    def forward(self, image: Tensor) -> Tensor:
        first = image * 2  # 1
        second = torch.cat([first, first])  # 1 + 2
        del first
        return second.sum()


def test_the_most_bytes_alive_are_counted() -> None:
    image = torch.ones(1000)
    with torch.inference_mode(), _Alive(nn.Identity()) as alive:
        Doubling()(image)
    assert 3 * 4000 <= alive.most <= 3 * 4000 + 16


def entry(name: str, value: float, low: float, seconds: float, score: float) -> Any:
    figures = {"value": value, "low": value - 0.1, "high": value + 0.1, "labels": [0.5],
               "random": {"value": 0.3, "each": [0.3], "labels": [0.3]},
               "gain": {"value": value - 0.3, "low": 0.1, "high": 0.3}}  # fmt: skip
    main = dict.fromkeys(("linear", "knn", "centroid", "dice"), figures)
    return {
        "name": name, "value": value, "learnt": True, "main": "all maps",
        "best_map": None, "verdict": f"{name}: learnt.", "licence": "CC BY 4.0",
        "behind": {"value": 0.01, "low": low, "high": 0.2},
        "cost": {"seconds_per_scan": seconds, "memory_bytes": 2**30},
        "features": [{"features": "all maps", "logme": {"value": score}, **main}],
    }  # fmt: skip


def test_those_within_the_spread_are_said_to_be_alike_and_the_quickest_is_named() -> (
    None
):
    order = [entry("a", 0.62, 0, 20, 0.1), entry("b", 0.61, -0.1, 10, 0.2),
             entry("c", 0.6, -0.05, 2, 0.3), entry("d", 0.4, 0.1, 1, 0.0)]  # fmt: skip
    text = best_of(order, Figure(0.01, -0.1, 0.2))
    assert "a (0.62) and b (0.61) cannot be told apart" in text
    assert "Nor can c (0.60) be told from the best." in text
    assert "d" not in text.replace("and", "").replace("told", "")[:150]
    assert "c is the quickest of them: 2 s a scan." in text
    assert "LogME, which trains nothing, puts c first instead." in text
    text = best_of(order[:1] + order[3:], Figure(0.2, 0.1, 0.3))
    assert text.startswith("Best of 2: a (0.62), ahead of d (0.40)")
    assert "quickest" not in text
    assert "LogME, which trains nothing, puts a first as well." in text


def test_the_table_has_score_and_cost() -> None:
    result = {"encoders": [entry("a", 0.6, 0, 20, 0.1234)], "no_network": [],
              "labels": ["liver"], "kind": "labels", "judged": ["p"], "taught": ["q"],
              "chance": 0.5, "whom": "others", "failed": []}  # fmt: skip
    head, (row,) = ranking(result)
    told = dict(zip(head, row, strict=True))
    assert (told["LogME"], told["a scan"]) == ("0.123", "20 s")
    assert told["memory"] == "1.1 GB"
    assert "a: licence: CC BY 4.0" in lines(result)
    del result["encoders"][0]["cost"]
    assert dict(zip(*ranking(result)[:1], ranking(result)[1][0], strict=True))[
        "memory"
    ] == "–"  # fmt: skip
