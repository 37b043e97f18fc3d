"""Minutes instead of steps: kept, whatever happens to the speed, and repeatable."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from each import each
from homolog.config import ConfigError
from homolog.events import Note, Started, Step, Validated
from homolog.model_files.folder import generations, load_state
from homolog.training import course as budget
from homolog.training import loop, planning, validation
from homolog.training.config import TrainingConfig
from homolog.training.course import (
    Course,
    Revision,
    affordable_interval,
    check_revisions,
    steps_within,
    validations_left,
)
from homolog.training.loop import train
from toy_training import ToyFeed, ToyTrainable, run_all, toy


class Clock:
    """Stands still but for what a step or a case is said to take."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        mine = SimpleNamespace(
            monotonic=lambda: self.now, perf_counter=lambda: self.now
        )
        for room in (budget, loop, planning, validation):
            monkeypatch.setattr(room, "time", mine)


class Timed(ToyTrainable):
    """A step takes as long as it is told, by how many were made."""

    def __init__(self, clock: Clock, seconds: Callable[[int], float]) -> None:
        super().__init__()
        self.load_state_dict(toy().state_dict())
        self.clock, self.seconds = clock, seconds

    def after_step(self, progress: float) -> None:
        self.clock.now += self.seconds(int(self.pointer))
        super().after_step(progress)


class Cases:
    """A validation of cases that take so many seconds each."""

    def __init__(
        self, clock: Clock, count: int, case_s: float, guess: float = 0
    ) -> None:
        self.clock, self.count, self.case_s, self.guess = clock, count, case_s, guess
        self.spent_s, self.seen, self.shares = 0.0, [], []

    def __call__(
        self,
        done: int,
        go_on: Callable[[int], bool] = lambda seen: True,
        share: float = 1.0,
    ) -> dict[str, float]:
        for number in range(self.count):
            if number and not go_on(number):
                break
            self.clock.now += self.case_s * share
            self.spent_s += self.case_s * share
            seen = number + 1
        self.seen.append(seen)
        self.shares.append(share)
        return {"dice": done / 1e6}

    def guess_s(self, sample_s: float) -> float:
        return self.guess * sample_s


def slower_then_faster(step: int) -> float:
    return 4.0 if step < 20 else 16.0 if step < 30 else 2.0


def final_bytes(folder: Path) -> bytes:
    return (generations(folder)[0] / "state.safetensors").read_bytes()


def plan_in(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "plan.json").read_text())
    return content


def trained(
    folder: Path, clock: Clock, model: nn.Module, minutes: float = 10.0, **settings: Any
) -> Any:
    settings = {"log_every": 5, "warmup_steps": 20, **settings}
    settings.setdefault("began", clock.now)
    began = clock.now
    result, events = run_all(model, ToyFeed(), folder, minutes=minutes, **settings)
    return result, events, clock.now - began


def test_the_minutes_are_kept_whatever_happens_to_the_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    model = Timed(clock, slower_then_faster)
    result, events, spent_s = trained(tmp_path, clock, model)
    assert 0.95 * 600 < spent_s <= 600
    assert result.steps == result.total_steps
    totals = [r["total_steps"] for r in plan_in(tmp_path)["revisions"]]
    assert min(totals) < 110 < plan_in(tmp_path)["total_steps"] < 150 < max(totals)
    told = [e.text for e in events if isinstance(e, Note)]
    assert any("steps take 16 s now" in text for text in told)
    rates = [
        float(line.split(",")[3])
        for line in (tmp_path / "metrics.csv").read_text().splitlines()[1:]
    ]
    peak = rates.index(max(rates))
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] < 0.02 * max(rates)


