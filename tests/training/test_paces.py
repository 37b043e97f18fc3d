"""Parts that learn later than others: untouched until then, exact when resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from each import each
from homolog.events import Note
from homolog.model_files.folder import load_state
from homolog.nn.optim import NEVER, Pace, parameter_groups, scheduled
from homolog.training.config import TrainingConfig
from homolog.training.course import Course, Revision
from homolog.training.stepping import build_optimiser, set_learning_rate
from homolog.views.view import Views
from toy_training import ToyFeed, ToyTrainable, run_all, toy

LATE = Pace(0.5, 0.4, (0.4,))
FIRST = Pace(rises=(0.0, 0.4))
SETTINGS: dict[str, Any] = {
    "steps": 20, "warmup": 0.1, "learning_rate": 0.05, "weight_decay": 0.5,
    "log_every": 1, "dry_run_steps": 0, "precision": "fp32",
}  # fmt: skip


def paced(module: nn.Module, late: Pace = LATE) -> list[dict[str, Any]]:
    return parameter_groups(
        module, 0.5, pace=lambda name: late if name.startswith("body.") else FIRST
    )


class Watched(ToyTrainable):
    """Remembers its body after each step, and what of it had a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.load_state_dict(toy().state_dict())
        self.start = [p.detach().clone() for p in self.body.parameters()]
        self.untouched: list[bool] = []
        self.without: list[bool] = []

    def losses(self, views: Views, progress: float) -> dict[str, Tensor]:
        found = super().losses(views, progress)
        pull = found.pop("pull")  # goes into the body alone
        return {**found, "pull": pull} if pull.requires_grad else found

    def after_step(self, progress: float) -> None:
        body = list(self.body.parameters())
        pairs = zip(body, self.start, strict=True)
        self.untouched.append(all(torch.equal(p, q) for p, q in pairs))
        self.without.append(all(p.grad is None for p in body))
        super().after_step(progress)


def state_of(folder: Path) -> dict[str, Tensor]:
    saved = load_state(folder)
    assert saved is not None
    return saved.tensors


@each("optimizer", ["adamw", "sgd", "larc"])
def test_what_waits_is_bit_for_bit_as_it_came_and_costs_no_gradient(
    tmp_path: Path, optimizer: str
) -> None:
    model = Watched()
    run_all(
        model, ToyFeed(), tmp_path, **SETTINGS, optimizer=optimizer,
        parameter_groups=paced(model),
    )  # fmt: skip
    assert model.untouched == [True] * 8 + [False] * 12
    assert model.without == [True] * 8 + [False] * 12


def test_what_never_learns_stays_and_the_rest_does(tmp_path: Path) -> None:
    model = Watched()
    head = model.head.weight.detach().clone()
    never = Pace(start=NEVER)
    run_all(
        model, ToyFeed(), tmp_path, **SETTINGS, parameter_groups=paced(model, never)
    )
    assert all(model.untouched)
    assert all(model.without)
    assert not torch.equal(head, model.head.weight)


@each("stop_after", [1, 5, 8, 9, 13])
def test_resumed_in_any_phase_ends_with_the_same_bytes(
    tmp_path: Path, whole: Path, stop_after: int
) -> None:
    """In the first rise, at its peak, at the joining, in the second rise, falling."""
    for stop in (stop_after, None):
        model = toy()
        run_all(
            model, ToyFeed(), tmp_path, **SETTINGS, parameter_groups=paced(model),
            stop_after=stop,
        )  # fmt: skip
    ours, theirs = state_of(tmp_path), state_of(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    table = "metrics.csv"
    assert (tmp_path / table).read_bytes() == (whole / table).read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    model = toy()
    run_all(model, ToyFeed(), folder, **SETTINGS, parameter_groups=paced(model))
    return folder


def test_one_pace_for_all_is_the_training_of_before_bit_for_bit(
    tmp_path: Path,
) -> None:
    """Against the update written out: one cosine, AdamW, every weight in each step."""
    settings = {**SETTINGS, "warmup": 0.0, "warmup_steps": 3, "clip_norm": 1.0}
    trained, plain = toy(dropout=0.0), toy(dropout=0.0)
    run_all(trained, ToyFeed(), tmp_path, **settings)
    groups = parameter_groups(plain, 0.5)
    weights = [p for group in groups for p in group["params"]]
    optimiser = torch.optim.AdamW(groups, 0.05, betas=(0.9, 0.999), fused=True)
    feed, cpu = ToyFeed(), torch.device("cpu")
    plain.train()
    for step in range(20):
        views = feed.views(feed.batch(step), cpu)
        loss = torch.stack(list(plain.losses(views, step / 20).values())).sum()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        for group in optimiser.param_groups:
            group["lr"] = 0.05 * scheduled(step, 20, 3, 0.01)
        optimiser.step()
        plain.after_step((step + 1) / 20)
        optimiser.zero_grad(set_to_none=True)
    state = trained.state_dict()
    assert all(torch.equal(state[n], t) for n, t in plain.state_dict().items())


def test_rates_follow_the_course_where_minutes_decide() -> None:
    """A revision spreads what is left: a part joins at its share, not at its step."""
    model = toy()
    config = TrainingConfig(**SETTINGS)
    optimiser = build_optimiser(model, config, paced(model))
    course = Course(20, (Revision(step=4, total_steps=36),))
    learns = []
    for step in range(36):
        set_learning_rate(optimiser, course.position(step), course.planned, config)
        learns.append(next(model.body.parameters()).requires_grad)
        rates = {group["lr"] for group in optimiser.param_groups}
        assert (min(rates) > 0) is learns[-1]
    joined = learns.index(True)
    assert course.progress(joined) >= 0.4 > course.progress(joined - 1)
    assert all(learns[joined:])


class Slow(ToyTrainable):
    """A step takes longer where the body learns."""

    def __init__(self, clock: Any) -> None:
        super().__init__()
        self.load_state_dict(toy().state_dict())
        self.clock = clock

    def losses(self, views: Views, progress: float) -> dict[str, Tensor]:
        learns = next(self.body.parameters()).requires_grad
        self.clock.now += 3.0 if learns else 1.0
        return super().losses(views, progress)


def test_minutes_are_planned_by_both_kinds_of_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_minutes import Clock, plan_in

    clock = Clock(monkeypatch)
    model = Slow(clock)
    began = clock.now
    result, events = run_all(
        model, ToyFeed(), tmp_path, minutes=10.0, warmup=0.1, precision="fp32",
        parameter_groups=paced(model),
    )  # fmt: skip
    plan = plan_in(tmp_path)
    assert plan["phases"] == [[0.4, pytest.approx(1.0)], [1.0, pytest.approx(3.0)]]
    assert plan["seconds_per_step"] == pytest.approx(0.4 * 1.0 + 0.6 * 3.0)
    assert 0.95 * 600 < clock.now - began <= 600
    assert result.steps == pytest.approx(plan["total_steps"], rel=0.05)
    assert not any(isinstance(e, Note) and " s now: " in e.text for e in events)
