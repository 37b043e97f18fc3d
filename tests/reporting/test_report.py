"""The report as a whole: an encoder, a segmenter, a classifier, and what is missing."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from homolog.cli import cli
from homolog.errors import UnusableInput
from homolog.events import Progress, Request, drain
from homolog.features.config import EmbedConfig
from homolog.finetune.job import job as finetune_job
from homolog.reporting.config import ReportConfig
from homolog.reporting.report import Report, report_on
from homolog.store.store import Store

SETTINGS: dict[str, Any] = {
    "task": "segment", "encoder": "scratch", "patients": 2, "device": "cpu",
    "backbone": {"name": "resunet", "channels": [8, 16, 16]},
    "task_config": {"window": [16, 24, 24], "validate_cases": 2},
    "training": {
        "steps": 150, "batch_size": 1, "learning_rate": 1e-2, "validate_every": 50,
        "previews": 2, "dry_run_steps": 0,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def tuned(phantom_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A segmenter that finds something."""
    folder = tmp_path_factory.mktemp("tuned") / "run"
    drain(finetune_job({**SETTINGS, "store": str(phantom_store.path)}, folder))
    return folder


def test_an_encoder_and_a_segmenter_on_one_page(
    phantom_store: Store, encoder: Path, tuned: Path, tmp_path: Path
) -> None:
    """Paper: Hundred Million Fig. 6."""
    out = tmp_path / "report"
    words = [
        "report", str(tuned), str(phantom_store.path), "--against", str(encoder),
        "--out", str(out), "--split", "all", "--most", "4", "--voxels", "6",
        "--draws", "1", "--features", str(tmp_path / "maps"), "--json",
    ]  # fmt: skip
    run = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert run.exit_code == 0, run.output
    told = json.loads(run.stdout.splitlines()[-1])
    model, bare = told["encoders"]
    assert told["notes"] == [f"{bare['name']} is no run: its course is lost."]
    assert len(told["patients"]) == 4
    for each in (model, bare):
        best = each["maps"][each["best_map"]]
        assert best["own"]["silhouette"] == max(
            m["own"]["silhouette"] for m in each["maps"].values()
        )
        assert set(best["own"]["by_organ"]) == set(told["organs"])
    # an encoder of random weights is as its control, about
    assert abs(bare["maps"]["all maps"]["own"]["auc"] - 0.5) < 0.25
    assert bare["robustness"] is None
    assert bare["course"] is None
    assert model["robustness"]["of"] == "Dice"
    assert model["course"]["total"] == 150
    page = Path(told["html"]).read_text(encoding="utf-8")
    assert page.count("t-SNE, silhouette") == 4
    assert "relative deviation, Dice" in page
    with Path(told["csv"]).open(newline="") as file:
        rows = list(csv.DictReader(file))
    lone = [
        r for r in rows
        if r["encoder"] == bare["name"] and r["weights"] == "own"
        and r["measure"] == "silhouette" and r["features"] == bare["best_map"]
        and not r["label"]
    ]  # fmt: skip
    assert (
        float(lone[0]["value"]) == bare["maps"][bare["best_map"]]["own"]["silhouette"]
    )
    with Path(told["robustness"]).open(newline="") as file:
        disturbed = list(csv.DictReader(file))
    assert {r["kind"] for r in disturbed} == set(model["robustness"]["kinds"])
    for row in disturbed:
        before, after = float(row["before"]), float(row["after"])
        moved = (after - before) / before
        assert float(row["deviation"]) == pytest.approx(moved, abs=1e-3)


def reported(store: Store, encoder: Path, folder: Path, **given: Any) -> Report:
    """A report on one encoder."""
    config = ReportConfig(**{"most": 3, "voxels": 4, "probe": False, **given})
    report = drain(
        report_on(store, [encoder], config, EmbedConfig(), device="cpu", folder=folder)
    )
    assert isinstance(report, Report)
    return report


def test_the_same_seed_is_the_same_report(
    phantom_store: Store, encoder: Path, tmp_path: Path
) -> None:
    first, second = (
        reported(phantom_store, encoder, tmp_path / name).found[0].to_dict()
        for name in "ab"
    )
    assert {**first, "seconds": 0} == {**second, "seconds": 0}


def test_a_store_without_labels_says_so(
    phantom_store: Store, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(phantom_store.path)
    monkeypatch.setattr(store, "cards", tuple(store.cards[:1]))
    with pytest.raises(UnusableInput, match="two of each are needed"):
        reported(store, encoder, tmp_path)


def test_it_can_be_stopped(phantom_store: Store, encoder: Path, tmp_path: Path) -> None:
    config = ReportConfig(most=3, voxels=4, probe=False)
    job = report_on(
        phantom_store, [encoder], config, EmbedConfig(), device="cpu", folder=tmp_path
    )
    request: Request | None = None
    while True:
        try:
            event = job.send(request)
        except StopIteration as end:
            report = end.value
            break
        request = Request.STOP if isinstance(event, Progress) else None
    assert report.stopped
