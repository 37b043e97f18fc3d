"""Put a file in place only when it is complete: write aside, verify, sync, rename."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from homolog.data.leftovers import beside, sweep_once
from homolog.errors import JobError
from homolog.private_files import create, make_folder, make_private


def write_safely(
    path: Path, write: Callable[[Path], None], verify: Callable[[Path], bool]
) -> None:
    """Create or replace ``path``; after a failure the old file is as it was.

    Args:
        path: Where the file belongs. Its suffix is kept by the temporary name, since
            writers choose the format by it.
        write: Writes the whole file at the path it is given.
        verify: Reads it back; False means that it did not arrive whole.

    Raises:
        JobError: The file read back differs (a full disk, a failing one).
        OSError: The folder cannot be written.
    """
    make_folder(path.parent)
    sweep_once(path.parent)
    aside = beside(path, suffix_last=True)
    try:
        create(aside)
        write(aside)
        if not verify(aside):
            raise JobError(f"{path}: what was written does not read back; disk full?")
        make_private(aside, path)
        _sync(aside)
        os.replace(aside, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            aside.unlink()
    with contextlib.suppress(OSError):  # not every file system syncs folders
        _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
