"""What the Pretrain and the Fine-tune tab know and decide; no Qt, no torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from homolog.config import merge
from homolog.gui.shared.choices import (
    SCRATCH,
    ModelChoice,
    StoreChoice,
    assignments,
    class_lines,
    common,
    length_words,
    quoted,
)
from homolog.label_names import NONE, has_name, join_labels, says_none, store_titles
from homolog.store.preprocess import differing_settings
from homolog.words import counted, listed

# What stores teach when one model learns from them together; no Qt, no torch.
#
# The classes are joined as the engine joins them.


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


def joined_boxes(stores: Sequence[StoreChoice]) -> list[JoinedClass]:
    """Classes of boxes; of a store without boxes, those of its label maps."""
    shown = store_titles([store.path for store in stores])
    found: dict[str, list[tuple[str, int]]] = {}
    for title, store in zip(shown, stores, strict=True):
        told = [(name, scans) for name, scans, _ in store.box_classes]
        for name, scans in told or [(c.name, c.cases) for c in store.classes]:
            found.setdefault(name, []).append((title, scans))
    return [JoinedClass(name, tuple(found[name])) for name in sorted(found)]


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
    if task == "detect":
        joined = joined_boxes(stores)
        boxes = sum(count for s in stores for _, _, count in s.box_classes)
        title = f"{counted(len(joined), 'class')} of boxes"
        title += f", {counted(boxes, 'box')}" if boxes else " around labels"
        if len(stores) == 1 and boxes:
            told = stores[0].box_classes[:_MOST]
            lines = (
                f"{n}: {counted(s, 'scan')}, {counted(k, 'box')}" for n, s, k in told
            )
            return title, "\n".join(lines)
        return (title, _lines(joined)) if joined else ("", "")
    if task == "translate":
        names = list(dict.fromkeys(name for s in stores for name in s.channels))
        title = counted(len(names), "channel")
        return (title, ", ".join(names)) if names else ("", "")
    joined = joined_labels(stores)
    if not joined:
        return "", ""
    count = sum(store.teachable for store in stores)
    title = f"{counted(len(joined), 'class')}, {counted(count, 'labelled scan')}"
    if len(stores) == 1:
        return title, "\n".join(class_lines(stores[0].classes))
    return title, f"{_lines(joined)}\n{_ELSEWHERE}"


def labels_counted(
    task: str,
    stores: Sequence[StoreChoice],
    share: float,
    most: int | None,
    patients: int = 0,
) -> str:
    """How many labelled scans will be used, and for what; empty without stores.

    Args:
        task: That is learnt.
        stores: To learn from.
        share: Of the labelled training scans, 0..1.
        most: Held-out scans that choose the weights, at most; 0: all; None: none.
        patients: So many are learnt from instead; 0: the share.
    """
    if teaching_problem(task, stores):
        return ""
    learnt = sum(_usable(task, s).learnt for s in stores)
    held = sum(_usable(task, s).held_out for s in stores)
    chosen = 0 if most is None else min(held, most) if most else held
    if patients:
        text = f"Scans of {counted(patients, 'patient')} to learn from"
    else:
        have = patients_to_learn_from(task, stores)
        of = f" of {counted(have, 'patient')}" if have not in (0, learnt) else ""
        about, of = ("About ", "") if share < 1.0 else ("", of)
        learnt = max(1, round(share * learnt))
        text = f"{about}{counted(learnt, 'labelled scan')}{of} to learn from"
    if not chosen:
        return f"{text}; none chooses the weights: the last ones are kept."
    if patients:
        return f"{text} and {chosen} more to choose the weights by (Validate cases)."
    return (
        f"{text} and {chosen} more to choose the weights by (Validate cases): "
        f"{learnt + chosen} in all."
    )


def patients_to_learn_from(task: str, stores: Sequence[StoreChoice]) -> int:
    """How many patients have labelled scans; at most, where stores share patients."""
    return sum(_usable(task, s).patients for s in stores)


@dataclass(frozen=True)
class _Usable:
    """Scans of a store that teach a task, those that are held out, and patients."""

    learnt: int
    held_out: int
    patients: int


def _usable(task: str, store: StoreChoice) -> _Usable:
    if task == "classify":
        told = store.class_teachable, store.class_held_out, store.class_patients
    elif task == "detect":
        told = store.box_teachable, store.box_held_out, store.box_patients
    elif task == "translate":
        told = store.scan_teachable, store.scan_held_out, store.patients
    else:
        told = store.teachable, store.held_out, store.label_patients
    return _Usable(*told)


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
    if task == "detect":
        return _box_problem(stores)
    if task == "translate":
        return _image_problem(stores)
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


# What stores teach is offered in this order: boxes come with classes, too.
_TASKS = ("segment", "detect", "classify", "translate")


def task_for(stores: Sequence[StoreChoice], now: str) -> str:
    """The task to offer for stores: the chosen one if they teach it, else one they do.

    Args:
        stores: To learn from.
        now: The task chosen, which stays where nothing can be learnt. Whoever drew
            boxes wants them found, though they teach classes of whole scans, too.
    """
    boxed = now == "classify" and all(store.boxed for store in stores)
    order = _TASKS if boxed else (now, *_TASKS)
    fits = (task for task in order if not teaching_problem(task, stores))
    return next(fits, now)


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


def _box_problem(stores: Sequence[StoreChoice]) -> str:
    for store in stores:
        if not store.box_classes and not store.classes:
            return (
                f"No scan of {store.name} has boxes or labels. Build it from a table "
                'with a column "boxes", or "x", "y", "w" and "h" of images.'
            )
        if not store.box_teachable:
            return (
                f"All scans of {store.name} with boxes are kept for validation or the "
                "final test, so none is left to learn from."
            )
    return ""


def _image_problem(stores: Sequence[StoreChoice]) -> str:
    for store in stores:
        if not store.scan_teachable:
            return (
                f"All scans of {store.name} are kept for validation or the final test, "
                "so none is left to learn from."
            )
        if not store.channels and "PET" not in store.modalities:
            return (
                f"The scans of {store.name} have one channel: nothing can be made from "
                "another. Build it from a table with several images in a row, a|b, and "
                "a column channels (of PET alone a low dose can be simulated)."
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
    elif task == "detect":
        joined = joined_boxes(stores)
    elif task == "translate":
        return ""
    else:
        joined = joined_labels(stores)
    shared = [one.name for one in joined if len(one.scans) > 1]
    if shared:
        told = f"Learnt from several stores, by name: {listed(shared, most=4)}."
    else:
        told = "No class has the same name in two stores."
    bare = task == "segment" and any(
        not has_name(one.value, one.name) for store in stores for one in store.classes
    )
    return f"{told} {_NAMELESS}" if bare else told


def _lines(joined: Sequence[JoinedClass]) -> str:
    lines = [one.line for one in joined[:_MOST]]
    if len(joined) > _MOST:
        lines.append(f"and {len(joined) - _MOST} more")
    return "\n".join(lines)


PRESETS = ("quick", "standard", "long", "steps", "minutes")
QUICK_MINUTES = 5
LONG_FACTOR = 5


@dataclass(frozen=True)
class Length:
    """How long to train.

    Attributes:
        preset: One of PRESETS.
        number: Steps or minutes where the preset asks for one's own.
    """

    preset: str = "standard"
    number: float = 0.0

    def training(self, recipe_steps: int) -> dict[str, Any]:
        """Overrides of the training settings.

        Args:
            recipe_steps: Steps the recipe asks for.
        """
        if self.preset == "quick":
            return {"minutes": float(QUICK_MINUTES)}
        if self.preset == "long":
            return {"steps": recipe_steps * LONG_FACTOR, "minutes": 0.0}
        if self.preset == "steps":
            return {"steps": max(1, int(self.number)), "minutes": 0.0}
        if self.preset == "minutes":
            return {"minutes": float(self.number)}
        return {}


class Wish(Protocol):
    """What both panels hand to the box with the start button."""

    @property
    def kind(self) -> str:
        """Kind of run: ``pretrain`` or ``finetune``."""

    @property
    def stem(self) -> str:
        """What the run is named after: method or task, and data."""

    def problem(self) -> str:
        """Why it cannot be started, in one sentence; empty when it can."""

    def config(self) -> dict[str, Any]:
        """Configuration of the run."""

    def command(self, out: Path) -> str:
        """The command line that does the same."""


@dataclass(frozen=True)
class PretrainWish:
    """A pretraining as chosen.

    Attributes:
        method: Name.
        stores: Chosen ones.
        recipe: ``auto``, ``cpu``, ``gpu``, ``paper``.
        backbone: Another network than the recipe's, or None.
        settings: ``method``, ``backbone`` and ``training`` overrides.
        length: How long.
        recipe_steps: Steps of the recipe.
        encoder: Start from these weights; None starts from random ones.
        device: ``auto``, ``cpu``, ``cuda:i``.
        seed: Of everything random.
        without_test: Whether test cases stay unseen.
        sharing: Between whom crops are shared out, and how (power of their number of
            scans); None: as the method does.
    """

    method: str
    stores: tuple[StoreChoice, ...] = ()
    recipe: str = "auto"
    backbone: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    length: Length = field(default_factory=Length)
    recipe_steps: int = 400
    encoder: ModelChoice | None = None
    device: str = "auto"
    seed: int = 0
    without_test: bool = True
    sharing: tuple[str, float] | None = None
    kind: str = "pretrain"

    @property
    def stem(self) -> str:
        """Method and first store."""
        return _stem(self.method, [s.name for s in self.stores])

    def problem(self) -> str:
        """See Wish."""
        if not self.stores:
            return "Choose at least one store to learn from."
        for store in self.stores:
            if store.problem:
                return f"The store {store.name} cannot be used: {store.problem}"
        if self.without_test and not sum(s.learnable for s in self.stores):
            return (
                "All scans chosen are kept for the final test. Choose another store, "
                'or untick "Leave test scans out".'
            )
        return _network_problem(self.encoder, self.backbone)

    def overrides(self) -> dict[str, Any]:
        """Settings with the length among them."""
        length = self.length.training(self.recipe_steps)
        merged = merge(self.settings, {"training": length})
        return {part: dict(merged.get(part) or {}) for part in _PARTS}

    def config(self) -> dict[str, Any]:
        """Arguments of homolog.pretrain.settings.resolve, for the worker."""
        encoder = self.encoder
        backbone = self.backbone
        if encoder is not None and backbone is None:
            backbone = encoder.backbone
        return {
            "unresolved": True,
            "method": self.method,
            "stores": [str(store.path) for store in self.stores],
            "recipe": self.recipe,
            "backbone": backbone,
            "settings": self.overrides(),
            "seed": self.seed,
            "device": self.device,
            "encoder": "" if encoder is None else str(encoder.path),
            "without_splits": ["test"] if self.without_test else [],
            "share_by": None if self.sharing is None else self.sharing[0],
            "share_power": None if self.sharing is None else self.sharing[1],
        }

    def command(self, out: Path) -> str:
        """The ``homolog pretrain`` line."""
        config = self.config()
        words = ["homolog", "pretrain", self.method, *config["stores"]]
        words += ["--out", str(out), "--recipe", self.recipe]
        if config["backbone"] is not None:
            words += ["--backbone", config["backbone"]]
        if config["encoder"]:
            words += ["--encoder", config["encoder"]]
        words += [] if self.without_test else ["--without", "none"]
        if self.sharing is not None:
            by, power = self.sharing
            words += ["--share-by", by, "--share-power", f"{power:g}"]
        settings = config["settings"]
        words += length_words(settings["training"])
        for part in _PARTS:
            words += assignments(settings[part], f"{part}.")
        return quoted([*words, *common(self.seed, self.device)])


@dataclass(frozen=True)
class FinetuneWish:
    """A fine-tuning as chosen.

    Attributes:
        task: Name.
        stores: With labelled scans, each with labels of its own; new scans will be
            prepared as those of the first.
        encoder: What to start from; None starts from random weights.
        recipe: ``cpu`` or ``gpu``.
        backbone: Network overrides; ``name`` for another than the recipe's.
        task_config: Overrides of the task's settings.
        training: Overrides of the training's settings.
        fraction: Share of the labelled training subjects used, 0..1.
        patients: So many of them are used instead; 0: the share.
        length: How long.
        recipe_steps: Steps of the recipe.
        device: ``auto``, ``cpu``, ``cuda:i``.
        seed: Of everything random.
    """

    task: str
    stores: tuple[StoreChoice, ...] = ()
    encoder: ModelChoice | None = None
    recipe: str = "cpu"
    backbone: Mapping[str, Any] = field(default_factory=dict)
    task_config: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    fraction: float = 1.0
    patients: int = 0
    length: Length = field(default_factory=Length)
    recipe_steps: int = 1500
    device: str = "auto"
    seed: int = 0
    kind: str = "finetune"

    @property
    def stem(self) -> str:
        """Task and first store."""
        return _stem(self.task, [s.name for s in self.stores])

    def problem(self) -> str:
        """See Wish."""
        trouble = teaching_problem(self.task, self.stores)
        if trouble:
            return trouble
        if not 0.0 < self.fraction <= 1.0:
            return "The share of labelled scans must be more than 0 and at most 100 %."
        have = patients_to_learn_from(self.task, self.stores)
        if self.patients > have:
            return (
                f"There are labelled scans of {counted(have, 'patient')} to learn "
                f"from, not of {self.patients}: take fewer."
            )
        return _network_problem(self.encoder, self.backbone.get("name"))

    def config(self) -> dict[str, Any]:
        """Fields of FinetuneConfig, for the worker to complete."""
        first, *more = [str(store.path) for store in self.stores]
        encoder, backbone = self.encoder, dict(self.backbone)
        length = self.length.training(self.recipe_steps)
        return {
            "unresolved": True,
            "task": self.task,
            "store": first,
            "more_stores": more,
            "encoder": SCRATCH if encoder is None else str(encoder.path),
            "recipe": self.recipe,
            "backbone": backbone,
            "task_config": dict(self.task_config),
            "training": {**self.training, **length},
            "fraction": self.fraction,
            "patients": self.patients,
            "seed": self.seed,
            "device": self.device,
        }

    def command(self, out: Path) -> str:
        """The ``homolog finetune`` line."""
        config = self.config()
        words = ["homolog", "finetune", self.task]
        words += [config["store"], *config["more_stores"]]
        words += ["--encoder", config["encoder"], "--out", str(out)]
        words += ["--recipe", self.recipe]
        network = dict(config["backbone"])
        if network.get("name"):
            words += ["--backbone", network.pop("name")]
        if self.fraction != 1.0:
            words += ["--fraction", f"{self.fraction:g}"]
        if self.patients:
            words += ["--patients", str(self.patients)]
        words += length_words(config["training"])
        words += assignments(config["task_config"], "")
        words += assignments(config["training"], "training.")
        words += assignments(network, "backbone.")
        return quoted([*words, *common(self.seed, self.device)])


_PARTS = ("method", "backbone", "training")


def _stem(first: str, stores: Sequence[str]) -> str:
    words = [first, *stores[:1]]
    plain = "-".join(words) + ("-and-more" if len(stores) > 1 else "")
    return re.sub(r"[^A-Za-z0-9_]+", "-", plain).strip("-_")[:80] or first


def _network_problem(encoder: ModelChoice | None, backbone: str | None) -> str:
    if encoder is None or backbone is None or encoder.backbone == backbone:
        return ""
    return (
        f"The encoder {encoder.name} is a {encoder.backbone} network, not a "
        f"{backbone}. Choose that network, or start from random weights."
    )
