"""Main memory: what there is, what is free, and a bound on what a network may take."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from homolog.errors import UnusableInput
from homolog.words import human_bytes

# A container's own limit (cgroup v2), which psutil does not read.
_LIMIT = Path("/sys/fs/cgroup/memory.max")
_USED = Path("/sys/fs/cgroup/memory.current")
_KINDS = Path("/sys/fs/cgroup/memory.stat")


def available_memory() -> tuple[int, int]:
    """Bytes a program could still take, and bytes there are; (0, 0) if unknown."""
    free = total = 0
    with contextlib.suppress(OSError, RuntimeError, ValueError, psutil.Error):
        memory = psutil.virtual_memory()
        free, total = int(memory.available), int(memory.total)
    with contextlib.suppress(OSError, ValueError):
        limit = int(_LIMIT.read_text())  # "max" where there is none
        left = max(0, limit - int(_USED.read_text()) + _cached())
        return min(free, left), min(total, limit) if total else limit
    return free, total


def _cached() -> int:
    """Bytes of files in a container's memory, given up when it runs short."""
    with contextlib.suppress(OSError, ValueError):
        kinds = dict(line.split() for line in _KINDS.read_text().splitlines())
        return int(kinds.get("active_file", 0)) + int(kinds.get("inactive_file", 0))
    return 0


def free_bytes() -> int:
    """Memory that is free, or all there is where only that is known; 0 if unknown."""
    free, total = available_memory()
    return free or total


def peak_bytes() -> int:
    """The most memory this process has held so far."""
    try:
        import resource  # psutil knows the peak on Windows alone
    except ImportError:
        return int(psutil.Process().memory_info().peak_wset)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024


@contextlib.contextmanager
def bounded(what: str) -> Iterator[None]:
    """Refuse to build a network whose tensors do not fit into this machine's memory.

    Torch takes memory tensor by tensor, and Linux grants what it does not have: a
    mistyped size first fills the memory and then has the process killed. Here every
    tensor is counted before it is made.

    Args:
        what: Is built, for the sentence.

    Raises:
        UnusableInput: It needs more than there is.
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
                self.taken += _bytes_of(args, kwargs)
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


def _bytes_of(args: Any, kwargs: Any) -> int:
    """Bytes of the tensor that a call makes; 0 where that is unknown."""
    size = kwargs.get("size", args)
    if len(args) > 0 and isinstance(args[0], list | tuple):
        size = args[0]
    width = getattr(kwargs.get("dtype"), "itemsize", 4)
    sides = [n for n in size if isinstance(n, int) and not isinstance(n, bool)]
    return math.prod(sides) * width if sides else 0
