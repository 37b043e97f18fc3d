"""One model of several: the mean of their logits; and of folds, every case once."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from homolog.cli import cli
from homolog.config import ConfigError
from homolog.errors import UnusableInput
from homolog.events import Progress, Request, drain
from homolog.finetune.job import job as finetune_job
from homolog.model_files.encoder import load_encoder
from homolog.model_files.folder import load_model
from homolog.runs.jobs import UNRESOLVED, resolved
from homolog.store.store import Store
from homolog.use.folds import job as folds_job
from homolog.use.join import join_models
from homolog.use.predict import open_trained

CPU = torch.device("cpu")
SETTINGS: dict[str, Any] = {
    "task": "segment", "encoder": "scratch", "device": "cpu", "recipe": "cpu",
    "backbone": {"name": "resunet", "channels": [8, 16, 16]},
    "task_config": {"window": [16, 24, 24], "validate_cases": None, "average": 0.0},
    "training": {"steps": 3, "batch_size": 1, "previews": 0, "dry_run_steps": 0},
}  # fmt: skip


@pytest.fixture(scope="module")
def pair(
    three_patients: Store, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Two segmenters of other seeds."""
    folder = tmp_path_factory.mktemp("pair")
    for seed, name in enumerate("ab"):
        config = {**SETTINGS, "store": str(three_patients.path), "seed": seed}
        drain(finetune_job(config, folder / name))
    return folder / "a", folder / "b"


