"""Who is trained on and who is tested, by subject; subjects kept as keyed hashes."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from homolog.errors import UnusableInput
from homolog.words import counted
from homolog.writing import make_folder, settings_folder, write_once

_PSEUDONYM = re.compile(r"hashed-[0-9a-f]{16}")
SPLITS = ("train", "val", "test")
FRACTIONS: Mapping[str, float] = {"train": 0.7, "val": 0.1, "test": 0.2}


class Case(Protocol):
    """What a split needs to know; a Card is one."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def id(self) -> str:
        """Name of the case."""
        ...

    @property
    def subject(self) -> str:
        """Person or animal."""
        ...

    @property
    def split(self) -> str | None:
        """Split given by the source, if any."""
        ...

    @property
    def source_hash(self) -> str:
        """Content hash of the scan."""
        ...

    @property
    def is_labelled(self) -> bool:
        """Whether it can be tested on."""
        ...


C = TypeVar("C", bound=Case)


def assign_splits(
    cards: Sequence[Case],
    seed: int,
    fractions: Mapping[str, float] = FRACTIONS,
) -> dict[str, str]:
    """Split of every case; a subject's cases never part.

    A split given by the source holds for its subject's other cases too; the other
    subjects with labels are drawn so that the whole comes close to ``fractions``, and
    those without any label go to training: they cannot be tested on, only learnt from.
    Scans of equal content count as one subject. A split with a share gets at least one
    subject as long as training keeps one.

    Args:
        cards: The cases.
        seed: Another seed is another split.
        fractions: Share of subjects in each split.

    Returns:
        Case id -> split.

    Raises:
        UnusableInput: The source gives one subject two splits.
    """
    groups = _groups(cards)
    given: dict[str, str] = {}
    named_by: dict[str, str] = {}
    for card in cards:
        if card.split is None:
            continue
        group = groups[card.id]
        if given.setdefault(group, card.split) != card.split:
            raise UnusableInput(
                f"cases {named_by[group]!r} ({given[group]}) and {card.id!r} "
                f"({card.split}) belong to one subject or are the same scan, and must "
                "be in one split."
            )
        named_by.setdefault(group, card.id)
    labelled = {groups[card.id] for card in cards if card.is_labelled}
    given.update(
        {g: "train" for g in groups.values() if g not in labelled | set(given)}
    )
    free = _shuffled(labelled - set(given), seed, "split")
    have = [split for group, split in given.items() if group in labelled]
    wanted = _wanted(len(free), have, fractions)
    for split in ("test", "val", "train"):
        for group in free[: wanted[split]]:
            given[group] = split
        free = free[wanted[split] :]
    return {card.id: given[groups[card.id]] for card in cards}


def staying(cards: Sequence[C], former: Mapping[str, str]) -> list[C]:
    """Cases with the split that they had, as if their source gave it.

    Not where the source gives the subject a split, nor where what is one subject by now
    lay in several.

    Args:
        cards: The cases.
        former: Case id -> split, of those that had one.
    """
    groups = _groups(cards)
    said = {groups[card.id] for card in cards if card.split is not None}
    had: dict[str, set[str]] = {}
    for card in cards:
        if card.id in former:
            had.setdefault(groups[card.id], set()).add(former[card.id])
    stay = {group for group, splits in had.items() if len(splits) == 1} - said
    return [
        replace(card, split=former[card.id])
        if card.id in former and groups[card.id] in stay
        else card
        for card in cards
    ]


def folds(cards: Sequence[Case], k: int, seed: int) -> list[tuple[str, ...]]:
    """Divide into k parts, each the validation set of one fold; subjects stay whole.

    Args:
        cards: The cases, at least k subjects.
        k: Number of folds, 2 or more.
        seed: Another seed is another division.

    Paper: Alice cross-validation; MixCL Table 1.
    """
    groups = _groups(cards)
    order = _shuffled(set(groups.values()), seed, "fold")
    if not 2 <= k <= len(order):
        raise UnusableInput(
            f"folds must be in 2..{len(order)} (the number of subjects), got {k}."
        )
    place = {group: i % k for i, group in enumerate(order)}
    return [
        tuple(card.id for card in cards if place[groups[card.id]] == fold)
        for fold in range(k)
    ]


