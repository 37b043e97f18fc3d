"""Batches of views: planned and read on the CPU ahead, made on the device."""

from __future__ import annotations

import dataclasses
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from homolog.errors import UnusableInput
from homolog.feed.processes import Processes
from homolog.feed.reading import (
    CaseRef,
    StoredCases,
    check_cases,
    naming,
    numbered,
    read_blocks,
)
from homolog.geometry.affine import Affine, Array, Index
from homolog.geometry.sampling import constant
from homolog.store.card import Card
from homolog.store.crops import draw_place
from homolog.store.preprocess import ChannelLevels
from homolog.store.store import DEPTH_STEPS, Store
from homolog.views.generate import (
    Block,
    GroupDraw,
    Levels,
    Share,
    generate,
    recoloured,
    share_blocks,
)
from homolog.views.intensity import Draws
from homolog.views.plan import GroupPlan, Scan, plan_views
from homolog.views.random import generator
from homolog.views.view import (
    Phase,
    Same,
    View,
    Views,
    ViewSpec,
    check_phases,
    check_specs,
    is_partner,
    origin_of,
    phase_at,
)

if TYPE_CHECKING:
    from homolog.feed.places import Places

# The samples of one step put together: what travels to the device at once.


@dataclass(frozen=True)
class Batch:
    """One batch before it goes to the device.

    Attributes:
        step: Number of the batch.
        ids: Case id of each of the B samples.
        case: (B,) int64, position in the feed's cases.
        partner: (B,) int64, the same of the other patient of each sample; its own
            where it has none.
        levels: How stored numbers become intensities.
        partner_levels: The same for the partners.
        draws: Group -> drawn views.
        blocks: Boxes of the scans, int16; in the order of the feed's shares.
    """

    step: int
    ids: tuple[str, ...]
    case: Tensor
    partner: Tensor
    levels: Levels
    partner_levels: Levels
    draws: Mapping[str, GroupDraw]
    blocks: tuple[Block, ...]

    def pin_memory(self) -> Batch:
        """The batch with its boxes in pinned memory."""
        return pinned(self)

    @property
    def nbytes(self) -> int:
        """Bytes of the boxes."""
        parts = (t for b in self.blocks for t in (b.image, b.label, b.depth))
        return sum(t.nbytes for t in parts if t is not None)


def levels_of(cards: Sequence[Card], unclipped: Sequence[int] = ()) -> Levels:
    """Normalised = (clip(stored * scale + offset, low, high) - centre) / spread.

    Args:
        cards: Of the samples.
        unclipped: Channels that keep all their values.
    """

    def column(name: str) -> Tensor:
        rows = [[getattr(one, name) for one in card.levels] for card in cards]
        return torch.tensor(rows, dtype=torch.float64).float()

    found = Levels(*(column(name) for name in ("gain", "bias", "low", "high")))
    if not unclipped:
        return found
    beyond, ends = found.low.clone(), np.iinfo(np.int16)
    for channel in unclipped:
        gain, bias = found.gain[:, channel], found.bias[:, channel]
        found.low[:, channel] = ends.min * gain + bias
        found.high[:, channel] = ends.max * gain + bias
    return replace(found, beyond=beyond)


def fractions_of(cards: Sequence[Card]) -> Tensor:
    """(N, 4, 4) float64: world mm -> place in the scan's box, 0..1 along z, y, x."""
    found = []
    for card in cards:
        share = np.eye(4)
        share[:3, :3] /= card.shape
        share[:3, 3] = 0.5 / np.array(card.shape)  # voxel 0 is centred half a voxel in
        found.append(share @ card.affine.inverse().matrix)
    return torch.from_numpy(np.stack(found))


def centres_within(affine: Tensor, size: Index, fractions: Tensor) -> Tensor:
    """``View.where``, (B, V, 3) float32.

    Args:
        affine: (B, V, 4, 4) float64, view voxel -> world mm.
        size: Voxels of a view.
        fractions: (B, 4, 4), of each sample's scan, as made by ``fractions_of``.
    """
    middle = constant((*((n - 1) / 2 for n in size), 1.0), affine.device)
    return ((fractions[:, None] @ affine) @ middle)[..., :3].float()


