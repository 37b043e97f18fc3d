"""Reading a volume at any affine."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from each import each
from homolog.geometry.affine import Affine
from homolog.geometry.sampling import (
    displacement_at,
    sample,
    spline_slopes,
    spline_spread,
    spline_weights,
)

HOME = Affine.of((2.5, 0.8, 1.1), (1e3, -2e3, 3e3)).matrix


def _batch(affine: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(affine))[None]


def _random_volume(shape: tuple[int, int, int], seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(1, 2, *shape)))


@each("mode", ["linear", "nearest"])
@each("shape", [(5, 6, 7), (1, 6, 7), (1, 1, 9), (8, 1, 3)])
def test_the_same_grid_gives_the_same_values(shape: tuple, mode: str) -> None:
    volume = _random_volume(shape)
    image, valid = sample(volume, _batch(HOME), _batch(HOME), shape, mode)
    torch.testing.assert_close(image, volume, atol=1e-5, rtol=0)
    assert valid.all()


@settings(max_examples=30, deadline=None)
@given(st.tuples(*[st.floats(-3, 3)] * 12))
def test_linear_values_are_those_of_scipy(numbers: tuple) -> None:
    volume = _random_volume((6, 7, 8))
    step = np.eye(4)
    step[:3, :3] = np.eye(3) + 0.2 * np.reshape(numbers[:9], (3, 3))
    step[:3, 3] = numbers[9:]
    size = (5, 4, 6)
    image, valid = sample(volume, _batch(HOME), _batch(HOME @ step), size)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in size], indexing="ij"))
    places = np.tensordot(step[:3, :3], index, 1) + step[:3, 3, None, None, None]
    shape = np.array(volume.shape[2:]).reshape(3, 1, 1, 1)
    inside = ((places >= -0.5) & (places <= shape - 0.5)).all(0)
    clear = np.abs(np.minimum(places + 0.5, shape - 0.5 - places)).min(0) > 1e-4
    assert np.array_equal(valid[0].numpy()[clear], inside[clear])
    held = np.clip(places, 0, shape - 1)
    for channel in range(2):
        expected = map_coordinates(volume[0, channel].numpy(), held, order=1)
        agree = inside & valid[0].numpy()
        np.testing.assert_allclose(
            image[0, channel].numpy()[agree], expected[agree], atol=1e-4
        )
    assert (image[0, :, ~valid[0]] == 0).all()


def test_one_slice_reads_like_any_volume() -> None:
    volume = _random_volume((1, 6, 7))
    for off, inside in ((0.49, True), (-0.49, True), (0.51, False), (-0.51, False)):
        moved = HOME @ Affine.shift((off, 0, 0)).matrix
        image, valid = sample(volume, _batch(HOME), _batch(moved), (1, 6, 7))
        assert valid.all() if inside else not valid.any()
        expected = volume if inside else torch.zeros_like(volume)
        torch.testing.assert_close(image, expected, atol=1e-5, rtol=0)


def test_nearest_makes_no_new_values() -> None:
    rng = np.random.default_rng(1)
    values = torch.from_numpy(rng.choice([0.0, 3.0, 7.0, 250.0], size=(1, 1, 9, 9, 9)))
    turn = np.eye(4)
    turn[:3, :3] += 0.3 * rng.normal(size=(3, 3))
    field = torch.from_numpy(rng.normal(size=(1, 3, 4, 4, 4)))
    image, _ = sample(
        values, _batch(HOME), _batch(HOME @ turn), (9, 9, 9), "nearest", field
    )
    assert set(image.unique().tolist()) <= {0.0, 3.0, 7.0, 250.0}
    assert len(image.unique()) > 2


def test_padding_of_a_batch_is_never_read() -> None:
    first, second = _random_volume((5, 6, 7)), _random_volume((4, 6, 5), 1)
    padded = torch.full((2, 2, 5, 6, 7), 1e4, dtype=torch.float64)
    padded[0], padded[1, :, :4, :6, :5] = first[0], second[0]
    affine = _batch(HOME).repeat(2, 1, 1)
    extent = torch.tensor([[5, 6, 7], [4, 6, 5]])
    half = affine @ _batch(Affine.shift((0.3, -0.2, 0.4)).matrix)
    image, valid = sample(padded, affine, half, (5, 6, 7), extent=extent)
    for row, alone in enumerate((first, second)):
        expected, inside = sample(alone, affine[:1], half[:1], (5, 6, 7))
        assert torch.equal(valid[row], inside[0])
        # 1e4 outside, times the rounding of a place
        torch.testing.assert_close(image[row], expected[0], atol=2e-2, rtol=0)
    assert not valid[1, 4].any()
    assert image.abs().max() < 10


def test_a_constant_displacement_is_a_translation() -> None:
    volume = _random_volume((6, 7, 8)).float()
    field = torch.zeros(1, 3, 4, 3, 5)
    field[:, 0], field[:, 2] = 2.5, -1.1  # one voxel up z, one down x
    image, valid = sample(
        volume, _batch(HOME), _batch(HOME), (6, 7, 8), displacement_mm=field
    )
    torch.testing.assert_close(
        image[..., :-1, :, 1:], volume[..., 1:, :, :-1], atol=1e-4, rtol=0
    )
    assert not valid[:, -1].any()
    assert not valid[..., 0].any()


def test_places_under_a_displacement_are_affine_plus_field() -> None:
    """A volume that holds its own coordinates tells where it was read."""
    rng = np.random.default_rng(3)
    shape, size = (20, 22, 24), (9, 8, 7)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    home = Affine.of((2.0, 1.0, 1.5))
    volume = torch.from_numpy(
        np.moveaxis(home.apply(index.reshape(-1, 3)).reshape(*shape, 3), -1, 0)
    )[None]
    grid = home.crop((6, 7, 8)).matrix @ np.diag([0.9, 1.1, 0.8, 1])
    field = torch.from_numpy(rng.normal(size=(1, 3, 5, 4, 6)))
    image, valid = sample(
        volume, _batch(home.matrix), _batch(grid), size, displacement_mm=field
    )
    assert valid.all()
    voxels = np.stack(np.meshgrid(*[np.arange(n) for n in size], indexing="ij"), -1)
    world = Affine(grid).apply(voxels.reshape(-1, 3)).reshape(*size, 3)
    expected = (
        torch.from_numpy(np.moveaxis(world, -1, 0)) + displacement_at(field, size)[0]
    )
    torch.testing.assert_close(image[0], expected, atol=1e-4, rtol=0)


def test_autocast_does_not_blur_the_places() -> None:
    volume = _random_volume((20, 20, 20)).float()
    field = torch.from_numpy(
        np.random.default_rng(0).normal(size=(1, 3, 5, 5, 5))
    ).float()
    arguments = (volume, _batch(HOME), _batch(HOME), (20, 20, 20), "linear", field)
    plain, _ = sample(*arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under, _ = sample(*arguments)
    assert torch.equal(plain, under)


def test_shapes_and_modes_that_do_not_fit_are_refused() -> None:
    volume = _random_volume((4, 4, 4))
    with pytest.raises(ValueError, match="mode must be"):
        sample(volume, _batch(HOME), _batch(HOME), (4, 4, 4), "cubic")
    with pytest.raises(ValueError, match="float"):
        sample(volume.long(), _batch(HOME), _batch(HOME), (4, 4, 4))
    with pytest.raises(ValueError, match="grid_affine must be"):
        sample(volume, _batch(HOME), torch.eye(4), (4, 4, 4))


@each("points, samples", [(6, 32), (2, 9), (1, 5), (4, 1)])
def test_spline_weights_are_shares(points: int, samples: int) -> None:
    weights = spline_weights(points, samples)
    assert weights.min() >= 0
    np.testing.assert_allclose(weights.sum(1), 1.0)


def test_spline_slopes_are_the_derivative() -> None:
    fine = spline_weights(6, 5001)
    slopes = spline_slopes(6, 5001)
    numeric = np.gradient(fine, 5 / 5000, axis=0)
    np.testing.assert_allclose(slopes[1:-1], numeric[1:-1], atol=1e-3)


def test_spline_spread_is_the_standard_deviation_of_the_field() -> None:
    rng = np.random.default_rng(0)
    points, size = (5, 6, 4), (12, 12, 12)
    fields = displacement_at(torch.from_numpy(rng.normal(size=(400, 3, *points))), size)
    assert float(fields.std()) == pytest.approx(spline_spread(points, size), rel=0.03)
