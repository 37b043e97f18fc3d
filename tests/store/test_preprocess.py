"""Preprocessing keeps places and values, and can be undone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from each import each
from homolog.errors import UnusableInput
from homolog.geometry.affine import Affine
from homolog.scans.volume import LabelMap, Volume
from homolog.store.preprocess import (
    Preprocessing,
    Regrid,
    labels_on_grid,
    prepare_volume,
    resample,
    restore_labels,
)

ORDERS = [
    (axes, signs)
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1.0, -1.0), repeat=3)
]


def oblique(
    axes, signs, tilt_deg=0.0, spacing=(1.0, 1.0, 1.0), origin=(5.0, -7.0, 3.0)
):
    """An affine whose array axis i runs along world axis axes[i], then tilted."""
    direction = np.zeros((3, 3))
    for i, (world, sign) in enumerate(zip(axes, signs, strict=True)):
        direction[world, i] = sign
    a = np.deg2rad(tilt_deg)
    turn_z = [[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]]
    turn_x = [[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]
    return Affine.of(spacing, origin, np.array(turn_x) @ np.array(turn_z) @ direction)


def field(affine: Affine, shape, slope=(2.0, -3.0, 5.0)):
    """A linear function of the world position, at every voxel."""
    index = np.stack(np.indices(shape), -1).reshape(-1, 3)
    return (affine.apply(index) @ np.array(slope)).reshape(shape)


def volume_of(data, affine=None, modality="MR"):
    data = np.asarray(data)
    return Volume(data[None], affine or Affine.identity(), "case", modality)


@each("axes, signs", ORDERS)
def test_every_axis_order_lands_on_one_grid_and_comes_back(axes, signs):
    affine = oblique(axes, signs, spacing=(1.0, 2.0, 3.0))
    shape = (4, 5, 6)
    data = np.arange(120, dtype=np.int16).reshape(shape)
    volume = volume_of(data, affine)
    prepared = prepare_volume(volume, Preprocessing())
    assert prepared.affine.orientation == "SPL"
    index = np.stack(np.indices(prepared.data.shape[1:]), -1).reshape(-1, 3)
    places = {
        int(v): p
        for v, p in zip(
            prepared.data.ravel(), prepared.affine.apply(index), strict=True
        )
    }
    for voxel in ((0, 0, 0), (3, 4, 5), (1, 0, 4)):
        expected = affine.apply(np.array(voxel, dtype=float))
        np.testing.assert_allclose(places[int(data[voxel])], expected, atol=1e-9)
    restored = restore_labels(prepared.data[0], prepared, volume)
    np.testing.assert_array_equal(restored.data, data)
    assert restored.affine == affine


@settings(max_examples=60, deadline=None)
@given(
    order=st.sampled_from(ORDERS),
    tilt=st.floats(-35, 35),
    spacing=st.tuples(*[st.floats(0.5, 4.0)] * 3),
    target=st.tuples(*[st.floats(0.6, 4.0)] * 3),
    shape=st.tuples(*[st.integers(8, 20)] * 3),
)
def test_resampled_values_belong_to_their_millimetres(
    order, tilt, spacing, target, shape
):
    affine = oblique(*order, tilt, spacing)
    values = field(affine, shape)
    prepared = prepare_volume(
        volume_of(values, affine), Preprocessing(spacing_mm=target)
    )
    wanted = field(prepared.affine, prepared.data.shape[1:])
    got = prepared.data[0] * prepared.scale + prepared.offset
    # Two kernel widths from the border nothing is extrapolated.
    margin = [
        int(np.ceil(2 * max(1.0, step) / step)) + 1 for step in prepared.grid.step
    ]
    inner = tuple(slice(m, -m) for m in margin)
    if got[inner].size == 0:
        return
    # A widened kernel shifts a ramp by a few hundredths of a voxel at most.
    tolerance = 0.12 * 5 * max(*spacing, *target) + prepared.scale
    assert np.abs(got - wanted)[inner].max() < tolerance


@settings(max_examples=40, deadline=None)
@given(
    order=st.sampled_from(ORDERS),
    target=st.tuples(*[st.floats(0.7, 1.6)] * 3),
    seed=st.integers(0, 99),
)
def test_restored_labels_lie_where_they_were_drawn(order, target, seed):
    rng = np.random.default_rng(seed)
    affine = oblique(*order, 10.0)
    shape = tuple(int(n) for n in rng.integers(14, 22, 3))
    volume = volume_of(rng.normal(size=shape), affine)
    prepared = prepare_volume(volume, Preprocessing(spacing_mm=target))
    for axis in range(3):
        # Every voxel is labelled with its own index, so a label tells where it lay.
        drawn = np.indices(shape)[axis] + 1
        array = labels_on_grid(LabelMap(drawn, affine), prepared)
        assert array.shape == prepared.data.shape[1:]
        restored = restore_labels(array, prepared, volume)
        assert restored.shape == shape
        assert restored.affine == affine
        step = target[prepared.axes.index(axis)]
        moved = np.abs(restored.data - drawn)
        # Half a voxel of either grid inside; at the rim the grids end within half a
        # prepared voxel of each other.
        inner = (slice(2, -2),) * 3
        assert moved[inner].max() <= step / 2 + 0.5
        assert moved.max() <= step + 0.5


def test_spacing_and_centre_are_exact_after_resampling():
    grid = Regrid.between((31, 20, 9), (1.0, 0.7, 5.0), (1.5, 1.5, 1.5))
    affine = grid.affine(Affine.of((1.0, 0.7, 5.0)))
    np.testing.assert_allclose(affine.spacing_mm, (1.5, 1.5, 1.5))
    middle = (np.array(grid.shape) - 1) / 2
    np.testing.assert_allclose(
        affine.apply(middle), np.array((15, 9.5, 4)) * (1.0, 0.7, 5.0)
    )


def test_resampling_agrees_with_cubic_b_splines_on_smooth_anatomy():
    from scipy import ndimage

    rng = np.random.default_rng(0)
    data = ndimage.gaussian_filter(rng.normal(size=(40, 44, 48)), 2.5).astype(
        np.float32
    )
    grid = Regrid.between(data.shape, (1.0, 1.0, 1.0), (0.8, 0.9, 1.3))
    got = resample(data[None], grid)[0]
    places = np.meshgrid(*[grid.positions(a) for a in range(3)], indexing="ij")
    wanted = ndimage.map_coordinates(data, places, order=3, mode="nearest")
    error = np.sqrt(np.mean((got - wanted) ** 2))
    assert 20 * np.log10(np.ptp(data) / error) >= 40


def test_shrinking_averages_instead_of_picking():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(1, 64, 64, 64)).astype(np.float32)
    grid = Regrid.between((64, 64, 64), (1.0, 1.0, 1.0), (4.0, 4.0, 4.0))
    assert resample(noise, grid).std() < 0.25
    flat = np.full((1, 64, 64, 64), 3.5, np.float32)
    np.testing.assert_allclose(resample(flat, grid), 3.5, rtol=1e-6)


@each(
    "values, dtype",
    [
        ((-1024, 3071), np.int16),
        ((0, 65535), np.uint16),
        ((0, 255), np.uint8),
        ((-70000, -20000), np.int32),
        ((-1024, 3071), np.float32),
    ],
)
def test_whole_numbers_that_fit_are_kept_exactly(values, dtype):
    rng = np.random.default_rng(1)
    data = rng.integers(values[0], values[1] + 1, (6, 7, 8)).astype(dtype)
    data.flat[:2] = values
    prepared = prepare_volume(volume_of(data), Preprocessing())
    assert prepared.scale == 1.0
    back = prepared.data[0].astype(np.float64) + prepared.offset
    np.testing.assert_array_equal(back, data.astype(np.float64))


def test_fractions_are_kept_to_a_fine_step_and_outliers_are_told():
    rng = np.random.default_rng(2)
    data = rng.normal(100.0, 20.0, (24, 24, 24)).astype(np.float32)
    data[0, 0, 0] = 1.7e6
    prepared = prepare_volume(volume_of(data), Preprocessing())
    back = prepared.data[0] * prepared.scale + prepared.offset
    inner = np.delete(np.arange(data.size), 0)
    assert np.abs(back.ravel() - data.ravel())[inner].max() <= 0.51 * prepared.scale
    assert prepared.scale < 20.0 / 1000
    assert "clipped" in prepared.note
    assert prepared.intensity.high < 200


def test_ct_is_windowed_in_hounsfield_units():
    data = np.linspace(-2000, 3000, 1000).reshape(10, 10, 10).astype(np.int16)
    prepared = prepare_volume(volume_of(data, modality="CT"), Preprocessing())
    seen = prepared.normalised()
    assert seen.min() == -1.0
    assert seen.max() == 1.0
    narrow = prepare_volume(
        volume_of(data, modality="CT"), Preprocessing(window_hu=(-100.0, 300.0))
    )
    assert (narrow.intensity.low, narrow.intensity.high) == (-100.0, 300.0)


def test_other_modalities_get_zero_mean_and_unit_spread_inside_the_body():
    rng = np.random.default_rng(3)
    data = np.abs(rng.normal(0, 3, (40, 40, 40)))
    data[10:30, 8:32, 12:28] = rng.normal(500, 80, (20, 24, 16))
    prepared = prepare_volume(volume_of(data), Preprocessing())
    body = prepared.normalised()[0, 10:30, 8:32, 12:28]
    assert abs(body.mean()) < 0.05
    assert abs(body.std() - 1) < 0.05
    start, stop = prepared.foreground
    assert all(a <= b for a, b in zip(start, (10, 8, 12), strict=True))
    assert all(a >= b for a, b in zip(stop, (30, 32, 28), strict=True))
    assert np.prod(np.subtract(stop, start)) < 0.3 * data.size


def test_the_largest_step_of_a_constant_scan_is_still_positive():
    prepared = prepare_volume(volume_of(np.full((5, 6, 7), 12.5)), Preprocessing())
    assert prepared.intensity.spread > 0
    assert np.isfinite(prepared.normalised()).all()


def test_the_outside_of_a_skull_stripped_normalised_brain_is_not_foreground():
    rng = np.random.default_rng(4)
    data = np.zeros((40, 40, 40), np.float32)
    data[12:28, 12:28, 12:28] = rng.normal(0.0, 1.0, (16, 16, 16))
    prepared = prepare_volume(volume_of(data), Preprocessing())
    assert abs(prepared.intensity.spread - 1.0) < 0.1
    start, stop = prepared.foreground
    assert np.prod(np.subtract(stop, start)) < 0.2 * data.size


def test_a_tight_crop_is_foreground_as_a_whole():
    rng = np.random.default_rng(5)
    data = rng.normal(400, 90, (30, 30, 30)).clip(60)
    prepared = prepare_volume(volume_of(data), Preprocessing())
    assert prepared.foreground == ((0, 0, 0), (30, 30, 30))


def test_the_table_under_a_patient_is_outside_the_box():
    data = np.full((30, 60, 60), -1000, np.int16)
    data[:, 10:40, 10:50] = 40
    data[:, 50:52, 5:55] = 200
    start, stop = prepare_volume(
        volume_of(data, modality="CT"), Preprocessing()
    ).foreground
    assert stop[1] <= 44
    assert start[1] <= 10


def test_a_single_slice_keeps_its_pixels():
    data = np.arange(400, dtype=np.uint8).reshape(1, 20, 20)
    prepared = prepare_volume(
        volume_of(data, modality="XR"), Preprocessing(spacing_mm=(2.0, 2.0, 2.0))
    )
    assert prepared.data.shape == (1, 1, 20, 20)
    assert prepared.grid.is_identity


def test_values_that_are_no_numbers_are_refused():
    data = np.ones((4, 4, 4), np.float32)
    data[1, 1, 1] = np.nan
    with pytest.raises(UnusableInput, match="NaN"):
        prepare_volume(volume_of(data), Preprocessing())


def test_a_size_beyond_all_memory_is_refused_with_its_number():
    volume = volume_of(np.zeros((90, 90, 90), np.uint8))
    with pytest.raises(UnusableInput, match="9000 x 9000 x 9000"):
        prepare_volume(volume, Preprocessing(spacing_mm=(0.01, 0.01, 0.01)))


def test_labels_of_another_grid_or_range_are_refused():
    volume = volume_of(np.zeros((4, 4, 4), np.uint8))
    prepared = prepare_volume(volume, Preprocessing())
    with pytest.raises(UnusableInput, match=r"\(4, 4, 4\), got \(4, 4, 5\)"):
        labels_on_grid(LabelMap(np.zeros((4, 4, 5), np.uint8), volume.affine), prepared)
    with pytest.raises(UnusableInput, match="32767"):
        labels_on_grid(LabelMap(np.full((4, 4, 4), 40000), volume.affine), prepared)
