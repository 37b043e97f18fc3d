"""Models taken into the library and out of it, and the runs that began with one."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from homolog import writing
from homolog.errors import JobError, UnusableInput
from homolog.model_files.card import CARD, read_card
from homolog.model_files.library import (
    LIBRARY,
    KnownModel,
    known_models,
    library_folder,
    located,
    shipped_models,
)
from homolog.runs.run import Run, find_runs
from homolog.words import listed

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# Words that stand for something else where a model's name could.
_TAKEN = frozenset({"scratch", "none", "auto", "carried"})


def check_name(name: str, library: Path | None = None) -> None:
    """Raise unless a model can be called so.

    Raises:
        UnusableInput: It is no plain name, means something else, or is taken.
    """
    if not _NAME.fullmatch(name) or name.lower() in _TAKEN or writing.is_reserved(name):
        raise UnusableInput(
            f"a model is named with letters, digits, - . and _, with no dot at its "
            f"end, and not {listed(sorted(_TAKEN), 'or')}, nor as Windows calls its "
            f"devices (con, nul); got {name!r}."
        )
    if any(m.name == name.lower() for m in shipped_models()):
        raise UnusableInput(f"{name} is a model that comes with Homolog; choose another"
                            " name.")  # fmt: skip
    place = (library_folder() if library is None else library) / name
    if place.exists():
        raise UnusableInput(f"{place} exists; choose another name.")


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


def deletable(name: str) -> KnownModel:
    """The model of the library that is meant.

    Raises:
        UnusableInput: Unknown, or it does not lie in the library.
    """
    whole = Path(name).expanduser().resolve()
    own = [m for m in known_models() if m.where == LIBRARY]
    found = next((m for m in own if m.name == name or m.path.resolve() == whole), None)
    if found is not None:
        return found
    path = located(name)
    if any(path.resolve().is_relative_to(m.path.resolve()) for m in shipped_models()):
        raise UnusableInput(f"{name} comes with Homolog and stays.")
    raise UnusableInput(
        f"{path} is not in the library {library_folder()}; a run or a folder elsewhere "
        "is yours to delete."
    )


def delete_model(model: KnownModel) -> None:
    """Delete a model of the library; nothing brings it back.

    Raises:
        JobError: It could not be deleted, or not all of it.
    """
    try:
        shutil.rmtree(model.path)
    except OSError as error:
        raise JobError(f"{model.path} could not be deleted ({error}).") from error


def runs_using(folder: Path, roots: Iterable[Path]) -> list[Path]:
    """Runs that began with a model, or whose own model did.

    Args:
        folder: The model folder, or the run it lies in.
        roots: Folders of runs.
    """
    own = folder.resolve()
    found: dict[Path, None] = {}
    for run in (run for root in roots for run in find_runs(root)):
        if run.folder == own or run.folder in found:
            continue
        said = {str(Path(text).resolve()) for text in _encoders_of(run)}
        if str(own) in said or str(own / "model") in said:
            found[run.folder] = None
    return list(found)


def _encoders_of(run: Run) -> Iterator[str]:
    """Paths of the weights that a run began with, as it says."""
    try:
        config: dict[str, Any] = run.spec["config"]
    except (UnusableInput, KeyError):
        return
    for key in ("encoder", "more", "against", "model"):
        told = config.get(key)
        for text in told if isinstance(told, list) else [told]:
            if isinstance(text, str) and text:
                yield text
