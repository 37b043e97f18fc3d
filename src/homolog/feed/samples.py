"""One sample: where its views lie, and the boxes of the scans they need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from homolog.data.crops import draw_place
from homolog.data.pairs import Pairing
from homolog.feed.cases import CaseRef, naming
from homolog.feed.reading import read_blocks
from homolog.geometry.affine import Array
from homolog.views.blocks import Share
from homolog.views.generate import Block
from homolog.views.plan import GroupPlan, Scan, plan_views
from homolog.views.random import generator
from homolog.views.specs import is_partner
from homolog.views.view import ViewSpec


@dataclass(frozen=True)
class Sample:
    """One sample, drawn and read: its cases, its views, one block per share."""

    case: int
    partner: int
    plan: Mapping[str, GroupPlan]
    blocks: list[Block]


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
    ) -> Sample:
        """Draw and read one sample; errors name the case they belong to.

        Args:
            number: Of the sample, over the whole run and all ranks.
            position: Of its case.
            specs: Groups to make.
            shares: Which of them are read together.
        """
        match = None
        if self.partners is not None:
            rng = generator(self.seed, number, stream="partner")
            match = self.partners.draw(position, rng)
        if match is None:
            partner = position
            plan = self._plan(position, number, specs, None)
        else:
            mm, partner, partner_mm = match  # places are None where any will do
            theirs = {n: s for n, s in specs.items() if is_partner(specs, n)}
            own = {n: s for n, s in specs.items() if n not in theirs}
            plan = self._plan(position, number, own, mm)
            plan |= self._plan(partner, number, theirs, partner_mm)
        blocks: dict[int, Block] = {}
        for which, at in ((False, position), (True, partner)):
            numbers = [i for i, s in enumerate(shares) if s.partner == which]
            some = [shares[i] for i in numbers]
            if some:
                case = self.cases[at]
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
    ) -> dict[str, GroupPlan]:
        case = self.cases[position]

        def draw(rng: np.random.Generator) -> Array:
            return draw_place(case.store, case.card, rng, self.balance)

        affine = case.card.affine
        known = None if matched_mm is None else affine.inverse().apply(matched_mm)
        with naming(case):
            return plan_views(
                specs, Scan(affine, case.card.shape), draw,
                seed=self.seed, sample=number, matched=known,
            )  # fmt: skip
