"""Main memory: what there is, what is free, and a bound on what a network may take."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from homolog.errors import UnusableInput
from homolog.words import human_bytes

_LIMIT = Path("/sys/fs/cgroup/memory.max")
_USED = Path("/sys/fs/cgroup/memory.current")
_KINDS = Path("/sys/fs/cgroup/memory.stat")


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
        left = max(0, limit - int(_USED.read_text()) + _cached())
        return min(free, left), min(total, limit) if total else limit
    return free, total


def _cached() -> int:
    """What a container holds of files, and gives up when memory is asked for."""
    with contextlib.suppress(OSError, ValueError):
        told = dict(line.split() for line in _KINDS.read_text().splitlines())
        return int(told.get("active_file", 0)) + int(told.get("inactive_file", 0))
    return 0


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


@contextlib.contextmanager
def bounded(what: str) -> Iterator[None]:
    """Refuse to build a network whose tensors do not fit into this machine's memory.

    Torch asks for memory tensor by tensor, and Linux grants what it does not have: a
    mistyped size first fills the memory and then has the process killed. Here every
    tensor is counted before it is made.

    Args:
        what: Is built, for the sentence.

    Raises:
        UnusableInput: More is asked for than there is.
    """
    from torch.overrides import TorchFunctionMode

    _, total = available_memory()
    if not total:
        yield
        return

    class Counting(TorchFunctionMode):
        taken = 0

        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}
            if getattr(func, "__name__", "") in _MAKERS:
                self.taken += _bytes_asked(args, kwargs)
                if self.taken > total:
                    raise UnusableInput(
                        f"{what} needs more than {human_bytes(self.taken)} for its "
                        f"weights alone, this machine has {human_bytes(total)} of "
                        "memory: smaller settings are needed."
                    )
            return func(*args, **kwargs)

    with Counting():
        yield


# What makes tensors of a size that is given; those of values are as large as these.
_MAKERS = frozenset({"empty", "zeros", "ones", "full", "rand", "randn", "eye"})


def _bytes_asked(args: Any, kwargs: Any) -> int:
    """Bytes of the tensor that a call makes; 0 where that cannot be told."""
    size = kwargs.get("size", args)
    if len(args) > 0 and isinstance(args[0], list | tuple):
        size = args[0]
    width = getattr(kwargs.get("dtype"), "itemsize", 4)
    sides = [n for n in size if isinstance(n, int) and not isinstance(n, bool)]
    return math.prod(sides) * width if sides else 0
