"""Which places of other patients a pretraining's matched views lie at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from homolog.data.pairs import (
    Pairing,
    PairTable,
    Partners,
    partners_of,
    read_pairs,
)
from homolog.data.store import Store
from homolog.errors import UnusableInput
from homolog.feed import CaseRef
from homolog.geometry.affine import Array
from homolog.methods._base import Method
from homolog.views.random import generator

_RANDOM_PLACES = 64  # per case


class MissingPairs(UnusableInput):
    """A store has no table of matching places, or one of other scans.

    Attributes:
        store: Its folder.
    """

    def __init__(self, message: str, store: Path) -> None:
        super().__init__(message)
        self.store = store


class SameDataset:
    """Partners of one data set: the scan itself, or another one of its store.

    A labelled scan is paired with labelled ones, where there are any.

    Args:
        cases: As the feed has them.
        same_share: Share of partners that are the scan itself.
    """

    def __init__(self, cases: Sequence[CaseRef], same_share: float) -> None:
        self._same_share = same_share
        kinds = [(c.store.path, c.card.has_label) for c in cases]
        members: dict[tuple[Path, bool], list[int]] = {}
        for position, kind in enumerate(kinds):
            members.setdefault(kind, []).append(position)
        self._others = [members[kind] for kind in kinds]

    def draw(self, case: int, rng: np.random.Generator) -> tuple[None, int, None]:
        """Any place of the partner at position ``int``; see ``Pairing``."""
        same, which = rng.random(2)
        others = self._others[case]
        if same < self._same_share or len(others) == 1:
            return None, case, None
        other = others[int(which * (len(others) - 1))]
        # the last one stands in for the case itself
        return None, others[-1] if other == case else other, None


def find_partners(
    method: Method, stores: Sequence[Store], cases: Sequence[CaseRef], seed: int
) -> Pairing | None:
    """What the method asks for; None where it asks for nothing.

    Raises:
        UnusableInput: Matches are asked for and a store has no table of them, or one
            of other scans, or none of its matches is good enough.
    """
    wanted = method.pairs_wanted()
    if wanted is None or wanted.kind == "same":
        return None
    if wanted.kind == "dataset":
        return SameDataset(cases, wanted.same_share)
    if wanted.kind == "random":
        return random_partners(cases, seed)
    tables = {store.path: table_of(store) for store in stores}
    found = partners_of(
        [(case.store.path, case.card.id) for case in cases],
        tables,
        wanted.least_score,
        wanted.largest_cycle_mm,
    )
    if len(found) == 0:
        best = max(
            (float(t.rows["score"].max()) for t in tables.values() if len(t.rows)),
            default=float("nan"),
        )
        raise UnusableInput(
            f"no match of the table of matching places is as similar as "
            f"{wanted.least_score:g} (the best: {best:.3f}); lower the limit with "
            "--set method.least_score=..., or align with a longer trained embedding."
        )
    return found


def table_of(store: Store) -> PairTable:
    """The store's table of matching places.

    Raises:
        MissingPairs: There is none, or it was made of other scans.
    """
    table = read_pairs(store.path)
    make = f"homolog align {store.path} --encoder RUN"
    if table is None:
        raise MissingPairs(
            f"{store.path} has no table of matching places, which aligned crops need. "
            f"Make it with a trained anatomical embedding: {make}, or here with "
            f"--aligner RUN (RUN: homolog pretrain anatomical_embedding {store.path} "
            "--out RUN). Or train without it: --set method.pairs=random or "
            "method.pairs=same",
            store.path,
        )
    if table.card.get("store_hash") != store.hash:
        raise MissingPairs(
            f"the table of matching places of {store.path} was made of other scans "
            f"than the store holds now; make it again: {make}, or here with --aligner "
            "RUN.",
            store.path,
        )
    return table


def random_partners(cases: Sequence[CaseRef], seed: int) -> Partners:
    """Random places paired with random places of random other cases: the control."""
    count = len(cases)
    rows = []
    for position in range(count):
        rng = generator(seed, position, stream="random partners")
        own = _places(cases[position], rng, _RANDOM_PLACES)
        if count > 1:
            others = (position + rng.integers(1, count, _RANDOM_PLACES)) % count
        else:
            others = np.zeros(_RANDOM_PLACES, dtype=np.int64)
        theirs = np.concatenate([_places(cases[int(o)], rng, 1) for o in others])
        rows.append(np.column_stack([own, others.astype(np.float64), theirs]))
    return Partners(rows)


def _places(case: CaseRef, rng: np.random.Generator, count: int) -> Array:
    """(count, 3) mm, anywhere in the foreground box."""
    start, stop = (np.asarray(c, dtype=np.float64) for c in case.card.foreground)
    voxels = start - 0.5 + rng.random((count, 3)) * (stop - start)
    return case.card.affine.apply(voxels)


def partners_note(partners: Pairing, cases: Sequence[CaseRef]) -> str:
    """One sentence for the log, or empty."""
    if not isinstance(partners, Partners):
        return ""
    text = f"{len(partners)} matching places in {len(cases)} scans"
    if partners.lonely:
        text += f"; {partners.lonely} scans have none and are paired with themselves"
    return text + "."
