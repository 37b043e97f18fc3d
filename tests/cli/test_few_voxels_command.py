"""few-voxels through the command line, and predict with what it made."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from homolog.cli import cli
from homolog.config import ConfigError
from homolog.errors import UnusableInput
from homolog.events import Note, Request
from homolog.runs.jobs import job_of
from homolog.scans.files import read_labels, read_scan
from homolog.scans.volume import LabelMap
from homolog.scans.write import write_labels


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HOMOLOG_CACHE", str(tmp_path / "cache"))


def scan_path(folder: Path, number: int) -> Path:
    return folder / "imagesTr" / f"phantom_{number:03d}_0000.nii.gz"


@pytest.fixture(scope="module")
def paints(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """Ten painted voxels each of two organs and of the rest, in two scans."""
    folder = tmp_path_factory.mktemp("paint")
    found = []
    for number in range(2):
        truth = read_labels(
            phantom_folder / "labelsTr" / f"phantom_{number:03d}.nii.gz"
        )
        rng = np.random.default_rng(number)
        values, counts = np.unique(truth.data[truth.data > 0], return_counts=True)
        large = values[np.argsort(-counts)[:2]]
        paint = np.zeros(truth.shape, np.uint8)
        for value, where in enumerate(
            (truth.data == large[0], truth.data == large[1], truth.data == 0), 1
        ):
            places = np.argwhere(where)
            for place in places[rng.permutation(len(places))[:10]]:
                paint[tuple(place)] = value
        path = folder / f"paint_{number}.nii.gz"
        write_labels(LabelMap(paint, truth.affine), path)
        found.append(path)
    (folder / "label_names.json").write_text('{"1": "big organ", "3": "rest"}')
    return found


def run(*arguments: object) -> dict:
    outcome = CliRunner().invoke(
        cli, [str(a) for a in arguments] + ["--json", "--device", "cpu"],
        standalone_mode=False,
    )  # fmt: skip
    if outcome.exception is not None:
        raise outcome.exception
    return json.loads(outcome.stdout.splitlines()[-1])


def test_two_scans_one_model_and_predict_says_the_same(
    phantom_folder, paints, encoder, tmp_path
):
    scans = [scan_path(phantom_folder, n) for n in range(2)]
    model, written = tmp_path / "model", tmp_path / "labels.nii.gz"
    result = run(
        "few-voxels", scans[0], "--labels", paints[0], "--also",
        f"{scans[1]},{paints[1]}", "--encoder", encoder, "--background", 3,
        "--name", "2=second", "--out", model, "--predict", written,
    )  # fmt: skip
    assert [c["name"] for c in result["classes"]] == ["big organ", "second", "rest"]
    assert [c["voxels"] for c in result["classes"]] == [20, 20, 20]
    assert result["score"]["accuracy"] > 0.4
    assert result["next"]["uncertainty"] > 0
    again = run("predict", scans[0], "--model", model, "--out", tmp_path / "out")
    assert not again["failed"]
    (entry,) = again["predicted"]
    predicted, own = read_labels(entry["result"]), read_labels(written)
    scan = read_scan(scans[0])
    assert predicted.shape == scan.shape
    assert predicted.affine == scan.affine
    paint = read_labels(paints[0]).data
    np.testing.assert_array_equal(predicted.data[paint == 0], own.data[paint == 0])
    kept = np.where(paint == 3, 0, paint)
    np.testing.assert_array_equal(own.data[paint > 0], kept[paint > 0])
    assert set(entry["voxels"]) - {"unknown"} == {"big organ", "second"}
    listed = run_plain("models", "list", tmp_path)
    assert "few_voxels" in listed
    assert "big organ" in run_plain("models", "check", model)


def run_plain(*arguments: object) -> str:
    outcome = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert outcome.exit_code == 0, outcome.output
    return outcome.output


def test_intensity_alone_needs_no_encoder(phantom_folder, paints, tmp_path):
    scan, model = scan_path(phantom_folder, 0), tmp_path / "model"
    result = run(
        "few-voxels", scan, "--labels", paints[0], "--out", model, "--head", "knn",
        "--no-position", "--no-score",
    )  # fmt: skip
    assert result["score"] is None
    assert sorted(p.name for p in model.iterdir()) == ["head.safetensors", "model.json"]
    assert result["prediction"] is None
    entry = run("predict", scan, "--model", model, "--out", tmp_path / "out")
    assert entry["predicted"][0]["voxels"]["big organ"] > 100
    assert "without an encoder" in run_plain("models", "list", tmp_path)
    assert "without an encoder" in run_plain("models", "check", model)


def test_people_read_scores_warnings_and_where_to_paint(
    phantom_folder, paints, tmp_path
):
    scan = scan_path(phantom_folder, 0)
    told = run_plain(
        "few-voxels", scan, "--labels", paints[0], "--out", tmp_path / "model"
    )
    assert "left-out strokes:" in told
    assert "paint next at x " in told
    assert f"model: {tmp_path / 'model'}" in told


@pytest.mark.parametrize(
    ("extra", "error", "words"),
    [
        (["--also", "one.nii.gz"], ConfigError, "two files with a comma"),
        (["--also", "a.nii.gz,b.nii.gz"], FileNotFoundError, "a.nii.gz"),
        (["--name", "liver"], ConfigError, "VALUE=NAME"),
        (["--background", "7"], UnusableInput, "background is to be label 7"),
        (["--encoder", "nowhere"], UnusableInput, "nowhere"),
    ],
)
def test_wrong_usage_is_told(phantom_folder, paints, tmp_path, extra, error, words):
    with pytest.raises(error, match=words):
        run(
            "few-voxels", scan_path(phantom_folder, 0), "--labels", paints[0], "--out",
            tmp_path / "model", *extra,
        )  # fmt: skip
    assert not (tmp_path / "model").exists()


def test_paint_of_another_grid_names_both_files_and_shapes(
    phantom_folder, paints, tmp_path
):
    paint = read_labels(paints[0])
    small = tmp_path / "small.nii.gz"
    write_labels(LabelMap(paint.data[:-1], paint.affine), small)
    scan = scan_path(phantom_folder, 0)
    with pytest.raises(UnusableInput) as told:
        run("few-voxels", scan, "--labels", small, "--out", tmp_path / "model")
    for part in ("small.nii.gz", str(scan), "32 x 40 x 40", "31 x 40 x 40"):
        assert part in str(told.value)
    write_labels(LabelMap(np.zeros_like(paint.data), paint.affine), small)
    with pytest.raises(UnusableInput, match="painted voxels above 0"):
        run("few-voxels", scan, "--labels", small, "--out", tmp_path / "model")


def test_the_job_stops_between_two_steps(phantom_folder, paints, encoder, tmp_path):
    config = {
        "scans": [str(scan_path(phantom_folder, 0))], "labels": [str(paints[0])],
        "encoder": str(encoder), "out": str(tmp_path / "model"), "device": "cpu",
    }  # fmt: skip
    job = job_of("few_voxels")(config, tmp_path)
    event = next(job)
    while isinstance(event, Note):
        event = next(job)
    told = [job.send(Request.STOP)]
    while isinstance(told[-1], Note):
        told.append(job.send(Request.STOP))
    assert type(told[-1]).__name__ == "Stopped", told
    with pytest.raises(StopIteration) as end:
        next(job)
    assert end.value.value["stopped"]
    assert not (tmp_path / "model").exists()
