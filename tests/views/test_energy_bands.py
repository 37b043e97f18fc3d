"""Energy bands: H-T1 to H-T5."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from torch import Tensor

from homolog.views.energy_bands import (
    BandReference,
    Spectrum,
    band_energies,
    drawn_energies,
    split_bands,
    with_energies,
)

SIGMAS = (0.5, 1.0, 2.0, 4.0, 8.0)


def image_of(*shape: int, seed: int = 0, smooth: float = 1.0) -> Tensor:
    """(1, 1, D, H, W) float64."""
    noise = np.random.default_rng(seed).normal(size=shape)
    width = [smooth if n > 1 else 0.0 for n in shape]
    return torch.from_numpy(gaussian_filter(noise, width, mode="wrap"))[None, None]


@given(
    shape=st.tuples(*[st.integers(1, 20)] * 3),
    sigmas=st.lists(st.floats(0.3, 12.0), min_size=1, max_size=6),
)
@settings(max_examples=30, deadline=None)
def test_h_t1_bands_sum_to_the_image(
    shape: tuple[int, int, int], sigmas: list[float]
) -> None:
    """Paper: Hundred Million Eq. 8."""
    image = image_of(*shape)
    bands = split_bands(image, sigmas)
    assert bands.shape == (len(sigmas) + 1, *image.shape)
    torch.testing.assert_close(bands.sum(0), image, atol=1e-10, rtol=0)


def test_the_cascade_is_that_of_scipy() -> None:
    image = image_of(6, 30, 25)
    first = gaussian_filter(image[0, 0].numpy(), (0.5, 2.0, 1.0), mode="reflect")
    second = gaussian_filter(first, 3.0, mode="reflect")
    bands = split_bands(image, [(0.5, 2.0, 1.0), 3.0])
    np.testing.assert_allclose(bands[1, 0, 0], first - second, atol=1e-10)
    np.testing.assert_allclose(bands[2, 0, 0], second, atol=1e-10)


def test_h_t2_own_energies_change_nothing_and_a_gain_is_undone() -> None:
    """Paper: Hundred Million Eq. 8."""
    image = image_of(1, 40, 48) + 3.0
    own = band_energies(split_bands(image, SIGMAS))[:, :, 0].T
    torch.testing.assert_close(with_energies(image, SIGMAS, own), image)
    torch.testing.assert_close(with_energies(image, SIGMAS, own, literal=True), image)
    wanted = own * torch.tensor([[2.0, 0.5, 1.0, 1.5, 0.7, 1.2]])
    result = with_energies(image, SIGMAS, wanted)
    louder = with_energies(2.5 * image, SIGMAS, wanted)
    torch.testing.assert_close(louder - louder.mean(), result - result.mean())
    brighter = with_energies(image + 7.0, SIGMAS, wanted)
    torch.testing.assert_close(brighter - 7.0, result)
    literally = with_energies(2.5 * image, SIGMAS, wanted, literal=True)
    torch.testing.assert_close(
        literally, with_energies(image, SIGMAS, wanted, literal=True)
    )


def test_h_t3_one_pass_does_not_reach_the_energies_and_repeating_does() -> None:
    image = image_of(1, 128, 128, smooth=2.0)
    other = image_of(1, 128, 128, seed=1, smooth=0.7)
    wanted = band_energies(split_bands(other, SIGMAS))[:, :, 0].T
    errors = []
    for _ in range(6):
        found = band_energies(split_bands(image, SIGMAS))[:, :, 0].T
        errors.append(float((found / wanted).log().square().mean().sqrt()))
        image = with_energies(image, SIGMAS, wanted)
    assert errors[1] > 0.05
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.3 * errors[0]


@pytest.mark.parametrize(("period", "band"), [(600.0, 5), (2.3, 0)])
def test_h_t4_long_waves_are_low_pass_and_short_ones_the_first_band(
    period: float, band: int
) -> None:
    x = torch.arange(600, dtype=torch.float64)
    wave = torch.sin(2 * torch.pi * x / period).expand(1, 1, 1, 8, -1)
    energy = band_energies(split_bands(wave, (1.0, 2.0, 4.0, 8.0, 16.0)))[:, 0, 0]
    assert int(energy.argmax()) == band
    assert energy[band] > 0.8 * energy.square().sum().sqrt()


def test_h_t5_energies_are_drawn_within_one_standard_deviation() -> None:
    """Paper: Hundred Million III-C, references."""
    reference = BandReference((1.0, 2.0), (0.5, 0.2, 1.0), (0.1, 0.19, 2.0))
    drawn = drawn_energies(reference, torch.arange(4000) * 7 + 1)
    assert drawn.shape == (4000, 3)
    assert (drawn[:, 0] >= 0.4 - 1e-6).all()
    assert (drawn[:, 0] <= 0.6 + 1e-6).all()
    assert drawn[:, 0].std() == pytest.approx(0.1 * 0.54, rel=0.05)  # cut-off normal
    assert (drawn[:, 2] >= 0.05 - 1e-6).all()  # never without energy
    apart = torch.corrcoef(drawn[:, :2].T)[0, 1].abs()
    assert apart < 0.05
    again = drawn_energies(reference, torch.arange(4000) * 7 + 1)
    assert torch.equal(drawn, again)


def test_a_mask_leaves_out_what_is_no_scan_and_flat_images_stay_flat() -> None:
    image = image_of(1, 32, 32)
    mask = torch.zeros(1, 1, 1, 32, 32, dtype=torch.bool)
    mask[..., :20, :] = True
    bands = split_bands(image, (1.0,))
    torch.testing.assert_close(
        band_energies(bands, mask), band_energies(bands[..., :20, :])
    )
    flat = torch.full((1, 1, 4, 8, 8), 2.5)
    wanted = torch.ones(1, 2)
    torch.testing.assert_close(with_energies(flat, (1.0,), wanted), flat)


def test_references_are_checked() -> None:
    with pytest.raises(ValueError, match="make 3 bands"):
        BandReference((1.0, 2.0), (1.0, 1.0), (1.0, 1.0))


@pytest.mark.parametrize("shape", [(37, 50), (64, 64), (1, 90)])
def test_whole_slices_have_the_same_bands_by_their_cosines(
    shape: tuple[int, int],
) -> None:
    """Paper: Hundred Million Eq. 8, the entire image."""
    rng = np.random.default_rng(3)
    image = rng.normal(size=(2, *shape)).cumsum(-1) + 5.0
    sigmas, wanted = (0.5, 1.0, 4.0, 30.0), np.array([0.4, 0.6, 1.0, 2.0, 0.7])
    spectrum = Spectrum(image, sigmas)
    plain = torch.from_numpy(image)[None, :, None]
    energies = band_energies(split_bands(plain, sigmas))[:, 0]
    np.testing.assert_allclose(spectrum.energies(), energies, rtol=1e-8, atol=1e-10)
    changed = with_energies(plain, sigmas, torch.from_numpy(wanted)[None])[0, :, 0]
    found = spectrum.with_energies(wanted)
    for row, own, old in zip(found, changed.numpy(), image, strict=True):
        assert row.min() == pytest.approx(old.min())
        assert row.max() == pytest.approx(old.max())
        rescaled = np.interp(own, (own.min(), own.max()), (old.min(), old.max()))
        np.testing.assert_allclose(row, rescaled, atol=1e-8)


def test_each_modality_has_references_of_its_own() -> None:
    both = BandReference(
        (1.0,), (1.0, 2.0, 3.0, 6.0), (0.1, 0.2, 0.3, 0.4), True, ("CT", "MR")
    )
    assert both.of("CT").mean == (1.0, 2.0)
    assert both.of("MR") == BandReference((1.0,), (3.0, 6.0), (0.3, 0.4), True)
    assert both.of("PT").mean == (2.0, 4.0)  # unheard of: all together
    with pytest.raises(ValueError, match="for each of CT, MR"):
        BandReference((1.0,), (1.0, 2.0), (0.1, 0.2), True, ("CT", "MR"))
