"""The window's jobs: prepared, embedded, coloured, predicted, scored, looked after."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from each import each
from homolog.config import ConfigError
from homolog.errors import JobError, UnusableInput
from homolog.events import Event, Note, Progress, Request, Saved, Stopped, drain
from homolog.features.files import open_features
from homolog.finetune.job import job as finetune_job
from homolog.model_files.encoder import load_encoder
from homolog.runs.jobs import job_of, kinds
from homolog.runs.run import Run
from homolog.runs.worker import execute
from homolog.scans.files import read_labels, read_scan
from homolog.scans.paths import series_path
from homolog.store.store import Store
from homolog.use.predict import find_scans, result_paths


def listen(
    job: Any, *, stop_at: type[Event] | str | None = None
) -> tuple[Any, list[Event]]:
    """Result and events; asks to stop after the first event of a kind or phase."""
    told: list[Event] = []
    request = None
    while True:
        try:
            told.append(job.send(request))
        except StopIteration as end:
            return json.loads(json.dumps(end.value)), told
        phase = getattr(told[-1], "phase", None)
        if isinstance(stop_at, str) and phase == stop_at:
            request = Request.STOP
        if isinstance(stop_at, type) and isinstance(told[-1], stop_at):
            request = Request.STOP


@pytest.fixture(scope="module")
def scans(phantom_folder: Path) -> list[str]:
    return [str(p) for p in sorted((phantom_folder / "imagesTr").iterdir())[:2]]


@pytest.fixture(scope="module")
def model(phantom_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finetuned")
    config = {
        "store": str(phantom_store.path), "device": "cpu",
        "backbone": {"name": "resunet", "channels": [4, 8]},
        "task_config": {"window": [32, 32, 32]},
        "training": {"steps": 2, "batch_size": 1, "dry_run_steps": 0},
    }  # fmt: skip
    drain(finetune_job(config, folder))
    return folder


def test_every_kind_can_be_loaded() -> None:
    assert all(callable(job_of(kind)) for kind in kinds())


@each("kind", ["prepare", "embed", "colours", "predict", "score", "plan", "models"])
def test_unknown_and_missing_settings_are_named(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no setting 'colour'"):
        drain(job_of(kind)({"colour": 1}, tmp_path))
    with pytest.raises(ConfigError, match=f"{kind} needs"):
        drain(job_of(kind)({}, tmp_path))


# --- prepare


def test_prepare_builds_a_store(phantom_folder: Path, tmp_path: Path) -> None:
    config = {
        "sources": [str(phantom_folder)], "out": str(tmp_path / "store"), "labels": [],
        "spacing": [8, 8, 8], "modality": None, "window_hu": [-200, 300], "seed": 0,
    }  # fmt: skip
    result, told = listen(job_of("prepare")(config, tmp_path))
    assert result["cases"] == result["labelled"] == 8
    assert result["rejected"] == []
    assert not result["stopped"]
    store = Store.open(result["store"])
    assert store.preprocessing.window_hu == (-200.0, 300.0)
    assert any(isinstance(e, Progress) and e.phase == "prepare" for e in told)


@each(
    "changes, words",
    [
        ({"spacing": "fine"}, "auto, native or three numbers"),
        ({"spacing": [1, 2]}, "spacing_mm"),
        ({"spacing": [0, 1, 1]}, "spacing_mm must be in"),
        ({"window_hu": [300, -200]}, "low to high"),
        ({"modality": "smell"}, "modality must be one of"),
        ({"sources": []}, "no scan was given"),
    ],
)
def test_prepare_refuses_what_cannot_be_meant(
    phantom_folder: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    config = {"sources": [str(phantom_folder)], "out": str(tmp_path / "s"), **changes}
    with pytest.raises((ConfigError, UnusableInput), match=words):
        drain(job_of("prepare")(config, tmp_path))
    assert not (tmp_path / "s").exists()


def test_a_stopped_prepare_says_so_once(phantom_folder: Path, tmp_path: Path) -> None:
    config = {"sources": [str(phantom_folder)], "out": str(tmp_path / "store")}
    result, told = listen(job_of("prepare")(config, tmp_path), stop_at=Progress)
    assert result["stopped"]
    assert [e for e in told if isinstance(e, Stopped)] == told[-1:]


# --- embed, colours


def test_features_are_made_once_and_coloured_together(
    scans: list[str], encoder: Path, tmp_path: Path
) -> None:
    config = {
        "encoder": str(encoder), "scans": scans, "folder": str(tmp_path / "f"),
        "strides": None, "window": None, "overlap": 0.25, "device": "cpu",
    }  # fmt: skip
    result, told = listen(job_of("embed")(config, tmp_path))
    first, second = result["features"]
    assert first["scan"] == scans[0]
    assert first["shape"] == [16, 20, 20]
    assert first["stride"] == [2, 2, 2]
    assert first["spacing_mm"] == [16.0, 16.0, 16.0]
    assert not first["reused"]
    assert first["encoder_id"] == second["encoder_id"]
    assert {e.phase for e in told if isinstance(e, Progress)} == {"scans", "embedding"}
    assert open_features(Path(first["card"])).data.shape == (24, 16, 20, 20)
    again, _ = listen(job_of("embed")(config, tmp_path))
    assert all(entry["reused"] for entry in again["features"])
    other, _ = listen(job_of("embed")({**config, "strides": [4]}, tmp_path))
    assert not other["features"][0]["reused"]

    cards = [entry["card"] for entry in result["features"]]
    request = {"cards": cards, "scans": scans}
    coloured, told = listen(job_of("colours")(request, tmp_path))
    assert [m["card"] for m in coloured["maps"]] == cards
    assert sum(isinstance(e, Saved) for e in told) == 2
    assert 0 < sum(coloured["explained"]) <= 1.001
    cells = np.load(coloured["maps"][0]["npy"], mmap_mode="r")
    assert cells.shape == (16, 20, 20, 3)
    assert cells.dtype == np.uint8
    assert np.ptp(cells) > 100
    alone, _ = listen(job_of("colours")({"cards": cards[:1]}, tmp_path))
    assert Path(alone["maps"][0]["npy"]) == Path(cards[0] + ".pca.npy")
    mixed = {"cards": [cards[0], other["features"][0]["card"]]}
    with pytest.raises(ConfigError, match="no colours in common"):
        drain(job_of("colours")(mixed, tmp_path))
    with pytest.raises(ConfigError, match="as many scans"):
        drain(job_of("colours")({**request, "scans": scans[:1]}, tmp_path))


def test_a_stopped_embedding_leaves_nothing_half_done(
    scans: list[str], encoder: Path, tmp_path: Path
) -> None:
    config = {
        "encoder": str(encoder), "scans": scans, "folder": str(tmp_path),
        "window": [16, 16, 16], "device": "cpu",
    }  # fmt: skip
    result, told = listen(job_of("embed")(config, tmp_path), stop_at="embedding")
    assert isinstance(told[-1], Stopped)
    assert result["stopped"]
    assert result["features"] == []
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_embedded_is_refused(
    scans: list[str], encoder: Path, tmp_path: Path
) -> None:
    config = {"encoder": str(encoder), "scans": scans, "folder": str(tmp_path)}
    with pytest.raises(ValueError, match="no map of stride 3"):
        drain(job_of("embed")({**config, "strides": [3]}, tmp_path))
    with pytest.raises(ConfigError, match="overlap"):
        drain(job_of("embed")({**config, "overlap": 2.0}, tmp_path))
    with pytest.raises(UnusableInput, match="none"):
        drain(job_of("embed")({**config, "encoder": "/nothing"}, tmp_path))


@pytest.mark.parametrize("error", [OverflowError("too far"), MemoryError(), KeyError()])
def test_one_bad_scan_stops_no_other(
    error: Exception,
    scans: list[str],
    encoder: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(Path(scans[0]).read_bytes())
    asked = [str(bad), scans[1]]

    def reading(path: Path | str) -> Any:
        if Path(path) == bad:
            raise error
        return read_scan(path)

    monkeypatch.setattr("homolog.features.of_scans.read_scan", reading)
    monkeypatch.setattr("homolog.use.predict.read_scan", reading)
    config = {"encoder": str(encoder), "scans": asked, "folder": str(tmp_path / "f")}
    result, told = listen(job_of("embed")({**config, "device": "cpu"}, tmp_path))
    assert [f["scan"] for f in result["features"]] == scans[1:2]
    assert [f["scan"] for f in result["failed"]] == [str(bad)]
    assert any(isinstance(e, Note) and str(bad) in e.text for e in told)
    with pytest.raises(type(error)):
        drain(job_of("embed")({**config, "scans": asked[:1]}, tmp_path))
    with pytest.raises(UnusableInput, match="none of 2 scans could be embedded"):
        drain(job_of("embed")({**config, "scans": asked[:1] * 2}, tmp_path))
    config = {"model": str(model), "scans": asked, "out": str(tmp_path / "labels")}
    result, _ = listen(job_of("predict")({**config, "device": "cpu"}, tmp_path))
    assert [p["scan"] for p in result["predicted"]] == scans[1:2]
    (failed,) = result["failed"]
    assert failed["scan"] == str(bad)
    assert failed["reason"].endswith(".")


def test_too_little_memory_for_a_window_is_told_in_a_sentence(
    scans: list[str], encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def greedy(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate ...")

    monkeypatch.setattr("homolog.features.embed.embed_windows", greedy)
    config = {"encoder": str(encoder), "scans": scans, "folder": str(tmp_path)}
    with pytest.raises(JobError, match=r"not enough memory on .* for a window of 24 x"):
        drain(job_of("embed")({**config, "window": [24, 32, 32]}, tmp_path))
    assert list(tmp_path.iterdir()) == []


# --- predict, score


def test_a_batch_is_labelled_and_scored(
    scans: list[str], model: Path, phantom_folder: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"not a scan")
    config = {
        "model": str(model), "scans": [scans[0], str(broken), scans[1]],
        "out": str(tmp_path / "labels"), "flips": "", "overlap": None, "device": "cpu",
    }  # fmt: skip
    result, told = listen(job_of("predict")(config, tmp_path))
    assert [p["scan"] for p in result["predicted"]] == scans
    assert [f["scan"] for f in result["failed"]] == [str(broken)]
    assert not result["stopped"]
    assert sum(isinstance(e, Saved) and e.what == "labels" for e in told) == 2
    entry = result["predicted"][0]
    labels, scan = read_labels(Path(entry["labels"])), read_scan(Path(scans[0]))
    assert labels.shape == scan.shape
    counted = int((labels.data > 0).sum())
    assert sum(entry["voxels"].values()) == counted
    each_ml = float(np.prod(scan.affine.spacing_mm)) / 1000
    assert sum(entry["volumes_ml"].values()) == pytest.approx(counted * each_ml)
    lines = (tmp_path / "labels" / "volumes.csv").read_text().splitlines()
    table = list(csv.DictReader(lines))
    assert [row.pop("scan") for row in table] == scans
    told_ml = {f"{name}_ml": ml for name, ml in entry["volumes_ml"].items()}
    assert {k: float(v) for k, v in table[0].items()} == pytest.approx(told_ml)

    truth = sorted((phantom_folder / "labelsTr").iterdir())[:2]
    pairs = [
        {"prediction": p["labels"], "reference": str(t)}
        for p, t in zip(result["predicted"], truth, strict=True)
    ]
    scored, _ = listen(
        job_of("score")({"pairs": pairs, "names": {"1": "liver"}}, tmp_path)
    )
    assert scored["cases"] == 2
    assert set(scored["labels"]) == {"liver"}
    assert {r["case"] for r in scored["rows"]} == {"phantom_000", "phantom_001"}
    itself = {"prediction": str(truth[0]), "reference": str(truth[0])}
    scored, _ = listen(job_of("score")({"pairs": [itself, itself]}, tmp_path))
    assert scored["mean"] == {"dice": 1.0, "iou": 1.0, "nsd": 1.0, "hd95_mm": 0.0}
    assert scored["cases"] == 2  # of the same name, yet two


def test_a_stopped_batch_tells_what_is_done(
    scans: list[str], model: Path, tmp_path: Path
) -> None:
    config = {"model": str(model), "scans": scans, "out": str(tmp_path / "labels")}
    stream = job_of("predict")({**config, "device": "cpu"}, tmp_path)
    result, told = listen(stream, stop_at=Saved)
    assert isinstance(told[-1], Stopped)
    assert [p["scan"] for p in result["predicted"]] == scans[:1]
    assert len((tmp_path / "labels" / "volumes.csv").read_text().splitlines()) == 2


def test_what_cannot_be_predicted_or_scored_is_refused(
    scans: list[str], model: Path, encoder: Path, tmp_path: Path
) -> None:
    config = {"model": str(model), "scans": scans, "out": str(tmp_path)}
    with pytest.raises(ConfigError, match="axes out of z, y, x"):
        drain(job_of("predict")({**config, "flips": "q"}, tmp_path))
    with pytest.raises(UnusableInput, match="cannot predict"):
        drain(job_of("predict")({**config, "model": str(encoder)}, tmp_path))
    with pytest.raises(ConfigError, match="needs a prediction and a reference"):
        drain(job_of("score")({"pairs": [{"prediction": "a"}]}, tmp_path))


# --- models


def test_models_are_checked_exported_and_imported(
    encoder: Path, tmp_path: Path
) -> None:
    care = job_of("models")
    checked, _ = listen(care({"action": "check", "source": str(encoder)}, tmp_path))
    assert checked["report"]["share"] == 1.0
    place = str(tmp_path / "e.safetensors")
    exported, _ = listen(
        care({"action": "export", "source": str(encoder), "out": place}, tmp_path)
    )
    assert Path(exported["card"]).is_file()
    request = {
        "action": "import", "source": place, "out": str(tmp_path / "mine"),
        "backbone": "resunet", "settings": {"channels": [8, 16, 16]},
    }  # fmt: skip
    imported, _ = listen(care(request, tmp_path))
    assert imported["encoder_id"] == checked["encoder_id"]
    assert load_encoder(imported["model"]).encoder_id == checked["encoder_id"]
    with pytest.raises(UnusableInput, match="exists"):
        drain(care(request, tmp_path))
    with pytest.raises(ConfigError, match="action must be one of"):
        drain(care({"action": "bake", "source": place}, tmp_path))
    with pytest.raises(ConfigError, match="a place to write to"):
        drain(care({"action": "export", "source": place}, tmp_path))


# --- plan


def plan_of(kind: str, config: dict[str, Any], folder: Path) -> Any:
    return job_of("plan")({"kind": kind, "config": config}, folder)


def pretraining(store: Store, **training: Any) -> dict[str, Any]:
    return {
        "unresolved": True, "method": "mae", "stores": [str(store.path)],
        "recipe": "cpu", "backbone": None, "device": "cpu",
        "settings": {
            "method": {"size": [16, 16, 16], "token_stride": 4},
            "backbone": {"channels": [4, 8, 8]},
            "training": {"steps": 1000, "batch_size": 4, **training},
        },
    }  # fmt: skip


def test_a_pretraining_is_measured_and_leaves_nothing(
    phantom_store: Store, tmp_path: Path
) -> None:
    result, told = listen(plan_of("pretrain", pretraining(phantom_store), tmp_path))
    assert result["seconds_per_step"] > 0
    assert result["total_s"] == pytest.approx(1000 * result["seconds_per_step"])
    assert (result["steps"], result["batch_size"]) == (1000, 4)
    assert result["memory_bytes"] > 10**7
    assert result["device"] == "cpu"
    assert result["resolved"]["training"]["steps"] == 1000
    assert result["resolved"]["training"]["previews"] == 10
    assert any("mae on resunet" in note for note in result["notes"])
    assert not any("minutes are enough" in note for note in result["notes"])
    assert any(isinstance(e, Progress) for e in told)
    assert list(tmp_path.iterdir()) == []


def test_a_finetuning_counts_its_validations(
    phantom_store: Store, tmp_path: Path
) -> None:
    config = {
        "unresolved": True, "task": "segment", "store": str(phantom_store.path),
        "encoder": "scratch", "recipe": "cpu", "device": "cpu",
        "backbone": {"channels": [4, 8]}, "task_config": {"window": [32, 32, 32]},
        "training": {"minutes": 2.0, "batch_size": 1, "validate_every": 100},
    }  # fmt: skip
    result, _ = listen(plan_of("finetune", config, tmp_path))
    assert result["validation_s"] > 0
    assert result["steps"] > 1
    assert result["total_s"] < 121
    assert result["resolved"]["training"]["minutes"] == 2.0
    assert result["resolved"]["task_config"]["validate_cases"] == 16
    held = len(phantom_store.split("val"))
    assert f"and up to {held} more to choose the weights by" in result["notes"][0]
    assert result["few_steps"] in ("", *(n[0].lower() + n[1:] for n in result["notes"]))
    config["training"]["minutes"] = 0.02
    config["task_config"]["validate_cases"] = None
    result, _ = listen(plan_of("finetune", config, tmp_path))
    assert "the recipe has 1500" in result["few_steps"]
    assert "the recipe has 1500" in result["notes"][-1]
    assert "the last weights are kept" in result["notes"][0]
    assert result["validation_s"] == 0
    assert list(tmp_path.iterdir()) == []


def test_a_plan_can_be_stopped(phantom_store: Store, tmp_path: Path) -> None:
    stream = plan_of("pretrain", pretraining(phantom_store), tmp_path)
    result, told = listen(stream, stop_at=Progress)
    assert result == {"stopped": True}
    assert isinstance(told[-1], Stopped)
    assert sum(isinstance(e, Progress) for e in told) == 1
    assert list(tmp_path.iterdir()) == []


def test_too_little_memory_lowers_the_batch(
    phantom_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from homolog.methods.mae import MAE

    losses = MAE.losses

    def greedy(self: MAE, views: Any, progress: float) -> Any:
        if len(next(iter(views.values())).flat()) > 2:
            raise torch.OutOfMemoryError("no room")
        return losses(self, views, progress)

    monkeypatch.setattr(MAE, "losses", greedy)
    result, _ = listen(plan_of("pretrain", pretraining(phantom_store), tmp_path))
    assert (result["batch_size"], result["accumulate"]) == (2, 2)
    assert any("not enough memory for batches of 4" in n for n in result["notes"])


def test_a_plan_of_what_cannot_be_is_refused(
    phantom_store: Store, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="kind must be one of"):
        drain(plan_of("demo", {}, tmp_path))
    run = Run.create(
        tmp_path / "job", "plan",
        {"kind": "pretrain", "config": pretraining(phantom_store, steps=-1)},
    )  # fmt: skip
    list(execute(run))
    assert run.spec["outcome"]["error_kind"] == "unusable"
    shutil.rmtree(run.folder)


def test_a_result_is_named_after_folder_and_series(tmp_path: Path) -> None:
    folder = tmp_path / "exam"
    folder.mkdir()
    one = series_path(folder, "1.2.3")
    assert find_scans([one]) == [one]
    assert result_paths([one], tmp_path)[one] == tmp_path / "exam_1.2.3.nii.gz"
