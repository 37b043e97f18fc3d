"""Lung tips and carina by thresholds: on the phantom, and on a drawn chest."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

from homolog.errors import UnusableInput
from homolog.geometry.affine import Affine
from homolog.phantom.phantom import make_phantom
from homolog.scans.volume import Volume, reorder_axes

_PATH = Path(__file__).parents[2] / "benchmarks" / "ct_points.py"
_spec = importlib.util.spec_from_file_location("ct_points", _PATH)
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
sys.modules["ct_points"] = _module
_spec.loader.exec_module(_module)
NAMES, as_points, ct_points = _module.NAMES, _module.as_points, _module.ct_points

AFFINE = Affine.of((3.0, 3.0, 3.0), (-150.0, -20.0, 40.0))
SHAPE = (90, 80, 110)
SPLIT = 60  # slice in which the drawn airway has become two
# Tips of the drawn lungs: middle, half axes (z, y, x).
LUNGS = {"right": ((45, 40, 30), (30, 22, 15)), "left": ((44, 40, 80), (28, 22, 15))}


def drawn(*, airway=True):
    z, y, x = np.indices(SHAPE)
    hu = np.full(SHAPE, -1000.0)
    body = ((y - 40) / 36) ** 2 + ((x - 55) / 50) ** 2 < 1
    hu[body] = 40.0
    for middle, axes in LUNGS.values():
        inside = sum(
            ((v - m) / a) ** 2 for v, m, a in zip((z, y, x), middle, axes, strict=True)
        )
        hu[inside < 1] = -850.0
    if airway:
        trunk = (z > SPLIT) & ((y - 40) ** 2 + (x - 55) ** 2 <= 3**2)
        hu[trunk] = -1000.0
        for sign in (-1, 1):  # each main bronchus drifts to its lung
            middle = 55 + sign * (3.5 + 0.5 * (SPLIT - z))
            hu[
                (z <= SPLIT) & (z > 48) & ((y - 40) ** 2 + (x - middle) ** 2 <= 2.2**2)
            ] = -1000.0
    return Volume(hu[None].astype(np.int16), AFFINE, "drawn", "CT")


def test_a_drawn_chest_shows_all_five():
    found = ct_points(drawn())
    for side, (middle, axes) in LUNGS.items():
        for name, sign in (("apex", 1), ("base", -1)):
            tip = AFFINE.apply(np.array(middle) + np.array([sign * axes[0], 0, 0]))
            gap = np.array(found[f"lung_{name}_{side}"]) - tip
            assert abs(gap[0]) <= 9.0  # 100 mm2 wide, one voxel opened
            assert np.abs(gap[1:]).max() <= 4.5
    np.testing.assert_allclose(found["carina"], AFFINE.apply([SPLIT, 40, 55]), atol=3.1)
    points = as_points(found)
    assert points.names == NAMES
    assert points.mm.shape == (5, 3)


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3)))[1::2])
def test_a_turned_scan_has_the_same_points(axes):
    scan, flips = drawn(), (True, False, True)
    turned = Volume(
        reorder_axes(scan.data, axes, flips),
        scan.affine.reorient(axes, flips, scan.shape), "turned", "CT",
    )  # fmt: skip
    expected, found = ct_points(scan), ct_points(turned)
    for name in NAMES:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-6)


def test_what_is_cut_off_is_not_guessed():
    whole = drawn()
    cut = Volume(whole.data[:, 30:70], AFFINE.crop((30, 0, 0)), "cut", "CT")
    found = ct_points(cut)
    assert [n for n in NAMES if found[n] is None] == [n for n in NAMES if "lung" in n]
    np.testing.assert_allclose(found["carina"], ct_points(whole)["carina"], atol=1e-6)
    air = np.full_like(cut.data[:, :2], -1024)
    padded = np.concatenate([cut.data[:, :32], air], axis=1)
    found = ct_points(Volume(padded, cut.affine, "padded", "CT"))
    assert found["lung_apex_left"] is found["lung_apex_right"] is None
    bare = ct_points(drawn(airway=False))
    assert bare["carina"] is None
    assert bare["lung_apex_left"] is not None
    empty = Volume(np.full((1, 20, 20, 20), -1000, np.int16), AFFINE, "air", "CT")
    assert set(ct_points(empty).values()) == {None}
    assert as_points(ct_points(empty)).mm.shape == (0, 3)


def test_other_modalities_are_refused():
    with pytest.raises(UnusableInput, match="found in CT"):
        ct_points(Volume(np.zeros((1, 4, 4, 4)), AFFINE, "head", "MR"))


@pytest.mark.parametrize("seed", [1, 2])
def test_lungs_of_a_phantom_end_where_their_labels_do(seed):
    phantom = make_phantom(seed)
    found = ct_points(phantom.volume)
    affine = phantom.volume.affine
    assert found["carina"] is None  # the phantom has no airway
    for side, value in (("right", 5), ("left", 6)):
        lung = phantom.labels.data == value
        rows = np.flatnonzero(lung.sum(axis=(1, 2)) * 16 >= 100)
        base = found[f"lung_base_{side}"]
        assert base is not None
        assert abs(base[0] - affine.apply([rows[0], 0, 0])[0]) <= 12.0
        at = np.rint(affine.inverse().apply(base)).astype(int)
        near = lung[at[0] : at[0] + 4, at[1] - 2 : at[1] + 3, at[2] - 2 : at[2] + 3]
        assert near.any()
