"""A pretraining's crops, batch and settings made to fit its network and its scans."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from homolog.backbones._base import build
from homolog.config import from_dict, to_dict
from homolog.data.store import Store
from homolog.feed import CaseRef
from homolog.methods import METHODS
from homolog.pretrain.cases import chosen_cases, fitted_size

if TYPE_CHECKING:
    from homolog.pretrain.settings import PretrainConfig


def as_slices(config: PretrainConfig, given: Mapping[str, Any]) -> PretrainConfig:
    """Crops as the network sees: one slice for a 2D one, volumes for a 3D one.

    Slices are twice as wide as the volumes they stand for, and turned within their
    plane only: tilted ones would leave an X-ray, which has no depth.
    """
    name = str(config.backbone["name"])
    rest = {k: v for k, v in config.backbone.items() if k != "name"}
    network = build(name, rest)
    flat = network.spatial_dims == 2
    made: dict[str, Any] = {}
    for key, value in config.method_config.items():
        if not (isinstance(value, list) and len(value) == 3) or key in given:
            continue
        z, y, x = value
        if key.endswith("size") and flat and z != 1:
            made[key] = [1, 2 * y, 2 * x]
        elif key.endswith("size") and z == 1 and network.size_divisor[0] > 1:
            made[key] = [min(y, x) // 2, y // 2, x // 2]
        elif key == "rotate_deg" and flat:
            made[key] = [z, 0.0, 0.0]
    sizes = [f"{k} {_spoken(v)}" for k, v in made.items() if k.endswith("size")]
    sees = "2D and sees slices" if flat else "3D and sees volumes"
    note = f"{name} is {sees}: {', '.join(sizes)}."
    return dataclasses.replace(
        config,
        method_config={**config.method_config, **made},
        notes=(*config.notes, note) if sizes else config.notes,
    )


def settled(config: PretrainConfig, cases: Sequence[CaseRef]) -> PretrainConfig:
    """What the method reads off the data is kept with the run."""
    cls = METHODS.get(config.method)
    found = cls.settled(config.method_config, cases)
    checked = to_dict(from_dict(cls.Config, found, where=config.method))
    return dataclasses.replace(config, method_config=checked)


def whole_turns(config: PretrainConfig, turns: int) -> PretrainConfig:
    """A batch that modalities share evenly."""
    asked = config.training.batch_size
    if turns < 2 or asked % turns == 0:
        return config
    size = -(-asked // turns) * turns
    note = (
        f"{turns} modalities share every batch, so it holds {size} samples instead of "
        f"{asked}."
    )
    return dataclasses.replace(
        config,
        training=dataclasses.replace(config.training, batch_size=size),
        notes=(*config.notes, note),
    )


def fitted(config: PretrainConfig, stores: Sequence[Store]) -> PretrainConfig:
    """A recipe's crop larger than nearly all scans is made smaller, and said."""
    size = config.method_config.get("size")
    if not isinstance(size, list) or len(size) != 3:
        return config
    name = str(config.backbone["name"])
    rest = {k: v for k, v in config.backbone.items() if k != "name"}
    divisor = build(name, rest).size_divisor
    cases = chosen_cases(stores, config.without_splits)
    smaller = fitted_size(tuple(size), cases, divisor)
    if smaller == tuple(size):
        return config
    note = (
        f"nine of ten scans fit into {_spoken(smaller)} voxels, so crops have that "
        f"size instead of the recipe's {_spoken(size)} (--set method.size=... to "
        "choose)."
    )
    return dataclasses.replace(
        config,
        method_config={**config.method_config, "size": list(smaller)},
        notes=(*config.notes, note),
    )


def _spoken(size: Sequence[int]) -> str:
    return " x ".join(str(n) for n in size)
