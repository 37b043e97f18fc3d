"""The training loop: one job, the same for every method and every task.

Order of a step (methods reference 8.1): batch, views, losses under autocast, backward,
finite check, clip, optimiser, ``after_step``, monitors. Everything random is a function
of (seed, step), so a run that was killed and resumed ends with the same bytes.

``train`` drives a session; below it stand what is saved and put back, the table of
metrics, and the watch for collapsed features.
"""

from __future__ import annotations

import contextlib
import csv
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from homolog.distributed import (
    failure_elsewhere,
    from_first,
    max_over_ranks,
    mean_over_ranks,
    wait_for_all,
    world,
)
from homolog.errors import JobError
from homolog.events import Event, Job, Note, Request, Saved, Started, Step, Stopped
from homolog.json_files import Shape
from homolog.model_files.folder import INFO as INFO_FILE
from homolog.model_files.folder import SavedState, load_state, save_state
from homolog.training.config import BatchSource, TrainingConfig, TrainingResult
from homolog.training.course import Budget, Revision, validations_left
from homolog.training.planning import (
    PLAN,
    Plan,
    Stopwatch,
    as_json,
    few_steps,
    is_worth_it,
    lowered,
    make_plan,
    peak_memory_bytes,
    plan_of,
    read_plan,
    resized,
    revised,
    state_tensors,
    threads_words,
    write_revisions,
)
from homolog.training.stepping import (
    Stepper,
    is_out_of_memory,
    optimiser_tensors,
    release,
    resolve_precision,
    restore_optimiser,
)
from homolog.training.validation import (
    Draw,
    Gradual,
    Previews,
    Validate,
    Validator,
    cases_go_on,
    evaluating,
)
from homolog.writing import flush, put_in_place, write_table, write_text

if TYPE_CHECKING:
    from homolog.feed.places import Search

_STD_FLOOR = 0.05
_STD_ONCE, _STD_SHARE = 0.3, 0.2
_RANK_FLOOR = 1.5
_RANK_ONCE = 3.0
_GRADIENT = "gradient_norm"
_PATIENCE = 3

_MODULE = "module/"
# What is saved beside the tensors.
INFO: Shape = {
    "plan": dict, "bad_steps": int, "bad_run": int, "seed": int, "processes?": int,
    "position": {
        "done": int, "losses": dict, "monitors": dict,
        "best": {"metrics?": dict, "step?": int, "score?": Any},
        "budget?": dict[str, float],
    },
}  # fmt: skip
News = Generator[Event, Request | None, None]
_SECONDS_BETWEEN_EVENTS = 0.1
_SECONDS_OF_SILENCE = 1.0
_SECONDS_BETWEEN_CHECKPOINTS = 120.0
# A change of the number of steps by such a share is logged.
_WORTH_LOGGING = 0.2


def train(
    trainable: Any,
    feed: BatchSource,
    config: TrainingConfig,
    *,
    folder: Path,
    device: torch.device,
    seed: int,
    validate: Validate | Gradual | None = None,
    best_metric: str | None = None,
    parameter_groups: Sequence[Mapping[str, Any]] | None = None,
    draw: Draw | None = None,
    began: float | None = None,
    search: Search | None = None,
) -> Job[TrainingResult]:
    """Train a module; resume by itself where ``folder`` holds a checkpoint.

    Args:
        trainable: A torch Module with the four verbs of Trainable; moved to ``device``.
        feed: Batches as a pure function of the step, of ``config.batch_size``.
        config: How long and how fast.
        folder: Gets ``checkpoints/``, ``metrics.csv``, ``plan.json`` and ``best/``.
        device: Where to train.
        seed: Of dropout and the like; the feed has its own.
        validate: Steps done -> metrics; called every ``validate_every`` steps and at
            the end, in evaluation mode.
        best_metric: Which of them decides what ``folder/best`` keeps; higher is
            better, lower with a leading ``-``.
        parameter_groups: As made by ``nn.optim.parameter_groups``.
        draw: Makes the pictures of ``config.previews``; see training.previews.
        began: ``time.monotonic()`` from which the minutes of ``config`` count; None:
            now. What is left of them decides the number of steps, again and again; see
            training.course.
        search: What is looked for in training scans, and steers the feed.

    Yields:
        Started, Step (at most ten a second), Validated, Preview, Saved, Note, and
        Stopped when a listener stopped it (then the state is saved).

    Raises:
        JobError: Too many non-finite steps in a row, no memory at batch size 1, or a
            checkpoint could not be written. The last good checkpoint stays.
    """
    module: nn.Module = trainable
    module.to(device).train()
    random_state, threads = torch.get_rng_state(), torch.get_num_threads()
    loop = _Loop(module, feed, config, folder, device, seed)
    loop.began = time.monotonic() if began is None else began
    loop.budget = Budget(60.0 * config.minutes, loop.began)
    loop.validator = Validator(module, folder, validate, best_metric)
    loop.previews = Previews(module, folder, draw, config.previews, device)
    loop.search = search
    try:
        yield from loop.run(parameter_groups)
    except RuntimeError as error:
        if text := failure_elsewhere(error):
            raise JobError(text) from error
        raise
    finally:
        loop.close()
        end: Callable[[], None] = getattr(feed, "close", lambda: None)
        end()
        torch.set_rng_state(random_state)
        torch.set_num_threads(threads)
    return loop.result()


