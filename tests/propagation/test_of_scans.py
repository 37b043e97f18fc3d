"""The job over files and stores: what is written, told, refused and not made again."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from homolog.config import ConfigError
from homolog.errors import UnusableInput
from homolog.events import Note, drain
from homolog.geometry.affine import Affine
from homolog.jobs.propagate import Config, job, lines
from homolog.label_names import is_ignore
from homolog.propagation.carry import Carried
from homolog.propagation.of_scans import (
    Case,
    choose,
    propagate,
    without_doubtful,
)
from homolog.runs.jobs import config_of, module_of
from homolog.scans.files import read_labels, read_scan
from homolog.scans.names import names_told, write_names
from homolog.scans.volume import LabelMap, Volume
from homolog.scans.write import write_labels, write_volume

SHAPE = (10, 16, 18)
NAMES = {1: "liver", 3: "spleen"}
FAST = {"cells": 500, "method": "grey"}


def patient(folder: Path, name: str, seed: int) -> tuple[Path, Path]:
    """A scan of flipped, thick slices with two organs, and its labels."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:8, 3:9, 3:9] = 1
    labels[3:7, 9:14, 10:15] = 3
    labels = np.roll(labels, seed % 2, axis=2)
    image = 100 + 80 * (labels == 1) + 160 * (labels == 3)
    image = ndimage.gaussian_filter(image.astype(np.float32), 0.7)
    image += rng.normal(0, 3, SHAPE)
    affine = Affine(np.diag((-6.0, 3.0, -3.0, 1.0)))
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    scan, truth = folder / "images" / name, folder / "labels" / name
    write_volume(Volume(image[None], affine, name, "MR"), scan)
    write_labels(LabelMap(labels, affine, NAMES, name), truth)
    write_names(truth, NAMES)
    return scan, truth


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    for number in range(3):
        patient(tmp_path, f"p{number}.nii.gz", number)
    return tmp_path


def config(cohort: Path, **changes: Any) -> Config:
    given = {
        "scans": (str(cohort / "images"),),
        "sources": (str(cohort / "images" / "p0.nii.gz"),),
        "labels": (str(cohort / "labels" / "p0.nii.gz"),),
        "out": str(cohort / "out"), **FAST,
    }  # fmt: skip
    return Config(**{**given, **changes})


def test_every_scan_gets_labels_a_map_of_doubt_and_a_row(cohort: Path) -> None:
    result = drain(job(config(cohort), cohort))
    assert [Path(r["result"]).name for r in result["cases"]] != []
    assert {r["case"] for r in result["cases"]} == {"p1", "p2"}
    for row in result["cases"]:
        labels, scan = read_labels(row["result"]), read_scan(row["scan"])
        assert Path(row["result"]).name == Path(row["scan"]).name
        assert labels.affine == scan.affine
        assert set(np.unique(labels.data)) == {0, 1, 3}
        assert names_told(Path(row["result"])) == NAMES
        doubt = read_scan(row["uncertainty"])
        assert doubt.shape == scan.shape
        assert 0 <= doubt.data.min() < doubt.data.max() <= 1
        assert row["dice"] is None  # the truth of these was not given
    rows = list(
        csv.DictReader((cohort / "out" / "propagation.csv").read_text().splitlines())
    )
    sure = [float(row["confidence"]) for row in rows]
    assert sure == sorted(sure)
    assert json.loads((cohort / "out" / "propagation.json").read_text()) == json.loads(
        json.dumps(result)
    )
    assert "labels of 2 scans by grey" in lines(result)[-1]


def test_what_is_there_is_not_made_again(cohort: Path) -> None:
    drain(job(config(cohort), cohort))
    place = cohort / "out" / "p1.nii.gz"
    before = place.stat().st_mtime_ns
    (cohort / "out" / "p2.nii.gz").unlink()
    again = drain(job(config(cohort), cohort))
    reused = {row["case"]: row["reused"] for row in again["cases"]}
    assert reused == {"p1": True, "p2": False}
    assert place.stat().st_mtime_ns == before
    other = drain(job(config(cohort, smooth_mm=0.0), cohort))
    assert not any(row["reused"] for row in other["cases"])


def test_truth_is_scored_and_the_same_patient_enters_no_mean(cohort: Path) -> None:
    def case(name: str, who: str) -> Case:
        file = f"{name}.nii.gz"
        scan, labels = cohort / "images" / file, cohort / "labels" / file
        return Case(name, scan, labels, {}, NAMES, who)

    from homolog.propagation.config import PropagateConfig

    sources, targets = [case("p0", "a")], [case("p1", "b"), case("p2", "a")]
    result = drain(
        propagate(sources, targets, cohort / "out", None, PropagateConfig(**FAST))
    )
    rows = {row["case"]: row for row in result["cases"]}
    assert rows["p2"]["same_patient"]
    assert rows["p1"]["dice"] > 0.8
    alone = {s["name"]: s["dice"] for s in rows["p1"]["scores"]}
    assert {k: v for k, v in result["mean_dice"].items() if k != "mean"} == alone
    table = list(csv.DictReader((cohort / "out" / "dice.csv").read_text().splitlines()))
    assert len(table) == 4


def test_a_damaged_scan_does_not_stop_the_others(cohort: Path) -> None:
    (cohort / "images" / "p1.nii.gz").write_bytes(b"no scan")
    told = []
    run = job(config(cohort), cohort)
    while True:
        try:
            told.append(next(run))
        except StopIteration as end:
            result = end.value
            break
    assert [row["case"] for row in result["cases"]] == ["p2"]
    assert "p1" in result["failed"][0]["scan"]
    assert any(isinstance(e, Note) and e.level == "warning" for e in told)


def test_what_cannot_be_meant_is_said(cohort: Path) -> None:
    images = [cohort / "images"]
    first = str(cohort / "images" / "p0.nii.gz")
    labels = [cohort / "labels" / "p0.nii.gz"]
    with pytest.raises(UnusableInput, match="needs one label file"):
        choose(images, [first], [])
    with pytest.raises(UnusableInput, match="there is no"):
        choose(images, ["nothing.nii.gz"], labels)
    with pytest.raises(UnusableInput, match="no other scan"):
        choose([Path(first)], [first], labels)
    with pytest.raises(UnusableInput, match="needs an encoder"):
        drain(job(config(cohort, method="both"), cohort))
    empty = read_labels(labels[0])
    write_labels(LabelMap(empty.data * 0, empty.affine), labels[0])
    with pytest.raises(UnusableInput, match="holds no label"):
        drain(job(config(cohort), cohort))
    with pytest.raises(ConfigError, match="method"):
        config_of(module_of("propagate"), {"scans": ["a"], "sources": ["b"],
                                           "out": "o", "method": "magic"})  # fmt: skip


def test_what_is_doubtful_is_called_ignore_and_teaches_nothing() -> None:
    data = np.array([[[0, 1, 3, 3]]], np.uint8)
    doubt = np.array([[[0.9, 0.2, 0.5, 0.6]]], np.float32)
    labels = LabelMap(data, Affine.identity(), {1: "liver", 3: "spleen"})
    found = Carried(labels, doubt, 0.5, 1.0)
    assert without_doubtful(found, 1.0) is labels
    left = without_doubtful(found, 0.5)
    assert left.data.dtype == np.uint8
    assert left.data.tolist() == [[[4, 1, 3, 4]]]
    assert left.names == {1: "liver", 3: "spleen", 4: "ignore"}
    assert is_ignore(left.names[4])
