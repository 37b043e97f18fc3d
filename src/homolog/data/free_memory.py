"""Whether an array fits into the memory that is free, asked before it is made."""

from __future__ import annotations

from pathlib import Path

from homolog.data.problems import Unsound
from homolog.memory import available_memory

# Below this nothing is asked.
_SMALL = 1 << 26


def free_bytes() -> int:
    """Memory that is free, or all there is where only that is known; 0 if unknown."""
    free, total = available_memory()
    return free or total


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
