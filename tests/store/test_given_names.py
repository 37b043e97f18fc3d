"""Names that a user gives to label values: read, kept by the store, told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from each import each
from homolog.config import ConfigError
from homolog.events import Note, Progress, Request, drain
from homolog.geometry.affine import Affine
from homolog.label_names import read_names
from homolog.scans.volume import LabelMap, Volume
from homolog.scans.write import write_labels, write_volume
from homolog.store import cases
from homolog.store.build import prepare_store
from homolog.store.store import Store


@each(
    "text, names",
    [
        ("", {}),
        ("  ", {}),
        ("1=liver", {1: "liver"}),
        ("2=left kidney , 1 = liver", {1: "liver", 2: "left kidney"}),
        ("007=ratio a=b", {7: "ratio a=b"}),
        ("32767=Höcker/oben", {32767: "Höcker/oben"}),
    ],
)
def test_one_line_names_values(text: str, names: dict[int, str]) -> None:
    assert read_names(text) == names
    assert list(read_names(text)) == sorted(names)


@each(
    "text, sentence",
    [
        ("1=liver, left,2=spleen", "got 'left' in .*; a name cannot hold a comma"),
        ("1=liver,", "must be VALUE=NAME, .* got ''"),
        ("liver", "must be VALUE=NAME, .* got 'liver'"),
        ("1=liver,0=air", r"from 1 to 32767 \(0 is background\), got '0' in '0=air'"),
        ("000=air", "got '000' in"),
        ("liver=1", "a whole number .* got 'liver' in 'liver=1'"),
        ("1.5=liver", "got '1.5'"),
        ("-1=liver", "got '-1'"),
        ("=liver", "got '' in '=liver'"),
        ("32768=liver", "got '32768'"),
        ("9" * 5000 + "=liver", "a whole number"),
        ("²=liver", "got '²'"),
        ("3= ", "label 3 must have a name, .* got '3='"),
        ("1=liver,01=spleen", "label 1 must have one name, got 'liver' and 'spleen'"),
        ("1=liver,1=liver", "label 1 must have one name"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_words(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        read_names(text)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Two scans with label maps of 1 and 2, and no word on what these are."""
    folder = tmp_path / "scans"
    (folder / "labels").mkdir(parents=True)
    affine = Affine.of((1.0, 1.0, 1.0))
    for seed in range(2):
        rng = np.random.default_rng(seed)
        data = rng.integers(0, 800, (1, 9, 10, 11)).astype(np.int16)
        labels = np.zeros((9, 10, 11), np.uint8)
        labels[2:6, 3:7, 4:9], labels[7:, 8:, 9:] = 1, 2
        write_volume(Volume(data, affine), folder / f"p{seed}.nii.gz")
        write_labels(LabelMap(labels, affine), folder / "labels" / f"p{seed}.nii.gz")
    return folder


def prepared(
    scans: Path, out: Path, names: dict[int, str] | None = None
) -> tuple[Store, dict[str, Any], list[str]]:
    """The store, the job's summary and its remarks."""
    job, remarks = prepare_store([scans], out, names=names), []
    while True:
        try:
            event = next(job)
        except StopIteration as end:
            return Store.open(out), end.value, remarks
        if isinstance(event, Note):
            remarks.append(event.text)


def call_in_file(scans: Path, names: dict[str, Any]) -> None:
    (scans / "labels" / "label_names.json").write_text(json.dumps(names))


def test_given_names_win_and_the_files_name_the_rest(
    scans: Path, tmp_path: Path
) -> None:
    call_in_file(scans, {"1": "hepar", "2": "spleen"})
    store, result, _ = prepared(scans, tmp_path / "store", {1: "liver"})
    assert store.label_names == {1: "liver", 2: "spleen"}
    assert result["explanation"][1:] == [
        "Given names win over files: 1 is liver, not hepar."
    ]
    assert "liver" not in json.dumps(store.fingerprint)


def test_a_given_name_settles_a_quarrel_of_files(scans: Path, tmp_path: Path) -> None:
    call_in_file(scans, {"p0": {"1": "hepar"}, "p1": {"1": "Leber"}})
    _, _, remarks = prepared(scans, tmp_path / "quarrel")
    assert any("'hepar' in" in text and "two stores" in text for text in remarks)
    store, result, remarks = prepared(scans, tmp_path / "settled", {1: "liver"})
    assert store.label_names == {1: "liver", 2: "label 2"}
    assert remarks == []
    assert "1 is liver, not hepar or Leber." in result["explanation"][1]


