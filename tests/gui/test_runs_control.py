"""The list of runs tells the truth of real processes; no Qt here."""

from __future__ import annotations

import os
import random
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from toy_runs import is_gone, slow_run, wait_for, wait_for_step

from homolog.errors import JobError
from homolog.events import Failed, Finished, Preview, Step, Validated
from homolog.gui.dock import question_about
from homolog.gui.runs import control as runs_control
from homolog.gui.runs.control import RunList
from homolog.gui.runs.training_screen import (
    FEWEST_STEPS,
    bar_of,
    health_of,
    is_settled,
    offered,
    shown_state,
    title_of,
)
from homolog.gui.shared.runs import Rounds, RunStory, cases_words, earlier_curve
from homolog.runs import launch
from homolog.runs.run import Run
from homolog.writing import folder_bytes

pytestmark = pytest.mark.usefixtures("workers")


def test_every_run_is_listed_also_nested_and_damaged_ones(home: Path) -> None:
    runs = home / "runs"
    slow_run(runs / "a")
    slow_run(runs / "study" / "b")
    slow_run(runs / "c")
    (runs / "c" / "run.json").write_text("{")
    rows = {row.name: row for row in RunList(runs).read()}
    assert set(rows) == {"a", "study/b", "c"}
    assert rows["a"].state == "new"
    assert rows["a"].actions == {"open", "log", "follow", "resume", "delete"}
    assert rows["c"].state == "damaged"
    assert "damaged" in rows["c"].tooltip
    assert RunList(home / "nowhere").read() == []


def test_a_killed_worker_is_told_and_resume_goes_on(home: Path) -> None:
    """kill -9 at a random step, as the system does when memory is short."""
    run = slow_run(home / "runs" / "r", steps=60)
    listed, story = RunList(home / "runs"), RunStory(run.folder)
    pid = launch.start(run)
    wait_for_step(run, random.Random().randint(3, 9))
    row = listed.read()[0]
    assert (row.state, row.total) == ("running", 60)
    assert {"pause", "stop", "follow"} <= row.actions
    assert "delete" not in row.actions
    with pytest.raises(JobError, match="stop it first"):
        runs_control.check_deletable(run.folder, home / "runs")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not run.is_alive(), "death")
    view = story.read_on()
    assert view.state == "crashed"
    assert view.trouble is not None
    assert view.trouble.cause == "killed"
    assert "lack of memory" in view.trouble.what
    assert f"The state of step {view.saved_step} is saved" in view.trouble.advice
    assert offered("crashed", False) >= {"resume", "log", "open"}
    launch.resume(run)
    wait_for(lambda: run.state() == "finished", "the end")
    view = story.read_on()
    assert (view.state, view.step, view.trouble) == ("finished", 60, None)
    steps = view.losses[0].x
    assert steps[0] == 1
    assert len(set(steps)) == len(steps)
    row = listed.read()[0]
    assert row.state == "finished"
    assert 2 <= len(row.losses) <= 60
    assert row.losses[0] > row.losses[-1]


def test_pause_go_on_stop_and_keep(home: Path) -> None:
    run = slow_run(home / "runs" / "r")
    launch.start(run)
    wait_for_step(run, 2)
    runs_control.pause(run.folder)
    wait_for(lambda: RunStory(run.folder).read_on().state == "paused", "pause")
    runs_control.go_on(run.folder)
    wait_for_step(run, (run.last_step() or Step(0, 0, {})).index + 3)
    runs_control.ask_to_stop(run.folder)
    wait_for(lambda: run.state() == "stopped", "stop")
    assert RunStory(run.folder).read_on().saved_step == run.last_step().index  # type: ignore[union-attr]
    with pytest.raises(JobError, match="not running"):
        runs_control.pause(run.folder)
    runs_control.ask_to_stop(run.folder)  # of a stopped one: nothing happens
    assert run.wish() == ""


