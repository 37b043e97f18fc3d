"""On a GPU the next scan is read and the last one's results written meanwhile."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from homolog.errors import UnusableInput
from homolog.events import Note, Progress, Request, Saved
from homolog.geometry.affine import Affine
from homolog.jobs.predict import Config, job
from homolog.runs.run import Run
from homolog.scans.volume import LabelMap, Volume
from homolog.scans.write import write_volume
from homolog.tasks.base import Task
from homolog.use import predict
from homolog.use.predict import predict_scans

SHAPE = (4, 5, 6)
AFFINE = Affine.of((1.0, 1.0, 1.0), (0.0, 0.0, 0.0))


class Labels(Task):
    """One voxel of 1; ``at_work`` is called while the network would be."""

    def __init__(self) -> None:
        self.at_work: Any = lambda volume: None

    def run(self, volume: Volume, *_: Any) -> Any:
        yield Note(f"labelling {volume.name}")
        self.at_work(volume)
        data = np.zeros(SHAPE, np.uint8)
        data[0, 0, 0] = 1
        return LabelMap(data, volume.affine, {1: "one"}, volume.name, volume.meta)


@pytest.fixture(params=["cpu", "cuda"])
def model(request: pytest.FixtureRequest) -> Any:
    device = torch.device(request.param)
    return SimpleNamespace(learnt=SimpleNamespace(remark=""), spec={}, device=device)


@pytest.fixture
def scans(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{name}.nii.gz" for name in "abcd"]
    for path in paths:
        write_volume(Volume(np.ones((1, *SHAPE), np.int16), AFFINE), path)
    return paths


def events_of(job: Any, stop_at: int | None = None) -> tuple[list[Any], Any]:
    found, answer = [], None
    while True:
        try:
            found.append(job.send(answer))
        except StopIteration as end:
            return found, end.value
        last = found[-1]
        asked = isinstance(last, Progress) and last.index == stop_at
        answer = Request.STOP if asked else None


def test_all_are_predicted_in_their_order(
    model: Any, scans: list[Path], tmp_path: Path
) -> None:
    scans[1].write_bytes(b"no scan")
    out = tmp_path / "out"
    events, result = events_of(predict_scans(Labels(), model, scans, out))
    assert [Path(row["scan"]).name[0] for row in result["predicted"]] == ["a", "c", "d"]
    assert [Path(row["scan"]).name[0] for row in result["failed"]] == ["b"]
    assert [row["notes"] for row in result["predicted"]] == [
        ["labelling a"], ["labelling c"], ["labelling d"],
    ]  # fmt: skip
    saved = [Path(e.path).name for e in events if isinstance(e, Saved)]
    assert saved == ["a.nii.gz", "c.nii.gz", "d.nii.gz", "volumes.csv"]
    assert all((out / name).exists() for name in saved)
    progress = [e.index for e in events if isinstance(e, Progress)]
    assert progress == [0, 1, 2, 3, 4]


def test_a_result_that_cannot_be_written_is_that_scans_failure(
    model: Any, scans: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = predict.write_labels

    def write(labels: LabelMap, path: Path) -> None:
        if path.name.startswith(("b", "d")):
            raise UnusableInput(f"{path}: the disk is full.")
        real(labels, path)

    monkeypatch.setattr(predict, "write_labels", write)
    _, result = events_of(predict_scans(Labels(), model, scans, tmp_path / "out"))
    assert [Path(row["scan"]).name[0] for row in result["predicted"]] == ["a", "c"]
    assert [Path(row["scan"]).name[0] for row in result["failed"]] == ["b", "d"]
    assert all("the disk is full" in row["reason"] for row in result["failed"])


def test_a_stop_loses_nothing_that_was_predicted(
    model: Any, scans: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    work = predict_scans(Labels(), model, scans, out)
    _, result = events_of(work, stop_at=2)
    assert result["stopped"]
    assert [Path(row["scan"]).name[0] for row in result["predicted"]] == ["a", "b"]
    assert sorted(p.name for p in out.glob("*.nii.gz")) == ["a.nii.gz", "b.nii.gz"]


def test_scans_can_be_left_out_while_it_runs(
    model: Any, scans: list[Path], tmp_path: Path
) -> None:
    gone: set[str] = set()
    out = tmp_path / "out"
    work = predict_scans(Labels(), model, scans, out, left_out=lambda: gone)
    for event in work:
        if isinstance(event, Progress) and event.index == 1:
            gone.add(str(scans[2]))  # which waits
        if isinstance(event, Note) and event.text == "labelling b":
            gone.add(str(scans[1]))  # which is at work
    assert sorted(p.name for p in out.glob("*.nii.gz")) == ["a.nii.gz", "d.nii.gz"]
    work = predict_scans(Labels(), model, scans, out / "all", left_out=lambda: gone)
    _, result = events_of(work)
    assert result["left_out"] == [str(scans[1]), str(scans[2])]
    assert not result["stopped"]


def test_the_job_asks_its_run_what_to_leave_out(
    scans: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt = SimpleNamespace(remark="")
    model = SimpleNamespace(learnt=learnt, spec={}, device=torch.device("cpu"), card={})
    monkeypatch.setattr(predict, "open_predictor", lambda *_, **__: (Labels(), model))
    run = Run.create(tmp_path / "job", "predict", {})
    run.leave_out([str(scans[1])])
    config = Config(
        scans=tuple(map(str, scans)), model="m", out=str(tmp_path / "out"), device="cpu"
    )
    _, result = events_of(job(config, run.folder))
    assert result["left_out"] == [str(scans[1])]
    assert [Path(row["scan"]).name[0] for row in result["predicted"]] == ["a", "c", "d"]


def test_beside_a_gpu_the_next_is_read_and_the_last_is_written(
    scans: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.device("cuda")
    model: Any = SimpleNamespace(
        learnt=SimpleNamespace(remark=""), spec={}, device=device
    )
    read, written = (
        {path.name[0]: threading.Event() for path in scans} for _ in range(2)
    )
    real_read, real_write = predict.read_scan, predict.write_labels

    def reading(path: Path) -> Volume:
        volume = real_read(path)
        read[path.name[0]].set()
        return volume

    def writing(labels: LabelMap, path: Path) -> None:
        real_write(labels, path)
        written[path.name[0]].set()

    monkeypatch.setattr(predict, "read_scan", reading)
    monkeypatch.setattr(predict, "write_labels", writing)
    task = Labels()

    def at_work(volume: Volume) -> None:
        here = "abcd".index(volume.name)
        if here < 3:
            assert read["abcd"[here + 1]].wait(20), "the next was not read"
        if here > 0:
            assert written["abcd"[here - 1]].wait(20), "the last was not written"

    task.at_work = at_work
    _, result = events_of(predict_scans(task, model, scans, tmp_path / "out"))
    assert result["failed"] == []
    assert len(result["predicted"]) == 4