def nested_fraction(
    cards: Sequence[Case], fraction: float, seed: int
) -> tuple[str, ...]:
    """The ids of a share of the subjects; a smaller share lies within a larger one.

    Args:
        cards: The cases to choose from.
        fraction: Share of subjects in 0..1; at least one subject is kept.
        seed: Another seed is another order.

    Paper: S2DC Table 8; Hundred Million Table II.
    """
    if not 0.0 < fraction <= 1.0:
        raise UnusableInput(
            f"a fraction must be above 0 and at most 1, got {fraction}."
        )
    count = max(1, round(fraction * subject_count(cards)))
    return nested_count(cards, count, seed)


def nested_count(cards: Sequence[Case], count: int, seed: int) -> tuple[str, ...]:
    """The ids of so many subjects; fewer lie within more, and within a share as large.

    Args:
        cards: The cases to choose from.
        count: Subjects, 1 or more.
        seed: Another seed is another order.

    Raises:
        UnusableInput: There are fewer subjects.
    """
    order = ordered_subjects(cards, seed)
    if not 1 <= count <= len(order):
        raise UnusableInput(
            f"{counted(count, 'patient')} cannot be taken of {len(order)}."
        )
    kept = {case for subject in order[:count] for case in subject}
    return tuple(card.id for card in cards if card.id in kept)


def ordered_subjects(cards: Sequence[Case], seed: int) -> list[tuple[str, ...]]:
    """The ids of each subject's cases, in the order in which shares are taken.

    Args:
        cards: The cases to choose from.
        seed: Another seed is another order.
    """
    groups = _groups(cards)
    found: dict[str, list[str]] = {}
    for card in cards:
        found.setdefault(groups[card.id], []).append(card.id)
    return [tuple(found[group]) for group in _shuffled(set(found), seed, "fraction")]


def subject_count(cards: Sequence[Case]) -> int:
    """How many subjects cases are of; scans of equal content count as one."""
    return len(set(_groups(cards).values()))


def patients_of(cards: Sequence[Case]) -> dict[str, str]:
    """Case id -> name of its patient: one for cases of one subject or equal contents.

    Args:
        cards: The cases.
    """
    return _groups(cards)


def leak_check(cards: Iterable[Case]) -> None:
    """Refuse a subject or a scan that lies in two splits.

    Raises:
        UnusableInput: Names both cases.
    """
    cards = list(cards)
    for what, words in (("subject", "one subject"), ("source_hash", "equal contents")):
        first: dict[str, Case] = {}
        for card in cards:
            value = getattr(card, what)
            if not value or card.split is None:
                continue
            other = first.setdefault(value, card)
            if other.split != card.split:
                raise UnusableInput(
                    f"cases {other.id!r} ({other.split}) and {card.id!r} "
                    f"({card.split}) have {words} ({value}); they must be in one split."
                )


def is_pseudonym(subject: str) -> bool:
    """Whether a subject is a keyed hash, made by ``hidden_subjects``."""
    return _PSEUDONYM.fullmatch(subject) is not None


def _groups(cards: Sequence[Case]) -> dict[str, str]:
    """Case id -> name of its group: cases linked by subject or by equal contents.

    The name decides the order of a draw. A keyed hash is another one for every user;
    such a group is therefore named by what its scans hold.
    """
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        while parent.setdefault(node, node) != node:
            node = parent[node]
        return node

    for card in cards:
        subject = f"subject {card.subject or card.id}"
        contents = f"contents {card.source_hash or card.id}"
        a, b = sorted((root(subject), root(contents)), reverse=True)
        parent[b] = a
    groups = {card.id: root(f"subject {card.subject or card.id}") for card in cards}
    names: dict[str, str] = {}
    for card in sorted(cards, key=lambda c: c.source_hash or c.id):
        if is_pseudonym(card.subject):
            contents = f"contents {card.source_hash or card.id}"
            names.setdefault(groups[card.id], contents)
    return {case: names.get(group, group) for case, group in groups.items()}