def stack_plans(plans: Sequence[GroupPlan]) -> GroupDraw:
    """The views of one group, of all samples."""
    fields = [p.displacement_mm for p in plans if p.displacement_mm is not None]
    return GroupDraw(
        affine=torch.from_numpy(np.stack([p.affine for p in plans])),
        displacement_mm=torch.from_numpy(np.stack(fields)) if fields else None,
        intensity=Draws.stack([p.intensity for p in plans]),
    )


def pad_blocks(blocks: list[Block]) -> Block:
    """One block per sample -> one for the batch, filled up to the largest."""
    shape = [max(b.image.shape[axis] for b in blocks) for axis in (-3, -2, -1)]

    def grown(values: Tensor) -> Tensor:
        gaps = [n - m for n, m in zip(shape, values.shape[-3:], strict=True)]
        if not any(gaps):
            return values
        return torch.nn.functional.pad(values, (0, gaps[2], 0, gaps[1], 0, gaps[0]))

    labels = [grown(b.label) for b in blocks if b.label is not None]
    depths = [grown(b.depth) for b in blocks if b.depth is not None]
    extents = [b.extent for b in blocks if b.extent is not None]
    extent = torch.stack(extents)
    is_full = bool((extent == torch.tensor(shape, dtype=torch.float64)).all())
    return Block(
        image=torch.stack([grown(b.image) for b in blocks]),
        affine=torch.stack([b.affine for b in blocks]),
        extent=None if is_full else extent,
        label=torch.stack(labels) if labels else None,
        depth=torch.stack(depths) if depths else None,
    )


def pinned(batch: Batch) -> Batch:
    """The batch with its boxes in pinned memory."""
    blocks = tuple(block.each(Tensor.pin_memory) for block in batch.blocks)
    return dataclasses.replace(batch, blocks=blocks)


# Which case each sample of a run is cut from: seeded shuffles, shared out by part.


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

    def __init__(
        self, parts: Sequence[int] | NDArray[np.int64], seed: int, power: float = 1.0
    ) -> None:
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
        self._remember()

    def _remember(self) -> None:
        self._shuffled = lru_cache(maxsize=16)(self._shuffle)
        self._turns = lru_cache(maxsize=2)(self._draw_turns)

    def __getstate__(self) -> dict[str, Any]:
        return _without(self, "_shuffled", "_turns")

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._remember()

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


# Paper: Hundred Million Eq. 4.
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
        self._remember()

    def _remember(self) -> None:
        self._shuffled = lru_cache(maxsize=64)(self._shuffle)

    def __getstate__(self) -> dict[str, Any]:
        return _without(self, "_shuffled")

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._remember()

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


def _without(made: Any, *names: str) -> dict[str, Any]:
    """What of an object goes to another process."""
    return {k: v for k, v in made.__dict__.items() if k not in names}


# One sample: where its views lie, and the boxes of the scans they need.


@dataclass(frozen=True)
class Sample:
    """One sample, drawn and read: its cases, its views, one block per share."""

    case: int
    partner: int
    plan: Mapping[str, GroupPlan]
    blocks: list[Block]


@dataclass(frozen=True, eq=False)
class Frames:
    """A frame of the body they share for each case of a feed.

    Attributes:
        to_body: (N, 4, 4) float64, world mm -> mm in the frame (z, y, x).
        number: (N,) int64; places of cases with one number can be compared.
    """

    to_body: Array
    number: NDArray[np.int64]


class Pairing(Protocol):
    """Where the other patient of a sample comes from."""

    def draw(
        self, case: int, rng: np.random.Generator
    ) -> tuple[Array | None, int, Array | None] | None:
        """Place mm (3,), partner's position and place mm (3,).

        A place is None where any will do; the whole is None where there is no partner.
        """

    def frames(self) -> Frames | None:
        """Where the cases lie in a body they share; None where nothing tells it."""