def test_another_spelling_in_files_is_no_news(scans: Path, tmp_path: Path) -> None:
    call_in_file(scans, {"1": "Liver", "2": "label 2"})
    store, result, _ = prepared(scans, tmp_path / "store", {1: "liver", 2: "spleen"})
    assert store.label_names == {1: "liver", 2: "spleen"}
    assert len(result["explanation"]) == 1  # of the voxel size


def test_a_name_for_no_label_is_told_and_kept_for_label_maps_to_come(
    scans: Path, tmp_path: Path
) -> None:
    out = tmp_path / "store"
    _, result, _ = prepared(scans, out, {1: "liver", 3: "spleen"})
    assert result["explanation"][-1] == "No label map holds 3 (spleen)."
    many = {value: f"organ {value}" for value in range(11, 18)}
    _, result, _ = prepared(scans, tmp_path / "many", many)
    assert result["explanation"][-1] == (
        "No label map holds 11 (organ 11), 12 (organ 12), 13 (organ 13), "
        "14 (organ 14) or 3 more."
    )
    labels = np.full((9, 10, 11), 3, np.uint8)
    path = scans / "labels" / "p1.nii.gz"
    write_labels(LabelMap(labels, Affine.of((1.0, 1.0, 1.0))), path)
    store, _, _ = prepared(scans, out)
    assert store.label_names == {1: "liver", 2: "label 2", 3: "spleen"}


def test_a_label_called_ignore_is_no_class_and_no_absence(
    scans: Path, tmp_path: Path
) -> None:
    names = {1: "liver", 2: "ignore"}
    store, result, _ = prepared(scans, tmp_path / "store", names)
    assert store.label_names == {1: "liver"}
    assert len(result["explanation"]) == 1  # of the voxel size
    again, result, _ = prepared(scans, tmp_path / "store")
    assert (again.label_names, result["reused"]) == ({1: "liver"}, 2)


def test_other_names_change_a_store_without_reading_a_voxel(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "store"
    before, _, _ = prepared(scans, out)
    assert before.label_names == {1: "label 1", 2: "label 2"}

    def no_reading(*_: Any) -> None:
        raise AssertionError("a case was prepared again")

    monkeypatch.setattr(cases, "_fill", no_reading)
    cards = {p: p.stat().st_mtime_ns for p in out.rglob("card.json")}
    store, result, _ = prepared(scans, out, {1: "liver", 2: "spleen"})
    assert (result["built"], result["reused"]) == (0, 2)
    assert store.label_names == {1: "liver", 2: "spleen"}
    assert store.hash == before.hash  # runs on this store can be resumed
    assert cards == {p: p.stat().st_mtime_ns for p in out.rglob("card.json")}
    store, _, _ = prepared(scans, out, {2: "pancreas"})
    assert store.label_names == {1: "liver", 2: "pancreas"}


def test_names_given_earlier_stay_until_others_are_given(
    scans: Path, tmp_path: Path
) -> None:
    out = tmp_path / "store"
    call_in_file(scans, {"1": "hepar", "2": "spleen"})
    prepared(scans, out, {1: "liver"})
    for _ in range(2):
        store, result, _ = prepared(scans, out)
        assert store.label_names == {1: "liver", 2: "spleen"}
        assert result["explanation"][1].startswith(
            "Label names given earlier were kept: 1 (liver); --names"
        )
    # what files tell is not kept: it follows them
    call_in_file(scans, {"1": "hepar", "2": "lien"})
    store, result, _ = prepared(scans, out, {1: "hepar"})
    assert store.label_names == {1: "hepar", 2: "lien"}
    assert len(result["explanation"]) == 1


def test_a_stopped_update_keeps_the_names_before_it(
    scans: Path, tmp_path: Path
) -> None:
    out = tmp_path / "store"
    prepared(scans, out, {1: "liver"})
    job = prepare_store([scans], out, names={1: "spleen"})
    event = next(job)
    while not (isinstance(event, Progress) and event.phase == "prepare"):
        event = next(job)
    job.send(Request.STOP)
    drain(job)
    assert Store.open(out).label_names[1] == "liver"
