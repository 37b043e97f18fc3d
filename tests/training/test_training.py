"""The loop: exact, patient with bad steps and little memory, honest on its health."""

from __future__ import annotations

import csv
import dataclasses
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from homolog.config import ConfigError, from_dict
from homolog.errors import JobError
from homolog.events import Note, Preview, Saved, Started, Step, Stopped, Validated
from homolog.methods.base import Method
from homolog.model_files.folder import generations, load_best, load_state, save_state
from homolog.nn.optim import parameter_groups
from homolog.small_maps import SafeConv3d
from homolog.training import validation
from homolog.training.config import TrainingConfig
from homolog.training.loop import CollapseWatch, MetricsTable, train
from homolog.training.planning import Plan, lowered, state_tensors
from homolog.training.stepping import (
    Stepper,
    build_optimiser,
    cpu_has_bf16,
    resolve_precision,
    set_learning_rate,
    step_seed,
)
from homolog.views.view import Views
from toy_training import ToyFeed, ToyTrainable, run_all, toy


def final_bytes(folder: Path) -> bytes:
    """What the last checkpoint holds, optimiser and buffers included."""
    return (generations(folder)[0] / "state.safetensors").read_bytes()


def table(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))


def notes(events: list) -> list[str]:
    return [e.text for e in events if isinstance(e, Note)]


def test_the_toy_learns_and_tells(tmp_path: Path) -> None:
    result, events = run_all(toy(), ToyFeed(8), tmp_path, steps=150, learning_rate=1e-2)
    rows = table(tmp_path)
    assert float(rows[-1]["error"]) < 0.5 * float(rows[0]["error"])
    assert [int(row["step"]) for row in rows] == list(range(10, 151, 10))
    assert isinstance(events[-1], Saved)
    assert sum(isinstance(e, Started) for e in events) == 1
    assert (result.steps, result.stopped, result.bad_steps) == (150, False, 0)
    last = [e for e in events if isinstance(e, Step)][-1]
    assert last.index == last.total == 150
    assert {"learning_rate", "gradient_norm", "feature_std", "data_wait"} <= set(
        last.monitors
    )


@pytest.mark.parametrize(
    ("stop_after", "optimizer"), [(1, "adamw"), (17, "adamw"), (9, "larc"), (9, "sgd")]
)
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(
    tmp_path: Path, stop_after: int, optimizer: str
) -> None:
    settings = {"steps": 40, "accumulate": 2, "log_every": 1, "warmup_steps": 5}
    settings["optimizer"] = optimizer
    run_all(toy(), ToyFeed(), tmp_path / "whole", **settings)
    parts = tmp_path / "parts"
    first, events = run_all(toy(), ToyFeed(), parts, stop_after=stop_after, **settings)
    assert first.stopped
    assert first.steps < 40
    assert events[-1] == Stopped(first.steps)
    second, _ = run_all(toy(seed=9), ToyFeed(), parts, **settings)
    assert second.steps == 40
    assert final_bytes(parts) == final_bytes(tmp_path / "whole")
    assert (parts / "metrics.csv").read_bytes() == (
        tmp_path / "whole" / "metrics.csv"
    ).read_bytes()


def test_abandoned_in_the_middle_and_resumed_equals_uninterrupted(
    tmp_path: Path,
) -> None:
    config = TrainingConfig(steps=30, batch_size=4, checkpoint_every=4, log_every=1)
    run_all(toy(), ToyFeed(), tmp_path / "whole", **dataclasses.asdict(config))
    parts = tmp_path / "parts"
    job = train(
        toy(), ToyFeed(), config, folder=parts, device=torch.device("cpu"), seed=7
    )
    saves = 0
    for event in job:
        saves += isinstance(event, Saved)
        if saves == 4:  # then the process dies: steps after the save are lost
            next(job)
            job.close()
            break
    kept = load_state(parts)
    assert kept is not None
    assert kept.step in (16, 20)
    run_all(toy(seed=5), ToyFeed(), parts, **dataclasses.asdict(config))
    assert final_bytes(parts) == final_bytes(tmp_path / "whole")
    assert (parts / "metrics.csv").read_bytes() == (
        tmp_path / "whole" / "metrics.csv"
    ).read_bytes()


