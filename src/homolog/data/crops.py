"""Where to cut, and the cut itself: boxes of stored arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from homolog.data.card import Card
from homolog.data.store import Store


class Sliceable(Protocol):
    """A numpy array, or a stored one that reads what is asked."""

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
    has, else anywhere in its foreground box. The same numbers are drawn from ``rng``
    either way, so that cases with and without labels stay in step.

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
    start, stop = (np.asarray(corner, dtype=np.float64) for corner in card.foreground)
    return np.asarray(start - 0.5 + inside * (stop - start), dtype=np.float64)
