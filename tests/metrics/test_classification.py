"""Metrics of classification: against hand-made cases."""

from __future__ import annotations

import numpy as np
import pytest

from homolog.metrics.classification import classification_scores


def two(*second: float) -> np.ndarray:
    """Probabilities of two classes from those of the second."""
    b = np.array(second)
    return np.stack([1 - b, b], 1)


def test_ranking_counts_pairs_in_order() -> None:
    found = classification_scores([0, 0, 1, 1], two(0.1, 0.6, 0.5, 0.9))
    assert found["auc"] == pytest.approx(3 / 4)  # one of four pairs the wrong way round
    assert found["average_precision"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["accuracy"] == pytest.approx(0.5)  # 0.5 goes to the first class
    assert found["brier"] == pytest.approx(2 * (0.01 + 0.36 + 0.25 + 0.01) / 4)


def test_rare_classes_count_as_much_in_the_balanced_accuracy() -> None:
    found = classification_scores([0, 0, 0, 1], two(0.1, 0.2, 0.3, 0.4))
    assert found["accuracy"] == pytest.approx(0.75)
    assert found["balanced_accuracy"] == pytest.approx(0.5)
    assert found["auc"] == pytest.approx(1.0)


def test_confidence_that_means_it_has_no_calibration_error() -> None:
    truth = [1] * 8 + [0] * 2
    assert classification_scores(truth, two(*[0.8] * 10))[
        "calibration_error"
    ] == pytest.approx(0.0)
    sure = classification_scores(truth, two(*[1.0] * 10))
    assert sure["calibration_error"] == pytest.approx(0.2)


def test_more_classes_are_ranked_one_against_the_rest() -> None:
    chances = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.2, 0.7]])
    found = classification_scores([0, 1, 2], chances)
    assert found["auc"] == 1.0
    swapped = classification_scores([1, 0, 2], chances)
    assert swapped["auc"] == pytest.approx((0.5 + 0.0 + 1.0) / 3)


def test_one_class_alone_cannot_be_ranked() -> None:
    found = classification_scores([1, 1], two(0.4, 0.9))
    assert found["auc"] is None
    assert found["average_precision"] is None
    assert found["accuracy"] == pytest.approx(0.5)
