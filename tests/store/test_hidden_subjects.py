"""Who a scan is of: told to nobody, and known well enough to keep splits apart."""

from __future__ import annotations

import json
import stat
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from homolog.errors import UnusableInput
from homolog.events import drain
from homolog.geometry.affine import Affine
from homolog.index.datasets import CaseSource
from homolog.scans.volume import Volume
from homolog.scans.write import write_volume
from homolog.store.build import prepare_store, write_store
from homolog.store.splits import (
    folds,
    hidden_subjects,
    is_pseudonym,
    key_file,
    nested_fraction,
    pseudonym,
    subject_key,
)
from homolog.store.store import Store
from scan_faults import dicom_series

NAMES = [f"Doe^Jane {n} *1970" for n in range(12)]


@pytest.fixture
def own_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOMOLOG_CONFIG", str(tmp_path / "config"))
    return tmp_path / "config" / "subjects.key"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve people with two tiny scans each, named in a manifest."""
    folder = tmp_path_factory.mktemp("people")
    lines = ["image,class,subject"]
    for number in range(24):
        rng = np.random.default_rng(number)
        data = rng.integers(0, 800, (1, 4, 5, 6)).astype(np.int16)
        write_volume(Volume(data, Affine.of((1.0, 1.0, 1.0))), folder / f"{number}.nii")
        lines.append(f"{number}.nii,sick,{NAMES[number % 12]}")
    (folder / "people.csv").write_text("\n".join(lines))
    return folder / "people.csv"


def prepared(manifest: Path, out: Path, *, keep_identifiers: bool = False) -> Store:
    drain(prepare_store([manifest], out, keep_identifiers=keep_identifiers))
    return Store.open(out)


def splits(store: Store) -> dict[str, str | None]:
    return {card.id: card.split for card in store.cards}


def test_a_store_tells_nobody_who_its_scans_are_of(
    manifest: Path, tmp_path: Path, own_key: Path
) -> None:
    store = prepared(manifest, tmp_path / "store")
    for path in (tmp_path / "store").rglob("*"):
        assert not path.is_file() or b"Jane" not in path.read_bytes()
    assert all(is_pseudonym(card.subject) for card in store.cards)
    assert len({card.subject for card in store.cards}) == 12
    by_subject = {(card.subject, card.split) for card in store.cards}
    assert len(by_subject) == 12  # nobody is in two splits
    if sys.platform != "win32":
        assert stat.S_IMODE(own_key.stat().st_mode) == 0o600
        assert stat.S_IMODE(own_key.parent.stat().st_mode) == 0o700


def test_asked_for_names_are_kept_and_splits_are_the_same_either_way(
    manifest: Path, tmp_path: Path, own_key: Path
) -> None:
    named = prepared(manifest, tmp_path / "store", keep_identifiers=True)
    assert {card.subject for card in named.cards} == set(NAMES)
    assert not own_key.exists()
    # a store made before: its splits stay when it is prepared again
    hidden = prepared(manifest, tmp_path / "store")
    assert splits(hidden) == splits(named)
    # and are those of another user, with another key
    own_key.unlink()
    other = prepared(manifest, tmp_path / "other")
    assert {c.subject for c in other.cards}.isdisjoint(c.subject for c in hidden.cards)
    assert splits(other) == splits(named)
    # likewise shares and folds
    assert nested_fraction(other.cards, 0.3, 1) == nested_fraction(hidden.cards, 0.3, 1)
    assert folds(other.cards, 4, 0) == folds(hidden.cards, 4, 0)
    kept = {
        c.subject for c in hidden.cards if c.id in nested_fraction(hidden.cards, 0.3, 1)
    }
    whole = [c.id for c in hidden.cards if c.subject in kept]
    assert sorted(whole) == sorted(nested_fraction(hidden.cards, 0.3, 1))


def test_whose_subject_is_told_stays_of_one_group(own_key: Path) -> None:
    def case(name: str, subject: str) -> CaseSource:
        return CaseSource(name, Path(name), subject=subject)

    alone = [case("a", "a"), case("b", "b")]
    assert hidden_subjects(alone) == alone  # nothing to hide, no key made
    assert not own_key.exists()
    cases = [case("a", "a"), case("b", "a"), case("c", "c"), case("d", "Röntgen")]
    hidden = hidden_subjects(cases)
    assert hidden[0].subject == hidden[1].subject != "a"
    assert hidden[2].subject == "c"
    assert hidden[3].subject == pseudonym("Röntgen", subject_key())
    assert pseudonym("x", b"1" * 32) != pseudonym("x", b"2" * 32)


def test_a_store_of_before_is_drawn_from_as_before(
    manifest: Path, tmp_path: Path, own_key: Path
) -> None:
    """The order of a draw by clear subjects is a published one; it does not move."""
    named = prepared(manifest, tmp_path / "store", keep_identifiers=True)
    drawn = nested_fraction(named.cards, 0.25, 0)
    assert sorted(drawn, key=int) == ["2", "6", "9", "14", "18", "21"]


def test_a_damaged_key_is_told(own_key: Path) -> None:
    own_key.parent.mkdir()
    own_key.write_text("not a key")
    with pytest.raises(UnusableInput, match=r"subjects.key, is damaged"):
        subject_key()
    own_key.unlink()
    own_key.parent.rmdir()
    own_key.parent.write_text("a file")
    assert key_file() == own_key
    with pytest.raises(UnusableInput, match=r"cannot be kept in .*HOMOLOG_CONFIG"):
        subject_key()


def test_one_key_serves_all_stores_of_a_user(
    manifest: Path, tmp_path: Path, own_key: Path
) -> None:
    cases = [CaseSource("one", manifest.parent / "3.nii", subject=NAMES[3])]
    drain(write_store(cases, tmp_path / "a"))
    drain(write_store([replace(cases[0], id="two")], tmp_path / "b"))
    a, b = (Store.open(tmp_path / name).cards[0].subject for name in "ab")
    assert a == b


def test_neither_store_nor_info_tells_a_dicom_patient(
    tmp_path: Path,
    own_key: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from homolog.cli import main

    told = {"0010|0020": "MRN-Quux", "0010|0010": "Doe^Jane"}
    dicom_series(tmp_path / "scan", extra=told)
    drain(prepare_store([tmp_path / "scan"], tmp_path / "store"))
    (card,) = Store.open(tmp_path / "store").cards
    assert card.subject == pseudonym("MRN-Quux", subject_key())
    for path in (tmp_path / "store").rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert b"Quux" not in content  # digits alone may occur in a hash
        assert b"Jane" not in content

    def info(*words: str) -> str:
        line = ["homolog", "info", str(tmp_path / "scan"), "--json", *words]
        monkeypatch.setattr(sys, "argv", line)
        with pytest.raises(SystemExit):
            main()
        out = capsys.readouterr().out
        subject: str = json.loads(out.splitlines()[-1])["scans"][0]["subject"]
        assert ("Quux" in out) == (subject == "MRN-Quux")
        return subject

    assert info() == card.subject
    assert info("--keep-identifiers") == "MRN-Quux"


def test_who_stays_in_a_store_stays_in_the_split_and_draws_others_there(
    manifest: Path, tmp_path: Path, own_key: Path
) -> None:
    head, *lines = manifest.read_text().splitlines()
    parts = [lines[:12], lines[12:]]  # the first scan of everybody, then the second
    for number, part in enumerate(parts):
        path = manifest.with_name(f"part_{number}.csv")
        path.write_text("\n".join([head, *part]))
    first = splits(prepared(manifest.with_name("part_0.csv"), tmp_path / "store"))
    assert len(set(first.values())) == 3
    drain(prepare_store([manifest.with_name("part_1.csv")], tmp_path / "store"))
    both = Store.open(tmp_path / "store")
    assert len(both.cards) == 24
    assert {i: split for i, split in splits(both).items() if i in first} == first
    assert len({(card.subject, card.split) for card in both.cards}) == 12
