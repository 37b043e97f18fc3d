"""A tiny trainable and its feed: dropout, running statistics, a queue and a teacher."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from homolog.config import from_dict
from homolog.errors import JobError, UnusableInput
from homolog.events import Job, Note, Request, Step
from homolog.geometry.affine import Index
from homolog.nn.optim import Teacher
from homolog.training.config import TrainingConfig
from homolog.training.loop import train
from homolog.views.view import View, Views, ViewSpec

SIZE: Index = (4, 4, 4)


class ToyFeed:
    """Batches of noise with a hidden direction; sample i of a step is the same in every
    split of the global batch."""

    def __init__(
        self,
        batch_size: int = 4,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        poison: frozenset[int] = frozenset(),
    ) -> None:
        self.batch_size, self.seed, self.rank = batch_size, seed, rank
        self.world_size, self.poison = world_size, poison

    def with_batch_size(self, batch_size: int) -> ToyFeed:
        return ToyFeed(batch_size, self.seed, self.rank, self.world_size, self.poison)

    def batch(self, step: int) -> Tensor:
        first = (step * self.world_size + self.rank) * self.batch_size
        samples = []
        for index in range(first, first + self.batch_size):
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
            samples.append(torch.randn(1, 1, *SIZE, generator=generator))
        block = torch.stack(samples)
        return block * float("nan") if step in self.poison else block

    def stream(self, first: int, stop: int) -> Iterator[Tensor]:
        for step in range(first, stop):
            yield self.batch(step)

    def views(self, batch: Tensor, device: torch.device) -> Views:
        count = len(batch)
        image = batch.to(device)
        return Views(
            {
                "view": View(
                    image=image,
                    affine=torch.eye(4, dtype=torch.float64).expand(count, 1, 4, 4),
                    valid=torch.ones(count, 1, *SIZE, dtype=torch.bool),
                    case=torch.zeros(count, dtype=torch.long),
                )
            }
        )


class ToyTrainable(nn.Module):
    """Predicts the mean of its input through everything that holds state."""

    def __init__(self, *, dropout: float = 0.2, norm: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64, 16),
            nn.BatchNorm1d(16) if norm else nn.LayerNorm(16),
            nn.ReLU(),
            nn.Dropout(dropout),
        )
        self.head = nn.Linear(16, 1)
        self.teacher = Teacher(self.body)
        self.register_buffer("queue", torch.zeros(8, 16))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))
        self.features = torch.zeros(2, 16)

    def views(self) -> dict[str, ViewSpec]:
        return {"view": ViewSpec(size=SIZE)}

    def losses(self, views: Views, progress: float) -> dict[str, Tensor]:
        flat = views["view"].flat()
        features = self.body(flat)
        self.features = features.detach()
        error = (
            (self.head(features)[:, 0] - flat.mean((1, 2, 3, 4)) * 8).square().mean()
        )
        pull = (features - self.teacher(flat)).square().mean()
        return {"error": error, "pull": 0.1 * pull}

    def after_step(self, progress: float) -> None:
        self.teacher.update(self.body, 0.9)
        self.queue[self.pointer % 8] = self.features.mean(0)
        self.pointer += 1

    def monitors(self) -> dict[str, Tensor]:
        return {"feature_std": self.features.std(0).mean()}


def toy(seed: int = 0, **options: Any) -> ToyTrainable:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ToyTrainable(**options)


def job(config: dict[str, Any], folder: Path) -> Job[dict[str, Any]]:
    """A run's job: train the toy slowly enough to be caught in the middle."""
    torch.set_num_threads(1)
    trainable = SlowToy(config.get("step_s", 0.0))
    trainable.load_state_dict(toy().state_dict())
    result = yield from train(
        trainable,
        ToyFeed(4, seed=config.get("seed", 0)),
        from_dict(TrainingConfig, config["training"]),
        folder=folder,
        device=torch.device("cpu"),
        seed=config.get("seed", 0),
    )
    return {"steps": result.steps, "losses": dict(result.losses)}


def failing_job(config: dict[str, Any], folder: Path) -> Job[dict[str, Any]]:
    yield Note("about to fail")
    raise {"job": JobError, "input": UnusableInput, "bug": KeyError}[config["how"]](
        "the toy broke on purpose"
    )


class SlowToy(ToyTrainable):
    def __init__(self, step_s: float) -> None:
        super().__init__()
        self.step_s = step_s

    def after_step(self, progress: float) -> None:
        time.sleep(self.step_s)
        super().after_step(progress)


def run_all(trainable: nn.Module, feed: ToyFeed, folder: Path, **settings: Any) -> Any:
    """Train to the end; (result, events).

    With ``stop_after`` every step tells of itself: on a fast machine a whole training
    may be over before it would speak for the first time.
    """
    known = (
        "validate", "best_metric", "parameter_groups", "stop_after", "draw", "began",
        "search",
    )  # fmt: skip
    options = {name: settings.pop(name) for name in known if name in settings}
    stop_after = options.pop("stop_after", None)
    config = TrainingConfig(**{"batch_size": feed.batch_size, **settings})
    training = train(
        trainable, feed, config, folder=folder,
        device=torch.device("cpu"), seed=7, **options,
    )  # fmt: skip
    events, request = [], None
    every_s = "homolog.training.loop._SECONDS_BETWEEN_EVENTS"
    with mock.patch(every_s, 0.0) if stop_after else contextlib.nullcontext():
        try:
            while True:
                event = training.send(request)
                events.append(event)
                told = event.index if isinstance(event, Step) else 0
                reached = bool(stop_after) and told >= stop_after
                request = Request.STOP if reached else None
        except StopIteration as end:
            return end.value, events
