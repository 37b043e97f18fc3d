"""What a step holds by the model, against torch's own record of its allocator."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import profiler

from fake_cuda import CUDA, fake_cuda
from homolog.config import to_dict
from homolog.distributed import World
from homolog.events import Note
from homolog.training import planning, stepping
from homolog.training.config import TrainingConfig
from homolog.training.fitting import Fit, Setting, compares_samples, fitted
from homolog.training.footprint import CONTEXT_BYTES, USABLE, footprint
from homolog.training.stepping import Stepper
from simulated_gpu import method_made, task_made
from toy_training import ToyFeed, run_all, toy

CPU = torch.device("cpu")


def allocated(act: Any) -> int:
    """The most that was held at once beyond what was there, as the allocator tells."""
    with profiler.profile(use_cpu=True, profile_memory=True) as told:
        act()
    now = most = 0
    for event in told.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


@pytest.mark.parametrize("name", ["mae", "segment"])
def test_a_step_holds_what_the_model_says(name: str) -> None:
    if name == "segment":
        made = task_made("segment", {"name": "resunet"}, {}, CPU)
    else:
        made = method_made(name, "gpu", CPU)
    module, feed = made.stepper.trainable, made.feed
    batch = feed.batch(0)

    def step() -> None:
        terms = module.losses(feed.views(batch, CPU), 0.5)
        torch.stack(list(terms.values())).sum().backward()

    step()  # constants
    module.zero_grad(set_to_none=True)
    if hasattr(module, "_watched"):
        module._watched.clear()
    gc.collect()
    real = allocated(step)
    told = footprint(module, feed, TrainingConfig(), "fp32")
    assert real > 1e7
    assert told.activations == pytest.approx(real, rel=0.05)
    assert told.optimiser == 2 * told.gradients
    assert all(p.device == CPU for p in module.parameters())


class Wide(nn.Module):
    """A hundred thousand numbers kept for the gradient of each sample."""

    compares_samples = False

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 100_000)

    def losses(self, views: Any, progress: float) -> dict[str, Tensor]:
        flat = views["view"].flat().flatten(1)
        return {"error": self.first(flat).relu().mean()}


def test_bfloat16_halves_what_is_kept_and_samples_add_up() -> None:
    module = Wide()

    def bytes_of(batch: int, precision: str) -> int:
        held = footprint(module, ToyFeed(batch), TrainingConfig(), precision)
        return held.peak

    by_batch = [bytes_of(n, "fp32") for n in (200, 400, 600)]
    each = (by_batch[1] - by_batch[0]) / 200
    assert by_batch[2] - by_batch[1] == pytest.approx(200 * each, 0.01)
    assert 400_000 <= each <= 1_210_000  # kept, and what is made of it
    narrow = bytes_of(400, "bf16") - bytes_of(200, "bf16")
    assert narrow == pytest.approx(100 * each, 0.05)
    told = footprint(module, ToyFeed(8), TrainingConfig(optimizer="sgd"), "fp32")
    assert told.optimiser == told.gradients
    assert told.on_card == int(told.peak / USABLE) + CONTEXT_BYTES


def linear(each: int, again: int) -> Any:
    """So many bytes a sample, fewer with recomputed blocks."""
    return lambda batch, recompute: batch * (again if recompute else each)


def fit(card: int, batch: int = 4, passes: int = 2, **more: Any) -> Fit:
    known = {"compares": False} | more
    return fitted(linear(100, 40), Setting(batch, passes), card, **known)


def test_a_large_card_makes_fewer_passes_and_no_other_samples() -> None:
    roomy = fit(10_000)
    assert roomy.setting == Setting(8, 1)
    assert "the 8 samples of a step stay" in roomy.why
    assert fit(700).setting == Setting(4, 2)
    assert fit(700).why == ""
    alike = fit(10_000, compares=True)
    assert (alike.setting, alike.why) == (Setting(4, 2), "")


def test_more_samples_are_taken_where_they_are_asked_for() -> None:
    up = fit(3000, fit="up")
    assert up.setting == Setting(16, 1)
    assert "2 times the samples" in up.why
    assert fit(10**9, fit="up").setting.samples == 8 * 8
    pairs = fit(3000, fit="up", compares=True)
    assert pairs.setting == Setting(16, 2)


def test_a_small_card_divides_batches_and_comparing_ones_last() -> None:
    assert fit(250).setting == Setting(2, 4)
    assert "would need" in fit(250).why
    assert fit(250, compares=True).setting == Setting(4, 2, True)
    assert fit(90).setting == Setting(2, 4, True)
    assert fit(90, compares=True).setting == Setting(2, 4, True)
    assert fit(350, batch=6, passes=1, multiple=3).setting == Setting(3, 2)
    none = fit(10)
    assert not none.fits
    assert none.setting == Setting(1, 8, True)
    assert "not even batches of 1" in none.why


def test_a_run_says_what_was_chosen_and_a_resumed_one_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "card_bytes", lambda device: 1 << 20)
    monkeypatch.setattr(planning, "needs_of", lambda *_: linear(1 << 19, 1 << 18))
    model = toy(norm=False)
    model.compares_samples = False  # type: ignore[assignment]
    assert not compares_samples(model)
    assert compares_samples(toy())  # batch norm
    result, events = run_all(
        model, ToyFeed(4), tmp_path, steps=3, precision="fp32", dry_run_steps=0
    )
    told = [e.text for e in events if isinstance(e, Note) and "model of its" in e.text]
    assert len(told) == 1
    assert (result.batch_size, result.accumulate) == (2, 2)
    plan = planning.read_plan(tmp_path / planning.PLAN)
    assert (plan.batch_size, plan.accumulate, plan.recompute) == (2, 2, False)
    monkeypatch.undo()
    again, _ = run_all(toy(norm=False), ToyFeed(4), tmp_path, steps=3, precision="fp32")
    assert (again.batch_size, again.accumulate) == (2, 2)


def test_what_a_plan_says_of_recomputing_is_read_and_written() -> None:
    plan = planning.Plan(5, 2, 3, "bf16", recompute=True)
    assert planning.plan_of(planning.as_json(plan), "here") == plan
    assert "recompute" not in planning.as_json(planning.Plan(5))
    assert "fit" not in to_dict(TrainingConfig())


def test_batch_norms_of_several_gpus_see_the_samples_of_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stepping, "world", lambda: World(0, 2))
    monkeypatch.setattr(Stepper, "_wrapped", lambda self, module: module)
    alone, names = toy(), list(toy().state_dict())
    with fake_cuda():
        stepper = Stepper(
            alone.to(CUDA), TrainingConfig(steps=2), None,
            device=CUDA, seed=0, precision="fp32",
        )  # fmt: skip
    norms = [m for m in stepper.trainable.modules() if isinstance(m, nn.SyncBatchNorm)]
    assert len(norms) == 2  # the teacher's too
    assert list(stepper.trainable.state_dict()) == names
    trained = {id(p) for g in stepper.optimiser.param_groups for p in g["params"]}
    assert trained == {id(p) for p in stepper.trainable.parameters() if p.requires_grad}


def test_a_model_that_fails_leaves_the_batch_and_the_training_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise NotImplementedError("no meta kernel for this")

    monkeypatch.setattr(planning, "card_bytes", lambda device: 1 << 20)
    monkeypatch.setattr(planning, "needs_of", fails)
    result, events = run_all(
        toy(norm=False), ToyFeed(4), tmp_path, steps=3, precision="fp32",
        dry_run_steps=0,
    )  # fmt: skip
    assert (result.steps, result.batch_size) == (3, 4)
    (note,) = [e for e in events if isinstance(e, Note) and "no meta kernel" in e.text]
    assert note.level == "warning"