@pytest.mark.parametrize("lost_after", [14, 26, 45])
def test_killed_and_resumed_equals_uninterrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost_after: int
) -> None:
    clock = Clock(monkeypatch)
    options = {"checkpoint_every": 6, "validate_every": 10, "best_metric": "dice"}
    whole = tmp_path / "whole"
    cases = Cases(clock, 20, 1.0, guess=1.0)
    result, _, _ = trained(
        whole, clock, Timed(clock, slower_then_faster), validate=cases, **options
    )
    parts = tmp_path / "parts"
    config = TrainingConfig(
        minutes=10.0, batch_size=4, log_every=5, warmup_steps=20, checkpoint_every=6,
        validate_every=10,
    )  # fmt: skip
    killed = train(
        Timed(clock, slower_then_faster), ToyFeed(), config, folder=parts, seed=7,
        device=torch.device("cpu"), validate=Cases(clock, 20, 1.0, guess=1.0),
        best_metric="dice",
    )  # fmt: skip
    for event in killed:
        if isinstance(event, Step) and event.index >= lost_after:
            break
    killed.close()
    kept = load_state(parts)
    assert kept is not None
    assert kept.step < lost_after
    again = Cases(clock, 20, 1.0, guess=1.0)
    second, _, _ = trained(
        parts, clock, Timed(clock, slower_then_faster), validate=again, **options
    )
    assert second.steps == result.steps
    assert plan_in(parts)["revisions"] == plan_in(whole)["revisions"]
    assert set(again.seen) <= set(cases.seen)
    assert second.best == result.best
    assert final_bytes(parts) == final_bytes(whole)
    assert (parts / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()


def test_what_was_decided_before_a_kill_is_repeated_on_a_slower_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    whole, again = tmp_path / "whole", tmp_path / "again"
    result, _, _ = trained(whole, clock, Timed(clock, slower_then_faster))
    again.mkdir()
    (again / "plan.json").write_bytes((whole / "plan.json").read_bytes())
    monkeypatch.setattr(budget.Budget, "is_time_to_look", lambda self: False)
    second, _, _ = trained(again, clock, Timed(clock, lambda step: 30.0))
    assert second.steps == result.steps
    assert final_bytes(again) == final_bytes(whole)


@each("case_s, guess", [(0.01, 0.0), (1.0, 1.0), (4.0, 0.0), (12.0, 4.0)])
def test_validations_take_a_tenth_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case_s: float, guess: float
) -> None:
    clock = Clock(monkeypatch)
    cases = Cases(clock, 16, case_s, guess)
    result, events, spent_s = trained(
        tmp_path, clock, Timed(clock, lambda step: 3.0), validate=cases,
        best_metric="dice", validate_every=20,
    )  # fmt: skip
    assert spent_s <= 600
    assert cases.spent_s <= 60 + case_s
    assert cases.shares == [1.0] * len(cases.seen)
    assert len(set(cases.seen)) == 1  # scores of one set of cases can be compared
    assert result.validated_cases == cases.seen[0]
    told = [e for e in events if isinstance(e, Validated)]
    assert len(told) == len(cases.seen)  # none was thrown away
    assert told[-1].index == result.steps
    assert cases.seen[0] == (16 if case_s < 0.1 else pytest.approx(4, abs=3))


def test_of_a_scan_that_takes_longer_than_that_a_part_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    cases = Cases(clock, 16, 300.0, guess=400.0)
    _, _, spent_s = trained(
        tmp_path, clock, Timed(clock, lambda step: 3.0), validate=cases,
        best_metric="dice", validate_every=20,
    )  # fmt: skip
    assert spent_s <= 600
    assert cases.seen == [1]
    assert cases.spent_s <= 60
    assert cases.shares == [pytest.approx(0.16, rel=0.1)]
    assert plan_in(tmp_path)["validate_share"] == cases.shares[0]


def test_far_too_few_steps_are_said_before_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    slow = Timed(clock, lambda step: 10.0)
    result, events, _ = trained(tmp_path / "few", clock, slow, steps=1000)
    start = next(i for i, e in enumerate(events) if isinstance(e, Started))
    warned = [
        e.text for e in events[:start] if isinstance(e, Note) and e.level == "warning"
    ]
    assert len(warned) == 1
    assert "10 minutes are about 56 steps here; the recipe has 1000" in warned[0]
    assert result.few_steps == warned[0]
    result, events, _ = trained(tmp_path / "enough", clock, slow, steps=200)
    assert result.few_steps == ""


