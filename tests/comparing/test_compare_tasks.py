"""Comparisons of boxes and of images that are made: each task has its own score."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_compare import compared, started_here

from homolog.comparing import running
from homolog.comparing.cells import Cells
from homolog.comparing.compare import table_lines
from homolog.comparing.plan import Plan, make_plan
from homolog.config import ConfigError
from homolog.errors import UnusableInput
from homolog.events import drain
from homolog.finetune.settings import learned_task
from homolog.geometry.affine import Affine
from homolog.scans.volume import Volume
from homolog.scans.write import write_volume
from homolog.store.build import prepare_store
from homolog.store.store import Store

TRAINING = ("training.steps=1", "training.batch_size=1", "training.dry_run_steps=0")
NET = ("backbone.name=resunet", "backbone.channels=8,16,16")


def planned(task: str, *settings: str, methods: str = "scratch,b=scratch") -> Plan:
    return make_plan(
        {}, methods=methods, assignments=[*TRAINING, *NET, *settings], task=task,
        patients="all", seeds=1, marks=0, test_patients=3,
    )  # fmt: skip


OTHER = "b.training.learning_rate=0.005"


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running.launch, "start", started_here)


def boxed(folder: Path, count: int = 6) -> Store:
    """Pictures with a bright square each, by row and class."""
    rng = np.random.default_rng(0)
    rows: list[Any] = ["image subject class x y w h".split()]
    for number in range(count):
        values = rng.normal(90, 12, (48, 48))
        y, x = 6 + 4 * number % 24, 8 + 3 * number
        values[y : y + 12, x : x + 12] += 90
        path = folder / f"p{number}.png"
        Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(path)
        rows.append([path.name, f"p{number}", "spot", x, y, 12, 12])
    with (folder / "boxes.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    drain(prepare_store([folder / "boxes.csv"], folder / "store"))
    return Store.open(folder / "store")


def paired(folder: Path, count: int = 5) -> Store:
    """Scans of two channels, the second made of the first."""
    rng = np.random.default_rng(1)
    rows = ["image,channels,subject"]
    for number in range(count):
        first = rng.random((1, 6, 32, 32)).astype(np.float32)
        first[:, :, 8:24, 8:24] += number
        for name, data in (("a", first), ("b", 2 - first)):
            grid = Affine.of((3.0, 1.0, 1.0))
            write_volume(Volume(data * 100, grid), folder / f"{number}{name}.nii.gz")
        rows.append(f"{number}a.nii.gz|{number}b.nii.gz,T1|T2,p{number}")
    (folder / "cases.csv").write_text("\n".join(rows))
    drain(prepare_store([folder / "cases.csv"], folder / "store"))
    return Store.open(folder / "store")


def test_boxes_are_compared_by_the_precision_of_all_test_patients(
    tmp_path: Path,
) -> None:
    store = boxed(tmp_path)
    settings = (
        "task.width=16", "task.depth=1", "task.window=1,32,32", OTHER,
    )  # fmt: skip
    summary = compared(planned("detect", *settings), store, tmp_path / "out")
    assert (summary["done"], summary["failed"]) == (2, [])
    assert (summary["metric"], summary["of_sets"]) == ("ap50", True)
    by_arm = {e["arm"]: e for e in summary["table"]}
    for run in (tmp_path / "out" / "scores").iterdir():
        told = json.loads((run / "metrics.json").read_text())
        entry = by_arm[run.name.partition("-n")[0]]
        # one precision of all boxes, not a mean over patients
        assert entry["mean"] == pytest.approx(told["mean"]["ap50"], abs=1e-6)
        assert entry["classes"] == {
            "spot": pytest.approx(told["classes"]["spot"]["ap50"], abs=1e-6)
        }
    gain = by_arm["b"]["difference"]
    assert gain == pytest.approx(by_arm["b"]["mean"] - by_arm["scratch"]["mean"])
    assert by_arm["b"]["wins"] is None
    assert by_arm["b"]["low"] is not None
    assert "AP50" in table_lines(summary)[0]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "AP50: higher is better." in page
    assert "by drawing patients anew" in page


def test_images_are_compared_by_their_noise_patient_by_patient(tmp_path: Path) -> None:
    store = paired(tmp_path)
    summary = compared(
        planned("translate", "task.window=1,32,32", OTHER), store, tmp_path / "out"
    )
    assert (summary["done"], summary["failed"]) == (2, [])
    assert (summary["metric"], summary["of_sets"]) == ("psnr", False)
    entry = next(e for e in summary["table"] if e["arm"] == "b")
    rows = [
        json.loads(line)
        for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()
    ]
    own = [row["psnr"] for row in rows if row["arm"] == "b"]
    assert len(own) == 3
    assert entry["mean"] == pytest.approx(np.mean(own), abs=1e-4)
    assert entry["wins"] + entry["losses"] <= 3
    assert "PSNR (dB)" in (tmp_path / "out" / "report.html").read_text()


def test_what_cannot_be_compared_is_told_before_it_begins(tmp_path: Path) -> None:
    store = paired(tmp_path)

    def cells(plan: Plan) -> Cells:
        return Cells(plan, store, tmp_path / "out", device="cpu", threads=1)

    with pytest.raises(UnusableInput, match=r"nothing to compare on: .*boxes"):
        cells(planned("detect"))
    with pytest.raises(ConfigError, match="carries label maps"):
        cells(planned("translate", methods="scratch,carried")).check()
    with pytest.raises(ConfigError, match="learns from other cases"):
        cells(planned("translate", "b.target=T9")).check()
    with pytest.raises(UnusableInput, match="T9"):
        cells(planned("translate", "target=T9"))


def test_every_task_says_how_it_is_scored() -> None:
    said = {
        name: (cls.best_metric, cls.of_sets, cls.takes_label_maps)
        for name, cls in ((n, learned_task(n)) for n in
                          ("segment", "classify", "detect", "translate"))
    }  # fmt: skip
    assert said == {
        "segment": ("dice", False, True), "classify": ("auc", True, False),
        "detect": ("ap50", True, True), "translate": ("psnr", False, False),
    }  # fmt: skip
