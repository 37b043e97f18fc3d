"""A trained network as a folder: weights as safetensors, everything else as JSON.

``model.json`` (the card) says how to build the network, how scans must be prepared for
it, what it was trained on, and the SHA-256 of the weights. It can be read, and the
weights used, without our code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from homolog import __version__
from homolog.errors import JobError, UnusableInput
from homolog.model_card import CARD, read_card
from homolog.model_files.tensor_files import (
    fresh_folder,
    read_tensors,
    reason,
    write_json,
    write_tensors,
)


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
) -> Path:
    """Write a model folder; a former one is replaced only by a complete new one.

    Args:
        folder: The model folder itself, usually ``RUN/model``.
        module_state: Weights and buffers.
        card: JSON types; version and checksums are added.
        name: ``encoder`` or ``model``.
        extra: More weight files by name, e.g. ``{"embedder": heads}``.

    Returns:
        The folder.

    Raises:
        JobError: It could not be written.
    """
    files = {name: module_state, **(extra or {})}
    try:
        with fresh_folder(folder) as scratch:
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
    except (OSError, SafetensorError) as error:
        raise JobError(
            f"the model could not be saved in {folder} ({error})."
        ) from error
    return folder


def find_model(source: str | Path) -> Path:
    """The model folder of a RUN, a model folder, or a file inside one.

    Raises:
        UnusableInput: There is none; the message says what is there instead.
    """
    path = Path(source)
    for folder in (path, path / "model", path.parent):
        if (folder / CARD).is_file() and (folder is not path.parent or path.is_file()):
            return folder
    if not path.exists():
        raise UnusableInput(f"expected a run, model folder or file, got {path}: none.")
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
    except (OSError, ValueError, SafetensorError) as error:
        raise UnusableInput(
            f"the weights {folder / name} are missing or damaged ({reason(error)})."
        ) from error
