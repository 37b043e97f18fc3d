"""Depth within labels: M-T8's distances, and what the store keeps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from homolog.events import Progress, Request, drain
from homolog.store.pairs import depth_map, write_depths
from homolog.store.store import DEPTH_STEPS as STEPS
from homolog.store.store import Store, case_folder


def test_m_t8_a_cube_is_five_deep_and_its_faces_are_the_boundary() -> None:
    labels = np.zeros((21, 21, 21), np.int16)
    labels[5:16, 5:16, 5:16] = 3
    depth = depth_map(labels)
    assert depth[10, 10, 10] == 5.0
    assert depth[5, 10, 10] == depth[10, 15, 10] == 0.0
    assert depth[6, 10, 10] == 1.0
    assert (depth[labels == 0] == 0).all()


def test_m_t8_the_border_of_the_scan_is_no_boundary() -> None:
    labels = np.zeros((12, 20, 20), np.int16)
    labels[:6] = 1
    depth = depth_map(labels)
    np.testing.assert_array_equal(depth[:6, 0, 0], [5, 4, 3, 2, 1, 0])
    assert (depth_map(np.ones((4, 5, 9), np.int16)) == 9).all()


def test_labels_that_touch_bound_each_other() -> None:
    labels = np.ones((9, 9, 9), np.int16)
    labels[:, :, 4:] = 2
    depth = depth_map(labels)
    np.testing.assert_array_equal(depth[4, 4], [3, 2, 1, 0, 0, 1, 2, 3, 4])
    assert (depth_map(-labels) == 0).all()  # unlabelled


@pytest.fixture
def store(phantom_store: Store, tmp_path: Path) -> Store:
    """A copy that may be written into."""
    # another test may have made depths there
    without = shutil.ignore_patterns("depth.*")
    shutil.copytree(phantom_store.path, tmp_path / "store", ignore=without)
    return Store.open(tmp_path / "store")


def test_the_store_keeps_depths_until_a_case_is_prepared_anew(store: Store) -> None:
    cases = [(store, card) for card in store.cards[:2]]
    first = store.cards[0]
    assert store.depth(first) is None
    assert drain(write_depths(cases)) == 2
    found = store.depth(first)
    assert found is not None
    expected = depth_map(np.asarray(store.label(first.id)))
    np.testing.assert_allclose(
        np.asarray(found) / STEPS, expected, atol=0.5 / STEPS + 1e-6
    )
    assert drain(write_depths(cases)) == 0  # made once
    note = case_folder(store.path, first.id) / "depth.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), "key": "older"}))
    assert store.depth(first) is None
    assert drain(write_depths(cases)) == 1
    assert not list(note.parent.glob(".depth*"))


def test_it_stops_when_told_to(store: Store) -> None:
    work = write_depths([(store, card) for card in store.cards])
    event = next(work)
    assert isinstance(event, Progress)
    with pytest.raises(StopIteration) as end:
        work.send(Request.STOP)
    assert end.value.value == 0
    assert store.depth(store.cards[0]) is None
