"""What a user calls label values: one line of text, kept by the store it was given for.

A given name wins over those that files tell, until another one is given
(``homolog.data.label_joining`` says of which label).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from homolog.config import ConfigError
from homolog.data.label_names import has_name
from homolog.data.label_naming import is_ignore, parse_names
from homolog.data.store import read_contents

if TYPE_CHECKING:
    from homolog.data.card import Card
    from homolog.data.case_source import CaseSource

# The largest value that a stored label map can hold.
_LARGEST = 32767
# Labels listed in one sentence before the rest is counted.
_LISTED = 5


def read_names(text: str) -> dict[int, str]:
    """``1=liver, 2=spleen`` -> value: name; empty text names nothing.

    Raises:
        ConfigError: A part that is no VALUE=NAME, a value that no label can have, an
            empty name, or two names for one value.
    """
    names: dict[int, str] = {}
    for part in text.split(",") if text.strip() else ():
        value, sign, name = (word.strip() for word in part.partition("="))
        if not sign:
            raise ConfigError(
                "label names must be VALUE=NAME, as in 1=liver,2=spleen, got "
                f"{part.strip()!r} in {text!r}; a name cannot hold a comma."
            )
        # int() itself refuses thousands of digits
        digits = value.lstrip("0") if value.isdecimal() else ""
        if not 0 < len(digits) < 6 or int(digits) > _LARGEST:
            raise ConfigError(
                f"a label value must be a whole number from 1 to {_LARGEST} (0 is "
                f"background), got {value!r} in {part.strip()!r}."
            )
        number = int(digits)
        if not name:
            raise ConfigError(
                f"label {number} must have a name, as in {number}=liver, got "
                f"{part.strip()!r}."
            )
        if number in names:
            raise ConfigError(
                f"label {number} must have one name, got {names[number]!r} and "
                f"{name!r}."
            )
        names[number] = name
    return dict(sorted(names.items()))


def names_kept(store: Path) -> dict[int, str]:
    """Names that were given when a store was last prepared; empty for a new one."""
    return parse_names((read_contents(store) or {}).get("given_names"))


def what_was_named(
    given: Mapping[int, str],
    kept: Mapping[int, str],
    cases: Sequence[CaseSource],
    cards: Sequence[Card],
) -> list[str]:
    """What a user should know about given names, in sentences.

    Args:
        given: In this run.
        kept: In an earlier run.
        cases: With the names that files tell.
        cards: What was prepared.
    """
    sentences = []
    if old := [f"{v} ({n})" for v, n in kept.items() if v not in given]:
        sentences.append(
            f"Label names given earlier were kept: {_listed(old, 'and')}; --names "
            "gives others."
        )
    in_files: dict[int, dict[str, None]] = {}
    for case in cases:
        for value, name in case.label_names.items():
            in_files.setdefault(value, {})[name] = None
    overruled = []
    for value, name in {**kept, **given}.items():
        same = name.casefold()
        others = [n for n in in_files.get(value, ()) if n.strip().casefold() != same]
        if others := [n for n in others if has_name(value, n)]:
            overruled.append(f"{value} is {name}, not {_listed(others, 'or')}")
    if overruled:
        sentences.append(f"Given names win over files: {_listed(overruled, 'and')}.")
    there = {value for card in cards for value in card.label_values}
    # what is to be ignored is no label of any case
    wanted = {v: n for v, n in given.items() if not is_ignore(n)}
    if absent := [f"{v} ({n})" for v, n in wanted.items() if v not in there]:
        sentences.append(f"No label map holds {_listed(absent, 'or')}.")
    return sentences


def _listed(parts: Sequence[str], word: str) -> str:
    """``a, b and c``; the last ones only counted where there are many."""
    parts = list(parts)
    if len(parts) > _LISTED:
        parts = [*parts[: _LISTED - 1], f"{len(parts) - _LISTED + 1} more"]
    *first, last = parts
    return f"{', '.join(first)} {word} {last}" if first else last
