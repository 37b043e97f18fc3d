"""Contrast drawn at random: what it changes, and what it leaves."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from homolog.views.intensity import CHANGES, Draws, change_intensity, draw_intensity
from homolog.views.random import generator, uniform_noise
from homolog.views.view import Intensity

SHAPE = (12, 24, 24)
DRAWS = 60


def _changed(image: Tensor, name: str, strength: float, first_key: int = 5) -> Tensor:
    """The same image, drawn anew in each row."""
    count = len(image)
    on = np.array([[c == name for c in CHANGES]] * count)
    value = np.full((count, len(CHANGES)), strength, np.float32)
    draws = Draws(on, value, np.arange(count) * 977 + first_key)
    valid = torch.ones(count, *image.shape[2:], dtype=torch.bool)
    return change_intensity(
        image.clone(), valid, draws, torch.zeros(image.shape[:2]), Intensity()
    )


def _organs(count: int = DRAWS) -> tuple[Tensor, dict[str, tuple[slice, ...]]]:
    """Air, a body, two organs of one grey value far apart, a third darker one."""
    image = torch.full((count, 1, *SHAPE), -1.0)
    image[..., 1:-1, 2:-2, 2:-2] = -0.2
    places = {
        "one": (slice(3, 9), slice(4, 10), slice(4, 10)),
        "twin": (slice(3, 9), slice(14, 20), slice(14, 20)),
        "darker": (slice(3, 9), slice(4, 10), slice(14, 20)),
    }
    for name, where in places.items():
        image[:, :, *where] = 0.1 if name == "darker" else 0.6
    return image, places


def _means(image: Tensor, places: dict[str, tuple[slice, ...]]) -> dict[str, Tensor]:
    return {n: image[:, 0, *w].flatten(1).mean(1) for n, w in places.items()}


def test_contrast_of_two_regions_changes_its_sign() -> None:
    image, places = _organs()
    found = _means(_changed(image, "regions", 1.0), places)
    brighter = (found["one"] > found["darker"]).float().mean()
    assert 0.25 < brighter < 0.75


def test_what_is_alike_in_one_modality_need_not_be_in_another() -> None:
    image, places = _organs()
    by_curve = _means(_changed(image, "curve", 1.0), places)
    torch.testing.assert_close(by_curve["one"], by_curve["twin"], atol=1e-5, rtol=0)
    by_region = _means(_changed(image, "regions", 1.0), places)
    apart = (by_region["one"] - by_region["twin"]).abs() / 1.6
    assert (apart > 0.03).float().mean() > 0.3


def test_contrast_keeps_the_range_and_is_a_function_of_its_key() -> None:
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.normal(size=(8, 2, *SHAPE))).float()
    found = _changed(image, "regions", 1.0)
    low, high = image.amin((2, 3, 4)), image.amax((2, 3, 4))
    assert (found.amin((2, 3, 4)) >= low - 1e-4).all()
    assert (found.amax((2, 3, 4)) <= high + 1e-4).all()
    assert torch.equal(found, _changed(image, "regions", 1.0))
    other = _changed(image, "regions", 1.0, first_key=6)
    assert all(not torch.equal(a, b) for a, b in zip(found, other, strict=True))
    # two channels of one scan are two contrasts
    twice = image[:, :1].expand(-1, 2, -1, -1, -1)
    both = _changed(twice, "regions", 1.0)
    assert not torch.allclose(both[:, 0], both[:, 1])


def test_edges_of_the_scan_stay_its_edges() -> None:
    """Where the scan is flat, the drawn contrast changes little from voxel to voxel."""
    image, places = _organs(20)
    found = _changed(image, "regions", 1.0)
    z, y, x = places["one"]
    inside = found[:, 0, z, y.start + 2 : y.stop - 2, x.start + 2 : x.stop - 2]
    step = inside.diff(dim=-1).abs().amax((1, 2, 3)) / 1.6
    border = (found[:, 0, 6, 6, x.start - 1] - found[:, 0, 6, 6, x.start]).abs() / 1.6
    assert step.median() < 0.5 * border.median()


def test_a_flat_or_masked_view_stays_finite() -> None:
    image = torch.full((3, 1, *SHAPE), 0.3)
    for name in ("regions", "bias"):
        found = _changed(image, name, 1.0)
        assert found.isfinite().all()
        torch.testing.assert_close(found, image, atol=1e-3, rtol=0)


def test_a_bias_darkens_slowly_and_no_further_than_told() -> None:
    rng = np.random.default_rng(1)
    image = torch.from_numpy(rng.uniform(0.5, 1.0, (6, 1, *SHAPE))).float()
    image[:, :, 0, 0, 0] = 0.0
    ratio = _changed(image, "bias", 0.4) / image.clamp_min(1e-6)
    ratio = ratio[:, 0, 1:]
    assert ratio.max() <= 1 + 1e-5
    assert ratio.min() >= np.exp(-0.8) - 1e-5
    assert (ratio.amin((1, 2, 3)) < 0.85).all()
    for axis in (1, 2, 3):
        assert ratio.diff(dim=axis).abs().max() < 0.15


def test_views_of_a_pair_get_contrasts_of_their_own() -> None:
    asked = Intensity(regions_probability=1.0, bias_probability=0.5)
    drawn = [draw_intensity(generator(0, 3, view), asked) for view in range(2)]
    assert all(d.on[0, CHANGES.index("regions")] for d in drawn)
    assert drawn[0].key != drawn[1].key
    again = draw_intensity(generator(0, 3, 1), asked)
    assert again.key == drawn[1].key
    assert np.array_equal(again.value, drawn[1].value)


def test_uniform_numbers_are_even() -> None:
    numbers = uniform_noise(torch.tensor([3, 2**61]), 20_000)
    assert 0 <= numbers.min()
    assert numbers.max() <= 1
    counts = torch.histc(numbers, 10, 0, 1) / numbers.numel()
    assert (counts - 0.1).abs().max() < 0.01
