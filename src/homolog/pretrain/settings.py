"""From what a user asks for to a complete, checked configuration of a pretraining."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from homolog.backbones import BACKBONES
from homolog.backbones._base import Backbone, build
from homolog.config import ConfigError, from_dict, merge, option, to_dict
from homolog.data.store import Store
from homolog.distributed import choose_device
from homolog.errors import UnusableInput
from homolog.feed import feed_threads
from homolog.memory import bounded
from homolog.methods import METHODS
from homolog.methods._base import Method
from homolog.model_files import load_encoder
from homolog.pretrain.cases import chosen_cases
from homolog.pretrain.fitting import as_slices, fitted, settled, whole_turns
from homolog.pretrain.pairs import find_partners
from homolog.training import TrainingConfig

PARTS = ("method", "backbone", "training")


@dataclass(frozen=True)
class PretrainConfig:
    """One pretraining, as it is written to ``run.json``."""

    method: str = option("s2dc", "what is learnt; see homolog methods")
    stores: tuple[str, ...] = option((), "stores to learn from")
    method_config: dict[str, Any] = field(default_factory=dict)
    backbone: dict[str, Any] = field(default_factory=dict)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    encoder: str = option("", "run or weight file to start from; empty: random weights")
    recipe: str = option("auto", "settings it was made from")
    without_splits: tuple[str, ...] = option(
        ("test",), "cases of these splits are never seen"
    )
    balance: float = option(
        0.0, "share of crops centred on a label", minimum=0.0, maximum=1.0
    )
    share_by: str = option(
        "store",
        "between whom crops are shared out, and in each between labelled and "
        "unlabelled scans",
        choices=("store", "modality"),
    )
    share_power: float = option(
        1.0,
        "how: 1 by number of scans, 0.5 by its square root, 0 evenly",
        minimum=0.0,
        maximum=1.0,
    )
    seed: int = option(0, "seed of everything random", minimum=0)
    device: str = option("auto", "auto, cpu, cuda or cuda:i")
    threads: int = option(0, "CPU threads of the network; 0: all cores", minimum=0)
    feed_threads: int = option(
        0, "threads that read crops ahead; 0: by the device", minimum=0
    )
    store_hashes: tuple[str, ...] = option((), "what the stores held at the start")
    notes: tuple[str, ...] = option((), "what was decided for the user")


def resolve(
    method: str,
    stores: Sequence[str | Path],
    *,
    recipe: str = "auto",
    backbone: str | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str = "auto",
    **others: Any,
) -> dict[str, Any]:
    """A complete configuration for ``job``; everything that can be checked, is.

    Args:
        method: Name of a method.
        stores: Store folders.
        recipe: One of the method's, ``auto`` (by the device), or a TOML or JSON file
            with the tables ``method``, ``backbone`` (with ``name``), ``training``.
        backbone: Another network than the recipe's.
        settings: Nested overrides with the same keys; they win.
        seed: Of everything random.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:i``.
        others: More fields of PretrainConfig (``encoder``, ``without_splits``, ...).

    Raises:
        ConfigError: A name or value that cannot be meant.
        UnusableInput: A store, encoder file or crop size that cannot be used.
    """
    cls = _method_class(method)
    overrides = dict(settings or {})
    unknown = sorted(set(overrides) - set(PARTS))
    if unknown:
        raise ConfigError(
            f"settings start with method., backbone. or training., got {unknown[0]!r}."
        )
    name, base = _recipe(cls, method, recipe, choose_device(device))
    opened = [Store.open(path) for path in stores]
    if not opened:
        raise UnusableInput("at least one store is needed to learn from.")
    chosen = _backbone_settings(name, base, backbone, overrides)
    own = merge(base.get("method", {}), overrides.get("method", {}))
    training = merge(base.get("training", {}), overrides.get("training", {}))
    config = from_dict(
        PretrainConfig,
        {
            "method": method,
            "stores": [str(Path(p).resolve()) for p in stores],
            "method_config": to_dict(from_dict(cls.Config, own, where=method)),
            "backbone": chosen,
            "training": from_dict(TrainingConfig, training, where="training"),
            "recipe": name,
            "seed": seed,
            "device": device,
            "store_hashes": [store.hash for store in opened],
            "balance": cls.balance,
            "share_power": cls.share_power,
            **others,
        },
    )
    config = as_slices(_completed(config, opened), overrides.get("method", {}))
    if name != "paper" and "size" not in overrides.get("method", {}):
        config = fitted(config, opened)
    cases = chosen_cases(opened, config.without_splits)
    config = settled(config, cases)
    built = build_method(config)  # refuses illegal sizes now, not in the worker
    find_partners(built, opened, cases, seed)
    return to_dict(whole_turns(config, len(built.turns())))


def resolve_request(request: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of ``resolve`` as one mapping; what is None is left out.

    Raises:
        ConfigError: No method or no store is named, or a name that cannot be meant.
        UnusableInput: As ``resolve``.
    """
    given = {key: value for key, value in request.items() if value is not None}
    if not given.get("method"):
        raise ConfigError("choose a method to pretrain with.")
    return resolve(given.pop("method"), given.pop("stores", ()), **given)


