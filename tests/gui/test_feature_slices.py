"""Slices of cosine maps: as a plain cosine would have them. No Qt."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from explore_files import feature_map, unit_features

from each import each
from homolog.features.search import cosine_maps, query_at
from homolog.geometry.affine import Affine
from homolog.gui.shared.feature_slices import (
    Cut,
    HeatBuffer,
    SliceCache,
    cut_of,
    usual_similarity,
    whole_map,
)

SHAPE = (7, 9, 11)


@pytest.fixture(scope="module")
def features():
    return feature_map(unit_features(SHAPE), Affine.of((4, 5, 6), (10, 20, 30)))


@each("axis", [0, 1, 2])
@each("place", [0.0, 2.0, 2.25, 5.9])
def test_a_slice_is_the_plain_cosine(features, axis: int, place: float) -> None:
    query = query_at(features, np.array([[12.0, 31.0, 47.0]]))[0]
    cut = Cut.at(axis, place, SHAPE[axis])
    cells = np.moveaxis(features.data, 0, -1).astype(np.float64)
    whole = (cells * query.astype(np.float64)).sum(-1)
    low, high = int(np.floor(place)), int(np.ceil(place))
    share = place - low
    expected = (1 - share) * whole.take(low, axis) + share * whole.take(high, axis)
    found = SliceCache(features).similarity(query, cut)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 1e-5
    assert np.abs(cut.read(whole.astype(np.float32)) - expected).max() < 1e-5


def test_the_whole_map_is_that_of_the_command_line(features) -> None:
    query = query_at(features, np.array([[20.0, 40.0, 60.0]]))
    found = whole_map(features, query[0])
    assert np.abs(found - cosine_maps(features, query)[0]).max() < 1e-6


def test_an_outdated_map_is_given_up(features) -> None:
    query = query_at(features, np.array([[20.0, 40.0, 60.0]]))[0]
    assert whole_map(features, query, lambda: True) is None


def test_half_a_cell_outside_still_counts_and_no_more() -> None:
    shown = Affine.of((4, 4, 4), (10, 0, 0))
    assert cut_of(shown, SHAPE, 0, 8.1) == Cut(0, 0, 0, 0.0)
    assert cut_of(shown, SHAPE, 0, 7.9) is None
    assert cut_of(shown, SHAPE, 0, 10 + 4 * 6.49) == Cut(0, 6, 6, 0.0)
    assert cut_of(shown, SHAPE, 0, 10 + 4 * 6.6) is None
    assert cut_of(shown, (1, 9, 9), 0, 11.0) == Cut(0, 0, 0, 0.0)


def test_kept_slices_stay_within_their_bytes(features) -> None:
    plane = 9 * 11 * 16 * 4
    cache = SliceCache(features, most_bytes=3 * plane)
    for index in range(7):
        cache.plane(0, index)
        assert cache.bytes <= 3 * plane
    assert cache.ready(Cut(0, 5, 6, 0.5))
    assert not cache.ready(Cut(0, 0, 1, 0.5))
    cache.load(Cut(0, 0, 1, 0.5))
    assert cache.ready(Cut(0, 0, 1, 0.5))


def test_the_buffer_shows_the_slice_and_keeps_the_rest() -> None:
    rng = np.random.default_rng(1)
    whole = rng.uniform(-1, 1, SHAPE).astype(np.float32)
    buffer = HeatBuffer(SHAPE)
    shown = buffer.data
    buffer.show_whole(whole, None)
    cut = Cut.at(1, 3.4, 9)
    buffer.show(cut, cut.read(whole))
    assert buffer.data is shown
    assert np.allclose(buffer.data[:, 3], cut.read(whole))
    assert np.allclose(buffer.data[:, 4], cut.read(whole))
    other = Cut.at(0, 2.5, 7)
    buffer.show(other, other.read(whole))
    assert np.array_equal(buffer.data[4:], whole[4:])  # the former slice is undone
    assert np.allclose(buffer.data[2], other.read(whole))


@each("axis", [0, 1, 2])
def test_the_value_told_is_the_one_shown(axis: int) -> None:
    rng = np.random.default_rng(2)
    whole = rng.uniform(-1, 1, SHAPE).astype(np.float32)
    buffer = HeatBuffer(SHAPE)
    cell = np.array([2.3, 4.6, 7.1])
    cut = Cut.at(axis, cell[axis], SHAPE[axis])
    buffer.show_whole(whole, cut)
    from scipy.ndimage import map_coordinates

    expected = map_coordinates(whole.astype(np.float64), cell[:, None], order=1)[0]
    assert buffer.value_at(cell) == pytest.approx(expected, abs=1e-5)
    assert buffer.value_at(np.array([2.3, -0.6, 7.1])) is None


def test_a_range_hides_what_is_too_similar() -> None:
    whole = np.linspace(0, 1, 7 * 9 * 11, dtype=np.float32).reshape(SHAPE)
    buffer = HeatBuffer(SHAPE)
    buffer.show_whole(whole, Cut.at(0, 6.0, 7), highest=0.5)
    assert buffer.data.max() <= 0.5
    assert buffer.value_at(np.array([6.0, 8, 10])) == pytest.approx(1.0)


def test_usual_similarity_passes_over_empty_cells() -> None:
    cells = unit_features((6, 6, 6), seed=3)
    cells[:3] = 0
    usual = usual_similarity(feature_map(cells, Affine.identity()))
    assert -0.2 < usual < 0.2


def test_no_torch_is_loaded() -> None:
    code = (
        "import sys, homolog.gui.shared.scans\n"
        "import homolog.gui.shared.feature_slices\n"
        "print([m for m in ('torch', 'monai', 'qtpy', 'napari') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
