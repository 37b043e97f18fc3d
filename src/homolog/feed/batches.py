"""Batches of views: planned and read on the CPU ahead of time, made on the device.

A batch is a pure function of (seed, step, rank): it can be made again, in any order and
by any number of threads, with the same numbers.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from homolog.data.card import Card
from homolog.data.crops import draw_place
from homolog.data.depths import STEPS
from homolog.data.pairs import Pairing
from homolog.data.store import Store
from homolog.errors import JobError, UnusableInput
from homolog.feed.collate import Batch, levels_of, pad_blocks, pinned, stack_plans
from homolog.feed.order import CaseOrder, TurnOrder
from homolog.feed.reading import read_blocks
from homolog.geometry.affine import Array
from homolog.views.blocks import Share, share_blocks
from homolog.views.generate import Block, generate, recoloured
from homolog.views.plan import GroupPlan, Scan, plan_views
from homolog.views.random import generator
from homolog.views.specs import check_specs, is_partner
from homolog.views.view import Same, View, Views, ViewSpec


@dataclass(frozen=True)
class CaseRef:
    """A case of a store."""

    store: Store
    card: Card


class Feed:
    """What a training run sees.

    ``batch_multiple`` is the number of parts that take turns: batches must be multiples
    of it to hold equally many of each.

    Every epoch is a seeded shuffle of all cases (see CaseOrder for several stores);
    epochs follow each other without a gap, whatever the batch size.

    Args:
        cases: At least one; all with the same number of channels.
        specs: The groups of views, as a method asks for them.
        batch_size: Samples per batch on this rank.
        seed: Decides every random number.
        balance: Share of places centred on a label, 0..1.
        rank: This process, 0..world_size - 1.
        world_size: Number of processes.
        threads: Threads that make batches ahead; 0 makes them when asked for.
        partners: Other patients, and places in them, for groups that ask for them;
            without, every sample is its own partner.
        store_power: How samples are shared out between stores, and in each between
            labelled and unlabelled cases, see CaseOrder.

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
        partners: Pairing | None = None,
        store_power: float = 1.0,
        turns: Sequence[int] | None = None,
        targets: Sequence[int] | None = None,
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
        self.partners = partners
        self._shares = share_blocks(self.specs)
        # a store is a data set: its labels mean the same in all of its cases
        known: dict[object, int] = {}
        stores = [known.setdefault(case.store.path, len(known)) for case in self.cases]
        self._label_spaces = torch.tensor(stores)
        self.store_power = store_power
        labelled = [case.card.has_label for case in self.cases]
        parts = [*dict.fromkeys(zip(stores, labelled, strict=True))]
        order = [parts.index(part) for part in zip(stores, labelled, strict=True)]
        self.turns, self.targets = turns, targets
        self._order: CaseOrder | TurnOrder = (
            CaseOrder(order, seed, store_power)
            if turns is None
            else TurnOrder(turns, seed)
        )
        self.batch_multiple = 1 if turns is None else max(turns) + 1
        self._target = None if targets is None else torch.tensor(targets)
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
        drawn = [self._sample(sample) for sample in samples]
        cards = [self.cases[sample.case].card for sample in drawn]
        partners = [self.cases[sample.partner].card for sample in drawn]
        batch = Batch(
            step=step,
            ids=tuple(card.id for card in cards),
            case=torch.tensor([s.case for s in drawn], dtype=torch.int64),
            partner=torch.tensor([s.partner for s in drawn], dtype=torch.int64),
            levels=levels_of(cards),
            partner_levels=levels_of(partners),
            draws={
                name: stack_plans([s.plan[name] for s in drawn]) for name in self.specs
            },
            blocks=tuple(
                pad_blocks(list(row))
                for row in zip(*(s.blocks for s in drawn), strict=True)
            ),
        )
        return pinned(batch) if self._pin else batch

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
        made: dict[str, View] = {}
        both = {
            False: (batch.levels, batch.case),
            True: (batch.partner_levels, batch.partner),
        }
        needed = {share.partner for share in self._shares}
        ready = {
            which: (levels.to(device), case.to(device, non_blocking=True))
            for which, (levels, case) in both.items()
            if which in needed
        }
        spaces = self._label_spaces.to(device, non_blocking=True)
        for share, stored in zip(self._shares, batch.blocks, strict=True):
            levels, case = ready[share.partner]
            block = stored.to(device)
            normalised = dataclasses.replace(
                block,
                image=levels.normalise(block.image),
                depth=None if block.depth is None else block.depth.float() / STEPS,
            )
            for name in share.groups:
                spec = self.specs[name]
                draw = batch.draws[name].to(device)
                if isinstance(spec.place, Same):
                    shown = made[spec.place.group]
                    made[name] = recoloured(spec, draw, shown, levels.low)
                else:
                    made[name] = generate(
                        spec, draw, normalised, levels.low, case, spaces[case]
                    )
                    if self._target is not None:
                        target = self._target.to(device, non_blocking=True)[case]
                        made[name] = dataclasses.replace(made[name], target=target)
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
            partners=self.partners,
            store_power=self.store_power,
            turns=self.turns,
            targets=self.targets,
        )

    def case_of(self, sample: int) -> int:
        """Position of the case that sample number ``sample`` of the run is cut from."""
        return self._order[sample]

    def _sample(self, sample: int) -> _Sample:
        """Draw and read one sample; errors name the case they belong to."""
        position = self.case_of(sample)
        match = None
        if self.partners is not None:
            rng = generator(self.seed, sample, stream="partner")
            match = self.partners.draw(position, rng)
        if match is None:
            partner = position
            plan = self._plan(position, sample, self.specs, None)
        else:
            mm, partner, partner_mm = match  # places are None where any will do
            theirs = {n: s for n, s in self.specs.items() if is_partner(self.specs, n)}
            own = {n: s for n, s in self.specs.items() if n not in theirs}
            plan = self._plan(position, sample, own, mm)
            plan |= self._plan(partner, sample, theirs, partner_mm)
        blocks: dict[int, Block] = {}
        for which, at in ((False, position), (True, partner)):
            numbers = [i for i, s in enumerate(self._shares) if s.partner == which]
            shares = [self._shares[i] for i in numbers]
            if shares:
                found = self._read(at, plan, shares)
                blocks |= dict(zip(numbers, found, strict=True))
        return _Sample(position, partner, plan, [blocks[i] for i in sorted(blocks)])

    def _read(
        self, position: int, plan: Mapping[str, GroupPlan], shares: Sequence[Share]
    ) -> list[Block]:
        case = self.cases[position]
        with _naming(case):
            return read_blocks(case.store, case.card, plan, self.specs, shares)

    def _plan(
        self,
        position: int,
        sample: int,
        specs: Mapping[str, ViewSpec],
        matched_mm: Array | None,
    ) -> dict[str, GroupPlan]:
        case = self.cases[position]

        def draw(rng: np.random.Generator) -> Array:
            return draw_place(case.store, case.card, rng, self.balance)

        affine = case.card.affine
        known = None if matched_mm is None else affine.inverse().apply(matched_mm)
        with _naming(case):
            return plan_views(
                specs, Scan(affine, case.card.shape), draw,
                seed=self.seed, sample=sample, matched=known,
            )  # fmt: skip


@contextmanager
def _naming(case: CaseRef) -> Iterator[None]:
    """Errors name the case they belong to."""
    try:
        yield
    except UnusableInput as error:
        raise UnusableInput(f"case {case.card.id!r}: {error}") from error
    except Exception as error:
        text = str(error) or type(error).__name__
        raise JobError(f"case {case.card.id!r}: {text}") from error


@dataclass(frozen=True)
class _Sample:
    """One sample, drawn and read: its cases, its views, one block per share."""

    case: int
    partner: int
    plan: Mapping[str, GroupPlan]
    blocks: list[Block]


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
