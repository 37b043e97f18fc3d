"""Backbones: multi-scale encoders. One file is one backbone; its name is the key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from homolog.registry import Registry

if TYPE_CHECKING:
    from homolog.backbones._base import Backbone

BACKBONES: Registry[Backbone] = Registry(
    __name__, "homolog.backbones._base:Backbone", "backbone"
)
