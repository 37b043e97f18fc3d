"""Files written whole or not at all, kept private, locked, and cleaned up after."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import platform
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import IO, Any

from homolog.errors import JobError, UnusableInput

# Of another machine, or of a process whose number lives on: gone after so long.
_OLD_S = 7 * 24 * 3600.0
# Names of earlier versions tell a process but no machine.
_RESTED_S = 3600.0
_OWN = re.compile(
    r"^(\.(.+\.)?|homolog-)(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-[0-9a-z_]+\.part(\..+)?$"
)
# Exact, for they may lie in a folder of the user's beside files of any name.
_FORMER = re.compile(
    r"^\.(run\.json|control|.+\.pca\.npy)\.(?P<a>\d+)\.new$"
    r"|^.+\.features\.npy\.(?P<b>\d+)\.part$|^\.depth\.(?P<c>\d+)\.b2nd$"
    r"|^\.[0-9a-f]{8}\.part\..+$|^table\.npy\.part$"
    r"|^\.(card|store|rejected|depth|pairs|model|state)\.json\.new$"
    r"|^\.(metrics\.csv|step_\d{8}\.png)\.new$|^\.(step_\d{8}|best|model)\.(new|old)$"
    r"|^\.align-[a-z0-9_]{8}$|^\.homolog-part-[a-z0-9_]{8}$"
)
_numbers = itertools.count()


def beside(path: Path, *, suffix_last: bool = False) -> Path:
    """A temporary name in the same folder, for what becomes ``path``.

    Args:
        path: Where the file or folder belongs.
        suffix_last: Let it end as the path does, for writers that go by that.
    """
    mark = f"{token()}-{next(_numbers)}.part"
    return path.with_name(
        f".{mark}.{path.name}" if suffix_last else f".{path.name}.{mark}"
    )


def token() -> str:
    """This process, as temporary names tell it."""
    return f"{_host()}-{os.getpid()}"


def scratch_folder() -> Path:
    """A new folder of this user's among the machine's temporary ones.

    Those that processes left which ended without a last word are removed first: they
    may hold scans.
    """
    sweep_once(Path(tempfile.gettempdir()))
    return Path(tempfile.mkdtemp(prefix=f"homolog-{token()}-", suffix=".part"))


@cache
def sweep_once(folder: Path) -> None:
    """``sweep_leftovers``, the first time that this process is about to write there."""
    sweep_leftovers(folder)


def sweep_leftovers(folder: Path) -> int:
    """Remove what processes that ended left half written in a folder; not below it.

    Only names that this package gives are touched. Those of a living process stay, and
    those that do not tell a dead one of this machine stay for a week.

    Returns:
        How many were removed.
    """
    removed = 0
    try:
        names = list(folder.iterdir())
    except OSError:
        return 0
    for path in names:
        if _is_stale(path):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            removed += 1
    return removed


def restore_retired(folder: Path) -> None:
    """Give what was moved aside its place back, where nothing came into that place.

    ``best`` becomes ``.best.old`` for the moment in which a new one takes its place.
    """
    for name in ("best", "model"):
        retired = folder / f".{name}.old"
        if retired.is_dir() and not (folder / name).exists():
            retired.rename(folder / name)


def _is_stale(path: Path) -> bool:
    own = _OWN.match(path.name)
    former = None if own else _FORMER.match(path.name)
    if own is None and former is None:
        return False
    try:
        rested_s = time.time() - path.lstat().st_mtime
    except OSError:
        return False
    if own is not None:
        known = own["pid"] if own["host"] == _host() else ""
    else:
        named = former["a"] or former["b"] or former["c"] if former else ""
        known = named if rested_s > _RESTED_S else ""
    return rested_s > _OLD_S or bool(known and not _lives(int(known)))


def _lives(pid: int) -> bool:
    if os.name == "nt":  # asking would end it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


@cache
def _host() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


# Files that may tell of patients are for their owner alone.
#
# The command line and worker processes set their umask: whatever they write, libraries
# included, is 0600 in folders of 0700. The window shares its process with napari, whose
# umask is not ours to change: what is written there names its modes. Folders and files
# that exist keep theirs. ``HOMOLOG_UMASK=007`` shares with a group (in folders of that
# group, setgid ones for instance), ``022`` with everybody.


_VARIABLE = "HOMOLOG_UMASK"
_PRIVATE = 0o077


def wanted_umask() -> int:
    """What others may not do with what we write.

    Raises:
        UnusableInput: ``HOMOLOG_UMASK`` is no umask.
    """
    told = os.environ.get(_VARIABLE, "").strip()
    if not told:
        return _PRIVATE
    try:
        mask = int(told, 8)
    except ValueError:
        mask = -1
    if not 0 <= mask <= _PRIVATE:
        raise UnusableInput(
            f"{_VARIABLE} must be an octal number from 000 to 077, as 007 to share "
            f"with your group, got {told!r}."
        )
    return mask


def keep_private() -> None:
    """Set this process' umask; a stricter one stays where no other is asked for."""
    mask = wanted_umask()
    before = os.umask(mask)
    if _VARIABLE not in os.environ:
        os.umask(before | mask)


def file_mode() -> int:
    """Mode of a file that is new."""
    return 0o666 & ~wanted_umask()


def make_folder(path: Path) -> None:
    """Make a folder and those above it that are missing; what is there keeps its mode.

    Raises:
        FileExistsError: It is a file.
        OSError: It cannot be made.
    """
    missing = []
    for folder in (path, *path.parents):
        if folder.is_dir():
            break
        missing.append(folder)
    for folder in reversed(missing):
        folder.mkdir(mode=0o777 & ~wanted_umask(), exist_ok=True)


def make_private(fresh: Path, place: Path) -> None:
    """Give a new file, not yet in its place, the mode it is to have.

    Args:
        fresh: The file; becomes as private as the file it is to replace, or as ours
            are where there is none.
        place: Where it goes.
    """
    with contextlib.suppress(OSError):  # file systems without modes
        try:
            mode = stat.S_IMODE(place.stat().st_mode)
        except FileNotFoundError:
            mode = file_mode()
        fresh.chmod(mode)


def create(path: Path) -> None:
    """Make an empty file of our mode where there is none."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, file_mode()))


# Files that are complete or not there: written beside their place, flushed, moved.


def write_json(contents: Any, path: Path) -> None:
    """Write JSON beside its place, then move it there."""
    half = beside(path)
    try:
        create(half)
        with half.open("w", encoding="utf-8") as file:
            json.dump(contents, file, indent=1)
            flush(file)
        make_private(half, path)
        os.replace(half, path)
    finally:
        half.unlink(missing_ok=True)


def flush(file: Any) -> None:
    """Bring an open file's bytes to the disk."""
    file.flush()
    os.fsync(file.fileno())


# A lock that the operating system frees when its holder dies.


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


# Put a file in place only when it is complete: write aside, verify, sync, rename.


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
