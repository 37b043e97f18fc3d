"""From what is chosen in the window to a pretraining or fine-tuning; no Qt, no torch.

A wish is what the panel holds. It tells what is wrong with it in one sentence, becomes
the configuration of a run (completed by the worker), and the command line that does
the same without the window.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from homolog.config import merge
from homolog.gui.learn.joined_stores import teaching_problem
from homolog.gui.shared.choices import (
    SCRATCH,
    ModelChoice,
    StoreChoice,
    assignments,
    common,
    length_words,
    quoted,
)

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
        words += length_words(config["training"])
        words += assignments(config["task_config"], "")
        words += assignments(config["training"], "training.")
        words += assignments(network, "backbone.")
        return quoted([*words, *common(self.seed, self.device)])


def next_name(stem: str, folder: Path) -> str:
    """``s2dc-abdomen-03``: the first number no run of the folder has."""
    number = 1
    while (folder / f"{stem}-{number:02d}").exists():
        number += 1
    return f"{stem}-{number:02d}"


def name_problem(name: str, folder: Path) -> str:
    """Why a run cannot be named so, in one sentence; empty when it can."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        return "Name the run with letters, digits, - and _ only."
    if (folder / name).exists():
        return f"A run named {name} exists already; choose another name."
    return ""


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
