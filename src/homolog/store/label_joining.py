"""Label maps of many files as classes of one store: names win over numbers.

Where one file calls 1 what another calls 2, their values are changed, so that a name is
one class of the store. A label named ``ignore`` is none: its voxels teach nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from homolog.index.datasets import CaseSource, Rejected
from homolog.label_names import LISTED, UNLABELLED, has_name, is_ignore, key_of
from homolog.store.card import Card
from homolog.words import listed

_MOST = 3  # sentences of one kind before the rest is counted


@dataclass(frozen=True)
class JoinedCases:
    """Cases whose labels are classes of one store.

    Attributes:
        cases: Their ``label_names`` in the store's values, ``label_map`` where a file
            has others.
        refused: Label maps that cannot be brought together with the rest.
        warnings: What a user should look at, in sentences.
        remarks: What a user may want to know.
    """

    cases: tuple[CaseSource, ...]
    refused: tuple[Rejected, ...] = ()
    warnings: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def join_cases(cases: Sequence[CaseSource], given: Mapping[int, str]) -> JoinedCases:
    """Bring the labels of cases together by their names.

    As long as a value means one thing in all files and a name has one value, values
    stay. Otherwise a name takes the value it has most often, where that is free.

    Args:
        cases: With names in their files' own values.
        given: Value -> name, a user's word. It names labels that files leave without a
            name or call only by that value; where files number a name differently, it
            renames the class that the store keeps under that value.
    """
    files = [_FileLabels(case, given) for case in cases]
    table = _Table(files, given)
    joined: list[CaseSource] = []
    refused: list[Rejected] = []
    for one in files:
        try:
            joined.append(table.join(one))
        except _NoOneClassError as error:
            where = str(one.case.label or one.case.image)
            refused.append(Rejected(where, str(error), "label_names"))
    return JoinedCases(
        tuple(joined), tuple(refused), tuple(table.warnings()), tuple(table.remarks())
    )


def names_by_class(
    named: Sequence[CaseSource], joined: Sequence[CaseSource]
) -> list[CaseSource]:
    """What files call the classes of the store: their names, the store's values.

    Args:
        named: With names in their files' own values.
        joined: The same cases from ``join_cases``, by id; those refused are left out.
    """
    maps = {case.id: case.label_map for case in joined}
    return [
        replace(
            case,
            label_names={
                maps[case.id].get(v, v): n for v, n in case.label_names.items()
            },
        )
        for case in named
        if case.id in maps
    ]


def label_names(cards: Sequence[Card], cases: Sequence[CaseSource]) -> dict[int, str]:
    """Names of the source; a number where it gives none."""
    values = {value for card in cards for value in card.label_values}
    names = {value: f"label {value}" for value in sorted(values)}
    for case in reversed(cases):
        names.update({v: n for v, n in case.label_names.items() if v > 0})
    return dict(sorted(names.items()))


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
        cases: With the names that files give.
        cards: What was prepared.
    """
    sentences = []
    if old := [f"{v} ({n})" for v, n in kept.items() if v not in given]:
        sentences.append(
            f"Label names given earlier were kept: {listed(old, 'and', LISTED)}; "
            "--names gives others."
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
            known = listed(others, "or", LISTED)
            overruled.append(f"{value} is {name}, not {known}")
    if overruled:
        sentences.append(
            f"Given names win over files: {listed(overruled, 'and', LISTED)}."
        )
    there = {value for card in cards for value in card.label_values}
    # what is to be ignored is no label of any case
    wanted = {v: n for v, n in given.items() if not is_ignore(n)}
    if absent := [f"{v} ({n})" for v, n in wanted.items() if v not in there]:
        sentences.append(f"No label map holds {listed(absent, 'or', LISTED)}.")
    return sentences


class _NoOneClassError(Exception):
    """A value of a file that may mean several classes; the text names them."""


class _FileLabels:
    """What one case's file calls its values.

    Attributes:
        case: The case.
        keys: Value -> key of its class.
        spelt: Key -> name as written.
        ignored: Values that teach nothing.
        nameless: Values it holds and does not name.
    """

    def __init__(self, case: CaseSource, given: Mapping[int, str]) -> None:
        self.case = case
        names = {v: n for v, n in case.label_names.items() if v > 0 and has_name(v, n)}
        self.ignored = {v for v, n in names.items() if is_ignore(n)}
        self.keys = {v: key_of(n) for v, n in names.items() if v not in self.ignored}
        self.spelt = {key_of(n): n.strip() for n in names.values()}
        held = case.label_values or frozenset()
        self.nameless = {v for v in held if v not in names}
        for value in sorted(self.nameless & given.keys()):
            self.call(value, given[value])

    @property
    def name(self) -> str:
        """Of the file, for sentences."""
        return (self.case.label or self.case.image).name

    def call(self, value: int, name: str) -> None:
        """Take a user's word for what a value is."""
        self.nameless.discard(value)
        if is_ignore(name):
            self.keys.pop(value, None)
            self.ignored.add(value)
        else:
            self.keys[value] = key_of(name)
            self.spelt[key_of(name)] = name


class _Table:
    """Which class of the store every name is."""

    def __init__(self, files: Sequence[_FileLabels], given: Mapping[int, str]) -> None:
        self.files, self.given = files, given
        self._overrule()
        # value -> key -> the first file with it
        self.at: dict[int, dict[str, _FileLabels]] = defaultdict(dict)
        self.values: dict[str, set[frozenset[int]]] = defaultdict(set)
        for one in files:
            own: dict[str, set[int]] = defaultdict(set)
            for value, key in one.keys.items():
                self.at[value].setdefault(key, one)
                own[key].add(value)
            for key, values in own.items():
                self.values[key].add(frozenset(values))
        self.agreed = all(len(keys) == 1 for keys in self.at.values()) and all(
            len(sets) == 1 for sets in self.values.values()
        )
        self.number = {} if self.agreed else self._numbers()
        self.names = self._names()

    def _overrule(self) -> None:
        """A user's word for a value replaces names that only it has."""
        where: dict[str, set[int]] = defaultdict(set)
        for one in self.files:
            for value, key in one.keys.items():
                where[key].add(value)
        self.overruled: set[int] = set()
        for one in self.files:
            for value, key in list(one.keys.items()):
                if value in self.given and where[key] == {value}:
                    one.call(value, self.given[value])
                    self.overruled.add(value)

    def _numbers(self) -> dict[str, int]:
        """Key -> value in the store: its most frequent one where that is free."""
        counts: Counter[tuple[str, int]] = Counter()
        for one in self.files:
            counts.update((key, value) for value, key in sorted(one.keys.items()))
        by_word = {(key_of(self.given[v]), v) for v in self.overruled}
        order = sorted(counts, key=lambda pair: (pair not in by_word, -counts[pair]))
        # values that nobody names keep their number
        taken = {v for one in self.files for v in one.nameless if v not in self.at}
        number: dict[str, int] = {}
        for key, value in order:
            if key not in number and value not in taken:
                number[key] = value
                taken.add(value)
        free = max([*taken, *self.at, *self.given], default=0) + 1
        for key, _ in order:
            if key not in number:
                number[key], free = free, free + 1
        return number

    def _names(self) -> dict[int, str]:
        """Value in the store -> name."""
        names: dict[int, str] = {}
        for one in self.files:
            for value, key in one.keys.items():
                names.setdefault(self.number.get(key, value), one.spelt[key])
        rest = {v: n for v, n in self.given.items() if v not in self.overruled}
        return {**names, **{v: n for v, n in rest.items() if not is_ignore(n)}}

    def join(self, one: _FileLabels) -> CaseSource:
        """The case in the store's values.

        Raises:
            _NoOneClassError: It holds a value without a name that files disagree on.
        """
        mapping = dict.fromkeys(one.ignored, UNLABELLED)
        for value, key in one.keys.items():
            mapping[value] = self.number.get(key, value)
        if not self.agreed:
            for value in sorted(one.nameless):
                self._check_nameless(one, value)
        own = {n: self.names[n] for n in mapping.values() if n in self.names}
        rest = {v: n for v, n in self.given.items() if not is_ignore(n)}
        own = {**{v: self.names[v] for v in rest if v in self.names}, **own}
        return replace(
            one.case,
            label_names=dict(sorted(own.items())),
            label_map={v: n for v, n in sorted(mapping.items()) if v != n},
        )

    def _check_nameless(self, one: _FileLabels, value: int) -> None:
        keys = self.at.get(value, {})
        if all(self.number[key] == value and self._always(key, value) for key in keys):
            return
        (key, first), *others = keys.items()
        text = f"{value} is {first.spelt[key]!r} in {first.name}"
        if others:
            key, other = others[0]
            text += f" but {other.spelt[key]!r} in {other.name}"
        else:
            text += " and has another number elsewhere"
        raise _NoOneClassError(
            f"label {one.name} does not name its value {value}, and {text}; say what "
            "it is in a label_names.json beside it."
        )

    def _always(self, key: str, value: int) -> bool:
        return self.values[key] == {frozenset({value})}

    def warnings(self) -> list[str]:
        """A sentence for every value that has two names which are two classes."""
        sentences = []
        for value, keys in sorted(self.at.items()):
            if len(keys) < 2 or all(len(self._places(k)) > 1 for k in keys):
                continue
            (one, first), (other, second) = list(keys.items())[:2]
            sentences.append(
                f"label {value} is {first.spelt[one]!r} in {first.case.id} but "
                f"{second.spelt[other]!r} in {second.case.id}; they became two classes "
                f"({self.number[one]} and {self.number[other]}). If they are one, say "
                f"--names {value}=NAME; if a file does not mark what the other does, "
                "prepare such data into two stores."
            )
        return _short(sentences)

    def remarks(self) -> list[str]:
        """What was joined by name, what by number, and what teaches nothing."""
        sentences = []
        for key in self.values:
            places = self._places(key)
            if len(places) > 1:
                (a, first), (b, second) = list(places.items())[:2]
                sentences.append(
                    f"{first.spelt[key]!r} is {a} in {first.name} but {b} in "
                    f"{second.name}: names win, it is {self.number[key]} in the store."
                )
        sentences = _short(sentences)
        blank = {v: one for one in self.files for v in one.nameless if v in self.at}
        if blank:
            value, one = min(blank.items(), key=lambda pair: pair[0])
            ((key, first), *_) = self.at[value].items()
            sentences.append(
                f"{one.name} does not name its labels: its {value} is taken for "
                f"{first.spelt[key]!r}, as in {first.name}."
            )
        ignored = sorted({v for one in self.files for v in one.ignored})
        if ignored:
            values = ", ".join(str(v) for v in ignored)
            sentences.append(
                f"label {values} is called ignore: its voxels teach nothing and count "
                "in no score."
            )
        return sentences

    def _places(self, key: str) -> dict[int, _FileLabels]:
        """Values of a name, each with the first file that has it."""
        return {v: keys[key] for v, keys in sorted(self.at.items()) if key in keys}


def _short(sentences: list[str]) -> list[str]:
    if len(sentences) <= _MOST:
        return sentences
    rest = len(sentences) - _MOST
    return [*sentences[:_MOST], f"(and {rest} more of that kind.)"]
