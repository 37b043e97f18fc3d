"""Disturbances do what they say, image and truth alike."""

from __future__ import annotations

import numpy as np
import pytest

from homolog.reporting.robustness import GAMMA, KINDS, ROTATE_DEG, SCALE, Change

SPACING = (5.0, 2.0, 1.0)


def ball(shape: tuple[int, int, int] = (5, 60, 120)) -> np.ndarray:
    """A blob off the middle, round in mm."""
    z, y, x = np.indices(shape)
    away = (2.0 * (y - 22)) ** 2 + (1.0 * (x - 75)) ** 2
    return ((away < 12**2) & (z > 0)).astype(np.int16)


def test_gamma_bends_between_the_percentiles_and_moves_nothing() -> None:
    """Paper: Hundred Million Fig. 7."""
    image = np.linspace(-1000, 1000, 4000).reshape(1, 4, 25, 40).astype(np.int16)
    bent = Change(gamma=2.0).of_image(image, SPACING)[0]
    low, high = np.percentile(image, (0.5, 99.5))
    middle = (image[0] > low) & (image[0] < high)
    level = (image[0] - low) / (high - low)
    wanted = low + (high - low) * level**2
    assert np.abs(bent - wanted)[middle].max() <= 0.51
    assert np.abs(bent.astype(int) - image[0])[~middle].max() <= 1
    label = ball()
    assert np.array_equal(Change(gamma=2.0).of_label(label, SPACING), label)


def test_image_and_truth_are_moved_alike_and_in_millimetres() -> None:
    """Paper: Hundred Million Fig. 7."""
    label = ball()
    change = Change(rotate_deg=30.0, scale=1.2)
    image = (1000 * label).astype(np.int16)[None]
    moved, truth = change.of_image(image, SPACING)[0], change.of_label(label, SPACING)
    assert ((moved > 500) == (truth > 0)).mean() > 0.995
    places = np.argwhere(truth > 0)[:, 1:] * SPACING[1:]
    before = np.argwhere(label > 0)[:, 1:] * SPACING[1:]
    # round in mm before and after, 1.2 times as large in the plane
    assert truth.sum() / label.sum() == pytest.approx(1.44, rel=0.05)
    wide = places.max(axis=0) - places.min(axis=0)
    assert wide[0] == pytest.approx(wide[1], rel=0.12)
    middle = (np.array(label.shape[1:]) - 1) / 2 * SPACING[1:]
    reach = np.linalg.norm(places.mean(axis=0) - middle)
    assert reach / np.linalg.norm(before.mean(axis=0) - middle) == pytest.approx(
        1.2, rel=0.03
    )


def test_draws_stay_in_their_ranges_and_kinds() -> None:
    rng = np.random.default_rng(0)
    for kind in KINDS:
        for _ in range(200):
            change = Change.drawn(kind, rng)
            assert change.gamma == 1.0 or GAMMA[0] <= change.gamma <= GAMMA[1]
            assert abs(change.rotate_deg) <= ROTATE_DEG
            assert abs(change.scale - 1.0) <= SCALE
            assert (change.gamma == 1.0) == (kind == "rotation and scaling")
            assert change.is_still == (kind == "gamma")


def test_a_constant_scan_stays_as_it_is() -> None:
    image = np.full((1, 3, 8, 8), 7, np.int16)
    assert np.array_equal(Change(2.0, 10.0, 1.1).of_image(image, SPACING), image)