@dataclass(frozen=True)
class Sampler:
    """Draws and reads samples; a pure function of their number.

    Attributes:
        cases: Of the feed.
        seed: Decides every random number.
        balance: Share of places centred on a label, 0..1.
        partners: Other patients, and places in them, for groups that ask for them.
    """

    cases: Sequence[CaseRef]
    seed: int
    balance: float
    partners: Pairing | None

    def sample(
        self,
        number: int,
        position: int,
        specs: Mapping[str, ViewSpec],
        shares: Sequence[Share],
        at: Array | None = None,
    ) -> Sample:
        """Draw and read one sample; errors name the case they belong to.

        Args:
            number: Of the sample, over the whole run and all ranks.
            position: Of its case.
            specs: Groups to make.
            shares: Which of them are read together.
            at: (3,) voxel position that it is centred on; None: drawn.
        """
        match = None
        if self.partners is not None:
            rng = generator(self.seed, number, stream="partner")
            match = self.partners.draw(position, rng)
        if match is None:
            partner = position
            plan = self._plan(position, number, specs, None, at)
        else:
            mm, partner, partner_mm = match  # places are None where any will do
            theirs = {n: s for n, s in specs.items() if is_partner(specs, n)}
            own = {n: s for n, s in specs.items() if n not in theirs}
            plan = self._plan(position, number, own, mm)
            plan |= self._plan(partner, number, theirs, partner_mm)
        blocks: dict[int, Block] = {}
        for which, of in ((False, position), (True, partner)):
            numbers = [i for i, s in enumerate(shares) if s.partner == which]
            some = [shares[i] for i in numbers]
            if some:
                case = self.cases[of]
                with naming(case):
                    found = read_blocks(case.store, case.card, plan, specs, some)
                blocks |= dict(zip(numbers, found, strict=True))
        return Sample(position, partner, plan, [blocks[i] for i in sorted(blocks)])

    def _plan(
        self,
        position: int,
        number: int,
        specs: Mapping[str, ViewSpec],
        matched_mm: Array | None,
        at: Array | None = None,
    ) -> dict[str, GroupPlan]:
        case = self.cases[position]

        def draw(rng: np.random.Generator) -> Array:
            if at is not None:
                return at
            return draw_place(case.store, case.card, rng, self.balance)

        affine = case.card.affine
        known = None if matched_mm is None else affine.inverse().apply(matched_mm)
        with naming(case):
            return plan_views(
                specs, Scan(affine, case.card.shape), draw,
                seed=self.seed, sample=number, matched=known,
            )  # fmt: skip


@dataclass(frozen=True)
class _Scans:
    """The scans that one batch is cut from, on the device.

    Attributes:
        levels: How stored numbers become intensities.
        case: (B,) int64, position in the feed's cases.
        space: (B,) int64, number of the store.
        modality: (B,) int64, number of the modality.
        fractions: (B, 4, 4) float64, see ``fractions_of``.
        target: (B,) or (B, K), see ``View.target``; None where scans have none.
        to_body: (B, 4, 4) float64, see ``View.to_body``; None without matches.
        frame: (B,) int64, see ``View.frame``; None without matches.
    """

    levels: Levels
    case: Tensor
    space: Tensor
    modality: Tensor
    fractions: Tensor
    target: Tensor | None
    to_body: Tensor | None
    frame: Tensor | None

    def view(self, spec: ViewSpec, draw: GroupDraw, block: Block) -> View:
        """The views of one group, with what is known of their scans."""
        levels = self.levels
        view = generate(
            spec, draw, block, levels.outside, self.case, self.space, levels.span
        )
        return dataclasses.replace(
            view,
            target=self.target,
            modality=self.modality,
            where=centres_within(view.affine, spec.size, self.fractions),
            to_body=self.to_body,
            frame=self.frame,
        )


def _kept(cases: Sequence[CaseRef]) -> Sequence[CaseRef]:
    """All of them; those of large stores are looked up one by one."""
    return cases if isinstance(cases, StoredCases) else tuple(cases)


def _spaces_of(cases: Sequence[CaseRef]) -> NDArray[np.int64]:
    if isinstance(cases, StoredCases):
        return cases.spaces()
    known: dict[object, int] = {}
    return np.array([known.setdefault(c.store.path, len(known)) for c in cases])


def _modalities_of(cases: Sequence[CaseRef]) -> NDArray[np.int64]:
    if isinstance(cases, StoredCases):
        return cases.modalities()[0]
    return np.array(numbered([case.card.modality for case in cases]))


def _labelled(cases: Sequence[CaseRef]) -> NDArray[np.bool_]:
    if isinstance(cases, StoredCases):
        return cases.column("labelled") > 0
    return np.array([case.card.has_label for case in cases])


def _volumes(cases: Sequence[CaseRef]) -> NDArray[np.int64]:
    """Positions of the cases that are no single slices."""
    if isinstance(cases, StoredCases):
        return np.flatnonzero(cases.column("slices") > 1)
    return np.flatnonzero([case.card.shape[0] > 1 for case in cases])