class _Loop:
    """State of one session of a training."""

    validator: Validator
    previews: Previews
    budget: Budget
    began: float
    search: Search | None

    def __init__(
        self,
        module: nn.Module,
        feed: BatchSource,
        config: TrainingConfig,
        folder: Path,
        device: torch.device,
        seed: int,
    ) -> None:
        self.module, self.feed, self.config = module, feed, config
        self.folder, self.device, self.seed = folder, device, seed
        self.here = world()
        self.position = Position()
        self.plan = Plan()
        self.written: tuple[Revision, ...] = ()  # decided before, ahead of us
        self.stop_requested = self.stopped = False
        self.watch, self.collapse = Stopwatch(), CollapseWatch()
        self.batches: Iterator[Any] | None = None
        self._logged_bad = self._revised_from = 0
        self._last_event = self._last_save = time.monotonic()
        self._save_s = 0.0

    def run(self, groups: Sequence[Mapping[str, Any]] | None) -> News:
        """The whole session."""
        self.folder.mkdir(parents=True, exist_ok=True)
        saved = load_state(self.folder, INFO)
        precision = resolve_precision(self.config.precision, self.device, self.module)
        self.stepper = Stepper(
            self.module, self.config, groups,
            device=self.device, seed=self.seed, precision=precision,
        )  # fmt: skip
        if saved is not None:
            self.plan = restore(saved, self.stepper, self.position)
            self._begin_budget(self.began)
            saved.tensors.clear()
            for sentence in saved.damaged:
                yield from self._tell(
                    Note(f"{sentence}; it was passed over.", "warning")
                )
            yield from self._tell(Note(f"resuming after step {self.position.done}."))
        else:
            if (self.folder / "plan.json").exists():
                again = "no checkpoint was saved before: training begins again."
                yield from self._tell(Note(again, "warning"))
            yield from self._make_plan()
        if self.stopped:
            yield Stopped(0)
            return
        self._follow_what_was_written(saved is not None)
        self._take_threads()
        self.stepper.precision = self.plan.precision
        self.stepper.recompute(self.plan.recompute)
        self.feed = resized(self.feed, self.plan.batch_size)
        self.validator.best = self.position.best
        self.validator.share = self.plan.validate_share
        if self.search is not None:
            self.search.begin()
        if self.here.is_first:
            table = MetricsTable(self.folder / "metrics.csv", self.position.done)
            self.table: MetricsTable | None = table
            if table.damaged:
                yield from self._tell(Note(table.damaged, "warning"))
        else:
            self.table = None
        self._last_save = time.monotonic()
        yield from self._tell(Started("train", self.plan.steps, self._details()))
        self.stopped = self.stop_requested and self.here.size == 1
        while self.position.done < self.plan.steps and not self.stopped:
            yield from self._advance()
        yield from self._end()

    def _begin_budget(self, began: float) -> None:
        """Minutes count from the beginning of the run, all sessions together.

        A run of an earlier version, which fixed its number of steps, keeps that.
        """
        state = self.position.budget
        self.budget = Budget(self.plan.budget_s, began, state)
        self.validator.seconds = state.get("each_validation_s", 0.0)

    def _make_plan(self) -> News:
        """Listen to the planning; a stop in its middle leaves nothing behind."""
        planning = make_plan(
            self.stepper, self.feed, self.config, self.folder,
            self.validator, self.budget,
        )  # fmt: skip
        while not (self.stop_requested and self.here.size == 1):
            try:
                event = next(planning)
            except StopIteration as end:
                self.plan = end.value
                return
            yield from self._tell(event)
        planning.close()
        self.stopped = True

    def _follow_what_was_written(self, resumed: bool) -> None:
        """Decisions of a session that ended after the state that was resumed.

        They are repeated, so that the end is as it would have been.
        """
        if not self.plan.budget_s:
            return
        if self.position.budget:
            self._begin_budget(time.monotonic())  # making ready again is not training
        else:
            self.budget.begin_looking(self.plan.seconds_per_step)
        known = self.plan.revisions if resumed else ()
        self.plan = replace(self.plan, revisions=known)
        written: tuple[Revision, ...] = ()
        if self.here.is_first:
            with contextlib.suppress(FileNotFoundError):
                written = read_plan(self.folder / PLAN).revisions
        written = from_first(written)
        if written[: len(known)] == known:
            self.written = written[len(known) :]

    def _details(self) -> dict[str, Any]:
        return {
            "device": str(self.device),
            "precision": self.plan.precision,
            "batch_size": self.plan.batch_size,
            "accumulate": self.plan.accumulate,
            "processes": self.here.size,
            "done": self.position.done,
            "validates": self.validator.is_used,
            "validation_cases": self.plan.validate_cases or self.validator.count,
            "seconds_per_step": self.plan.seconds_per_step,
        }

    def _advance(self) -> News:
        """One step and what is due after it."""
        yield from self._revise_in_time()
        if self.batches is None:
            self.batches = self._stream()
        self.watch.start()
        try:
            self.stepper.step(
                self.position.done, self.plan.course,
                self.feed, self.batches, self.plan.accumulate,
            )  # fmt: skip
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            note = self._lower(error)
            yield from self._tell(note)
            return
        self.watch.stop()
        self.position.done += 1
        yield from self._report()
        done, total = self.position.done, self.plan.steps
        if self.validator.is_due(done, total, self.plan.interval(self.config)):
            yield from self._validate()
        elif not self.validator.is_used:
            preview = self.previews.after_step(
                done, total,
                trained_s=self.watch.spent_s,
                seconds_per_step=self.watch.seconds_per_step,
            )  # fmt: skip
            yield from self._show(preview)
        yield from self._search(done, total)
        if self._checkpoint_is_due():
            yield from self._save()
        if self.stop_requested and self.here.size == 1:
            self.stopped = self.position.done < self.plan.steps

    def _stream(self) -> Iterator[Any]:
        """The batches from here on."""
        each, course = self.plan.accumulate, self.plan.course
        first, stop = self.position.done * each, course.total * each
        if not course.revisions or not getattr(self.feed, "phases", ()):
            return self.feed.stream(first, stop)
        stream: Any = self.feed.stream
        batches: Iterator[Any] = stream(
            first, stop, lambda batch: course.progress(batch / each)
        )
        return batches

    def _validate(self) -> News:
        """Look at held-out cases; the first time minutes decide how many."""
        done = self.position.done
        cases = self.plan.validate_cases
        if not cases and self.written and self.written[0].step == done:
            cases = self.written[0].validate_cases
        decides = bool(self.plan.budget_s) and not cases
        left = validations_left(
            done - 1, self.plan.steps, self.plan.interval(self.config)
        )
        allowed_s, fewest = self.budget.validation_left_s, self.validator.fewest

        def may_go_on(seen: int, spent_s: float) -> bool:
            if decides:
                return cases_go_on(seen, spent_s, allowed_s, left, fewest)
            return not cases or seen < cases

        metrics = self.validator.measure(done, may_go_on)
        self.budget.validation_s += self.validator.seconds
        if decides and done < self.plan.steps:  # on the disk before anything follows
            yield from self._revise(self.validator.seen)
        yield from self._tell(self.validator.keep(done, metrics))
        self.position.best = self.validator.best
        yield from self._show(self.previews.after_validation(done))

    def _search(self, done: int, total: int) -> News:
        """Look through training scans where it is due; other batches follow."""
        if self.search is None or not self.search.is_due(done, total):
            return
        self.close()  # batches that were made ahead know nothing of it
        with evaluating(self.module):
            found = self.search(done)
        yield from self._tell(Note(found))

    def _revise_in_time(self) -> News:
        """Repeat the decision taken here before; else take one where it is time."""
        done, known = self.position.done, self.plan.revisions
        if self.written and self.written[0].step == done:
            first, *rest = self.written
            self.written = tuple(rest)
            self.budget.look(done)
            if first.threads:
                self.budget.forget_fastest()
            self._follow(first)
            return
        if not self.plan.budget_s or not done or (known and known[-1].step == done):
            return
        if self.here.size > 1 and done % self.config.log_every:
            return  # others only meet at rows
        if not from_first(self.budget.is_time_to_look()):
            return
        if self.written:  # not here, but later a decision was taken
            self.budget.look(done)
        else:
            yield from self._revise(self.plan.validate_cases)

    def _revise(self, cases: int) -> News:
        """Decide the number of steps anew."""
        before = self.plan.steps
        revision = from_first(
            revised(
                self.plan, self.position.done, self.config, self.validator, self.budget,
                cases=cases, saving_s=self._save_s, device=self.device,
            )
        )  # fmt: skip
        if not is_worth_it(self.plan, revision):
            return
        threads = self.plan.threads_now
        self._follow(revision)
        write_revisions(self.folder, self.plan.revisions)
        if revision.threads:
            yield from self._tell(Note(threads_words(revision.threads, threads)))
        self._revised_from = self._revised_from or before
        steps, logged = self.plan.steps, self._revised_from
        if abs(steps - logged) > _WORTH_LOGGING * logged:
            self._revised_from = 0
            text = (
                f"steps take {self.budget.seconds_per_step:.3g} s now: {steps} of them "
                f"fit, not {logged}."
            )
            yield from self._tell(Note(text))

    def _take_threads(self) -> None:
        """As many CPU threads as were decided: another number rounds otherwise."""
        if self.plan.threads_now:
            torch.set_num_threads(self.plan.threads_now)

    def _follow(self, revision: Revision) -> None:
        self.plan = replace(self.plan, revisions=(*self.plan.revisions, revision))
        self._take_threads()
        self.close()  # batches were made ahead for the former number of steps

    def _lower(self, error: BaseException) -> Note:
        """Undo the step, halve the batch; the global batch stays."""
        release(error, self.device)
        self.stepper.undo()
        self.close()
        multiple = getattr(self.feed, "batch_multiple", 1)
        self.plan, note = lowered(self.plan, self.here.size, error, multiple)
        self.feed = resized(self.feed, self.plan.batch_size)
        return note

    def _report(self) -> News:
        """Table row, Step event, warnings; the only place that waits for the device."""
        done, total = self.position.done, self.plan.steps
        is_row = done % self.config.log_every == 0 or done == total
        silent_s = time.monotonic() - self._last_event
        alone = self.here.size == 1  # others only meet at rows
        on_cpu = self.device.type == "cpu"
        if on_cpu or is_row:
            yield from self._check_finite()
        if not is_row and not (alone and silent_s >= _SECONDS_OF_SILENCE):
            return
        losses, monitors = read_values(self.stepper, self.module)
        self.position.losses, self.position.monitors = losses, monitors
        if is_row and self.table is not None:
            self.table.add(done, {**losses, **monitors})
        if is_row and (warning := self.collapse.look(monitors)):
            yield from self._tell(Note(warning, "warning"))
        if silent_s >= _SECONDS_BETWEEN_EVENTS or done == total:
            self._last_event = time.monotonic()
            yield from self._tell(self._step_event(losses, monitors))
        if is_row and not alone:
            wish = torch.tensor(float(self.stop_requested), device=self.device)
            self.stop_requested = bool(max_over_ranks(wish))
            self.stopped = self.stop_requested and done < total

    def _step_event(
        self, losses: Mapping[str, float], monitors: Mapping[str, float]
    ) -> Step:
        each = self.watch.seconds_per_step
        left = self.plan.steps - self.position.done
        every = self.plan.interval(self.config)
        left_s = left * each + self.validator.remaining_s(
            self.position.done, self.plan.steps, every
        )
        if self.plan.budget_s:
            left_s = max(0.0, self.budget.left_s)
        spent = max(self.watch.spent_s, 1e-9)
        waiting = {"data_wait": min(1.0, self.stepper.waited_s / spent)}
        finite = {k: v for k, v in losses.items() if v - v == 0.0}
        return Step(
            self.position.done, self.plan.steps, finite, {**monitors, **waiting},
            each, left_s,
        )  # fmt: skip

    def _check_finite(self) -> News:
        bad, longest = int(self.stepper.bad_steps), int(self.stepper.longest_bad_run)
        if bad > self._logged_bad:
            self._logged_bad = bad
            text = (
                f"a loss or gradient was not finite at or before step "
                f"{self.position.done}: the step was skipped ({bad} so far)."
            )
            if self.plan.precision == "fp16":
                factor = float(self.stepper.scale.factor)
                text += (
                    f" The loss is now scaled by {factor:g}; a few such steps are no "
                    "harm in fp16."
                )
            yield from self._tell(Note(text, "warning"))
        if longest >= self.config.abort_after_bad_steps:
            # The weights are those before the bad run: worth keeping for a look.
            raise JobError(
                f"{longest} steps in a row up to step {self.position.done} were not "
                f"finite (seed {self.seed}); training was given up, the last "
                "checkpoint is intact. A lower learning rate or fp32 often helps."
            )

    def _checkpoint_is_due(self) -> bool:
        done = self.position.done
        if done == self.plan.steps:
            return False  # saved at the end
        if self.config.checkpoint_every:
            return done % self.config.checkpoint_every == 0
        wait_s = max(_SECONDS_BETWEEN_CHECKPOINTS, 20.0 * self._save_s)
        return time.monotonic() - self._last_save >= wait_s

    def _save(self) -> News:
        if not self.here.is_first:
            return
        begin = time.monotonic()
        if self.plan.budget_s:
            each_s = {"each_validation_s": self.validator.seconds}
            self.position.budget = self.budget.state | each_s
        if self.table is not None:  # its rows are no longer made after a resume
            self.table.sync()
        path = save(self.folder, self.stepper, self.position, self.plan)
        self._last_save = time.monotonic()
        self._save_s = self._last_save - begin
        yield from self._tell(Saved(str(path)))

    def _end(self) -> News:
        yield from self._save()
        wait_for_all()
        if self.stopped:
            yield Stopped(self.position.done)

    def _show(self, preview: Event | None) -> News:
        if preview is not None:
            yield from self._tell(preview)

    def _tell(self, event: Event) -> News:
        begin = time.monotonic()
        if (yield event) is Request.STOP:
            self.stop_requested = True
        self.budget.waited(time.monotonic() - begin)

    def close(self) -> None:
        """End the feed's threads."""
        close: Callable[[], None] | None = getattr(self.batches, "close", None)
        self.batches = None
        if close is not None:
            with contextlib.suppress(ValueError):  # it is running: ends by itself
                close()

    def result(self) -> TrainingResult:
        """How the session ended."""
        best = self.position.best
        return TrainingResult(
            steps=self.position.done,
            total_steps=self.plan.steps,
            stopped=self.stopped,
            losses=self.position.losses,
            monitors=self.position.monitors,
            bad_steps=int(self.stepper.bad_steps),
            best=dict(best.get("metrics", {})),
            best_step=int(best.get("step", 0)),
            batch_size=self.plan.batch_size,
            accumulate=self.plan.accumulate,
            precision=self.plan.precision,
            seconds_per_step=self.watch.seconds_per_step,
            peak_memory_bytes=peak_memory_bytes(self.device),
            validation_s=self.validator.seconds,
            validated_cases=self.validator.seen or int(best.get("cases", 0)),
            few_steps=few_steps(self.plan, self.config),
        )


