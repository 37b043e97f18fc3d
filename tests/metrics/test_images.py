"""Image metrics: what they are where it is known, and equal to MONAI's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from homolog.metrics.images import image_scores, nmse, psnr, ssim


def noise(seed: int, shape: tuple[int, ...] = (13, 14, 15)) -> np.ndarray:
    return np.random.default_rng(seed).random(shape).astype(np.float32)


def test_what_is_known_beforehand() -> None:
    truth = noise(0) * 100.0
    truth.flat[:2] = 0.0, 100.0
    same = image_scores(truth, truth)
    assert same == {"psnr": math.inf, "ssim": pytest.approx(1.0), "nmse": 0, "mae": 0}
    # an error of a tenth of the range everywhere is 20 dB
    assert psnr(truth + 10.0, truth) == pytest.approx(20.0, abs=1e-4)
    nothing = np.zeros_like(truth)
    assert nmse(nothing, truth) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="has no range"):
        psnr(truth, nothing)


def test_only_differences_count_not_the_place_or_scale_of_the_values() -> None:
    truth, guess = noise(1), noise(2)
    plain = image_scores(guess, truth)
    moved = image_scores(guess * 500.0 - 1000.0, truth * 500.0 - 1000.0)  # as HU
    for name in ("psnr", "ssim", "nmse"):
        assert moved[name] == pytest.approx(plain[name], rel=1e-3)
    assert moved["mae"] == pytest.approx(500.0 * plain["mae"], rel=1e-3)


def test_psnr_and_ssim_are_monais() -> None:
    """Paper: S2DC Table 5."""
    from monai.metrics.regression import PSNRMetric, SSIMMetric

    truth, guess = noise(3), noise(4)
    low, peak = float(truth.min()), float(np.ptp(truth))
    pair = [torch.from_numpy(v - low)[None, None] for v in (guess, truth)]
    assert psnr(guess, truth) == pytest.approx(
        float(PSNRMetric(max_val=peak)(*pair)), rel=1e-5
    )
    theirs = float(SSIMMetric(3, data_range=peak)(*pair))
    assert ssim(guess, truth) == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("shape", [(1, 20, 20), (4, 20, 20), (2, 30, 9)])
def test_ssim_of_few_slices(shape: tuple[int, int, int]) -> None:
    truth = noise(5, shape)
    assert ssim(truth, truth) == pytest.approx(1.0)
    assert -1.0 <= ssim(noise(6, shape), truth) < 0.5