@dataclass(frozen=True)
class _CaseTables:
    """What views carry of their case, a row per case of the feed.

    Attributes: as of ``_Scans``, (N, ...); ``fractions`` of many cases are not kept,
        but made of the cards of a batch.
    """

    cases: Sequence[CaseRef]
    spaces: Tensor
    modalities: Tensor
    fractions: Tensor | None
    targets: Tensor | None
    to_body: Tensor | None
    frames: Tensor | None

    @classmethod
    def of(
        cls,
        cases: Sequence[CaseRef],
        targets: Sequence[int] | Sequence[Sequence[float]] | None,
        partners: Pairing | None,
    ) -> _CaseTables:
        frames = None if partners is None else partners.frames()
        # a store is a data set: its labels mean the same in all of its cases
        stores, fractions = _spaces_of(cases), None
        if not isinstance(cases, StoredCases):
            fractions = fractions_of([case.card for case in cases])
        return cls(
            cases,
            torch.from_numpy(stores),
            torch.from_numpy(_modalities_of(cases)),
            fractions,
            None if targets is None else torch.tensor(targets),
            None if frames is None else torch.from_numpy(frames.to_body),
            None if frames is None else torch.from_numpy(frames.number),
        )

    def target_of(self, case: Tensor) -> Tensor | None:
        """``View.host_target`` of some cases."""
        return None if self.targets is None else self.targets[case]

    def at(self, levels: Levels, case: Tensor, device: torch.device) -> _Scans:
        """The rows of some cases, copied to a device without waiting."""

        def rows(table: Tensor) -> Tensor:
            return table[case].to(device, non_blocking=True)

        def some(table: Tensor | None) -> Tensor | None:
            return None if table is None else rows(table)

        if self.fractions is not None:
            fractions = rows(self.fractions)
        else:
            cards = [self.cases[int(place)].card for place in case]
            fractions = fractions_of(cards).to(device, non_blocking=True)
        return _Scans(
            levels.to(device),
            case.to(device, non_blocking=True),
            rows(self.spaces),
            rows(self.modalities),
            fractions,
            some(self.targets),
            some(self.to_body),
            some(self.frames),
        )


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
    cases: Sequence[int] | NDArray[np.int64]
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
        specs: The groups of views, as a method wants them.
        batch_size: Samples per batch on this rank.
        seed: Decides every random number.
        balance: Share of places centred on a label, 0..1.
        rank: This process, 0..world_size - 1.
        world_size: Number of processes.
        threads: Threads that make batches ahead; 0 makes them on demand.
        processes: Processes that make them instead, where nothing steers ``places``;
            0: threads.
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
            so that the copy up runs beside its work. Another device touches no GPU.
        unclipped: Channels whose values are not clipped to what is usual in a scan.
        places: Where a share of the samples is cut instead; None: all in their turn.

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
        processes: int = 0,
        partners: Pairing | None = None,
        share_by: str = "store",
        share_power: float = 1.0,
        turns: Sequence[int] | None = None,
        targets: Sequence[int] | Sequence[Sequence[float]] | None = None,
        phases: Sequence[Phase] = (),
        device: torch.device | None = None,
        unclipped: Sequence[int] = (),
        places: Places | None = None,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size or threads < 0:
            raise ValueError(
                "a feed needs batch_size >= 1, 0 <= rank < world_size and "
                f"threads >= 0, got {batch_size}, {rank}, {world_size}, {threads}."
            )
        check_specs(specs)
        check_cases(cases)
        self.cases, self.specs = _kept(cases), dict(specs)
        self.batch_size, self.seed = batch_size, seed
        self.rank, self.world_size, self.threads = rank, world_size, threads
        self.share_by, self.share_power, self.turns = share_by, share_power, turns
        self.phases, self.unclipped = tuple(phases), tuple(unclipped)
        self.places = places
        self.batch_multiple = 1 if turns is None else max(turns) + 1
        self._sampler = Sampler(self.cases, seed, balance, partners)
        self._tables = _CaseTables.of(self.cases, targets, partners)
        everywhere = range(len(self.cases))
        self._whole = _Part(
            self.specs, share_blocks(self.specs), everywhere, self._order(everywhere)
        )
        if phases:
            check_phases(phases, specs)
        self._parts = tuple(self._part(phase) for phase in self.phases)
        self._pin = device is not None and device.type == "cuda"
        self.processes = 0 if places is not None else processes
        self._others: list[Processes] = []  # begun when first needed, for all sizes

    def __getstate__(self) -> dict[str, Any]:
        # of a process that makes batches: it has no others, and touches no GPU
        return {**self.__dict__, "_others": [], "processes": 0, "_pin": False}

    def _order(
        self, positions: Sequence[int] | NDArray[np.int64]
    ) -> CaseOrder | TurnOrder:
        if self.turns is not None:
            return TurnOrder([self.turns[i] for i in positions], self.seed)
        tables = self._tables
        of = tables.modalities if self.share_by == "modality" else tables.spaces
        at = np.asarray(positions)
        kinds = 2 * of.numpy()[at] + _labelled(self.cases)[at]
        # numbered as they come
        _, first, inverse = np.unique(kinds, return_index=True, return_inverse=True)
        part = np.argsort(np.argsort(first))[inverse]
        return CaseOrder(part, self.seed, self.share_power)

    def _part(self, phase: Phase) -> _Part:
        specs = {n: s for n, s in self.specs.items() if n in phase.groups}
        cases: Sequence[int] | NDArray[np.int64] = range(len(self.cases))
        if phase.volumes:
            cases = _volumes(self.cases)
        if not len(cases):
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
        # one sample alone has nothing to be contrasted with
        count = min(self.batch_size, max(2, round(self.batch_size * part.samples)))
        drawn = [self._drawn(part, sample) for sample in range(first, first + count)]
        cards = [self.cases[sample.case].card for sample in drawn]
        partners = [self.cases[sample.partner].card for sample in drawn]
        batch = Batch(
            step=step,
            ids=tuple(card.id for card in cards),
            case=torch.tensor([s.case for s in drawn], dtype=torch.int64),
            partner=torch.tensor([s.partner for s in drawn], dtype=torch.int64),
            levels=levels_of(cards, self.unclipped),
            partner_levels=levels_of(partners, self.unclipped),
            draws={
                name: stack_plans([s.plan[name] for s in drawn]) for name in part.specs
            },
            blocks=tuple(
                pad_blocks(list(row))
                for row in zip(*(s.blocks for s in drawn), strict=True)
            ),
        )
        return pinned(batch) if self._pin else batch

    def _drawn(self, part: _Part, number: int) -> Sample:
        found = None if self.places is None else self.places.of(self.seed, number)
        case, at = found or (int(part.cases[part.order[number]]), None)
        return self._sampler.sample(number, case, part.specs, part.shares, at)

    def stream(
        self, first: int, stop: int, progress: Callable[[int], float] | None = None
    ) -> Iterator[Batch]:
        """Batches ``first`` to ``stop - 1`` in order, made ahead by threads.

        Phases are shares of ``progress`` (batches before -> share of the training
        done); without, of ``stop``. At most ``threads + 1`` batches wait in memory.
        An error of a thread is raised here, at the batch it belongs to.
        """
        share = progress or (lambda step: step / stop)
        if self.processes:
            if not self._others:
                self._others.append(Processes(self, self.processes, self._pin))
            yield from self._others[0].stream(first, stop, share, self.batch_size)
            return
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

    def close(self) -> None:
        """End the processes that make batches; they begin again when needed."""
        while self._others:
            self._others.pop().close()

    @torch.no_grad()
    def views(self, batch: Batch, device: torch.device | str) -> Views:
        """Make the views of a batch on a device: one copy up, no waiting for it.

        Args:
            batch: From ``batch`` or ``stream``.
            device: Where the views are to lie.
        """
        device = torch.device(device)
        shares = next(
            part.shares
            for part in (self._whole, *self._parts)
            if part.specs.keys() == batch.draws.keys()
        )
        own = batch.levels, batch.case
        theirs = batch.partner_levels, batch.partner
        scans = {
            which: self._tables.at(*(theirs if which else own), device)
            for which in {share.partner for share in shares}
        }
        made: dict[str, View] = {}
        for share, stored in zip(shares, batch.blocks, strict=True):
            scan, block = scans[share.partner], stored.to(device)
            normalised = dataclasses.replace(
                block,
                image=scan.levels.normalise(block.image),
                depth=None
                if block.depth is None
                else block.depth.float() / DEPTH_STEPS,
            )
            for name in share.groups:
                spec, draw = self.specs[name], batch.draws[name].to(device)
                if isinstance(spec.place, Same):
                    shown = made[spec.place.group]
                    levels = scan.levels
                    made[name] = recoloured(
                        spec, draw, shown, levels.outside, levels.span
                    )
                else:
                    of = batch.partner if share.partner else batch.case
                    made[name] = dataclasses.replace(
                        scan.view(spec, draw, normalised),
                        origin=origin_of(batch.draws[name].affine, of),
                        host_target=self._tables.target_of(of),
                    )
        return Views({name: made[name] for name in batch.draws})

    def with_batch_size(self, batch_size: int) -> Feed:
        """The same samples in the same order, cut into other batches."""
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__)  # the same processes too
        other.batch_size = batch_size
        return other

    def case_of(self, sample: int) -> int:
        """Position of the case that sample number ``sample`` of the run is cut from."""
        return self._whole.order[sample]

    def modality_shares(self) -> list[tuple[tuple[str, ...], dict[str, float]]]:
        """Of each phase (or of all): its groups, and each modality's share of samples.

        Shares add up to 1; the largest comes first.
        """
        rows = []
        for part in self._parts or (self._whole,):
            found: dict[str, float] = {}
            if isinstance(self.cases, StoredCases):
                numbers, names = self.cases.modalities()
                own = numbers[np.asarray(part.cases)]
                summed = np.bincount(own, part.order.shares(), len(names))
                found = {n: float(s) for n, s in zip(names, summed, strict=True) if s}
            else:
                for i, share in zip(part.cases, part.order.shares(), strict=True):
                    kind = self.cases[i].card.modality
                    if share > 0:
                        found[kind] = found.get(kind, 0.0) + float(share)
            ordered = sorted(found.items(), key=lambda item: -item[1])
            rows.append((tuple(part.specs), dict(ordered)))
        return rows


