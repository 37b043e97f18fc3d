"""Where views lie."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from each import each
from homolog.geometry.affine import Affine
from homolog.views.plan import GroupPlan, Scan, plan_views
from homolog.views.view import Anchor, Elsewhere, ViewSpec, Whole, Within, check_specs

OBLIQUE = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
SCAN = Scan(Affine.of((3.0, 1.5, 1.5), (500.0, -900.0, 40.0), OBLIQUE), (30, 50, 60))


def _place(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(0, np.array(SCAN.shape) - 1)


def _plan(
    spec: ViewSpec, sample: int = 0, scan: Scan = SCAN, **more: ViewSpec
) -> GroupPlan:
    plans = plan_views({"v": spec, **more}, scan, _place, seed=5, sample=sample)
    return plans["v"]


def _voxels(affine: np.ndarray, scan: Scan = SCAN) -> Affine:
    """View voxel -> scan voxel."""
    return scan.affine.inverse() @ Affine(affine)


def _spacing(affine: np.ndarray) -> np.ndarray:
    return np.linalg.norm(affine[..., :3, :3], axis=-2)


@each("size", [(16, 16, 16), (7, 9, 11), (1, 24, 24), (30, 50, 60)])
@each("place", [Anchor(), Elsewhere()])
def test_a_view_at_rest_copies_voxels_inside_the_scan(
    size: tuple, place: object
) -> None:
    for sample in range(20):
        plan = _plan(ViewSpec(size, place=place, count=2), sample)  # type: ignore[arg-type]
        for affine in plan.affine:
            relative = _voxels(affine).matrix
            np.testing.assert_allclose(relative[:3, :3], np.eye(3), atol=1e-9)
            start = relative[:3, 3]
            np.testing.assert_allclose(start, np.round(start), atol=1e-9)
            assert (start > -0.1).all()
            assert (start + size < np.array(SCAN.shape) + 0.1).all()


def test_a_view_larger_than_the_scan_is_centred_on_it() -> None:
    relative = _voxels(_plan(ViewSpec((40, 64, 64))).affine[0])
    middle = relative.apply((39 / 2, 63 / 2, 63 / 2))
    np.testing.assert_allclose(middle, (14.5, 24.5, 29.5), atol=0.51)


def test_views_stay_about_the_anchor_when_turned_scaled_and_flipped() -> None:
    size = (12, 14, 16)
    middle = (np.array(size) - 1) / 2
    spec = ViewSpec(
        size, count=3, rotate_deg=(30, 40, 50), scale=(0.5, 2.0), anisotropy=0.3,
        flip=(0.5, 0.5, 0.5), quarter_turns=True,
    )  # fmt: skip
    plans = plan_views({"a": ViewSpec(size), "b": spec}, SCAN, _place, seed=0, sample=1)
    home = Affine(plans["a"].affine[0]).apply(middle)
    for affine in plans["b"].affine:
        np.testing.assert_allclose(Affine(affine).apply(middle), home, atol=1e-9)
    assert not np.allclose(plans["b"].affine[0], plans["b"].affine[1])


def test_rotation_stays_in_range_and_keeps_lengths() -> None:
    spec = ViewSpec((16, 16, 16), rotate_deg=(20, 0, 0))
    angles = []
    for sample in range(200):
        affine = _plan(spec, sample).affine[0]
        turn = np.linalg.inv(OBLIQUE) @ (affine[:3, :3] / (3.0, 1.5, 1.5))
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-9)
        assert turn[0, 0] == pytest.approx(1.0)  # about z only
        angles.append(np.degrees(np.arctan2(turn[2, 1], turn[1, 1])))
    assert -20 <= min(angles) < -16
    assert 16 < max(angles) <= 20


def test_scale_enlarges_the_anatomy() -> None:
    """Paper: Hundred Million III-C, rescaling."""
    large = _plan(ViewSpec((16, 16, 16), scale=(2.0, 2.0))).affine[0]
    np.testing.assert_allclose(_spacing(large), (1.5, 0.75, 0.75))
    many = [
        _spacing(_plan(ViewSpec((16,) * 3, scale=(0.8, 1.25)), s).affine[0])
        for s in range(200)
    ]
    factors = 3.0 / np.array(many)[:, 0]
    assert 0.8 <= factors.min() < 0.83
    assert 1.2 < factors.max() <= 1.25
    np.testing.assert_allclose(np.array(many)[:, 0] / np.array(many)[:, 1], 2.0)


def test_anisotropy_is_drawn_for_each_axis() -> None:
    drawn = np.array(
        [
            _spacing(_plan(ViewSpec((16,) * 3, anisotropy=0.25), s).affine[0])
            for s in range(200)
        ]
    ) / (3.0, 1.5, 1.5)
    assert drawn.min() > 0.8 - 1e-9
    assert drawn.max() < 1.25 + 1e-9
    assert np.abs(np.corrcoef(drawn.T)[0, 1]) < 0.25


def test_flips_happen_as_often_as_asked() -> None:
    spec = ViewSpec((16,) * 3, flip=(0.0, 1.0, 0.3), count=400)
    signs = np.sign(np.linalg.inv(OBLIQUE) @ _plan(spec).affine[:, :3, :3])
    diagonal = signs[:, range(3), range(3)]
    assert (diagonal[:, 0] == 1).all()
    assert (diagonal[:, 1] == -1).all()
    assert 0.2 < (diagonal[:, 2] == -1).mean() < 0.4


@each(
    "size, spacing, turns",
    [
        ((16, 16, 16), (2.0, 2.0, 2.0), 24),
        ((16, 16, 16), None, 4),  # the scan's z spacing is another
        ((8, 16, 16), (2.0, 2.0, 2.0), 4),
        ((8, 16, 12), (2.0, 2.0, 2.0), 1),
        ((1, 16, 16), (2.0, 2.0, 2.0), 4),
    ],
)
def test_quarter_turns_stay_in_planes_whose_sides_agree(
    size: tuple, spacing: tuple | None, turns: int
) -> None:
    spec = ViewSpec(size, quarter_turns=True, spacing_mm=spacing, count=400)
    plan = _plan(spec)
    linear = (
        np.linalg.inv(OBLIQUE) @ plan.affine[:, :3, :3] / _spacing(plan.affine)[:, None]
    )
    np.testing.assert_allclose(np.abs(linear).sum(1), 1.0, atol=1e-9)
    np.testing.assert_allclose(np.linalg.det(linear), 1.0)
    assert len(np.unique(np.round(linear), axis=0)) == turns
    if size[0] == 1:
        np.testing.assert_allclose(linear[:, 0, 0], 1.0)


def test_translation_moves_by_whole_voxels_up_to_its_share() -> None:
    spec = ViewSpec((16, 16, 16), translate=(0.0, 0.25, 0.5), count=300)
    plans = plan_views(
        {"a": ViewSpec((16,) * 3), "b": spec}, SCAN, _place, seed=0, sample=0
    )
    home = _voxels(plans["a"].affine[0]).matrix[:3, 3]
    moved = np.array([_voxels(a).matrix[:3, 3] for a in plans["b"].affine]) - home
    np.testing.assert_allclose(moved, np.round(moved), atol=1e-8)
    np.testing.assert_allclose(np.abs(moved).max(0), (0, 4, 8), atol=1e-8)


def test_a_flat_view_stays_in_its_plane() -> None:
    spec = ViewSpec(
        (1, 24, 24), rotate_deg=(30, 30, 30), flip=(1, 1, 1), scale=(0.5, 0.9),
        translate=(0.5, 0.5, 0.5), quarter_turns=True, elastic_mm=2.0, anisotropy=0.2,
    )  # fmt: skip
    for sample in range(20):
        plan = _plan(spec, sample)
        relative = _voxels(plan.affine[0]).matrix
        np.testing.assert_allclose(relative[0, :3], (1, 0, 0), atol=1e-9)
        np.testing.assert_allclose(relative[:3, 0], (1, 0, 0), atol=1e-9)
        assert relative[0, 3] == pytest.approx(round(relative[0, 3]))
        assert plan.displacement_mm is not None
        across = np.tensordot(OBLIQUE[:, 0], plan.displacement_mm[0], 1)
        np.testing.assert_allclose(across, 0.0, atol=1e-6)


def test_a_two_dimensional_image_is_read_on_its_only_slice() -> None:
    scan = Scan(Affine.of((1.0, 0.2, 0.2)), (1, 300, 200))
    for place in (Anchor(), Elsewhere(), Whole()):
        plan = _plan(ViewSpec((1, 64, 64), place=place), scan=scan)
        assert _voxels(plan.affine[0], scan).matrix[0, 3] == pytest.approx(0.0)


def test_spacing_is_the_one_asked_for() -> None:
    affine = _plan(ViewSpec((16,) * 3, spacing_mm=(2.0, 3.0, 4.0))).affine[0]
    np.testing.assert_allclose(_spacing(affine), (2.0, 3.0, 4.0))


def test_whole_fits_the_scan_with_one_factor() -> None:
    relative = _voxels(_plan(ViewSpec((16, 16, 16), place=Whole())).affine[0])
    factors = np.diag(relative.matrix)[:3]
    np.testing.assert_allclose(factors, 60 / 16)
    np.testing.assert_allclose(relative.apply((7.5, 7.5, 7.5)), (14.5, 24.5, 29.5))
    corner = relative.apply((7.5, 7.5, -0.5))
    assert corner[2] == pytest.approx(-0.5)  # the longest side fills the view
    flat = _voxels(_plan(ViewSpec((1, 25, 40), place=Whole())).affine[0])
    np.testing.assert_allclose(np.diag(flat.matrix)[:3], (1, 2, 2))


def test_within_is_centred_inside_the_other_groups_first_view() -> None:
    outer = ViewSpec((20, 20, 20), rotate_deg=(45, 45, 45), count=2)
    specs = {
        "outer": outer,
        "inner": ViewSpec((6, 6, 6), place=Within("outer"), count=50),
    }
    plans = plan_views(specs, SCAN, _place, seed=0, sample=3)
    box = Affine(plans["outer"].affine[0]).inverse()
    centres = np.array(
        [box.apply(Affine(a).apply((2.5,) * 3)) for a in plans["inner"].affine]
    )
    assert (centres > -1.5).all()  # half a voxel of slack: snapped to the scan's grid
    assert (centres < 20.5).all()
    assert centres.std(0).min() > 2


def test_elsewhere_is_drawn_anew_for_every_view() -> None:
    plan = _plan(ViewSpec((8, 8, 8), place=Elsewhere(), count=5))
    assert len(np.unique(plan.affine[:, :3, 3].round(3), axis=0)) == 5


def test_a_plan_follows_from_seed_and_sample_alone() -> None:
    spec = ViewSpec((16,) * 3, rotate_deg=(20,) * 3, elastic_mm=2.0, flip=(0.5,) * 3)
    again = _plan(spec, 4)
    first = _plan(spec, 4, other=ViewSpec((8,) * 3, place=Elsewhere(), count=3))
    assert np.array_equal(first.affine, again.affine)
    assert np.array_equal(first.displacement_mm, again.displacement_mm)
    assert not np.array_equal(first.affine, _plan(spec, 5).affine)
    # one setting does not change the draws of another
    calm = _plan(replace(spec, elastic_mm=0.0), 4)
    assert np.array_equal(first.affine, calm.affine)


@each(
    "specs, message",
    [
        ({}, "at least one group"),
        ({"a": ViewSpec((8, 8, 8), count=0)}, "count"),
        ({"a": ViewSpec((8, 8, 8), scale=(0.0, 1.0))}, "scale"),
        (
            {"a": ViewSpec((8,) * 3, place=Within("b")), "b": ViewSpec((8,) * 3)},
            "must come earlier",
        ),
    ],
)
def test_specs_that_cannot_be_drawn_are_refused(specs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_specs(specs)