def test_the_answer_is_the_mean_of_the_logits(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    words = ["models", "join", *map(str, pair), "--out", str(tmp_path / "both")]
    run = CliRunner().invoke(cli, [*words, "--json"], catch_exceptions=False)
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout.splitlines()[-1])["kind"] == "segment"
    networks = [open_trained(p, CPU)[1].network for p in (*pair, tmp_path / "both")]
    image = torch.randn(1, 1, 16, 24, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first, second, both = (network(image) for network in networks)
    assert not torch.equal(first, second)
    assert torch.allclose(both, (first + second) / 2, atol=1e-6)
    card = load_model(tmp_path / "both").card
    single = [load_model(p).card for p in pair]
    assert [m["name"] for m in card["members"]] == ["a", "b"]
    assert set(card["trained_on"]) == {h for c in single for h in c["trained_on"]}
    # an encoder is that of the first member
    own, theirs = (load_encoder(p).backbone for p in (tmp_path / "both", pair[0]))
    for a, b in zip(own.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_joined_model_predicts_as_any_other(
    pair: tuple[Path, Path], three_patients: Store, tmp_path: Path
) -> None:
    """Paper: Joint IoU in 3D."""
    join_models(pair, tmp_path / "both")
    words = ["evaluate", three_patients.path, "--model", tmp_path / "both",
             "--split", "all", "--out", tmp_path / "scores", "--json"]  # fmt: skip
    run = CliRunner().invoke(cli, [str(w) for w in words], catch_exceptions=False)
    assert run.exit_code == 0, run.output
    row = json.loads((tmp_path / "scores" / "metrics.json").read_text())["rows"][0]
    assert row["iou"] == pytest.approx(row["dice"] / (2 - row["dice"]))


def test_what_does_not_answer_alike_is_not_joined(
    pair: tuple[Path, Path], encoder: Path, three_patients: Store, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="two models or more, got 1"):
        join_models([pair[0], pair[0]], tmp_path / "x")
    with pytest.raises(UnusableInput, match="of kind 'encoder'"):
        join_models([encoder, pair[0]], tmp_path / "x")
    other = {**SETTINGS["task_config"], "window": [16, 32, 32]}
    config = {**SETTINGS, "store": str(three_patients.path), "task_config": other}
    drain(finetune_job(config, tmp_path / "wide"))
    with pytest.raises(UnusableInput, match="they differ in window"):
        join_models([pair[0], tmp_path / "wide"], tmp_path / "x")
    join_models(pair, tmp_path / "both")
    with pytest.raises(UnusableInput, match="of several models already"):
        join_models([tmp_path / "both", pair[0]], tmp_path / "x")
    with pytest.raises(UnusableInput, match="is there already"):
        join_models(pair, tmp_path / "both")
    assert not (tmp_path / "x").exists()


def test_classifiers_are_joined_by_their_logits(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [["image", "modality", "class"]]
    for number in range(8):
        kind = ("dark", "light")[number % 2]
        image = rng.normal(60 + 100 * (number % 2), 10, (32, 32)).clip(0, 255)
        Image.fromarray(image.astype(np.uint8)).save(tmp_path / f"p{number}.png")
        rows.append([f"p{number}.png", "XR", kind])
    table = tmp_path / "scans.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows(rows)

    def run(*words: object) -> dict[str, Any]:
        line = [*map(str, words), "--json"]
        found = CliRunner().invoke(cli, line, catch_exceptions=False)
        assert found.exit_code == 0, found.output
        told: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
        return told

    run("prepare", table, "--out", tmp_path / "s")
    for seed in (0, 1):
        run(
            "finetune", "classify", tmp_path / "s", "--encoder", "scratch", "--recipe",
            "cpu", "--steps", 2, "--seed", seed, "--validate", "none", "--device",
            "cpu", "--set", "window=1,32,32", "--out", tmp_path / f"r{seed}",
        )  # fmt: skip
    run("models", "join", tmp_path / "r0", tmp_path / "r1", "--out", tmp_path / "two")
    scan = tmp_path / "p3.png"
    chances = []
    for model in ("r0", "r1", "two"):
        told = run(
            "predict",
            scan,
            "--model",
            tmp_path / model,
            "--out",
            tmp_path / "o" / model,
        )
        light = told["predicted"][0]["chances"]["light"]
        chances.append(np.log(light / (1 - light)))
    assert chances[0] != chances[1]
    assert chances[2] == pytest.approx((chances[0] + chances[1]) / 2, abs=1e-4)


def config_of_folds(store: Store, folds: int) -> dict[str, Any]:
    """The complete settings."""
    request = {**SETTINGS, "store": str(store.path), "folds": folds, UNRESOLVED: True}
    return resolved("folds", request)


def test_every_case_is_scored_once_by_a_model_that_never_saw_it(
    phantom_store: Store, tmp_path: Path
) -> None:
    """Paper: Alice cross-validation."""
    config = config_of_folds(phantom_store, 3)
    result = drain(folds_job(config, tmp_path / "run"))
    usable = [c for c in phantom_store.cards if c.split != "test"]
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    seen = {(row["fold"], row["case"]) for row in rows}
    assert sorted(case for _, case in seen) == sorted(c.id for c in usable)
    for fold, case in seen:
        card = load_model(tmp_path / "run" / f"fold_{fold[0]}").card
        assert card["fold"] == fold
        assert case not in card["cases"]["train"]
    per_case = {case: [] for _, case in seen}
    for row in rows:
        if row["dice"]:
            per_case[row["case"]].append(float(row["dice"]))
    wanted = np.mean([np.mean(values) for values in per_case.values()])
    assert result["mean"]["dice"] == pytest.approx(wanted, abs=1e-6)
    means = [fold["mean"]["dice"] for fold in result["folds"]]
    assert result["between"]["dice"] == pytest.approx(np.std(means, ddof=1))
    assert len(load_model(result["model"]).card["members"]) == 3
    # what is done is not repeated
    marks = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("model.json")}
    again = drain(folds_job(config, tmp_path / "run"))
    assert again == result
    assert marks == {p: p.stat().st_mtime_ns for p in marks}


def test_stopped_between_folds_it_goes_on(phantom_store: Store, tmp_path: Path) -> None:
    config = config_of_folds(phantom_store, 3)
    job = folds_job(config, tmp_path / "run")
    request: Request | None = None
    while True:
        try:
            event = job.send(request)
        except StopIteration as end:
            told = end.value
            break
        held = isinstance(event, Progress) and event.phase == "held-out cases"
        request = Request.STOP if held and event.index == 0 else None
    assert told["stopped"]
    assert not (tmp_path / "run" / "model").exists()
    result = drain(folds_job(config, tmp_path / "run"))
    assert [fold["fold"] for fold in result["folds"]] == ["1/3", "2/3", "3/3"]


def test_words_that_cannot_be_meant(three_patients: Store, tmp_path: Path) -> None:
    for words, text in (
        (["--folds", "1"], "1 is not in the range"),
        (["--folds", "3", "--fold", "1/3"], "--folds or --fold"),
        (["--folds", "9"], "folds must be in 2..2"),
    ):
        run = CliRunner().invoke(
            cli,
            ["finetune", "segment", str(three_patients.path), "--encoder", "scratch",
             "--device", "cpu", "--out", str(tmp_path / "r"), *words],
        )  # fmt: skip
        assert run.exit_code != 0
        assert text in run.output + str(run.exception)
    assert not (tmp_path / "r").exists()
