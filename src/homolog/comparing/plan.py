"""What is compared: arms, numbers of labelled patients, seeds, and what each is told.

A plan is a TOML or JSON file, or the flags of ``homolog compare``, which win over it::

    patients = [1, 2, 5, "all"]
    seeds = 3

    [finetune.training]             # every fine-tuning, by the names of its --set
    steps = 300

    [pretrain.training]             # every pretraining
    steps = 800

    [arms.scratch]
    [arms.s2dc]                     # the method of that name
    [arms.long]
    method = "s2dc"
    pretrain.training.steps = 4000
    [arms.ours]
    encoder = "runs/ours"           # ready: a run, a model folder or a weight file
    finetune.encoder_factor = 0.1
    [arms.wide]
    method = "scratch"              # random weights again, of another network
    finetune.backbone.channels = [64, 128, 256, 512]
    [arms.carried]
    carry = "grey"                  # first labels carried to all others, see CARRY

Nothing here imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from homolog.config import ConfigError, from_dict, merge, option, parse_assignments
from homolog.json_files import parsed, parsed_toml
from homolog.methods import METHODS
from homolog.model_files.library import whole_path
from homolog.propagation.config import METHODS as PROPAGATION
from homolog.words import listed

SCRATCH = "scratch"
CARRIED = "carried"  # an arm that needs no other word: labels carried by grey values
ALL = "all"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,39}")
# Tables of the settings: no arm may be called so, for ``--set`` tells them apart.
_TABLES = ("training", "backbone", "task", "method", "recipe")
_SETTINGS = ("finetune", "pretrain", "propagate", "carried")
_TOP = (
    "task", "patients", "seeds", "folds", "test_patients", "marks", "watched", "recipe",
    *_SETTINGS, "arms",
)  # fmt: skip
_ARM = ("method", "encoder", "against", "carry", "carry_to", *_SETTINGS)
# What places are compared by where labels are carried, as of homolog propagate.
CARRY = tuple(name for name in PROPAGATION if name != "auto")


@dataclass(frozen=True)
class Arm:
    """One way to begin the fine-tuning.

    Attributes:
        name: For people and folders.
        method: Pretrained here by this method; empty: not.
        encoder: Begins with this run, model folder or weight file; empty: not.
        carry: The labels of each cell are first carried to all other patients but
            those tested, places compared by this (one of CARRY); it is fine-tuned on
            what was carried, and then on both, by halves. Empty: not.
        carry_to: At most so many cases get labels, drawn by the seed; 0: all.
        against: Name of the arm it is compared with.
        finetune: Settings of its fine-tunings: ``training``, ``backbone``, ``recipe``,
            and those of the task by name.
        pretrain: Settings of its pretrainings: ``method``, ``backbone``, ``training``,
            ``recipe``.
        propagate: Settings of how labels are carried, by name.
        carried: Settings of its fine-tunings on carried labels, over ``finetune``.
    """

    name: str
    method: str = ""
    encoder: str = ""
    against: str = SCRATCH
    carry: str = ""
    carry_to: int = 0
    finetune: Mapping[str, Any] = field(default_factory=dict)
    pretrain: Mapping[str, Any] = field(default_factory=dict)
    propagate: Mapping[str, Any] = field(default_factory=dict)
    carried: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_scratch(self) -> bool:
        """Whether it begins with random weights."""
        return not (self.method or self.encoder)

    @property
    def what(self) -> str:
        """How it begins, in a few words."""
        first = f"pretrained here by {self.method}" if self.method else self.encoder
        first = first or "random weights"
        return f"{first}, then labels carried by {self.carry}" if self.carry else first


@dataclass(frozen=True)
class Numbers:
    """How much is compared; the plain settings of a plan."""

    task: str = option(
        "segment", "What is learnt: segment, classify, detect or translate."
    )
    patients: tuple[int | str, ...] = option(
        (1, 2, 5, ALL), "Numbers of labelled patients.", minimum=1
    )
    seeds: int = option(3, "Pretraining and fine-tuning seeds.", minimum=1)
    folds: int = option(
        0, "Parts of the patients, each tested once; 0: one test set.", minimum=0
    )
    test_patients: int = option(
        0, "Test patients, drawn by the seed; 0: the store's test split.", minimum=0
    )
    marks: int = option(
        5, "Times the network is scored as it learns, for a curve.", minimum=0
    )
    watched: int = option(4, "Test patients it is then scored on, at most.", minimum=1)
    recipe: str = option("auto", "Settings to start from: cpu, gpu, auto.")


@dataclass(frozen=True)
class Plan:
    """A whole comparison.

    Attributes:
        numbers: How much.
        arms: In the order of the table.
        seed: First of the seeds; it also draws test patients and folds.
    """

    numbers: Numbers
    arms: tuple[Arm, ...]
    seed: int = 0

    @property
    def seeds(self) -> range:
        """All of them."""
        return range(self.seed, self.seed + self.numbers.seeds)

    def arm(self, name: str) -> Arm:
        """The arm of a name."""
        return next(arm for arm in self.arms if arm.name == name)


def read_plan(path: Path) -> dict[str, Any]:
    """The tables of a plan file; encoders named in it are relative to its folder.

    Raises:
        ConfigError: It cannot be read, or holds what a plan has not.
    """
    try:
        text = path.read_text(encoding="utf-8")
        read: Any = parsed(text) if path.suffix == ".json" else parsed_toml(text)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the plan {path} cannot be read: {error}") from error
    where = f"the plan {path}"
    if not isinstance(read, dict):
        raise ConfigError(f"{where} must hold tables, got {type(read).__name__}.")
    _check_keys(read, _TOP, where)
    for name, arm in _table(read, "arms", where).items():
        if not isinstance(arm, dict):
            raise ConfigError(f"{where}: [arms.{name}] must be a table.")
        _check_keys(arm, _ARM, f"{where}: [arms.{name}]")
        if encoder := str(arm.get("encoder", "")):
            arm["encoder"] = whole_path(encoder, path.parent)
    return read


def make_plan(
    tables: Mapping[str, Any],
    *,
    methods: str = "",
    patients: str = "",
    assignments: Sequence[str] = (),
    pretrain_assignments: Sequence[str] = (),
    seed: int = 0,
    **given: Any,
) -> Plan:
    """A plan of a file's tables and of flags, which win.

    Args:
        tables: As ``read_plan`` returns; empty without a file.
        methods: ``"scratch,carried,s2dc,ours=RUN"``; where given these are the arms,
            and those of the file that are not among them fall out.
        patients: ``"1,2,all"``.
        assignments: ``KEY=VALUE`` for all fine-tunings, ``ARM.KEY=VALUE`` for an arm's.
        pretrain_assignments: The same for the pretrainings.
        seed: First seed.
        given: Further fields of Numbers; None is left out.

    Raises:
        ConfigError: Something that cannot be meant.
    """
    numbers = {k: v for k, v in tables.items() if k not in ("arms", *_SETTINGS)}
    numbers |= {key: value for key, value in given.items() if value is not None}
    if patients:
        numbers["patients"] = patients
    if "patients" in numbers:
        numbers["patients"] = _patients(numbers["patients"])
    arms = {n: dict(arm) for n, arm in _table(tables, "arms", "the plan").items()}
    if methods:
        arms = {
            name: merge(arms.get(name, {}), said)
            for name, said in _named_arms(methods, arms).items()
        }
    if not arms:
        raise ConfigError(
            "choose what is compared: --methods scratch,s2dc or arms in the plan file."
        )
    told: dict[str, dict[str, Any]] = {
        "finetune": _sorted_out(assignments, arms, "--set"),
        "pretrain": _sorted_out(pretrain_assignments, arms, "--pretrain-set"),
    }
    built = [_arm(name, arm, arms, tables, told) for name, arm in arms.items()]
    return Plan(from_dict(Numbers, numbers, where="compare"), tuple(built), seed)


def _arm(
    name: str,
    said: Mapping[str, Any],
    arms: Mapping[str, Any],
    tables: Mapping[str, Any],
    told: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> Arm:
    """One arm, its settings merged: all arms', its own, those of flags likewise."""
    if not _NAME.fullmatch(name) or name in _TABLES:
        raise ConfigError(
            f"an arm's name is made of letters, digits and . _ + -, and none of "
            f"{', '.join(_TABLES)}; got {name!r}."
        )
    method, encoder = str(said.get("method", "")), str(said.get("encoder", ""))
    carry = _carry(name, said, has_features=bool(method or encoder))
    method = _method(name, said, method, bare=not (encoder or carry))
    if method and encoder:
        raise ConfigError(
            f"the arm {name!r} has a method and an encoder; one is meant."
        )
    control = SCRATCH if SCRATCH in arms else next(iter(arms))
    against = str(said.get("against", control))
    if against not in arms:
        raise ConfigError(f"the arm {name!r} is compared with {against!r}, no arm.")
    settings = {
        table: merge(
            _table(tables, table, "the plan"),
            told.get(table, {}).get("", {}),
            _table(said, table, f"[arms.{name}]"),
            told.get(table, {}).get(name, {}),
        )
        for table in _SETTINGS
    }
    most = said.get("carry_to", 0)
    if type(most) is not int or most < 0:
        raise ConfigError(
            f"[arms.{name}]: carry_to is a number of cases, got {most!r}."
        )
    return Arm(name, method, encoder, against, carry, most, **settings)


