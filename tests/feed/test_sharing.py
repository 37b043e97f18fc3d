"""How samples are shared out between stores or modalities, and what is said of it."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest

from each import each
from homolog.feed.batches import CaseOrder, Feed, TurnOrder
from homolog.feed.reading import CaseRef
from homolog.geometry.affine import Affine
from homolog.pretrain.settings import shares_note
from homolog.views.view import Phase, ViewSpec
from memory_store import MemoryStore, random_cases

HOME = Affine.of((2.0, 2.0, 2.0), (0.0, 0.0, 0.0))
KINDS = ["CT"] * 9 + ["MR"] * 4 + ["XR"]


@pytest.fixture
def cases() -> list[CaseRef]:
    """Nine CT, four MR, one X-ray of a single slice; all of one store."""
    shapes = [(8, 8, 8)] * 13 + [(1, 8, 8)]
    found = random_cases(shapes, HOME)
    return [
        dataclasses.replace(case, card=dataclasses.replace(case.card, modality=kind))
        for case, kind in zip(found, KINDS, strict=True)
    ]


def feed(cases: list[CaseRef], **others: object) -> Feed:
    specs = {"all": ViewSpec((1, 4, 4)), "deep": ViewSpec((4, 4, 4))}
    return Feed(cases, specs, batch_size=4, seed=1, threads=0, **others)  # type: ignore[arg-type]


@each(
    "order",
    [
        CaseOrder([0] * 5 + [1] * 2, 3),
        CaseOrder([0] * 5 + [1] * 2, 3, 0.0),
        CaseOrder([1, 0, 0, 1, 2, 0, 0], 3, 0.5),
        TurnOrder([0, 1, 0, -1, 1, 0, 2], 3),
    ],
)
def test_shares_are_what_is_drawn(order: CaseOrder | TurnOrder) -> None:
    rounds = 7 * 3 * 5 * 2 * 4
    seen = Counter(order[k] for k in range(rounds))
    drawn = np.array([seen[i] / rounds for i in range(7)])
    np.testing.assert_allclose(order.shares(), drawn, atol=0.01)
    assert order.shares().sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("power", "expected"), [(0.0, (5, 5, 5)), (0.5, (7, 5, 2)), (1.0, (9, 4, 1))]
)
def test_modalities_of_one_store_share_the_samples_as_asked(
    power: float, expected: tuple[int, ...], cases: list[CaseRef]
) -> None:
    made = feed(cases, share_by="modality", share_power=power)
    count = sum(expected)
    kinds = Counter(cases[made.case_of(k)].card.modality for k in range(3 * count))
    assert [kinds[k] / 3 for k in ("CT", "MR", "XR")] == list(expected)
    [(_, told)] = made.modality_shares()
    assert told == pytest.approx(
        dict(zip(("CT", "MR", "XR"), np.array(expected) / count, strict=True))
    )
    again = made.with_batch_size(2)
    assert again.modality_shares() == made.modality_shares()


def test_a_run_says_what_share_each_modality_gives(cases: list[CaseRef]) -> None:
    assert shares_note(feed(cases)) == (
        "share of each modality in the samples: CT 64%, MR 29%, XR 7%."
    )
    phases = [Phase(0.5, ("all",)), Phase(0.5, ("deep",), volumes=True)]
    told = shares_note(feed(cases, phases=phases, share_by="modality", share_power=0.0))
    assert told == (
        "share of each modality in the samples: all: CT 33%, MR 33%, XR 33%; "
        "deep: CT 50%, MR 50%."
    )
    turns = [{"CT": 0, "MR": 1}.get(kind, -1) for kind in KINDS]
    assert "CT 50%, MR 50%." in shares_note(feed(cases, turns=turns))
    assert shares_note(feed(cases[:9])) == ""


def test_several_stores_of_one_modality_are_shared_by_store(
    cases: list[CaseRef],
) -> None:
    other = MemoryStore()
    other.path = other.path / "second"
    image, label = np.ones((1, 8, 8, 8)), np.ones((8, 8, 8))
    more = [other.add(image, HOME, label) for _ in range(3)]
    both = [*cases[:9], *more]
    by_store = feed(both, share_power=0.0)
    assert sum(by_store.case_of(k) >= 9 for k in range(120)) == 60
    by_kind = feed(both, share_by="modality", share_power=0.0)
    assert sum(by_kind.case_of(k) >= 9 for k in range(120)) == 30
