"""What label values are called: in one store, and in several learnt together.

Labels of one name are one class, wherever they occur; a label without a name is a class
of its own store. A name that a user gives wins over those of files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from homolog.config import ConfigError
from homolog.errors import UnusableInput
from homolog.label_names import is_ignore, key_of

# The largest value that a stored label map can hold.
_LARGEST = 32767
# Stored value of voxels that teach nothing.
UNLABELLED = -1
# Labels listed in one sentence before the rest is counted.
LISTED = 5


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
    return name.strip().casefold() not in ("", f"label {value}")


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
    known: dict[int, str] = {}
    values = []
    for title, names in stores:
        mapping: dict[int, int] = {}
        for value in sorted(names):
            name = name_between_stores(value, names[value], title)
            key = name.strip().casefold()
            if key not in number:
                free = value not in known
                number[key] = value if free else max(known, default=0) + 1
                known[number[key]] = name
            mapping[value] = number[key]
        values.append(mapping)
    return JoinedLabels({v: known[v] for v in sorted(known)}, tuple(values))


def name_between_stores(value: int, name: str, title: str) -> str:
    """A label's name, with its store where it has none of its own."""
    return name if has_name(value, name) else f"label {value} of {title}"


def store_titles(paths: Sequence[Path]) -> list[str]:
    """Names that distinguish stores: the folder, with those above where needed."""
    return [_title(path, paths) for path in paths]


def _title(path: Path, paths: Sequence[Path]) -> str:
    for depth in range(1, len(path.parts)):
        own = path.parts[-depth:]
        if sum(other.parts[-depth:] == own for other in paths) == 1:
            return "/".join(own)
    return str(path)


# Names given by a user: one line of text, kept by the store.
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


# Two label maps of one scan, brought together by name.


@dataclass(frozen=True)
class SharedLabels:
    """Two label maps in the values of the first.

    Attributes:
        names: Value -> name, as far as either has one; without what is ignored.
        first: Value in the first map -> -1 where it teaches nothing.
        second: Value in the second map -> value in the first; values that are not
            named here stay.
        strangers: Values of the second map that mean classes which the first, naming
            its own, does not mark; larger than any value of either table.
    """

    names: dict[int, str]
    first: dict[int, int]
    second: dict[int, int]
    strangers: frozenset[int] = frozenset()


def shared_labels(
    first: tuple[str, Mapping[int, str]], second: tuple[str, Mapping[int, str]]
) -> SharedLabels:
    """Bring two label maps together: by name where both name their labels.

    Args:
        first: Title for messages, and value -> name.
        second: Likewise.

    Raises:
        UnusableInput: A value is called otherwise in both, and neither name is one of
            the other's: whether they are one class is unknown.
    """
    one, other = _real(first[1]), _real(second[1])
    dropped = {v: UNLABELLED for v, n in one.items() if is_ignore(n)}
    one = {v: n for v, n in one.items() if v not in dropped}
    if not one or not other:
        return SharedLabels({**other, **one}, dropped, {})
    of = {key_of(n): v for v, n in one.items()}
    keys = {key_of(n) for n in other.values()}
    free = max([*one, *other]) + 1
    mapping: dict[int, int] = {}
    strangers: set[int] = set()
    for value, name in other.items():
        if key_of(name) in of:
            mapping[value] = of[key_of(name)]
            continue
        if value in one and key_of(one[value]) not in keys:
            raise UnusableInput(
                f"label {value} is {one[value]!r} in {first[0]} but {name!r} in "
                f"{second[0]}; if they are one class, give them one name in a "
                "label_names.json beside each."
            )
        mapping[value], free = free, free + 1
        strangers.add(mapping[value])
    changed = {v: n for v, n in mapping.items() if v != n}
    return SharedLabels(one, dropped, changed, frozenset(strangers))


def _real(names: Mapping[int, str]) -> dict[int, str]:
    return {v: n.strip() for v, n in names.items() if v > 0 and has_name(v, n)}
