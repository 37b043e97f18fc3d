"""Which case each sample of a run is cut from: seeded shuffles, shared out by part."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from homolog.geometry.affine import Array
from homolog.views.random import generator


class CaseOrder:
    """A pure function from the number of a sample to the position of its case.

    With ``power`` 1, or one part, every epoch is a shuffle of all cases. Otherwise
    part i (a store or modality, or its labelled cases) of n_i cases gives the share
    n_i^power / sum_j n_j^power of every epoch's samples (at least one), and goes
    through its own cases in shuffles of its own; a small part is seen more often, so
    that its labels are not drowned.

    Args:
        parts: Number of its part per case, 0, 1, ...
        seed: Decides the order.
        power: 1 shares by number of cases, 0.5 by its square root, 0 evenly.

    Source: square root as Ulrich et al., MultiTalent, MICCAI 2023.
    """

    def __init__(self, parts: Sequence[int], seed: int, power: float = 1.0) -> None:
        if not 0 <= power <= 1:
            raise ValueError(f"power must be from 0 to 1, got {power}.")
        self.seed = seed
        part_of = np.asarray(parts)
        self._cases = [np.flatnonzero(part_of == p) for p in np.unique(part_of)]
        self._mixed = power != 1 and len(self._cases) > 1
        self.length = len(part_of)
        if self._mixed:
            wanted = np.array([len(cases) ** power for cases in self._cases])
            shares = self.length * wanted / wanted.sum()
            self.quotas = np.maximum(1, np.round(shares)).astype(int)
            self.length = int(self.quotas.sum())
        self._shuffled = lru_cache(maxsize=16)(self._shuffle)
        self._turns = lru_cache(maxsize=2)(self._draw_turns)

    def __getitem__(self, sample: int) -> int:
        epoch, place = divmod(sample, self.length)
        if not self._mixed:
            return int(self._shuffled(self.length, epoch, "epoch")[place])
        part, seen = self._turns(epoch)[place]
        cases = self._cases[part]
        round_, within = divmod(epoch * int(self.quotas[part]) + seen, len(cases))
        order = self._shuffled(len(cases), int(round_), f"epoch of part {part}")
        return int(cases[order[within]])

    def shares(self) -> Array:
        """(cases,) float64: share of the samples that is cut from each case."""
        if not self._mixed:
            return np.full(self.length, 1 / self.length)
        found = np.zeros(sum(len(cases) for cases in self._cases))
        for cases, quota in zip(self._cases, self.quotas, strict=True):
            found[cases] = quota / self.length / len(cases)
        return found

    def _draw_turns(self, epoch: int) -> Array:
        """(length, 2): whose turn it is, and how many turns it had in this epoch."""
        turns = np.repeat(np.arange(len(self.quotas)), self.quotas)
        turns = turns[self._shuffle(self.length, epoch, "turns")]
        seen = np.zeros_like(turns)
        for part, quota in enumerate(self.quotas):
            seen[turns == part] = np.arange(quota)
        return np.stack([turns, seen], 1)

    def _shuffle(self, count: int, epoch: int, stream: str) -> Array:
        order = generator(self.seed, epoch, stream=stream).permutation(count)
        return np.asarray(order)


class TurnOrder:
    """Parts take turns: sample k is of part k modulo the number of parts.

    A batch whose size is a multiple of that number holds equally many of each, always
    at the same places. Each part goes through its own cases in shuffles of its own.

    Args:
        parts: Number of its part per case, 0, 1, ..., none missing; -1: never seen.
        seed: Decides the order.

    Source: Hundred Million, section III-A.2, equal groups per modality.
    """

    def __init__(self, parts: Sequence[int], seed: int) -> None:
        self.seed = seed
        part_of = np.asarray(parts)
        self._count = len(part_of)
        self._cases = [np.flatnonzero(part_of == p) for p in range(part_of.max() + 1)]
        if any(len(cases) == 0 for cases in self._cases):
            raise ValueError(
                f"every part needs a case, got parts {sorted(set(parts))}."
            )
        self._shuffled = lru_cache(maxsize=64)(self._shuffle)

    def __getitem__(self, sample: int) -> int:
        turn, part = divmod(sample, len(self._cases))
        cases = self._cases[part]
        round_, within = divmod(turn, len(cases))
        return int(cases[self._shuffled(part, round_)[within]])

    def shares(self) -> Array:
        """(cases,) float64: share of the samples that is cut from each case."""
        found = np.zeros(self._count)
        for cases in self._cases:
            found[cases] = 1 / len(self._cases) / len(cases)
        return found

    def _shuffle(self, part: int, round_: int) -> Array:
        drawn = generator(self.seed, round_, stream=f"turns of part {part}")
        return np.asarray(drawn.permutation(len(self._cases[part])))
