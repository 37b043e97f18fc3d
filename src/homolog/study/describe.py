"""What the engine offers, as JSON, for a program that must not load torch itself.

``python -m homolog.study.describe schema`` tells every method, task and network with
its settings; ``devices`` tells what can compute here; ``doctor`` whether all of it
works. One line each.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import platform
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from homolog import __version__
from homolog.config import to_dict
from homolog.study.doctor import examine

FORMAT = 1
_TYPES = {int: "int", float: "float", bool: "bool", str: "str", dict: "dict"}


def schema() -> dict[str, Any]:
    """Methods, tasks, networks and the settings of training and embedding."""
    from homolog.backbones import BACKBONES
    from homolog.methods import METHODS
    from homolog.tasks import TASKS
    from homolog.tasks._dense import EmbedConfig
    from homolog.training import TrainingConfig

    networks = {name: BACKBONES.get(name) for name in BACKBONES.names()}
    return {
        "format": FORMAT,
        "homolog": __version__,
        "methods": {
            name: _method(METHODS.get(name), networks) for name in METHODS.names()
        },
        "tasks": {name: _task(TASKS.get(name)) for name in TASKS.names()},
        "backbones": {name: _network(cls) for name, cls in networks.items()},
        "training": fields_of(TrainingConfig),
        "embed": fields_of(EmbedConfig),
    }


def devices() -> dict[str, Any]:
    """The CPU and every usable GPU, with what is free of their memory now."""
    import torch

    from homolog.distributed import choose_device, usable_gpus
    from homolog.study.memory import available_memory
    from homolog.training.precision import cpu_has_bf16, gpu_precision

    free, total = available_memory()
    cores = _cores()
    found = [
        {
            "name": "cpu",
            "title": f"CPU, {cores} core{'s' * (cores != 1)}, {_gb(free)} GB free",
            "free_bytes": free,
            "total_bytes": total,
        }
    ]
    count = usable_gpus()
    for index in range(count):
        free, total = torch.cuda.mem_get_info(index)
        told = torch.cuda.get_device_name(index)
        found.append(
            {
                "name": f"cuda:{index}",
                "title": f"{told}, {_gb(free)} of {_gb(total)} GB free",
                "free_bytes": int(free),
                "total_bytes": int(total),
            }
        )
    best = choose_device("auto")
    on_gpu = best.type == "cuda"
    bf16 = gpu_precision(best) == "bf16" if on_gpu else cpu_has_bf16()
    return {
        "devices": found,
        "best": str(best),
        "torch": torch.__version__,
        "bf16": bool(bf16),
        "cores": cores,
        "system": platform.platform(),
    }


def fields_of(config: type) -> list[dict[str, Any]]:
    """A form's worth of facts about every setting of a Config dataclass."""
    hints = typing.get_type_hints(config)
    defaults = to_dict(config())
    return [
        _field(f, hints[f.name], defaults[f.name])
        for f in dataclasses.fields(typing.cast("Any", config))
    ]


def _field(field: Any, hint: Any, default: Any) -> dict[str, Any]:
    meta = field.metadata
    choices = meta.get("choices")
    return {
        "name": field.name,
        **_shape(hint),
        "default": default,
        "help": meta.get("help", ""),
        "unit": meta.get("unit", ""),
        "min": meta.get("min"),
        "max": meta.get("max"),
        "choices": None if choices is None else list(choices),
        "advanced": bool(meta.get("advanced", False)),
        "empty": meta.get("empty", "automatic"),
    }


def _shape(hint: Any) -> dict[str, Any]:
    """``type``, ``item``, ``length`` and ``optional`` of a type hint."""
    optional = False
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        options = typing.get_args(hint)
        optional = type(None) in options
        hint = next(o for o in options if o is not type(None))
    item, length = None, None
    if typing.get_origin(hint) is tuple:
        entries = typing.get_args(hint)
        inner = entries[0]
        item = "tuple" if typing.get_origin(inner) is tuple else _TYPES.get(inner)
        length = None if entries[-1] is Ellipsis else len(entries)
        kind = "tuple"
    else:
        kind = _TYPES.get(typing.get_origin(hint) or hint, "dict")
    return {"type": kind, "item": item, "length": length, "optional": optional}


def _method(cls: Any, networks: Mapping[str, Any]) -> dict[str, Any]:
    suited = list(cls.backbones) or list(networks)
    return {
        "title": cls.title,
        "paper": cls.paper,
        "doc": inspect.cleandoc(cls.__doc__ or ""),
        "backbones": list(cls.backbones),
        "uses_labels": cls.uses_labels,
        "spatial": sorted({networks[n].spatial_dims for n in suited if n in networks}),
        "recipes": _plain(cls.RECIPES),
        "fields": fields_of(cls.Config),
    }


def _task(cls: Any) -> dict[str, Any]:
    return {
        "title": cls.title,
        "doc": inspect.cleandoc(cls.__doc__ or ""),
        "recipes": _plain(getattr(cls, "RECIPES", {})),
        "fields": fields_of(cls.Config),
        "learned": bool(cls.learns),
    }


def _network(cls: Any) -> dict[str, Any]:
    return {
        "title": cls.title,
        "doc": inspect.cleandoc(cls.__doc__ or ""),
        "fields": fields_of(cls.Config),
        "small": _plain(cls.SMALL),
        "spatial_dims": cls.spatial_dims,
    }


def _plain(value: Any) -> Any:
    """Read-only mappings and tuples as JSON types."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def _cores() -> int:
    """Processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gb(count: int) -> str:
    size = count / 1e9
    return f"{size:.0f}" if size >= 10 else f"{size:.1f}"


def main(words: Sequence[str] | None = None) -> int:
    """Print one JSON line; exit status 2 for a word it does not know."""
    asked = list(sys.argv[1:] if words is None else words)
    answers = {"schema": schema, "devices": devices, "doctor": examine}
    if len(asked) != 1 or asked[0] not in answers:
        sys.stderr.write(f"expected one of {', '.join(answers)}, got {asked!r}.\n")
        return 2
    sys.stdout.write(json.dumps(answers[asked[0]]()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