def test_a_damaged_newest_checkpoint_is_passed_over_and_the_end_is_the_same(
    tmp_path: Path,
) -> None:
    settings = {"steps": 40, "checkpoint_every": 5, "log_every": 1}
    run_all(toy(), ToyFeed(), tmp_path / "whole", **settings)
    parts = tmp_path / "parts"
    run_all(toy(), ToyFeed(), parts, stop_after=22, **settings)
    newest, older = generations(parts)
    tensors = newest / "state.safetensors"
    content = bytearray(tensors.read_bytes())
    content[len(content) // 2] ^= 1
    tensors.write_bytes(content)
    result, events = run_all(toy(), ToyFeed(), parts, **settings)
    assert any("damaged" in text and newest.name in text for text in notes(events))
    assert any(f"resuming after step {int(older.name[5:])}" in t for t in notes(events))
    assert result.steps == 40
    assert final_bytes(parts) == final_bytes(tmp_path / "whole")


def test_the_dry_run_leaves_no_trace(tmp_path: Path) -> None:
    for name, count in (("with", 4), ("without", 0)):
        run_all(toy(), ToyFeed(), tmp_path / name, steps=25, dry_run_steps=count)
    assert (
        final_bytes(tmp_path / "with").split(b"}")[-1]
        == final_bytes(tmp_path / "without").split(b"}")[-1]
    )
    a, b = (load_state(tmp_path / n) for n in ("with", "without"))
    assert a is not None
    assert b is not None
    assert all(torch.equal(a.tensors[n], b.tensors[n]) for n in b.tensors)


def test_a_step_that_is_not_finite_is_skipped_and_leaves_no_trace(
    tmp_path: Path,
) -> None:
    model = toy()
    feed = ToyFeed(poison=frozenset({3}))
    seen: dict[int, dict[str, Tensor]] = {}

    def losses(views: Views, progress: float) -> dict[str, Tensor]:
        step = round(progress * 10)
        seen[step] = {n: t.detach().clone() for n, t in state_tensors(model).items()}
        return ToyTrainable.losses(model, views, progress)

    model.losses = losses  # type: ignore[method-assign]
    result, events = run_all(model, feed, tmp_path, steps=10, log_every=1)
    assert result.bad_steps == 1
    assert any("step 4" in text and "1 so far" in text for text in notes(events))
    for name, tensor in seen[3].items():
        assert torch.equal(tensor, seen[4][name]), name
    assert any(not torch.equal(t, seen[5][n]) for n, t in seen[4].items())
    assert all(t.isfinite().all() for t in model.parameters())
    rows = table(tmp_path)
    assert rows[3]["error"] == "nan"
    assert rows[-1]["bad_steps"] == "1.0"


@pytest.mark.parametrize("optimizer", ["adamw", "larc", "sgd"])
def test_undoing_a_bad_step_on_the_device_equals_not_making_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    feed = ToyFeed(poison=frozenset({2, 3, 9}))
    run_all(toy(), feed, tmp_path / "host", steps=15, optimizer=optimizer)
    make = Stepper.__init__

    def on_device(self: Stepper, *args: object, **options: object) -> None:
        make(self, *args, **options)  # type: ignore[arg-type]
        self._undo_on_device = True

    monkeypatch.setattr(Stepper, "__init__", on_device)
    result, _ = run_all(toy(), feed, tmp_path / "device", steps=15, optimizer=optimizer)
    assert result.bad_steps == 3
    host, device = (load_state(tmp_path / n) for n in ("host", "device"))
    assert host is not None
    assert device is not None
    for name, tensor in host.tensors.items():
        assert torch.equal(tensor, device.tensors[name]), name


def test_too_many_bad_steps_in_a_row_end_it_with_the_checkpoint_intact(
    tmp_path: Path,
) -> None:
    feed = ToyFeed(poison=frozenset(range(20, 60)))
    with pytest.raises(JobError, match="4 steps in a row up to step 24"):
        run_all(
            toy(), feed, tmp_path,
            steps=60, checkpoint_every=10, abort_after_bad_steps=4,
        )  # fmt: skip
    saved = load_state(tmp_path)
    assert saved is not None
    assert saved.step == 20
    assert all(t.isfinite().all() for t in saved.tensors.values())


class Hungry(ToyTrainable):
    """Runs out of memory with more than ``most`` samples from a step on."""

    most, first, total = 2, 5, 20

    def losses(self, views: Views, progress: float) -> dict[str, Tensor]:
        terms = super().losses(views, progress)
        if len(views["view"].image) > self.most and progress * self.total >= self.first:
            raise torch.OutOfMemoryError("injected")
        return terms


@pytest.mark.parametrize("first", [0, 5])
def test_out_of_memory_lowers_the_batch_and_keeps_the_global_one(
    tmp_path: Path, first: int
) -> None:
    plain = toy(dropout=0.0, norm=False)
    run_all(plain, ToyFeed(8), tmp_path / "plain", steps=20, log_every=1)
    hungry = Hungry(dropout=0.0, norm=False)
    hungry.load_state_dict(toy(dropout=0.0, norm=False).state_dict())
    hungry.first = first
    result, events = run_all(hungry, ToyFeed(8), tmp_path / "h", steps=20, log_every=1)
    assert (result.batch_size, result.accumulate) == (2, 4)
    assert any("batches of 8" in text and "stays 8" in text for text in notes(events))
    for name, tensor in plain.named_parameters():
        other = hungry.get_parameter(name)
        torch.testing.assert_close(other, tensor, atol=1e-5, rtol=1e-4)
    rows = [
        [float(row["error"]) for row in table(tmp_path / n)] for n in ("plain", "h")
    ]
    assert rows[0] == pytest.approx(rows[1], abs=1e-4)


def test_no_memory_for_a_single_sample_is_one_clear_error(tmp_path: Path) -> None:
    hungry = Hungry(norm=False)
    hungry.most, hungry.first = 0, 3
    with pytest.raises(JobError, match="not enough memory for a single sample"):
        run_all(hungry, ToyFeed(2), tmp_path, steps=10)


@pytest.mark.parametrize(("multiple", "size"), [(1, 4), (3, 3), (4, 4)])
def test_a_lowered_batch_can_still_be_shared(multiple: int, size: int) -> None:
    plan = Plan(total_steps=1, batch_size=2 * size)
    smaller, _ = lowered(plan, 1, MemoryError(), multiple)
    assert smaller.batch_size == size
    assert smaller.batch_size * smaller.accumulate == plan.batch_size
    with pytest.raises(JobError, match="not enough memory"):
        lowered(
            dataclasses.replace(plan, batch_size=multiple), 1, MemoryError(), multiple
        )


def test_other_errors_are_not_taken_for_lack_of_memory(tmp_path: Path) -> None:
    class Broken(ToyTrainable):
        def losses(self, views: Views, progress: float) -> dict[str, Tensor]:
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run_all(Broken(), ToyFeed(), tmp_path, steps=4)


def test_accumulation_has_the_gradient_of_the_large_batch(tmp_path: Path) -> None:
    ends = []
    for size, accumulate in ((8, 1), (2, 4)):
        model = toy(dropout=0.0, norm=False)
        folder = tmp_path / str(size)
        run_all(model, ToyFeed(size), folder, steps=5, accumulate=accumulate)
        ends.append(torch.cat([p.flatten() for p in model.parameters()]))
    torch.testing.assert_close(ends[0], ends[1], atol=1e-5, rtol=1e-4)


class Collapsing(ToyTrainable):
    """Is rewarded for making all features equal."""

    def losses(self, views: Views, progress: float) -> dict[str, Tensor]:
        features = self.body(views["view"].flat())
        self._watched = {"features": features.detach()}
        return {"equal": (features - 1.0).square().mean()}

    def monitors(self) -> dict[str, Tensor]:
        return Method.monitors(self)  # type: ignore[arg-type]


def test_a_collapsed_run_is_flagged_within_fifty_steps(tmp_path: Path) -> None:
    model = Collapsing(dropout=0.0, norm=False)
    _, events = run_all(
        model, ToyFeed(8), tmp_path, steps=50, learning_rate=0.1, log_every=5
    )
    flagged = [e for e in events if isinstance(e, Note) and e.level == "warning"]
    assert any("collapsing" in note.text for note in flagged)


def test_a_healthy_run_is_not_flagged(tmp_path: Path) -> None:
    _, events = run_all(toy(), ToyFeed(8), tmp_path, steps=50, log_every=5)
    assert not any("collapsing" in text for text in notes(events))


def test_a_rank_counts_as_collapsed_only_after_it_was_higher() -> None:
    small, fallen = CollapseWatch(), CollapseWatch()
    assert not any(small.look({"x_rank": 1.0}) for _ in range(10))
    ranks = [20.0, 1.2, 1.1, 1.0, 1.0]
    assert [bool(fallen.look({"x_rank": r})) for r in ranks] == [0, 0, 0, 1, 0]


def test_gradients_of_exactly_zero_are_warned_of_once() -> None:
    watch = CollapseWatch()
    norms = [1e-12, 0.0, 0.0, 0.0, 0.0, 1.0]
    told = [watch.look({"gradient_norm": norm}) for norm in norms]
    assert [bool(text) for text in told] == [0, 0, 0, 1, 0, 0]
    assert told[3].startswith("all gradients are exactly 0: nothing is learnt")


def test_at_most_ten_steps_a_second_are_told(tmp_path: Path) -> None:
    began = time.monotonic()
    _, events = run_all(toy(), ToyFeed(), tmp_path, steps=200, log_every=1)
    told = sum(isinstance(e, Step) for e in events)
    assert told <= 10 * (time.monotonic() - began) + 2
    rows = table(tmp_path)
    assert len(rows) == 200


def test_the_best_weights_are_kept_and_validation_changes_nothing(
    tmp_path: Path,
) -> None:
    scores = {10: 0.2, 20: 0.9, 30: 0.5}
    model = toy()
    seen: dict[int, Tensor] = {}

    def validate(done: int) -> dict[str, float]:
        assert not model.training
        seen[done] = model.head.weight.detach().clone()
        return {"dice": scores[done], "other": 0.0}

    result, events = run_all(
        model, ToyFeed(), tmp_path / "v", steps=30, validate_every=10,
        validate=validate, best_metric="dice",
    )  # fmt: skip
    told = [e for e in events if isinstance(e, Validated)]
    assert [(e.index, e.is_best) for e in told] == [(10, True), (20, True), (30, False)]
    assert (result.best_step, result.best["dice"]) == (20, 0.9)
    best = load_best(tmp_path / "v")
    assert best is not None
    assert torch.equal(best[0]["head.weight"], seen[20])
    assert model.training
    assert not model.teacher.training
    run_all(toy(), ToyFeed(), tmp_path / "plain", steps=30)
    plain = load_state(tmp_path / "plain")
    assert plain is not None
    assert torch.equal(plain.tensors["module/head.weight"], seen[30])


def test_lower_is_better_with_a_minus_and_resume_remembers_the_best(
    tmp_path: Path,
) -> None:
    errors = {5: 3.0, 10: 1.0, 15: 2.0, 20: 1.5}
    options = {
        "steps": 20, "validate_every": 5, "best_metric": "-hd95", "log_every": 1,
        "validate": lambda done: {"hd95": errors[done]},
    }  # fmt: skip
    run_all(toy(), ToyFeed(), tmp_path, stop_after=11, **options)
    result, events = run_all(toy(), ToyFeed(), tmp_path, **options)
    assert (result.best_step, result.best["hd95"]) == (10, 1.0)
    assert not any(e.is_best for e in events if isinstance(e, Validated))


def test_a_validation_without_the_deciding_metric_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="reports a, but 'dice' decides"):
        run_all(
            toy(), ToyFeed(), tmp_path, steps=2,
            validate=lambda _: {"a": 1.0}, best_metric="dice",
        )  # fmt: skip


