"""Backbones: multi-scale encoders. One file is one backbone; its name is the key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from homolog.config import from_dict, to_dict
from homolog.memory import bounded
from homolog.registry import Registry

if TYPE_CHECKING:
    from homolog.backbones.base import Backbone


BACKBONES: Registry[Backbone] = Registry(
    __name__, "homolog.backbones.base:Backbone", "backbone"
)


def build(name: str, overrides: Mapping[str, Any] | None = None) -> Backbone:
    """A backbone by name, its configuration checked.

    Args:
        name: A key of ``BACKBONES``.
        overrides: Settings that differ from the backbone's defaults.

    Raises:
        UnusableInput: It is larger than this machine's memory.
        ValueError: Unknown backbone, unknown setting or a value out of range
            (ConfigError is a ValueError); the message lists what there is.
    """
    cls = BACKBONES.get(name)
    config: Any = from_dict(cls.Config, overrides or {}, where=f"backbone {name}")
    with bounded(f"the network {name} with {_sizes(config)}"):
        return cls(config)


def _sizes(config: Any) -> str:
    """The numbers of a configuration that differ from the defaults, in short."""
    plain, usual = to_dict(config), to_dict(type(config)())
    odd = [f"{k}={plain[k]}" for k in plain if plain[k] != usual.get(k)]
    text = ", ".join(odd) or "its default settings"
    return text if len(text) <= 120 else f"{text[:117]}..."
