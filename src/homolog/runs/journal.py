"""``events.jsonl``: one event per line, appended whole, readable while it grows."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from homolog.events import Event, from_json, to_json

# Fields whose numbers may be missing (a metric that could not be measured).
_NUMBERS = ("losses", "monitors", "metrics")


class Journal:
    """The events of a run, over all its sessions.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._path.stat().st_size if self._path.exists() else 0

    def append(self, event: Event, *, sync: bool = False) -> None:
        """Write one event as one line.

        Args:
            event: What happened.
            sync: Wait until it is on the disk.
        """
        line = json.dumps(_finite(to_json(event)), allow_nan=False) + "\n"
        if self._ends_torn():  # a killed session's half line ends here
            line = "\n" + line
        with self._path.open("ab") as file:
            file.write(line.encode())
            file.flush()
            if sync:
                os.fsync(file.fileno())

    def read(
        self, start: int = 0, wanted: Callable[[bytes], bool] | None = None
    ) -> Iterator[tuple[int, Event]]:
        """Whole lines from a byte offset: (offset after it, event).

        A last line without its end is left for later; lines that are no event (torn by
        a kill, written by a newer version) are passed over.

        Args:
            start: Offset of the first byte.
            wanted: Asked with each raw line; those it does not want are not parsed,
                which makes hours of steps quick to pass.
        """
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(start)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                start += len(line)
                if wanted is not None and not wanted(line):
                    continue
                event = _parsed(line)
                if event is not None:
                    yield start, event

    def last(self) -> Event | None:
        """The newest event, read from the end."""
        size, reach = self.size, 1 << 14
        while True:
            begin = max(0, size - reach)
            found = [event for _, event in self.read(begin)]
            if found:
                return found[-1]
            if begin == 0:
                return None
            reach *= 8

    def _ends_torn(self) -> bool:
        if not self.size:
            return False
        with self._path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"


def _parsed(line: bytes) -> Event | None:
    try:
        data: dict[str, Any] = json.loads(line)
        for name in _NUMBERS:
            if isinstance(data.get(name), dict):
                data[name] = {
                    k: math.nan if v is None else v for k, v in data[name].items()
                }
        return from_json(data)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None


def _finite(value: Any) -> Any:
    """NaN and infinity become null: the file stays JSON for every reader."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value
