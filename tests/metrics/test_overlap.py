import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice

from homolog.metrics.overlap import dice_per_label


def test_dice_of_a_shifted_cube_is_worked_by_hand():
    truth = np.zeros((6, 6, 6), np.uint8)
    truth[1:3, 1:3, 1:3] = 2
    predicted = np.zeros_like(truth)
    predicted[2:4, 1:3, 1:3] = 2
    # 4 voxels shared, 8 in each
    assert dice_per_label(predicted, truth, [2]) == {2: 0.5}


def test_dice_equals_monai_on_random_maps():
    """Paper: Alice metrics."""
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 4, (2, 9, 10, 11))
    ours = dice_per_label(predicted, truth, [1, 2, 3])
    one_hot = [
        torch.nn.functional.one_hot(torch.from_numpy(m), 4).movedim(-1, 0)[None]
        for m in (predicted, truth)
    ]
    theirs = compute_dice(*one_hot, include_background=False)[0]
    assert list(ours.values()) == pytest.approx(theirs.tolist(), abs=1e-6)


def test_label_absent_from_both_is_nan_and_from_one_is_zero():
    truth = np.zeros((4, 4, 4), np.uint8)
    truth[0] = 1
    scores = dice_per_label(np.zeros_like(truth), truth, [1, 2])
    assert scores[1] == 0.0
    assert math.isnan(scores[2])


def test_unlabelled_voxels_do_not_count():
    truth = np.full((4, 4, 4), -1, np.int16)
    truth[0], truth[1] = 1, 0
    predicted = np.ones_like(truth)
    predicted[1] = 0
    assert dice_per_label(predicted, truth, [1]) == {1: 1.0}


def test_different_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        dice_per_label(np.zeros((2, 2, 2), int), np.zeros((2, 2, 3), int), [1])
