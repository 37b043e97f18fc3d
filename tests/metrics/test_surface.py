import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice

from homolog.metrics.overlap import surface_per_label

SPACING = (3.0, 1.5, 0.5)


def _blobs(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(20)] * 3, indexing="ij"))
    labels = np.zeros((20, 20, 20), np.int16)
    for label in (1, 2):
        centre = rng.uniform(6, 14, 3)[:, None, None, None]
        labels[((grid - centre) ** 2).sum(0) < rng.uniform(9, 25)] = label
    return labels


def test_scores_equal_monai_on_random_blobs():
    """Paper: Alice metrics."""
    predicted, truth = _blobs(1), _blobs(2)
    ours = surface_per_label(
        predicted, truth, [1, 2], spacing_mm=SPACING, tolerance_mm=2.0
    )
    one_hot = [
        torch.stack([torch.from_numpy(m == k) for k in range(3)])[None]
        for m in (predicted, truth)
    ]
    nsd = compute_surface_dice(*one_hot, class_thresholds=[2.0, 2.0], spacing=SPACING)
    hd = compute_hausdorff_distance(*one_hot, percentile=95, spacing=SPACING)
    assert [s.nsd for s in ours.values()] == pytest.approx(nsd[0].tolist(), abs=1e-6)
    assert [s.hd95_mm for s in ours.values()] == pytest.approx(hd[0].tolist(), abs=1e-4)


def test_shift_along_z_is_measured_in_millimetres():
    truth = np.zeros((16, 16, 16), np.uint8)
    truth[4:8, 4:12, 4:12] = 1
    score = surface_per_label(
        np.roll(truth, 1, 0), truth, [1], spacing_mm=SPACING, tolerance_mm=1.0
    )[1]
    assert score.hd95_mm == pytest.approx(3.0)
    assert 0.0 < score.nsd < 1.0


def test_surface_at_the_border_of_the_scan_counts():
    truth = np.zeros((8, 8, 8), np.uint8)
    truth[:4] = 1
    score = surface_per_label(truth, truth, [1], spacing_mm=SPACING)[1]
    assert score.nsd == 1.0
    assert score.hd95_mm == 0.0


def test_lost_label_costs_the_diagonal_and_no_label_is_nan():
    truth = np.zeros((8, 8, 8), np.uint8)
    truth[2:4] = 1
    scores = surface_per_label(np.zeros_like(truth), truth, [1, 2], spacing_mm=SPACING)
    assert scores[1].nsd == 0.0
    assert scores[1].hd95_mm == pytest.approx(8 * math.hypot(*SPACING))
    assert math.isnan(scores[2].nsd)
    assert math.isnan(scores[2].hd95_mm)


def test_unlabelled_voxels_belong_to_no_surface():
    truth = np.zeros((8, 8, 8), np.int16)
    truth[2:4, 2:6, 2:6] = 1
    predicted = truth.copy()
    predicted[6:] = 1
    truth[6:] = -1
    score = surface_per_label(predicted, truth, [1], spacing_mm=SPACING)[1]
    assert score.nsd == 1.0
