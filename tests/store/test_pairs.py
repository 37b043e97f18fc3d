"""The table of matching places: whole or not at all, and only what is good enough."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from homolog.errors import UnusableInput
from homolog.feed.partners import partners_of
from homolog.store.pairs import ROW, PairTable, read_pairs, write_pairs


def table() -> PairTable:
    rows = np.zeros(4, ROW)
    rows["case"] = [0, 0, 1, 2]
    rows["partner"] = [1, 2, 0, 0]
    rows["mm"] = np.arange(12.0).reshape(4, 3) / 7
    rows["partner_mm"] = -np.arange(12.0).reshape(4, 3)
    rows["score"] = [0.9, 0.5, 0.8, 0.75]
    rows["cycle_mm"] = [1.0, 2.0, 30.0, 3.0]
    return PairTable(("a", "b", "c"), rows, {"store_hash": "x", "encoder_id": "e"})


def test_a_table_comes_back_as_it_was(tmp_path: Path) -> None:
    write_pairs(tmp_path, table())
    found = read_pairs(tmp_path)
    assert found is not None
    assert found.ids == ("a", "b", "c")
    np.testing.assert_array_equal(found.rows, table().rows)
    assert found.card["store_hash"] == "x"
    assert not list((tmp_path / "pairs").glob("*.part"))
    assert (tmp_path / "pairs" / "table.npy").stat().st_size < 1000


def test_no_table_is_none_and_half_a_table_is_said(tmp_path: Path) -> None:
    assert read_pairs(tmp_path) is None
    folder = write_pairs(tmp_path, table())
    whole = (folder / "table.npy").read_bytes()
    (folder / "table.npy").write_bytes(whole[:-100])
    with pytest.raises(UnusableInput, match="damaged"):
        read_pairs(tmp_path)
    np.save(folder / "table.npy", table().rows[:2])
    with pytest.raises(UnusableInput, match="match its checksum"):
        read_pairs(tmp_path)


def test_only_good_matches_among_the_cases_seen_are_drawn() -> None:
    """Paper: Alice 4.2, pairs."""
    store = Path("store")
    seen = [(store, "c"), (store, "a")]  # b is in the test split
    partners = partners_of(seen, {store: table()}, 0.7)
    assert len(partners) == 1
    assert partners.lonely == 1
    rng = np.random.default_rng(0)
    assert partners.draw(1, rng) is None
    mm, partner, there = partners.draw(0, rng)
    np.testing.assert_allclose(mm, table().rows["mm"][3])
    np.testing.assert_allclose(there, table().rows["partner_mm"][3])
    assert partner == 1
    first, last = (table().rows["mm"][i] for i in (0, 2))
    near = partners_of([(store, n) for n in "abc"], {store: table()}, -1.0, 10.0)
    assert len(near) == 3  # what leads back 30 mm is left out
    best = partners_of([(store, n) for n in "abc"], {store: table()}, -1.0, 0.0, 0.5)
    assert [len(rows) for rows in best.rows] == [1, 1, 0]
    np.testing.assert_allclose(best.rows[0][0, :3], first)
    np.testing.assert_allclose(best.rows[1][0, :3], last)
    everyone = [(store, name) for name in "abc"]
    assert len(partners_of(everyone, {store: table()}, 0.7)) == 3
    assert len(partners_of(everyone, {store: table()}, 0.7, 10.0)) == 2
    assert len(partners_of(everyone, {store: table()}, 0.0)) == 4


def test_the_same_numbers_are_drawn_whether_a_case_has_a_partner_or_not() -> None:
    store = Path("store")
    partners = partners_of([(store, "c"), (store, "a")], {store: table()}, 0.7)
    first, second = np.random.default_rng(3), np.random.default_rng(3)
    partners.draw(0, first)
    partners.draw(1, second)
    assert first.random() == second.random()
