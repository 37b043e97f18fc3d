"""Regions found in one scan and carried to others: what they are, kept and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_into_store import made, store  # noqa: F401 - a fixture

from homolog.config import ConfigError
from homolog.errors import UnusableInput
from homolog.finetune.settings import resolve_request
from homolog.geometry.affine import Affine
from homolog.jobs.propagate import lines
from homolog.propagation.regions import atlas_of, regions_of
from homolog.scans.volume import Volume
from homolog.store.relabelled import own_labels
from homolog.store.store import Store

HOME = Affine.of((2.0, 2.0, 2.0), (0.0, 0.0, 0.0))


def scan(data: np.ndarray) -> Volume:
    return Volume(data.astype(np.float32)[None], HOME, "made", "CT")


def halves(shape: tuple[int, int, int]) -> np.ndarray:
    """Two tissues with an oblique border, and noise."""
    z, y, x = np.indices(shape)
    tissue = (x + 0.4 * y + 0.3 * z > 0.8 * shape[2]) * 100.0
    return tissue + np.random.default_rng(0).normal(0, 5, shape)


def test_regions_are_about_as_many_as_asked_and_follow_edges() -> None:
    data = halves((32, 40, 48))
    found = regions_of(scan(data), 24)
    values, voxels = np.unique(found.data, return_counts=True)
    assert values.tolist() == list(range(len(values)))
    assert 12 <= len(values) <= 48
    assert voxels[0] == voxels.max()  # the largest is the background
    assert found.names == {v: f"region {v}" for v in values[1:]}
    assert found.affine.close_to(HOME, found.data.shape, 1e-6)
    bright = data > 50
    wrong = sum(
        min(bright[found.data == v].sum(), (~bright)[found.data == v].sum())
        for v in values
    )
    grid = np.indices(data.shape) // 12
    boxes = grid[0] * 100 + grid[1] * 10 + grid[2]
    crossed = sum(
        min(bright[boxes == b].sum(), (~bright)[boxes == b].sum())
        for b in np.unique(boxes)
    )
    assert wrong < 0.35 * crossed
    again = regions_of(scan(data), 24)
    assert np.array_equal(again.data, found.data)


def test_a_single_slice_has_regions_and_a_flat_scan_none() -> None:
    found = regions_of(scan(halves((1, 64, 64))), 12)
    assert found.data.shape == (1, 64, 64)
    assert 6 <= len(np.unique(found.data)) <= 24
    with pytest.raises(UnusableInput, match="one value everywhere"):
        regions_of(scan(np.ones((8, 8, 8))), 8)
    with pytest.raises(UnusableInput, match="too small"):
        regions_of(scan(halves((1, 2, 2))), 1)


def test_a_store_of_regions_is_learnt_from_and_holds_nobodys_labels(
    store: Store,  # noqa: F811
    tmp_path: Path,
) -> None:
    learnt = [card.id for card in store.cards if card.split in (None, "train")]
    result = made(store, tmp_path / "new", sources=(), regions=8)
    new = Store.open(tmp_path / "new")
    assert [card.id for card in new.cards] == learnt
    assert own_labels(new) == frozenset()
    assert set(new.label_names.values()) == {
        f"region {v}" for v in range(1, len(new.label_names) + 1)
    }
    atlas = atlas_of([store.card(name) for name in learnt])
    assert result["sources"] == [atlas.id]
    assert {row["case"] for row in result["cases"]} == {*learnt} - {atlas.id}
    assert all(row["dice"] is None for row in result["cases"])
    first = new.label(atlas.id)
    assert first is not None
    assert set(np.unique(first[:])) == {0, *new.label_names}
    assert "train on the store" in lines(result)[-1]
    again = made(store, tmp_path / "new", sources=(), regions=8)
    assert all(row["reused"] for row in again["cases"])
    request: dict[str, Any] = {
        "task": "segment", "store": str(new.path), "encoder": "scratch",
        "recipe": "cpu", "device": "cpu",
    }  # fmt: skip
    resolve_request(request)
    with pytest.raises(UnusableInput, match="holds regions, no labels"):
        resolve_request({**request, "store": str(store.path), "carried": str(new.path)})


def test_what_cannot_be_carried_is_said(
    store: Store,  # noqa: F811
    tmp_path: Path,
) -> None:
    with pytest.raises(UnusableInput, match="of one scan, and 2 are given"):
        made(store, tmp_path / "a", sources=("p0", "p1"), regions=8)
    with pytest.raises(ConfigError, match="say --as-store"):
        made(store, tmp_path / "b", sources=(), regions=8, as_store=False)
    with pytest.raises(ConfigError, match="--from CASE"):
        made(store, tmp_path / "c", sources=())
