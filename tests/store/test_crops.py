"""Boxes of stored arrays, and the places they are cut at."""

from __future__ import annotations

from dataclasses import dataclass, field

import blosc2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homolog.store.arrays import StoredArray, write_array
from homolog.store.crops import draw_place, read_box


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    data = (
        np.random.default_rng(0).integers(-900, 900, (1, 23, 37, 41)).astype(np.int16)
    )
    path = tmp_path_factory.mktemp("array") / "image.b2nd"
    write_array(data, path)
    padded = np.pad(data[0], 100, constant_values=-77)
    return data, padded, StoredArray(path, data.shape, path.stat().st_size)


@settings(max_examples=120, deadline=None)
@given(
    start=st.tuples(*[st.integers(-60, 60)] * 3),
    size=st.tuples(*[st.integers(1, 30)] * 3),
)
def test_a_box_equals_the_padded_array_wherever_it_lies(stored, start, size):
    data, padded, array = stored
    wanted = padded[
        tuple(slice(s + 100, s + 100 + n) for s, n in zip(start, size, strict=True))
    ]
    got = read_box(array, start, size, -77)
    np.testing.assert_array_equal(got, wanted[None])
    assert got.flags.writeable
    np.testing.assert_array_equal(read_box(data[0], start, size, -77), wanted)


def test_a_box_of_a_plain_array_is_a_copy():
    data = np.zeros((1, 4, 4, 4), np.int16)
    read_box(data, (0, 0, 0), (4, 4, 4), 0)[:] = 5
    assert not data.any()


def test_a_crop_reads_only_its_own_part_of_the_file(tmp_path):
    rng = np.random.default_rng(1)
    data = rng.integers(-3000, 3000, (1, 128, 256, 256)).astype(np.int16)
    path = tmp_path / "image.b2nd"
    write_array(data, path)
    frame = bytearray(path.read_bytes())
    whole = blosc2.open(str(path), mode="r")
    assert whole.schunk.nchunks == 8
    for i in range(1, 8):
        chunk = whole.schunk.get_chunk(i)
        at = frame.find(chunk[32:])
        assert at > 0
        frame[at : at + len(chunk) - 32] = bytes(len(chunk) - 32)
    path.write_bytes(frame)
    array = StoredArray(path, data.shape, len(frame))
    got = read_box(array, (4, 8, 16), (56, 96, 96), 0)
    np.testing.assert_array_equal(got, data[:, 4:60, 8:104, 16:112])


def test_slices_are_stored_in_wide_blocks(tmp_path):
    data = np.arange(600 * 700, dtype=np.int64).reshape(1, 1, 600, 700) % 999
    path = tmp_path / "image.b2nd"
    write_array(data.astype(np.int16), path)
    array = StoredArray(path, data.shape, path.stat().st_size)
    np.testing.assert_array_equal(np.asarray(array), data)


@dataclass
class FakeStore:
    points: dict = field(default_factory=dict)

    def label_points(self, case_id):
        return self.points


@dataclass
class FakeCard:
    id: str = "case"
    label_values: tuple = ()
    boxes: tuple = ()
    has_label: bool = True
    foreground: tuple = ((2, 3, 4), (12, 23, 34))


def test_places_on_labels_are_even_over_labels_whatever_their_size():
    store = FakeStore({1: np.full((2000, 3), 5), 2: np.array([[9, 9, 9]])})
    card = FakeCard(label_values=(1, 2))
    rng = np.random.Generator(np.random.Philox(3))
    drawn = np.array([draw_place(store, card, rng, 1.0) for _ in range(600)])
    near_small = np.abs(drawn - 9).max(axis=1) <= 0.5
    near_large = np.abs(drawn - 5).max(axis=1) <= 0.5
    assert (near_small | near_large).all()
    assert 240 < near_small.sum() < 360


def test_other_places_fill_the_foreground_box():
    rng = np.random.Generator(np.random.Philox(4))
    drawn = np.array(
        [draw_place(FakeStore(), FakeCard(), rng, 1.0) for _ in range(900)]
    )
    assert (drawn >= np.array((2, 3, 4)) - 0.5).all()
    assert (drawn <= np.array((12, 23, 34)) - 0.5).all()
    assert np.abs(drawn.mean(axis=0) - (6.5, 12.5, 18.5)).max() < 1.0


def test_balance_is_the_share_of_places_on_labels():
    store = FakeStore({1: np.full((10, 3), 500)})
    card = FakeCard(label_values=(1,))
    rng = np.random.Generator(np.random.Philox(5))
    drawn = np.array([draw_place(store, card, rng, 0.3) for _ in range(1000)])
    assert 240 < (drawn[:, 0] > 400).sum() < 360


def test_the_same_numbers_are_consumed_with_and_without_labels():
    left = [np.random.Generator(np.random.Philox(6)) for _ in range(2)]
    draw_place(
        FakeStore({1: np.ones((5, 3))}), FakeCard(label_values=(1,)), left[0], 1.0
    )
    draw_place(FakeStore(), FakeCard(), left[1], 1.0)
    assert left[0].random() == left[1].random()
