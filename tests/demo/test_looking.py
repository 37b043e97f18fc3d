"""Scores of features: perfect for an oracle, chance for noise."""

from __future__ import annotations

import numpy as np
import pytest

from homolog.demo.scores import deepest_point, landmarks_found, mean_of, organ_score
from homolog.geometry.affine import Affine
from homolog.phantom.phantom import make_phantom
from homolog.scans.volume import FeatureMap, LabelMap


def oracle(patient, stride=1, size=32):
    """Features that code the atlas position: what a perfect encoder would see."""
    affine = patient.volume.affine.coarsen((stride,) * 3)
    shape = tuple(n // stride for n in patient.volume.shape)
    mm = affine.apply(np.indices(shape).reshape(3, -1).T)
    atlas = patient.warp.to_atlas(mm)
    waves = np.random.default_rng(0).normal(0, 1 / 40, (size // 2, 3)) @ atlas.T
    code = np.concatenate([np.cos(waves), np.sin(waves)]) / np.sqrt(size / 2)
    return FeatureMap(code.reshape(size, *shape).astype(np.float32), affine)


@pytest.fixture(scope="module")
def pair():
    return [make_phantom(s, (32, 40, 40), (8.0, 8.0, 8.0)) for s in (3, 4)]


def test_deepest_point_is_the_middle_of_a_ball():
    index = np.indices((21, 21, 21)) - 10
    ball = ((index**2).sum(0) < 36).astype(np.uint8)
    labels = LabelMap(ball, Affine.of((2.0, 1.0, 1.0), (5.0, 5.0, 5.0)), {1: "ball"})
    np.testing.assert_allclose(deepest_point(labels, 1), [25.0, 15.0, 15.0])


def test_scan_border_counts_as_the_organs_border():
    labels = LabelMap(np.ones((3, 5, 5), np.uint8), Affine.identity(), {1: "all"})
    np.testing.assert_allclose(deepest_point(labels, 1), [1.0, 2.0, 2.0])


def test_missing_organ_is_named():
    labels = LabelMap(np.zeros((3, 3, 3), np.uint8), Affine.identity(), {4: "spleen"})
    with pytest.raises(ValueError, match="'spleen' does not occur"):
        deepest_point(labels, 4)


def test_oracle_finds_landmarks_of_another_patient(pair):
    a, b = pair
    names, found, errors = landmarks_found(
        oracle(a), oracle(b), a.landmarks, b.landmarks
    )
    assert len(names) >= 25
    assert found.shape == (len(names), 3)
    # The cells are 8 mm apart; the peak is refined below that.
    assert np.median(errors) < 4.0


def test_noise_finds_nothing(pair):
    a, b = pair

    def noise(p, seed):
        cells = np.random.default_rng(seed).normal(size=(16, *p.volume.shape))
        cells /= np.linalg.norm(cells, axis=0)
        return FeatureMap(cells.astype(np.float32), p.volume.affine)

    _, _, errors = landmarks_found(noise(a, 0), noise(b, 1), a.landmarks, b.landmarks)
    assert np.median(errors) > 60.0
    score = organ_score(
        noise(a, 0), deepest_point(a.labels, 1), noise(b, 1), b.labels, 1
    )
    assert score.auc == pytest.approx(0.5, abs=0.06)
    assert abs(score.contrast) < 0.3


def test_oracle_separates_the_liver(pair):
    a, b = pair
    score = organ_score(oracle(a), deepest_point(a.labels, 1), oracle(b), b.labels, 1)
    assert score.organ == "liver"
    assert score.auc > 0.95
    assert score.auc_labelled > 0.9
    assert score.contrast > 1.0


def test_labels_of_a_part_are_read_by_their_own_affine(pair):
    a, b = pair
    # Labels of the upper half only, stored upside down: another grid, same anatomy.
    flipped = np.ascontiguousarray(b.labels.data[16:][::-1])
    affine = b.labels.affine.crop((16, 0, 0)).reorient(
        (0, 1, 2), (True, False, False), (16, 40, 40)
    )
    part = LabelMap(flipped, affine, b.labels.names)
    assert (part.data == 1).any()
    score = organ_score(oracle(a), deepest_point(a.labels, 1), oracle(b), part, 1)
    assert score.auc > 0.95


def test_mean_passes_over_what_is_not_there():
    assert mean_of([1.0, float("nan"), 3.0]) == 2.0
    assert np.isnan(mean_of([]))
