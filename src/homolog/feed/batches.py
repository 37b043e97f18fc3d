"""Batches of views: planned and read on the CPU ahead of time, made on the device.

A batch is a pure function of (seed, step, rank): it can be made again, in any order and
by any number of threads, with the same numbers.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from homolog.data.card import Card
from homolog.data.crops import draw_place
from homolog.data.store import Store
from homolog.errors import JobError, UnusableInput
from homolog.feed.reading import read_blocks
from homolog.geometry.affine import Array
from homolog.views.blocks import share_blocks
from homolog.views.generate import Block, GroupDraw, Levels, generate
from homolog.views.intensity import Draws
from homolog.views.plan import GroupPlan, Scan, check_specs, plan_views
from homolog.views.random import generator
from homolog.views.view import View, Views, ViewSpec


@dataclass(frozen=True)
class CaseRef:
    """A case of a store."""

    store: Store
    card: Card


@dataclass(frozen=True)
class Batch:
    """One batch before it goes to the device.

    Attributes:
        step: Number of the batch.
        ids: Case id of each of the B samples.
        case: (B,) int64, position in the feed's cases.
        levels: How stored numbers become intensities.
        draws: Group -> drawn views.
        blocks: Boxes of the scans, int16; in the order of the feed's shares.
    """

    step: int
    ids: tuple[str, ...]
    case: Tensor
    levels: Levels
    draws: Mapping[str, GroupDraw]
    blocks: tuple[Block, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the boxes."""
        tensors = [t for b in self.blocks for t in (b.image, b.label) if t is not None]
        return sum(t.nbytes for t in tensors)


class Feed:
    """What a training run sees.

    Every epoch is a seeded shuffle of all cases; epochs follow each other without a
    gap, whatever the batch size.

    Args:
        cases: At least one; all with the same number of channels.
        specs: The groups of views, as a method asks for them.
        batch_size: Samples per batch on this rank.
        seed: Decides every random number.
        balance: Share of places centred on a label, 0..1.
        rank: This process, 0..world_size - 1.
        world_size: Number of processes.
        threads: Threads that make batches ahead; 0 makes them when asked for.

    Raises:
        UnusableInput: No cases, or cases that do not fit together.
        ValueError: A spec or number that cannot be meant.
    """

    def __init__(
        self,
        cases: Sequence[CaseRef],
        specs: Mapping[str, ViewSpec],
        *,
        batch_size: int,
        seed: int,
        balance: float = 0.0,
        rank: int = 0,
        world_size: int = 1,
        threads: int = 1,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size or threads < 0:
            raise ValueError(
                "a feed needs batch_size >= 1, 0 <= rank < world_size and "
                f"threads >= 0, got {batch_size}, {rank}, {world_size}, {threads}."
            )
        check_specs(specs)
        _check_cases(cases)
        self.cases = tuple(cases)
        self.specs = dict(specs)
        self.batch_size = batch_size
        self.seed = seed
        self.balance = balance
        self.rank = rank
        self.world_size = world_size
        self.threads = threads
        self._shares = share_blocks(self.specs)
        self._shuffled = lru_cache(maxsize=4)(self._shuffle)
        # pinned memory lets the copy up run beside the device's work
        self._pin = torch.cuda.is_available()

    def batch(self, step: int) -> Batch:
        """The batch of a step.

        Raises:
            JobError: A case could not be read; the message names it.
            UnusableInput: The same, where the case itself is at fault.
        """
        first = (step * self.world_size + self.rank) * self.batch_size
        samples = range(first, first + self.batch_size)
        cases = [self.case_of(sample) for sample in samples]
        plans, parts = [], []
        for sample, position in zip(samples, cases, strict=True):
            case = self.cases[position]
            try:
                plan = self._plan(case, sample)
                part = read_blocks(
                    case.store, case.card, plan, self.specs, self._shares
                )
            except UnusableInput as error:
                raise UnusableInput(f"case {case.card.id!r}: {error}") from error
            except Exception as error:
                text = str(error) or type(error).__name__
                raise JobError(f"case {case.card.id!r}: {text}") from error
            plans.append(plan)
            parts.append(part)
        cards = [self.cases[position].card for position in cases]
        batch = Batch(
            step=step,
            ids=tuple(card.id for card in cards),
            case=torch.tensor(cases, dtype=torch.int64),
            levels=_levels(cards),
            draws={name: _stack([p[name] for p in plans]) for name in self.specs},
            blocks=tuple(_pad(list(row)) for row in zip(*parts, strict=True)),
        )
        return _pinned(batch) if self._pin else batch

    def stream(self, first: int, stop: int) -> Iterator[Batch]:
        """Batches ``first`` to ``stop - 1`` in order, made ahead by threads.

        At most ``threads + 1`` batches wait in memory. An error of a thread is raised
        here, at the batch it belongs to.
        """
        if self.threads == 0:
            yield from map(self.batch, range(first, stop))
            return
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="homolog-feed")
        waiting: deque[Future[Batch]] = deque()
        try:
            for step in range(first, stop):
                waiting.append(pool.submit(self.batch, step))
                if len(waiting) > self.threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    @torch.no_grad()
    def views(self, batch: Batch, device: torch.device | str) -> Views:
        """Make the views of a batch on a device: one copy up, no waiting for it.

        Args:
            batch: From ``batch`` or ``stream``.
            device: Where the views are to lie.
        """
        device = torch.device(device)
        levels = batch.levels.to(device)
        case = batch.case.to(device, non_blocking=True)
        made: dict[str, View] = {}
        for share, stored in zip(self._shares, batch.blocks, strict=True):
            block = stored.to(device)
            normalised = dataclasses.replace(block, image=levels.normalise(block.image))
            for name in share.groups:
                draw = batch.draws[name].to(device)
                made[name] = generate(
                    self.specs[name], draw, normalised, levels.low, case
                )
        return Views({name: made[name] for name in self.specs})

    def with_batch_size(self, batch_size: int) -> Feed:
        """The same samples in the same order, cut into other batches."""
        return Feed(
            self.cases,
            self.specs,
            batch_size=batch_size,
            seed=self.seed,
            balance=self.balance,
            rank=self.rank,
            world_size=self.world_size,
            threads=self.threads,
        )

    def case_of(self, sample: int) -> int:
        """Position of the case that sample number ``sample`` of the run is cut from."""
        epoch, place = divmod(sample, len(self.cases))
        return int(self._shuffled(epoch)[place])

    def _shuffle(self, epoch: int) -> Array:
        order = generator(self.seed, epoch, stream="epoch").permutation(len(self.cases))
        return np.asarray(order)

    def _plan(self, case: CaseRef, sample: int) -> dict[str, GroupPlan]:
        def draw(rng: np.random.Generator) -> Array:
            return draw_place(case.store, case.card, rng, self.balance)

        scan = Scan(case.card.affine, case.card.shape)
        return plan_views(self.specs, scan, draw, seed=self.seed, sample=sample)


