"""Names of labels and of findings, as texts, and colours by name; reads no file.

Labels of one name are one class, in whichever store they occur; a label without a name
is a class of its own store. A name that a user gives wins over those of files.

Several findings of one scan are one text, ``effusion|nodule`` or ``no finding``: so
tables, cards and models name them. An empty cell is no answer: it is not known what the
scan shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homolog.config import ConfigError
from homolog.errors import UnusableInput

Colour = tuple[float, float, float]  # red, green, blue, 0..1

# The largest value that a stored label map can hold.
_LARGEST = 32767
# Stored value of voxels that teach nothing.
UNLABELLED = -1
# Labels listed in one sentence before the rest is counted.
LISTED = 5
SEPARATOR = "|"
NONE = "no finding"
# A label of this name teaches nothing (nnU-Net).
IGNORE = "ignore"
# Classes of scans that hold nothing to be found, unless the user names others.
EMPTY_CLASSES = ("normal", "healthy")
# What tables write for a scan that was read and shows none of the findings.
_NONE_WORDS = {NONE, "no findings", "no_finding", "none"}

# Colours of the phantom's labels by name; others take the spare ones in turn.
LABEL_COLOURS: Mapping[str, Colour] = {
    "liver": (0.80, 0.45, 0.30),
    "spleen": (0.62, 0.40, 0.75),
    "kidney_right": (0.95, 0.75, 0.25),
    "kidney_left": (0.98, 0.85, 0.45),
    "lung_right": (0.35, 0.65, 0.90),
    "lung_left": (0.50, 0.78, 0.95),
    "heart": (0.90, 0.25, 0.35),
    "stomach": (0.40, 0.75, 0.60),
    "aorta": (1.00, 0.10, 0.15),
    "vena_cava": (0.20, 0.35, 0.95),
    "vertebrae": (0.93, 0.90, 0.78),
    "pancreas": (0.95, 0.60, 0.65),
    "gallbladder": (0.45, 0.80, 0.25),
}
_SPARE: tuple[Colour, ...] = (
    (0.90, 0.60, 0.00), (0.34, 0.71, 0.91), (0.00, 0.62, 0.45), (0.94, 0.89, 0.26),
    (0.84, 0.37, 0.00), (0.80, 0.47, 0.65), (0.60, 0.60, 0.60), (0.55, 0.85, 0.35),
)  # fmt: skip


def parse_names(raw: Any) -> dict[int, str]:
    """``{"1": "liver"}`` or ``{"liver": 1}`` -> value: name; regions are skipped."""
    if not isinstance(raw, Mapping):
        return {}
    names = {}
    for key, value in raw.items():
        if isinstance(value, str) and _is_whole(key):
            names[int(key)] = value
        elif isinstance(value, int) and not isinstance(value, bool):
            names[value] = str(key)
    return dict(sorted(names.items()))


def parse_regions(raw: Any) -> dict[str, tuple[int, ...]]:
    """``{"tumour": [1, 2]}`` -> name: values, of the entries that name several."""
    if not isinstance(raw, Mapping):
        return {}
    found = {
        str(name): tuple(int(v) for v in values)
        for name, values in raw.items()
        if isinstance(values, list) and all(_is_whole(v) for v in values)
    }
    return {name: values for name, values in found.items() if values}


def names_with_regions(raw: Any) -> dict[int, str]:
    """As ``parse_names``; a value that only regions name is the rest of the smallest.

    Source: nnU-Net v2, region-based training: ``"whole tumour": [1, 2, 3]``.
    """
    names = parse_names(raw)
    regions = sorted(parse_regions(raw).items(), key=lambda pair: len(pair[1]))
    for name, values in regions:
        left = [v for v in values if v not in names]
        for value in left:
            alone = len(values) == 1
            rest = f"rest of {name}" if len(left) == 1 else f"{name} {value}"
            names[value] = name if alone else rest
    return dict(sorted(names.items()))


def is_ignore(name: str) -> bool:
    """Whether a label of this name says that its voxels teach nothing."""
    return key_of(name) == IGNORE


def key_of(name: str) -> str:
    """Names of one key are one name."""
    return " ".join(name.split()).casefold()


def _is_whole(text: object) -> bool:
    digits = str(text).removeprefix("-")
    return digits.isdecimal() and len(digits) < 19


def holds_nothing(target: str | None, names: Iterable[str] = EMPTY_CLASSES) -> bool:
    """Whether a scan's class says that there is nothing to find in it.

    Args:
        target: Its class; None where it is not known.
        names: Classes that say so, beside ``no finding``.
    """
    if target is None:
        return False
    return says_none(target) or key_of(target) in {key_of(name) for name in names}


def findings_of(text: str) -> tuple[str, ...]:
    """``"nodule|effusion"`` -> ``("effusion", "nodule")``; empty for ``no finding``."""
    if says_none(text):
        return ()
    parts = (part.strip() for part in text.split(SEPARATOR))
    return tuple(sorted({part for part in parts if part}))


def findings_text(names: Iterable[str]) -> str:
    """Inverse of ``findings_of``."""
    return SEPARATOR.join(sorted(set(names))) or NONE


def says_none(text: str | None) -> bool:
    """Whether a scan was read and shows none of the findings."""
    return text is not None and text.strip().lower() in _NONE_WORDS


def has_several(text: str) -> bool:
    """Whether more than one finding is named."""
    return SEPARATOR in text


def findings_cell(value: Any) -> str | None:
    """What a table's cell, or a JSON list, says of a scan; None where it is silent.

    A single name stays as it is written.

    Raises:
        UnusableInput: No finding and one, in one cell.
    """
    if isinstance(value, list | tuple):
        names = [str(part).strip() for part in value]
        return _together(names) if names else NONE
    text = "" if value is None else str(value).strip()
    return _together(text.split(SEPARATOR)) if has_several(text) else text or None


def merged_findings(first: str | None, second: str | None) -> str | None:
    """What two rows about one scan say together."""
    if first is None or second is None or first == second:
        return first if second is None else second
    return findings_text({*findings_of(first), *findings_of(second)})


def _together(parts: Iterable[str]) -> str | None:
    names = [part.strip() for part in parts if part.strip()]
    found = [name for name in names if not says_none(name)]
    if found and len(found) < len(names):
        raise UnusableInput(
            f"a scan shows findings or none, got {SEPARATOR.join(names)!r}."
        )
    if len(found) == 1:
        return found[0]
    return findings_text(found) if names else None


def colours_of(names: Mapping[int, str]) -> dict[int, Colour]:
    """A colour per label value."""
    spare = iter(_SPARE * (1 + len(names) // len(_SPARE)))
    return {v: LABEL_COLOURS.get(n) or next(spare) for v, n in sorted(names.items())}


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
