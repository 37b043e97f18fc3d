"""A dry run, as a job: a few real steps, then how long and how much memory it takes.

The training itself is begun in a scratch folder and broken off before its first step
that counts; what it measured is read from its ``plan.json``.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from homolog.config import ConfigError, from_dict, merge
from homolog.distributed import choose_device
from homolog.events import Job, Note, Progress, Request, Started, Stopped
from homolog.pretrain import job as pretrain_job
from homolog.pretrain.settings import resolve_request as resolve_pretrain
from homolog.study.jobs import taken
from homolog.study.memory import available_memory
from homolog.tasks._finetune import job as finetune_job
from homolog.tasks._finetune_settings import check_cases, task_of
from homolog.tasks._finetune_settings import resolve as complete_finetune
from homolog.tasks._finetune_settings import resolve_request as resolve_finetune
from homolog.training.config import TrainingConfig
from homolog.training.planning import Plan, read_plan, steps_within

_KINDS: Mapping[str, tuple[Callable[..., Any], Callable[..., Job[Any]]]] = {
    "pretrain": (resolve_pretrain, pretrain_job),
    "finetune": (resolve_finetune, finetune_job),
}
# Time instead of steps, so short that the fewest steps are made; unlike a number of
# steps it has one validation measured too.
_MINUTES = 1e-3
_STEPS = 4
# Of free main memory; more makes the system swap.
_TIGHT = 0.9


def job(config: Mapping[str, Any], folder: Path) -> Job[dict[str, Any]]:
    """Measure a training that might be started.

    Args:
        config: ``kind`` (``pretrain`` or ``finetune``) and its ``config``, a request or
            a complete one.
        folder: Gets a scratch folder, which is gone afterwards.

    Returns:
        ``seconds_per_step``, ``steps``, ``validation_s`` (of one validation),
        ``total_s``, ``memory_bytes``, ``batch_size``, ``accumulate``, ``precision``,
        ``device``, ``notes``, ``resolved`` and ``stopped``.

    Raises:
        JobError: Not even a single sample fits into memory.
    """
    asked = taken(config, "plan", {"kind": ..., "config": ...})
    kind = asked["kind"]
    if kind not in _KINDS:
        raise ConfigError(f"plan knows {' and '.join(_KINDS)}, got {kind!r}.")
    yield Started("dry run")
    resolve, train = _KINDS[kind]
    resolved = _complete(asked["config"], resolve)
    free, _ = available_memory()
    scratch = folder / "dry-run"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        notes, stopped = yield from _begin(train(_shortened(kind, resolved), scratch))
        if stopped:
            yield Stopped(0)
            return {"stopped": True}
        plan = read_plan(scratch / "plan.json")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    device = choose_device(str(resolved["device"]))
    if device.type == "cpu" and free and plan.peak_memory_bytes > _TIGHT * free:
        notes.append(
            f"this takes {plan.peak_memory_bytes / 1e9:.1f} GB of memory and "
            f"{free / 1e9:.1f} GB are free: smaller crops or batches are safer."
        )
    length = _length(kind, resolved, plan)
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


def _complete(
    config: Mapping[str, Any], resolve: Callable[[Mapping[str, Any]], Any]
) -> dict[str, Any]:
    request = dict(config)
    if not request.pop("unresolved", False):
        return request
    resolved: dict[str, Any] = resolve(request)
    return resolved


def _shortened(kind: str, resolved: Mapping[str, Any]) -> dict[str, Any]:
    """The same training with the fewest steps measured, and one case validated."""
    training = {"minutes": _MINUTES, "dry_run_steps": _STEPS, "previews": 0}
    short: dict[str, Any] = {"training": training}
    if kind == "finetune":
        short["task_config"] = {"validate_cases": 1}
    return merge(resolved, short)


def _begin(training: Job[Any]) -> Job[tuple[list[str], bool]]:
    """Listen until the training would begin: what it said, and whether it was stopped.

    Sentences about the measuring itself are left out: they speak of the short run.
    """
    notes: list[str] = []
    measuring = False
    request: Request | None = None
    try:
        while request is not Request.STOP:
            try:
                event = training.send(None)
            except StopIteration:
                return notes, True
            if isinstance(event, Started):
                return notes, False
            if isinstance(event, Note):
                if event.level == "warning" or not measuring:
                    notes.append(event.text)
            elif isinstance(event, Progress):
                measuring = True
                request = yield event
        return notes, True
    finally:
        training.close()


def _length(kind: str, resolved: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """Steps and seconds of the whole training."""
    given = from_dict(TrainingConfig, resolved["training"], where="training")
    validation_s = plan.validation_s * _validated_cases(kind, resolved)
    steps = given.steps
    if given.minutes > 0:
        steps = steps_within(
            60.0 * given.minutes,
            plan.seconds_per_step,
            validation_s,
            given.validate_every,
        )
    total_s = steps * plan.seconds_per_step
    if validation_s:
        every = given.validate_every
        total_s += validation_s * (1 + ((steps - 1) // every if every else 0))
    return {"steps": steps, "validation_s": validation_s, "total_s": total_s}


def _validated_cases(kind: str, resolved: Mapping[str, Any]) -> int:
    """Cases of one validation."""
    if kind != "finetune":
        return 0
    settings = complete_finetune(resolved)
    held = len(check_cases(settings).val)
    most = task_of(settings).config.validate_cases
    return min(held, most) if most else held
