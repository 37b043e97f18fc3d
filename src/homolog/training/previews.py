"""Pictures of what is being learnt; the training itself notices nothing of them.

With a validation they come after it, otherwise spread over the run, and then they take
no more than 2 % of its time.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from homolog.distributed import world
from homolog.drawing.png import png_bytes
from homolog.events import Event, Note, Preview
from homolog.training.validation import evaluating

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
        beside = path.with_name(f".{path.name}.new")
        beside.write_bytes(png_bytes(picture))
        os.replace(beside, path)
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
