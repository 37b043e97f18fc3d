"""What label values are called, in one store and in several that are learnt together.

Labels of one name are one class, wherever they occur; a label without a name is a class
of its own store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from homolog.data.card import Card
from homolog.data.label_naming import is_ignore
from homolog.errors import UnusableInput

if TYPE_CHECKING:
    from homolog.data.case_source import CaseSource


def label_names(cards: Sequence[Card], cases: Sequence[CaseSource]) -> dict[int, str]:
    """Names of the source; a number where it gives none."""
    values = {value for card in cards for value in card.label_values}
    names = {value: f"label {value}" for value in sorted(values)}
    for case in reversed(cases):
        names.update({v: n for v, n in case.label_names.items() if v > 0})
    return dict(sorted(names.items()))


def refuse_ignored(store: Path, names: Mapping[int, str]) -> None:
    """Refuse a store, made by an older version, that has ``ignore`` for a class.

    Raises:
        UnusableInput: It has.
    """
    for value, name in names.items():
        if is_ignore(name):
            raise UnusableInput(
                f"label {value} of {store} is called {name!r}, whose voxels must teach "
                "nothing, but an older version stored it as a class; run the same "
                "prepare again."
            )


def has_name(value: int, name: str) -> bool:
    """Whether a label is called more than its number."""
    return name.strip() not in ("", f"label {value}")


@dataclass(frozen=True)
class JoinedLabels:
    """Labels of several stores as classes of one model.

    Attributes:
        names: Value in the model -> name, without background.
        values: Of each store: value in the store -> value in the model.
    """

    names: Mapping[int, str]
    values: tuple[Mapping[int, int], ...]


def join_labels(stores: Sequence[tuple[str, Mapping[int, str]]]) -> JoinedLabels:
    """The classes that stores annotate together.

    Of a single store, its own values. Of several, a store's value is kept where it is
    free, so that the first store keeps all of its own.

    Args:
        stores: Of each its title, and the names of the labels that occur in it.
    """
    if len(stores) == 1:
        ((_, names),) = stores
        own = {v: names[v] or f"label {v}" for v in sorted(names)}
        return JoinedLabels(own, ({v: v for v in own},))
    number: dict[str, int] = {}
    told: dict[int, str] = {}
    values = []
    for title, names in stores:
        mapping: dict[int, int] = {}
        for value in sorted(names):
            name = name_between_stores(value, names[value], title)
            key = name.strip().casefold()
            if key not in number:
                free = value not in told
                number[key] = value if free else max(told, default=0) + 1
                told[number[key]] = name
            mapping[value] = number[key]
        values.append(mapping)
    return JoinedLabels({v: told[v] for v in sorted(told)}, tuple(values))


def name_between_stores(value: int, name: str, title: str) -> str:
    """A label's name, which tells its store where it has none of its own."""
    return name if has_name(value, name) else f"label {value} of {title}"


def store_titles(paths: Sequence[Path]) -> list[str]:
    """Names that tell stores apart: the folder, with those above where needed."""
    return [_title(path, paths) for path in paths]


def _title(path: Path, paths: Sequence[Path]) -> str:
    for depth in range(1, len(path.parts)):
        own = path.parts[-depth:]
        if sum(other.parts[-depth:] == own for other in paths) == 1:
            return "/".join(own)
    return str(path)