def _check_cases(cases: Sequence[CaseRef]) -> None:
    if not cases:
        raise UnusableInput("at least one case is needed to train on, got none.")
    first = cases[0].card
    for case in cases:
        if case.card.channels != first.channels:
            raise UnusableInput(
                f"all cases must have the same channels; case {first.id!r} has "
                f"{first.channels}, case {case.card.id!r} has {case.card.channels}."
            )


def _levels(cards: Sequence[Card]) -> Levels:
    """Normalised = (clip(stored * scale + offset, low, high) - centre) / spread."""

    def column(values: list[float]) -> Tensor:
        whole = torch.tensor(values, dtype=torch.float64)[:, None]
        return whole.float().repeat(1, cards[0].channels)

    return Levels(
        gain=column([c.scale / c.spread for c in cards]),
        bias=column([(c.offset - c.centre) / c.spread for c in cards]),
        low=column([(c.low - c.centre) / c.spread for c in cards]),
        high=column([(c.high - c.centre) / c.spread for c in cards]),
    )


def _stack(plans: Sequence[GroupPlan]) -> GroupDraw:
    fields = [p.displacement_mm for p in plans if p.displacement_mm is not None]
    return GroupDraw(
        affine=torch.from_numpy(np.stack([p.affine for p in plans])),
        displacement_mm=torch.from_numpy(np.stack(fields)) if fields else None,
        intensity=Draws.stack([p.intensity for p in plans]),
    )


def _pad(blocks: list[Block]) -> Block:
    """One block per sample -> one for the batch, filled up to the largest."""
    shape = [max(b.image.shape[axis] for b in blocks) for axis in (-3, -2, -1)]

    def grown(values: Tensor) -> Tensor:
        gaps = [n - m for n, m in zip(shape, values.shape[-3:], strict=True)]
        if not any(gaps):
            return values
        return torch.nn.functional.pad(values, (0, gaps[2], 0, gaps[1], 0, gaps[0]))

    labels = [grown(b.label) for b in blocks if b.label is not None]
    extents = [b.extent for b in blocks if b.extent is not None]
    extent = torch.stack(extents)
    is_full = bool((extent == torch.tensor(shape, dtype=torch.float64)).all())
    return Block(
        image=torch.stack([grown(b.image) for b in blocks]),
        affine=torch.stack([b.affine for b in blocks]),
        extent=None if is_full else extent,
        label=torch.stack(labels) if labels else None,
    )


def _pinned(batch: Batch) -> Batch:
    blocks = tuple(block.each(Tensor.pin_memory) for block in batch.blocks)
    return dataclasses.replace(batch, blocks=blocks)