def test_stop_now_ends_even_a_deaf_worker_and_calls_it_stopped(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runs_control, "_PATIENCE_S", 0.2)
    run = slow_run(home / "runs" / "r", step_s=600.0)
    pid = launch.start(run)
    wait_for(lambda: run.journal.size > 0, "a first word")
    assert runs_control.stop_now(run.folder) == "stopped"
    assert not run.is_alive()
    wait_for(lambda: is_gone(pid), "the end of the process")


def test_the_best_score_and_the_picture_are_found(home: Path) -> None:
    run = slow_run(home / "runs" / "r")
    listed, story = RunList(home / "runs"), RunStory(run.folder)
    run.journal.append(Step(2, 10, {"a": 1.0, "b": 0.5}))
    run.journal.append(Validated(2, {"dice": 0.5, "dice liver": 0.4}, is_best=True))
    run.journal.append(Preview(str(run.folder / "previews" / "x.png"), "features"))
    assert listed.read()[0].best == "Dice 0.500 at step 2, of 1 round so far"
    run.journal.append(Validated(4, {"dice": 0.4}, is_best=False))
    run.journal.append(Validated(6, {"dice": 0.8}, is_best=True))
    smoothed = "Dice 0.567 around step 4, mean of 3 rounds"
    assert listed.read()[0].best == smoothed
    assert listed.read()[0].cells[2].endswith("\nDice 0.567")
    view = story.read_on()
    assert view.preview == (run.folder / "previews" / "x.png", "features", 2)
    assert [c.name for c in view.losses] == ["loss", "a", "b"]
    assert [c.name for c in view.validation] == ["dice"]
    assert list(view.validation[0].y) == [0.5, 0.4, 0.8]
    assert view.best == smoothed
    assert earlier_curve(run.folder).role == "earlier"  # type: ignore[union-attr]


def test_hours_of_steps_are_thinned_but_nothing_else_is_lost(home: Path) -> None:
    run = slow_run(home / "runs" / "r")
    rest = (
        '"total": 60000, "losses": {"a": 1.5}, "monitors": {"tokens_std": 0.9, '
        '"tokens_rank": 20.0}, "seconds_per_step": 0.5, "remaining_s": 9.0, '
        f'"x": "{"y" * 90}"}}\n'
    )
    best = '"metrics": {"dice": 0.5}, "is_best": true}\n'
    with run.journal._path.open("w") as file:
        for i in range(1, 60_001):
            file.write(f'{{"event": "step", "index": {i}, {rest}')
            if i % 20_000 == 0:
                file.write(f'{{"event": "validated", "index": {i}, {best}')
    view = RunStory(run.folder).read_on(budget_s=60.0)
    assert not view.behind
    assert len(view.validation[0].x) == 3
    assert len(view.losses[0].x) <= 2000
    assert view.losses[0].x[-1] > 59_900


def test_a_flood_is_read_in_slices(home: Path) -> None:
    run = slow_run(home / "runs" / "r")
    for i in range(300):
        run.journal.append(Step(i + 1, 300, {"a": 1.0}))
    story = RunStory(run.folder)
    view = story.read_on(budget_s=0.0)
    assert view.behind
    assert view.step < 300
    while view.behind:
        view = story.read_on(budget_s=0.01)
    assert view.step == 300


def test_words_change_before_the_run_does(home: Path) -> None:
    run = slow_run(home / "runs" / "r", steps=30)
    launch.start(run)
    wait_for_step(run, 2)
    view = RunStory(run.folder).read_on()
    assert shown_state(view, "") == "running"
    assert shown_state(view, "stop") == "stopping"
    assert shown_state(view, "pause") == "pausing"
    assert offered("stopping", False) == {"stop_now", "log", "open"}
    assert title_of(view, "running").startswith("Slow r, step ")
    done, total, words = bar_of(view, "running")
    assert 0 < done < total == 30
    assert words.startswith("▶ running")
    # Thirty steps tell nothing, and nothing good is said of one that failed.
    assert health_of(view) == ("none", f"Too early to judge: {view.step} steps so far.")
    long = replace(view, step=FEWEST_STEPS)
    assert health_of(long)[0] == "good"
    for state in ("failed", "crashed"):
        light, told = health_of(replace(long, state=state))
        assert light == "none"
        assert "healthy" not in told
    assert "On CPU, batch 4" in view.device or view.device.startswith("CPU")
    assert is_settled("stop", "stopped")
    assert not is_settled("resume", "stopped")


