"""Features as colours: their three main directions as red, green and blue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Cells looked at per scan when the directions are found, evenly spread.
_CELLS_PER_SCAN = 20_000


@dataclass(frozen=True, eq=False)
class Colours:
    """Directions and ranges that turn a feature into a colour.

    Attributes:
        mean: (E,).
        directions: (3, E), orthonormal, by falling variance.
        low: (3,) coordinates that become 0.
        high: (3,) coordinates that become 1.
        explained: (3,) share of the variance along each direction.
    """

    mean: NDArray[np.float32]
    directions: NDArray[np.float32]
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    explained: NDArray[np.float32]

    def paint(self, cells: NDArray[np.floating]) -> NDArray[np.float32]:
        """Features (E, d, h, w) -> colours (3, d, h, w) in 0..1."""
        size = cells.shape[0]
        result = np.empty((3, *cells.shape[1:]), np.float32)
        for z in range(cells.shape[1]):  # slab by slab: the cells may lie on disk
            flat = np.asarray(cells[:, z], np.float32).reshape(size, -1)
            place = self.directions @ (flat - self.mean[:, None])
            span = np.maximum(self.high - self.low, 1e-12)
            colour = (place - self.low[:, None]) / span[:, None]
            result[:, z] = np.clip(colour, 0, 1).reshape(3, *cells.shape[2:])
        return result


def fit_colours(
    scans: Sequence[NDArray[np.floating]],
    bodies: Sequence[NDArray[np.bool_] | None] | None = None,
) -> Colours:
    """The three main directions of the features of one or several scans together.

    Fitted together, one colour means one feature in all of them. The sign of each
    direction is fixed by its largest entry being positive, so that pictures repeat.

    Args:
        scans: (E, d, h, w) each.
        bodies: Cells (d, h, w) to look at, per scan; None looks at all of them. Where
            fewer than 50 cells are body, all are looked at.
    """
    from sklearn.decomposition import PCA  # slow to load

    sample = np.concatenate(
        [
            _spread(cells, None if bodies is None else bodies[i])
            for i, cells in enumerate(scans)
        ]
    ).astype(np.float64)
    if len(sample) == 1:
        sample = np.repeat(sample, 2, axis=0)
    mean = sample.mean(axis=0)
    centred = sample - mean
    count = min(3, *sample.shape)
    with np.errstate(invalid="ignore"):  # features that are the same everywhere
        found = PCA(count, svd_solver="covariance_eigh").fit(centred)
    directions = np.zeros((3, sample.shape[1]))
    directions[:count] = found.components_
    largest = np.abs(directions).argmax(axis=1)
    directions *= np.where(directions[range(3), largest] < 0, -1, 1)[:, None]
    low, high = np.percentile(centred @ directions.T, (1, 99), axis=0)
    explained = np.zeros(3)
    explained[:count] = np.nan_to_num(found.explained_variance_ratio_)
    numbers = (mean, directions, low, high, explained)
    return Colours(*(n.astype(np.float32) for n in numbers))


def _spread(
    cells: NDArray[np.floating], body: NDArray[np.bool_] | None
) -> NDArray[np.float32]:
    """Evenly spread features (n, E)."""
    places = np.arange(int(np.prod(cells.shape[1:])))
    if body is not None and body.sum() >= 50:
        places = np.flatnonzero(body)
    places = places[:: max(1, len(places) // _CELLS_PER_SCAN)]
    index = np.unravel_index(places, cells.shape[1:])
    return np.asarray(np.moveaxis(cells, 0, -1)[index], np.float32)
