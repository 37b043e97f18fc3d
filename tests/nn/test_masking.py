"""Masks that are functions of the view."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from each import each
from homolog.losses.similarity import to_patches
from homolog.nn.masking import (
    cells_shown,
    hidden_count,
    hidden_patches,
    hidden_voxel_error,
    keys_of,
    random_mask,
    to_voxels,
    uniform,
    view_keys,
    visible_tokens,
    voxels_shown,
)
from homolog.views.view import View, affine_of, origin_of


def affines(n: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 4, 4, generator=generator, dtype=torch.float64)


def test_the_numbers_are_those_of_splitmix64() -> None:
    # Vigna's splitmix64.c, seed 1234567: its first three outputs.
    reference = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    ours = uniform(torch.tensor([1234567]), 3)[0]
    expected = [(value >> 11) * 2.0**-53 for value in reference]
    assert ours.tolist() == expected


def test_numbers_are_uniform_and_views_independent() -> None:
    numbers = uniform(view_keys(affines(50), torch.zeros(50), 0.0), 1000)
    assert 0.0 <= numbers.min()
    assert numbers.max() < 1.0
    histogram = torch.histc(numbers, 10, 0, 1) / numbers.numel()
    assert (histogram - 0.1).abs().max() < 0.006
    correlation = torch.corrcoef(numbers) - torch.eye(50)
    assert correlation.abs().max() < 0.16


def test_a_mask_changes_with_place_scan_and_progress_and_with_nothing_else() -> None:
    affine, case = affines(1), torch.tensor([3])

    def mask(affine: Tensor, case: Tensor, progress: float) -> Tensor:
        return random_mask(view_keys(affine, case, progress), 64, 0.5)

    base = mask(affine, case, 0.25)
    assert torch.equal(base, mask(affine.clone(), case.clone(), 0.25))
    moved = affine.clone()
    moved[0, 2, 3] += 1e-9
    assert not torch.equal(base, mask(moved, case, 0.25))
    assert not torch.equal(base, mask(affine, case + 1, 0.25))
    assert not torch.equal(base, mask(affine, case, 0.2501))


@each("count, ratio", [(8, 0.75), (27, 0.6), (2, 0.99), (5, 0)])
def test_every_view_hides_the_same_number(count: int, ratio: float) -> None:
    mask = random_mask(view_keys(affines(40), torch.arange(40), 0.0), count, ratio)
    hidden = hidden_count(count, ratio)
    assert (mask.sum(1) == hidden).all()
    assert 1 <= hidden < count
    visible = visible_tokens(mask, ratio)
    assert visible.shape == (40, count - hidden)
    assert not mask.gather(1, visible).any()
    assert (visible.diff(dim=1) > 0).all()


def test_a_mask_of_patches_becomes_a_mask_of_voxels() -> None:
    mask = random_mask(torch.arange(3), 2 * 3 * 4, 0.5)
    voxels = to_voxels(mask, (2, 3, 4), (1, 2, 4))
    assert voxels.shape == (3, 1, 2, 6, 16)
    assert torch.equal(voxels[:, 0, :, ::2, ::4].flatten(1), mask)
    assert torch.equal(voxels[:, 0, :, 1::2, 3::4].flatten(1), mask)


def test_a_single_patch_cannot_be_masked() -> None:
    with pytest.raises(ValueError, match="at least 2 patches per view, got 1"):
        random_mask(torch.arange(3), 1, 0.5)


def group(channels: int = 2) -> View:
    """Three scans of two views of 4 x 4 x 8 voxels, padded from the front on."""
    image = torch.randn(3, 2, channels, 4, 4, 8)
    valid = torch.ones(3, 2, 4, 4, 8, dtype=torch.bool)
    valid[0, 1, :2] = False
    valid[2, 0, ..., :5] = False
    affine = affines(6).reshape(3, 2, 4, 4)
    return View(image, affine, valid, torch.tensor([7, 1, 7]))


def test_keys_of_a_group_are_those_of_its_views_in_flat_order() -> None:
    view = group()
    scans = torch.tensor([7, 7, 1, 1, 7, 7])
    wanted = view_keys(affines(6), scans, 0.3)
    assert torch.equal(keys_of(view, 0.3), wanted)
    origin = origin_of(view.affine, view.case)  # as a feed tells it: made on the host
    assert torch.equal(affine_of(origin), view.affine)
    told = dataclasses.replace(view, affine=view.affine * 0, origin=origin)
    assert torch.equal(keys_of(told, 0.3), wanted)


@each("least", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_a_cell_counts_where_enough_of_it_shows_the_scan(least: float) -> None:
    shown = cells_shown(group(), (4, 4, 2), least)
    assert shown.shape == (6, 4)
    assert shown[0].all()
    assert shown[1].all() == (least <= 0.5)  # half of every cell is padding
    # voxels 5 to 7 along x: half of the third cell, all of the fourth
    assert shown[4].tolist() == [False, False, least <= 0.5, True]


def test_voxels_of_padding_count_in_no_channel() -> None:
    view = group()
    shown = voxels_shown(view, (4, 4, 2))
    assert shown.shape == to_patches(view.flat(), (4, 4, 2)).shape
    assert shown[0].all()
    assert shown.float().mean(dim=(1, 2)).tolist() == [1, 0.5, 1, 1, 0.375, 1]
    channels = shown.unflatten(2, (2, -1))
    assert torch.equal(channels[:, :, 0], channels[:, :, 1])


def test_only_hidden_voxels_of_the_scan_have_an_error() -> None:
    view, patch = group(), (4, 4, 2)
    hidden = hidden_patches(view, 0.5, 4, 0.5)
    assert torch.equal(hidden, random_mask(keys_of(view, 0.5), 4, 0.5))
    true = to_patches(view.flat(), patch)
    counts = hidden[:, :, None] & voxels_shown(view, patch)
    wrong = torch.where(counts, true + 3, true + 100 * torch.randn_like(true))
    error = hidden_voxel_error(wrong, view, hidden, patch, normalise=False)
    assert error.item() == pytest.approx(9.0, rel=1e-4)
    none = torch.zeros_like(hidden)
    assert hidden_voxel_error(wrong, view, none, patch, normalise=True) == 0
