"""A resumed fine-tuning goes on with the classes it began with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from homolog.distributed import world
from homolog.errors import UnusableInput
from homolog.json_files import read_object
from homolog.model_files.tensor_files import write_json

_FILE = "task.json"
# What the outputs of the network stand for, as ``LearnedTask.describe`` tells.
_MEANING = (
    "label_values",
    "label_names",
    "label_spaces",
    "classes",
    "types",
    "several",
)


def same_task(folder: Path, spec: Mapping[str, Any]) -> dict[str, Any]:
    """What a run described when it began; ``spec`` itself for a new one.

    Args:
        folder: The run.
        spec: What the stores say now.

    Raises:
        UnusableInput: The stores now say otherwise what is to be learnt.
    """
    now: dict[str, Any] = json.loads(json.dumps(dict(spec)))
    path = folder / _FILE
    if not path.exists():
        if world().is_first:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(path, now)
        return now
    began = read_object(path)
    for key in _MEANING:
        if began.get(key) != now.get(key):
            raise UnusableInput(
                f"the labels of the stores changed since this run began ({key} was "
                f"{_short(began.get(key))}, is now {_short(now.get(key))}); start a "
                "new run, or prepare the stores as they were."
            )
    return began


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]}..."
