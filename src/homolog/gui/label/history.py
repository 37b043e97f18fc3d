"""Predictions of the last rounds, packed: undo, and the one before. No Qt."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVELS = 10


@dataclass(frozen=True)
class Packed:
    """One scan's labels, a hundredth of their size.

    Attributes:
        shape: Of the array.
        data: Compressed bytes of its uint8 values.
    """

    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def of(cls, labels: NDArray[np.uint8]) -> Packed:
        """Tens of milliseconds, so on a thread."""
        return cls(labels.shape, zlib.compress(np.ascontiguousarray(labels).data, 1))

    def into(self, target: NDArray[np.uint8]) -> None:
        """Write the labels into an array; on a thread.

        Raises:
            ValueError: The array has another shape by now.
        """
        if target.shape != self.shape:
            raise ValueError(f"expected the shape {self.shape}, got {target.shape}.")
        flat = np.frombuffer(zlib.decompress(self.data), np.uint8)
        np.copyto(target, flat.reshape(self.shape))


class History:
    """What was predicted, round by round; a round is every scan's labels by its key."""

    def __init__(self) -> None:
        self._past: deque[dict[str, Packed]] = deque(maxlen=LEVELS)
        self._now: dict[str, Packed] = {}

    @property
    def levels(self) -> int:
        """How many rounds can be undone."""
        return len(self._past)

    def push(self, found: Mapping[str, Packed]) -> None:
        """A new round; scans that took no part keep what they show."""
        if self._now:
            self._past.append(self._now)
        self._now = {**self._now, **found}

    def now(self) -> dict[str, Packed]:
        """What is shown."""
        return dict(self._now)

    def before(self) -> dict[str, Packed]:
        """What was shown before it; empty where there was nothing."""
        return dict(self._past[-1]) if self._past else {}

    def undo(self) -> dict[str, Packed]:
        """Back to the round before; empty where there is none."""
        if not self._past:
            return {}
        self._now = self._past.pop()
        return dict(self._now)

    def forget(self, key: str) -> None:
        """A scan was closed."""
        for found in (*self._past, self._now):
            found.pop(key, None)
