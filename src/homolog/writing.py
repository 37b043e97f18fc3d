"""Files on disk: written whole or not at all, kept private, locked, swept, compared.

Everything that this package writes goes through here. A file is written beside its
place, brought to the disk, and only then given its name: a reader sees the old one or
the whole new one. The path comes first in every function.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
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
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from homolog.errors import JobError, UnusableInput
from homolog.words import as_csv

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Temporary names, and what processes that ended left under them.

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
    """This process, as temporary names spell it."""
    return f"{_host()}-{os.getpid()}"


def scratch_folder(inside: Path | None = None) -> Path:
    """A new folder for this user alone; whoever asks for it removes it.

    Those that processes left which ended without a last word are removed first: they
    may hold scans.

    Args:
        inside: Hidden in this folder, which is made; None: among the machine's
            temporary ones.

    Raises:
        OSError: It cannot be made.
    """
    if inside is None:
        sweep_once(Path(tempfile.gettempdir()))
        return Path(tempfile.mkdtemp(prefix=f"homolog-{token()}-", suffix=".part"))
    make_folder(inside)
    sweep_leftovers(inside)
    folder = beside(inside / "scratch")
    folder.mkdir(mode=0o700)
    return folder


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
            _replace(retired, folder / name)


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
    if os.name == "nt":  # asking by a signal would end it
        import psutil

        return bool(psutil.pid_exists(pid))
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


def settings_folder() -> Path:
    """Where a user's own settings lie: not scans, not models, a few small files.

    ``$HOMOLOG_CONFIG``, else ``homolog`` under ``$XDG_CONFIG_HOME``, ``%APPDATA%`` or
    ``~/.config``. It may not be there yet.
    """
    own = os.environ.get("HOMOLOG_CONFIG")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CONFIG_HOME") or os.environ.get("APPDATA")
    return Path(base or Path.home() / ".config") / "homolog"


def create(path: Path) -> None:
    """Make an empty file of our mode where there is none."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, file_mode()))


# Files and folders that are complete or not there.


def write_bytes(path: Path, content: bytes, *, sync: bool = True) -> None:
    """Create or replace a file.

    Args:
        path: In a folder that exists.
        content: All of it.
        sync: Wait until it is on the disk; without, a power cut may lose it.

    Raises:
        OSError: It cannot be written; the old one is as it was.
    """
    with replacing(path, sync=sync) as half:
        half.write_bytes(content)


def write_text(path: Path, text: str, *, sync: bool = True) -> None:
    """As ``write_bytes``, in UTF-8; line ends stay as they are."""
    write_bytes(path, text.encode(), sync=sync)


def write_json(
    path: Path,
    contents: Any,
    *,
    indent: int | None = 1,
    end: str = "\n",
    sync: bool = True,
) -> None:
    """As ``write_text``, of JSON types.

    Args:
        path: In a folder that exists.
        contents: What to write.
        indent: Spaces by level; None: all on one line.
        end: What follows the last bracket.
        sync: As in ``write_bytes``.
    """
    write_text(path, json.dumps(contents, indent=indent) + end, sync=sync)


def write_table(
    path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]
) -> None:
    """As ``write_text``, of a CSV table; further values of a row are left out.

    Args:
        path: In a folder that exists.
        columns: In this order.
        rows: Column -> value; None, and what is missing, leaves its cell empty.
    """
    lines = ([row.get(column) for column in columns] for row in rows)
    write_text(path, as_csv(columns, lines))


def write_npy(path: Path, array: NDArray[Any]) -> bytes:
    """As ``write_bytes``, of an array in NumPy's format; returns what was written."""
    import numpy as np  # what only writes text does not wait for it

    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    write_bytes(path, content.getvalue())
    return content.getvalue()


