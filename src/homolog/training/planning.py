"""Before the first step: how many steps, how large a batch, in which precision.

The answer is written to ``plan.json`` at once, so that a run killed before its first
checkpoint resumes to the same end.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from homolog.config import ConfigError, from_dict, option
from homolog.distributed import from_first, world
from homolog.errors import JobError, UnusableInput
from homolog.events import Job, Note, Progress
from homolog.json_files import read_object
from homolog.memory import peak_bytes
from homolog.training.config import BatchSource, TrainingConfig
from homolog.training.course import (
    Budget,
    Course,
    Revision,
    affordable_interval,
    check_revisions,
    few_steps_words,
    minutes_words,
    steps_within,
    validations_left,
)
from homolog.training.fitting import (
    Fit,
    Setting,
    card_bytes,
    compares_samples,
    fitted,
    needs_of,
)
from homolog.training.stepping import (
    PRECISIONS,
    Stepper,
    forget_pending,
    is_out_of_memory,
    release,
)
from homolog.training.validation import Validator
from homolog.views.view import Phase, phase_at
from homolog.words import duration, human_bytes
from homolog.writing import write_json

PLAN = "plan.json"
_NOT_WORTH_MEASURING = 20  # steps
_SHARE_FOR_MEASURING = 0.005
# Fewer threads are taken where steps are so many times as fast with them.
_FASTER = 1.5
_MOST_MEASURED = 50
_MEASURED_OF_PHASES = 12
_MEASURED_OF_PARTS = 4
# Share of the steps left by which a new number must differ to be followed.
_WORTH_IT = 0.02
# Of the time for validations, where one case alone would take longer.
_WITHIN = 0.8


@dataclass(frozen=True)
class Plan:
    """What a whole run follows, sessions included.

    Attributes:
        total_steps: Optimiser steps, as first planned.
        batch_size: Samples per forward pass and process.
        accumulate: Forward passes per step.
        precision: ``bf16`` or ``fp32``.
        seconds_per_step: As measured before the first step; 0 when it was not.
        peak_memory_bytes: As measured; 0 when it was not.
        validation_s: Seconds one validation takes; 0 when it was not measured.
        budget_s: Seconds given; 0 where steps were. Earlier versions, which fixed the
            number of steps once, wrote none.
        validate_every: With a budget: steps between validations, as first planned.
        validate_share: Part of each held-out scan that validations look at, 0..1.
        phases: Of each phase the share of the training done at its end, and seconds a
            step of it takes; empty without phases or budget.
        threads: With a budget on the CPU: threads that were fastest; 0: as set.
        revisions: Decisions taken since, see Course.
        recompute: Whether blocks are computed again because the GPU is small.
    """

    total_steps: int = 0
    batch_size: int = 1
    accumulate: int = 1
    precision: str = "fp32"
    seconds_per_step: float = 0.0
    peak_memory_bytes: int = 0
    validation_s: float = 0.0
    budget_s: float = 0.0
    validate_every: int = 0
    validate_share: float = 1.0
    phases: tuple[tuple[float, float], ...] = ()
    threads: int = 0
    revisions: tuple[Revision, ...] = ()
    recompute: bool = option(
        False, "blocks are computed again for the gradient", later=True
    )

    @property
    def threads_now(self) -> int:
        """CPU threads, as decided last; 0: as set."""
        decided = (r.threads for r in reversed(self.revisions) if r.threads)
        return next(decided, self.threads)

    @property
    def course(self) -> Course:
        """Where each step lies."""
        return Course(self.total_steps, self.revisions)

    @property
    def steps(self) -> int:
        """Optimiser steps, as decided last."""
        return self.course.total

    @property
    def validate_cases(self) -> int:
        """Held-out cases a validation looks at; 0: not decided, or all of them."""
        return self.revisions[-1].validate_cases if self.revisions else 0

    def interval(self, config: TrainingConfig) -> int:
        """Steps between validations; 0: one at the end."""
        if not self.budget_s:
            return config.validate_every
        return (
            self.revisions[-1].validate_every if self.revisions else self.validate_every
        )


def read_plan(path: Path) -> Plan:
    """A plan that was written.

    Raises:
        UnusableInput: It is damaged; names the file and the field.
    """
    return plan_of(read_object(path), str(path))


def plan_of(content: Mapping[str, Any], where: str) -> Plan:
    """A plan from JSON types.

    Raises:
        UnusableInput: One of another type, or a number that cannot be meant.
    """
    try:
        plan = from_dict(Plan, content)
        if min(plan.total_steps, plan.batch_size, plan.accumulate) < 1:
            raise ConfigError("steps, batch size and passes must be 1 or more")
        check_revisions(plan.total_steps, plan.revisions)
        if plan.precision not in PRECISIONS:
            raise ConfigError(f"precision must be one of {', '.join(PRECISIONS)}")
    except ConfigError as error:
        raise UnusableInput(f"{where} is damaged ({str(error).rstrip('.')}).") from None
    return plan


def make_plan(
    stepper: Stepper,
    feed: BatchSource,
    config: TrainingConfig,
    folder: Path,
    validator: Validator,
    budget: Budget,
) -> Job[Plan]:
    """Read ``plan.json``, or measure some steps, undo them, and write it.

    Args:
        stepper: Its module and optimiser are afterwards as they were.
        feed: The real data.
        config: Steps or minutes.
        folder: The run's folder.
        validator: Its validations are planned too, where minutes were given.
        budget: Of these minutes.
    """
    path = folder / PLAN
    if path.exists():
        return read_plan(path)
    plan = Plan(config.steps, config.batch_size, config.accumulate, stepper.precision)
    plan, note = fit_to_card(plan, stepper, feed, config)
    if note is not None:
        yield note
    feed = resized(feed, plan.batch_size)
    wanted = config.dry_run_steps
    if config.minutes > 0 or (wanted and config.steps >= _NOT_WORTH_MEASURING):
        plan, measured = yield from _measured(stepper, feed, config, plan)
        threads = torch.get_num_threads()
        if config.minutes > 0 and can_change_threads(stepper.device) and threads > 1:
            torch.set_num_threads(fewer(threads))
            plan, less = yield from _measured(stepper, feed, config, plan)
            if less.seconds_per_step * _FASTER < measured.seconds_per_step:
                measured = less
                yield Note(threads_words(torch.get_num_threads(), threads))
            else:
                torch.set_num_threads(threads)
            plan = replace(plan, threads=torch.get_num_threads())
        plan = replace(
            plan,
            seconds_per_step=measured.seconds_per_step,
            peak_memory_bytes=measured.peak_memory_bytes,
            phases=measured.phases if config.minutes > 0 else (),
        )
        if config.minutes > 0:
            plan = from_first(_within_minutes(plan, config, validator, budget))
            yield Note(
                f"{minutes_words(config.minutes)} enough for about {plan.total_steps} "
                "steps; the number follows as steps get faster or slower."
            )
        yield Note(measured.sentence(plan.total_steps, stepper.device))
        if few := few_steps(plan, config):
            yield Note(few, "warning")
    write_plan(folder, plan)
    return plan


def fit_to_card(
    plan: Plan, stepper: Stepper, feed: BatchSource, config: TrainingConfig
) -> tuple[Plan, Note | None]:
    """The batch made to fit the GPU, on all processes alike; else as it is.

    The stepper recomputes blocks afterwards where the plan says so.
    """
    there = card_bytes(stepper.device)
    if not there or config.fit == "off" or not hasattr(feed, "with_batch_size"):
        return plan, None
    wanted = Setting(plan.batch_size, plan.accumulate, config.recompute)
    found: Any = None
    if world().is_first:
        try:
            needs = needs_of(stepper.trainable, feed, config, plan.precision)
            found = fitted(
                needs, wanted, there, compares=compares_samples(stepper.trainable),
                multiple=getattr(feed, "batch_multiple", 1), fit=config.fit,
            )  # fmt: skip
        except Exception as error:  # noqa: BLE001 - a model is no reason not to train
            found = str(error) or type(error).__name__
    fit: Fit | str = from_first(found)
    if isinstance(fit, str):
        said = f"what a step needs of this GPU's memory could not be told ({fit})"
        return plan, Note(f"{said}; batches stay as they are set.", "warning")
    chosen = fit.setting
    plan = replace(
        plan,
        batch_size=chosen.batch_size,
        accumulate=chosen.accumulate,
        recompute=chosen.recompute and not config.recompute,
    )
    stepper.recompute(plan.recompute)
    if not fit.why:
        return plan, None
    return plan, Note(fit.why, "info" if fit.fits else "warning")


def as_json(plan: Plan) -> dict[str, Any]:
    """A plan as it is written; what came later only where it differs."""
    told = asdict(plan)
    if not plan.recompute:
        del told["recompute"]
    return told


def write_plan(folder: Path, plan: Plan) -> None:
    """Put a plan on the disk, safely, before anything follows it."""
    if world().is_first:
        write_json(folder / PLAN, as_json(plan))


def write_revisions(folder: Path, revisions: tuple[Revision, ...]) -> None:
    """Add decisions to the plan; the rest of it stays as the run began with it."""
    if world().is_first:
        write_plan(folder, replace(read_plan(folder / PLAN), revisions=revisions))


def revised(
    plan: Plan,
    done: int,
    config: TrainingConfig,
    validator: Validator,
    budget: Budget,
    *,
    cases: int,
    saving_s: float,
    device: torch.device,
) -> Revision:
    """The number of steps decided anew, from how long they took of late.

    Args:
        plan: Up to now.
        done: Steps done.
        config: Steps between validations that are wished for.
        validator: How long they took.
        budget: Of the whole run.
        cases: Held-out cases a validation looks at; 0: not decided.
        saving_s: Seconds a checkpoint takes.
        device: Where it trains.
    """
    course, looked = plan.course, budget.looked_step
    budget.look(done)
    allowed_s, every = budget.validation_left_s, plan.interval(config)
    reached = course.progress(done)
    before = course.progress(looked)
    heavier = _step_weight(plan, reached, 1.0)
    heavier /= _step_weight(plan, before, reached)
    expected_s = 0.0
    if validator.is_used:
        each_s, expected_s = validator.seconds, allowed_s
        if each_s and cases:
            every = affordable_interval(done, plan.steps, every, allowed_s, each_s)
            # the one at the end is made in any case
            expected_s = each_s * validations_left(done, plan.steps, every)
    total = done + budget.steps_left(expected_s, saving_s, heavier)
    threads = 0
    if budget.is_slow and can_change_threads(device) and not plan.phases:
        threads = fewer(plan.threads_now) if plan.threads_now > 1 else 0
    if threads:
        budget.forget_fastest()
    return Revision(done, total, every, cases, threads)


def is_worth_it(plan: Plan, revision: Revision) -> bool:
    """Whether a decision changes enough to be followed."""
    every = plan.revisions[-1].validate_every if plan.revisions else plan.validate_every
    if revision.validate_every != every:
        return True
    if revision.validate_cases != plan.validate_cases or revision.threads:
        return True
    left = plan.steps - revision.step
    return abs(revision.total_steps - plan.steps) > _WORTH_IT * left


def few_steps(plan: Plan, config: TrainingConfig) -> str:
    """A warning where minutes are far too few for the recipe; else empty."""
    if not plan.budget_s:
        return ""
    minutes = plan.budget_s / 60.0
    return few_steps_words(
        minutes, plan.total_steps, config.steps, plan.seconds_per_step
    )


# How long a step takes and how much memory it needs, measured on the real thing.


@dataclass(frozen=True)
class Measured:
    """What a dry run found.

    Attributes:
        seconds_per_step: Median, the first (warming) step left out.
        peak_memory_bytes: Of the device on a GPU, of the process otherwise.
        steps: Steps made.
        phases: Of each phase its end, as a share of the training, and seconds a step
            of it takes; empty without phases.
    """

    seconds_per_step: float
    peak_memory_bytes: int
    steps: int
    phases: tuple[tuple[float, float], ...] = ()

    def sentence(self, total: int, device: torch.device) -> str:
        """For the user, before the training starts."""
        where = "GPU memory" if device.type == "cuda" else "memory"
        return (
            f"measured {self.seconds_per_step:.3g} s per step and "
            f"{human_bytes(self.peak_memory_bytes)} of {where}; {total} steps take "
            f"about {duration(self.seconds_per_step * total)}."
        )


class Stopwatch:
    """Seconds per step over the last steps; pauses between them do not count."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=50)
        self._begin = 0.0
        self.spent_s = 0.0

    def start(self) -> None:
        """A step begins."""
        self._begin = time.perf_counter()

    def stop(self) -> None:
        """A step ended."""
        seconds = time.perf_counter() - self._begin
        self._recent.append(seconds)
        self.spent_s += seconds

    @property
    def seconds_per_step(self) -> float:
        """Mean of the recent steps; 0 before the first.

        A mean, since on a GPU most steps only queue work and one in ten waits for it.
        """
        return statistics.fmean(self._recent) if self._recent else 0.0


