"""Ways to learn from scans. One file is one method; its name is the key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from homolog.registry import Registry

if TYPE_CHECKING:
    from homolog.methods.base import Method


METHODS: Registry[Method] = Registry(__name__, "homolog.methods.base:Method", "method")
