"""The map that most points agree on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from homolog.errors import UnusableInput
from homolog.landmarks.match import KINDS, fit_consensus


def truth(kind, rng):
    linear = Rotation.random(random_state=int(rng.integers(1 << 30))).as_matrix()
    if kind == "similarity":
        linear = linear * rng.uniform(0.7, 1.4)
    if kind == "affine":
        linear = linear @ np.diag(rng.uniform(0.8, 1.2, 3)) + rng.normal(
            0, 0.05, (3, 3)
        )
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = linear, rng.uniform(-200, 200, 3)
    return matrix


def moved(matrix, points):
    return points @ matrix[:3, :3].T + matrix[:3, 3]


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 10_000))
def test_exact_under_a_third_of_gross_outliers(kind, seed):
    rng = np.random.default_rng(seed)
    matrix = truth(kind, rng)
    a = rng.uniform(-150, 150, (20, 3))
    b = moved(matrix, a)
    wrong = rng.choice(20, 6, replace=False)
    push = rng.normal(size=(6, 3))
    b[wrong] += (
        push / np.linalg.norm(push, axis=1)[:, None] * rng.uniform(60, 300, (6, 1))
    )
    found = fit_consensus(a, b, kind=kind)
    np.testing.assert_allclose(found.matrix, matrix, atol=1e-7)
    expected = np.ones(20, bool)
    expected[wrong] = False
    np.testing.assert_array_equal(found.inliers, expected)
    assert found.rms_mm < 1e-8
    assert found.leave_one_out_mm[expected].max() < 1e-7
    assert found.leave_one_out_mm[wrong].min() > 59
    again = fit_consensus(a, b, kind=kind)
    np.testing.assert_array_equal(found.matrix, again.matrix)


def refit(kind, a, b, weights):
    """The same fits by other means than the code under test."""
    if kind == "affine":
        design = np.hstack([a, np.ones((len(a), 1))])
        normal = design.T @ (weights[:, None] * design)
        solved = np.linalg.solve(normal, design.T @ (weights[:, None] * b))
        return lambda p: np.append(p, 1.0) @ solved
    ca, cb = (np.average(v, axis=0, weights=weights) for v in (a, b))
    turn, _ = Rotation.align_vectors(b - cb, a - ca, weights=weights)
    scale = 1.0
    if kind == "similarity":
        rotated = turn.apply(a - ca)
        scale = (weights[:, None] * rotated * (b - cb)).sum() / (
            weights[:, None] * rotated**2
        ).sum()
    return lambda p: scale * turn.apply(p - ca) + cb


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 10_000))
def test_leave_one_out_is_that_of_brute_force(kind, seed):
    rng = np.random.default_rng(seed)
    a = rng.uniform(-150, 150, (9, 3))
    b = moved(truth(kind, rng), a) + rng.normal(0, 3, a.shape)
    weights = rng.uniform(0.5, 2.0, 9)
    found = fit_consensus(a, b, kind=kind, tolerance_mm=60.0, weights=weights)
    assert found.inliers.all()
    for i in range(9):
        rest = np.arange(9) != i
        place = refit(kind, a[rest], b[rest], weights[rest])(a[i])
        assert found.leave_one_out_mm[i] == pytest.approx(
            np.linalg.norm(place - b[i]), abs=1e-6
        )
    whole = refit(kind, a, b, weights)
    gaps = np.array([np.linalg.norm(whole(p) - q) for p, q in zip(a, b, strict=True)])
    assert found.rms_mm == pytest.approx(np.sqrt(np.average(gaps**2, weights=weights)))
    np.testing.assert_allclose(found.apply(a), [whole(p) for p in a], atol=1e-6)


def test_a_mirror_image_is_no_rigid_map():
    a = np.random.default_rng(0).uniform(-100, 100, (10, 3))
    found = fit_consensus(a, a * (1, 1, -1.0), tolerance_mm=500.0)
    assert np.linalg.det(found.matrix[:3, :3]) == pytest.approx(1.0)
    assert found.rms_mm > 20


@pytest.mark.parametrize(
    ("kind", "count"), [("rigid", 2), ("similarity", 2), ("affine", 3)]
)
def test_too_few_points_are_told(kind, count):
    a = np.random.default_rng(0).uniform(-100, 100, (count, 3))
    with pytest.raises(
        UnusableInput, match=rf"at least {count + 1} points not .* got {count}"
    ):
        fit_consensus(a, a, kind=kind)


def test_points_without_spread_are_told():
    line = np.outer(np.arange(8.0), (1, 2, 3))
    with pytest.raises(UnusableInput, match="not on one line"):
        fit_consensus(line, line)
    plane = np.random.default_rng(0).normal(size=(8, 3)) * (1, 1, 0)
    with pytest.raises(UnusableInput, match="not in one plane"):
        fit_consensus(plane, plane, kind="affine")
    fit_consensus(plane, plane, kind="rigid", tolerance_mm=0.1)


def test_no_agreement_is_told():
    rng = np.random.default_rng(0)
    a, b = rng.uniform(-200, 200, (2, 6, 3))
    with pytest.raises(UnusableInput, match="within 1 mm"):
        fit_consensus(a, b, kind="rigid", tolerance_mm=1.0)
    with pytest.raises(ValueError, match="kind must be one of"):
        fit_consensus(a, b, kind="bent")
