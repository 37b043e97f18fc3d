"""From what was said for a model to its path; its licence is told before it is used."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import click

from homolog.errors import UnusableInput
from homolog.words import visible


def meant(said: Any) -> Any:
    """The path, or the paths, of what was said: a path itself, or a model's name.

    Raises:
        UnusableInput: There is neither; says which names are known.
    """
    from homolog.model_files.library import located

    if isinstance(said, list | tuple):
        return [meant(one) for one in said]
    path = located(str(said))
    tell_licence(path)
    return str(said) if path == Path(str(said)) else str(path)


def whole_model(said: str) -> str:
    """As ``meant``, absolute, for a run that may be worked on elsewhere."""
    from homolog.model_files.library import whole_path

    path = whole_path(said)
    tell_licence(Path(path))
    return path


def tell_licence(path: Path) -> None:
    """Say under which licence a model may be used, the first time that it is.

    One's own runs are left out: their weights are one's own.
    """
    from homolog.model_files.card import CARD, read_card
    from homolog.model_files.facts import licence_words
    from homolog.model_files.library import first_use

    folder = path if path.is_dir() else path.parent
    if not (folder / CARD).is_file() or (folder.parent / "run.json").is_file():
        return
    with contextlib.suppress(UnusableInput):  # whoever opens it tells more
        words = licence_words(read_card(folder, usable=False))
        if first_use(folder):
            click.echo(visible(f"{path.name}: licence: {words}"), err=True)
