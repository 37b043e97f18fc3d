"""Regions of nnU-Net: unions of labels, kept by name and scored as one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from homolog.geometry.affine import Affine
from homolog.label_names import names_with_regions, parse_regions
from homolog.scans.volume import LabelMap, Volume
from homolog.scans.write import write_labels, write_volume
from homolog.store.build import prepare_store
from homolog.store.store import Store
from homolog.tasks.base import score_labels, summarise

LABELS = {
    "background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4,
}  # fmt: skip


def test_values_that_only_regions_name_are_named_by_the_smallest() -> None:
    assert parse_regions(LABELS) == {"whole": (1, 2, 3), "core": (2, 3)}
    assert names_with_regions(LABELS) == {
        0: "background", 1: "rest of whole", 2: "rest of core", 3: "enhancing",
        4: "ignore",
    }  # fmt: skip
    assert names_with_regions({"edge": [1], "both": [2, 3]}) == {
        1: "edge", 2: "both 2", 3: "both 3",
    }  # fmt: skip
    assert names_with_regions({"liver": 1, "odd": ["x"]}) == {1: "liver"}


def test_a_store_keeps_regions_by_name(tmp_path: Path) -> None:
    affine = Affine.of((1.0, 1.0, 1.0))
    for name in ("imagesTr", "labelsTr"):
        (tmp_path / "set" / name).mkdir(parents=True)
    values = np.random.default_rng(0).normal(size=(1, 8, 8, 8)).astype(np.float32)
    volume = Volume(values, affine, "", "MR")
    write_volume(volume, tmp_path / "set" / "imagesTr" / "a_0000.nii.gz")
    data = np.zeros((8, 8, 8), np.uint8)
    data[1:4], data[4:6], data[6], data[7] = 1, 2, 3, 4
    write_labels(LabelMap(data, affine), tmp_path / "set" / "labelsTr" / "a.nii.gz")
    told = {"labels": LABELS, "channel_names": {"0": "FLAIR"}, "numTraining": 1}
    (tmp_path / "set" / "dataset.json").write_text(json.dumps(told))
    for _ in prepare_store([tmp_path / "set"], tmp_path / "store"):
        pass
    store = Store.open(tmp_path / "store")
    assert store.label_names == {1: "rest of whole", 2: "rest of core", 3: "enhancing"}
    assert store.regions == {
        "whole": ["rest of whole", "rest of core", "enhancing"],
        "core": ["rest of core", "enhancing"],
    }
    label = np.asarray(store.label("a")[:])
    assert sorted(np.unique(label)) == [-1, 0, 1, 2, 3]  # ignore teaches nothing


def test_a_region_is_scored_as_one_and_enters_no_mean() -> None:
    truth = np.zeros((4, 4, 4), np.int16)
    truth[:2], truth[2], truth[3] = 1, 2, -1
    guess = truth.copy()
    guess[0], guess[3] = 2, 1  # a part for another, and what is ignored
    names = {1: "a", 2: "b"}
    rows = score_labels(
        guess, truth, names, spacing_mm=(1, 1, 1), regions={"both": [1, 2]}
    )
    assert [(r["label"], r["name"]) for r in rows] == [
        (1, "a"), (2, "b"), ("1+2", "both"),
    ]  # fmt: skip
    assert rows[2]["dice"] == 1.0
    plain = score_labels(guess, truth, names, spacing_mm=(1, 1, 1))
    assert rows[:2] == plain
    given, without = (
        summarise([{"case": "x", **r} for r in found]) for found in (rows, plain)
    )
    assert given["mean"] == without["mean"]
    assert given["labels"]["both"]["dice"] == 1.0


def test_voxels_of_unknown_size_have_no_distances() -> None:
    truth = np.zeros((1, 6, 6), np.int16)
    truth[0, 1:4, 1:4] = 1
    (row,) = score_labels(truth, truth, {1: "a"}, spacing_mm=None)
    assert (row["dice"], row["nsd"], row["hd95_mm"]) == (1.0, None, None)
