"""Patches and their reconstruction error."""

from __future__ import annotations

import pytest
import torch

from each import each
from homolog.losses.similarity import from_patches, hidden_patch_error, to_patches


@each("patch", [(2, 2, 2), (1, 4, 2), (4, 8, 6)])
@each("channels", [1, 3])
def test_cutting_and_joining_is_the_identity(
    patch: tuple[int, int, int], channels: int
) -> None:
    image = torch.randn(2, channels, 4, 8, 6)
    patches = to_patches(image, patch)
    assert patches.shape[2] == channels * patch[0] * patch[1] * patch[2]
    assert torch.equal(from_patches(patches, patch, (4, 8, 6)), image)


def test_patches_run_x_fastest_as_a_feature_map_does() -> None:
    image = torch.arange(4 * 4 * 4.0).reshape(1, 1, 4, 4, 4)
    means = to_patches(image, (2, 2, 2)).mean(2)
    pooled = torch.nn.functional.avg_pool3d(image, 2).flatten(2)[:, 0]
    torch.testing.assert_close(means, pooled)


def test_only_hidden_patches_count() -> None:
    target = torch.randn(2, 5, 8)
    hidden = torch.zeros(2, 5, dtype=torch.bool)
    hidden[:, 1] = True
    prediction = torch.full_like(target, 100.0)
    prediction[:, 1] = target[:, 1]
    assert hidden_patch_error(prediction, target, hidden, normalise=False) == 0.0
    nothing = torch.zeros_like(hidden)
    assert hidden_patch_error(prediction, target, nothing) == 0.0


def test_predicting_nothing_of_normalised_patches_costs_one() -> None:
    target = torch.randn(4, 6, 512, dtype=torch.float64) * 3 + 7
    hidden = torch.ones(4, 6, dtype=torch.bool)
    error = hidden_patch_error(torch.zeros_like(target), target, hidden)
    assert error.item() == pytest.approx(1.0, abs=1e-4)


def test_constant_patches_do_not_blow_up() -> None:
    target = torch.full((1, 2, 8), -1.0)
    hidden = torch.ones(1, 2, dtype=torch.bool)
    assert hidden_patch_error(torch.zeros(1, 2, 8), target, hidden) == 0.0


def test_an_image_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(4, 5, 4\) cannot be cut into \(2, 2, 2\)"):
        to_patches(torch.zeros(1, 1, 4, 5, 4), (2, 2, 2))
