"""What may lie in a store's folder, who may write into it, and what is swept out."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from homolog.data.file_lock import FileLock, is_locked, knows_no_locks
from homolog.data.leftovers import sweep_leftovers
from homolog.data.store import (
    LOCK,
    case_folder,
    is_plain_name,
    read_card,
    read_contents,
)
from homolog.errors import UnusableInput
from homolog.private_files import make_folder

if TYPE_CHECKING:
    from homolog.data.case_source import CaseSource


def check_folder(out: Path) -> None:
    """Refuse to write into a folder that holds something else, or that is in use.

    Raises:
        UnusableInput: It is a file, a folder with other things and no store, or another
            process is writing into it.
    """
    if out.exists() and not out.is_dir():
        raise UnusableInput(f"the store must be a folder, {out} is a file.")
    if not out.is_dir():
        return
    if is_locked(out / LOCK):
        raise _in_use(out)
    if (out / "store.json").is_file() or (out / "cases").is_dir():
        return
    if any(path.name != LOCK for path in out.iterdir()):
        raise UnusableInput(
            f"{out} holds other files and no store; choose a new or an empty folder."
        )


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """The right to write into a store; one process has it at a time.

    What a killed writer left half done is swept out first.

    Raises:
        UnusableInput: Another living process is writing into it.
    """
    _check_links(out)
    make_folder(out / "cases")
    lock = FileLock(out / LOCK, signed=True)
    try:
        if not lock.acquire():
            raise _in_use(out)
    except OSError as error:
        if not knows_no_locks(error):
            raise
    try:
        tidy(out)
        yield
    finally:
        lock.release()


def _check_links(out: Path) -> None:
    """Refuse to write into, and to sweep, folders that are not the store's own.

    Raises:
        UnusableInput: One of its folders is a link.
    """
    cases = out / "cases"
    inside = list(cases.iterdir()) if cases.is_dir() else []
    for folder in (cases, out / "pairs", *inside):
        if folder.is_symlink():
            raise UnusableInput(
                f"{folder} is a link to {folder.resolve()}; a store is only written "
                "where its folders are its own. Remove the link, or choose another "
                "--out."
            )


def _in_use(out: Path) -> UnusableInput:
    holder = FileLock(out / LOCK).holder()
    return UnusableInput(
        f"another process{f' ({holder})' if holder else ''} is writing into the store "
        f"{out}; wait until it has ended, or write into another one."
    )


def tidy(store: Path) -> None:
    """Sweep out what killed writers left; the caller holds the store's lock.

    A case that was moved aside and never replaced gets its place back.
    """
    for folder in list((store / "cases").iterdir()):
        if folder.name.startswith(".old-"):
            place = folder.with_name(folder.name.removeprefix(".old-"))
            if not place.exists() and read_card(folder) is not None:
                folder.rename(place)
        if folder.name.startswith((".new-", ".old-")):
            shutil.rmtree(folder, ignore_errors=True)
        elif folder.is_dir():
            sweep_leftovers(folder)
    for folder in (store, store / "pairs"):
        sweep_leftovers(folder)


def check_ids(cases: Sequence[CaseSource]) -> None:
    """Refuse ids that are no folder names, or that two cases share."""
    for case_id, count in Counter(case.id for case in cases).items():
        if not is_plain_name(case_id):
            raise UnusableInput(
                "a case id must be a plain file name without a leading dot, "
                f"got {case_id!r}."
            )
        if count > 1:
            raise UnusableInput(f"{count} cases are called {case_id!r}.")


def unlisted(store: Path) -> list[str]:
    """Cases on disk that ``store.json`` does not list: of an unfinished preparation."""
    listed = (read_contents(store) or {}).get("cases", {})
    return sorted(
        folder.name
        for folder in (store / "cases").iterdir()
        if is_plain_name(folder.name)
        and folder.name not in listed
        and (folder / "card.json").is_file()
    )


def remove(store: Path, ids: Iterable[str]) -> None:
    """Take cases out of a store's folder."""
    for case_id in ids:
        shutil.rmtree(case_folder(store, case_id), ignore_errors=True)
