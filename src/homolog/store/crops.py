"""Where to cut, and the cut itself: boxes of stored arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from homolog.geometry.affine import Index
from homolog.store.card import Card, box_name
from homolog.store.store import Store

# Boxes of findings are a label map that is never written: drawn where it is read.
# Value outside all boxes; far above the values of label maps, which it never meets.
BOXES = 1 << 14


class BoxMap:
    """A label map (D, H, W) int16 of boxes.

    ``BOXES`` outside, ``BOXES`` + 1 + k inside a box of the k-th name; where boxes
    overlap the smaller one counts. A voxel is inside where its centre is; a box between
    centres still has one voxel along each axis. Boxes of other names are left out.

    Args:
        boxes: As on a card: ``label``, ``min`` and ``max`` in voxel edges.
        names: Upper and lower case do not matter.
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


class Sliceable(Protocol):
    """A numpy array, or a stored one that reads what is indexed."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of each axis."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        ...

    def __getitem__(self, key: Any, /) -> Any:
        """Part of the array."""
        ...


def read_box(
    array: Sliceable, start: Sequence[int], size: Sequence[int], fill: int
) -> NDArray[Any]:
    """A box of an array; it may reach over the border or lie outside altogether.

    Only the chunks the box touches are read.

    Args:
        array: (C, D, H, W) or (D, H, W).
        start: First voxel (z, y, x), may be negative.
        size: Voxels (d, h, w).
        fill: Value outside the array.

    Returns:
        (C, d, h, w) or (d, h, w), writable, of the array's type.
    """
    bounds = array.shape[-3:]
    first = [min(max(0, s), n) for s, n in zip(start, bounds, strict=True)]
    stop = [
        min(max(0, s + length), n)
        for s, length, n in zip(start, size, bounds, strict=True)
    ]
    lead = tuple(array.shape[:-3])
    is_inside = all(b > a for a, b in zip(first, stop, strict=True))
    if is_inside:
        key = [slice(None) for _ in lead]
        key += [slice(a, b) for a, b in zip(first, stop, strict=True)]
        part = np.asarray(array[tuple(key)])
        if part.shape[-3:] == tuple(size):
            return part.copy() if part.base is not None else part
    box = np.full((*lead, *size), fill, dtype=array.dtype)
    if is_inside:
        into = [slice(None) for _ in lead]
        ends = zip(first, stop, start, strict=True)
        into += [slice(a - origin, b - origin) for a, b, origin in ends]
        box[tuple(into)] = part
    return box


def draw_place(
    store: Store, card: Card, rng: np.random.Generator, balance: float
) -> NDArray[np.float64]:
    """A voxel position to centre a crop on.

    With probability ``balance`` it lies on a label drawn evenly from those the case
    has, or in one of its boxes where it has no label map; else anywhere in its
    foreground box. The same numbers are drawn from ``rng`` either way, so that cases
    with and without labels stay in step.

    Args:
        store: Where the case lies.
        card: The case.
        rng: Counter-based generator of this sample.
        balance: Share of places on labels, 0..1.

    Returns:
        (3,) float64 voxel position (z, y, x), voxel centres at whole numbers.
    """
    chance, which, row = rng.random(3)
    inside = rng.random(3)
    if chance < balance and card.label_values:
        points = store.label_points(card.id)
        chosen = points[card.label_values[int(which * len(card.label_values))]]
        voxel = chosen[int(row * len(chosen))]
        return np.asarray(voxel + (inside - 0.5), dtype=np.float64)
    if chance < balance and card.boxes and not card.has_label:
        box = card.boxes[int(which * len(card.boxes))]
        low, high = (np.asarray(box[end], dtype=np.float64) for end in ("min", "max"))
        return np.asarray(low + inside * (high - low) - 0.5, dtype=np.float64)
    start, stop = (np.asarray(corner, dtype=np.float64) for corner in card.foreground)
    return np.asarray(start - 0.5 + inside * (stop - start), dtype=np.float64)
