"""Queries, cosine maps, matches, and maps on a scan's own grid."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from each import each
from homolog.errors import UnusableInput
from homolog.features.search import (
    Match,
    best_match,
    cosine_maps,
    kept_inside,
    match_points,
    on_grid,
    query_at,
)
from homolog.geometry.affine import Affine
from homolog.scans.volume import FeatureMap


def random_map(shape=(5, 6, 7), size=8, affine=None, seed=0):
    cells = np.random.default_rng(seed).normal(size=(size, *shape))
    cells /= np.linalg.norm(cells, axis=0)
    affine = affine or Affine.of((4.0, 3.0, 2.0), (10.0, -20.0, 5.0))
    return FeatureMap(cells.astype(np.float32), affine)


def place_code(mm, size=24, seed=5):
    """Unit features that change smoothly with the position: (N, 3) -> (size, N)."""
    rng = np.random.default_rng(seed)
    waves = rng.normal(0, 1 / 25, (size // 2, 3)) @ np.asarray(mm).T
    return np.concatenate([np.cos(waves), np.sin(waves)]) / np.sqrt(size / 2)


def code_map(shape, affine, shift=(0.0, 0.0, 0.0)):
    """A map of place codes of a body moved by ``shift`` mm."""
    index = np.indices(shape).reshape(3, -1).T
    code = place_code(affine.apply(index) - np.array(shift))
    return FeatureMap(code.reshape(-1, *shape).astype(np.float32), affine)


def test_query_at_a_cell_is_that_cell():
    features = random_map()
    mm = features.affine.apply(np.array([[2, 3, 4], [0, 0, 6]]))
    found = query_at(features, mm)
    np.testing.assert_allclose(found[0], features.data[:, 2, 3, 4], atol=1e-6)
    np.testing.assert_allclose(found[1], features.data[:, 0, 0, 6], atol=1e-6)


def test_query_between_cells_is_their_blend():
    features = random_map()
    mm = features.affine.apply(np.array([[2.25, 3.0, 4.0]]))
    blend = 0.75 * features.data[:, 2, 3, 4] + 0.25 * features.data[:, 3, 3, 4]
    expected = blend / np.linalg.norm(blend)
    np.testing.assert_allclose(query_at(features, mm)[0], expected, atol=1e-6)


def test_point_outside_the_scan_is_refused():
    features = random_map()
    with pytest.raises(UnusableInput, match="outside the scan"):
        query_at(features, features.affine.apply(np.array([[2.0, 3.0, 6.6]])))
    query_at(features, features.affine.apply(np.array([[2.0, 3.0, 6.4]])))


def test_cosines_are_those_of_every_cell():
    """Paper: S2DC Fig. 1."""
    features = random_map()
    queries = query_at(
        features, features.affine.apply(np.array([[1, 1, 1], [4, 5, 6]]))
    )
    maps = cosine_maps(features, queries)
    np.testing.assert_allclose(
        maps, np.einsum("edhw,ne->ndhw", features.data, queries), atol=1e-5
    )
    assert maps[0].argmax() == np.ravel_multi_index((1, 1, 1), (5, 6, 7))


def test_maps_of_another_encoder_are_refused():
    with pytest.raises(UnusableInput, match="different encoders"):
        cosine_maps(random_map(size=8), np.ones((1, 6), np.float32))


def test_best_match_is_finer_than_the_cells():
    affine = Affine.of((4.0, 4.0, 4.0))
    peak = np.array([10.7, 13.1, 22.4])
    mm = affine.apply(np.indices((8, 9, 10)).reshape(3, -1).T)
    bump = np.exp(-((mm - peak) ** 2).sum(1) / (2 * 8.0**2)).reshape(8, 9, 10)
    match = best_match(bump.astype(np.float32), affine, apart_mm=12)
    assert np.abs(np.array(match.mm) - peak).max() < 0.5
    far = bump[
        np.linalg.norm(mm - affine.apply([3, 3, 6]), axis=1).reshape(8, 9, 10) > 12
    ]
    assert match.margin == pytest.approx(match.similarity - far.max(), abs=1e-6)


def test_a_match_beyond_the_scan_is_moved_to_its_border():
    affine = Affine.of((2.0, 1.0, 1.0), (10.0, 0.0, 0.0))
    moved = kept_inside(Match((11.0, 7.4, 3.0), 0.9, 0.1), affine, (1, 8, 8))
    assert moved.mm == (10.0, 7.0, 3.0)
    assert (moved.similarity, moved.margin) == (0.9, 0.1)


def test_points_are_found_in_a_moved_body_on_another_grid():
    """Paper: Alice Fig. 5, 6; SAM matching."""
    shift = (9.0, -6.5, 4.0)
    a = code_map((12, 12, 12), Affine.of((4.0, 4.0, 4.0)))
    # The other scan is turned, flipped and of another spacing.
    other = Affine(
        np.array([[0, 0, 3.0, 0], [0, -3.0, 0, 45.0], [3.0, 0, 0, -4.0], [0, 0, 0, 1]])
    )
    b = code_map((20, 20, 20), other, shift)
    points = np.array([[18.0, 20.0, 16.0], [24.0, 26.0, 30.0], [11.0, 30.0, 20.0]])
    matches = match_points(a, b, points)
    found = np.array([m.mm for m in matches])
    assert np.abs(found - (points + shift)).max() < 0.6
    assert min(m.similarity for m in matches) > 0.97
    back = np.array([m.mm for m in match_points(b, a, found)])
    assert np.linalg.norm(back - points, axis=1).max() < 1.0


@each("axes", list(itertools.permutations(range(3))))
def test_map_lands_on_every_axis_order_of_the_same_scan(axes):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4, 5, 6)).astype(np.float32)
    voxel = Affine.of((1.0, 1.5, 2.0), (3.0, -7.0, 11.0))
    cells = voxel.coarsen((4, 3, 2))
    shape = (14, 15, 11)
    straight = on_grid(values, cells, shape, voxel)
    for flips in itertools.product((False, True), repeat=3):
        own = voxel.reorient(axes, flips, shape)
        own_shape = tuple(shape[a] for a in axes)
        turned = on_grid(values, cells, own_shape, own)
        expected = np.flip(
            np.transpose(straight, axes), [i for i, f in enumerate(flips) if f]
        )
        np.testing.assert_allclose(turned, expected, atol=1e-5)


def test_axis_by_axis_equals_the_general_way():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(4, 5, 6)).astype(np.float32)
    cells = Affine.of((4.0, 4.0, 4.0), (1.5, 1.5, 1.5))
    turn = np.eye(4)
    angle = 0.3
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    oblique = Affine(turn)
    # Scan and features turned together: separable; the voxel of each place is the same.
    together = on_grid(values, oblique @ cells, (16, 18, 20), oblique)
    alone = on_grid(values, cells, (16, 18, 20), Affine.identity())
    np.testing.assert_allclose(together, alone, atol=1e-4)
    # Only the scan turned: read voxel by voxel, against a direct sum at one voxel.
    turned = on_grid(values, cells, (16, 18, 20), oblique)
    index = cells.inverse().apply(oblique.apply(np.array([5.0, 7.0, 9.0])))
    low = np.floor(index).astype(int)
    share = index - low
    direct = sum(
        values[tuple(low + c)] * np.prod(np.where(c, share, 1 - share))
        for c in np.ndindex(2, 2, 2)
    )
    assert turned[5, 7, 9] == pytest.approx(direct, abs=1e-5)


def test_a_map_of_one_slice_is_held_along_its_short_axis():
    values = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    result = on_grid(values, Affine.of((4, 1, 1)), (3, 2, 3), Affine.identity())
    np.testing.assert_allclose(result, np.repeat(values, 3, axis=0))
