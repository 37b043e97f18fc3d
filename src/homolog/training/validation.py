"""Metrics on held-out cases while training, the weights that scored best, pictures.

Pictures show what is being learnt; the training itself notices nothing of them. With a
validation they come after it, otherwise spread over the run, and then they take no more
than 2 % of its time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from homolog.distributed import from_first, world
from homolog.drawing.pictures import CT_WINDOW_HU, png_bytes
from homolog.events import Event, Note, Preview, Validated
from homolog.model_files.folder import save_best
from homolog.store.card import Card
from homolog.training.course import FEWEST, validations_left
from homolog.writing import write_bytes

Validate: TypeAlias = Callable[[int], Mapping[str, float]]

# Steps done, seconds there are now, seconds it should take at most -> picture (h, w, 3)
# uint8 and its title; or None, at no cost, when it would rather wait for more time.
Draw: TypeAlias = Callable[[int, float, float], tuple[NDArray[np.uint8], str] | None]
_SHARE = 0.02
# Few large pictures rather than many small ones: a picture may take so many times its
# share, and then others fall out.
_LARGE = 3.0
# What the first picture is taken to cost.
_GUESS_S, _GUESS_STEPS = 0.05, 0.25
_KEPT = 100
_SIDE_PIXELS = 320


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
        """Metrics after ``done`` steps: by the first process, sent to all.

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
            # of equal ones the later: few held-out cases soon score all there is
            is_best = score == score and (former is None or score >= former)
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


# Pictures of what is being learnt.


def preview_look(
    card: Card, shape: tuple[int, int]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """How a slice of a case is shown: pixels per voxel (y, x), darkest and brightest.

    Args:
        card: Of the case.
        shape: Voxels (y, x) of the slice.
    """
    _, y_mm, x_mm = card.spacing_mm
    factor = _SIDE_PIXELS / max(shape[0] * y_mm, shape[1] * x_mm)
    window = CT_WINDOW_HU if card.modality == "CT" else (card.low, card.high)
    return (y_mm * factor, x_mm * factor), window


class Previews:
    """Calls a job's own drawing at the right moments, on the first process alone.

    Args:
        module: What is trained.
        folder: The run; gets ``previews/``.
        draw: Makes a picture; None makes none.
        count: Pictures over the whole run, about; 0 makes none.
        device: Whose random numbers are kept as they are.
    """

    def __init__(
        self,
        module: nn.Module,
        folder: Path,
        draw: Draw | None,
        count: int,
        device: torch.device,
    ) -> None:
        self._module, self._device = module, device
        self._folder = folder / "previews"
        self._draw = draw if count > 0 and world().is_first else None
        self._count = count
        self._spent_s = 0.0

    def after_step(
        self, done: int, total: int, *, trained_s: float, seconds_per_step: float
    ) -> Event | None:
        """A picture when one is due after so many steps and there is time for it.

        Args:
            done: Steps done.
            total: Steps in all.
            trained_s: Seconds this session has trained.
            seconds_per_step: Of late.
        """
        if self._draw is None or not self._is_turn(done, total):
            return None
        left_s = _SHARE * trained_s - self._spent_s
        guess_s = max(_GUESS_S, _GUESS_STEPS * seconds_per_step)
        if left_s < (0.0 if self._spent_s else guess_s):
            return None
        each_s = _SHARE * total * seconds_per_step / self._count
        return self._make(done, left_s, _LARGE * each_s)

    def after_validation(self, done: int) -> Event | None:
        """A picture of what the validation has just seen."""
        return None if self._draw is None else self._make(done, math.inf, math.inf)

    def _is_turn(self, done: int, total: int) -> bool:
        """Whether ``done`` is the first step of another of the run's equal parts."""
        count = min(self._count, total)
        return done * count // total > (done - 1) * count // total

    def _make(self, done: int, left_s: float, most_s: float) -> Event | None:
        assert self._draw is not None
        began = time.monotonic()
        try:
            with _unnoticed(self._module, self._device):
                drawn = self._draw(done, left_s, most_s)
            if drawn is None:
                return None
            picture, title = drawn
            path = self._write(picture, done)
        except Exception as error:  # noqa: BLE001 - a picture is not worth a training
            self._draw = None
            return Note(f"no more previews: {error or type(error).__name__}", "warning")
        finally:
            self._spent_s += time.monotonic() - began
        return Preview(str(path), title)

    def _write(self, picture: NDArray[np.uint8], done: int) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"step_{done:08d}.png"
        write_bytes(path, png_bytes(picture), sync=False)
        for old in sorted(self._folder.glob("step_*.png"))[:-_KEPT]:
            old.unlink(missing_ok=True)
        return path


@contextmanager
def _unnoticed(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation mode, no gradients, and random numbers as they were.

    Not inference mode: what a network keeps for later (positions, masks) must stay fit
    for training.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), evaluating(module), torch.no_grad():
        yield
