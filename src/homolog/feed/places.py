"""Places that come up again: what a search in the training scans makes a feed show."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from homolog.geometry.affine import Array
from homolog.views.random import generator


class Places:
    """Places that a share of the samples is cut at, whichever case's turn it is.

    Change ``rows`` only while no batch is being made: a batch is a function of its step
    and of these.

    Args:
        share: Of the samples, 0..1, as long as there are places.

    Attributes:
        rows: (N, 4) float32: position of the case among the feed's, then the voxel
            position z, y, x.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.rows: NDArray[np.float32] = np.zeros((0, 4), np.float32)

    def of(self, seed: int, sample: int) -> tuple[int, Array] | None:
        """Case and voxel position (3,) of a sample; None where its turn decides."""
        if not len(self.rows):
            return None
        chance, which = generator(seed, sample, stream="place again").random(2)
        if chance >= self.share:
            return None
        case, *voxel = self.rows[int(which * len(self.rows))]
        return int(case), np.array(voxel, dtype=np.float64)


class Search(Protocol):
    """Looks through training scans from time to time, and fills ``places``.

    What was found lies in a buffer of what is trained too: a checkpoint holds it, and a
    run that goes on shows the same.
    """

    places: Places

    def begin(self) -> None:
        """Take up what the buffer holds, at the start and after a resume."""

    def is_due(self, done: int, total: int) -> bool:
        """Whether to search after so many steps; of ``done`` alone but at the end."""

    def __call__(self, done: int) -> str:
        """Search, by what is trained as it is now; says what was found."""
