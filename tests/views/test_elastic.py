"""Displacement fields: their statistics, and that they never fold."""

from __future__ import annotations

import numpy as np
import torch

from each import each
from homolog.geometry.affine import Affine
from homolog.geometry.sampling import displacement_at
from homolog.views.plan import _smallest_eigenvalue, draw_field
from homolog.views.random import generator

SIZE, POINTS = (24, 20, 28), (5, 4, 6)
LINEAR = Affine.of(
    (3.0, 1.5, 2.0), direction=np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, -1]])
).matrix[:3, :3]


def _dense(field: np.ndarray, size: tuple = SIZE) -> np.ndarray:
    return displacement_at(torch.from_numpy(field), size).numpy()


def test_the_displacement_has_the_asked_standard_deviation() -> None:
    fields = [
        _dense(draw_field(generator(k), 0.5, POINTS, SIZE, LINEAR)) for k in range(150)
    ]
    spread = np.std(fields, axis=(0, 2, 3, 4))
    np.testing.assert_allclose(spread, 0.5, rtol=0.06)
    assert abs(np.mean(fields)) < 0.02


@each("std_mm", [1.0, 6.0, 80.0])
@each("points", [POINTS, (12, 10, 14), (2, 2, 2)])
@each("voxel", [1.0, 0.1])
def test_a_field_never_folds(std_mm: float, points: tuple, voxel: float) -> None:
    """Jacobian determinants at 3 points per voxel, by differences."""
    linear = LINEAR * voxel
    fine = tuple(3 * (n - 1) + 1 for n in SIZE)
    for seed in range(3):
        field = _dense(draw_field(generator(seed), std_mm, points, SIZE, linear), fine)
        steps = np.stack(np.gradient(field, 1 / 3, axis=(1, 2, 3)), 1)  # per voxel
        jacobian = np.eye(3) + np.moveaxis(
            np.einsum("ijpqr,jk->ikpqr", steps, np.linalg.inv(linear)), (0, 1), (-2, -1)
        )
        assert np.linalg.det(jacobian).min() > 0.02


def test_a_gentle_field_is_left_as_drawn() -> None:
    gentle = draw_field(generator(0), 0.1, POINTS, SIZE, LINEAR)
    wild = draw_field(generator(0), 100.0, POINTS, SIZE, LINEAR)
    twice = draw_field(generator(0), 0.2, POINTS, SIZE, LINEAR)
    np.testing.assert_allclose(twice, 2 * gentle)
    assert np.abs(wild).max() < 0.5 * 1000 * np.abs(gentle).max()


def test_a_flat_view_bends_in_its_plane_only() -> None:
    field = draw_field(generator(0), 1.0, POINTS, (1, 20, 28), LINEAR)
    assert field.shape == (3, 1, 4, 6)
    normal = LINEAR[:, 0] / np.linalg.norm(LINEAR[:, 0])
    np.testing.assert_allclose(np.tensordot(normal, field, 1), 0.0, atol=1e-12)
    assert np.abs(field).max() > 0.1


def test_the_closed_form_eigenvalue_is_numpys() -> None:
    matrices = np.random.default_rng(0).normal(size=(500, 3, 3))
    symmetric = matrices + matrices.swapaxes(-1, -2)
    symmetric[0] = 0.0
    symmetric[1] = np.eye(3) * 2.0
    np.testing.assert_allclose(
        _smallest_eigenvalue(symmetric),
        np.linalg.eigvalsh(symmetric)[:, 0],
        atol=1e-6,
    )
