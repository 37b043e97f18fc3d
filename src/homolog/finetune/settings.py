"""From a request to the checked settings of a fine-tuning, and its labelled cases.

``resolve`` merges recipe and overrides. Below it: which labelled cases are learnt from,
and which choose the weights that are kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from homolog.config import ConfigError, config_hash, from_dict, option, to_dict
from homolog.errors import UnusableInput
from homolog.feed.reading import CaseRef
from homolog.model_files.card import read_card
from homolog.model_files.folder import find_model
from homolog.store.card import Card
from homolog.store.relabelled import own_labels
from homolog.store.splits import (
    folds,
    nested_count,
    nested_fraction,
    patients_of,
    subject_count,
)
from homolog.store.store import Store
from homolog.tasks import TASKS
from homolog.tasks.base import LearnedConfig, LearnedTask, renamed, settings_of
from homolog.training.config import TrainingConfig
from homolog.training.run_settings import (
    by_device,
    cpu_threads,
    fitted_backbone,
    in_steps,
    run_settings,
)
from homolog.words import counted, listed

SCRATCH = "scratch"


@dataclass(frozen=True)
class FinetuneConfig:
    """One fine-tuning, as it is written to ``run.json``."""

    task: str = option("segment", "what is learnt")
    store: str = option("", "store with labelled cases")
    more_stores: tuple[str, ...] = option(
        (), "further stores, each with labels of its own"
    )
    carried: str = option(
        "",
        "store with labels carried to other scans of the store (homolog propagate "
        "--as-store); half of what is seen comes from these",
        empty="none",
        later=True,
    )
    encoder: str = option(SCRATCH, "pretraining run, weight file, or scratch")
    recipe: str = option("cpu", "settings to start from")
    fraction: float = option(
        1.0, "share of the labelled training subjects used", minimum=0.0, maximum=1.0
    )
    patients: int = option(
        0, "labelled training patients used, all stores together; 0: all", minimum=0
    )
    fold: str | None = option(None, "i/k: hold out the i-th of k parts")
    cases: tuple[str, ...] = option(
        (),
        "names of the labelled cases learnt from; no others then choose the weights",
        empty="by split, fold and fraction",
    )
    watched: tuple[str, ...] = option(
        (),
        "names of labelled cases that are scored as it learns, for a curve alone: they "
        "choose nothing",
        empty="none",
    )
    seed: int = option(0, "seed of everything random", minimum=0)
    device: str = option("auto", "auto, cpu, cuda or cuda:i")
    threads: int = option(
        0,
        "CPU threads of the network; 0: all cores, fixed at the start (with minutes "
        "fewer where others use the cores and steps are faster so)",
        minimum=0,
    )
    backbone: dict[str, Any] = field(default_factory=dict)
    task_config: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


def resolve(config: Mapping[str, Any]) -> FinetuneConfig:
    """Merge recipe and overrides, and check all names and values.

    Args:
        config: Fields of FinetuneConfig. ``backbone`` needs a ``name`` only for another
            network than the recipe's; ``task_config`` and ``training`` override single
            settings.

    Returns:
        The same with ``backbone``, ``task_config`` and ``training`` complete, so that
        resolving it again changes nothing.

    Raises:
        ConfigError: A name or value that cannot be meant.
    """
    wanted = from_dict(FinetuneConfig, config, where="finetune")
    cls = learned_task(wanted.task)
    own: type[LearnedConfig] = cls.Config
    if wanted.fold is not None:
        parse_fold(wanted.fold)
    if wanted.patients and wanted.fraction != 1.0:
        raise ConfigError(
            "give a share of the labelled patients or their number (--fraction or "
            "--patients), not both."
        )
    if wanted.patients and wanted.cases:
        raise ConfigError("give the cases to learn from or a number of patients.")
    if wanted.recipe not in cls.RECIPES:
        known = ", ".join(cls.RECIPES)
        raise ConfigError(
            f"{wanted.task} has no recipe {wanted.recipe!r}; recipes: {known}."
        )
    merged = run_settings(
        cls.RECIPES[wanted.recipe],
        {
            "backbone": wanted.backbone,
            "task": renamed(own, wanted.task_config),
            "training": wanted.training,
        },
        table="task",
        recipe_name=wanted.recipe,
        config=cls.Config,
        where=wanted.task,
        backbone=_backbone_name(wanted),
        # an encoder brings settings of its own
        small=wanted.recipe == "cpu" and wanted.encoder == SCRATCH,
        pretrained=wanted.encoder != SCRATCH or carries(wanted),
    )
    return dataclasses.replace(
        wanted,
        threads=cpu_threads(wanted.threads),
        backbone=merged.backbone,
        task_config=merged.own,
        training=to_dict(merged.training),
    )


def resolve_request(request: Mapping[str, Any]) -> dict[str, Any]:
    """A request completed, its cases checked; JSON types.

    Args:
        request: As for ``resolve``; what is None is left out, and ``recipe`` may be
            ``auto`` (the default here), which the device decides.

    Raises:
        ConfigError: A name or value that cannot be meant.
        UnusableInput: A store, encoder or device that cannot be used.
    """
    given = {key: value for key, value in request.items() if value is not None}
    if not given.get("store"):
        raise ConfigError("choose a store with labelled cases to learn from.")
    given["recipe"] = by_device(
        str(given.get("recipe", "auto")), str(given.get("device", "auto"))
    )
    settings = resolve(given)
    cases = check_cases(settings)
    carried_to(settings, cases)
    training = from_dict(TrainingConfig, settings.training)
    settings = dataclasses.replace(
        settings, training=to_dict(in_steps(training, len(cases.train)))
    )
    if settings.encoder == SCRATCH and "name" in settings.backbone:
        fitted = fitted_backbone(settings.backbone, cases.all)
        settings = dataclasses.replace(settings, backbone=fitted)
    return to_dict(settings)


def learned_task(name: str) -> type[LearnedTask]:
    """The class of a task that can be fine-tuned.

    Raises:
        ConfigError: Unknown, or a task that learns nothing.
    """
    if name not in TASKS.names():
        known = ", ".join(n for n in TASKS.names() if TASKS.get(n).learns)
        raise ConfigError(f"unknown task {name!r}; known: {known}.")
    cls = TASKS.get(name)
    if not issubclass(cls, LearnedTask):
        raise ConfigError(f"{name} uses an encoder as it is and is not fine-tuned.")
    return cls


def task_of(settings: FinetuneConfig) -> LearnedTask:
    """The task with its settings."""
    cls = learned_task(settings.task)
    return cls(settings_of(cls.Config, settings.task_config, where=settings.task))


def _backbone_name(wanted: FinetuneConfig) -> str | None:
    """The network requested, or the one the encoder's own card names.

    Raises:
        ConfigError: They differ.
    """
    requested: str | None = wanted.backbone.get("name")
    if wanted.encoder == SCRATCH:
        return requested
    path = Path(wanted.encoder)
    try:
        card = read_card(find_model(path))
    except UnusableInput:
        if path.is_file():
            return requested  # another project's weights: they do not say
        raise
    own = str(card["backbone"]["name"])
    if requested not in (None, own):
        raise ConfigError(f"the encoder {path} is a {own}, not a {requested}.")
    return own


# Which labelled cases are learnt from, and which choose the weights.


@dataclass(frozen=True)
class Cases:
    """Cases of one fine-tuning.

    Attributes:
        train: Learnt from.
        val: Held out; they, or some of them, decide which weights are kept.
        all: Every usable case of the store, for label names and sizes.
        carried: Learnt from with labels that were carried to them, in a store of
            their own.
    """

    train: tuple[CaseRef, ...]
    val: tuple[CaseRef, ...]
    all: tuple[CaseRef, ...]
    carried: tuple[CaseRef, ...] = ()

    @property
    def learnt(self) -> tuple[CaseRef, ...]:
        """All that is learnt from, true labels first."""
        return (*self.train, *self.carried)

    @property
    def described(self) -> tuple[CaseRef, ...]:
        """All that says what there is to learn."""
        return (*self.all, *self.carried)


def check_cases(settings: FinetuneConfig) -> Cases:
    """The cases a job would choose: refuses what is unusable before a run is begun.

    Raises:
        ConfigError: Labels carried for several stores.
        UnusableInput: No store there, or no labelled case to learn from.
    """
    cases = _true_cases(settings)
    if not settings.carried:
        return cases
    if settings.more_stores:
        raise ConfigError(
            "carried labels are of scans of one store, and several are given."
        )
    return dataclasses.replace(cases, carried=_carried_cases(settings, cases))


def _carried_cases(settings: FinetuneConfig, cases: Cases) -> tuple[CaseRef, ...]:
    """Scans with carried labels; none that is learnt from, judged by or hidden."""
    store, task = Store.open(settings.carried), task_of(settings)
    own = own_labels(store)
    if own is None:
        raise UnusableInput(
            f"{store.path} holds no carried labels; homolog propagate --as-store "
            "--from CASE makes such a store."
        )
    base = cases.all[0].store.cards
    people = patients_of(base)
    held = {case.card.id for case in cases.val} | set(settings.watched)
    if not settings.cases:  # else a plan says who is hidden
        held |= {card.id for card in base if card.split in ("val", "test")}
    hidden = {people[name] for name in held}
    # by what they hold, too: the stores may call one scan differently
    unseen = {card.source_hash for card in base if people[card.id] in hidden}

    def is_hidden(card: Card) -> bool:
        return people.get(card.id) in hidden or card.source_hash in unseen

    leaks = sorted(
        card.id for card in store.cards if card.id in own and is_hidden(card)
    )
    if leaks:
        raise UnusableInput(
            f"{store.path} holds labels carried from {leaks[0]}, who is to choose the "
            "weights or to be tested; carry those of training patients alone."
        )
    taken = {case.card.source_hash for case in cases.train}
    found = tuple(
        CaseRef(store, card)
        for card in store.cards
        if task.usable(card)
        and card.id not in own
        and card.source_hash not in taken
        and not is_hidden(card)
    )
    if not found:
        raise UnusableInput(
            f"{store.path} has no scan with carried labels that may be learnt from "
            f"({len(store)} scans in all)."
        )
    return found


def _true_cases(settings: FinetuneConfig) -> Cases:
    task = task_of(settings)
    if settings.cases:
        store = Store.open(settings.store)
        return Cases(
            named_cases(store, task, settings.cases), (),
            tuple(CaseRef(store, card) for card in store.cards if task.usable(card)),
        )  # fmt: skip
    parts = [
        choose_cases(
            Store.open(path), task,
            fraction=settings.fraction, fold=settings.fold, seed=settings.seed,
        )
        for path in (settings.store, *settings.more_stores)
    ]  # fmt: skip
    cases = together(parts)
    if not settings.patients:
        return cases
    return of_patients(cases, settings.patients, settings.seed)


def carried_to(settings: FinetuneConfig, cases: Cases) -> tuple[str, ...]:
    """Cases that get carried labels before anything is learnt; none if unasked.

    They are training cases, or of no split, that are neither learnt from nor of a
    patient who chooses weights; what labels they have is not looked at. Drawn by the
    seed where there are more than wanted.

    Raises:
        ConfigError: Several stores.
        UnusableInput: There is no such case.
    """
    if not carries(settings):
        return ()
    if settings.more_stores:
        raise ConfigError("carry=true carries labels within one store; give one.")
    if settings.carried:
        raise ConfigError(
            f"carry=true carries labels, and {settings.carried} holds carried ones: "
            "give one of them."
        )
    names = others(settings, cases)
    if not names:
        raise UnusableInput(
            f"{settings.store} has no training scan beside those learnt from that "
            "labels could be carried to (carry=true)."
        )
    most: int = getattr(task_of(settings).config, "carry_to", 0)
    return tuple(drawn(names, most, settings.seed))


def drawn(names: Sequence[str], most: int, seed: int) -> list[str]:
    """Of cases at most so many, drawn by the seed, sorted; 0: all."""
    if 0 < most < len(names):
        names = sorted(names, key=lambda name: config_hash(seed, name))[:most]
    return sorted(names)


def others(settings: FinetuneConfig, cases: Cases) -> list[str]:
    """Training cases of the first store that could get carried labels, sorted."""
    store = cases.all[0].store
    people = patients_of(store.cards)
    hidden = {people[case.card.id] for case in cases.val}
    taken = {case.card.id for case in cases.train} | set(settings.watched)
    return sorted(
        card.id
        for card in store.cards
        if card.split in (None, "train")
        and card.id not in taken
        and people[card.id] not in hidden
    )


def carries(settings: FinetuneConfig) -> bool:
    """Whether labels are carried to other scans before anything is learnt."""
    return bool(settings.task_config.get("carry"))


def named_cases(
    store: Store, task: LearnedTask, names: Sequence[str]
) -> tuple[CaseRef, ...]:
    """Cases of a store by name, in the store's order.

    Raises:
        UnusableInput: There is no such case, or it has no labels for the task.
    """
    wanted = set(names)
    found = tuple(
        CaseRef(store, card)
        for card in store.cards
        if card.id in wanted and task.usable(card)
    )
    missing = sorted(wanted - {case.card.id for case in found})
    if missing:
        raise UnusableInput(
            f"{store.path} has no case {missing[0]!r} with labels to learn "
            f"({len(missing)} of {len(wanted)} named cases are missing)."
        )
    return found


def choose_cases(
    store: Store,
    task: LearnedTask,
    *,
    fraction: float = 1.0,
    fold: str | None = None,
    seed: int = 0,
) -> Cases:
    """Split the usable cases into training and validation.

    Without a fold these are the store's own ``train`` and ``val`` splits. Fold ``i/k``
    divides both together into k parts by subject and holds out the i-th. ``test`` is
    never touched. A fraction keeps a share of the training subjects only (smaller ones
    within larger ones); the validation cases stay, so that runs with different
    fractions choose their weights by the same cases.

    Args:
        store: With labelled cases.
        task: Says which cases are usable.
        fraction: Share of training subjects, 0..1.
        fold: ``i/k`` with 1 <= i <= k, or None.
        seed: Of folds and fractions.

    Raises:
        UnusableInput: No usable training case.
        ConfigError: A fold that cannot be meant.
    """
    usable = tuple(CaseRef(store, card) for card in store.cards if task.usable(card))
    pool = [c for c in usable if c.card.split in (None, "train", "val")]
    if fold is not None:
        index, count = parse_fold(fold)
        held = set(folds([c.card for c in pool], count, seed)[index - 1])
        train = [c for c in pool if c.card.id not in held]
        val = [c for c in pool if c.card.id in held]
    else:
        train = [c for c in pool if c.card.split != "val"]
        val = [c for c in pool if c.card.split == "val"]
    if not train:
        raise UnusableInput(
            f"{store.path} has no labelled training case ({len(store)} cases in all); "
            f"{task.why_none(store.cards)}"
        )
    if fraction != 1.0:
        kept = set(nested_fraction([c.card for c in train], fraction, seed))
        train = [c for c in train if c.card.id in kept]
    return Cases(tuple(train), tuple(val), usable)


def together(parts: Sequence[Cases]) -> Cases:
    """Cases of several stores as one choice, store by store.

    Raises:
        ConfigError: A store is named twice.
    """
    paths = [part.all[0].store.path for part in parts]
    twice = [path for path in paths if paths.count(path) > 1]
    if twice:
        raise ConfigError(f"the store {twice[0]} is named twice.")
    return Cases(
        train=tuple(c for part in parts for c in part.train),
        val=tuple(c for part in parts for c in part.val),
        all=tuple(c for part in parts for c in part.all),
    )


def of_patients(cases: Cases, count: int, seed: int) -> Cases:
    """The same, but so many training patients; fewer lie within more.

    Args:
        cases: Of one or several stores.
        count: Labelled patients to learn from, 1 or more.
        seed: Another seed is another order.

    Raises:
        UnusableInput: There are fewer.
    """
    cards = _cards_apart(cases.train)
    have = subject_count(cards)
    if count > have:
        stores = [str(path) for path in dict.fromkeys(c.store.path for c in cases.all)]
        verb = "has" if len(stores) == 1 else "have"
        raise UnusableInput(
            f"{listed(stores)} {verb} {counted(have, 'labelled training patient')}, "
            f"but {counted(count, 'patient')} were asked for."
        )
    kept = set(nested_count(cards, count, seed))
    train = [c for c, card in zip(cases.train, cards, strict=True) if card.id in kept]
    return dataclasses.replace(cases, train=tuple(train))


def patient_count(cases: Sequence[CaseRef]) -> int:
    """How many patients cases are of."""
    return subject_count(_cards_apart(cases))


def _cards_apart(cases: Sequence[CaseRef]) -> list[Card]:
    """Cards whose names differ from store to store, but that of one person in both."""
    stores = list(dict.fromkeys(case.store.path for case in cases))
    cards = []
    for case in cases:
        place = stores.index(case.store.path)
        name = f"{place}/{case.card.id}" if place else case.card.id
        own = case.card.subject in ("", case.card.id)
        subject = name if own else case.card.subject
        cards.append(dataclasses.replace(case.card, id=name, subject=subject))
    return cards


def parse_fold(text: str) -> tuple[int, int]:
    """``"2/5"`` -> (2, 5).

    Raises:
        ConfigError: Not of that form, or i outside 1..k.
    """
    first, sign, last = text.partition("/")
    if not (sign and first.isdigit() and last.isdigit()) or not (
        1 <= int(first) <= int(last) and int(last) >= 2
    ):
        raise ConfigError(
            f"fold must be i/k with 1 <= i <= k and k >= 2, got {text!r}."
        )
    return int(first), int(last)


def spread_cases(cases: Sequence[CaseRef], most: int) -> tuple[CaseRef, ...]:
    """At most ``most`` of the cases, evenly spread over them; all when it is 0."""
    if most <= 0 or len(cases) <= most:
        return tuple(cases)
    return tuple(cases[i * len(cases) // most] for i in range(most))


def held_out_cases(cases: Cases, most: int | None) -> tuple[CaseRef, ...]:
    """The held-out cases that choose the weights, always the same ones.

    Args:
        cases: Of the fine-tuning.
        most: At most so many, evenly spread; 0: all; None: none.
    """
    return () if most is None else spread_cases(cases.val, most)


def spread_first(cases: Sequence[CaseRef]) -> tuple[CaseRef, ...]:
    """The same cases, ordered so that the first few are spread over all of them."""

    def mirrored(place: int) -> float:
        """The bits of a place behind the point, the last one first."""
        value, part = 0.0, 0.5
        while place:
            value += part * (place & 1)
            place, part = place >> 1, part / 2
        return value

    order: dict[int, None] = {}
    for number in range(4 * len(cases)):
        order[int(mirrored(number) * len(cases))] = None
    rest = [i for i in range(len(cases)) if i not in order]
    return tuple(cases[i] for i in (*order, *rest))
