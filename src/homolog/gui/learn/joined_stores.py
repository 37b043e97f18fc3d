"""What stores teach when one model learns from them together; no Qt, no torch.

The classes are joined as the engine joins them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from homolog.gui.shared.choices import StoreChoice, class_lines
from homolog.label_names import NONE, says_none
from homolog.store.names import has_name, join_labels, store_titles
from homolog.store.preprocess import differing_settings
from homolog.words import counted, listed

_MOST = 30
_ELSEWHERE = (
    "Where a store does not annotate a class, nothing is learnt about it there."
)
_NAMELESS = (
    "Labels without a name stay apart; they are named when a store is built (Data, "
    "Label names), or by a dataset.json beside the scans."
)
_SETTINGS = {
    "spacing_mm": "voxel size",
    "window_hu": "range of CT values",
    "percentiles": "range of brightness",
}


@dataclass(frozen=True)
class JoinedClass:
    """One class of the model.

    Attributes:
        name: For people.
        scans: Of each store that annotates it: its name, and how many scans show it.
    """

    name: str
    scans: tuple[tuple[str, int], ...]

    @property
    def line(self) -> str:
        """``liver: 8 scans (abdomen), 4 scans (chest)``."""
        return f"{self.name}: " + ", ".join(
            f"{counted(n, 'scan')} ({s})" for s, n in self.scans
        )


def joined_labels(stores: Sequence[StoreChoice]) -> list[JoinedClass]:
    """Classes of the stores' label maps, in the order of the model's values."""
    titles = store_titles([store.path.resolve() for store in stores])
    named = [{c.value: c.name for c in store.classes} for store in stores]
    joined = join_labels(list(zip(titles, named, strict=True)))
    shown = store_titles([store.path for store in stores])
    found: dict[int, list[tuple[str, int]]] = {value: [] for value in joined.names}
    for title, store, values in zip(shown, stores, joined.values, strict=True):
        counts: Counter[int] = Counter()
        for one in store.classes:
            counts[values[one.value]] += one.cases
        for value, count in counts.items():
            found[value].append((title, count))
    return [JoinedClass(name, tuple(found[v])) for v, name in joined.names.items()]


def joined_findings(stores: Sequence[StoreChoice]) -> list[JoinedClass]:
    """Classes of whole scans; where a scan may have several, last those without any."""
    several = any(store.several for store in stores)
    found: dict[str, list[tuple[str, int]]] = {}
    shown = store_titles([store.path for store in stores])
    for title, store in zip(shown, stores, strict=True):
        counts: Counter[str] = Counter()
        for name, count in store.scan_classes:
            counts[NONE if several and says_none(name) else name] += count
        for name, count in counts.items():
            found.setdefault(name, []).append((title, count))
    last = NONE if several else ""
    order = sorted(found, key=lambda name: (name == last, name))
    return [JoinedClass(name, tuple(found[name])) for name in order]


def what_is_learnt(task: str, stores: Sequence[StoreChoice]) -> tuple[str, str]:
    """Title and lines of the fold with the classes; empty where there are none."""
    if task == "classify":
        joined = joined_findings(stores)
        if not joined:
            return "", ""
        title = f"{len(joined)} classes of whole scans"
        if any(store.several for store in stores):
            count = sum(one.name != NONE for one in joined)
            title = f"{counted(count, 'finding')}, any or none per scan"
        if len(stores) == 1:
            return title, "\n".join(f"{c.name}: {c.scans[0][1]} scans" for c in joined)
        return title, _lines(joined)
    joined = joined_labels(stores)
    if not joined:
        return "", ""
    count = sum(store.teachable for store in stores)
    title = f"{counted(len(joined), 'class')}, {counted(count, 'labelled scan')}"
    if len(stores) == 1:
        return title, "\n".join(class_lines(stores[0].classes))
    return title, f"{_lines(joined)}\n{_ELSEWHERE}"


def labels_counted(
    task: str, stores: Sequence[StoreChoice], share: float, most: int | None
) -> str:
    """How many labelled scans will be used, and for what; empty without stores.

    Args:
        task: That is learnt.
        stores: To learn from.
        share: Of the labelled training scans, 0..1.
        most: Held-out scans that choose the weights, at most; 0: all; None: none.
    """
    if teaching_problem(task, stores):
        return ""
    whole = task == "classify"
    learnt = sum(s.class_teachable if whole else s.teachable for s in stores)
    held = sum(s.class_held_out if whole else s.held_out for s in stores)
    learnt = max(1, round(share * learnt))
    chosen = 0 if most is None else min(held, most) if most else held
    about = "About " if share < 1.0 else ""
    text = f"{about}{counted(learnt, 'labelled scan')} to learn from"
    if not chosen:
        return f"{text}; none chooses the weights: the last ones are kept."
    return (
        f"{text} and {chosen} more to choose the weights by (Validate cases): "
        f"{learnt + chosen} in all."
    )


def how_they_fit(task: str, stores: Sequence[StoreChoice]) -> str:
    """What to know before stores are learnt together; empty where they cannot be."""
    if len(stores) < 2 or teaching_problem(task, stores):
        return ""
    told = _by_name(task, stores)
    odd = differing_settings([s.preprocessing for s in stores if s.preprocessing])
    if not odd:
        return told
    settings = listed(_SETTINGS.get(name, name) for name in odd)
    return (
        f"{told}\n⚠ The stores were prepared with different settings ({settings}): new "
        f"scans will be prepared as those of {stores[0].name}, the store ticked first."
    )


def teaching_problem(task: str, stores: Sequence[StoreChoice]) -> str:
    """Why a task cannot be learnt from the stores together; empty when it can."""
    if not stores:
        return "Choose a store with labelled scans."
    seen: dict[Path, StoreChoice] = {}
    for store in stores:
        if store.problem:
            return f"The store {store.name} cannot be used: {store.problem}"
        twin = seen.setdefault(store.path.resolve(), store)
        if twin is not store:
            return f"{twin.path} and {store.path} are the same store: untick one."
    if task == "classify":
        return _class_problem(stores)
    instead = "choose another one" if len(stores) == 1 else "untick it"
    for store in stores:
        if not store.labelled:
            return (
                f"No scan of {store.name} has labels. Build the store again with a "
                f"folder of label maps, or {instead}."
            )
        if not store.teachable:
            return (
                f"All labelled scans of {store.name} are kept for validation or the "
                "final test, so none is left to learn from. Add labelled scans."
            )
        if not store.classes:
            return f"All label maps of {store.name} are empty: nothing to learn."
    return ""


def _class_problem(stores: Sequence[StoreChoice]) -> str:
    for store in stores:
        if not store.scan_classes and len(stores) > 1:
            return f"No scan of {store.name} has a class: untick it."
    joined = joined_findings(stores)
    names = listed(store.name for store in stores)
    if len(joined) < 2:
        found = ", ".join(one.name for one in joined) or "none"
        has = "has" if len(stores) == 1 else "have"
        return (
            f"Classification needs scans of two classes, {names} {has} {found}. "
            'Build it from a table with a column "class".'
        )
    for store in stores:
        if not store.class_teachable:
            return (
                f"All scans of {store.name} whose class is known are kept for "
                "validation or the final test, so none is left to learn from."
            )
    return ""


def _by_name(task: str, stores: Sequence[StoreChoice]) -> str:
    """Which classes are one class in several stores."""
    if task == "classify":
        joined = joined_findings(stores)
        if all(len(store.scan_classes) == 1 for store in stores) and len(joined) > 1:
            return (
                "⚠ Each store holds scans of one class only: the model may learn to "
                "tell the stores apart instead of the classes."
            )
    else:
        joined = joined_labels(stores)
    shared = [one.name for one in joined if len(one.scans) > 1]
    if shared:
        told = f"Learnt from several stores, by name: {listed(shared, most=4)}."
    else:
        told = "No class has the same name in two stores."
    bare = task != "classify" and any(
        not has_name(one.value, one.name) for store in stores for one in store.classes
    )
    return f"{told} {_NAMELESS}" if bare else told


def _lines(joined: Sequence[JoinedClass]) -> str:
    lines = [one.line for one in joined[:_MOST]]
    if len(joined) > _MOST:
        lines.append(f"and {len(joined) - _MOST} more")
    return "\n".join(lines)
