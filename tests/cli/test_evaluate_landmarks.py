"""evaluate landmarks through the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from homolog.cli import cli
from homolog.config import ConfigError
from homolog.landmarks.scores import _rows, figures
from homolog.scans.points import Landmark


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features")


def run(*arguments: object) -> dict:
    outcome = CliRunner().invoke(
        cli, ["evaluate", "landmarks", *map(str, arguments), "--json", "--device=cpu"],
        standalone_mode=False,
    )  # fmt: skip
    if outcome.exception is not None:
        raise outcome.exception
    return json.loads(outcome.stdout.splitlines()[-1])


def test_copies_have_known_truth(phantom_folder, encoder, place, tmp_path):
    scan = phantom_folder / "imagesTr" / "phantom_000_0000.nii.gz"
    common = (
        scan,
        "--encoder",
        encoder,
        "--features",
        place,
        "--deformed",
        2,
        "--points",
        12,
    )
    bent = run(*common, "--out", tmp_path / "bent", "--typical-mm", 10)
    overall = bent["overall"]
    assert overall["points"] == 24
    with Path(bent["csv"]).open() as handle:
        rows = list(csv.DictReader(handle))
    errors = []
    for row in rows:
        true, found = (
            np.array([float(row[f"{n}_{a}_mm"]) for a in "zyx"]) for n in ("true", "b")
        )
        errors.append(np.linalg.norm(true - found))
        assert float(row["error_mm"]) == pytest.approx(errors[-1])
        assert not np.allclose(true, [float(row[f"a_{a}_mm"]) for a in "zyx"])
    assert overall["median_mm"] == pytest.approx(np.median(errors))
    assert overall["p90_mm"] == pytest.approx(np.percentile(errors, 90))
    assert json.loads(Path(bent["json"]).read_text())["overall"] == overall
    assert (
        run(*common, "--out", tmp_path / "again")["overall"]["mean_mm"]
        == overall["mean_mm"]
    )


def test_pairs_tell_errors_or_hits(phantom_folder, encoder, place, tmp_path):
    scans = [
        phantom_folder / "imagesTr" / f"phantom_00{i}_0000.nii.gz" for i in (0, 0, 1)
    ]
    marks = [phantom_folder / "landmarks" / f"phantom_00{i}.csv" for i in (0, 0)]
    labels = [phantom_folder / "labelsTr" / f"phantom_00{i}.nii.gz" for i in (0, 1)]
    common = (
        "--encoder",
        encoder,
        "--features",
        place,
        "--out",
        tmp_path,
        "--points",
        26,
    )
    itself = run(
        "--pair", f"{scans[0]},{scans[1]}", "--truth", f"{marks[0]},{marks[1]}", *common
    )
    assert itself["overall"]["points"] > 10
    assert itself["overall"]["accepted_median_mm"] < 12.0  # cells of 16 mm
    other = run(
        "--pair",
        f"{scans[0]},{scans[2]}",
        "--labels",
        f"{labels[0]},{labels[1]}",
        *common,
    )
    assert 0.0 <= other["overall"]["hit_rate"] <= 1.0
    assert other["overall"]["median_mm"] is None
    same = run(
        "--pair",
        f"{scans[0]},{scans[1]}",
        "--labels",
        f"{labels[0]},{labels[0]}",
        *common,
    )
    assert same["overall"]["hit_rate"] > 0.6
    free = run("--pair", f"{scans[0]},{scans[2]}", *common)
    assert free["overall"]["hit_rate"] is None
    assert free["overall"]["cycle_p50_mm"] >= 0.0


def test_what_cannot_be_meant_is_refused(phantom_folder, encoder, tmp_path):
    scan = phantom_folder / "imagesTr" / "phantom_000_0000.nii.gz"
    common = ("--encoder", encoder, "--out", tmp_path)
    with pytest.raises(click.UsageError, match="either scans or --pair"):
        run(*common)
    with pytest.raises(click.UsageError, match="belong to --pair"):
        run(scan, *common, "--labels", "a,b")
    with pytest.raises(ConfigError, match="two paths"):
        run("--pair", scan, *common)


def test_figures_count_what_was_not_found():
    nan = float("nan")
    marks = [
        Landmark(1, "a", (0.0, 0.0, 0.0), (3.0, 4.0, 0.0), 0.9, 0.1, 2.0, True),
        Landmark(2, "b", (0.0, 0.0, 0.0), (30.0, 0.0, 0.0), 0.9, 0.1, 4.0, False, "no"),
        Landmark(3, "c", (0.0, 0.0, 0.0), None, nan, nan, nan, False, "outside"),
    ]
    rows = [{**r, "seconds": 0.5} for r in _rows(marks, np.zeros((3, 3)))]
    found = figures(rows)
    assert (found["points"], found["not_found"], found["accepted"]) == (3, 1, 1)
    assert (found["mean_mm"], found["accepted_mean_mm"]) == (17.5, 5.0)
    assert found["within_10_mm"] == 0.5
    assert found["cycle_p50_mm"] == 3.0
