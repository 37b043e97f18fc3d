"""What of a training is saved, and how it is put back."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from homolog.checkpoint import INFO as INFO_FILE
from homolog.checkpoint import SavedState, save_state
from homolog.distributed import world
from homolog.errors import JobError
from homolog.json_files import Shape
from homolog.training.measure import state_tensors
from homolog.training.optimiser import optimiser_tensors, restore_optimiser
from homolog.training.planning import Plan, plan_of
from homolog.training.stepping import Stepper

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
        "plan": asdict(plan),
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
