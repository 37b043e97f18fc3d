"""Metrics on held-out cases while training, and the weights that scored best."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

from torch import nn

from homolog.checkpoint import save_best
from homolog.distributed import from_first, world
from homolog.events import Validated
from homolog.training.course import FEWEST, validations_left

Validate: TypeAlias = Callable[[int], Mapping[str, float]]


@runtime_checkable
class Gradual(Protocol):
    """A validation that can look at fewer cases, or at a part of each.

    Attributes:
        count: Cases there are.
    """

    count: int

    def __call__(
        self,
        done: int,
        go_on: Callable[[int], bool] = lambda seen: True,
        share: float = 1.0,
    ) -> Mapping[str, float]:
        """Metrics on the first of the cases.

        Args:
            done: Steps done.
            go_on: Asked after each case, with how many were seen.
            share: Part of each scan that is looked at, 0..1.
        """

    def guess_s(self, sample_s: float) -> float:
        """Seconds a case takes, about.

        Args:
            sample_s: Seconds of training one sample takes.
        """


class Validator:
    """Calls the task's own validation and keeps the best weights.

    Args:
        module: What is trained.
        folder: Gets ``best/``.
        validate: Steps done -> metrics, gradually or at once; None validates nothing.
        best_metric: Higher is better; lower is with a leading ``-``. None keeps none.

    Attributes:
        seconds: The last one took; 0 before one.
        seen: Cases it looked at; 0 before one.
        share: Part of each scan that is looked at.
        fewest: Cases that are worth a validation.
    """

    def __init__(
        self,
        module: nn.Module,
        folder: Path,
        validate: Validate | Gradual | None,
        best_metric: str | None,
    ) -> None:
        self._module, self._folder = module, folder
        self._validate, self._best_metric = validate, best_metric
        self.seconds, self.seen, self.share = 0.0, 0, 1.0
        self.count = 0 if validate is None else 1
        if isinstance(validate, Gradual):
            self.count = validate.count
        self.fewest = max(1, min(FEWEST, self.count))
        self.best: dict[str, Any] = {}

    @property
    def is_used(self) -> bool:
        """Whether there is anything to call."""
        return self._validate is not None

    def is_due(self, done: int, total: int, every: int) -> bool:
        """Whether to validate after so many steps."""
        if self._validate is None:
            return False
        return done == total or bool(every and done % every == 0)

    def remaining_s(self, done: int, total: int, every: int) -> float:
        """Seconds the validations to come will take, as far as is known."""
        if self._validate is None:
            return 0.0
        return self.seconds * validations_left(done, total, every)

    def guess_s(self, sample_s: float) -> float:
        """Seconds a case will take, before one was looked at; 0 where nobody knows."""
        if not isinstance(self._validate, Gradual):
            return 0.0
        return self._validate.guess_s(sample_s)

    def measure(
        self, done: int, may_go_on: Callable[[int, float], bool] | None = None
    ) -> dict[str, float]:
        """Metrics after ``done`` steps: by the first process, told to all.

        Args:
            done: Steps done.
            may_go_on: Asked after each case, with how many were seen and seconds they
                took; None looks at all.
        """
        assert self._validate is not None
        began = time.monotonic()
        found: dict[str, float] = {}
        self.seen = self.count
        if world().is_first:
            with evaluating(self._module):
                if isinstance(self._validate, Gradual):
                    metrics = self._gradually(done, began, may_go_on)
                else:
                    metrics = self._validate(done)
            found = {name: float(value) for name, value in metrics.items()}
        found, self.seen = from_first((found, self.seen))
        self.seconds = time.monotonic() - began
        return found

    def keep(self, done: int, metrics: dict[str, float]) -> Validated:
        """Keep the weights when they are the best so far.

        Raises:
            ValueError: The validation does not report the metric that decides.
            JobError: The best weights could not be written.
        """
        is_best = False
        if self._best_metric is not None:
            score = score_of(metrics, self._best_metric)
            former = self.best.get("score")
            is_best = score == score and (former is None or score > former)
            if is_best:
                self.best = {
                    "metrics": metrics, "step": done, "score": score,
                    "cases": self.seen,
                }  # fmt: skip
                if world().is_first:
                    save_best(self._folder, self._module.state_dict(), self.best)
        return Validated(done, metrics, is_best)

    def _gradually(
        self, done: int, began: float, may_go_on: Callable[[int, float], bool] | None
    ) -> Mapping[str, float]:
        assert isinstance(self._validate, Gradual)
        self.seen = 1

        def go_on(seen: int) -> bool:
            more = may_go_on is None or may_go_on(seen, time.monotonic() - began)
            if more:
                self.seen = seen + 1
            return more

        return self._validate(done, go_on, self.share)


def cases_go_on(
    seen: int, spent_s: float, allowed_s: float, validations: int, fewest: int
) -> bool:
    """Whether one more case may be looked at, where that number is being decided.

    Args:
        seen: Cases looked at.
        spent_s: Seconds they took.
        allowed_s: Seconds for all validations, this one included.
        validations: Wished for, this one included.
        fewest: Cases that are worth a validation: rather fewer validations than fewer
            cases.
    """
    case_s = spent_s / seen
    # the one at the end will be made in any case
    fitting = max(2, int(allowed_s / max(fewest * case_s, 1e-9)))
    return (seen + 1) * case_s <= allowed_s / min(validations, fitting)


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