def test_parameter_groups_keep_their_own_rates() -> None:
    model = toy()
    config = TrainingConfig(steps=100, learning_rate=1e-2, warmup_steps=50)
    groups = parameter_groups(model, 0.1, factor={"body.": 0.1})
    optimiser = build_optimiser(model, config, groups)
    rates = {group["peak_lr"] for group in optimiser.param_groups}
    assert rates == {1e-2, 1e-3}
    frozen = {id(p) for p in model.teacher.parameters()}
    trained = {id(p) for g in optimiser.param_groups for p in g["params"]}
    assert not frozen & trained
    # the warm-up takes a fifth of a short run, the cosine ends near its floor
    assert set_learning_rate(optimiser, 20, 100, config) == pytest.approx(1e-2)
    assert set_learning_rate(optimiser, 0, 100, config) < 1e-3
    assert set_learning_rate(optimiser, 99, 100, config) < 2e-4


def test_seeds_differ_by_seed_step_and_rank() -> None:
    seeds = {step_seed(s, t, r) for s in range(4) for t in range(50) for r in range(4)}
    assert len(seeds) == 800
    assert step_seed(1, 2, 3) == step_seed(1, 2, 3)


def test_training_leaves_torchs_own_generator_as_it_was(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    run_all(toy(), ToyFeed(), tmp_path, steps=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_precision_follows_device_and_network_only() -> None:
    cpu = torch.device("cpu")
    convolutional, attentive = nn.Conv3d(1, 8, 3), nn.Linear(8, 8)
    native = "bf16" if cpu_has_bf16() else "fp32"
    assert resolve_precision("auto", cpu, convolutional) == native
    assert resolve_precision("auto", cpu, attentive) == "fp32"
    assert resolve_precision("bf16", cpu, attentive) == "bf16"


def test_bf16_trains_in_autocast(tmp_path: Path) -> None:
    seen: list[torch.dtype] = []
    model = toy()
    model.head.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    result, _ = run_all(model, ToyFeed(), tmp_path, steps=2, precision="bf16")
    assert result.precision == "bf16"
    assert set(seen) == {torch.bfloat16}
    assert model.head.weight.dtype == torch.float32


def test_whatever_is_trained_gets_convolutions_that_hold_on_thin_maps(
    tmp_path: Path,
) -> None:
    model = toy()
    model.pyramid = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1))
    run_all(model, ToyFeed(), tmp_path, steps=1)
    kinds = {type(p) for p in model.modules() if isinstance(p, nn.Conv3d)}
    assert kinds == {SafeConv3d}


