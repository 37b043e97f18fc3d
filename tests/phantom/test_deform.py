"""Deformed copies: the map is invertible, and the pictures follow it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homolog.geometry.affine import Affine
from homolog.phantom.deform import STEEPEST, random_deformation
from homolog.scans.volume import LabelMap, Volume

AFFINES = (
    Affine.of((3.0, 2.0, 2.0), (-100.0, 20.0, 5.0)),
    Affine(
        np.array([[0, 0, 2.5, 9], [0, -2.0, 0, 45.0], [3.0, 0, 0, -4.0], [0, 0, 0, 1]])
    ),
    Affine(
        np.array(
            [[2, 0.5, 0, 9], [-0.5, 2.0, 0, 45.0], [0, 0.3, 2, -4.0], [0, 0, 0, 1]]
        )
    ),
)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6), st.sampled_from(AFFINES), st.floats(0.0, 15.0),
    st.sampled_from([(60, 90, 100), (1, 80, 90), (20, 30, 200)]),
)  # fmt: skip
def test_there_and_back(seed, grid, typical_mm, shape):
    deformation = random_deformation(grid, shape, seed=seed, typical_mm=typical_mm)
    assert deformation.steepness <= STEEPEST + 1e-9
    rng = np.random.default_rng(seed)
    mm = grid.apply(rng.uniform(-20, np.array(shape) + 20, (50, 3)))
    assert np.abs(deformation.to_scan(deformation.to_copy(mm)) - mm).max() < 1e-6
    assert np.abs(deformation.to_copy(deformation.to_scan(mm)) - mm).max() < 1e-6
    # The bound of every field holds where it is looked at.
    step = rng.normal(size=mm.shape)
    step *= 1e-4 / np.linalg.norm(step, axis=1)[:, None]
    for control in deformation.fields_mm:
        gap = deformation._displacement(control, mm + step)
        gap -= deformation._displacement(control, mm)
        assert np.linalg.norm(gap, axis=1).max() / 1e-4 <= STEEPEST + 1e-3
    again = random_deformation(grid, shape, seed=seed, typical_mm=typical_mm)
    for a, b in zip(again.fields_mm, deformation.fields_mm, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("typical_mm", [3.0, 10.0])
def test_it_moves_as_far_as_was_asked(typical_mm):
    grid = Affine.of((2.0, 2.0, 2.0))
    shape = (150, 200, 200)
    rng = np.random.default_rng(0)
    mm = grid.apply(rng.uniform(0, np.array(shape) - 1, (4000, 3)))
    for seed in range(3):
        found = random_deformation(grid, shape, seed=seed, typical_mm=typical_mm)
        moved = np.linalg.norm(found.bent(mm) - mm, axis=1)
        assert np.sqrt((moved**2).mean()) == pytest.approx(typical_mm, rel=0.15)


@pytest.mark.parametrize("grid", AFFINES)
def test_the_picture_follows_the_map(grid):
    """A field that tells its own place must tell where each voxel came from."""
    shape = (24, 30, 28)
    mm = grid.apply(np.indices(shape).reshape(3, -1).T)
    field = mm.T.reshape(3, *shape).astype(np.float32)
    deformation = random_deformation(grid, shape, seed=3, typical_mm=4.0, degrees=3.0)
    copy = deformation.applied(Volume(field, grid, "field"), fill=np.nan)
    expected = deformation.to_scan(mm).T.reshape(3, *shape)
    inside = np.isfinite(copy.data).all(axis=0)
    assert inside.mean() > 0.4
    np.testing.assert_allclose(copy.data[:, inside], expected[:, inside], atol=0.1)


def test_integers_and_labels_stay_what_they_are():
    grid = Affine.of((2.0, 2.0, 2.0))
    rng = np.random.default_rng(0)
    values = rng.integers(-1000, 1000, (1, 20, 24, 26)).astype(np.int16)
    deformation = random_deformation(grid, (20, 24, 26), seed=1, typical_mm=3.0)
    copy = deformation.applied(Volume(values, grid, "ct", "CT"))
    assert copy.data.dtype == np.int16
    assert copy.modality == "CT"
    labels = LabelMap((values[0] > 0).astype(np.uint8) * 7, grid, {7: "organ"})
    moved = deformation.applied_to_labels(labels)
    assert set(np.unique(moved.data)) == {0, 7}
    still = random_deformation(
        grid, (20, 24, 26), seed=1, typical_mm=0.0, degrees=0.0, scale=0.0
    )
    np.testing.assert_array_equal(still.applied(Volume(values, grid)).data, values)
    np.testing.assert_array_equal(still.applied_to_labels(labels).data, labels.data)
