"""Metrics of boxes, by cases counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from homolog.metrics.detection import (
    FROC_RATES,
    Finding,
    best_score,
    box_scores,
    class_mean,
    froc,
    hits,
    overlaps,
)

A, B = [0.0, 0, 10, 10], [20.0, 20, 30, 30]
# half of A: IoU 0.5; a tenth of it and more: 0.2
HALF, FIFTH, AWAY = [0.0, 0, 5, 10], [0.0, 0, 2, 10], [50.0, 50, 60, 60]


def image(truth: list[list[float]], *told: tuple[list[float], float]) -> Finding:
    return Finding(
        np.array(truth, float).reshape(-1, 4),
        np.array([box for box, _ in told], float).reshape(-1, 4),
        np.array([score for _, score in told], float),
    )


def test_iou_in_two_and_three_axes_counted_by_hand() -> None:
    assert overlaps(np.array([A]), np.array([HALF, B]))[0] == pytest.approx([0.5, 0])
    cube, shifted = [[0.0, 0, 0, 2, 2, 2]], [[1.0, 0, 0, 3, 2, 2]]
    assert overlaps(np.array(cube), np.array(shifted))[0, 0] == pytest.approx(4 / 12)
    stretched = np.array([1.0, 5.0, 0.3] * 2)  # other units along the axes
    same = overlaps(np.array(cube) * stretched, np.array(shifted) * stretched)
    assert same[0, 0] == pytest.approx(4 / 12)


def test_average_precision_counted_by_hand() -> None:
    """Paper: Joint Table 5, detection."""
    # ranks: hit, miss, hit. precision 1 up to recall 1/2, then 2/3 up to recall 1
    scores = box_scores([image([A, B], (A, 0.9), (AWAY, 0.8), (B, 0.7))])
    assert scores["ap50"] == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)
    assert (scores["truths"], scores["predictions"]) == (2, 3)


def test_a_true_box_is_hit_once_and_by_the_surest() -> None:
    both = image([A], (HALF, 0.6), (A, 0.9))
    assert hits(both).tolist() == [False, True]
    assert box_scores([both])["ap50"] == pytest.approx(1.0)
    twice = box_scores([image([A, B], (A, 0.9), (A, 0.8))])
    assert twice["ap50"] == pytest.approx(51 / 101)


def test_iou_limits_tell_touched_from_found() -> None:
    scores = box_scores([image([A], (FIFTH, 0.9))])
    assert scores["ap10"] == pytest.approx(1.0)
    assert scores["ap50"] == 0.0
    # IoU 0.5 is found at the first of ten limits only
    assert box_scores([image([A], (HALF, 0.9))])["ap"] == pytest.approx(0.1)


def test_froc_counted_by_hand() -> None:
    """Paper: Hundred Million IV-C, FROC."""
    # two images, three true boxes: hit .9, miss .8, hit .7, miss .6, miss .5, hit .4
    told = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    hit = np.array([True, False, True, False, False, True])
    shares = froc(told, hit, truths=3, images=2, rates=(0.1, 0.5, 1.0, 1.5))
    assert shares == pytest.approx([1 / 3, 2 / 3, 2 / 3, 1.0])
    assert froc(told, hit, truths=0, images=2) is None
    # of one score: together or not at all
    tied = froc(np.array([0.5, 0.5]), np.array([True, False]), 1, 1, rates=(0.5, 1.0))
    assert tied == pytest.approx([0.0, 1.0])


def test_froc_rates_are_the_papers() -> None:
    """Paper: Hundred Million IV-C, FROC."""
    assert FROC_RATES == (0.01, 0.05, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


def test_images_with_a_box_are_told_from_those_without() -> None:
    images = [image([A], (A, 0.9)), image([], (B, 0.95)), image([]), image([B])]
    # pairs (with, without): .9 < .95, .9 > 0, 0 < .95, 0 = 0
    assert box_scores(images)["auc"] == pytest.approx(1.5 / 4)
    assert box_scores([image([A], (A, 0.9))])["auc"] is None


def test_what_has_no_true_box_is_undefined() -> None:
    scores = box_scores([image([], (A, 0.9)), image([])])
    assert scores["ap50"] is None
    assert scores["froc"] is None
    assert class_mean({"x": scores})["ap50"] is None
    known = box_scores([image([A], (A, 0.9))])
    assert class_mean({"x": scores, "y": known})["ap50"] == pytest.approx(1.0)
    assert box_scores([image([A])])["ap50"] == 0.0


def test_the_told_score_is_where_f1_is_largest() -> None:
    # F1 after each: 2/3, 1/2, 4/5
    images = [image([A, B], (A, 0.9), (AWAY, 0.8), (B, 0.6)), image([], (AWAY, 0.2))]
    assert best_score(images) == pytest.approx(0.4)
    assert best_score([image([A], (AWAY, 0.9))]) == 0.5