def test_metrics_of_a_killed_session_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    table = MetricsTable(path, 0)
    table.add(1, {"a": 0.1})
    table.add(2, {"a": 0.2, "b": 1e-7})
    with path.open("a") as file:
        file.write("3,0.3")  # torn by a kill
    again = MetricsTable(path, 1)
    again.add(2, {"a": 0.25})
    assert path.read_text() == "step,a,b\n1,0.1,\n2,0.25,\n"


def test_rows_are_on_the_disk_before_the_checkpoint_that_follows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: dict[int, int] = {}
    saved: list[tuple[int, int]] = []

    def fsync(file: int) -> None:
        about = os.fstat(file)
        synced[about.st_ino] = about.st_size

    def save(folder: Path, *given: Any) -> Path:
        about = (folder / "metrics.csv").stat()
        saved.append((about.st_size, synced.get(about.st_ino, 0)))
        return save_state(folder, *given)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr("homolog.training.loop.save_state", save)
    run_all(toy(), ToyFeed(), tmp_path, steps=6, log_every=1, checkpoint_every=2)
    assert len(saved) == 3
    assert all(size == on_disk > 0 for size, on_disk in saved)


def test_nonsense_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="batch_size"):
        from_dict(TrainingConfig, {"batch_size": 0})
    with pytest.raises(ConfigError, match="precision"):
        from_dict(TrainingConfig, {"precision": "fp8"})


