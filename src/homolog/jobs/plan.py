"""A dry run: a few real steps, then how long and how much memory it takes.

The training itself is begun in a scratch folder and broken off before its first step
that counts; what it measured is read from its ``plan.json``.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from homolog.config import from_dict, merge, option
from homolog.events import Job, Note, Progress, Request, Started, Stopped, Validated
from homolog.runs.jobs import job_of
from homolog.runs.jobs import resolved as complete
from homolog.words import human_bytes

if TYPE_CHECKING:
    from homolog.finetune.settings import Cases
    from homolog.training.planning import Plan

COMMAND = ""  # of the window
# As few as are measured at all; one of them is made and validated after.
_STEPS, _MEASURED = 20, 4
# Of free main memory; more makes the system swap.
_TIGHT = 0.9
# Of a step and its validation the validation takes this much at least: on a busy
# machine the steps that were measured may have been slower than that one.
_LEAST_SHARE = 0.05


@dataclass(frozen=True)
class Config:
    """The training that might be started."""

    kind: str = option(..., "Of the run.", choices=("pretrain", "finetune"))
    config: dict[str, Any] = option(..., "Of the run: a request or a complete one.")


def job(config: Config, folder: Path) -> Job[dict[str, Any]]:
    """Measure a training that might be started.

    Args:
        config: Of the training.
        folder: Gets a scratch folder, which is gone afterwards.

    Returns:
        ``seconds_per_step``, ``steps``, ``validation_s`` (of one validation),
        ``total_s``, ``few_steps`` (a sentence where minutes are far too few for the
        recipe), ``memory_bytes``, ``batch_size``, ``accumulate``, ``precision``,
        ``device``, ``notes``, ``resolved`` and ``stopped``.

    Raises:
        JobError: Not even a single sample fits into memory.
    """
    from homolog.distributed import choose_device
    from homolog.finetune.job import labels_words
    from homolog.memory import available_memory
    from homolog.training.planning import read_plan

    kind = config.kind
    yield Started("dry run")
    resolved = complete(kind, config.config)
    free, _ = available_memory()
    scratch = folder / "dry-run"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        short = job_of(kind)(_shortened(kind, resolved), scratch)
        notes, stopped, begun_s = yield from _begin(short)
        if stopped:
            yield Stopped(0)
            return {"stopped": True}
        plan = read_plan(scratch / "plan.json")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    device = choose_device(str(resolved["device"]))
    if device.type == "cpu" and free and plan.peak_memory_bytes > _TIGHT * free:
        notes.append(
            f"this takes {human_bytes(plan.peak_memory_bytes)} of memory and "
            f"{human_bytes(free)} are free: smaller crops or batches are safer."
        )
    case_s = max(_LEAST_SHARE * begun_s, begun_s - plan.seconds_per_step)
    cases, chosen = _labelled(resolved) if kind == "finetune" else (None, 0)
    length = _length(resolved, plan, case_s, chosen)
    if cases is not None:  # what it said spoke of the short training
        words = labels_words(
            cases, chosen, at_most=bool(resolved["training"].get("minutes")),
            averaged=bool(resolved["task_config"].get("average")),
        )  # fmt: skip
        notes = [_reworded(note, words) for note in notes]
    if few := length["few_steps"]:
        notes.append(f"{few[:1].upper()}{few[1:]}")
    return {
        **length,
        "seconds_per_step": plan.seconds_per_step,
        "memory_bytes": plan.peak_memory_bytes,
        "batch_size": plan.batch_size,
        "accumulate": plan.accumulate,
        "precision": plan.precision,
        "device": str(device),
        "notes": notes,
        "resolved": resolved,
        "stopped": False,
    }


def _reworded(note: str, words: str) -> str:
    """The sentence on the labels in other words; any other note as it is."""
    if " to learn from" not in note:
        return note
    _, sign, rest = note.partition("; window ")
    return f"{words}{sign or '.'}{rest}"


def _shortened(kind: str, resolved: Mapping[str, Any]) -> dict[str, Any]:
    """The same training with the fewest steps measured, and one case validated."""
    training = {
        "minutes": 0.0, "steps": _STEPS, "dry_run_steps": _MEASURED, "previews": 0,
        "validate_every": 1, "log_every": _STEPS,
    }  # fmt: skip
    short: dict[str, Any] = {"training": training}
    if kind == "finetune" and resolved["task_config"].get("validate_cases") is not None:
        short["task_config"] = {"validate_cases": 1}
    return merge(resolved, short)


def _begin(training: Job[Any]) -> Job[tuple[list[str], bool, float]]:
    """Listen until the first step was validated, where it is, or made.

    Sentences about the measuring itself are left out: they speak of the short run.

    Returns:
        What it said, whether it was stopped, and seconds from its beginning to the end
        of the first validation; 0 where there is none.
    """
    notes: list[str] = []
    measuring, began = False, 0.0
    request: Request | None = None
    try:
        while request is not Request.STOP:
            try:
                event = training.send(None)
            except StopIteration:
                return notes, not began, 0.0
            if isinstance(event, Started):
                began = time.perf_counter()
                if not event.detail.get("validates"):
                    return notes, False, 0.0
            elif isinstance(event, Validated):
                return notes, False, time.perf_counter() - began
            elif isinstance(event, Note):
                if event.level == "warning" or not measuring:
                    notes.append(event.text)
            elif isinstance(event, Progress):
                measuring = True
                request = yield event
        return notes, True, 0.0
    finally:
        training.close()


def _length(
    resolved: Mapping[str, Any], plan: Plan, case_s: float, cases: int
) -> dict[str, Any]:
    """Steps and seconds of the whole training."""
    from homolog.training.config import TrainingConfig
    from homolog.training.course import (
        VALIDATION_SHARE,
        few_steps_words,
        steps_within,
        validations_left,
    )

    given = from_dict(TrainingConfig, resolved["training"], where="training")
    step_s, validation_s = plan.seconds_per_step, case_s * cases
    if given.minutes > 0:
        budget_s = 60.0 * given.minutes
        fitting = steps_within(
            budget_s, step_s, VALIDATION_SHARE * budget_s, case_s, cases,
            given.validate_every,
        )  # fmt: skip
        few = few_steps_words(given.minutes, fitting.steps, given.steps, step_s)
        return {
            "steps": fitting.steps, "validation_s": min(validation_s, fitting.each_s),
            "total_s": budget_s, "few_steps": few,
        }  # fmt: skip
    count = validations_left(0, given.steps, given.validate_every)
    return {
        "steps": given.steps, "validation_s": validation_s,
        "total_s": given.steps * step_s + count * validation_s, "few_steps": "",
    }  # fmt: skip


def _labelled(resolved: Mapping[str, Any]) -> tuple[Cases, int]:
    """Cases of a fine-tuning, and how many of them choose the weights."""
    from homolog.finetune.settings import check_cases, held_out_cases, resolve, task_of

    settings = resolve(resolved)
    cases, task = check_cases(settings), task_of(settings)
    return cases, len(held_out_cases(cases, task.config.validate_cases))
