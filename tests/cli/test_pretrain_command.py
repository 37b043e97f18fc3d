"""``homolog pretrain``, ``methods`` and ``doctor`` from a shell's point of view."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from homolog.cli import main
from homolog.methods import METHODS
from homolog.runs import launch
from homolog.runs.run import Run
from homolog.store.store import Store
from warm import WarmPopen

TINY = [
    "--set", "method.size=16,16,16", "--set", "method.token_stride=4",
    "--set", "backbone.channels=4,8,8", "--set", "training.batch_size=2",
    "--set", "training.log_every=1", "--device", "cpu",
]  # fmt: skip


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["homolog", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        text = capfd.readouterr()
        return int(stop.value.code or 0), text.out, text.err

    return call


def last_json(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text.splitlines()[-1])
    return found


def test_a_run_in_the_foreground_tells_what_it_does_and_where_it_ended(
    shell: Any, phantom_store: Store, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    status, text, news = shell(
        "pretrain", "mae", phantom_store.path, "--out", out, "--steps", 30, "--json",
        "--seed", 5, *TINY,
    )  # fmt: skip
    assert status == 0
    told = last_json(text)
    assert (told["state"], told["steps"], told["seed"]) == ("finished", 30, 5)
    assert Path(told["model"]) == out / "model"
    assert "mae on resunet" in news
    assert "s per step" in news  # the estimate before training
    assert "step 30/30" in news
    assert Run.open(out).state() == "finished"
    status, _, news = shell("pretrain", "mae", phantom_store.path, "--out", out, *TINY)
    assert status == 2
    assert "homolog runs resume" in news


def test_minutes_and_steps_exclude_each_other(
    shell: Any, phantom_store: Store, tmp_path: Path
) -> None:
    status, _, news = shell(
        "pretrain", "mae", phantom_store.path, "--out", tmp_path / "r",
        "--steps", 3, "--minutes", 1,
    )  # fmt: skip
    assert status == 2
    assert "not both" in news


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--set", "method.size=15,16,16"], "nearest legal size"),
        (["--set", "methods.size=16"], "settings start with method"),
        (["--set", "training.precision=fp8"], "precision must be one of"),
        (["--recipe", "none"], "no recipe 'none'"),
        (["--backbone", "vgg"], "unknown backbone"),
        (["--without", "tests"], "--without takes"),
        (["--encoder", "nowhere"], "got /"),
        (["--device", "tpu"], "device must be"),
    ],
)
def test_wrong_usage_is_one_sentence_and_leaves_nothing(
    shell: Any, phantom_store: Store, tmp_path: Path, words: list[str], sentence: str
) -> None:
    out = tmp_path / "run"
    status, _, news = shell(
        "pretrain", "s2dc", phantom_store.path, "--out", out, *TINY, *words
    )
    assert status == 2
    assert sentence in news
    assert not out.exists()


def test_ctrl_c_stops_with_the_state_saved_and_exit_status_130(
    phantom_store: Store, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = [
        sys.executable, "-m", "homolog.cli", "pretrain", "mae",
        str(phantom_store.path), "--out", str(out), "--steps", "100000", "--json",
        *TINY,
    ]  # fmt: skip
    with WarmPopen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        until = time.monotonic() + 100
        while not (out / "run.json").exists() or Run(out).last_step() is None:
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.05)
        assert Run(out).state() == "running"
        process.send_signal(signal.SIGINT)
        text, news = process.communicate(timeout=60)
    assert process.returncode == 130
    told = last_json(text)
    assert told["state"] == "stopped"
    assert told["steps"] > 0
    assert f"homolog runs resume {out}" in text
    assert "stopped after step" in news
    assert f"stopped at step {told['steps']} of 100000; the model so far: " in text
    assert (out / "checkpoints").is_dir()
    assert (out / "model" / "encoder.safetensors").exists()


def test_a_run_in_the_background_is_followed_stopped_and_resumed(
    shell: Any, phantom_store: Store, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    status, text, _ = shell(
        "pretrain", "mae", phantom_store.path, "--out", out, "--steps", 100000,
        "--background", "--json", *TINY,
    )  # fmt: skip
    assert status == 0
    assert last_json(text)["state"] == "running"
    run = Run.open(out)
    until = time.monotonic() + 100
    while run.last_step() is None:
        assert time.monotonic() < until, run.log.read_text()
        time.sleep(0.05)
    status, text, _ = shell("runs", "list", tmp_path, "--json")
    assert [row["state"] for row in last_json(text)["runs"]] == ["running"]
    status, _, news = shell("runs", "resume", out)
    assert (status, "is running" in news) == (1, True)
    status, text, _ = shell("runs", "stop", out, "--json")
    assert (status, last_json(text)["state"]) == (0, "stopped")
    status, text, news = shell("runs", "follow", out)
    assert status == 130
    assert "train: 100000 steps" in news
    for child in launch._children:
        assert child.wait(100) == 130  # it is nice to whatever else runs
    launch._reap()


def test_methods_tells_paper_backbones_and_labels(shell: Any) -> None:
    status, text, _ = shell("methods", "--json")
    assert status == 0
    told = last_json(text)["methods"]
    assert set(told) == set(METHODS.names())
    assert "arXiv 2507.02581" in told["s2dc"]["paper"]
    assert told["s2dc"]["uses_labels"] is False
    assert len(text.splitlines()) == len(told) + 1


def test_the_doctor_makes_a_step_on_every_device(shell: Any) -> None:
    status, text, _ = shell("doctor", "--json")
    assert status == 0
    told = last_json(text)
    assert told["problems"] == []
    assert told["device cpu"]
    assert {"python", "torch", "threads", "instructions", "disk"} <= set(told)


def test_the_doctor_reports_what_does_not_work(
    shell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(device: str) -> None:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr("homolog.machine._one_step", broken)
    status, text, _ = shell("doctor")
    assert status == 1
    assert "PROBLEM: a training step on cpu failed: no kernel image" in text


def test_under_torchrun_the_background_is_refused(
    shell: Any,
    phantom_store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    status, _, news = shell(
        "pretrain", "mae", phantom_store.path, "--out", tmp_path / "r",
        "--background", *TINY,
    )  # fmt: skip
    assert (status, "torchrun" in news) == (2, True)


def test_torchrun_trains_with_two_processes_and_one_run(
    phantom_store: Store, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        "--nproc-per-node", "2", "-m", "homolog.cli", "pretrain", "s2dc",
        str(phantom_store.path), "--out", str(out), "--steps", "3", *TINY,
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=200, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    run = Run.open(out)
    assert run.state() == "finished"
    assert run.spec["outcome"]["result"]["steps"] == 3
    assert (out / "model" / "encoder.safetensors").exists()
