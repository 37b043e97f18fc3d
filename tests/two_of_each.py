"""Two steps of every method and task, by this process and those beside it.

Called by two_processes; what it writes is compared by test_distributed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from homolog import distributed
from homolog.feed.batches import Feed
from homolog.methods import METHODS
from homolog.training.course import Course
from homolog.views.view import Views
from simulated_gpu import Made, made, task_made

CPU = torch.device("cpu")
BATCH = 4
TASKS = (
    "segment/resunet", "classify/resunet", "detect/resunet", "detect/points",
    "translate/resunet",
)  # fmt: skip


class Inside:
    """A feed whose views seem to lie in the scan: means then have equal counts."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed

    def stream(self, first: int, stop: int, share: Any) -> Iterator[Any]:
        return self.feed.stream(first, stop, share)

    def views(self, batch: Any, device: torch.device) -> Views:
        return Views(
            {
                name: dataclasses.replace(view, valid=torch.ones_like(view.valid))
                for name, view in self.feed.views(batch, device).items()
            }
        )


def keys() -> list[str]:
    """``METHOD/NETWORK/cpu`` and tasks."""
    of_methods = [
        f"{name}/{METHODS.get(name).RECIPES['cpu']['backbone']['name']}/cpu"
        for name in METHODS.names()
    ]
    return [*of_methods, *TASKS]


def made_of(key: str) -> Made:
    """As made; but batch norms would see half of a batch (on GPUs they see all), and
    dropout is another one in each process."""
    if key == "classify/resunet":
        return task_made("classify", {"name": "resunet"}, {"dropout": 0.0}, CPU)
    return made(key, CPU)


def shared_out(ready: Made, here: distributed.World) -> Inside:
    """The feed of this process: its part of batches of all."""
    feed = ready.feed.with_batch_size(BATCH // here.size)
    feed.rank, feed.world_size = here.rank, here.size
    # a process alone makes two samples at least
    feed._parts = tuple(dataclasses.replace(p, samples=1.0) for p in feed._parts)
    return Inside(feed)


def trained_each(here: distributed.World, folder: Path) -> None:
    """Write terms and weights of each key after two steps."""
    found: dict[str, Any] = {}
    for key in keys():
        ready = made_of(key)
        feed: Any = shared_out(ready, here)
        batches = feed.stream(0, 2, lambda _: 0.5)
        terms: dict[str, Any] = {}
        for step in range(2):
            ready.stepper.step(step, Course(4), feed, batches, 1)
            terms |= {
                f"{name} of step {step}": float(distributed.mean_over_ranks(value))
                for name, value in ready.stepper.terms.items()
            }
        terms["gradient"] = float(ready.stepper.gradient_norm)
        state = dict(ready.stepper.trainable.named_parameters())
        found[key] = {
            "terms": terms, "bad": int(ready.stepper.bad_steps),
            "weights": {n: p.detach().clone() for n, p in state.items()},
        }  # fmt: skip
    torch.save(found, folder / f"each_{here.rank}.pt")
