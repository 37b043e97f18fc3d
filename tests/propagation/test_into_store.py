"""Labels carried within a store: what the new one holds, shares, keeps and refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_of_scans import patient

from homolog.config import ConfigError
from homolog.errors import JobError, UnusableInput
from homolog.events import drain
from homolog.jobs.propagate import Config, job, lines
from homolog.propagation import into_store, told
from homolog.store.build import prepare_store
from homolog.store.care import care_for
from homolog.store.store import Store, case_folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("cohort")
    for number in range(4):
        patient(folder, f"p{number}.nii.gz", number)
    out = folder / "store"
    drain(prepare_store([folder / "images"], out, labels=[folder / "labels"]))
    return Store.open(out)


def made(store: Store, out: Path, **changes: Any) -> dict[str, Any]:
    given = {
        "scans": (str(store.path),), "sources": ("p0",), "out": str(out),
        "as_store": True, "method": "grey", "cells": 500,
    }  # fmt: skip
    return drain(job(Config(**{**given, **changes}), out))


def test_it_holds_true_labels_of_some_and_carried_ones_of_others(
    store: Store, tmp_path: Path
) -> None:
    result = made(store, tmp_path / "new", targets=("p1", "p2"))
    new = Store.open(tmp_path / "new")
    assert [card.id for card in new.cards] == ["p0", "p1", "p2"]
    assert new.label_names == store.label_names
    assert new.preprocessing == store.preprocessing
    assert {c.id: c.split for c in new.cards} == {
        c.id: c.split for c in store.cards if c.id != "p3"
    }
    own, first = new.label("p0"), store.label("p0")
    assert own is not None
    assert first is not None
    assert np.array_equal(own[:], first[:])
    for row in result["cases"]:
        labels, image = new.label(row["case"]), new.image(row["case"])
        assert labels is not None
        assert row["dice"] > 0.7
        card = new.card(row["case"])
        values, counts = np.unique(labels[:], return_counts=True)
        found = {int(v): int(n) for v, n in zip(values, counts, strict=True) if v > 0}
        assert card.label_counts == found
        assert set(new.label_points(card.id)) == set(found)
        assert np.array_equal(image[:], store.image(card.id)[:])
        places = [case_folder(s.path, card.id) / "image.b2nd" for s in (store, new)]
        assert places[0].samefile(places[1])
    assert "train on the store" in lines(result)[-1]


def test_doubtful_voxels_teach_nothing(store: Store, tmp_path: Path) -> None:
    made(store, tmp_path / "new", targets=("p1",), ignore_above=0.0)
    labels = Store.open(tmp_path / "new").label("p1")
    assert labels is not None
    values = np.unique(labels[:])
    assert -1 in values
    assert set(values) <= {-1, 0, 1, 3}


def test_what_is_much_less_sure_than_most_is_not_learnt_from(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(told, "_SEVERAL", 3)
    true = into_store.carry

    def unsure(*args: Any) -> Any:
        found = yield from true(*args)
        low = args[2].name == "p2"
        return dataclasses.replace(found, confidence=0.2) if low else found

    monkeypatch.setattr(into_store, "carry", unsure)
    result = made(store, tmp_path / "new")
    rows = {row["case"]: row["doubtful"] for row in result["cases"]}
    assert rows == {"p1": False, "p2": True, "p3": False}
    assert [c.id for c in Store.open(tmp_path / "new").cards] == ["p0", "p1", "p3"]
    assert "1 of them too doubtful" in lines(result)[-1]
    all_of_them = made(store, tmp_path / "new", trust=0.0)
    assert len(Store.open(tmp_path / "new").cards) == 4
    assert all(row["reused"] for row in all_of_them["cases"])


def test_doubtful_is_what_most_are_not() -> None:
    rows = [
        {"case": str(i), "confidence": c, "miss_mm": m}
        for i, (c, m) in enumerate([(0.5, 2), (0.5, 2), (0.5, 3.2), (0.3, 2), (0, 0)])
    ]
    assert told.doubtful_of(rows, 0.65) == {"2", "3", "4"}
    assert told.doubtful_of(rows, 0.5) == {"4"}
    assert told.doubtful_of(rows, 0.0) == frozenset()
    assert told.doubtful_of(rows[1:4], 0.65) == frozenset()  # too few to know


def test_what_is_wrong_with_one_case_stops_no_other(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = into_store.looked_at

    def broken(name: str) -> None:
        def looked_at(volume: Any, *given: Any) -> Any:
            if volume.name == name:
                raise RuntimeError("the features are no numbers.")
            return usual(volume, *given)

        monkeypatch.setattr(into_store, "looked_at", looked_at)

    broken("p1")
    result = made(store, tmp_path / "new", targets=("p1", "p2"))
    assert [f["scan"] for f in result["failed"]] == ["p1"]
    assert [row["case"] for row in result["cases"]] == ["p2"]
    broken("p0")
    with pytest.raises(JobError, match=r"from p0: .*the features are no numbers"):
        made(store, tmp_path / "other", targets=("p1", "p2"))


def test_what_is_there_is_not_made_again(store: Store, tmp_path: Path) -> None:
    first = made(store, tmp_path / "new", targets=("p1",))
    more = made(store, tmp_path / "new", targets=("p1", "p2"))
    assert {r["case"]: r["reused"] for r in more["cases"]} == {"p1": True, "p2": False}
    again = next(row for row in more["cases"] if row["case"] == "p1")
    assert again == {**first["cases"][0], "reused": True}
    other = made(store, tmp_path / "new", targets=("p1",), smooth_mm=0.0)
    assert [row["reused"] for row in other["cases"]] == [False]
    assert {card.id for card in Store.open(tmp_path / "new").cards} == {"p0", "p1"}


def test_what_cannot_be_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UnusableInput, match="is the store itself"):
        made(store, store.path)
    with pytest.raises(UnusableInput, match="no case 'p9'"):
        made(store, tmp_path / "new", targets=("p9",))
    with pytest.raises(UnusableInput, match="needs an encoder"):
        made(store, tmp_path / "new", method="both")
    with pytest.raises(ConfigError, match="takes one store"):
        made(store, tmp_path / "new", labels=("x.nii.gz",))
    bare = tmp_path / "bare"
    drain(prepare_store([Path(store.card("p1").source).parent], bare))
    with pytest.raises(UnusableInput, match="p0 has no labels to carry"):
        made(Store.open(bare), tmp_path / "new")
    with pytest.raises(UnusableInput, match="prepared from scans"):
        made(store, bare)


def test_carried_labels_are_not_mended_away(store: Store, tmp_path: Path) -> None:
    made(store, tmp_path / "new", targets=("p1",))
    new = Store.open(tmp_path / "new")
    assert drain(care_for(new.path)).problems == []
    labels = case_folder(new.path, "p1") / "label.b2nd"
    torn = labels.read_bytes()[:-40]
    labels.unlink()
    labels.write_bytes(torn)
    report = drain(care_for(new.path, repair=True))
    assert any("carried from others" in text for text in report.problems)
    assert labels.read_bytes() == torn
    result = made(store, tmp_path / "new", targets=("p1",))
    assert [row["reused"] for row in result["cases"]] == [False]
    assert drain(care_for(new.path)).problems == []
