"""The state of a training on disk: complete or absent, and never pickled.

``FOLDER/checkpoints/step_00001200/`` holds ``state.safetensors`` (every parameter,
buffer and optimiser tensor) and ``state.json`` (step, settings, SHA-256 of the former).
A generation is written beside its place, synced and renamed; the last two are kept, and
a damaged newest one is passed over for the one before.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from homolog.errors import JobError
from homolog.json_files import Shape, read_object
from homolog.model_files import (
    LoadedEncoder,
    LoadedModel,
    LoadReport,
    load_embedder,
    load_encoder,
    load_model,
    save_model,
)
from homolog.model_files.tensor_files import (
    fresh_folder,
    read_tensors,
    reason,
    write_json,
    write_tensors,
)

__all__ = [
    "LoadReport",
    "LoadedEncoder",
    "LoadedModel",
    "SavedState",
    "generations",
    "load_best",
    "load_embedder",
    "load_encoder",
    "load_model",
    "load_state",
    "save_best",
    "save_model",
    "save_state",
]

GENERATIONS = 2
TENSORS, INFO = "state.safetensors", "state.json"


@dataclass(frozen=True, eq=False)
class SavedState:
    """One generation, read back and verified.

    Attributes:
        step: Optimiser steps done.
        tensors: Name -> tensor on the CPU.
        info: Whatever else was saved, JSON types.
        path: The generation's folder.
        damaged: One sentence per newer generation that could not be used.
    """

    step: int
    tensors: dict[str, Tensor]
    info: dict[str, Any]
    path: Path
    damaged: tuple[str, ...] = ()


def save_state(
    folder: Path, step: int, tensors: Mapping[str, Tensor], info: Mapping[str, Any]
) -> Path:
    """Write one generation and drop all but the last two.

    Args:
        folder: The run's folder.
        step: Optimiser steps done.
        tensors: Name -> tensor, any device.
        info: JSON types; ``json`` keeps floats exactly.

    Returns:
        The generation's folder.

    Raises:
        JobError: It could not be written; earlier generations are untouched.
    """
    place = folder / "checkpoints" / f"step_{step:08d}"
    try:
        with fresh_folder(place) as scratch:
            digest = write_tensors(scratch / TENSORS, tensors)
            content = {
                "step": step, "sha256": digest, "info": dict(info),
                "info_sha256": _digest(info),
            }  # fmt: skip
            write_json(scratch / INFO, content)
    except (OSError, SafetensorError) as error:
        kept = generations(folder)
        last = f"{kept[0].name} stays and can resume" if kept else "none was saved yet"
        raise JobError(
            f"the checkpoint of step {step} could not be saved in {place.parent} "
            f"({reason(error)}); {last}."
        ) from error
    for old in generations(folder)[GENERATIONS:]:
        shutil.rmtree(old, ignore_errors=True)
    return place


def load_state(folder: Path, info: Shape | None = None) -> SavedState | None:
    """The newest sound generation; None when nothing was ever saved.

    Args:
        folder: The run's folder.
        info: Shape of what was saved beside the tensors; a generation of another one
            counts as damaged.

    Raises:
        JobError: Generations exist, but none is sound.
    """
    damaged: list[str] = []
    for place in generations(folder):
        try:
            content = read_object(
                place / INFO, {"step": int, "sha256": str, "info": info or dict}
            )
            if content.get("info_sha256", "") not in ("", _digest(content["info"])):
                raise ValueError(f"{INFO} does not match its checksum")
            tensors = read_tensors(place / TENSORS, content["sha256"])
        except (OSError, ValueError, SafetensorError) as error:
            why = reason(error).rstrip(".")
            damaged.append(f"checkpoint {place.name} is damaged ({why})")
            continue
        return SavedState(
            content["step"], tensors, content["info"], place, tuple(damaged)
        )
    if damaged:
        raise JobError(f"no sound checkpoint in {folder}: {'; '.join(damaged)}.")
    return None


def _digest(info: Mapping[str, Any]) -> str:
    """SHA-256 of JSON types, the same when they were read back."""
    text = json.dumps(json.loads(json.dumps(dict(info))), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def generations(folder: Path) -> list[Path]:
    """Complete generations of a run, newest first."""
    found = (folder / "checkpoints").glob("step_*")
    return sorted((p for p in found if p.is_dir()), reverse=True)


def save_best(
    folder: Path, tensors: Mapping[str, Tensor], info: Mapping[str, Any]
) -> Path:
    """Keep the weights that validated best, in ``FOLDER/best``.

    Raises:
        JobError: It could not be written; the former best stays.
    """
    place = folder / "best"
    try:
        with fresh_folder(place) as scratch:
            digest = write_tensors(scratch / TENSORS, tensors)
            write_json(scratch / INFO, {"sha256": digest, "info": dict(info)})
    except (OSError, SafetensorError) as error:
        raise JobError(
            f"the best weights could not be saved in {place} ({reason(error)})."
        ) from error
    return place


def load_best(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Weights and metrics that save_best wrote last; None when there are none.

    Raises:
        JobError: They are damaged.
    """
    place = folder / "best"
    if not place.exists():
        return None
    try:
        content = read_object(place / INFO, {"sha256": str, "info": dict})
        return read_tensors(place / TENSORS, content["sha256"]), content["info"]
    except (OSError, ValueError, SafetensorError) as error:
        raise JobError(
            f"the best weights in {place} are damaged ({reason(error)})."
        ) from error