def _shuffled(groups: set[str], seed: int, purpose: str) -> list[str]:
    """Order by hash: adding a subject does not reshuffle the others."""

    def rank(group: str) -> str:
        return hashlib.sha256(
            f"{purpose}/{seed}/{group}".encode("utf-8", "surrogateescape")
        ).hexdigest()

    return sorted(groups, key=rank)


def _wanted(
    free: int, have: Sequence[str], fractions: Mapping[str, float]
) -> dict[str, int]:
    """How many free subjects each split takes, given the splits already taken."""
    total = sum(fractions.values())
    if set(fractions) - set(SPLITS) or total <= 0 or min(fractions.values()) < 0:
        raise UnusableInput(
            f"fractions must give shares of {', '.join(SPLITS)}, got {dict(fractions)}."
        )
    wanted = {}
    left = free
    for split in ("test", "val"):
        share = fractions.get(split, 0.0) / total
        taken = have.count(split)
        count = round(share * (free + len(have))) - taken
        if share > 0 and taken == 0:
            count = max(1, count)
        # Training keeps one subject.
        keep = 0 if "train" in have else 1
        wanted[split] = max(0, min(count, left - keep))
        left -= wanted[split]
    wanted["train"] = left
    return wanted


# Subjects as keyed hashes: a store, run or model never names a patient.


_KEY_BYTES = 32


class OfSubject(Protocol):
    """A dataclass that states whose a case is: a CaseSource, or a Card of a store."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def id(self) -> str:
        """Name of the case."""
        ...

    @property
    def subject(self) -> str:
        """Person or animal."""
        ...


S = TypeVar("S", bound=OfSubject)


def hidden_subjects(cases: Sequence[S]) -> list[S]:
    """Cases without what identifies a patient: subjects become keyed hashes.

    Cases of one subject stay of one subject, here and in other stores of this user. A
    case that stands for itself keeps its own name as subject: it reveals nothing.

    Raises:
        UnusableInput: The key is damaged or cannot be kept.
    """
    names = {case.subject for case in cases if case.subject != case.id} - {""}
    if not names:
        return list(cases)
    key = subject_key()
    return [
        replace(case, subject=pseudonym(case.subject, key))
        if case.subject in names and not is_pseudonym(case.subject)
        else case
        for case in cases
    ]


def pseudonym(subject: str, key: bytes) -> str:
    """A subject's keyed hash: without the key nobody finds the name by trying names."""
    digest = hmac.new(key, subject.encode("utf-8", "surrogateescape"), hashlib.sha256)
    return f"hashed-{digest.hexdigest()[:16]}"


def key_file() -> Path:
    """The user's key of subjects; it never lies in a store, run or model."""
    return settings_folder() / "subjects.key"


def subject_key() -> bytes:
    """The user's key, made (readable by the user alone) when first needed.

    Raises:
        UnusableInput: It is damaged, or its folder cannot be written.
    """
    path = key_file()
    try:
        if not path.exists():
            make_folder(path.parent)
            write_once(path, secrets.token_hex(_KEY_BYTES))
        key = bytes.fromhex(path.read_text(encoding="ascii"))
    except OSError as error:
        raise UnusableInput(
            f"the key that hides patients' names cannot be kept in {path} "
            f"({error.strerror}); name a folder in HOMOLOG_CONFIG, or prepare with "
            "--keep-identifiers."
        ) from None
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        raise UnusableInput(
            f"the key that hides patients' names, {path}, is damaged; put it back from "
            "a copy, or delete it: stores then give their patients new names."
        )
    return key
