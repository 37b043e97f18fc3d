"""A run's folder tells the truth, whatever happened to its processes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from each import each
from homolog.errors import UnusableInput
from homolog.events import (
    Event,
    Failed,
    Finished,
    Note,
    Progress,
    Step,
    Stopped,
    Validated,
)
from homolog.runs.run import Journal, Run, find_runs, left_out
from homolog.writing import FileLock, is_locked

CONFIG = {"method": "mae", "seed": 3, "store_hashes": ["abc"]}


def test_a_new_run_says_what_was_asked_for(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "r", "pretrain", CONFIG)
    spec = json.loads((tmp_path / "r" / "run.json").read_text())
    assert spec["kind"] == "pretrain"
    assert spec["config"] == CONFIG
    assert (spec["seed"], spec["store_hash"]) == (3, ["abc"])
    assert {"homolog", "python", "torch", "numpy"} <= set(spec["versions"])
    assert (run.state(), run.pid(), run.silence_s()) == ("new", 0, None)
    assert Run.open(tmp_path / "r").folder == run.folder


@each(
    "last, state",
    [
        (Finished({"a": 1}), "finished"),
        (Stopped(3), "stopped"),
        (Failed("x"), "failed"),
        (Step(1, 2, {"a": 0.5}), "crashed"),
        (None, "crashed"),
    ],
)
def test_the_state_follows_from_the_last_word(
    tmp_path: Path, last: Event | None, state: str
) -> None:
    run = Run.create(tmp_path / "r", "pretrain", {})
    lock = run.lock()
    assert lock.acquire()
    run.begin_session()
    assert run.state() == "running"
    run.ask("pause")
    assert run.state() == "paused"
    if last is not None:
        run.journal.append(last)
    assert run.state() == "paused"
    lock.release()
    assert run.state() == state
    assert run.silence_s() is not None


def test_a_word_of_an_earlier_session_does_not_count_for_a_crashed_one(
    tmp_path: Path,
) -> None:
    run = Run.create(tmp_path / "r", "pretrain", {})
    for word in (Stopped(3), Note("session 2")):
        run.begin_session()
        run.journal.append(word)
    assert run.state() == "crashed"


def test_a_lock_is_held_by_one_and_freed_by_death(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_locked(path)
    program = (
        "import sys, time; from pathlib import Path\n"
        "from homolog.writing import FileLock\n"
        f"print(FileLock(Path({str(path)!r})).acquire(), flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program.replace("print(F", "x = F", 1).replace(
            ".acquire(), flush=True)", "; print(x.acquire(), flush=True)")],
        stdout=subprocess.PIPE,
    ) as holder:  # fmt: skip
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == b"True"
        assert is_locked(path)
        mine = FileLock(path)
        assert not mine.acquire()
        holder.kill()
        holder.wait()
        assert not is_locked(path)
        assert mine.acquire()
        mine.release()
        mine.release()
    assert not is_locked(path)


def test_a_run_worth_keeping_is_not_overwritten(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "r", "pretrain", {})
    (run.folder / "checkpoints").mkdir()
    with pytest.raises(UnusableInput, match="homolog runs resume"):
        Run.create(tmp_path / "r", "pretrain", {})


def test_a_run_that_never_saved_anything_is_replaced(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "r", "pretrain", {"a": 1})
    run.begin_session()
    run.journal.append(Failed("bad input"))
    again = Run.create(tmp_path / "r", "finetune", {"a": 2})
    assert again.state() == "new"
    assert again.spec["kind"] == "finetune"
    assert again.journal.last() is None


def test_a_running_run_is_not_replaced(tmp_path: Path) -> None:
    lock = Run.create(tmp_path / "r", "pretrain", {}).lock()
    assert lock.acquire()
    with pytest.raises(UnusableInput, match="running"):
        Run.create(tmp_path / "r", "pretrain", {})
    lock.release()


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("precious")
    with pytest.raises(UnusableInput, match="not empty and holds no run"):
        Run.create(tmp_path, "pretrain", {})
    with pytest.raises(UnusableInput, match="is a file"):
        Run.create(tmp_path / "thesis.doc", "pretrain", {})
    with pytest.raises(UnusableInput, match=r"has no run\.json"):
        Run.open(tmp_path)
    assert (tmp_path / "thesis.doc").read_text() == "precious"


def test_a_damaged_spec_is_told(tmp_path: Path) -> None:
    Run.create(tmp_path / "r", "pretrain", {})
    (tmp_path / "r" / "run.json").write_text('{"kind": ')
    with pytest.raises(UnusableInput, match=r"run\.json is damaged"):
        Run.open(tmp_path / "r")


def test_runs_are_found_below_a_folder(tmp_path: Path) -> None:
    for name in ("b", "a/x", ".hidden/y"):
        Run.create(tmp_path / name, "pretrain", {})
    (tmp_path / "b" / "checkpoints" / "run").mkdir(parents=True)
    found = [run.folder.relative_to(tmp_path).as_posix() for run in find_runs(tmp_path)]
    assert found == ["a/x", "b"]
    assert len(list(find_runs(tmp_path / "b"))) == 1


def test_events_come_back_and_stay_strict_json(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "events.jsonl")
    written: list[Event] = [
        Progress("reading", 1, 2, "é\n"),
        Validated(1, {"hd95": math.inf, "dice": 0.5}),
        Step(1, 2, {"a": 0.1}, {"std": math.nan}),
        Finished({"x": [1, {"y": None}]}),
    ]
    for event in written:
        journal.append(event)
    for line in (tmp_path / "events.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(name))
    back = [event for _, event in journal.read()]
    assert back[0] == written[0]
    assert back[3] == journal.last() == written[3]
    assert isinstance(back[1], Validated)
    assert back[1].metrics["dice"] == 0.5
    assert math.isnan(back[1].metrics["hd95"])


def test_a_line_torn_by_a_kill_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    journal = Journal(path)
    journal.append(Note("one"))
    with path.open("a") as file:
        file.write('{"event": "step", "ind')
    assert [e for _, e in journal.read()] == [Note("one")]
    journal.append(Note("two"))
    with path.open("a") as file:
        file.write('{"event": "from a newer version"}\n[1]\n')
    assert [e for _, e in journal.read()] == [Note("one"), Note("two")]
    assert journal.last() == Note("two")


def test_the_last_event_is_found_behind_very_long_ones(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "events.jsonl")
    journal.append(Note("x" * 300_000))
    assert journal.last() == Note("x" * 300_000)
    journal.append(Stopped(4))
    assert journal.last() == Stopped(4)


def test_a_run_is_told_what_to_leave_out(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "job", "predict", {})
    assert left_out(run.folder) == frozenset()
    run.leave_out(["/x/a.nii"])
    run.leave_out(["/x/b.nii"])
    assert left_out(run.folder) == {"/x/a.nii", "/x/b.nii"}
    (run.folder / "left_out").write_text("[1")
    assert left_out(run.folder) == frozenset()