def _method(name: str, said: Mapping[str, Any], method: str, *, bare: bool) -> str:
    """The method of an arm; empty where it begins with random weights or an encoder.

    Args:
        name: Of the arm; where nothing else is said, the method of that name.
        said: Of the arm.
        method: Asked for, or empty.
        bare: Neither an encoder nor carried labels were named.
    """
    if not method and name != SCRATCH and bare:
        method = name if name in METHODS.names() else SCRATCH
        if method == SCRATCH and "method" not in said:
            raise ConfigError(
                f"{name!r} is no method ({', '.join(METHODS.names())}); give the arm a "
                f"method, an encoder, such as {name}=RUN, or {name}=scratch for random "
                "weights with settings of its own."
            )
    if method not in ("", SCRATCH, *METHODS.names()):
        raise ConfigError(
            f"unknown method {method!r} of the arm {name!r}; known: "
            f"{', '.join(METHODS.names())}."
        )
    return "" if method == SCRATCH else method


def _carry(name: str, said: Mapping[str, Any], *, has_features: bool) -> str:
    """What places are compared by in an arm; empty where no labels are carried."""
    bare = name == CARRIED and not has_features
    carry = str(said.get("carry", "grey" if bare else ""))
    if carry and carry not in CARRY:
        raise ConfigError(
            f"[arms.{name}]: carry is one of {listed(CARRY)}, got {carry!r}."
        )
    if carry in ("both", "features") and not has_features:
        raise ConfigError(
            f"[arms.{name}]: carrying labels by {carry} needs a method or an encoder."
        )
    own = [key for key in ("carry_to", "propagate", "carried") if key in said]
    if own and not carry:
        raise ConfigError(
            f"[arms.{name}] has {own[0]} but no carry, one of {listed(CARRY)}."
        )
    return carry


