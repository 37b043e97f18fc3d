"""A trained network, and the state of a training, as folders: complete or absent.

A model folder holds weights as safetensors and everything else as JSON: ``model.json``
(the card) says how to build the network, how scans must be prepared for it, what it was
trained on, and the SHA-256 of the weights. It can be used without our code.

``FOLDER/checkpoints/step_00001200/`` holds ``state.safetensors`` (every parameter,
buffer and optimiser tensor; never a pickle) and ``state.json`` (step, settings, SHA-256
of the former). A generation is written beside its place, synced and renamed; the last
two are kept, and a damaged newest one is passed over for the one before.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from homolog import __version__
from homolog.errors import JobError, UnusableInput
from homolog.json_files import Shape, read_object
from homolog.model_files.card import CARD, read_card
from homolog.model_files.library import located
from homolog.writing import file_digest, write_json, write_text, writing_folder

GENERATIONS = 2
TENSORS, INFO = "state.safetensors", "state.json"


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model folder, read and verified.

    Attributes:
        state: Name -> tensor on the CPU.
        card: ``model.json``.
        folder: Where it lies.
    """

    state: dict[str, Tensor]
    card: dict[str, Any]
    folder: Path = field(default_factory=Path)


def save_model(
    folder: Path,
    module_state: Mapping[str, Tensor],
    card: Mapping[str, Any],
    name: str = "encoder",
    extra: Mapping[str, Mapping[str, Tensor]] | None = None,
    pages: Mapping[str, str] | None = None,
) -> Path:
    """Write a model folder; a former one is replaced only by a complete new one.

    Args:
        folder: The model folder itself, usually ``RUN/model``.
        module_state: Weights and buffers.
        card: JSON types; version and checksums are added.
        name: ``encoder`` or ``model``.
        extra: More weight files by name, e.g. ``{"embedder": heads}``.
        pages: Texts to lie beside them, by file name.

    Returns:
        The folder.

    Raises:
        JobError: It could not be written.
    """
    files = {name: module_state, **(extra or {})}
    try:
        with writing_folder(folder) as scratch:
            digests = {
                f"{stem}.safetensors": write_tensors(
                    scratch / f"{stem}.safetensors", state
                )
                for stem, state in files.items()
            }
            content = {
                **card,
                "homolog_version": __version__,
                "weights": f"{name}.safetensors",
                "sha256": digests,
            }
            write_json(scratch / CARD, content)
            for page, text in (pages or {}).items():
                write_text(scratch / page, text)
    except (OSError, SafetensorError) as error:
        raise JobError(
            f"the model could not be saved in {folder} ({error})."
        ) from error
    return folder


def find_model(source: str | Path) -> Path:
    """The model folder of a RUN, a model folder, a file inside one, or a known name.

    Raises:
        UnusableInput: There is none; the message says what is there instead.
    """
    path = located(source)
    for folder in (path, path / "model", path.parent):
        if (folder / CARD).is_file() and (folder is not path.parent or path.is_file()):
            return folder
    if (path / "run.json").exists():
        raise UnusableInput(
            f"the run {path} has no model yet; it is written when the run ends or is "
            "stopped."
        )
    raise UnusableInput(f"expected a run or model folder, {path} has no {CARD}.")


def load_model(source: str | Path) -> LoadedModel:
    """Weights and card of a model folder or RUN, checksums verified.

    Raises:
        UnusableInput: No model there, or it is damaged.
    """
    folder = find_model(source)
    card = read_card(folder)
    return LoadedModel(read_weights(folder, card, card["weights"]), card, folder)


def read_weights(folder: Path, card: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    """One weight file of a model folder, verified."""
    try:
        return read_tensors(folder / name, card["sha256"][name])
    except KeyError:
        raise UnusableInput(f"{folder / CARD} has no checksum of {name}.") from None
    except (OSError, ValueError, SafetensorError, RuntimeError) as error:
        raise UnusableInput(
            f"the weights {folder / name} are missing or damaged ({reason(error)})."
        ) from error


# The state of a training.


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
        with writing_folder(place) as scratch:
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
        with writing_folder(place) as scratch:
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


def _digest(info: Mapping[str, Any]) -> str:
    """SHA-256 of JSON types, the same when they were read back."""
    text = json.dumps(json.loads(json.dumps(dict(info))), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


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


def reason(error: Exception) -> str:
    """What an error says, in few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).strip() or type(error).__name__