def write_once(path: Path, text: str) -> None:
    """Write a file for its owner alone, where there is none.

    Of several processes that do so at once one is the first, and its file holds.
    """
    half = beside(path)
    handle = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode())
            flush(file)
        try:
            os.link(half, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            if not path.exists():
                _replace(half, path)
    finally:
        half.unlink(missing_ok=True)


def write_safely(
    path: Path, write: Callable[[Path], None], verify: Callable[[Path], bool]
) -> None:
    """Create or replace a file that some writer makes, once it reads back.

    Args:
        path: Where the file belongs; its folder is made. Its suffix is kept by the
            temporary name, since writers choose the format by it.
        write: Writes the whole file at the path it is given.
        verify: Reads it back; False means that it did not arrive whole.

    Raises:
        JobError: The file read back differs (a full disk, a failing one).
        OSError: The folder cannot be written; the old file is as it was.
    """
    make_folder(path.parent)
    sweep_once(path.parent)
    with replacing(path, suffix_last=True) as half:
        write(half)
        if not verify(half):
            raise JobError(f"{path}: what was written does not read back; disk full?")
    with contextlib.suppress(OSError):  # not every file system syncs folders
        _sync(path.parent)


@contextlib.contextmanager
def replacing(
    path: Path, *, suffix_last: bool = False, sync: bool = True
) -> Iterator[Path]:
    """An empty file beside ``path`` that takes its place when the block ends well.

    Args:
        path: Created or replaced; after an error it is as it was.
        suffix_last: Of the temporary name, as in ``beside``.
        sync: As in ``write_bytes``.
    """
    half = beside(path, suffix_last=suffix_last)
    try:
        create(half)
        yield half
        put_in_place(half, path, sync=sync)
    finally:
        half.unlink(missing_ok=True)


def put_in_place(fresh: Path, place: Path, *, sync: bool = True) -> None:
    """Move what is complete to its name on the same disk; a file there is replaced."""
    if not fresh.is_dir():
        make_private(fresh, place)
        if sync:
            _sync(fresh)
    _replace(fresh, place)


# Windows renames nothing that is open, mapped, or just being looked at by a scanner.
_PATIENCE_S, _AGAIN_S = 3.0, 0.05


def _replace(fresh: Path, place: Path) -> None:
    """As ``os.replace``; on Windows it waits a little for whoever holds either.

    Raises:
        PermissionError: Somebody still does; names the place.
        OSError: As ``os.replace``.
    """
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            os.replace(fresh, place)
        except PermissionError as error:
            if os.name != "nt":
                raise
            if time.monotonic() > until:
                raise PermissionError(
                    error.errno,
                    "another program, or this one, holds it open; close it and try "
                    "again",
                    str(place),
                ) from error
            time.sleep(_AGAIN_S)
        else:
            return


def move_to(source: Path, place: Path) -> None:
    """Move a file or folder, to another disk too: it goes here when it is whole there.

    Raises:
        OSError: It could not be moved; nothing was lost.
    """
    make_folder(place.parent)
    shutil.move(source, place)


def share(file: Path, place: Path) -> None:
    """Give a file that never changes a second name: a hard link, or else a copy.

    Args:
        file: That is replaced, never written into.
        place: Not there yet.
    """
    try:
        os.link(file, place)
    except OSError:  # another disk, or one without links
        shutil.copyfile(file, place)


@contextlib.contextmanager
def writing_folder(place: Path) -> Iterator[Path]:
    """An empty folder beside ``place`` that takes its place when the block ends well.

    On an error it vanishes and ``place`` is as it was. Everything in it is brought to
    the disk first. One process at a time writes a place; between two renames an old
    folder is missing (see ``restore_retired``), never half there.
    """
    make_folder(place.parent)
    sweep_once(place.parent)
    retired = place.parent / f".{place.name}.old"
    if retired.exists() and not place.exists():  # killed between two renames
        _replace(retired, place)
    former = place.parent / f".{place.name}.new"  # of an earlier version, killed
    for leftover in (retired, former):
        shutil.rmtree(leftover, ignore_errors=True)
    scratch = beside(place)
    make_folder(scratch)
    try:
        yield scratch
        for file in scratch.iterdir():
            _sync(file)
        _sync(scratch)
        if place.exists():
            _replace(place, retired)
        _replace(scratch, place)
        _sync(place.parent)
    except BaseException:
        if retired.exists() and not place.exists():
            _replace(retired, place)
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    shutil.rmtree(retired, ignore_errors=True)


def flush(file: Any) -> None:
    """Bring an open file's bytes to the disk."""
    file.flush()
    os.fsync(file.fileno())


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows cannot sync a folder
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# Names that are free, and digests that tell whether a file is the same.


_DEVICES = frozenset(
    {"con", "prn", "aux", "nul", "conin$", "conout$"}
    | {f"{port}{n}" for port in ("com", "lpt") for n in "0123456789\u00b9\u00b2\u00b3"}
)


def is_reserved(name: str) -> bool:
    """Whether Windows keeps a name for itself: ``con``, ``NUL.nii.gz``, ``lpt1``.

    Also what it would not keep as it is: a dot or blank at the end.
    """
    stem = name.partition(".")[0].rstrip(" ").lower()
    return stem in _DEVICES or name != name.rstrip(". ")


def as_one_file(path: Path) -> str:
    """What all spellings of a path have in common that name the same file here.

    Disks of Windows and of Macs, as they are sold, take ``A.nii`` for ``a.nii``.
    """
    return str(path).lower() if sys.platform in ("win32", "darwin") else str(path)


def free_name(wanted: str, is_taken: Callable[[str], bool]) -> str:
    """The name, or ``NAME_v2``, ``NAME_v3`` ...: nothing is ever overwritten.

    Names that Windows reserves count as taken on every system: folders are copied.
    """
    name, number = wanted, 1
    while is_taken(name) or is_reserved(name):
        number += 1
        name = f"{wanted}_v{number}"
    return name


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in and below a folder; links count as themselves."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            if not path.is_dir() or path.is_symlink():
                total += path.lstat().st_size
    return total


def crc_text(content: bytes) -> str:
    """CRC-32 as eight hexadecimal digits."""
    return f"{zlib.crc32(content):08x}"


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
