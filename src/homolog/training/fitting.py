"""The batch made to fit a GPU before the first step: lowered, raised, or left.

What a step holds is said by ``footprint``, so nothing has to run out of memory first,
and all processes of a training decide alike. The samples of a step stay as they are set
unless more are asked for; where a term compares samples with each other, a batch is
divided only when nothing else helps.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from homolog.training.config import BatchSource, TrainingConfig
from homolog.training.footprint import footprint, shares_of
from homolog.words import human_bytes

_MOST_TIMES = 8  # of the samples per step, where they may grow
# (batch, recompute) -> bytes of a card.
Needs = Callable[[int, bool], int]


@dataclass(frozen=True)
class Setting:
    """How the samples of a step are made.

    Attributes:
        batch_size: Samples per forward pass and process.
        accumulate: Forward passes per step.
        recompute: Whether blocks are computed again for the gradient.
    """

    batch_size: int
    accumulate: int = 1
    recompute: bool = False

    @property
    def samples(self) -> int:
        """Per step and process."""
        return self.batch_size * self.accumulate


@dataclass(frozen=True)
class Fit:
    """What was chosen for a card, and why.

    Attributes:
        setting: Chosen.
        bytes: It needs, by the model.
        fits: Whether that is there; otherwise the smallest there is was chosen.
        why: A sentence; empty where all stays as it was set.
    """

    setting: Setting
    bytes: int
    fits: bool
    why: str


def needs_of(
    trainable: nn.Module, feed: BatchSource, config: TrainingConfig, precision: str
) -> Needs:
    """Bytes of a card by batch, each asked of the model once.

    Args:
        trainable: A method or a task's module; not touched.
        feed: With ``with_batch_size``.
        config: Of the training.
        precision: ``bf16``, ``fp16`` or ``fp32``.
    """
    source: Any = feed

    @functools.cache
    def needs(batch: int, recompute: bool) -> int:
        own = source if source.batch_size == batch else source.with_batch_size(batch)
        asked = replace(config, recompute=recompute)
        return footprint(trainable, own, asked, precision, shares_of(own)).on_card

    return needs


def compares_samples(trainable: Any) -> bool:
    """Whether two halves of a batch teach something else than the whole."""
    told = bool(getattr(trainable, "compares_samples", True))
    return told or any(isinstance(part, _BatchNorm) for part in trainable.modules())


def fitted(
    needs: Needs,
    wanted: Setting,
    card_bytes: int,
    *,
    compares: bool,
    multiple: int = 1,
    fit: str = "auto",
) -> Fit:
    """The setting for a card.

    Args:
        needs: Bytes by batch.
        wanted: As it is set.
        card_bytes: That may be taken.
        compares: Whether a term compares samples.
        multiple: What a batch must be a multiple of.
        fit: ``auto`` or ``up``, as ``TrainingConfig.fit``.
    """

    def holds(setting: Setting) -> bool:
        return needs(setting.batch_size, setting.recompute) <= card_bytes

    if holds(wanted):
        best = wanted if compares else _fewer_passes(wanted, multiple, holds)
        if fit == "up":
            best = _more_samples(best, wanted.samples, holds)
        return _told(best, wanted, needs, card_bytes, True)
    lower = [
        Setting(n, wanted.samples // n, wanted.recompute)
        for n in range(wanted.batch_size - 1, 0, -1)
        if wanted.samples % n == 0 and n % multiple == 0
    ]
    again = [Setting(s.batch_size, s.accumulate, True) for s in (wanted, *lower)]
    # blocks computed again cost time; a divided batch costs what samples tell together
    order = [*again, *lower] if compares else [*lower, *again]
    found = next((s for s in order if holds(s)), None)
    smallest = again[-1]
    return _told(found or smallest, wanted, needs, card_bytes, found is not None)


def _fewer_passes(
    wanted: Setting, multiple: int, holds: Callable[[Setting], bool]
) -> Setting:
    best = wanted
    for n in range(wanted.batch_size + 1, wanted.samples + 1):
        if wanted.samples % n == 0 and n % multiple == 0:
            larger = Setting(n, wanted.samples // n, wanted.recompute)
            if not holds(larger):
                break
            best = larger
    return best


def _more_samples(
    best: Setting, samples: int, holds: Callable[[Setting], bool]
) -> Setting:
    while 2 * best.samples <= _MOST_TIMES * samples:
        larger = Setting(2 * best.batch_size, best.accumulate, best.recompute)
        if not holds(larger):
            break
        best = larger
    return best


def _told(
    best: Setting, wanted: Setting, needs: Needs, card_bytes: int, fits: bool
) -> Fit:
    asked = needs(wanted.batch_size, wanted.recompute)
    taken = needs(best.batch_size, best.recompute)
    there = human_bytes(card_bytes)
    if not fits:
        why = (
            f"by the model of its memory not even batches of {best.batch_size} with "
            f"recomputed blocks fit: {human_bytes(taken)} are needed, this GPU has "
            f"{there}. Smaller crops or a smaller network are needed if it ends so."
        )
        return Fit(best, taken, False, why)
    if best == wanted:
        return Fit(best, taken, True, "")
    passes = (
        "in one forward pass"
        if best.accumulate == 1
        else f"in {best.accumulate} forward passes"
    )
    again = (
        " and blocks computed again for the gradient"
        if best.recompute and not wanted.recompute
        else ""
    )
    if best.samples != wanted.samples:
        more = best.samples // wanted.samples
        rest = f"{more} times the samples of the setting (training.fit=up)"
    else:
        rest = f"the {wanted.samples} samples of a step stay"
    because = (
        f"batches of {wanted.batch_size} would need {human_bytes(asked)}"
        if asked > card_bytes
        else f"batches of {wanted.batch_size} need {human_bytes(asked)} only"
    )
    why = (
        f"{because} of this GPU's {there} by the model of its memory, so batches "
        f"are of {best.batch_size}{again}, {passes} a step ({human_bytes(taken)}); "
        f"{rest}."
    )
    return Fit(best, taken, True, why)


def card_bytes(device: torch.device) -> int:
    """Memory of a GPU that this process may take or has taken; 0 for other devices."""
    if device.type != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    return int(free) + int(torch.cuda.memory_reserved(device))