class ModuleSnapshot:
    """Every parameter and buffer as it is now, to go back to.

    Args:
        module: The trainable; buffers that are not persistent are kept too.
    """

    def __init__(self, module: nn.Module) -> None:
        self._live = state_tensors(module)
        self._kept = {n: t.detach().clone() for n, t in self._live.items()}

    def restore(self) -> None:
        """Go back."""
        with torch.no_grad():
            for name, kept in self._kept.items():
                self._live[name].copy_(kept)


def state_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name, each once, persistent or not."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has done its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forget_peak(device: torch.device) -> None:
    """Start a new peak of memory, where the device counts one."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int:
    """Peak of the GPU's tensors, or of this process's resident memory."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return peak_bytes()


def can_change_threads(device: torch.device) -> bool:
    """Whether another number of CPU threads may be taken."""
    return device.type == "cpu" and world().size == 1


def fewer(threads: int) -> int:
    """Where others use the cores, threads wait for each other: half of them."""
    return max(1, threads // 2)


def threads_words(now: int, before: int) -> str:
    """A sentence about fewer threads."""
    return (
        f"{now} of {before} CPU threads from now on: others use the cores too, and "
        "threads that wait for each other are slower than few."
    )


def _within_minutes(
    plan: Plan, config: TrainingConfig, validator: Validator, budget: Budget
) -> Plan:
    """As many steps as fit beside validations of a tenth of the time at most."""
    allowed_s, step_s = budget.validation_left_s, plan.seconds_per_step
    case_s = validator.guess_s(step_s / (plan.batch_size * plan.accumulate))
    share = min(1.0, _WITHIN * allowed_s / case_s) if case_s else 1.0
    fitting = steps_within(
        budget.free_s(0.0), step_s, allowed_s, case_s * share, validator.count,
        config.validate_every,
    )  # fmt: skip
    return replace(
        plan,
        total_steps=fitting.steps,
        budget_s=budget.total_s,
        validate_every=fitting.every,
        validate_share=share,
    )


def _step_weight(plan: Plan, begin: float, end: float) -> float:
    """How long a step takes on average between two shares of the training done.

    Relative to others: phases differ, and what is measured in one predicts the next.
    """
    if not plan.phases or end <= begin:
        return 1.0
    total = first = 0.0
    for last, seconds in plan.phases:
        total += seconds * max(0.0, min(end, last) - max(begin, first))
        first = last
    return total / (end - begin)


def _measured(
    stepper: Stepper, feed: BatchSource, config: TrainingConfig, plan: Plan
) -> Job[tuple[Plan, Measured]]:
    """Make steps until enough is known; lower the batch where memory ends."""
    snapshot = ModuleSnapshot(stepper.trainable)
    try:
        while True:
            try:
                measured = yield from _dry_run(stepper, feed, config, plan)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                release(error, stepper.device)
                multiple = getattr(feed, "batch_multiple", 1)
                plan, note = lowered(plan, world().size, error, multiple)
                stepper.undo()
                feed = resized(feed, plan.batch_size)
            else:
                return plan, measured
            yield note
    finally:
        snapshot.restore()
        forget_pending(stepper.trainable)
        stepper.reset()


def _dry_run(
    stepper: Stepper, feed: BatchSource, config: TrainingConfig, plan: Plan
) -> Job[Measured]:
    least = max(2, config.dry_run_steps)
    most = _MOST_MEASURED if config.minutes > 0 else least
    phases = getattr(feed, "phases", ())
    if phases:  # the few steps run through all of them
        least = most = max(least, _MEASURED_OF_PHASES)
    joins = stepper.joins
    if joins:  # first as at the end, then as at the beginning, in turn
        least, most = max(least, _MEASURED_OF_PARTS), max(most, _MEASURED_OF_PARTS)
    enough_s = 60.0 * config.minutes * _SHARE_FOR_MEASURING
    batches = feed.stream(0, most * plan.accumulate)
    forget_peak(stepper.device)
    seconds: list[float] = []
    try:
        for index in range(most):
            began = time.perf_counter()
            at = index
            if joins:
                at = 0 if index % 2 else plan.total_steps - 1
            stepper.step(at, plan.course, feed, batches, plan.accumulate)
            synchronise(stepper.device)
            seconds.append(time.perf_counter() - began)
            yield Progress("measuring a step", index + 1, most)
            is_enough = index + 1 >= least and sum(seconds) >= enough_s
            if from_first(int(is_enough)):
                break
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()
    of_phases = _seconds_of_phases(phases, seconds)
    warm, each_s = seconds[1:], statistics.fmean(seconds[1:])
    if joins:
        alone, all_of_it = statistics.fmean(warm[::2]), statistics.fmean(warm[1::2])
        each_s = joins * alone + (1.0 - joins) * all_of_it
        of_phases = of_phases or ((joins, alone), (1.0, all_of_it))
    memory = peak_memory_bytes(stepper.device)
    return Measured(each_s, memory, len(seconds), of_phases)


def _seconds_of_phases(
    phases: Sequence[Phase], seconds: Sequence[float]
) -> tuple[tuple[float, float], ...]:
    """Of each phase its end and the shortest of its measured steps."""
    found, end = [], 0.0
    for number, phase in enumerate(phases):
        of_it = [
            s for i, s in enumerate(seconds)
            if phase_at(phases, i / len(seconds)) == number
        ]  # fmt: skip
        end += phase.share
        found.append((end, min(of_it, default=statistics.fmean(seconds))))
    return tuple(found)


def lowered(
    plan: Plan, processes: int, error: BaseException, multiple: int = 1
) -> tuple[Plan, Note]:
    """A smaller batch, more of them per step; the global batch stays.

    Args:
        plan: What did not fit.
        processes: That train together.
        error: Of the device.
        multiple: What a batch must be a multiple of (modalities that share it).

    Raises:
        JobError: The batch cannot be lowered, or several processes train together (they
            would no longer agree).
    """
    size = plan.batch_size
    legal = range(multiple, size // 2 + 1, multiple)
    smaller = max((n for n in legal if size % n == 0), default=0)
    if processes > 1 or not smaller:
        why = (
            f"batch_size {size} on {processes} processes"
            if processes > 1
            else f"a batch of {size}, the smallest possible"
            if multiple > 1
            else "a single sample"
        )
        raise JobError(
            f"not enough memory for {why}; a smaller view or backbone is needed "
            "(--set method.size=..., --set training.batch_size=...). What was saved "
            "before stays."
        ) from error
    accumulate = plan.accumulate * size // smaller
    note = Note(
        f"not enough memory for batches of {size}: continuing with {smaller} and "
        f"{accumulate} of them per step (the global batch stays "
        f"{smaller * accumulate}; terms that compare samples see {smaller} at a time).",
        "warning",
    )
    return replace(plan, batch_size=smaller, accumulate=accumulate), note


def resized(feed: BatchSource, batch_size: int) -> BatchSource:
    """The same feed with another batch size."""
    if feed.batch_size == batch_size:
        return feed
    make: Any = getattr(feed, "with_batch_size", None)
    if make is None:
        raise JobError(
            f"{type(feed).__name__} has a fixed batch size of {feed.batch_size}, "
            f"{batch_size} is needed."
        )
    smaller: BatchSource = make(batch_size)
    return smaller
