"""Runs for the tests of the window: a home of their own, workers without torch."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from homolog.gui.shared import preferences
from homolog.runs import launch
from homolog.runs.jobs import JOBS
from homolog.runs.run import Run

FAKE = Path(__file__).with_name("fake_worker.py")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of runs, stores and models."""
    place = tmp_path / "home"
    (place / "runs").mkdir(parents=True)
    monkeypatch.setattr(preferences, "home", lambda: place)
    # a window tells the terminal where its models lie
    monkeypatch.setenv("HOMOLOG_CONFIG", str(tmp_path / "settings"))
    return place


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Workers run ``fake_worker``; none outlives its test."""
    for name in ("slow", "flood", "broken", "models"):
        monkeypatch.setitem(JOBS, name, f"fake_worker:{name}")
    monkeypatch.setattr(launch, "WORKER", (sys.executable, str(FAKE)))
    yield
    for child in launch._children:
        child.kill()
        child.wait()
        if child.stdin is not None:
            child.stdin.close()
    launch._reap()


def slow_run(folder: Path, steps: int = 400, **config: Any) -> Run:
    return Run.create(folder, "slow", {"steps": steps, "method": "toy", **config})


def wait_for(true: Callable[[], Any], what: str, timeout_s: float = 30.0) -> Any:
    """Wait without an event loop until something holds."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        if found := true():
            return found
        time.sleep(0.02)
    raise AssertionError(f"never: {what}")


def wait_for_step(run: Run, index: int) -> int:
    def reached() -> int:
        step = run.last_step()
        return step.index if step is not None and step.index >= index else 0

    return int(wait_for(reached, f"step {index}; log: {run.log.read_text()}"))


def make_model(folder: Path, **more: Any) -> Path:
    """A model folder as ``save_model`` writes it, with weights of a few bytes."""
    folder.mkdir(parents=True)
    stem = "model" if more.get("kind") == "segment" else "encoder"
    name = f"{stem}.safetensors"
    (folder / name).write_bytes(b"weights of " + folder.name.encode())
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    card = {
        "kind": "encoder",
        "method": "s2dc",
        "title": "S2DC: structure-aware discrepancy and consistency",
        "backbone": {"name": "resunet", "config": {"channels": [16, 32]}},
        "preprocessing": {"spacing_mm": [1.5, 0.8, 0.8], "modality": "CT"},
        "modalities": {"CT": 10},
        "cases": 10,
        "window": [48, 48, 48],
        "steps": 30,
        "complete": True,
        "licence": "weights as the licence of the training data",
        "homolog_version": "0.1.0",
        "weights": name,
        "sha256": {name: digest},
        **more,
    }
    (folder / "model.json").write_text(json.dumps(card))
    return folder


def is_gone(pid: int) -> bool:
    """Whether a process started here has ended and was reaped."""
    launch._reap()
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False
