"""Uses of an encoder. One file is one task; its name is the key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from homolog.registry import Registry

if TYPE_CHECKING:
    from homolog.tasks.base import Task


TASKS: Registry[Task] = Registry(__name__, "homolog.tasks.base:Task", "task")
