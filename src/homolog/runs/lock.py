"""One worker per run: a lock the operating system frees when its holder dies."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import IO

from homolog.private_files import create, make_folder

_WAIT_S = 1.0  # a reader that asks holds it for microseconds


class RunLock:
    """Held by the process that works on a run, for as long as it lives.

    Args:
        path: The lock file; made when missing, never removed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None

    def acquire(self) -> bool:
        """Take it; False when another process (or object) has it."""
        make_folder(self._path.parent)
        create(self._path)
        file = self._path.open("ab")
        until = time.monotonic() + _WAIT_S
        while not _try_lock(file, shared=False):
            if time.monotonic() > until:
                file.close()
                return False
            time.sleep(0.02)
        self._file = file
        return True

    def release(self) -> None:
        """Give it back; nothing when it is not held."""
        if self._file is not None:
            self._file.close()  # closing unlocks
            self._file = None


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock."""
    try:
        with path.open("rb" if os.name != "nt" else "r+b") as file:
            return not _try_lock(file, shared=True)
    except FileNotFoundError:
        return False


if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: IO[bytes], *, shared: bool) -> bool:
        file.seek(0)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        if shared:
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)
        return True
else:
    import fcntl

    def _try_lock(file: IO[bytes], *, shared: bool) -> bool:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
