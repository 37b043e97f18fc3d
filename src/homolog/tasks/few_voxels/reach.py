"""How far paint reaches: voxels too unlike the paint of their class are unknown.

A voxel is compared with the painted voxels of the class it would get in three ways:
the encoder's feature, the smoothed grey values, the place in the body. Each distance
to the nearest of them is counted in units of its own, the median distance of strokes
that were left out; their sum has a limit that a chosen share of left-out paint exceeds.
Grey values further beyond those painted as a class than any left-out paint was beyond
the rest contradict the class: another one is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from homolog.tasks.few_voxels.scan import SimpleSpec

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

# Wine red of Tol's muted colours: darker than the classes', told apart by everyone,
# and no grey of a scan.
NAME, COLOUR = "unknown", "#882255"
# The highest value that no class has; 255 is the window's background.
_HIGHEST = 254
# Painted voxels of a class that others are compared with, at most.
_SUPPORT = 150
# Fewer left-out voxels tell nothing of how far paint reaches.
_FEWEST = 10


def unknown_value(taken: Sequence[int]) -> int:
    """The label of what is unknown, beside the labels of the classes."""
    return next(v for v in range(_HIGHEST, -1, -1) if v not in set(taken))


@dataclass(frozen=True, eq=False)
class Reach:
    """Painted voxels to compare with, and how far from them is too far.

    Attributes:
        arrays: float32. ``features`` (N, E) of unit norm, ``greys`` (N, G) smoothed and
            normalised, ``places`` (N, 3) or (N, 0) in 100 mm, ``targets`` (N,) class
            numbers; ``units`` (3,) of the three distances, ``limit`` (1,) of their sum;
            ``low`` and ``high`` (K, C) grey values that contradict no class.
    """

    arrays: Mapping[str, Floats]

    @staticmethod
    def shapes(
        near: int, encoder_size: int, classes: int, spec: SimpleSpec
    ) -> dict[str, tuple[int, ...]]:
        """What shapes the arrays must have, with ``near`` painted voxels."""
        every, one = grey_columns(spec)
        return {
            "features": (near, encoder_size), "greys": (near, len(every)),
            "places": (near, 3 * spec.position), "targets": (near,), "units": (3,),
            "limit": (1,), "low": (classes, len(one)), "high": (classes, len(one)),
        }  # fmt: skip

    def base(self, features: Floats | None, places: Floats, count: int) -> Floats:
        """Distances by feature and place to each class: (M, E), (M, 3) -> (K, M)."""
        known, units = self.arrays, self.arrays["units"]
        total = np.zeros((count, len(places)), np.float32)
        for k in range(count):
            own = known["targets"] == k
            if features is not None:
                nearest = (features @ known["features"][own].T).max(axis=1)
                total[k] += np.sqrt(np.maximum(2 - 2 * nearest, 0)) / units[0]
            if known["places"].shape[1]:
                total[k] += _apart(places, known["places"][own]) / units[2]
        return total

    def is_far(self, base: Floats, greys: Floats, number: int) -> Mask:
        """Whether voxels that would get a class are too far from its paint.

        Args:
            base: (M,) distance by feature and place.
            greys: (G, M) smoothed grey values.
            number: Of the class.
        """
        known = self.arrays
        paint = known["greys"][known["targets"] == number]
        far: Mask = (
            base + _grey_apart(greys, paint) / known["units"][1] > known["limit"]
        )
        return far

    def fits(self, grey: Floats, number: int) -> Mask:
        """Whether grey values (C, ...) do not contradict a class."""
        shape = (-1, *[1] * (grey.ndim - 1))
        low = self.arrays["low"][number].reshape(shape)
        high = self.arrays["high"][number].reshape(shape)
        inside: Mask = ((grey >= low) & (grey <= high)).all(axis=0)
        return inside


def grey_columns(spec: SimpleSpec) -> tuple[list[int], list[int]]:
    """Which simple features are grey values: two widths a channel, and one, smoothed.

    Wider ones are mixed near every border, and whole rims would be unknown.
    """
    widths, every, one, first = len(spec.smoothing_mm), list[int](), list[int](), 0
    for knots in spec.knots:
        every += range(first, first + min(2, widths))
        one.append(first + min(1, widths - 1))
        first += widths * (1 + len(knots)) + 1
    return every, one


def reach_of(
    vectors: Floats,
    targets: NDArray[np.int64],
    spec: SimpleSpec,
    folds: Sequence[tuple[Mask, Mask]],
    *,
    share: float,
    background: int | None,
    seed: int,
) -> Reach | None:
    """Calibrate on strokes that are left out in turn.

    Args:
        vectors: (N, E + F) of the painted voxels.
        targets: (N,) class numbers.
        spec: Which simple features the vectors end with.
        folds: Which voxels are left out (N,) and which are compared with (N,).
        share: Of left-out paint that may be called unknown, above 0.
        background: Its class number; no grey value contradicts it.
        seed: Of the choice among very many voxels.

    Returns:
        None where too few voxels could be left out: nothing is unknown then.
    """
    keep = _chosen(targets, seed)
    parts = _parts(vectors, spec)
    left: list[Floats] = []
    beyond: list[Floats] = []
    for test, train in folds:
        for k in np.unique(targets[test]):
            asked, own = test & keep & (targets == k), train & keep & (targets == k)
            if not own.any() or not asked.any():
                continue
            left.append(_distances([p[asked] for p in parts], [p[own] for p in parts]))
            if k != background:
                beyond.append(_beyond(parts[3][asked], parts[3][own]))
    if sum(len(rows) for rows in left) < _FEWEST:
        return None
    distances = np.concatenate(left)
    units = np.maximum(np.median(distances, axis=0), 1e-3)
    limit = np.quantile((distances / units).sum(axis=1), 1 - share)
    room = float(np.concatenate(beyond).max()) if beyond else np.inf
    low, high = _ranges(parts[3], targets, room, background)
    features, greys, places, _ = (part[keep] for part in parts)
    found = {
        "features": features, "greys": greys, "places": places,
        "targets": targets[keep], "units": units, "limit": np.array([limit]),
        "low": low, "high": high,
    }  # fmt: skip
    return Reach({n: np.asarray(a, np.float32) for n, a in found.items()})


def _chosen(targets: NDArray[np.int64], seed: int) -> Mask:
    """A seeded choice (N,) where a class has very many voxels."""
    keep = np.zeros(len(targets), bool)
    for k in np.unique(targets):
        own = np.flatnonzero(targets == k)
        rng = np.random.Generator(np.random.Philox(key=[seed, int(k)]))
        keep[rng.permutation(own)[:_SUPPORT]] = True
    return keep


def _parts(vectors: Floats, spec: SimpleSpec) -> tuple[Floats, ...]:
    """Features, grey values, places, and the one grey value a channel."""
    simple = vectors[:, vectors.shape[1] - spec.size :]
    every, one = grey_columns(spec)
    features = unit(vectors[:, : vectors.shape[1] - spec.size])
    first = spec.intensities
    places = simple[:, first : first + 3 * spec.position]
    return features, simple[:, every], places, simple[:, one]


def unit(features: Floats) -> Floats:
    """Rows (N, E) of unit norm; zero stays zero."""
    length = np.linalg.norm(features, axis=1, keepdims=True)
    scaled: Floats = features / np.maximum(length, np.float32(1e-6))
    return scaled


def _distances(asked: Sequence[Floats], own: Sequence[Floats]) -> Floats:
    """(N, 3): by feature, grey value and place to the nearest painted voxel."""
    found = np.zeros((len(asked[0]), 3), np.float32)
    if asked[0].shape[1]:
        nearest = (asked[0] @ own[0].T).max(axis=1)
        found[:, 0] = np.sqrt(np.maximum(2 - 2 * nearest, 0))
    found[:, 1] = _grey_apart(asked[1].T, own[1])
    if asked[2].shape[1]:
        found[:, 2] = _apart(asked[2], own[2])
    return found


def _apart(places: Floats, own: Floats) -> Floats:
    from scipy.spatial import cKDTree

    distances, _ = cKDTree(own).query(places)
    return np.asarray(distances, np.float32)


def _grey_apart(greys: Floats, paint: Floats) -> Floats:
    """Distance of (G, M) grey values to the nearest painted (N, G), each for itself.

    Each width of smoothing has its own nearest voxel: as good as the nearest of all
    together, by a search in sorted values.
    """
    total = np.zeros(greys.shape[1], np.float32)
    for column, values in zip(greys, paint.T, strict=True):
        known = np.sort(values)
        place = np.searchsorted(known, column)
        above = known[np.minimum(place, len(known) - 1)]
        below = known[np.maximum(place - 1, 0)]
        total += np.minimum(np.abs(column - below), np.abs(column - above)) ** 2
    return np.sqrt(total)


def _beyond(asked: Floats, own: Floats) -> Floats:
    """How far grey values (N, C) lie beyond painted ones: the most of the channels."""
    outside = np.maximum(own.min(axis=0) - asked, asked - own.max(axis=0))
    most: Floats = np.maximum(outside, 0).max(axis=1)
    return most


def _ranges(
    grey: Floats, targets: NDArray[np.int64], room: float, background: int | None
) -> tuple[Floats, Floats]:
    """Lowest and highest grey value (K, C) of each class, with room on both sides."""
    count = int(targets.max()) + 1
    low = np.full((count, grey.shape[1]), -np.inf, np.float32)
    high = np.full_like(low, np.inf)
    for k in range(count):
        own = grey[targets == k]
        if k != background and len(own):
            low[k], high[k] = own.min(axis=0) - room, own.max(axis=0) + room
    return low, high