@pytest.mark.parametrize(
    ("how", "text", "cause"),
    [
        ("input", "the store holds no scans", "unusable"),
        ("memory", "CUDA out of memory", "gpu_memory"),
        ("job", "20 steps in a row up to step 9 were not finite", "nan"),
    ],
)
def test_a_failure_says_what_broke(
    home: Path,
    how: str,
    text: str,
    cause: str,
) -> None:
    run = Run.create(home / "runs" / "r", "broken", {"how": how, "text": text})
    launch.start(run)
    wait_for(lambda: run.state() == "failed", "the failure")
    view = RunStory(run.folder).read_on()
    assert view.trouble is not None
    assert view.trouble.cause == cause
    assert RunList(home / "runs").read()[0].reason == text
    assert text in runs_control.read_log(run.folder)


def test_a_deleted_folder_is_no_crash(home: Path) -> None:
    assert RunStory(home / "runs" / "gone").read_on().state == "deleted"
    outside = slow_run(home / "elsewhere")
    with pytest.raises(JobError, match="not in the runs folder"):
        runs_control.check_deletable(outside.folder, home / "runs")
    assert folder_bytes(outside.folder) > 0
    assert "empty" in runs_control.read_log(outside.folder)


def test_only_trainings_started_here_are_asked_about(home: Path) -> None:
    mine, helper = slow_run(home / "runs" / "mine"), slow_run(home / "h")
    launch.start(mine)
    launch.start(helper, with_parent=True)
    assert [run.folder for run in launch.started_here()] == [mine.folder]
    wait_for_step(mine, 3)
    question = question_about(launch.started_here())
    assert "Slow mine, step " in question.text
    assert "is saved" in question.text
    assert question.default == "keep"
    assert [key for key, _ in question.answers] == ["keep", "stop", "cancel"]
    launch.stop(mine, 10.0)
    assert launch.started_here() == []


def test_finished_and_failed_rows_are_remembered(home: Path) -> None:
    run = slow_run(home / "runs" / "r")
    run.begin_session()
    run.journal.append(Failed("x"))
    listed = RunList(home / "runs")
    first = listed.read()[0]
    assert listed.read()[0] is first
    run.journal.append(Finished({}))
    assert listed.read()[0].state == "finished"


def test_the_best_of_a_smoothed_curve_is_told_with_its_spread() -> None:
    rounds = Rounds()
    assert rounds.words() == ""
    for number, dice in enumerate((0.2, 0.9, 0.1, 0.6, 0.7, 0.65, 0.5)):
        metrics = {"dice": dice, "worst": dice / 2, "dice liver": 0.99}
        rounds.add(Validated(10 * number, metrics, is_best=dice in (0.2, 0.9)))
    words = rounds.words()
    assert words.startswith("Dice 0.650 around step 40, mean of 3 rounds, ±")
    assert words.endswith("between rounds, worst case 0.35")
    # resumed from step 20: those rounds are done again
    rounds.add(Validated(20, {"dice": 0.1}, is_best=False))
    assert "around step 10" in rounds.words()
    lower = Rounds()
    for step, error in ((1, 5.0), (2, 4.0), (3, 6.0), (4, 9.0)):
        lower.add(Validated(step, {"mae": error}, is_best=step <= 2))
    assert "around step 2" in lower.words()
    watched = Rounds()
    watched.add(Validated(1, {"dice": 0.5}, is_best=False))
    assert watched.words() == "", "no round decides what is kept"


def test_few_validation_cases_are_said_to_be_few() -> None:
    assert cases_words(0) == ""
    assert "6 cases: too few" in cases_words(6)
    assert cases_words(40) == "Validated on 40 cases."