def build_method(config: PretrainConfig) -> Method:
    """The method on its backbone; the same weights for the same seed.

    Raises:
        ConfigError: The method's settings and the backbone do not go together.
    """
    cls = METHODS.get(config.method)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            start = _starting_backbone(config)
            with bounded(f"the method {config.method} with these settings"):
                built = cls(start, _own(config))
            network = built.encoder()
            for spec in built.views().values():
                network.check_size(spec.size)
        except UnusableInput:
            raise
        except ValueError as error:
            raise ConfigError(
                f"{config.method} on {config.backbone['name']}: {error} "
                "(settings: --set method.KEY=VALUE)"
            ) from error
    return built


def _starting_backbone(config: PretrainConfig) -> Backbone:
    chosen = dict(config.backbone)
    name = str(chosen.pop("name"))
    if not config.encoder:
        return build(name, chosen)
    loaded = load_encoder(
        config.encoder, {"name": name, "config": chosen}, chosen.get("in_channels")
    )
    if loaded.card["backbone"]["name"] != name:
        raise ConfigError(
            f"the encoder {config.encoder} is a {loaded.card['backbone']['name']}, "
            f"not a {name}."
        )
    return loaded.backbone.train()


def _own(config: PretrainConfig) -> Any:
    cls = METHODS.get(config.method)
    return from_dict(cls.Config, config.method_config, where=config.method)


def _method_class(name: str) -> type[Method]:
    if name not in METHODS.names():
        raise ConfigError(
            f"unknown method {name!r}; known: {', '.join(METHODS.names())}."
        )
    return METHODS.get(name)


def _recipe(
    cls: type[Method], method: str, recipe: str, device: torch.device
) -> tuple[str, Mapping[str, Any]]:
    """Name and content; ``auto`` is decided by the device."""
    if recipe == "auto":
        recipe = "gpu" if device.type == "cuda" else "cpu"
    if recipe in cls.RECIPES:
        return recipe, cls.RECIPES[recipe]
    path = Path(recipe)
    if path.suffix not in (".toml", ".json") or not path.is_file():
        raise ConfigError(
            f"{method} has no recipe {recipe!r}; recipes: {', '.join(cls.RECIPES)}, "
            "auto, or a .toml or .json file."
        )
    try:
        text = path.read_text(encoding="utf-8")
        read: dict[str, Any] = (
            tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
        )
    except ValueError as error:
        raise ConfigError(f"the recipe {path} cannot be read: {error}") from error
    unknown = sorted(set(read) - set(PARTS))
    if unknown:
        raise ConfigError(
            f"the recipe {path} has tables method, backbone and training; "
            f"got {unknown[0]!r}."
        )
    return str(path), read


def _backbone_settings(
    recipe: str,
    base: Mapping[str, Any],
    asked: str | None,
    overrides: Mapping[str, Any],
) -> dict[str, Any]:
    """Recipe's network with overrides; another one starts from its own settings."""
    default = dict(base.get("backbone", {}))
    own = dict(overrides.get("backbone", {}))
    name = asked or own.pop("name", None) or default.get("name")
    if name is None:
        raise ConfigError("the recipe names no backbone; choose one with --backbone.")
    if name not in BACKBONES.names():
        raise ConfigError(
            f"unknown backbone {name!r}; known: {', '.join(BACKBONES.names())}."
        )
    if name != default.get("name"):
        default = dict(BACKBONES.get(name).SMALL) if recipe == "cpu" else {}
    return merge(default, own, {"name": str(name)})


def _completed(config: PretrainConfig, stores: Sequence[Store]) -> PretrainConfig:
    """Channels from the data and threads from the machine: a resume repeats them."""
    cases = chosen_cases(stores, config.without_splits)
    backbone = {"in_channels": cases[0].card.channels, **config.backbone}
    return dataclasses.replace(
        config,
        backbone=backbone,
        threads=config.threads or torch.get_num_threads(),
        feed_threads=config.feed_threads or feed_threads(choose_device(config.device)),
    )
