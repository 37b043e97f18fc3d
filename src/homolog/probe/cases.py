"""Whom a probe is taught on, whom it is judged on, and which of their voxels."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from homolog.errors import UnusableInput
from homolog.feed.reading import CaseRef
from homolog.probe.config import ProbeConfig
from homolog.store.card import Card
from homolog.store.splits import ordered_subjects
from homolog.store.store import Store
from homolog.words import counted

# The test split is judged where it has so many patients; else all that are not taught.
_FEW = 3
# Who teaches where neither a test split nor a number says it.
_SHARE = 0.7
# Background is drawn more often: it is most of a scan, and of many kinds.
BACKGROUND_SHARE = 5


@dataclass(frozen=True, eq=False)
class Patient:
    """A person or animal with labelled cases.

    Attributes:
        name: Of the first case.
        cases: All of them.
    """

    name: str
    cases: tuple[CaseRef, ...]


@dataclass(frozen=True)
class Roles:
    """Who teaches and who is judged; nobody does both.

    Attributes:
        taught: Patients whose labels are learnt from.
        judged: Patients whose labels are compared with.
        whom: What the judged are, in words.
        remarks: What the user should know of the choice.
    """

    taught: tuple[Patient, ...]
    judged: tuple[Patient, ...]
    whom: str
    remarks: tuple[str, ...] = ()


def choose_roles(
    store: Store,
    usable: Callable[[Card], bool],
    config: ProbeConfig,
    patients: int | None,
    most: int = 0,
) -> Roles:
    """Divide the labelled patients of a store.

    The patients taught on are the first of the order in which fine-tuning takes its
    fractions, so that 3 lie within 5.

    Args:
        store: Whose cases.
        usable: Whether a case carries what is probed for.
        config: ``judge`` and ``seed``.
        patients: How many teach; None: all that are not judged.
        most: How many are judged at most; 0: all.

    Raises:
        UnusableInput: Fewer than two patients, or nobody to teach on or to judge.
    """
    labelled = [card for card in store.cards if usable(card)]
    order = [
        Patient(ids[0], tuple(CaseRef(store, store.card(i)) for i in ids))
        for ids in ordered_subjects(labelled, config.seed)
    ]
    split = {p: p.cases[0].card.split for p in order}
    test = [p for p in order if split[p] == "test"]
    train = [p for p in order if split[p] not in ("test", "val")]
    if len(order) < 2:
        raise UnusableInput(
            f"a probe teaches on some labelled patients and judges on others: "
            f"{store.path} has {counted(len(order), 'labelled patient')}."
        )
    judge = config.judge
    if judge == "auto":
        judge = "test" if len(test) >= _FEW and train else "rest"
    if judge == "test" and not (test and train):
        raise UnusableInput(
            f"{store.path} has {counted(len(test), 'labelled patient')} in its test "
            f"split and {len(train)} to teach on; take --judge rest."
        )
    # of the training split first, which the encoder may have seen without labels
    pool = train if judge == "test" else sorted(order, key=lambda p: p not in train)
    room = len(pool) if judge == "test" else len(pool) - 1
    wanted = patients or (room if judge == "test" else round(_SHARE * len(pool)))
    remarks = []
    if wanted > room:
        remarks.append(f"{wanted} patients were to teach, there are {room}.")
    taught = pool[: max(1, min(wanted, room))]
    judged = test if judge == "test" else [p for p in order if p not in taught]
    if most and len(judged) > most:
        remarks.append(f"{most} of {len(judged)} patients are judged (--most).")
        judged = judged[:most]
    whom = "the test split" if judge == "test" else "those not taught on"
    return Roles(tuple(taught), tuple(judged), whom, tuple(remarks))


@dataclass(frozen=True, eq=False)
class Sample:
    """Voxels of one case.

    Attributes:
        case: Whose.
        voxels: (N, 3) indices z, y, x.
        classes: (N,) place of each label among the labels that are told apart.
        weight: (N,) how many voxels of the scan each stands for.
    """

    case: CaseRef
    voxels: NDArray[np.int64]
    classes: NDArray[np.int64]
    weight: NDArray[np.float64]


def labels_of(patients: Sequence[Patient]) -> tuple[int, ...]:
    """The labels that patients have, background first."""
    found = {v for p in patients for c in p.cases for v in c.card.label_values}
    return (0, *sorted(v for v in found if v > 0))


def draw_voxels(
    case: CaseRef, labels: Sequence[int], count: int, background: int, seed: int
) -> Sample:
    """Voxels of a case: as many of each label, and more of the background.

    Args:
        case: Without a label map all of it is background.
        labels: Which, background (0) first; others are left out.
        count: Of each label, at most.
        background: Of label 0, drawn within the box of the body.
        seed: Another seed, other voxels.
    """
    card = case.card
    stored = case.store.label(card.id)
    truth = np.zeros(card.shape, np.int16) if stored is None else np.asarray(stored[:])
    points = case.store.label_points(card.id) if card.has_label else {}
    voxels, classes, weights = [], [], []
    for place, label in enumerate(labels):
        rng = np.random.default_rng([seed, zlib.crc32(card.id.encode()), label])
        if label == 0:
            found, total = _background(truth, card, background, rng)
        else:
            known = points.get(label, np.empty((0, 3), np.int64))
            found = known[np.sort(rng.permutation(len(known))[:count])]
            total = int((truth == label).sum())
        voxels.append(np.asarray(found, np.int64))
        classes.append(np.full(len(found), place))
        weights.append(np.full(len(found), total / max(len(found), 1)))
    return Sample(
        case, np.concatenate(voxels), np.concatenate(classes), np.concatenate(weights)
    )


def _background(
    truth: NDArray[np.int16], card: Card, count: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], int]:
    """Voxels (n, 3) of label 0 in the body's box, and how many there are."""
    box = tuple(slice(a, b) for a, b in zip(*card.foreground, strict=True))
    empty = truth[box] == 0
    total = int(empty.sum())
    tries = rng.permutation(empty.size) if empty.size < 4 * count else None
    if tries is None:
        most = _tries(empty.size, total, count)
        tries = rng.permutation(np.unique(rng.integers(empty.size, size=most)))
    hits = tries[empty.ravel()[tries]][:count]
    found = np.stack(np.unravel_index(np.sort(hits), empty.shape), axis=1)
    return found + np.array(card.foreground[0]), total


def _tries(size: int, total: int, count: int) -> int:
    """Draws after which about twice as many as wanted are background."""
    return int(min(2 * count * size / max(total, 1) + 100, 4 * size))