# --- pictures while training


def disturbing(module: ToyTrainable) -> Any:
    """Draws random numbers and passes through what holds state."""

    def draw(done: int, left_s: float, most_s: float) -> tuple[Any, str]:
        assert not module.training
        assert not torch.is_grad_enabled()
        module.body(torch.rand(3, 1, 4, 4, 4))
        torch.manual_seed(0)
        return np.full((6, 5, 3), 200, np.uint8), f"after {done}"

    return draw


@pytest.mark.parametrize("validated", [False, True])
def test_previews_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, validated: bool
) -> None:
    monkeypatch.setattr(validation, "_SHARE", 1e9)
    settings: dict[str, Any] = {"steps": 40, "log_every": 1}
    if validated:
        settings |= {"validate": lambda done: {"x": 1.0}, "validate_every": 10}
    run_all(toy(), ToyFeed(), tmp_path / "without", **settings, previews=0)
    module = toy()
    settings["draw"] = disturbing(module)
    parts = tmp_path / "with"
    _, events = run_all(module, ToyFeed(), parts, stop_after=17, **settings)
    module = toy(seed=3)
    settings["draw"] = disturbing(module)
    _, more = run_all(module, ToyFeed(), parts, **settings)
    assert final_bytes(parts) == final_bytes(tmp_path / "without")
    names = [Path(e.path).name for e in events + more if isinstance(e, Preview)]
    steps = range(10, 41, 10) if validated else range(4, 41, 4)
    assert names == [f"step_{done:08d}.png" for done in steps]
    found = sorted((parts / "previews").iterdir())
    assert [p.name for p in found] == names
    assert found[0].read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "without" / "previews").exists()


