"""Changes of values: what each does, and what none may touch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from each import each
from homolog.views.energy_bands import BandReference, band_energies, split_bands
from homolog.views.intensity import CHANGES, Draws, change_intensity, draw_intensity
from homolog.views.random import generator, normal_noise
from homolog.views.view import Intensity

OUTSIDE = -2.0
STRENGTH = {
    "gamma": 1.4,
    "contrast": 1.2,
    "scale": 1.1,
    "shift": 0.3,
    "low_resolution": 0.5,
    "blur": 1.0,
    "noise": 0.1,
    "curve": 0.8,
    "bands": 1.0,
    "regions": 1.0,
    "bias": 0.4,
    "slices": 3.0,
}
REFERENCE = BandReference((0.7, 2.0), (0.3, 0.5, 1.0), (0.1, 0.2, 0.1))
ASKED = Intensity(bands_reference=REFERENCE)


def _draws(rows: list[dict[str, float]]) -> Draws:
    on = np.array([[name in row for name in CHANGES] for row in rows])
    value = np.array([[row.get(name, 0.0) for name in CHANGES] for row in rows])
    return Draws(on, value.astype(np.float32), np.arange(len(rows)) + 11)


def _image(n: int = 1, shape: tuple = (6, 8, 10)) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.normal(size=(n, 1, *shape))).float()
    valid = torch.ones(n, *shape, dtype=torch.bool)
    return image, valid


def _change(image: Tensor, valid: Tensor, rows: list[dict[str, float]]) -> Tensor:
    outside = torch.full(image.shape[:2], OUTSIDE)
    return change_intensity(image.clone(), valid, _draws(rows), outside, ASKED)


def test_values_change_as_told() -> None:
    image, valid = _image()
    shifted = _change(image, valid, [{"shift": 0.3}])
    torch.testing.assert_close(shifted, image + 0.3)
    torch.testing.assert_close(_change(image, valid, [{"scale": 1.1}]), image * 1.1)
    low, high = image.min(), image.max()
    gamma = ((image - low) / (high - low)) ** 1.4 * (high - low) + low
    torch.testing.assert_close(_change(image, valid, [{"gamma": 1.4}]), gamma)
    contrast = ((image - image.mean()) * 1.2 + image.mean()).clamp(low, high)
    torch.testing.assert_close(_change(image, valid, [{"contrast": 1.2}]), contrast)
    noise = normal_noise(torch.tensor([11]), image.numel()).reshape(image.shape)
    torch.testing.assert_close(
        _change(image, valid, [{"noise": 0.1}]), image + 0.1 * noise
    )


def test_blur_is_a_gaussian() -> None:
    image, valid = _image(shape=(1, 1, 41))
    image.zero_()
    image[..., 20] = 1.0
    blurred = _change(image, valid, [{"blur": 1.5}]).numpy()[0, 0, 0, 0]
    expected = gaussian_filter1d(image.numpy()[0, 0, 0, 0], 1.5, truncate=8)
    np.testing.assert_allclose(blurred, expected, atol=1e-6)


def test_blur_and_low_resolution_keep_a_constant() -> None:
    image, valid = _image(2)
    image.fill_(0.7)
    rows = [{"blur": 2.0}, {"low_resolution": 0.37}]
    torch.testing.assert_close(_change(image, valid, rows), image)


def test_low_resolution_of_a_half_is_means_of_two_interpolated() -> None:
    image, valid = _image(shape=(1, 1, 8))
    line = image[0, 0, 0, 0].double().numpy()
    cells = line.reshape(4, 2).mean(1)
    expected = np.interp((np.arange(8) + 0.5) / 2 - 0.5, np.arange(4), cells)
    found = _change(image, valid, [{"low_resolution": 0.5}])
    np.testing.assert_allclose(found[0, 0, 0, 0].numpy(), expected, atol=1e-6)


@each("zoom", [0.5, 0.61, 0.77, 0.93, 1.0])
def test_low_resolution_loses_detail_and_stays_in_place(zoom: float) -> None:
    image, valid = _image(shape=(1, 1, 60))
    slope = torch.linspace(0, 1, 60).expand_as(image)
    found = _change(slope, valid, [{"low_resolution": zoom}])
    torch.testing.assert_close(
        found[..., 4:-4], slope[..., 4:-4].contiguous(), atol=2e-3, rtol=0
    )
    rough = _change(image, valid, [{"low_resolution": zoom}])
    if zoom == 1.0:
        torch.testing.assert_close(rough, image)
    else:
        assert rough.std() < image.std()


def test_thick_slices_are_means_along_one_axis_most_often_the_first() -> None:
    image, valid = _image(60, (12, 8, 16))
    found = _change(image, valid, [{"slices": 4.0}] * 60)
    seen = []
    for one, changed in zip(image[:, 0].numpy(), found[:, 0].numpy(), strict=True):
        thick = [
            np.apply_along_axis(
                lambda line: np.interp(
                    (np.arange(len(line)) + 0.5) / 4 - 0.5,
                    np.arange(len(line) // 4),
                    line.reshape(-1, 4).mean(1),
                ),
                axis, one,
            )
            for axis in range(3)
        ]  # fmt: skip
        (axis,) = (a for a in range(3) if np.allclose(changed, thick[a], atol=1e-5))
        seen.append(axis)
    assert 20 <= seen.count(0) <= 40
    assert min(seen.count(1), seen.count(2)) >= 5


@each("name", CHANGES)
@each("shape", [(6, 8, 10), (1, 8, 10)])
def test_invalid_voxels_keep_the_value_outside(name: str, shape: tuple) -> None:
    image, valid = _image(2, shape)
    valid[:, :, :3] = False
    image = torch.where(valid[:, None], image, OUTSIDE)
    found = _change(image, valid, [{name: STRENGTH[name]}] * 2)
    assert (found[~valid[:, None]] == OUTSIDE).all()
    assert not torch.allclose(found, image)
    assert found.isfinite().all()


def test_a_view_outside_the_scan_stays_finite() -> None:
    image, valid = _image(2)
    valid[0] = False
    image[0] = OUTSIDE
    found = _change(image, valid, [STRENGTH, STRENGTH])
    assert (found[0] == OUTSIDE).all()
    assert found.isfinite().all()


@each("name", CHANGES)
def test_a_view_is_changed_as_if_alone(name: str) -> None:
    image, valid = _image(3)
    draws = _draws([{}, {name: STRENGTH[name]}, {}])
    together = change_intensity(image.clone(), valid, draws, torch.zeros(3, 1), ASKED)
    assert torch.equal(together[0], image[0])
    assert torch.equal(together[2], image[2])
    own = Draws(draws.on[1:2], draws.value[1:2], draws.key[1:2])
    alone = change_intensity(
        image[1:2].clone(), valid[1:2], own, torch.zeros(1, 1), ASKED
    )
    torch.testing.assert_close(together[1:2], alone)
    assert not torch.equal(alone, image[1:2])


def test_draws_follow_probabilities_and_ranges() -> None:
    asked = Intensity(
        shift=(-0.2, 0.4), shift_probability=0.3, blur_voxels=(0.5, 2.0),
        blur_probability=1.0,
    )  # fmt: skip
    drawn = Draws.stack([draw_intensity(generator(0, k), asked) for k in range(600)])
    column = {name: i for i, name in enumerate(CHANGES)}
    assert 0.25 < drawn.on[:, column["shift"]].mean() < 0.35
    assert drawn.on[:, column["blur"]].all()
    assert drawn.on.sum() == drawn.on[:, [column["shift"], column["blur"]]].sum()
    shift = drawn.value[:, column["shift"]]
    assert -0.2 <= shift.min() < -0.19
    assert 0.39 < shift.max() <= 0.4
    assert len(np.unique(drawn.key)) == 600


def test_switching_a_change_on_leaves_the_other_draws_alone() -> None:
    calm = Intensity(shift_probability=0.5)
    noisy = replace(calm, noise_probability=1.0)
    a, b = (draw_intensity(generator(0, 3), i) for i in (calm, noisy))
    assert np.array_equal(a.value, b.value)
    index = CHANGES.index("shift")
    assert a.on[0, index] == b.on[0, index]


def test_a_curve_maps_equal_values_to_equal_values_within_the_range() -> None:
    image, valid = _image()
    image = torch.round(image * 2) / 2
    curved = _change(image, valid, [{"curve": 1.0}])
    assert curved.min() >= image.min() - 1e-5
    assert curved.max() <= image.max() + 1e-5
    for value in image.unique():
        same = curved[image == value]
        torch.testing.assert_close(same, same[:1].expand_as(same))
    assert not torch.allclose(curved, image)
    torch.testing.assert_close(_change(image, valid, [{"curve": 0.0}]), image)


def test_a_shift_may_be_a_share_of_the_range() -> None:
    """Paper: Hundred Million III-C, grey values."""
    image, valid = _image(2)
    image = image.repeat(1, 2, 1, 1, 1)
    draws, outside = _draws([{"shift": 0.2}, {}]), torch.zeros(2, 2)
    span = torch.tensor([[4.0, 0.5], [1.0, 1.0]])
    asked = Intensity(shift_by_range=True)
    moved = change_intensity(image.clone(), valid, draws, outside, asked, span) - image
    wanted = torch.tensor([[0.8, 0.1], [0.0, 0.0]])[..., None, None, None]
    torch.testing.assert_close(moved, wanted.expand_as(moved))


def test_bands_keep_the_range_and_follow_the_reference() -> None:
    image, valid = _image(2, (1, 40, 40))
    keys = np.array([3, 3])
    draws = Draws(
        _draws([{"bands": 1.0}] * 2).on, np.ones((2, len(CHANGES)), "f4"), keys
    )
    fine, coarse = (
        BandReference((0.7, 2.0), mean, (0.0, 0.0, 0.0))
        for mean in ((3.0, 0.5, 0.5), (0.1, 0.5, 3.0))
    )
    found = [
        change_intensity(
            image.clone(),
            valid,
            draws,
            torch.zeros(2, 1),
            Intensity(bands_reference=reference),
        )
        for reference in (fine, coarse)
    ]
    energies = [band_energies(split_bands(f, (0.7, 2.0)))[:, :, 0] for f in found]
    for view in range(2):
        assert found[0][view].min() == pytest.approx(float(image[view].min()), abs=1e-4)
        assert found[0][view].max() == pytest.approx(float(image[view].max()), abs=1e-4)
        share = [e[0, view] / e[2, view] for e in energies]
        assert share[0] > 3 * share[1]
    with pytest.raises(ValueError, match="reference images"):
        change_intensity(image, valid, draws, torch.zeros(2, 1))


def test_h_t6_gamma_keeps_the_range_and_the_order_and_only_darkens() -> None:
    """Paper: Hundred Million III-C, grey values."""
    image, valid = _image(3)
    image -= image.amin((1, 2, 3, 4), keepdim=True)
    image /= image.amax((1, 2, 3, 4), keepdim=True)
    rows = [{"gamma": g} for g in (1.8, 2.2, 2.6)]
    dark = _change(image, valid, rows)
    for before, after in zip(image.flatten(1), dark.flatten(1), strict=True):
        assert (after.min(), after.max()) == (0, 1)
        order = before.argsort()
        assert (after[order].diff() >= 0).all()
        inner = (before > 0.05) & (before < 0.95)
        assert (after[inner] < before[inner]).all()
