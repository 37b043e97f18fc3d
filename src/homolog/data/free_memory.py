"""Whether an array fits into the memory that is free, asked before it is made."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from homolog.data.problems import Unsound

_TOLD = Path("/proc/meminfo")
_LIMIT = Path("/sys/fs/cgroup/memory.max")
_USED = Path("/sys/fs/cgroup/memory.current")
_KINDS = Path("/sys/fs/cgroup/memory.stat")
# Below this nothing is asked.
_SMALL = 1 << 26


def free_bytes() -> int:
    """Memory that is free, or all there is where only that is known; 0 if unknown."""
    free = 0
    with contextlib.suppress(AttributeError, ValueError, OSError):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in _TOLD.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    with contextlib.suppress(OSError, ValueError):  # "max" where there is none
        limit = int(_LIMIT.read_text(encoding="ascii"))
        used = int(_USED.read_text(encoding="ascii")) - _cached()
        free = min(free, max(0, limit - used))
    return free


def _cached() -> int:
    """What a container holds of files, and gives up when asked."""
    lines = _KINDS.read_text(encoding="ascii").splitlines()
    told = dict(line.split()[:2] for line in lines if " " in line)
    return int(told.get("active_file", 0)) + int(told.get("inactive_file", 0))


def check_room(nbytes: int, path: Path) -> None:
    """Refuse an array that the free memory cannot hold.

    Raises:
        Unsound: ``too_large``.
    """
    if nbytes <= _SMALL:
        return
    free = free_bytes()
    if free and nbytes > free:
        text = f"its voxels need {nbytes / 1e9:.3g} GB of memory, {free / 1e9:.3g} GB "
        raise Unsound("too_large", f"{text}are free.", path)