def test_previews_take_a_fiftieth_of_the_time(tmp_path: Path) -> None:
    module, drawn = toy(), []

    def draw(done: int, left_s: float, most_s: float) -> None:
        drawn.append(left_s)
        time.sleep(0.02)

    shown = validation.Previews(module, tmp_path, draw, 10, torch.device("cpu"))
    for done in range(1, 1001):  # steps of 10 ms: 10 s in all, 0.2 s for pictures
        shown.after_step(done, 1000, trained_s=done * 0.01, seconds_per_step=0.01)
    assert 2 <= len(drawn) <= 10
    assert len(drawn) * 0.02 <= 0.2 + 0.02
    drawn.clear()
    short = validation.Previews(module, tmp_path, draw, 10, torch.device("cpu"))
    for done in range(1, 11):
        short.after_step(done, 10, trained_s=done * 0.1, seconds_per_step=0.1)
    assert drawn == []


def test_a_preview_that_fails_does_not_stop_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "_SHARE", 1e9)

    def draw(done: int, left_s: float, most_s: float) -> Any:
        raise RuntimeError("the pen is empty")

    result, events = run_all(toy(), ToyFeed(), tmp_path, steps=10, draw=draw)
    assert result.steps == 10
    assert [n for n in notes(events) if "pen is empty" in n] == [
        "no more previews: the pen is empty"
    ]
