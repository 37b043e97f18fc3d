"""Jobs in their own processes: stopped, paused, killed and resumed from outside."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from homolog.errors import JobError, UnusableInput
from homolog.events import Failed, Finished, Note, Saved, Step, Stopped
from homolog.model_files.folder import generations
from homolog.runs import launch
from homolog.runs.jobs import JOBS, job_of
from homolog.runs.run import Run
from homolog.runs.worker import StopFlag, execute

TOY = Path(__file__).with_name("toy_worker.py")


@pytest.fixture(autouse=True)
def toy_jobs(warm_workers: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(JOBS, "toy", "toy_training:job")
    monkeypatch.setitem(JOBS, "failing", "toy_training:failing_job")
    monkeypatch.setattr(launch, "WORKER", (sys.executable, str(TOY)))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    for child in launch._children:
        child.kill()
        child.wait()
    launch._reap()


def toy_run(folder: Path, steps: int, step_s: float = 0.0, **training: Any) -> Run:
    config = {
        "seed": 1,
        "step_s": step_s,
        "training": {"steps": steps, "batch_size": 4, "log_every": 1, **training},
    }
    return Run.create(folder, "toy", config)


def wait_for_step(run: Run, index: int, timeout_s: float = 60.0) -> Step:
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        step = run.last_step()
        if step is not None and step.index >= index:
            return step
        time.sleep(0.02)
    raise AssertionError(f"no step {index}; log: {run.log.read_text()}")


def test_a_run_in_this_process_tells_and_writes_the_same(tmp_path: Path) -> None:
    run = toy_run(tmp_path / "r", 12)
    told = list(execute(run))
    assert isinstance(told[-1], Finished)
    assert told[-1].result["steps"] == 12
    assert [event for _, event in run.journal.read()] == told
    assert run.state() == "finished"
    assert run.spec["outcome"]["result"]["steps"] == 12
    assert list(launch.follow(run)) == told
    assert (run.pid(), run.is_alive()) == (os.getpid(), False)


@pytest.mark.skipif(sys.platform == "win32", reason="modes of POSIX")
def test_a_worker_writes_for_its_user_alone(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        run = toy_run(tmp_path / "r", 3)
        launch.start(run)
        assert isinstance(list(launch.follow(run))[-1], Finished)
    finally:
        os.umask(before)
    files = [run.folder, *run.folder.rglob("*")]
    assert len(files) > 6
    assert {p.name for p in files if p.stat().st_mode & 0o077} == set()


def test_a_flag_stops_it_and_a_resume_finishes_it(tmp_path: Path) -> None:
    run, whole = toy_run(tmp_path / "r", 60, 0.01), toy_run(tmp_path / "whole", 60)
    flag, told = StopFlag(), []
    for event in execute(run, flag):
        told.append(event)
        if isinstance(event, Step):
            flag.set()
    assert isinstance(told[-1], Stopped)
    assert sum(isinstance(event, Stopped) for event in told) == 1
    assert run.state() == "stopped"
    rest = list(execute(Run.open(run.folder)))
    assert isinstance(rest[-1], Finished)
    assert any(isinstance(e, Note) and "resuming after step" in e.text for e in rest)
    assert list(launch.follow(run)) == rest
    assert list(launch.follow(run, whole=True)) == told + rest
    list(execute(whole))
    assert last_weights(run) == last_weights(whole)


def last_weights(run: Run) -> bytes:
    return (generations(run.folder)[0] / "state.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("how", "kind", "text"),
    [
        ("job", "failed", "the toy broke on purpose"),
        ("input", "unusable", "the toy broke on purpose"),
        ("bug", "failed", "'the toy broke on purpose'"),
    ],
)
def test_an_error_becomes_one_sentence_and_a_traceback_in_the_log(
    tmp_path: Path, how: str, kind: str, text: str
) -> None:
    run = Run.create(tmp_path / "r", "failing", {"how": how})
    told = list(execute(run))
    assert isinstance(told[-1], Failed)
    assert told[-1].message == text
    assert run.state() == "failed"
    assert run.spec["outcome"]["error_kind"] == kind
    assert "failing_job" in run.log.read_text()


def test_an_unknown_kind_is_a_failure_that_lists_the_known(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "r", "juggle", {})
    last = list(execute(run))[-1]
    assert isinstance(last, Failed)
    assert "finetune, pretrain" in last.message or "pretrain" in last.message


def test_every_kind_of_job_can_be_imported() -> None:
    for kind in ("pretrain", "finetune"):
        assert callable(job_of(kind))


def test_a_second_worker_is_refused(tmp_path: Path) -> None:
    run = toy_run(tmp_path / "r", 5)
    lock = run.lock()
    assert lock.acquire()
    with pytest.raises(JobError, match="another process"):
        next(execute(run))
    with pytest.raises(JobError, match="being worked on"):
        launch.start(run)
    lock.release()


def test_killed_again_and_again_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """SIGKILL at random moments; with a checkpoint per step most hit a save."""
    whole = toy_run(tmp_path / "whole", 80, checkpoint_every=1)
    list(execute(whole))
    run = toy_run(tmp_path / "r", 80, 0.03, checkpoint_every=1)
    moments = random.Random(0)
    reached = 0
    for _ in range(2):
        pid = launch.start(run)
        reached = wait_for_step(run, reached + 2).index
        time.sleep(moments.uniform(0.0, 0.1))
        os.kill(pid, signal.SIGKILL)
        assert launch._gone(run, 10.0)
        assert run.state() == "crashed"
    last = list(launch.follow(run))[-1]
    assert isinstance(last, Failed)
    assert "gone without a last word after step" in last.message
    pid = launch.resume(run)
    assert isinstance(list(launch.follow(run))[-1], Finished)
    assert last_weights(run) == last_weights(whole)
    table = "metrics.csv"
    assert (run.folder / table).read_bytes() == (whole.folder / table).read_bytes()


def test_a_disk_that_fills_leaves_the_last_good_checkpoint_and_says_why(
    tmp_path: Path,
) -> None:
    whole = toy_run(tmp_path / "whole", 30, checkpoint_every=10)
    list(execute(whole))
    run = toy_run(tmp_path / "r", 30, checkpoint_every=10)
    free = resource.getrlimit(resource.RLIMIT_FSIZE)
    told = []
    try:
        for event in execute(run):
            told.append(event)
            if isinstance(event, Saved):  # from now on no large file fits
                resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, free[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, free)
    assert isinstance(told[-1], Failed)
    assert "could not be saved" in told[-1].message
    assert "step_00000010 stays and can resume" in told[-1].message
    assert run.state() == "failed"
    assert isinstance(list(execute(run))[-1], Finished)
    assert last_weights(run) == last_weights(whole)


def test_stop_pause_and_resume_from_another_process(tmp_path: Path) -> None:
    run, whole = toy_run(tmp_path / "r", 150, 0.02), toy_run(tmp_path / "whole", 150)
    list(execute(whole))
    launch.start(run)
    wait_for_step(run, 3)
    assert run.state() == "running"
    launch.pause(run)
    time.sleep(0.5)
    assert run.state() == "paused"
    paused_at = run.journal.size
    time.sleep(0.6)
    assert run.journal.size == paused_at
    with pytest.raises(JobError, match="paused"):
        launch.resume(run)
    launch.unpause(run)
    wait_for_step(run, (run.last_step() or Step(0, 0, {})).index + 5)
    assert launch.stop(run, 20.0) == "stopped"
    assert run.wish() == ""
    assert isinstance(run.journal.last(), Stopped)
    assert launch.stop(run) == "stopped"
    launch.resume(run)
    assert isinstance(list(launch.follow(run))[-1], Finished)
    assert run.state() == "finished"
    with pytest.raises(UnusableInput, match="has finished"):
        launch.resume(run)
    with pytest.raises(JobError, match="not running"):
        launch.pause(run)
    assert last_weights(run) == last_weights(whole)


def test_sigterm_saves_and_stops_and_a_paused_run_hears_it(tmp_path: Path) -> None:
    run = toy_run(tmp_path / "r", 500, 0.02)
    pid = launch.start(run)
    wait_for_step(run, 3)
    launch.pause(run)
    time.sleep(0.3)
    os.kill(pid, signal.SIGTERM)
    assert launch._gone(run, 20.0)
    assert run.state() == "stopped"
    assert generations(run.folder)
    assert launch._children == [] or launch._children[0].wait() == 130


def test_a_run_outlives_the_process_that_started_it(tmp_path: Path) -> None:
    run = toy_run(tmp_path / "r", 40, 0.02)
    program = (
        f"import sys; sys.path.insert(0, {str(TOY.parent)!r}); import toy_worker\n"
        "from homolog.runs import launch; from homolog.runs.run import Run\n"
        f"launch.WORKER = (sys.executable, {str(TOY)!r})\n"
        f"print(launch.start(Run.open({str(run.folder)!r})))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.is_alive()
    assert run.pid() == int(done.stdout)
    assert isinstance(list(launch.follow(run))[-1], Finished)


def test_a_helper_ends_with_its_parent(tmp_path: Path) -> None:
    run = toy_run(tmp_path / "r", 5000, 0.02)
    launch.start(run, with_parent=True)
    wait_for_step(run, 1)
    child = launch._children[-1]
    assert child.stdin is not None
    child.stdin.close()  # as when the window is gone
    assert launch._gone(run, 15.0)
    assert run.state() == "stopped"


def test_a_worker_that_dies_at_once_is_told_with_its_last_words(tmp_path: Path) -> None:
    run = toy_run(tmp_path / "r", 5)
    (run.folder / "run.json").write_text("{}")
    with pytest.raises(UnusableInput, match="damaged"):
        launch.start(run)
    run = toy_run(tmp_path / "q", 5)
    launch.WORKER = (sys.executable, "-c", "raise SystemExit('no such thing')")
    with pytest.raises(
        JobError, match=r"ended at once \(exit status 1\): no such thing"
    ):
        launch.start(run)
