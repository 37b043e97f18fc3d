"""Metrics of classification: against hand-made cases."""

from __future__ import annotations

import numpy as np
import pytest

from homolog.metrics.classification import (
    best_thresholds,
    classification_scores,
    finding_scores,
    macro_mean,
)


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


def test_every_class_counts_only_where_it_is_known() -> None:
    truth = np.array([[1, 0], [0, -1], [1, 1], [0, -1]])
    chances = np.array([[0.9, 0.3], [0.2, 0.9], [0.4, 0.6], [0.6, 0.1]])
    first, second = finding_scores(truth, chances, chances >= 0.5)
    assert first["auc"] == pytest.approx(3 / 4)
    assert (first["sensitivity"], first["specificity"]) == (0.5, 0.5)
    assert (second["positives"], second["negatives"]) == (1, 1)
    assert second["auc"] == 1.0
    assert second["brier"] == pytest.approx((0.3**2 + 0.4**2) / 2)
    assert macro_mean([first, second])["auc"] == pytest.approx(7 / 8)


def test_a_class_known_of_no_scan_has_no_metrics() -> None:
    truth, chances = np.array([[-1, 1], [-1, 1]]), np.full((2, 2), 0.7)
    first, second = finding_scores(truth, chances, chances >= 0.5)
    assert first["accuracy"] is None
    assert first["brier"] is None
    assert second["auc"] is None
    assert second["specificity"] is None
    assert second["calibration_error"] == pytest.approx(0.3)
    assert macro_mean([first, second])["accuracy"] == 1.0


def test_the_best_threshold_parts_the_two() -> None:
    truth = np.array([[0], [0], [1], [1], [-1]])
    chances = np.array([[0.1], [0.2], [0.3], [0.9], [0.25]])
    assert best_thresholds(truth, chances) == [pytest.approx(0.25)]
    assert best_thresholds(truth[:2], chances[:2]) == [0.5]
