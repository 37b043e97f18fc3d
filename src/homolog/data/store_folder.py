"""What may lie in a store's folder, and what is swept out of it."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from homolog.data.store import read_contents
from homolog.errors import UnusableInput

if TYPE_CHECKING:
    from homolog.data.case_source import CaseSource


def check_folder(out: Path) -> None:
    """Refuse to write into a folder that holds something else.

    Raises:
        UnusableInput: It is a file, or a folder with other things and no store.
    """
    if out.exists() and not out.is_dir():
        raise UnusableInput(f"the store must be a folder, {out} is a file.")
    if not out.is_dir() or read_contents(out) is not None or (out / "cases").is_dir():
        return
    if any(out.iterdir()):
        raise UnusableInput(
            f"{out} holds other files and no store; choose a new or an empty folder."
        )


def check_ids(cases: Sequence[CaseSource]) -> None:
    """Refuse ids that are no folder names, or that two cases share."""
    for case_id, count in Counter(case.id for case in cases).items():
        _check_id(case_id)
        if count > 1:
            raise UnusableInput(f"{count} cases are called {case_id!r}.")


def _check_id(case_id: str) -> None:
    """Refuse an id that is no plain folder name."""
    if not case_id or case_id.startswith(".") or Path(case_id).name != case_id:
        raise UnusableInput(
            "a case id must be a plain file name without a leading dot, "
            f"got {case_id!r}."
        )


def sweep(store: Path, keep: Sequence[str]) -> int:
    """Remove leftovers of killed runs and cases that are no longer asked for.

    Returns:
        Number of cases removed.
    """
    removed = 0
    wanted = set(keep)
    for folder in (store / "cases").iterdir():
        is_leftover = folder.name.startswith((".new-", ".old-"))
        is_case = folder.name not in wanted and (folder / "card.json").is_file()
        if is_leftover or is_case:
            shutil.rmtree(folder, ignore_errors=True)
            removed += not is_leftover
    return removed
