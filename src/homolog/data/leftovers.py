"""Names of files that are being written, and the sweeping of those that never were.

Whatever is written beside its place is called ``.NAME.HOST-PID-N.part``, so that a
later process sees whether the one that began it still lives.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import platform
import re
import shutil
import tempfile
import time
from functools import cache
from pathlib import Path

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
