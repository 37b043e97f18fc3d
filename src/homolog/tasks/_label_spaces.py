"""Labels of several data sets as classes of one model.

Each store names its own labels; ``homolog.data.label_names`` says how they are joined.
What a store does not annotate may still be there, unlabelled: the loss must not call it
background.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.data.label_names import (
    has_name,
    join_labels,
    name_between_stores,
    refuse_ignored,
    store_titles,
)
from homolog.data.label_naming import key_of
from homolog.data.store import Store
from homolog.errors import UnusableInput
from homolog.feed import CaseRef


@dataclass(frozen=True)
class LabelSpace:
    """What the labels of one store are in the model.

    Attributes:
        store: Name of its folder.
        store_hash: Its hash.
        values: Value in the store -> value in the model, without background.
    """

    store: str
    store_hash: str
    values: Mapping[int, int]

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "store": self.store,
            "store_hash": self.store_hash,
            "values": {str(k): v for k, v in self.values.items()},
        }

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> LabelSpace:
        """Inverse of ``to_dict``."""
        values = {int(k): int(v) for k, v in told["values"].items()}
        return cls(str(told["store"]), str(told["store_hash"]), values)


@dataclass(frozen=True)
class Classes:
    """The classes of a model.

    Attributes:
        names: Value in the model -> name, without background.
        spaces: One per store, in the order of the cases; empty for a single store,
            whose values are the model's.
    """

    names: Mapping[int, str]
    spaces: tuple[LabelSpace, ...] = ()


def classes_of(cases: Sequence[CaseRef]) -> Classes:
    """The classes that cases of one or several stores annotate, see ``join_labels``.

    Args:
        cases: Labelled; stores in the order of their first case.
    """
    stores: dict[Path, Store] = {}
    found: dict[Path, set[int]] = {}
    for case in cases:
        stores.setdefault(case.store.path, case.store)
        found.setdefault(case.store.path, set()).update(case.card.label_values)
    for path, store in stores.items():
        refuse_ignored(path, store.label_names)
    titles = store_titles(list(stores))
    named = [
        {v: store.label_names.get(v, "") for v in found[path]}
        for path, store in stores.items()
    ]
    joined = join_labels(list(zip(titles, named, strict=True)))
    if len(stores) == 1:
        return Classes(joined.names)
    parts = zip(titles, stores.values(), joined.values, strict=True)
    spaces = (LabelSpace(title, s.hash, values) for title, s, values in parts)
    return Classes(joined.names, tuple(spaces))


def space_of(
    store: Store, spec: Mapping[str, Any], learnt_from: str = ""
) -> LabelSpace | None:
    """What the labels of a store are in a model; None where they are the model's own.

    A store the model did not learn from is understood by the names of its labels.

    Args:
        store: Of the case looked at.
        spec: Of the model.
        learnt_from: Hash of the one store it learnt from, where there was one.

    Raises:
        UnusableInput: Store and model name their labels, and none alike.
    """
    if not spec.get("label_spaces"):
        return None if store.hash == learnt_from else _by_name(store, spec)
    spaces = [LabelSpace.from_dict(told) for told in spec["label_spaces"]]
    for space in spaces:
        if space.store_hash == store.hash:
            return space
    known = {n.strip().casefold(): int(v) for v, n in spec["label_names"].items()}
    title = store.path.name
    own = {
        value: name_between_stores(value, name, title).strip().casefold()
        for value, name in store.label_names.items()
    }
    values = {value: known[name] for value, name in own.items() if name in known}
    return LabelSpace(title, store.hash, values)


def _by_name(store: Store, spec: Mapping[str, Any]) -> LabelSpace | None:
    """As ``space_of``, of a model that learnt from one store."""
    model = {int(v): str(n) for v, n in spec["label_names"].items()}
    known = {key_of(n): v for v, n in model.items() if has_name(v, n)}
    values: dict[int, int] = {}
    for value, name in store.label_names.items():
        if not has_name(value, name) or not known:
            values[value] = value  # nothing but the number tells
        elif key_of(name) in known:
            values[value] = known[key_of(name)]
        elif value in model and not has_name(value, model[value]):
            values[value] = value
    values = {v: own for v, own in values.items() if own in model}
    if values == {v: v for v in store.label_names if v in model}:
        return None
    if not values:
        raise UnusableInput(
            f"the labels of {store.path} ({', '.join(store.label_names.values())}) are "
            f"none of the model's ({', '.join(model.values())}); if they are the same, "
            "prepare the store with --names VALUE=NAME."
        )
    return LabelSpace(store.path.name, store.hash, values)


def in_model(labels: NDArray[np.int16], space: LabelSpace | None) -> NDArray[np.int16]:
    """A store's label map in the model's values; labels it does not know become 0."""
    if space is None:
        return labels
    top = max([int(labels.max(initial=0)), *space.values], default=0)
    table = np.zeros(top + 2, np.int16)
    table[-1] = -1  # unlabelled stays so
    for value, own in space.values.items():
        table[value] = own
    mapped: NDArray[np.int16] = table[np.where(labels < 0, top + 1, labels)]
    return mapped


def annotated(space: LabelSpace | None, values: Sequence[int]) -> list[int]:
    """Which of the model's values a store annotates."""
    if space is None:
        return list(values)
    known = set(space.values.values())
    return [v for v in values if v in known]


def spaces_note(classes: Classes) -> str:
    """Which class is annotated where, for people; empty for a single store."""
    if not classes.spaces:
        return ""
    lines = []
    for value, name in classes.names.items():
        having = [s.store for s in classes.spaces if value in s.values.values()]
        lines.append(f"{name} ({', '.join(having)})")
    return (
        f"{len(classes.spaces)} data sets, {len(classes.names)} classes: "
        f"{'; '.join(lines)}. Where a data set does not annotate a class, its voxels "
        "may be that class or background."
    )
