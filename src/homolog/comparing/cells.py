"""The cells of the table, and the runs each is made of.

They are: pretrain; propagate, and finetune on what was carried (each where the arm has
it); finetune; evaluate.

A run lies in a folder named by what it is and by a hash of all its settings, the scans
and the weights it begins with: whatever changed gets a folder of its own, and what did
not is found again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from homolog.backbones import build
from homolog.comparing.plan import ALL, SCRATCH, Arm, Plan
from homolog.config import (
    ConfigError,
    check,
    config_hash,
    from_dict,
    merge,
    to_dict,
)
from homolog.errors import UnusableInput
from homolog.finetune.settings import (
    drawn,
    learned_task,
    resolve,
    resolve_request,
)
from homolog.methods import METHODS
from homolog.model_files.card import read_card
from homolog.model_files.folder import find_model
from homolog.pretrain.settings import resolve as resolve_pretraining
from homolog.propagation.config import PropagateConfig
from homolog.store.card import Card
from homolog.store.splits import folds, nested_count, patients_of, subject_count
from homolog.store.store import Store
from homolog.tasks.base import LearnedTask, settings_of
from homolog.training.run_settings import by_device
from homolog.words import counted
from homolog.writing import file_digest

# Settings that a result does not depend on, beyond rounding.
_NOT_IN_THE_HASH = (
    "device", "threads", "feed_threads", "notes", "store", "stores", "carried",
)  # fmt: skip
# Counted up when carried labels, or what is done with them, would be others.
_CARRYING = 2


@dataclass(frozen=True)
class Parts:
    """Who is tested and who may be learnt from.

    Attributes:
        fold: Number from 1; 0 without folds.
        test: Labelled cases of the test patients.
        watched: Some of them, for the curve over the steps.
        hidden: All cases of the test patients; nothing ever learns from them.
        pool: Labelled cases of all other patients.
    """

    fold: int
    test: tuple[str, ...]
    watched: tuple[str, ...]
    hidden: tuple[str, ...]
    pool: tuple[Card, ...]

    @property
    def patients(self) -> int:
        """How many may be learnt from."""
        return subject_count(self.pool)

    def labelled(self, count: int | str, seed: int) -> tuple[str, ...]:
        """Cases of the first ``count`` patients of a seed; fewer lie within more."""
        many = self.patients if count == ALL else int(count)
        return nested_count(self.pool, many, seed)


@dataclass(frozen=True)
class Cell:
    """One fine-tuning of the table.

    Attributes:
        arm: How it begins.
        patients: Labelled ones: a number or ``all``.
        seed: Of its pretraining and of its fine-tuning.
        parts: Who is tested.
        cases: Labelled cases that it learns from.
    """

    arm: Arm
    patients: int | str
    seed: int
    parts: Parts = field(repr=False)
    cases: tuple[str, ...] = field(repr=False)

    @property
    def name(self) -> str:
        """For folders and rows."""
        return f"{self.arm.name}-n{self.patients}{self.of_seed}"

    @property
    def of_seed(self) -> str:
        """End of the name of what cells of all numbers of patients share."""
        fold = f"-f{self.parts.fold}" if self.parts.fold else ""
        return f"-s{self.seed}{fold}"

    @property
    def title(self) -> str:
        """For people."""
        many = self.patients
        who = "all patients" if many == ALL else counted(int(many), "patient")
        fold = f", fold {self.parts.fold}" if self.parts.fold else ""
        return f"{self.arm.name}, {who}, seed {self.seed}{fold}"


@dataclass(frozen=True)
class Work:
    """One run of a cell.

    Attributes:
        kind: ``pretrain``, ``propagate``, ``finetune`` or ``evaluate``.
        folder: Of the run.
        config: Complete settings.
        key: Hash of all that its result depends on.
        stage: What it is to its cell: the kind, or ``carried``, a fine-tuning on
            carried labels.
    """

    kind: str
    folder: Path
    config: Mapping[str, Any] = field(repr=False)
    key: str
    stage: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stage", self.stage or self.kind)


class Cells:
    """All cells of a plan on a store.

    Args:
        plan: What is compared.
        store: Open.
        out: Folder of all runs.
        device: Where they compute.
        threads: CPU threads of each.

    Attributes:
        all: In the order they are worked on: seed by seed, so that early ones can be
            compared.

    Raises:
        UnusableInput: No test patient, or fewer labelled ones than asked for.
        ConfigError: Settings that cannot be meant.
    """

    def __init__(
        self, plan: Plan, store: Store, out: Path, *, device: str, threads: int
    ) -> None:
        self.plan, self.store, self.out = plan, store, out
        self.device, self.threads = device, threads
        self.recipe = by_device(plan.numbers.recipe, device)
        cls = learned_task(plan.numbers.task)
        self.metric = cls.best_metric
        self.task: LearnedTask = cls(_task_settings(cls, plan.arms[0]))
        self.parts = divide(store, self.task, plan)
        self.all = tuple(
            Cell(arm, count, seed, parts, parts.labelled(count, seed))
            for seed in plan.seeds
            for count in self._counts()
            for parts in self.parts
            for arm in plan.arms
        )
        self._made: dict[tuple[str, str], Work] = {}

    def _counts(self) -> list[int | str]:
        """Numbers of patients; as many as there are is ``all``, once."""
        fewest = min(parts.patients for parts in self.parts)
        wanted = self.plan.numbers.patients
        too_many = [n for n in wanted if n != ALL and int(n) > fewest]
        if too_many:
            raise UnusableInput(
                f"{too_many[0]} labelled patients are asked for, but beside the test "
                f"patients {self.store.path} has {fewest}."
            )
        return [n for n in wanted if n != fewest or ALL not in wanted]

    def pretraining(self, cell: Cell) -> Work | None:
        """The run that makes a cell's encoder; None where none is made here."""
        if not cell.arm.method:
            return None
        labels = METHODS.get(cell.arm.method).uses_labels
        who = f"-n{cell.patients}" if labels else ""
        end = f"{who}{cell.of_seed}"
        made = self._made.get(("pretrain", cell.arm.name + end))
        if made is None:
            # arms that differ in their fine-tuning alone share it
            name = cell.arm.method + end
            made = self._pretraining(cell, name, cell.cases if labels else ())
            self._made["pretrain", cell.arm.name + end] = made
        return made

    def _pretraining(self, cell: Cell, name: str, labels_of: Sequence[str]) -> Work:
        own = dict(cell.arm.pretrain)
        recipe = str(own.pop("recipe", self.plan.numbers.recipe))
        settings = merge({"training": {"previews": 0}}, own)
        config = resolve_pretraining(
            cell.arm.method, [self.store.path], recipe=recipe, settings=settings,
            seed=cell.seed, device=self.device, threads=self.threads,
            without_splits=(), without_cases=sorted(cell.parts.hidden),
            labels_of=sorted(labels_of),
        )  # fmt: skip
        key = config_hash(_hashed(config))
        return Work("pretrain", self.out / "pretrained" / f"{name}-{key[:8]}",
                    config, key)  # fmt: skip

    def works(self, cell: Cell) -> Iterator[Work]:
        """The runs of a cell in their order.

        Lazy: settings of one may be made of the results of those before, which must be
        finished when it is asked for.
        """
        if (before := self.pretraining(cell)) is not None:
            yield before
        if self.targets(cell):
            yield self.propagation(cell)
            yield self.carried(cell)
        yield self.finetuning(cell)
        yield self.evaluation(cell)

    def stages(self, cell: Cell) -> list[str]:
        """What ``works`` gives, by stage."""
        carried = ["propagate", "carried"] if self.targets(cell) else []
        first = ["pretrain"] if cell.arm.method else []
        return [*first, *carried, "finetune", "evaluate"]

    def targets(self, cell: Cell) -> list[str]:
        """Cases that get carried labels, sorted; none where the arm carries none."""
        if not cell.arm.carry:
            return []
        taken = {*cell.cases, *cell.parts.hidden}
        names = [card.id for card in self.store.cards if card.id not in taken]
        return drawn(names, cell.arm.carry_to, cell.seed)

    def propagation(self, cell: Cell) -> Work:
        """The run that carries a cell's labels; its encoder must be there."""
        made = self._made.get(("propagate", cell.name))
        if made is None:
            arm, encoder = cell.arm, self._encoder(cell)
            by_features = arm.carry in ("both", "features")
            config: dict[str, Any] = {
                **arm.propagate, "method": arm.carry, "scans": [str(self.store.path)],
                "sources": sorted(cell.cases), "targets": self.targets(cell),
                "as_store": True,
            }  # fmt: skip
            weights = weights_digest(Path(encoder)) if by_features else ""
            key = config_hash(
                {**_hashed(config), "scans": self.store.hash}, weights, _CARRYING
            )
            who = arm.name if by_features else arm.carry
            name = f"{who}{cell.name.removeprefix(arm.name)}-{key[:8]}"
            folder = self.out / "carried" / name
            config |= {"out": str(folder / "store"), "device": self.device}
            config |= {"encoder": encoder} if by_features else {}
            made = Work("propagate", folder, config, key)
            self._made["propagate", cell.name] = made
        return made

    def carried(self, cell: Cell) -> Work:
        """The fine-tuning on carried labels; these must be there."""
        made = self._made.get(("carried", cell.name))
        if made is None:
            store = Store.open(self.propagation(cell).folder / "store")
            config = self.finetune_settings(cell, self._encoder(cell), store)
            made = self._tuning("carried", cell, config, store)
            self._made["carried", cell.name] = made
        return made

    def finetuning(self, cell: Cell) -> Work:
        """The fine-tuning of a cell; what it begins with must be there."""
        made = self._made.get(("finetune", cell.name))
        if made is None:
            has_carried = bool(self.targets(cell))
            encoder = (
                str(self.carried(cell).folder) if has_carried else self._encoder(cell)
            )
            config = self.finetune_settings(cell, encoder)
            if has_carried:
                config["carried"] = self.carried(cell).config["store"]
            made = self._tuning("finetune", cell, config, self.store)
            self._made["finetune", cell.name] = made
        return made

    def _encoder(self, cell: Cell) -> str:
        """What a cell begins with, before any labels."""
        before = self.pretraining(cell)
        return str(before.folder) if before else cell.arm.encoder or SCRATCH

    def _tuning(
        self, stage: str, cell: Cell, config: Mapping[str, Any], store: Store
    ) -> Work:
        encoder = str(config["encoder"] or SCRATCH)
        weights = SCRATCH if encoder == SCRATCH else weights_digest(Path(encoder))
        told = {**_hashed(config), "encoder": weights}
        if config.get("carried"):
            told["carried"] = Store.open(config["carried"]).hash
        key = config_hash(told, store.hash)
        place = "cells" if stage == "finetune" else stage
        folder = self.out / place / f"{cell.name}-{key[:8]}"
        return Work("finetune", folder, config, key, stage)

    def evaluation(self, cell: Cell) -> Work:
        """The scores of a cell on its test patients."""
        made = self._made.get(("evaluate", cell.name))
        if made is None:
            before = self.finetuning(cell)
            config = {
                "source": str(self.store.path), "model": str(before.folder),
                "split": "all", "case": sorted(cell.parts.test), "device": self.device,
            }  # fmt: skip
            key = config_hash(before.key, config["case"])
            folder = self.out / "scores" / f"{cell.name}-{key[:8]}"
            made = Work("evaluate", folder, config, key)
            self._made["evaluate", cell.name] = made
        return made

    def finetune_settings(
        self, cell: Cell, encoder: str, carried: Store | None = None
    ) -> dict[str, Any]:
        """Complete settings of a cell's fine-tuning.

        Args:
            cell: The cell.
            encoder: What it begins with.
            carried: A store of carried labels, to learn from all of it; None: from
                the cell's own cases.

        Raises:
            ConfigError: They cannot be meant, or would not be the same for all arms.
        """
        own = merge(cell.arm.finetune, cell.arm.carried if carried else {})
        training = {"previews": 0, **own.pop("training", {})}
        backbone = own.pop("backbone", {})
        recipe = by_device(str(own.pop("recipe", self.recipe)), self.device)
        own |= own.pop("task", {})
        if own.get("carry"):
            raise ConfigError(
                'a comparison carries labels by an arm with carry = "grey" (or the arm '
                "carried), which leaves the test patients out."
            )
        if own.get("validate_cases") is not None or training.get("minutes"):
            raise ConfigError(
                "a comparison takes the same steps for all, and no case chooses "
                "weights: leave training.minutes and validate_cases out."
            )
        # an encoder brings its network; another project's weights do not say it
        keeps_network = encoder == SCRATCH or Path(encoder).is_file()
        request = {
            "task": self.plan.numbers.task,
            "store": str((carried or self.store).path),
            "encoder": encoder,
            "recipe": recipe,
            "seed": cell.seed,
            "device": self.device,
            "threads": self.threads,
            "cases": sorted(
                [card.id for card in carried.cards] if carried else cell.cases
            ),
            "watched": [] if carried else sorted(cell.parts.watched),
            "backbone": backbone if keeps_network else {},
            "task_config": {**own, "validate_cases": None},
            "training": {**training, "validate_every": 0},
        }
        steps = int(resolve(request).training["steps"])
        if (marks := self.plan.numbers.marks) and not carried:
            request["training"]["validate_every"] = -(-steps // marks)
        return resolve_request(request)

    def check(self) -> None:
        """Refuse at once what would fail after hours.

        Raises:
            UnusableInput: An encoder that is not there or learnt from test labels.
            ConfigError: Settings that cannot be meant.
        """
        first = {cell.arm.name: cell for cell in reversed(self.all)}
        for arm in self.plan.arms:
            cell = first[arm.name]
            self._check_task(arm)
            if arm.carry:
                _check_propagation(arm)
            if arm.method or arm.carry:
                self.pretraining(cell)
                self.finetune_settings(cell, SCRATCH)
            else:
                self.finetuning(cell)

    def _check_task(self, arm: Arm) -> None:
        """Raise ConfigError where an arm learns another thing than the first."""
        cls, name = type(self.task), self.plan.numbers.task
        if arm.carry and not cls.takes_label_maps:
            raise ConfigError(
                f"the arm {arm.name!r} carries label maps from patient to patient, "
                f"which {name} does not learn from."
            )
        own = cls(_task_settings(cls, arm))
        cards = self.store.cards
        if [own.usable(c) for c in cards] != [self.task.usable(c) for c in cards]:
            raise ConfigError(
                f"the arm {arm.name!r} learns from other cases than "
                f"{self.plan.arms[0].name!r}: give all arms the same settings of what "
                "is learnt."
            )

    def remarks(self) -> list[str]:
        """What a reader of the table must know of encoders made elsewhere.

        Raises:
            UnusableInput: One was pretrained with labels of test patients.
        """
        told = []
        hidden = {
            self.store.card(name).source_hash: name
            for parts in self.parts
            for name in parts.hidden
        }
        for arm in self.plan.arms:
            path = Path(arm.encoder)
            if not arm.encoder or path.is_file():
                continue
            card = read_card(find_model(path))
            known = set(card.get("trained_on", ()))
            seen = sorted(name for hash_, name in hidden.items() if hash_ in known)
            if not seen:
                continue
            if card.get("uses_labels"):
                raise UnusableInput(
                    f"the encoder {arm.encoder} of the arm {arm.name!r} was pretrained "
                    f"with labels of test patients ({seen[0]!r} and "
                    f"{len(seen) - 1} more); that is no test."
                )
            told.append(
                f"the encoder of the arm {arm.name!r} has seen {len(seen)} test scans "
                f"(first {seen[0]!r}) without their labels: its figures may flatter it."
            )
        return told


def other_networks(cells: Cells) -> list[str]:
    """Sentences on arms whose network is another one than their control's."""
    first = {cell.arm.name: cell for cell in reversed(cells.all)}
    networks = {name: _network(cells, cell) for name, cell in first.items()}
    return [
        f"the arm {arm.name!r} trains another network ({own['name']}) than its control "
        f"{arm.against!r} ({theirs['name']}): the difference is one of networks too. "
        "Give both the same (--backbone, --set scratch.backbone.KEY=VALUE), or the arm "
        "a control of its own (against, in a plan)."
        for arm in cells.plan.arms
        if (own := networks[arm.name]) and (theirs := networks[arm.against])
        if own != theirs
    ]


def _network(cells: Cells, cell: Cell) -> dict[str, Any]:
    """Name and all settings of a cell's network; empty where nobody can say."""
    arm = cell.arm
    if arm.encoder:
        if Path(arm.encoder).is_file():
            return {}
        card = read_card(find_model(Path(arm.encoder)))["backbone"]
        own = {"name": card["name"], **card["config"]}
    elif work := cells.pretraining(cell):
        own = dict(work.config["backbone"])
    else:
        own = dict(cells.finetune_settings(cell, SCRATCH)["backbone"])
    name = str(own.pop("name"))
    channels = cells.task.channels(cells.parts[0].pool[0])
    try:
        built = build(name, {**own, "in_channels": channels})
    except (ValueError, TypeError):  # a card of another version
        return {}
    return {"name": name, **to_dict(built.config)}


def _task_settings(cls: type[LearnedTask], arm: Arm) -> Any:
    """What an arm tells the task; what it does not know is refused later."""
    own = {**arm.finetune, **arm.finetune.get("task", {})}
    known = {one.name for one in fields(cls.Config)}
    told = {name: value for name, value in own.items() if name in known}
    return settings_of(cls.Config, told, where=f"[arms.{arm.name}] finetune")


def _check_propagation(arm: Arm) -> None:
    """Raise ConfigError where settings of how labels are carried cannot be meant."""
    where = f"[arms.{arm.name}] propagate"
    check(
        from_dict(PropagateConfig, {**arm.propagate, "method": arm.carry}, where=where)
    )


def divide(store: Store, task: LearnedTask, plan: Plan) -> tuple[Parts, ...]:
    """Test patients and all others: one division, or one for each fold.

    Raises:
        UnusableInput: Nobody is left to be tested, or to be learnt from.
    """
    numbers = plan.numbers
    usable = [card for card in store.cards if task.usable(card)]
    own = {card.id for card in usable}
    if not own:
        why = task.why_none(store.cards)
        raise UnusableInput(f"{store.path} has nothing to compare on: {why}")
    patients = patients_of(store.cards)
    if numbers.folds:
        tests = [set(part) for part in folds(usable, numbers.folds, plan.seed)]
    elif numbers.test_patients:
        many = subject_count(usable)
        if numbers.test_patients >= many:
            raise UnusableInput(
                f"{numbers.test_patients} test patients are asked for, but only {many} "
                f"of {store.path} can be scored, and some must be learnt from."
            )
        tests = [set(nested_count(usable, numbers.test_patients, plan.seed))]
    else:
        tests = [{card.id for card in store.cards if card.split == "test"}]
    if not all(test & own for test in tests):
        raise UnusableInput(
            f"{store.path} has no labelled test patient; say --test-patients K or "
            "--folds K."
        )
    return tuple(
        _part(number if numbers.folds else 0, test, store, usable, patients,
              numbers.watched if numbers.marks else 0)
        for number, test in enumerate(tests, start=1)
    )  # fmt: skip


def _part(
    fold: int,
    test: set[str],
    store: Store,
    usable: Sequence[Card],
    patients: Mapping[str, str],
    watched: int,
) -> Parts:
    tested = {patients[name] for name in test}
    hidden = {c.id for c in store.cards if patients[c.id] in tested}
    scored = [card.id for card in usable if card.id in hidden]
    pool = tuple(card for card in usable if card.id not in hidden)
    if not pool:
        raise UnusableInput(f"beside the test patients {store.path} has no labels.")
    few = min(watched, len(scored))
    some = [scored[i * len(scored) // few] for i in range(few)]
    return Parts(fold, tuple(scored), tuple(some), tuple(sorted(hidden)), pool)


@cache
def weights_digest(encoder: Path) -> str:
    """Hash of the weights of a run, a model folder or a file.

    Raises:
        UnusableInput: There are none.
    """
    if encoder.is_file():
        return file_digest(encoder)
    folder = find_model(encoder)
    files = sorted(folder.glob("*.safetensors"))
    return config_hash([(file.name, file_digest(file)) for file in files])


def _hashed(config: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in config.items() if k not in _NOT_IN_THE_HASH}