# What of a training is saved, and how it is put back.


@dataclass
class Position:
    """Where a training stands.

    Attributes:
        done: Optimiser steps done.
        losses: Last logged terms.
        monitors: Last logged monitors.
        best: ``metrics``, ``step`` and ``score`` of the best validation; empty before.
        budget: Where the minutes stand, see Budget; empty where steps were given.
    """

    done: int = 0
    losses: dict[str, float] = field(default_factory=dict)
    monitors: dict[str, float] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)
    budget: dict[str, float] = field(default_factory=dict)


def save(folder: Path, stepper: Stepper, position: Position, plan: Plan) -> Path:
    """Write one generation; returns its folder.

    Raises:
        JobError: It could not be written.
    """
    module = stepper.trainable
    tensors = {f"{_MODULE}{n}": t for n, t in state_tensors(module).items()}
    tensors |= optimiser_tensors(stepper.optimiser, module)
    if plan.precision == "fp16":
        tensors |= stepper.scale.tensors()
    info = {
        "plan": as_json(plan),
        "position": asdict(position),
        "bad_steps": int(stepper.bad_steps),
        "bad_run": int(stepper.bad_run),
        "seed": stepper.seed,
        "processes": world().size,
        "torch": torch.__version__,
    }
    return save_state(folder, position.done, tensors, info)


