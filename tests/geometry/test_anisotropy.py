"""Scans of thick slices: which axes are halved when, and crops of their form."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from each import each
from homolog.geometry.anisotropy import (
    crop_like,
    halving_steps,
    median_grid,
    thick_axis,
)

SPACING = st.tuples(*[st.floats(0.2, 12.0)] * 3)
SHAPE = st.tuples(*[st.integers(2, 400)] * 3)


# As nnU-Net plans them (get_pool_and_conv_props with 4 cells at least), but that the
# fine axes are halved at every stage.
@each(
    "spacing, shape, steps",
    [
        ((5.0, 1.5, 1.5), (18, 175, 175), "122 222 222 122"),
        ((10.0, 1.5, 1.5), (10, 175, 175), "122 122 222 122"),
        ((7.7, 1.9, 1.9), (36, 168, 168), "122 122 222 222"),
        ((0.9, 0.9, 4.0), (256, 256, 20), "221 221 222 222"),
        ((2.0, 1.0, 1.0), (7, 64, 64), "122 122 122 122"),
        ((2.0, 1.0, 1.0), (64, 64, 64), "122 222 222 222"),
        ((1.0, 1.0, 1.0), (1, 512, 512), "122 122 122 122"),
    ],
)
def test_coarse_axes_are_halved_later(spacing, shape, steps) -> None:
    wanted = tuple(tuple(int(n) for n in step) for step in steps.split())
    assert halving_steps(spacing, shape, 4) == wanted


@given(SPACING, SHAPE, st.integers(1, 6))
def test_fine_axes_are_halved_at_every_stage_and_others_keep_four_voxels(
    spacing, shape, stages
) -> None:
    steps = halving_steps(spacing, shape, stages)
    fine = [mm < 2 * min(spacing) for mm in spacing]
    assert (steps is None) == all(fine)
    if steps is None:
        return
    strides = np.prod(np.array(steps), axis=0)
    for axis in range(3):
        if fine[axis]:
            assert strides[axis] == 2**stages
        elif strides[axis] > 1:
            assert math.ceil(shape[axis] / strides[axis]) >= 4
    assert steps[0] != (1, 1, 1)


@given(SPACING, SHAPE)
def test_thick_is_three_times_as_long_as_wide(spacing, shape) -> None:
    axis = thick_axis(spacing)
    assert (axis is not None) == (max(spacing) >= 3 * min(spacing))
    if axis is not None:
        assert spacing[axis] == max(spacing)


@given(
    st.integers(1000, 10**6),
    SPACING,
    SHAPE,
    st.tuples(*[st.sampled_from((1, 2, 4, 8, 16))] * 3),
)
def test_a_crop_is_legal_and_no_longer_than_the_scan(
    voxels, spacing, shape, divisor
) -> None:
    crop = crop_like(voxels, spacing, shape, divisor, divisor)
    for side, n, m in zip(crop, shape, divisor, strict=True):
        assert side % m == 0 < side
        assert side <= max(m, round(n / m) * m)


@pytest.mark.parametrize("spacing", [(5.0, 1.5, 1.5), (1.0, 1.0, 1.0), (6.0, 1.0, 2.0)])
def test_a_crop_keeps_its_volume_and_is_as_long_one_way_as_another(spacing) -> None:
    voxels = 48**3
    crop = crop_like(voxels, spacing, (400, 400, 400), (4, 8, 8), (4, 8, 8))
    assert abs(math.log(math.prod(crop) / voxels)) < math.log(1.25)
    mm = np.array(crop) * spacing
    assert mm.max() / mm.min() < 1.4


def test_single_slices_do_not_count_beside_volumes() -> None:
    volume, picture = ((5.0, 1.0, 1.0), (20, 64, 64)), ((1.0, 0.1, 0.1), (1, 900, 900))
    assert median_grid([volume, picture, picture]) == volume
    assert median_grid([picture]) == picture
