"""What a pretraining and a fine-tuning decide alike, from a recipe to the model card.

A recipe holds nested settings: one table of the method or task, ``backbone`` (with
``name``) and ``training``. Overrides have the same tables and win. What the machine
decides (recipe, CPU threads) is written into the run, so that a resume repeats it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from homolog.backbones import BACKBONES
from homolog.backbones.base import Backbone
from homolog.config import ConfigError, from_dict, merge, to_dict
from homolog.distributed import choose_device, world
from homolog.feed.reading import CaseRef, grid_of
from homolog.json_files import parsed, parsed_toml, short
from homolog.store.learnt_spacing import KEY, SCANNED_KEY, LearntSpacing
from homolog.store.preprocess import differing_settings
from homolog.store.store import Store
from homolog.training.config import TrainingConfig, TrainingResult

Tables = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class RunSettings:
    """A recipe with its overrides, names and values checked.

    Attributes:
        backbone: ``name`` and the settings that differ from the network's own.
        own: Complete settings of the method or task, JSON types.
        training: Length, rate, precision and the like.
    """

    backbone: dict[str, Any]
    own: dict[str, Any]
    training: TrainingConfig


def by_device(recipe: str, device: str | torch.device) -> str:
    """``auto`` -> ``gpu`` or ``cpu``; another name as it is.

    Raises:
        UnusableInput: There is no such device.
    """
    if isinstance(device, str):
        device = choose_device(device)
    if recipe != "auto":
        return recipe
    return "gpu" if device.type == "cuda" else "cpu"


def read_recipe(path: Path, tables: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A recipe from a TOML or JSON file.

    Args:
        path: Of the file.
        tables: Names it may hold.

    Raises:
        ConfigError: It cannot be read, or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
        read: Any = parsed_toml(text) if path.suffix == ".toml" else parsed(text)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the recipe {path} cannot be read: {error}") from error
    if not isinstance(read, dict) or not all(
        isinstance(table, dict) for table in read.values()
    ):
        raise ConfigError(
            f"the recipe {path} must hold tables ({', '.join(tables)}), got "
            f"{short(read)}."
        )
    unknown = sorted(set(read) - set(tables))
    if unknown:
        raise ConfigError(
            f"the recipe {path} has tables {', '.join(tables[:-1])} and {tables[-1]}; "
            f"got {unknown[0]!r}."
        )
    return read


def run_settings(
    recipe: Tables,
    overrides: Tables,
    *,
    table: str,
    recipe_name: str,
    config: type,
    where: str,
    backbone: str | None,
    small: bool,
    pretrained: bool = False,
) -> RunSettings:
    """Merge a recipe and its overrides, and check all names and values.

    Args:
        recipe: Its tables.
        overrides: Tables of the same names; they win.
        table: The one of the method or task: ``method`` or ``task``. For a task the
            network's own rates (``Backbone.FINETUNE``) stand between both.
        recipe_name: Of the recipe.
        config: Dataclass of that table.
        where: Name of the method or task, for messages.
        backbone: Another network than the recipe's; None: as overrides and recipe say.
        small: Whether another network takes its small settings rather than its own.
        pretrained: Whether what the recipe says of pretrained weights holds (its table
            ``pretrained``, between the network's own rates and the overrides).

    Raises:
        ConfigError: A name or value that cannot be meant.
    """
    default = dict(recipe.get("backbone", {}))
    chosen = dict(overrides.get("backbone", {}))
    name = backbone or chosen.get("name") or default.get("name")
    if name is None:
        raise ConfigError("the recipe names no backbone; choose one with --backbone.")
    if name not in BACKBONES.names():
        raise ConfigError(
            f"unknown backbone {name!r}; known: {', '.join(BACKBONES.names())}."
        )
    if name != default.get("name"):
        default = dict(BACKBONES.get(name).SMALL) if small else {}
    kept: Mapping[str, Any] = recipe.get("pretrained", {}) if pretrained else {}
    rates = BACKBONES.get(name).FINETUNE if table == "task" else {}
    asked = overrides.get("training", {})
    own = merge(recipe.get(table, {}), kept.get(table, {}), overrides.get(table, {}))
    training = merge(
        recipe.get("training", {}),
        rates.get(where, {}).get(recipe_name, {}),
        kept.get("training", {}),
        # one or the other
        {"warmup": 0.0, "warmup_epochs": 0.0} if "warmup_steps" in asked else {},
        {"epochs": 0.0} if "steps" in asked or "minutes" in asked else {},
        asked,
    )
    return RunSettings(
        backbone=merge(default, chosen, {"name": str(name)}),
        own=to_dict(from_dict(config, own, where=where)),
        training=from_dict(TrainingConfig, training, where="training"),
    )


def in_steps(training: TrainingConfig, scans: int) -> TrainingConfig:
    """Epochs, of the training and of its warm-up, as steps.

    Args:
        training: With ``epochs`` and ``warmup_epochs``, or without.
        scans: Learnt from.
    """
    a_step = training.batch_size * training.accumulate * world().size
    names = {"epochs": "steps", "warmup_epochs": "warmup_steps"}
    steps = {
        name: math.ceil(getattr(training, epochs) * scans / a_step)
        for epochs, name in names.items()
        if getattr(training, epochs) > 0
    }
    return dataclasses.replace(training, **steps)


def fitted_backbone(
    backbone: Mapping[str, Any], cases: Sequence[CaseRef]
) -> dict[str, Any]:
    """A new network's settings with those that follow from the scans.

    Scans kept for a test do not count, so that a network that is trained from the start
    is the one that others pretrain.

    Args:
        backbone: ``name`` and settings that differ from the network's own.
        cases: What is learnt from, perhaps more.
    """
    seen = [case for case in cases if case.card.split != "test"] or cases
    own = {key: value for key, value in backbone.items() if key != "name"}
    name = str(backbone["name"])
    fitted = BACKBONES.get(name).fitted(own, *grid_of(seen))
    return {"name": name, **fitted}


def cpu_threads(threads: int) -> int:
    """Threads of the network; 0: as many as torch takes here.

    Written into the run: another number of threads would round otherwise.
    """
    return threads or torch.get_num_threads()


def take_device(device: str, threads: int) -> torch.device:
    """The device a run computes on, its CPU threads set.

    Raises:
        UnusableInput: There is no such device.
    """
    if threads:
        torch.set_num_threads(threads)
    return choose_device(device)


# The model card: what both kinds of run write of their stores and of the training.


def backbone_card(encoder: Backbone) -> dict[str, Any]:
    """``backbone``: how the network is built again."""
    return {
        "name": BACKBONES.name_of(type(encoder)),
        "config": to_dict(encoder.config),
    }


def preparation_card(
    stores: Sequence[Store], cases: Sequence[CaseRef]
) -> dict[str, Any]:
    """How new scans are prepared, and the voxel size learnt at (None: pictures).

    As the first store; where the stores were prepared for different modalities, each
    scan by its own.

    Args:
        stores: All of them.
        cases: Learnt from, or chosen by.
    """
    recipe = to_dict(stores[0].preprocessing)
    if len({store.preprocessing.modality for store in stores}) > 1:
        recipe["modality"] = None
    cards = [case.card for case in cases]
    learnt, scanned = LearntSpacing.of_cases(cards), LearntSpacing.of_originals(cards)
    return {
        "preprocessing": recipe,
        KEY: None if learnt is None else learnt.to_dict(),
        SCANNED_KEY: None if scanned is None else scanned.to_dict(),
    }


def store_card(stores: Sequence[Store]) -> dict[str, Any]:
    """Content hashes of the stores."""
    return {
        "store_hash": stores[0].hash,
        "store_hashes": [store.hash for store in stores],
    }


def length_card(result: TrainingResult) -> dict[str, Any]:
    """How far the training came."""
    return {
        "steps": result.steps,
        "total_steps": result.total_steps,
        "complete": not result.stopped,
        "stopped": result.stopped,
    }


def trained_on(cases: Sequence[CaseRef]) -> list[str]:
    """Content hashes of the scans, sorted: an evaluation warns of those."""
    return sorted(case.card.source_hash for case in cases)


def preparation_note(stores: Sequence[Store]) -> str:
    """A sentence where stores were prepared with different settings; else empty."""
    odd = differing_settings([store.preprocessing for store in stores])
    if not odd:
        return ""
    return (
        f"the stores were prepared with different settings ({', '.join(odd)}); "
        f"the model will prepare new scans as {stores[0].path} does."
    )