def restore(saved: SavedState, stepper: Stepper, position: Position) -> Plan:
    """Put module, optimiser, counts and position back as they were saved.

    Raises:
        JobError: The checkpoint belongs to another network or number of processes.
    """
    began, now = saved.info.get("processes", world().size), world().size
    if began != now:
        raise JobError(
            f"the checkpoint {saved.path} is of a training by {began} processes; "
            f"{now} would see other batches."
        )
    live = state_tensors(stepper.trainable)
    found = {
        name.removeprefix(_MODULE): tensor
        for name, tensor in saved.tensors.items()
        if name.startswith(_MODULE)
    }
    odd = sorted(live.keys() ^ found.keys())
    odd += [n for n in live if n in found and live[n].shape != found[n].shape]
    if odd:
        raise JobError(
            f"the checkpoint {saved.path} is of another network: {len(odd)} of "
            f"{len(live)} tensors differ, first {odd[0]!r}."
        )
    with torch.no_grad():
        for name, tensor in live.items():
            tensor.copy_(found[name])
    restore_optimiser(stepper.optimiser, stepper.trainable, saved.tensors)
    stepper.scale.restore(saved.tensors)
    stepper.bad_steps.fill_(saved.info["bad_steps"])
    stepper.bad_run.fill_(saved.info["bad_run"])
    stepper.longest_bad_run.fill_(saved.info["bad_run"])
    for name, value in saved.info["position"].items():
        setattr(position, name, value)
    return plan_of(saved.info["plan"], str(saved.path / INFO_FILE))


