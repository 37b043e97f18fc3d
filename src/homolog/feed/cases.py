"""The cases a feed is made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from homolog.data.card import Card
from homolog.data.store import Store
from homolog.errors import JobError, UnusableInput


@dataclass(frozen=True)
class CaseRef:
    """A case of a store."""

    store: Store
    card: Card


@contextmanager
def naming(case: CaseRef) -> Iterator[None]:
    """Errors name the case they belong to."""
    try:
        yield
    except UnusableInput as error:
        raise UnusableInput(f"case {case.card.id!r}: {error}") from error
    except Exception as error:
        text = str(error) or type(error).__name__
        raise JobError(f"case {case.card.id!r}: {text}") from error


def check_cases(cases: Sequence[CaseRef]) -> None:
    """Raise UnusableInput where there are none or they do not fit together."""
    if not cases:
        raise UnusableInput("at least one case is needed to train on, got none.")
    first = cases[0].card
    for case in cases:
        if case.card.channels != first.channels:
            raise UnusableInput(
                f"all cases must have the same channels; case {first.id!r} has "
                f"{first.channels}, case {case.card.id!r} has {case.card.channels}."
            )


def numbered(values: Sequence[str]) -> list[int]:
    """Place of each value among all that occur, by name."""
    names = sorted(set(values))
    return [names.index(value) for value in values]
