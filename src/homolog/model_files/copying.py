"""A model folder copied whole, checksums verified; into the library under a name."""

from __future__ import annotations

import shutil
from pathlib import Path

from homolog import writing
from homolog.errors import JobError, UnusableInput
from homolog.model_files.card import read_card
from homolog.model_files.library import (
    CARD,
    LIBRARY,
    KnownModel,
    check_name,
    library_folder,
    located,
)


def add_model(source: str | Path, name: str) -> KnownModel:
    """Copy a run's model, or a model folder, into the library.

    Args:
        source: Run, model folder, or the name of one.
        name: New in the library.

    Raises:
        UnusableInput: No model there, a damaged one, or a name that cannot be taken.
        JobError: It could not be written.
    """
    check_name(name)
    path = located(source)
    if path.is_file():
        raise UnusableInput(
            f"{path} is a file; a weight file becomes a model by: homolog models "
            f"import {path} --out {library_folder() / name}"
        )
    out = library_folder() / name
    copy_model(path, out)
    return KnownModel(name, out, out, LIBRARY)


def copy_model(source: Path, out: Path) -> Path:
    """Copy a whole model folder, checksums verified; all of it or nothing.

    Seconds for large weights.

    Args:
        source: Model folder, or the run it lies in.
        out: The new model folder.

    Raises:
        UnusableInput: Damaged, or ``out`` exists.
        JobError: It could not be written.
    """
    folder = source if (source / CARD).is_file() else source / "model"
    if not (folder / CARD).is_file():
        raise UnusableInput(f"{source} holds no model yet ({CARD} is missing).")
    card = read_card(folder)
    if out.exists():
        raise UnusableInput(f"{out} exists; choose another name.")
    for name, wanted in card["sha256"].items():
        if file_hash(folder / name) != wanted:
            raise UnusableInput(f"{folder / name} is damaged: its checksum is wrong.")
    try:
        with writing.writing_folder(out) as fresh:
            for name in (CARD, *card["sha256"]):
                shutil.copyfile(folder / name, fresh / name)
    except OSError as error:
        raise JobError(f"the model could not be copied to {out} ({error}).") from error
    return out


def file_hash(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        UnusableInput: It cannot be read.
    """
    try:
        return writing.file_digest(path)
    except OSError as error:
        raise UnusableInput(f"{path} cannot be read ({error}).") from error