# The one transfer of a logged step, the table it goes to, and what it may warn of.


def read_values(
    stepper: Stepper, module: Any
) -> tuple[dict[str, float], dict[str, float]]:
    """Losses (mean over processes) and monitors of the last step.

    Every process must have the same loss terms.
    """
    names = list(stepper.terms)
    terms = mean_over_ranks(torch.stack([stepper.terms[n] for n in names]))
    watched = _monitors(module) if not int(stepper.bad_run) else {}
    values = [stepper.gradient_norm.float(), *(t.float() for t in watched.values())]
    numbers: list[float] = torch.cat(
        [terms, torch.stack([v.reshape(()).to(terms.device) for v in values])]
    ).tolist()
    losses = dict(zip(names, numbers, strict=False))
    rest = numbers[len(names) :]
    monitors = {
        "learning_rate": stepper.learning_rate,
        "gradient_norm": rest[0],
        **dict(zip(watched, rest[1:], strict=True)),
    }
    if bad := int(stepper.bad_steps):
        monitors["bad_steps"] = float(bad)
    return losses, {k: v for k, v in monitors.items() if v - v == 0.0}


def _monitors(module: Any) -> dict[str, Tensor]:
    try:
        with torch.no_grad():
            return dict(module.monitors())
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        # features that just stopped being finite
        return {}


