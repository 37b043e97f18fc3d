"""Uses of an encoder. One file is one task; its name is the key."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from homolog.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Mapping

    from homolog.tasks.base import Task


TASKS: Registry[Task] = Registry(__name__, "homolog.tasks.base:Task", "task")

# Of the recipes ``cpu`` and ``gpu``: what else holds where weights came pretrained (a
# recipe's ``pretrained``), so that they are not trained away by a head that knows
# nothing yet. No torch here: the command line tells these numbers in its help.
PRETRAINED: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "cpu": {
            "task": {"encoder_factor": 1.0, "head_first": 0.0, "average": 0.98},
            "training": {"warmup": 0.05},
        },
        "gpu": {
            "task": {"encoder_factor": 0.3, "head_first": 0.1, "average": 0.999},
            "training": {"warmup": 0.05},
        },
    }
)
