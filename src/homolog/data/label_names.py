"""What label values are called, over all cases of a store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from homolog.data.card import Card

if TYPE_CHECKING:
    from homolog.data.case_source import CaseSource


def label_names(cards: Sequence[Card], cases: Sequence[CaseSource]) -> dict[int, str]:
    """Names of the source; a number where it gives none."""
    values = {value for card in cards for value in card.label_values}
    names = {value: f"label {value}" for value in sorted(values)}
    for case in reversed(cases):
        names.update({v: n for v, n in case.label_names.items() if v > 0})
    return dict(sorted(names.items()))


def name_conflicts(cases: Sequence[CaseSource]) -> list[str]:
    """A sentence for every label value that has two names."""
    first: dict[int, tuple[str, str]] = {}
    sentences: dict[int, str] = {}
    for case in cases:
        for value, name in case.label_names.items():
            other, where = first.setdefault(value, (name, case.id))
            if other != name:
                sentences.setdefault(
                    value,
                    f"label {value} is {other!r} in {where} but {name!r} in {case.id}; "
                    "prepare such data into two stores.",
                )
    return list(sentences.values())