class MetricsTable:
    """``metrics.csv``: one row per logged step, numbers only, no times.

    Rows depend on the run's configuration alone, so a resumed run ends with the same
    bytes as an uninterrupted one.

    A damaged table never stands in the way of a sound checkpoint: it is set aside and
    the rows that can be read are taken over.

    Args:
        path: The file; appended to.
        done: Steps already done; later rows (of a killed session) are dropped.

    Attributes:
        damaged: What was wrong with the table that was there, a sentence; else empty.
    """

    def __init__(self, path: Path, done: int) -> None:
        self._path = path
        self._columns: list[str] = []
        self.damaged = ""
        rows = self._read(repair=True) if path.exists() else []
        self._write([row for row in rows if int(row["step"]) <= done])

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Append a row; a new column rewrites the file once."""
        row = {"step": str(step), **{k: repr(float(v)) for k, v in values.items()}}
        new = [name for name in row if name not in self._columns]
        if new:
            rows = self._read() if self._columns else []
            self._columns += new
            self._write(rows)
        with self._path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns, lineterminator="\n").writerow(row)

    def sync(self) -> None:
        """Bring the rows to the disk; a full one is told by what is saved next."""
        with contextlib.suppress(OSError), self._path.open("a") as file:
            flush(file)

    def _read(self, *, repair: bool = False) -> list[dict[str, str]]:
        """Whole rows; a last line cut short by a kill is not one.

        Args:
            repair: Pass over what is no row, keep the file beside, and say so.
        """
        try:
            text = self._path.read_text(encoding="utf-8", errors="replace")
            lines = text[: text.rfind("\n") + 1].splitlines()
            reader = csv.DictReader(lines)
            self._columns = list(reader.fieldnames or [])
            rows = list(reader)
        except (OSError, csv.Error) as error:
            lines, rows = [""], []
            self._columns = []
            wrong = f"it cannot be read: {error}"
        else:
            wrong = ""
            if lines and (
                self._columns[:1] != ["step"]
                or len(set(self._columns)) < len(self._columns)
            ):
                rows, self._columns = [], []
                wrong = "its first line does not name the columns"
        whole = [row for row in rows if _is_row(row)]
        if len(whole) < len(rows):
            wrong = f"{len(rows) - len(whole)} of {len(rows)} lines are no rows"
        if wrong and repair:
            aside = self._path.with_name(f"{self._path.stem}.damaged.csv")
            put_in_place(self._path, aside)
            self.damaged = (
                f"{self._path} is damaged ({wrong}): the {len(whole)} rows that can be "
                f"read were taken over, the file was kept as {aside.name}."
            )
        return whole

    def _write(self, rows: list[dict[str, str]]) -> None:
        if self._columns:
            write_table(self._path, self._columns, rows)
        else:
            write_text(self._path, "")


def _is_row(row: Mapping[str | None, Any]) -> bool:
    """Whether a line holds a step and numbers, or nothing where a column is younger."""
    step, *others = row.values()
    if None in row or not isinstance(step, str) or not step.isdigit():
        return False
    for cell in others:
        try:
            float(cell or 0)
        except (TypeError, ValueError):
            return False
    return None not in others


class CollapseWatch:
    """Warns, once per episode, when features stop differing or nothing is learnt.

    Monitors ending in ``_std`` are about 1 when healthy and 0 when all features are
    equal; those ending in ``_rank`` are effective ranks (methods reference 1.6). Low is
    a std below 0.05, or below a fifth of what it was; and a rank that was above 3 and
    is about 1 (a small batch has a small rank by nature). A gradient of exactly 0
    teaches nothing. Three rows in a row count.
    """

    def __init__(self) -> None:
        self._strikes: dict[str, int] = {}
        self._highest: dict[str, float] = {}

    def look(self, monitors: Mapping[str, float]) -> str:
        """A warning when something has just been judged collapsed, else empty."""
        warnings = []
        for name, value in monitors.items():
            if not self._is_low(name, value):
                self._strikes[name] = 0
                continue
            self._strikes[name] = self._strikes.get(name, 0) + 1
            if self._strikes[name] == _PATIENCE:
                warnings.append(f"{name} is {value:.3g}")
        if not warnings:
            return ""
        if f"{_GRADIENT} is 0" in warnings:
            return (
                "all gradients are exactly 0: nothing is learnt. Crops larger than "
                "the scans, or cells left out by min_valid, leave no loss."
            )
        return (
            f"the features are collapsing ({', '.join(warnings)}; about 1 is a "
            "healthy std): all scans look alike to the network. A lower learning rate, "
            "a longer warm-up or a larger batch often helps."
        )

    def _is_low(self, name: str, value: float) -> bool:
        if not math.isfinite(value):
            return False
        if name == _GRADIENT:
            return value == 0.0
        highest = max(self._highest.get(name, 0.0), value)
        self._highest[name] = highest
        if name.endswith("_std"):
            fallen = highest > _STD_ONCE and value < _STD_SHARE * highest
            return fallen or value < _STD_FLOOR
        if name.endswith("_rank"):
            return value < _RANK_FLOOR and highest > _RANK_ONCE
        return False