def _named_arms(text: str, known: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """``"scratch,carried,s2dc,long=s2dc,ours=RUN"`` -> arms by name.

    Args:
        text: The flag.
        known: Arms of the plan file, which a name alone may stand for.
    """
    found: dict[str, dict[str, str]] = {}
    for part in (p.strip() for p in text.split(",")):
        name, equals, value = part.partition("=")
        if not name or (equals and not value):
            raise ConfigError(
                f"--methods takes scratch, carried, a method or NAME=RUN, got {part!r}."
            )
        if name in found:
            raise ConfigError(f"--methods names {name!r} twice.")
        if not equals:
            found[name] = {}
        elif value == CARRIED:
            found[name] = {"carry": "grey"}
        elif value in (*METHODS.names(), SCRATCH):
            found[name] = {"method": value}
        else:
            found[name] = {"encoder": whole_path(value)}
        if not equals and name not in (*METHODS.names(), SCRATCH, CARRIED, *known):
            raise ConfigError(
                f"--methods: {name!r} is neither scratch nor carried nor a method "
                f"({', '.join(METHODS.names())}); a ready encoder is NAME=RUN."
            )
    return found


def _sorted_out(
    assignments: Sequence[str], arms: Mapping[str, Any], flag: str
) -> dict[str, dict[str, Any]]:
    """Settings of all arms (under the empty name) and of each."""
    own: dict[str, list[str]] = {}
    for text in assignments:
        first, dot, rest = text.partition(".")
        is_own = bool(dot) and "=" not in first and first in arms
        own.setdefault(first if is_own else "", []).append(rest if is_own else text)
    try:
        return {name: parse_assignments(texts) for name, texts in own.items()}
    except ConfigError as error:
        raise ConfigError(f"{flag}: {error}") from None


def _patients(said: Any) -> list[int | str]:
    """``"1,2,all"`` or a list -> numbers, rising, ``all`` last."""
    parts = said.split(",") if isinstance(said, str) else said
    parts = parts if isinstance(parts, list | tuple) else [parts]
    found: set[int | str] = set()
    for part in parts:
        text = str(part).strip().lower()
        if text != ALL and (not text.isdecimal() or int(text) < 1):
            raise ConfigError(
                f"patients are numbers above 0 or {ALL!r}, such as 1,2,5,all; got "
                f"{part!r}."
            )
        found.add(text if text == ALL else int(text))
    return sorted(found, key=lambda n: (isinstance(n, str), n))


def _table(tables: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    table = tables.get(name, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{where}: {name} must be a table, got {table!r}.")
    return table


def _check_keys(table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise ConfigError(
            f"{where} has no setting {unknown[0]!r}; known: {listed(known)}."
        )