def test_a_pause_is_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    config = TrainingConfig(minutes=10.0, batch_size=4, log_every=1)
    job = train(
        Timed(clock, lambda step: 3.0), ToyFeed(), config, folder=tmp_path, seed=7,
        device=torch.device("cpu"), began=clock.now - 60.0,
    )  # fmt: skip
    began, last = clock.now, None
    for event in job:
        if isinstance(event, Step):
            last = event
            if event.index == 50:
                clock.now += 3600.0
    assert last is not None
    assert last.index == last.total > 150
    # what came before the training counts: 540 s are left
    assert 0.95 * 540 < clock.now - began - 3600.0 <= 540


def test_making_ready_again_makes_no_step_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    model = Timed(clock, lambda step: 4.0)
    first, _, _ = trained(tmp_path, clock, model, stop_after=60, log_every=1)
    assert first.stopped
    again = Timed(clock, lambda step: 4.0)
    second, _, _ = trained(tmp_path, clock, again, began=clock.now - 120.0)
    assert second.steps == pytest.approx(first.total_steps, abs=3)


def test_a_run_of_before_keeps_its_number_of_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    old = {
        "total_steps": 30, "batch_size": 4, "accumulate": 1, "precision": "fp32",
        "seconds_per_step": 0.5, "peak_memory_bytes": 0, "validation_s": 2.0,
    }  # fmt: skip
    (tmp_path / "plan.json").write_text(json.dumps(old))
    result, _, _ = trained(tmp_path, clock, Timed(clock, lambda step: 99.0))
    assert result.steps == 30


def test_a_course_without_decisions_is_the_step_itself() -> None:
    course = Course(7)
    assert [course.position(i) for i in range(8)] == list(range(8))
    assert [course.progress(i) for i in range(8)] == [i / 7 for i in range(8)]


def test_a_decision_changes_the_pace_but_makes_no_jump() -> None:
    course = Course(100, (Revision(20, 60), Revision(40, 400)))
    assert course.total == 400
    assert course.position(20) == pytest.approx(20)
    assert course.position(21) == pytest.approx(22)
    assert course.position(40) == pytest.approx(60)
    assert course.position(220) == pytest.approx(80)
    assert course.progress(400) == 1.0
    places = [course.position(i / 4) for i in range(1601)]
    assert places == sorted(places)


def test_decisions_that_contradict_each_other_are_refused() -> None:
    check_revisions(100, (Revision(20, 60), Revision(40, 400)))
    for wrong in ((Revision(20, 20),), (Revision(20, 60), Revision(60, 90))):
        with pytest.raises(ConfigError, match="after step"):
            check_revisions(100, wrong)


def test_validations_are_counted() -> None:
    assert [validations_left(d, 100, 30) for d in (0, 29, 30, 89, 90, 99)] == [
        4, 4, 3, 2, 1, 1,
    ]  # fmt: skip
    assert validations_left(0, 90, 30) == 3
    assert validations_left(0, 90, 0) == 1
    assert validations_left(90, 90, 30) == 0
    assert affordable_interval(0, 100, 10, 5.0, 1.0) == 20
    assert affordable_interval(0, 100, 10, 1.0, 1.0) == 0
    fitting = steps_within(100.0, 1.0, 10.0, 0.1, 16, 20)
    assert fitting.steps + 10 >= 99
    assert dataclasses.asdict(fitting)["every"] == 20


class Crowded(Timed):
    """Two threads wait for each other from a step on, as where others use the cores."""

    def __init__(self, clock: Clock, first: int) -> None:
        def seconds(step: int) -> float:
            return 18.0 if step >= first and torch.get_num_threads() > 1 else 4.0

        super().__init__(clock, seconds)


@pytest.mark.parametrize("first", [0, 20])
def test_fewer_threads_are_taken_where_others_use_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    clock, before = Clock(monkeypatch), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        result, _, spent_s = trained(tmp_path, clock, Crowded(clock, first))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert spent_s <= 600
    assert result.steps > 100
    plan = plan_in(tmp_path)
    assert plan["threads"] == (2 if first else 1)
    assert [r["threads"] for r in plan["revisions"] if r["threads"]] == [1] * bool(
        first
    )
