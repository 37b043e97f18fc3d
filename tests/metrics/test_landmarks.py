"""Landmark errors and the separation of organs by a similarity map."""

from __future__ import annotations

import numpy as np
import pytest

from homolog.metrics.classification import (
    landmark_errors,
    landmark_score,
    same_organ_auc,
    similarity_contrast,
)


def test_errors_are_distances_in_mm():
    found = np.array([[0.0, 0.0, 0.0], [1.0, 2.0, 2.0]])
    true = np.array([[3.0, 4.0, 0.0], [1.0, 2.0, 14.0]])
    errors = landmark_errors(found, true)
    np.testing.assert_allclose(errors, [5.0, 12.0])
    score = landmark_score(errors)
    assert (score.mean_mm, score.median_mm, score.count) == (8.5, 8.5, 2)
    assert score.within_10_mm == 0.5


def test_no_points_give_no_number():
    score = landmark_score(np.zeros(0))
    assert np.isnan(score.mean_mm)
    assert score.count == 0


def test_points_that_do_not_pair_are_refused():
    with pytest.raises(ValueError, match=r"\(N, 3\)"):
        landmark_errors(np.zeros((2, 3)), np.zeros((3, 3)))


def test_auc_counts_ordered_pairs():
    # Pairs (inside, outside): 3 of 4 are ordered rightly.
    similarity = np.array([0.9, 0.4, 0.5, 0.1])
    organ = np.array([True, True, False, False])
    assert same_organ_auc(similarity, organ) == pytest.approx(0.75)
    assert same_organ_auc(-similarity, organ) == pytest.approx(0.25)
    assert np.isnan(same_organ_auc(similarity, np.ones(4, bool)))


def test_contrast_is_a_difference_in_standard_deviations():
    similarity = np.array([1.0, 1.0, 0.0, 0.0])
    organ = np.array([True, True, False, False])
    assert similarity_contrast(similarity, organ) == pytest.approx(2.0)
    assert similarity_contrast(np.zeros(4), organ) == 0.0
    with pytest.raises(ValueError, match="one shape"):
        similarity_contrast(similarity, organ[:2])
