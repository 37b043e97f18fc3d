"""Batches of views: planned and read on the CPU ahead of time, made on the device.

A batch is a pure function of (seed, step, rank): it can be made again, in any order and
by any number of threads, with the same numbers.
"""

from __future__ import annotations

import dataclasses
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from homolog.data.depths import STEPS
from homolog.data.pairs import Pairing
from homolog.errors import UnusableInput
from homolog.feed.cases import CaseRef, check_cases, numbered
from homolog.feed.collate import (
    Batch,
    centres_within,
    fractions_of,
    levels_of,
    pad_blocks,
    pinned,
    stack_plans,
)
from homolog.feed.order import CaseOrder, TurnOrder
from homolog.feed.samples import Sampler
from homolog.views.blocks import Share, share_blocks
from homolog.views.generate import generate, recoloured
from homolog.views.specs import Phase, check_phases, check_specs, phase_at
from homolog.views.view import Same, View, Views, ViewSpec


@dataclass(frozen=True)
class _Part:
    """What is made of every batch in a phase.

    Attributes:
        specs: Groups.
        shares: Which of them are read together.
        cases: Positions of the cases it is made of.
        order: Which of them each sample is cut from.
        samples: Share of a batch's samples.
    """

    specs: Mapping[str, ViewSpec]
    shares: tuple[Share, ...]
    cases: Sequence[int]
    order: CaseOrder | TurnOrder
    samples: float = 1.0


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
        share_by: Between whom samples are shared out: ``store`` or ``modality``, and
            in each between labelled and unlabelled cases.
        share_power: How, see CaseOrder.
        turns: Number of each case's part where parts take turns, see TurnOrder.
        targets: Number of each case's class, -1 where unknown, or a row of numbers
            for each; see ``View.target``.
        phases: Stretches of the training, as shares of a stream's last batch, that
            make some of the groups each.
        device: Where the views will be made; for a GPU batches wait in pinned memory,
            so that the copy up runs beside its work. For another no GPU is asked.

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
        share_by: str = "store",
        share_power: float = 1.0,
        turns: Sequence[int] | None = None,
        targets: Sequence[int] | Sequence[Sequence[float]] | None = None,
        phases: Sequence[Phase] = (),
        device: torch.device | None = None,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size or threads < 0:
            raise ValueError(
                "a feed needs batch_size >= 1, 0 <= rank < world_size and "
                f"threads >= 0, got {batch_size}, {rank}, {world_size}, {threads}."
            )
        check_specs(specs)
        check_cases(cases)
        self.cases = tuple(cases)
        self.specs = dict(specs)
        self.batch_size = batch_size
        self.seed = seed
        self.balance = balance
        self.rank = rank
        self.world_size = world_size
        self.threads = threads
        self.partners = partners
        self.share_by, self.share_power = share_by, share_power
        self.turns, self.targets = turns, targets
        self.phases = tuple(phases)
        self.batch_multiple = 1 if turns is None else max(turns) + 1
        self._sampler = Sampler(self.cases, seed, balance, partners)
        # a store is a data set: its labels mean the same in all of its cases
        known: dict[object, int] = {}
        stores = [known.setdefault(case.store.path, len(known)) for case in self.cases]
        self._label_spaces = torch.tensor(stores)
        self._fractions = fractions_of([case.card for case in self.cases])
        self._modalities = torch.tensor(numbered([c.card.modality for c in cases]))
        everywhere = range(len(self.cases))
        self._whole = _Part(
            self.specs, share_blocks(self.specs), everywhere, self._order(everywhere)
        )
        if phases:
            check_phases(phases, specs)
        self._parts = tuple(self._part(phase) for phase in self.phases)
        self._target = None if targets is None else torch.tensor(targets)
        self.device = device
        self._pin = device is not None and device.type == "cuda"

    def _order(self, positions: Sequence[int]) -> CaseOrder | TurnOrder:
        if self.turns is not None:
            return TurnOrder([self.turns[i] for i in positions], self.seed)
        of = self._modalities if self.share_by == "modality" else self._label_spaces
        kinds = [(int(of[i]), self.cases[i].card.has_label) for i in positions]
        parts = [*dict.fromkeys(kinds)]
        return CaseOrder([parts.index(k) for k in kinds], self.seed, self.share_power)

    def _part(self, phase: Phase) -> _Part:
        specs = {n: s for n, s in self.specs.items() if n in phase.groups}
        deep = [i for i, case in enumerate(self.cases) if case.card.shape[0] > 1]
        cases = deep if phase.volumes else range(len(self.cases))
        if not cases:
            raise UnusableInput(
                f"a part of this training ({', '.join(phase.groups)}) needs volumes, "
                f"but all {len(self.cases)} scans are single slices."
            )
        return _Part(
            specs, share_blocks(specs), cases, self._order(cases), phase.samples
        )

    def batch(self, step: int, progress: float | None = None) -> Batch:
        """The batch of a step.

        Args:
            step: Its number.
            progress: Share of the training done, which decides the phase; None: all
                groups.

        Raises:
            JobError: A case could not be read; the message names it.
            UnusableInput: The same, where the case itself is at fault.
        """
        part = self._whole
        if self._parts and progress is not None:
            part = self._parts[phase_at(self.phases, progress)]
        first = (step * self.world_size + self.rank) * self.batch_size
        # one sample alone has nothing to be told from
        count = min(self.batch_size, max(2, round(self.batch_size * part.samples)))
        drawn = [
            self._sampler.sample(
                sample, part.cases[part.order[sample]], part.specs, part.shares
            )
            for sample in range(first, first + count)
        ]
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
                name: stack_plans([s.plan[name] for s in drawn]) for name in part.specs
            },
            blocks=tuple(
                pad_blocks(list(row))
                for row in zip(*(s.blocks for s in drawn), strict=True)
            ),
        )
        return pinned(batch) if self._pin else batch

    def stream(
        self, first: int, stop: int, progress: Callable[[int], float] | None = None
    ) -> Iterator[Batch]:
        """Batches ``first`` to ``stop - 1`` in order, made ahead by threads.

        Phases are shares of ``progress`` (batches before -> share of the training
        done); without, of ``stop``. At most ``threads + 1`` batches wait in memory.
        An error of a thread is raised here, at the batch it belongs to.
        """
        share = progress or (lambda step: step / stop)
        if self.threads == 0:
            yield from (self.batch(s, share(s)) for s in range(first, stop))
            return
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="homolog-feed")
        waiting: deque[Future[Batch]] = deque()
        try:
            for step in range(first, stop):
                waiting.append(pool.submit(self.batch, step, share(step)))
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
        shares = next(
            part.shares
            for part in (self._whole, *self._parts)
            if part.specs.keys() == batch.draws.keys()
        )
        both = {
            False: (batch.levels, batch.case),
            True: (batch.partner_levels, batch.partner),
        }
        needed = {share.partner for share in shares}
        ready = {
            which: (levels.to(device), case.to(device, non_blocking=True))
            for which, (levels, case) in both.items()
            if which in needed
        }
        spaces, modalities = (
            table.to(device, non_blocking=True)
            for table in (self._label_spaces, self._modalities)
        )
        for share, stored in zip(shares, batch.blocks, strict=True):
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
                    view = generate(
                        spec, draw, normalised, levels.low, case, spaces[case]
                    )
                    inside = self._fractions[both[share.partner][1]].to(
                        device, non_blocking=True
                    )
                    target = None
                    if self._target is not None:
                        target = self._target.to(device, non_blocking=True)[case]
                    made[name] = dataclasses.replace(
                        view,
                        target=target,
                        modality=modalities[case],
                        where=centres_within(view.affine, spec.size, inside),
                    )
        return Views({name: made[name] for name in batch.draws})

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
            share_by=self.share_by,
            share_power=self.share_power,
            turns=self.turns,
            targets=self.targets,
            phases=self.phases,
            device=self.device,
        )

    def case_of(self, sample: int) -> int:
        """Position of the case that sample number ``sample`` of the run is cut from."""
        return self._whole.order[sample]

    def modality_shares(self) -> list[tuple[tuple[str, ...], dict[str, float]]]:
        """Of each phase (or of all): its groups, and each modality's share of samples.

        Shares add up to 1; the largest comes first.
        """
        told = []
        for part in self._parts or (self._whole,):
            found: dict[str, float] = {}
            for i, share in zip(part.cases, part.order.shares(), strict=True):
                kind = self.cases[i].card.modality
                if share > 0:
                    found[kind] = found.get(kind, 0.0) + float(share)
            ordered = sorted(found.items(), key=lambda item: -item[1])
            told.append((tuple(part.specs), dict(ordered)))
        return told


def feed_threads(device: torch.device) -> int:
    """Reading ahead: a GPU is fed by most cores, a CPU needs its cores to compute.

    Under ``torchrun`` the processes of this machine share its cores.
    """
    if device.type == "cpu":
        return 1
    sharing = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return max(1, min(8, (os.cpu_count() or 2) // sharing - 1))
