"""The table of a large store's cards: the same cases, hashes and crops, at once."""

from __future__ import annotations

import pickle
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from homolog.errors import UnusableInput
from homolog.feed.batches import Batch, CaseOrder, Feed
from homolog.feed.reading import CaseRef, StoredCases
from homolog.pretrain.settings import chosen_cases
from homolog.store import store as store_module
from homolog.store import table as table_module
from homolog.store.store import Store
from homolog.store.table import INDEX, CardTable, state_of
from homolog.views.view import Phase, ViewSpec, Whole


@pytest.fixture
def folder(phantom_store: Store, tmp_path: Path) -> Path:
    return Path(shutil.copytree(phantom_store.path, tmp_path / "store"))


@pytest.fixture
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "LARGE", 1)


def opened(folder: Path) -> Store:
    store = Store.open(folder)
    assert isinstance(store.cards, CardTable)
    return store


def test_small_stores_have_no_table(folder: Path) -> None:
    before = sorted(p.name for p in folder.iterdir())
    store = Store.open(folder)
    assert isinstance(store.cards, tuple)
    assert store.table is None
    assert sorted(p.name for p in folder.iterdir()) == before


@pytest.mark.usefixtures("small_is_large")
def test_a_large_store_is_the_same_store(phantom_store: Store, folder: Path) -> None:
    for store in (opened(folder), opened(folder)):  # made, then read
        assert tuple(store.cards) == phantom_store.cards
        assert [store.cards[i] for i in range(len(store))] == [*phantom_store.cards]
        assert store.cards[-1] == phantom_store.cards[-1]
        assert [*store.cards[1:3]] == [*phantom_store.cards[1:3]]
        assert store.hash == phantom_store.hash
        assert store.label_names == phantom_store.label_names
        assert store.preprocessing == phantom_store.preprocessing
        assert store.fingerprint == phantom_store.fingerprint
        for name in ("train", "val", "test"):
            assert [*store.split(name)] == [*phantom_store.split(name)]
        first = phantom_store.cards[0]
        assert store.card(first.id) == first
        points = store.label_points(first.id)
        assert points.keys() == phantom_store.label_points(first.id).keys()
        again = pickle.loads(pickle.dumps(store))
        assert again.hash == store.hash
    with pytest.raises(UnusableInput, match="no case 'nobody'"):
        store.card("nobody")
    with pytest.raises(IndexError):
        store.cards[len(store)]


def same(a: Batch, b: Batch) -> bool:
    pairs = [(a.case, b.case), (a.levels.gain, b.levels.gain)]
    pairs += [(x.image, y.image) for x, y in zip(a.blocks, b.blocks, strict=True)]
    pairs += [(a.draws[n].affine, b.draws[n].affine) for n in a.draws]
    return a.ids == b.ids and all(torch.equal(x, y) for x, y in pairs)