def feed_threads(device: torch.device) -> int:
    """Reading ahead: a GPU is fed by most cores, a CPU needs its cores to compute.

    Under ``torchrun`` the processes of this machine share its cores.
    """
    if device.type == "cpu":
        return 1
    sharing = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return max(1, min(8, (os.cpu_count() or 2) // sharing - 1))


# One view of one scan, without chance: what a network sees when it predicts.


@dataclass(frozen=True, eq=False)
class StoredScan:
    """A scan as the store keeps it, whether it lies in one or not.

    Attributes:
        data: (C, D, H, W) int16.
        affine: Voxel -> world mm.
        levels: What the numbers of each channel mean.
    """

    data: NDArray[np.int16]
    affine: Affine
    levels: tuple[ChannelLevels, ...]

    id = "scan"

    @property
    def shape(self) -> Index:
        """Voxels (D, H, W)."""
        d, h, w = self.data.shape[1:]
        return d, h, w

    @property
    def channels(self) -> int:
        """Of an image voxel."""
        return len(self.data)

    def image(self, case_id: str) -> NDArray[np.int16]:
        """Its voxels, as a store hands them out."""
        return self.data

    def label(self, case_id: str) -> None:
        """It has no labels."""


def view_of(
    spec: ViewSpec,
    scan: StoredScan,
    device: torch.device,
    affine: Array | None = None,
) -> View:
    """A view of a scan around its middle, or anywhere; batch of one.

    Args:
        spec: One group; nothing of it may be random.
        scan: The scan.
        device: Where the view is to lie.
        affine: (4, 4) view voxel -> world mm, to put it elsewhere.
    """
    specs: Mapping[str, ViewSpec] = {"view": spec}
    middle = (np.array(scan.shape) - 1) / 2
    plan = plan_views(
        specs, Scan(scan.affine, scan.shape), lambda _: middle, seed=0, sample=0
    )
    if affine is not None:
        plan = {"view": replace(plan["view"], affine=affine[None])}
    source: Any = scan
    shares = share_blocks(specs)
    store, card = cast("Store", source), cast("Card", source)
    block = pad_blocks(read_blocks(store, card, plan, specs, shares))
    if device.type == "cuda":
        block = block.each(Tensor.pin_memory)
    block = block.to(device)
    levels = levels_of([card]).to(device)
    return generate(
        spec,
        stack_plans([plan["view"]]).to(device),
        replace(block, image=levels.normalise(block.image)),
        levels.low,
        torch.zeros(1, dtype=torch.int64, device=device),
        span=levels.span,
    )
