"""Splits hold subjects together, are stable and never leak."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homolog.errors import UnusableInput
from homolog.store.splits import assign_splits, folds, leak_check, nested_fraction


@dataclass(frozen=True)
class Case:
    id: str
    subject: str
    split: str | None = None
    source_hash: str = ""
    is_labelled: bool = True


def cases(n, per_subject=1, **kwargs):
    return [
        Case(f"case_{i}", f"s{i // per_subject}", source_hash=f"h{i}", **kwargs)
        for i in range(n)
    ]


@settings(max_examples=80, deadline=None)
@given(n=st.integers(1, 60), per_subject=st.integers(1, 4), seed=st.integers(0, 1000))
def test_a_subject_lies_in_one_split_and_shares_are_met(n, per_subject, seed):
    cards = cases(n, per_subject)
    splits = assign_splits(cards, seed)
    of_subject = defaultdict(set)
    for card in cards:
        of_subject[card.subject].add(splits[card.id])
    assert all(len(found) == 1 for found in of_subject.values())
    counts = Counter(next(iter(found)) for found in of_subject.values())
    total = len(of_subject)
    assert counts["train"] >= 1
    if total >= 3:
        assert counts["val"] >= 1
        assert abs(counts["test"] - 0.2 * total) <= 1
    assert splits == assign_splits(list(reversed(cards)), seed)


def test_another_seed_is_another_split():
    cards = cases(40)
    assert assign_splits(cards, 0) != assign_splits(cards, 1)


def test_a_given_split_wins_and_takes_its_subject_along():
    cards = cases(20, per_subject=2)
    cards[4] = replace(cards[4], split="test")
    for seed in range(20):
        splits = assign_splits(cards, seed)
        assert splits["case_4"] == splits["case_5"] == "test"


def test_two_given_splits_for_one_subject_are_refused_by_name():
    cards = cases(4, per_subject=2)
    cards[0] = replace(cards[0], split="test")
    cards[1] = replace(cards[1], split="train")
    with pytest.raises(
        UnusableInput, match=r"'case_0' \(test\) and 'case_1' \(train\)"
    ):
        assign_splits(cards, 0)


def test_equal_scans_of_two_subjects_stay_together():
    cards = cases(30)
    cards[7] = replace(cards[7], source_hash="h3")
    for seed in range(20):
        splits = assign_splits(cards, seed)
        assert splits["case_3"] == splits["case_7"]


def test_what_has_no_label_is_for_training():
    cards = cases(10) + [replace(c, id=f"u{c.id}", subject=f"u{c.subject}",
                                 source_hash=f"u{c.source_hash}", is_labelled=False)
                         for c in cases(30)]  # fmt: skip
    splits = assign_splits(cards, 0)
    assert {splits[c.id] for c in cards if not c.is_labelled} == {"train"}
    labelled = Counter(splits[c.id] for c in cards if c.is_labelled)
    assert labelled == {"train": 7, "val": 1, "test": 2}
    alone = Counter(assign_splits(cases(10, is_labelled=False), 0).values())
    assert alone == {"train": 10}


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 50),
    seed=st.integers(0, 1000),
    a=st.floats(0.01, 1.0),
    b=st.floats(0.01, 1.0),
)
def test_a_smaller_fraction_lies_within_a_larger_one(n, seed, a, b):
    cards = cases(n, per_subject=2)
    small, large = sorted((a, b))
    few = set(nested_fraction(cards, small, seed))
    many = set(nested_fraction(cards, large, seed))
    assert few
    assert few <= many
    assert set(nested_fraction(cards, 1.0, seed)) == {c.id for c in cards}


def test_a_fraction_of_nothing_is_refused():
    with pytest.raises(UnusableInput, match="above 0"):
        nested_fraction(cases(4), 0.0, 0)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(6, 50), k=st.integers(2, 3), seed=st.integers(0, 1000))
def test_folds_cover_all_cases_once_and_keep_subjects_whole(n, k, seed):
    cards = cases(n, per_subject=2)
    parts = folds(cards, k, seed)
    assert sorted(i for part in parts for i in part) == sorted(c.id for c in cards)
    place = {i: f for f, part in enumerate(parts) for i in part}
    assert all(place[f"case_{i}"] == place[f"case_{i + 1}"] for i in range(0, n - 1, 2))


def test_more_folds_than_subjects_are_refused():
    with pytest.raises(UnusableInput, match=r"2\.\.4 .* got 5"):
        folds(cases(4), 5, 0)


@pytest.mark.parametrize("shared", ["subject", "source_hash"])
def test_a_leak_is_told_with_both_names(shared):
    a = Case("one", "s1", "train", "h1")
    b = replace(Case("two", "s2", "test", "h2"), **{shared: getattr(a, shared)})
    with pytest.raises(UnusableInput, match=r"'one' \(train\) and 'two' \(test\)"):
        leak_check([a, b])
    leak_check([a, replace(b, split="train")])