SPECS = {
    "crop": ViewSpec((12, 12, 12), count=2, rotate_deg=(20, 20, 20), labels=True),
    "whole": ViewSpec((8, 8, 8), place=Whole()),
}
WAYS: list[dict[str, Any]] = [
    {"balance": 0.5},
    {"share_by": "modality", "share_power": 0.5},
    {"phases": (Phase(0.5, ("crop",), volumes=True), Phase(0.5, ("whole",)))},
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.usefixtures("small_is_large")
def test_the_same_crops_are_drawn_bit_by_bit(
    phantom_store: Store, three_patients: Store, folder: Path, way: dict[str, Any]
) -> None:
    store = opened(folder)
    plain = chosen_cases([phantom_store, three_patients], ("test",))
    large = chosen_cases([store, three_patients], ("test",))
    assert isinstance(plain, tuple)
    assert isinstance(large, StoredCases)
    assert [c.card for c in large] == [c.card for c in plain]
    feeds = [
        Feed(cases, SPECS, batch_size=3, seed=7, threads=0, **way)
        for cases in (plain, large)
    ]
    assert feeds[0].modality_shares() == feeds[1].modality_shares()
    for step in range(8):
        share = step / 8 if "phases" in way else None
        made = [feed.batch(step, share) for feed in feeds]
        assert same(*made)
        views = [f.views(b, "cpu") for f, b in zip(feeds, made, strict=True)]
        for name in views[0]:
            one, other = (v[name] for v in views)
            assert torch.equal(one.image, other.image)
            assert torch.equal(one.where, other.where)
            assert torch.equal(one.modality, other.modality)


def test_parts_are_numbered_as_they_come() -> None:
    parts = np.array([3, 3, 1, 0, 1, 3])
    _, first, inverse = np.unique(parts, return_index=True, return_inverse=True)
    assert np.argsort(np.argsort(first))[inverse].tolist() == [0, 0, 1, 2, 1, 0]
    orders = [CaseOrder(p, 0, 0.5) for p in ([0, 0, 1], np.array([0, 0, 1]))]
    assert [orders[0][i] for i in range(9)] == [orders[1][i] for i in range(9)]


@pytest.mark.usefixtures("small_is_large")
def test_cases_left_out_by_name_stay_out(folder: Path) -> None:
    store = opened(folder)
    gone = store.cards[2].id
    cases = chosen_cases([store], (), (gone, "nobody"))
    assert len(cases) == len(store) - 1
    assert gone not in {case.card.id for case in cases}


def changed_split(folder: Path) -> None:
    path = folder / "store.json"
    path.write_text(path.read_text().replace('"train"', '"val"', 1))


def prepared_again(folder: Path) -> None:
    case = next((folder / "cases").iterdir())
    moved = folder / "moved"
    case.rename(moved)
    moved.rename(case)


@pytest.mark.parametrize("change", [changed_split, prepared_again])
@pytest.mark.usefixtures("small_is_large")
def test_a_table_of_another_state_does_not_count(
    folder: Path, change: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(folder)
    before = (folder / INDEX).read_bytes()
    change(folder)
    assert CardTable.open(folder) is None
    store = opened(folder)
    assert (folder / INDEX).read_bytes() != before
    (folder / INDEX).unlink()  # one that is open stays what it was
    monkeypatch.setattr(store_module, "LARGE", 10**9)
    plain = Store.open(folder)
    assert plain.cards == tuple(store.cards)
    assert plain.hash == store.hash


@pytest.mark.usefixtures("small_is_large")
def test_a_case_that_is_gone_is_told_as_before(folder: Path) -> None:
    opened(folder)
    shutil.rmtree(next((folder / "cases").iterdir()))
    with pytest.raises(UnusableInput, match="missing, damaged or was changed"):
        Store.open(folder)


@pytest.mark.usefixtures("small_is_large")
def test_a_folder_that_is_only_read_opens_by_its_cards(
    folder: Path, phantom_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "read-only file system")

    monkeypatch.setattr(table_module, "replacing", refuse)
    store = Store.open(folder)
    assert store.cards == phantom_store.cards
    assert not (folder / INDEX).exists()


@pytest.mark.usefixtures("small_is_large")
def test_flipped_bytes_of_a_table_are_never_other_cards(
    folder: Path, phantom_store: Store
) -> None:
    opened(folder)
    whole, state = (folder / INDEX).read_bytes(), state_of(folder)
    rng = np.random.default_rng(0)
    refused, told = 0, list[str]()
    for place in rng.integers(0, len(whole), 150).tolist():
        broken = bytearray(whole)
        broken[place] ^= 1 << int(rng.integers(8))
        (folder / INDEX).write_bytes(broken)
        table = CardTable.open(folder)
        if table is None:
            refused += 1
            continue
        try:
            found = [table[i] for i in range(len(table))]
        except UnusableInput as error:
            told.append(str(error))
            refused += 1
        else:
            assert found == [*phantom_store.cards]
    assert all("delete it" in text for text in told)
    assert state_of(folder) == state
    assert refused > 20


@pytest.mark.usefixtures("small_is_large")
def test_a_card_that_names_another_folder_is_refused(folder: Path) -> None:
    opened(folder)
    base = sqlite3.connect(folder / INDEX)
    base.execute("UPDATE cases SET id = '../../elsewhere' WHERE place = 0")
    base.commit()
    base.close()
    table = CardTable.open(folder)
    assert table is not None
    with pytest.raises(UnusableInput, match="another one's card"):
        table[0]


@pytest.mark.usefixtures("small_is_large")
def test_threads_read_cards_at_once(folder: Path, phantom_store: Store) -> None:
    table = opened(folder).table
    assert table is not None
    table._known.cache_clear()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: table[i % len(table)], range(200)))
    assert found[: len(table)] == [*phantom_store.cards]


def test_columns_of_many_rows_lie_in_several_blobs(
    folder: Path, phantom_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "LARGE", 1)
    monkeypatch.setattr(table_module, "_CHUNK", 2)
    table = opened(folder).table
    assert table is not None
    cards = phantom_store.cards
    assert table.column("slices").tolist() == [card.shape[0] for card in cards]
    assert table.column("labelled").tolist() == [card.has_label for card in cards]
    kinds = [table.names("modality")[n] for n in table.column("modality")]
    assert kinds == [card.modality for card in cards]


@pytest.mark.usefixtures("small_is_large")
def test_other_channels_are_told(folder: Path) -> None:
    store = opened(folder)
    table = store.table
    assert table is not None
    channels = table.column("channels").copy()
    channels[1] = 2
    table._columns["channels"] = channels
    cases = StoredCases([(store, np.arange(len(store)))])
    odd = CaseRef(store, store.cards[1])
    assert cases[1] == odd
    with pytest.raises(UnusableInput, match=r"1 and 2 channels"):
        chosen_cases([store], ())
