"""Before the first step: how many steps, how large a batch, in which precision.

The answer is written to ``plan.json`` at once, so that a run killed before its first
checkpoint resumes to the same end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from homolog.config import ConfigError, from_dict
from homolog.distributed import from_first, world
from homolog.errors import JobError, UnusableInput
from homolog.events import Job, Note, Progress
from homolog.json_files import read_object
from homolog.model_files.tensor_files import write_json
from homolog.training.config import BatchSource, TrainingConfig
from homolog.training.measure import (
    Measured,
    ModuleSnapshot,
    forget_peak,
    peak_memory_bytes,
    spoken,
    synchronise,
)
from homolog.training.precision import PRECISIONS
from homolog.training.stepping import (
    Stepper,
    forget_pending,
    is_out_of_memory,
    release,
)

_NOT_WORTH_MEASURING = 20  # steps
_SHARE_FOR_MEASURING = 0.01
_MOST_MEASURED = 50
_MEASURED_OF_PHASES = 12


@dataclass(frozen=True)
class Plan:
    """What stays fixed for a whole run, sessions included.

    Attributes:
        total_steps: Optimiser steps.
        batch_size: Samples per forward pass and process.
        accumulate: Forward passes per step.
        precision: ``bf16`` or ``fp32``.
        seconds_per_step: As measured before the first step; 0 when it was not.
        peak_memory_bytes: As measured; 0 when it was not.
        validation_s: Seconds one validation takes; 0 when it was not measured.
    """

    total_steps: int = 0
    batch_size: int = 1
    accumulate: int = 1
    precision: str = "fp32"
    seconds_per_step: float = 0.0
    peak_memory_bytes: int = 0
    validation_s: float = 0.0


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
    *,
    measure_validation: Callable[[], float] | None = None,
) -> Job[Plan]:
    """Read ``plan.json``, or measure some steps, undo them, and write it.

    Args:
        stepper: Its module and optimiser are afterwards as they were.
        feed: The real data.
        config: Steps or minutes.
        folder: The run's folder.
        measure_validation: Seconds one validation takes; asked for with minutes.
    """
    path = folder / "plan.json"
    if path.exists():
        return read_plan(path)
    began = time.monotonic()
    plan = Plan(config.steps, config.batch_size, config.accumulate, stepper.precision)
    wanted = config.dry_run_steps
    if config.minutes > 0 or (wanted and config.steps >= _NOT_WORTH_MEASURING):
        plan, measured = yield from _measured(stepper, feed, config, plan)
        if config.minutes > 0:
            validation_s = measure_validation() if measure_validation else 0.0
            left_s = 60.0 * config.minutes - (time.monotonic() - began)
            steps = steps_within(
                left_s, measured.seconds_per_step, validation_s, config.validate_every
            )
            steps = from_first(steps)
            plan = replace(plan, total_steps=steps, validation_s=validation_s)
            yield Note(
                f"{config.minutes:g} minutes are enough for {plan.total_steps} steps; "
                "that number is now fixed."
            )
        yield Note(measured.sentence(plan.total_steps, stepper.device))
        plan = replace(
            plan,
            seconds_per_step=measured.seconds_per_step,
            peak_memory_bytes=measured.peak_memory_bytes,
        )
    if world().is_first:
        write_json(path, asdict(plan))
    return plan


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
    if getattr(feed, "phases", ()):  # the few steps run through all of them
        least = most = max(least, _MEASURED_OF_PHASES)
    enough_s = 60.0 * config.minutes * _SHARE_FOR_MEASURING
    batches = feed.stream(0, most * plan.accumulate)
    forget_peak(stepper.device)
    seconds: list[float] = []
    try:
        for index in range(most):
            began = time.perf_counter()
            stepper.step(index, plan.total_steps, feed, batches, plan.accumulate)
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
    warm = seconds[1:]
    return Measured(
        sum(warm) / len(warm), peak_memory_bytes(stepper.device), len(seconds)
    )


def steps_within(
    left_s: float, seconds_per_step: float, validation_s: float, validate_every: int
) -> int:
    """Steps that fit, validations between them and one at the end included."""
    each_s = seconds_per_step
    if validate_every:
        each_s += validation_s / validate_every
    return max(1, int((left_s - validation_s) / each_s))


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


def estimate(plan: Plan) -> str:
    """How long the whole takes, for people; empty when it was not measured."""
    if not plan.seconds_per_step:
        return ""
    return f"about {spoken(plan.seconds_per_step * plan.total_steps)}"
