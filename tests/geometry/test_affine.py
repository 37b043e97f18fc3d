"""The affine value type, as properties over all kinds of scans."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from each import each
from homolog.geometry.affine import Affine
from homolog.scans.volume import Volume, closest_canonical, restore_axes

ORDERS = [
    (axes, signs)
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1.0, -1.0), repeat=3)
]


def _direction(axes: tuple[int, ...], signs: tuple[float, ...]) -> np.ndarray:
    direction = np.zeros((3, 3))
    direction[axes, range(3)] = signs
    return direction


@st.composite
def affines(draw: st.DrawFn) -> Affine:
    """Any axis order, oblique, anisotropic, left or right handed, far from home."""
    axes, signs = draw(st.sampled_from(ORDERS))
    angles = draw(st.tuples(*[st.floats(-0.6, 0.6)] * 3))
    turn = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = (k for k in range(3) if k != axis)
        step = np.eye(3)
        step[[i, j], [i, j]] = np.cos(angle)
        step[i, j], step[j, i] = -np.sin(angle), np.sin(angle)
        turn = turn @ step
    spacing = draw(st.tuples(*[st.floats(0.2, 8.0)] * 3))
    origin = draw(st.tuples(*[st.floats(-2000, 2000)] * 3))
    return Affine.of(spacing, origin, turn @ _direction(axes, signs))


points = st.tuples(*[st.floats(-500, 500)] * 3)


@settings(deadline=None)
@given(affines(), points)
def test_there_and_back_is_the_same_place(affine: Affine, point: tuple) -> None:
    np.testing.assert_allclose(
        (affine.inverse() @ affine).matrix, np.eye(4), atol=1e-9, rtol=0
    )
    back = affine.inverse().apply(affine.apply(point))
    np.testing.assert_allclose(back, point, atol=1e-8)


@settings(deadline=None)
@given(affines(), st.tuples(*[st.integers(0, 30)] * 3))
def test_a_crops_first_voxel_is_where_it_was_cut(affine: Affine, start: tuple) -> None:
    np.testing.assert_allclose(
        affine.crop(start).apply((0, 0, 0)), affine.apply(start), atol=1e-9
    )


@settings(deadline=None)
@given(affines(), st.tuples(*[st.integers(1, 16)] * 3))
def test_a_coarse_cell_lies_at_the_middle_of_its_voxels(
    affine: Affine, stride: tuple
) -> None:
    voxels = np.stack(np.meshgrid(*[np.arange(s) for s in stride]), -1).reshape(-1, 3)
    cell = np.array([2, 1, 3])
    np.testing.assert_allclose(
        affine.coarsen(stride).apply(cell),
        affine.apply(voxels + cell * stride).mean(0),
        atol=1e-8,
    )


@each("axes, signs", ORDERS)
def test_a_marked_voxel_keeps_its_place_when_axes_are_reordered(
    axes: tuple, signs: tuple
) -> None:
    affine = Affine.of((3.0, 1.5, 0.7), (-120.0, 900.0, 33.0), _direction(axes, signs))
    data = np.zeros((1, 4, 5, 6))
    data[0, 3, 1, 2] = 1.0
    canonical = closest_canonical(Volume(data, affine))
    marked = np.argwhere(canonical.data[0] == 1.0)[0]
    np.testing.assert_allclose(
        canonical.affine.apply(marked), affine.apply((3, 1, 2)), atol=1e-9
    )
    assert canonical.affine.orientation == "SPL"
    meta = canonical.meta
    assert np.array_equal(
        restore_axes(canonical.data, meta["axes"], meta["flips"]), data
    )


@settings(max_examples=50, deadline=None)
@given(affines())
def test_reordering_brings_any_scan_closest_to_canonical(affine: Affine) -> None:
    shape = (4, 5, 6)
    axes, flips = affine.closest_axes()
    turned = affine.reorient(axes, flips, shape)
    assert turned.closest_axes() == ((0, 1, 2), (False, False, False))
    assert abs(np.linalg.det(turned.matrix[:3, :3])) == pytest.approx(
        abs(np.linalg.det(affine.matrix[:3, :3]))
    )


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.eye(3), "must be 4 x 4"),
        (np.diag([1, 1, np.nan, 1]), "finite"),
        (np.ones((4, 4)), "last row"),
    ],
)
def test_nonsense_is_refused(matrix: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Affine(matrix)


def test_spacing_must_be_positive() -> None:
    with pytest.raises(ValueError, match="three positive numbers"):
        Affine.of((1.0, 0.0, 1.0))
