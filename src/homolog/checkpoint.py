"""The state of a training on disk: complete or absent, and never pickled.

``FOLDER/checkpoints/step_00001200/`` holds ``state.safetensors`` (every parameter,
buffer and optimiser tensor) and ``state.json`` (step, settings, SHA-256 of the former).
A generation is written beside its place, synced and renamed; the last two are kept, and
a damaged newest one is passed over for the one before.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from homolog.errors import JobError

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
            content = {"step": step, "sha256": digest, "info": dict(info)}
            write_json(scratch / INFO, content)
    except (OSError, SafetensorError) as error:
        kept = generations(folder)
        last = f"{kept[0].name} stays and can resume" if kept else "none was saved yet"
        raise JobError(
            f"the checkpoint of step {step} could not be saved in {place.parent} "
            f"({_reason(error)}); {last}."
        ) from error
    for old in generations(folder)[GENERATIONS:]:
        shutil.rmtree(old, ignore_errors=True)
    return place


def load_state(folder: Path) -> SavedState | None:
    """The newest sound generation; None when nothing was ever saved.

    Raises:
        JobError: Generations exist, but none is sound.
    """
    damaged: list[str] = []
    for place in generations(folder):
        try:
            content = json.loads((place / INFO).read_text())
            tensors = read_tensors(place / TENSORS, content["sha256"])
            step, info = int(content["step"]), dict(content["info"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            damaged.append(f"checkpoint {place.name} is damaged ({_reason(error)})")
            continue
        return SavedState(step, tensors, info, place, tuple(damaged))
    if damaged:
        raise JobError(f"no sound checkpoint in {folder}: {'; '.join(damaged)}.")
    return None


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
            f"the best weights could not be saved in {place} ({_reason(error)})."
        ) from error
    return place


def load_best(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Weights and metrics that save_best wrote last; None when there are none.

    Raises:
        JobError: They are damaged.
    """
    place = folder / "best"
    if not (place / INFO).exists():
        return None
    try:
        content = json.loads((place / INFO).read_text())
        tensors = read_tensors(place / TENSORS, content["sha256"])
        return tensors, dict(content["info"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise JobError(
            f"the best weights in {place} are damaged ({_reason(error)})."
        ) from error


@contextlib.contextmanager
def fresh_folder(place: Path) -> Iterator[Path]:
    """A scratch folder that becomes ``place`` when the block ends well.

    On an error it vanishes and ``place`` stays as it was. Everything in it is synced to
    the disk before the rename.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    scratch = place.parent / f".{place.name}.new"
    retired = place.parent / f".{place.name}.old"
    for leftover in (scratch, retired):
        shutil.rmtree(leftover, ignore_errors=True)
    scratch.mkdir()
    try:
        yield scratch
        for file in scratch.iterdir():
            _sync(file)
        _sync(scratch)
        if place.exists():
            place.rename(retired)
        scratch.rename(place)
        _sync(place.parent)
    except BaseException:
        if retired.exists() and not place.exists():
            retired.rename(place)
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    shutil.rmtree(retired, ignore_errors=True)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write a safetensors file; returns the SHA-256 of its bytes."""
    # clones: safetensors refuses views that share memory
    save_file(
        {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, path
    )
    return file_digest(path)


def read_tensors(path: Path, sha256: str) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        ValueError: Its bytes are not those that were written.
    """
    if file_digest(path) != sha256:
        raise ValueError(f"{path.name} does not match its checksum")
    loaded: dict[str, Tensor] = load_file(path)
    return loaded


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, temporary name first."""
    scratch = path.with_name(f".{path.name}.new")
    scratch.write_text(json.dumps(content, indent=1) + "\n")
    _sync(scratch)
    scratch.replace(path)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows cannot sync a folder
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).strip() or type(error).__name__
