"""Which labelled cases a fine-tuning learns from, and which it is judged by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from homolog.config import ConfigError
from homolog.data.splits import folds, nested_fraction
from homolog.data.store import Store
from homolog.errors import UnusableInput
from homolog.feed import CaseRef
from homolog.tasks._base import LearnedTask


@dataclass(frozen=True)
class Cases:
    """Cases of one fine-tuning.

    Attributes:
        train: Learnt from.
        val: Held out; they, or some of them, decide which weights are kept.
        all: Every usable case of the store, for label names and sizes.
    """

    train: tuple[CaseRef, ...]
    val: tuple[CaseRef, ...]
    all: tuple[CaseRef, ...]


def choose_cases(
    store: Store,
    task: LearnedTask,
    *,
    fraction: float = 1.0,
    fold: str | None = None,
    seed: int = 0,
) -> Cases:
    """Split the usable cases into training and validation.

    Without a fold these are the store's own ``train`` and ``val`` splits. Fold ``i/k``
    divides both together into k parts by subject and holds out the i-th. ``test`` is
    never touched. A fraction keeps a share of the training subjects only (smaller ones
    within larger ones); the validation cases stay, so that runs with different
    fractions choose their weights by the same cases.

    Args:
        store: With labelled cases.
        task: Says which cases are usable.
        fraction: Share of training subjects, 0..1.
        fold: ``i/k`` with 1 <= i <= k, or None.
        seed: Of folds and fractions.

    Raises:
        UnusableInput: No usable training case.
        ConfigError: A fold that cannot be meant.
    """
    usable = tuple(CaseRef(store, card) for card in store.cards if task.usable(card))
    pool = [c for c in usable if c.card.split in (None, "train", "val")]
    if fold is not None:
        index, count = parse_fold(fold)
        held = set(folds([c.card for c in pool], count, seed)[index - 1])
        train = [c for c in pool if c.card.id not in held]
        val = [c for c in pool if c.card.id in held]
    else:
        train = [c for c in pool if c.card.split != "val"]
        val = [c for c in pool if c.card.split == "val"]
    if not train:
        raise UnusableInput(
            f"{store.path} has no labelled training case ({len(store)} cases in all); "
            "give label maps to: homolog prepare SCANS --labels DIR --out STORE, or "
            "classes of whole scans in a manifest"
        )
    if fraction != 1.0:
        kept = set(nested_fraction([c.card for c in train], fraction, seed))
        train = [c for c in train if c.card.id in kept]
    return Cases(tuple(train), tuple(val), usable)


def together(parts: Sequence[Cases]) -> Cases:
    """Cases of several stores as one choice, store by store.

    Raises:
        ConfigError: A store is named twice.
    """
    paths = [part.all[0].store.path for part in parts]
    twice = [path for path in paths if paths.count(path) > 1]
    if twice:
        raise ConfigError(f"the store {twice[0]} is named twice.")
    return Cases(
        train=tuple(c for part in parts for c in part.train),
        val=tuple(c for part in parts for c in part.val),
        all=tuple(c for part in parts for c in part.all),
    )


def parse_fold(text: str) -> tuple[int, int]:
    """``"2/5"`` -> (2, 5).

    Raises:
        ConfigError: Not of that form, or i outside 1..k.
    """
    first, sign, last = text.partition("/")
    if not (sign and first.isdigit() and last.isdigit()) or not (
        1 <= int(first) <= int(last) and int(last) >= 2
    ):
        raise ConfigError(
            f"fold must be i/k with 1 <= i <= k and k >= 2, got {text!r}."
        )
    return int(first), int(last)


def spread_cases(cases: Sequence[CaseRef], most: int) -> tuple[CaseRef, ...]:
    """At most ``most`` of the cases, evenly spread over them; all when it is 0."""
    if most <= 0 or len(cases) <= most:
        return tuple(cases)
    return tuple(cases[i * len(cases) // most] for i in range(most))


def held_out_cases(cases: Cases, most: int | None) -> tuple[CaseRef, ...]:
    """The held-out cases that choose the weights, always the same ones.

    Args:
        cases: Of the fine-tuning.
        most: At most so many, evenly spread; 0: all; None: none.
    """
    return () if most is None else spread_cases(cases.val, most)


def spread_first(cases: Sequence[CaseRef]) -> tuple[CaseRef, ...]:
    """The same cases, ordered so that the first few are spread over all of them."""

    def mirrored(place: int) -> float:
        """The bits of a place behind the point, the last one first."""
        value, part = 0.0, 0.5
        while place:
            value += part * (place & 1)
            place, part = place >> 1, part / 2
        return value

    order: dict[int, None] = {}
    for number in range(4 * len(cases)):
        order[int(mirrored(number) * len(cases))] = None
    rest = [i for i in range(len(cases)) if i not in order]
    return tuple(cases[i] for i in (*order, *rest))
