"""Models known by name: those that come with the package, and a library of one's own.

The window and the terminal share the library: a folder of model folders. Wherever a
run, model folder or weight file is taken, the name of one of these is, too, where no
such path exists. No torch here: cards are read, weights are only hashed and copied.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from homolog import writing
from homolog.errors import UnusableInput
from homolog.json_files import object_or_none
from homolog.words import listed

CARD = "model.json"
SHIPPED, LIBRARY, ELSEWHERE = "shipped", "library", "folder"
# Tested with folders of the tests' own.
ENCODERS = Path(__file__).parents[1] / "resources" / "encoders"
_VARIABLE = "HOMOLOG_MODELS"
_HOME = Path("~/homolog/models")
_SETTINGS, _TOLD = "library.json", "licences.json"
_WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


@dataclass(frozen=True)
class KnownModel:
    """A model folder and what it is called.

    Attributes:
        name: As commands take it.
        folder: With ``model.json``.
        path: The model folder, or the run it lies in.
        where: ``shipped``, ``library`` or ``folder`` (named by its path).
    """

    name: str
    folder: Path
    path: Path
    where: str


# Where they lie.


def named_library() -> Path | None:
    """The folder that HOMOLOG_MODELS names."""
    own = os.environ.get(_VARIABLE, "").strip()
    return Path(own).expanduser() if own else None


def library_folder() -> Path:
    """The library of this user; it may not be there yet.

    ``$HOMOLOG_MODELS``, else ``models`` in the window's home folder where the window
    was told another one than usual, else ``~/homolog/models``.
    """
    if (own := named_library()) is not None:
        return own
    kept = object_or_none(writing.settings_folder() / _SETTINGS, {"models": str})
    return Path(kept["models"]) if kept else _HOME.expanduser()


def remember_library(folder: Path) -> None:
    """Let the terminal look where the window keeps its models.

    Raises:
        OSError: The user's settings cannot be written.
    """
    file = writing.settings_folder() / _SETTINGS
    if named_library() is not None or folder == library_folder():
        return
    if folder == _HOME.expanduser():
        file.unlink(missing_ok=True)
        return
    writing.make_folder(file.parent)
    writing.write_json(file, {"models": str(folder.absolute())})


def shipped_models() -> list[KnownModel]:
    """Those that come with the package, by name."""
    return list(models_below(ENCODERS, SHIPPED))


def known_models(library: Path | None = None) -> list[KnownModel]:
    """Those that come with the package, then those of the library, by name.

    Args:
        library: Another one than ``library_folder()``.
    """
    own = library_folder() if library is None else library
    return [*shipped_models(), *models_below(own, LIBRARY)]


def models_below(root: Path, where: str) -> Iterator[KnownModel]:
    """Model folders in a folder, one or two levels deep; half-written ones are not."""
    if not root.is_dir():
        return
    for card in sorted(
        c for pattern in (f"*/{CARD}", f"*/*/{CARD}") for c in root.glob(pattern)
    ):
        folder = card.parent
        path = folder.parent if folder.name == "model" else folder
        name = path.relative_to(root).as_posix()
        if not any(part.startswith(".") for part in folder.relative_to(root).parts):
            yield KnownModel(name, folder, path, where)


# From a name to a path.


def find_named(name: str) -> KnownModel | None:
    """The model of a name; one's own goes before one that comes with the package."""
    return next((m for m in reversed(known_models()) if m.name == name), None)


def located(source: str | Path) -> Path:
    """The path that is meant: itself where there is one, else that of a known model.

    Raises:
        UnusableInput: Neither; says what is known, and what may have been meant.
    """
    path = Path(source)
    if path.exists():
        return path
    named = None if path.is_absolute() else find_named(path.as_posix())
    if named is not None:
        return named.path
    raise UnusableInput(f"expected a run, model folder or file, got {path}: none."
                        + _known_names(path))  # fmt: skip


def whole_path(source: str | Path, base: Path | None = None) -> str:
    """What is meant as an absolute path, for a run that may be worked on elsewhere.

    A path that leads nowhere stays one: whoever reads it tells what is wrong.

    Args:
        source: A path or a name.
        base: What relative paths are relative to; None: the current folder.
    """
    path = Path(source).expanduser()
    whole = (path if base is None else base / path).resolve()
    if not whole.exists() and not path.is_absolute():
        named = find_named(path.as_posix())
        whole = named.path.resolve() if named is not None else whole
    return str(whole)


def _known_names(path: Path) -> str:
    """What else could have been said, where a name was meant."""
    here = path.parent in (Path(), Path.cwd())  # a run's settings hold whole paths
    if not here or path.suffix.lower() in _WEIGHTS:
        return ""
    names = list(dict.fromkeys(m.name for m in known_models()))
    if not names:
        return f" Nor is it a name: the library {library_folder()} is empty."
    lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(path.name.lower(), lower, 1, 0.5)
    meant = f" Did you mean {lower[near[0]]}?" if near else ""
    return f" Nor is it a model's name: known are {listed(names, most=12)}.{meant}"


# A licence is told once, before use.


def first_use(folder: Path) -> bool:
    """Whether the licence of a model is to be told now: it was never told before.

    Args:
        folder: With ``model.json``.
    """
    file = writing.settings_folder() / _TOLD
    kept = object_or_none(file, {"told": list[str]}) or {"told": []}
    try:
        digest = writing.file_digest(folder / CARD)
        if digest in kept["told"]:
            return False
        writing.make_folder(file.parent)
        writing.write_json(file, {"told": [*kept["told"], digest]}, sync=False)
    except OSError:
        return True  # told again next time
    return True
