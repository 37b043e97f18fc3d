"""Boxes of findings as a label map that is never written: drawn where it is read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.geometry.affine import Index

# Value outside all boxes; far above the values of label maps, which it never meets.
BOXES = 1 << 14


class BoxMap:
    """A label map (D, H, W) int16 of boxes.

    ``BOXES`` outside, ``BOXES`` + 1 + k inside a box of the k-th name; where boxes
    overlap the smaller one counts. A voxel is inside where its centre is; a box between
    centres still has one voxel along each axis. Boxes of other names are left out.

    Args:
        boxes: As on a card: ``label``, ``min`` and ``max`` in voxel edges.
        names: Upper and lower case say nothing.
        shape: Of the scan.
    """

    def __init__(
        self, boxes: Sequence[Mapping[str, Any]], names: Sequence[str], shape: Index
    ) -> None:
        self.shape: tuple[int, ...] = shape
        self.dtype = np.dtype(np.int16)
        number = {name.casefold(): k for k, name in enumerate(names)}
        found = []
        for box in boxes:
            value = number.get(box_name(box).casefold())
            if value is not None:
                found.append((*_voxels(box, shape), BOXES + 1 + value))
        self._boxes = sorted(
            found, key=lambda b: -math.prod(q - p for p, q in zip(*b[:2], strict=True))
        )

    def __getitem__(self, key: Any, /) -> NDArray[np.int16]:
        """A part, by one slice of step 1 per axis."""
        reach = [part.indices(n) for part, n in zip(key, self.shape, strict=True)]
        size = [max(0, stop - start) for start, stop, _ in reach]
        values = np.full(size, BOXES, np.int16)
        for first, last, value in self._boxes:
            values[
                tuple(
                    slice(max(0, a - start), max(0, b - start))
                    for a, b, (start, _, _) in zip(first, last, reach, strict=True)
                )
            ] = value
        return values


def box_name(box: Mapping[str, Any]) -> str:
    """What a box is called; ``box`` where nothing is said."""
    return str(box.get("label") or "box").strip()


def _voxels(box: Mapping[str, Any], shape: Index) -> tuple[list[int], list[int]]:
    """First voxel and one past the last."""
    first, last = [], []
    for low, high, count in zip(box["min"], box["max"], shape, strict=True):
        start, stop = math.ceil(low - 0.5), math.ceil(high - 0.5)
        if stop <= start:
            start = math.floor((low + high) / 2)
            stop = start + 1
        first.append(min(max(0, start), count))
        last.append(min(max(0, stop), count))
    return first, last
