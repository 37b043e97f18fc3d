"""A lock that the operating system frees when its holder dies."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import sys
import time
from pathlib import Path
from typing import IO

from homolog.private_files import create, make_folder

_WAIT_S = 1.0  # a reader that asks holds it for microseconds


class FileLock:
    """Held by one process (or object), for as long as it lives.

    Args:
        path: The lock file; made when missing, never removed.
        signed: Write into it who holds it.
    """

    def __init__(self, path: Path, *, signed: bool = False) -> None:
        self._path = path
        self._signed = signed
        self._file: IO[bytes] | None = None

    def acquire(self) -> bool:
        """Take it; False when another process (or object) has it.

        Raises:
            OSError: The file cannot be made, or its disk knows no locks.
        """
        make_folder(self._path.parent)
        create(self._path)
        file = self._path.open("ab")
        until = time.monotonic() + _WAIT_S
        try:
            while not _try_lock(file, shared=False):
                if time.monotonic() > until:
                    file.close()
                    return False
                time.sleep(0.02)
        except OSError:
            file.close()
            raise
        self._file = file
        if self._signed:
            with contextlib.suppress(OSError):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {platform.node()}".encode())
                file.flush()
        return True

    def release(self) -> None:
        """Give it back; nothing when it is not held."""
        if self._file is not None:
            self._file.close()  # closing unlocks
            self._file = None

    def holder(self) -> str:
        """Who signed it last, as ``process 12 on host``; empty where nobody did."""
        with contextlib.suppress(OSError, ValueError):
            return self._path.read_text(encoding="utf-8").strip()[:200]
        return ""


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock."""
    try:
        with path.open("rb" if os.name != "nt" else "r+b") as file:
            return not _try_lock(file, shared=True)
    except OSError:  # there is none, it is another user's, or no file: nothing to ask
        return False


def knows_no_locks(error: OSError) -> bool:
    """Whether an error means that the disk has no locks at all (some network ones)."""
    return error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


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
