"""Free and total main memory of this machine, or of the container it is."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
from pathlib import Path

_LIMIT = Path("/sys/fs/cgroup/memory.max")
_USED = Path("/sys/fs/cgroup/memory.current")


def available_memory() -> tuple[int, int]:
    """Bytes a program could still take, and bytes there are; (0, 0) if unknown."""
    if sys.platform == "win32":
        return _windows()
    total = 0
    with contextlib.suppress(AttributeError, ValueError, OSError):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = _macos() if sys.platform == "darwin" else _linux()
    return _within_container(free, total)


def _linux() -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 0


def _macos() -> int:
    """Free, inactive and speculative pages."""
    with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
        told = subprocess.run(
            ["vm_stat"], capture_output=True, text=True, timeout=5, check=True
        ).stdout
        pages = sum(
            int(line.rsplit(None, 1)[1].rstrip("."))
            for line in told.splitlines()
            if line.startswith(("Pages free", "Pages inactive", "Pages speculative"))
        )
        return pages * int(os.sysconf("SC_PAGE_SIZE"))
    return 0


def _within_container(free: int, total: int) -> tuple[int, int]:
    with contextlib.suppress(OSError, ValueError):
        limit = int(_LIMIT.read_text())  # "max" where there is none
        left = max(0, limit - int(_USED.read_text()))
        return min(free, left), min(total, limit) if total else limit
    return free, total


def _windows() -> tuple[int, int]:
    class Status(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            ("total", ctypes.c_ulonglong),
            ("free", ctypes.c_ulonglong),
            ("rest", ctypes.c_ulonglong * 5),
        )

    status = Status()
    status.length = ctypes.sizeof(Status)
    library = getattr(ctypes, "windll", None)
    if library is None or not library.kernel32.GlobalMemoryStatusEx(
        ctypes.byref(status)
    ):
        return 0, 0
    return int(status.free), int(status.total)
