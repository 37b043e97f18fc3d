"""Metrics on held-out cases while training, and the weights that scored best."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn

from homolog.checkpoint import save_best
from homolog.distributed import from_first, world
from homolog.events import Validated
from homolog.training.config import TrainingConfig

Validate: TypeAlias = Callable[[int], Mapping[str, float]]


class Validator:
    """Calls the task's own validation and keeps the best weights.

    Args:
        module: What is trained.
        folder: Gets ``best/``.
        validate: Steps done -> metrics; None validates nothing.
        best_metric: Higher is better; lower is with a leading ``-``. None keeps none.
        config: How often.

    Attributes:
        seconds: The last one took; 0 before one.
    """

    def __init__(
        self,
        module: nn.Module,
        folder: Path,
        validate: Validate | None,
        best_metric: str | None,
        config: TrainingConfig,
    ) -> None:
        self._module, self._folder = module, folder
        self._validate, self._best_metric = validate, best_metric
        self._every = config.validate_every
        self.seconds = 0.0
        self.best: dict[str, Any] = {}

    @property
    def is_used(self) -> bool:
        """Whether there is anything to call."""
        return self._validate is not None

    def is_due(self, done: int, total: int) -> bool:
        """Whether to validate after so many steps."""
        if self._validate is None:
            return False
        return done == total or bool(self._every and done % self._every == 0)

    def remaining_s(self, left: int) -> float:
        """Seconds the validations of the steps left will take, as far as is known."""
        if self._validate is None:
            return 0.0
        return self.seconds * (1 + (left // self._every if self._every else 0))

    def measure(self) -> float:
        """Validate once for its time alone; seconds."""
        self._metrics(0)
        return self.seconds

    def run(self, done: int) -> Validated:
        """Validate after ``done`` steps; the weights are kept when they are the best.

        Raises:
            ValueError: The validation does not report the metric that decides.
            JobError: The best weights could not be written.
        """
        metrics = self._metrics(done)
        is_best = False
        if self._best_metric is not None:
            score = score_of(metrics, self._best_metric)
            former = self.best.get("score")
            is_best = score == score and (former is None or score > former)
            if is_best:
                self.best = {"metrics": metrics, "step": done, "score": score}
                if world().is_first:
                    save_best(self._folder, self._module.state_dict(), self.best)
        return Validated(done, metrics, is_best)

    def _metrics(self, done: int) -> dict[str, float]:
        """Measured by the first process, told to all."""
        assert self._validate is not None
        began = time.monotonic()
        measured: dict[str, float] = {}
        if world().is_first:
            with evaluating(self._module):
                found = self._validate(done)
            measured = {name: float(value) for name, value in found.items()}
        measured = from_first(measured)
        self.seconds = time.monotonic() - began
        return measured


def score_of(metrics: Mapping[str, float], best_metric: str) -> float:
    """The metric that decides, higher is better.

    Args:
        metrics: Of a validation.
        best_metric: Its name; with a leading ``-`` lower is better.

    Raises:
        ValueError: The validation does not report it.
    """
    name = best_metric.removeprefix("-")
    if name not in metrics:
        raise ValueError(
            f"the validation reports {', '.join(metrics)}, but {name!r} decides."
        )
    return -metrics[name] if best_metric.startswith("-") else metrics[name]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every part is in the mode it was in."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
