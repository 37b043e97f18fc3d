"""A few-voxel head on a slice or a whole scan, at the scan's own voxels.

A linear head is applied to the feature cells first and its scores are interpolated:
the same as interpolating the features and applying it then, for K instead of E maps.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from homolog.errors import UnusableInput
from homolog.events import Job, Progress, Request
from homolog.features.search import grid_shape, on_grid
from homolog.geometry.affine import Affine, Index
from homolog.scans.volume import LabelMap, Volume
from homolog.tasks.few_voxels.head import Head, softmax
from homolog.tasks.few_voxels.reach import grey_columns, unit
from homolog.tasks.few_voxels.scan import (
    PLACE_MM,
    FewScan,
    block_covered,
    check_grid,
)

# How unsure a few-voxel head is, collected on a thinned grid while it predicts.


# Uncertainty is kept on a grid of about this voxel size.
_STEP_MM = 4.0


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """How unsure the head is, on a thinned grid.

    Attributes:
        values: (d, h, w) in 0..1: 1 less the lead of the likeliest class over the
            second, 1 where a voxel is unknown; 0 where there are no features.
        likely: (2, d, h, w) numbers of the likeliest class and the second.
        affine: Thinned voxel -> world mm.
        unknown: (d, h, w) which voxels are too unlike all paint; None: nothing can be.
    """

    values: Floats
    likely: NDArray[np.uint16]
    affine: Affine
    unknown: NDArray[np.bool_] | None = None


class Thin:
    """Collects uncertainty on every n-th voxel along each axis, slab by slab.

    Args:
        volume: The scan.
    """

    def __init__(self, volume: Volume) -> None:
        affine, shape = volume.affine, volume.shape
        self.steps = [max(1, round(_STEP_MM / s)) for s in affine.spacing_mm]
        size = [-(-n // s) for n, s in zip(shape, self.steps, strict=True)]
        self.affine = affine @ Affine.scale([float(s) for s in self.steps])
        self.values = np.zeros(size, np.float32)
        self.likely = np.zeros((2, *size), np.uint16)
        self.unknown: NDArray[np.bool_] | None = None

    def take(
        self, first: int, chances: Floats, unknown: NDArray[np.bool_] | None = None
    ) -> None:
        """A slab of probabilities (K, d, h, w) that begins at plane ``first``.

        Args:
            first: Of the scan's planes.
            chances: See above.
            unknown: (d, h, w) voxels that got no class; None where nothing can be so.
        """
        z, y, x = self.steps
        ahead = -first % z
        some = chances[:, ahead::z, ::y, ::x]
        if not some.shape[1]:
            return
        row = (first + ahead) // z
        rows = slice(row, row + some.shape[1])
        if len(some) == 1:
            return
        order = np.argsort(-some, axis=0)[:2]
        top = np.take_along_axis(some, order, axis=0)
        known = top[0] > 0
        self.values[rows] = np.where(known, 1.0 - (top[0] - top[1]), 0.0)
        self.likely[:, rows] = order
        if unknown is not None:
            here = unknown[ahead::z, ::y, ::x]
            if self.unknown is None:
                self.unknown = np.zeros(self.values.shape, bool)
            self.unknown[rows] = here
            self.values[rows][here] = 1.0

    def found(self) -> Uncertainty:
        """What was collected."""
        return Uncertainty(self.values, self.likely, self.affine, self.unknown)


Floats = NDArray[np.float32]

# Numbers of one map of a slab, and of all encoder features of a slab (knn).
_SLAB = 300_000
_FEATURES_AT_ONCE = 32_000_000
# Without features, distances of places are computed that far apart.
_CELL_MM = 8.0


@dataclass(frozen=True, eq=False)
class FewResult:
    """A predicted scan.

    Attributes:
        labels: On the scan's own grid; paint is kept, the background is 0.
        uncertainty: Where to look next.
        probabilities: (K, D, H, W) float16 in the head's order, where asked for.
    """

    labels: LabelMap
    uncertainty: Uncertainty
    probabilities: NDArray[np.float16] | None = None


def predict_slice(
    head: Head,
    scan: FewScan,
    axis: int,
    index: int,
    labels: LabelMap | None = None,
) -> tuple[NDArray[np.int32], Floats]:
    """One slice of a scan's own grid.

    Args:
        head: Fitted.
        scan: The scan.
        axis: Array axis that the slice is perpendicular to.
        index: Which one.
        labels: Painted voxels, kept as they are.

    Returns:
        Labels (h, w), the two other axes in order; probabilities (K, h, w), 0 outside
        the encoder's features.

    Raises:
        UnusableInput: Features of another encoder, labels of another grid.
        IndexError: No such slice.
    """
    check_features(head, scan)
    if labels is not None:
        check_grid(scan.volume, labels)
    shape = scan.volume.shape
    if not 0 <= index < shape[axis]:
        raise IndexError(
            f"slice {index} of axis {axis} asked for, there are {shape[axis]}."
        )
    start, stop = [0, 0, 0], list(shape)
    start[axis], stop[axis] = index, index + 1
    low, high = _triple(start), _triple(stop)
    values, chances = answers(head, scan, low, high)
    if labels is not None:
        _keep_paint(head, values, _cut(labels.data, low, high))
    return values.squeeze(axis), chances.squeeze(axis + 1)


def predict_volume(
    head: Head,
    scan: FewScan,
    labels: LabelMap | None = None,
    *,
    keep_probabilities: bool = False,
) -> Job[FewResult | None]:
    """A whole scan, slab after slab; memory is bounded by the result.

    Args:
        head: Fitted.
        scan: The scan.
        labels: Painted voxels, kept as they are.
        keep_probabilities: Keep those of every voxel and class too.

    Returns:
        The result; None when told to stop.

    Raises:
        UnusableInput: Features of another encoder, labels of another grid.
    """
    check_features(head, scan)
    if labels is not None:
        check_grid(scan.volume, labels)
    shape, classes = scan.volume.shape, len(head.classes)
    highest = max([*head.names, *(c.value for c in head.classes), *_highest(labels)])
    kind = np.uint8 if highest < 256 else np.uint16 if highest < 65536 else np.int32
    values = np.zeros(shape, kind)
    kept = np.zeros((classes, *shape), np.float16) if keep_probabilities else None
    thin = Thin(scan.volume)
    planes = max(1, _SLAB // (shape[1] * shape[2]))
    for first in range(0, shape[0], planes):
        low, high = (first, 0, 0), (min(first + planes, shape[0]), *shape[1:])
        slab, chances = answers(head, scan, low, high)
        if labels is not None:
            _keep_paint(head, slab, _cut(labels.data, low, high))
        values[first : high[0]] = slab
        none_fits = None if head.reach is None else slab == head.unknown
        thin.take(first, chances, none_fits)
        if kept is not None:
            kept[:, first : high[0]] = chances
        news = Progress("predicting", high[0], shape[0], scan.volume.name)
        if (yield news) is Request.STOP and high[0] < shape[0]:
            return None
    volume = scan.volume
    result = LabelMap(values, volume.affine, head.names, volume.name, volume.meta)
    return FewResult(result, thin.found(), kept)


def probabilities(head: Head, scan: FewScan, start: Index, stop: Index) -> Floats:
    """Class probabilities (K, d, h, w) of a block of a scan's own voxels.

    Args:
        head: Fitted.
        scan: The scan.
        start: First voxel.
        stop: One past the last.

    Returns:
        They sum to 1; all are 0 outside the encoder's features and, where the head
        says so, outside the body.
    """
    return _probabilities(head, scan, scan.simple(head.spec).block(start, stop), start)


def answers(
    head: Head, scan: FewScan, start: Index, stop: Index
) -> tuple[NDArray[np.int32], Floats]:
    """Labels (d, h, w) of a block and the probabilities they come from.

    The likeliest class whose paint's grey values do not contradict the voxel's; unknown
    where there is none, or where the voxel lies too far from the paint of that class.
    """
    simple = scan.simple(head.spec).block(start, stop)
    chances = _probabilities(head, scan, simple, start)
    if head.reach is None:
        return _labels(head, chances), chances
    every, one = grey_columns(head.spec)
    fitting = np.stack(
        [head.reach.fits(simple[one], k) for k in range(len(head.classes))]
    )
    known = chances.max(axis=0) > 0
    allowed = chances * fitting
    chosen = allowed.argmax(axis=0)
    values = np.array([c.written for c in head.classes], np.int32)[chosen]
    values[~known] = 0
    far = known & (allowed.max(axis=0) == 0)
    asked = known & ~far
    cells, affine = _far_cells(head, scan, start, stop)
    target, shape = scan.volume.affine.crop(start), _triple(simple.shape[1:])
    greys = simple[every]
    for k in np.flatnonzero(np.bincount(chosen[asked], minlength=1)).tolist():
        here = asked & (chosen == k)
        base = on_grid(cells[k], affine, shape, target)[here]
        far[here] = head.reach.is_far(base, greys[:, here], k)
    values[far] = head.unknown
    return values, chances


def _far_cells(
    head: Head, scan: FewScan, start: Index, stop: Index
) -> tuple[Floats, Affine]:
    """Distance (K, d, h, w) by feature and place to each class's paint, in cells.

    Of the features' own cells; without features, of voxels some millimetres apart.
    """
    assert head.reach is not None
    if scan.features is None:
        steps = np.array(
            [max(1, round(_CELL_MM / s)) for s in scan.volume.affine.spacing_mm]
        )
        first = np.array(start) // steps
        shape = -(-(np.array(stop) - 1) // steps) - first + 1
        affine = scan.volume.affine @ Affine.scale([float(s) for s in steps])
        affine, vectors = affine.crop(first), None
    else:
        cells, affine = _cells(scan, start, stop)
        shape, vectors = (
            np.array(cells.shape[:3]),
            unit(cells.reshape(-1, cells.shape[-1])),
        )
    index = np.indices(tuple(shape)).reshape(3, -1).T
    places = (affine.apply(index) - np.array(scan.centre_mm)) / PLACE_MM
    base = head.reach.base(vectors, places.astype(np.float32), len(head.classes))
    return base.reshape(-1, *shape), affine


def _probabilities(head: Head, scan: FewScan, simple: Floats, start: Index) -> Floats:
    """See ``probabilities``; of simple features (F, d, h, w) that begin at a voxel."""
    shape = simple.shape[1:]
    stop = _triple([a + n for a, n in zip(start, shape, strict=True)])
    if head.kind == "logistic":
        split = head.encoder_size
        weight = head.arrays["weight"]
        scores = weight[:, split:] @ simple.reshape(len(simple), -1)
        scores += head.arrays["bias"][:, None]
        scores = scores.reshape(-1, *shape)
        if scan.features is not None:
            scores += _encoder_scores(weight[:, :split], scan, start, stop)
        result = softmax(scores)
    else:
        result = _by_vote(head, scan, simple, start)
    if scan.features is not None:
        known = block_covered(scan.features, scan.volume.affine, start, stop)
        if known is not None:
            result *= known
    if head.body_only:
        result *= scan.body.block(start, stop)
    return result


def check_features(head: Head, scan: FewScan) -> None:
    """Refuse a scan whose features the head does not know.

    Raises:
        UnusableInput: Another encoder, length or number of channels.
    """
    if (scan.encoder_id, scan.encoder_size) != (head.encoder_id, head.encoder_size):
        raise UnusableInput(
            f"the model reads {head.encoder_size} features of the encoder "
            f"{head.encoder_id or 'none'}, the scan {scan.volume.name!r} has "
            f"{scan.encoder_size} of {scan.encoder_id or 'none'}."
        )
    if scan.volume.data.shape[0] != head.spec.channels:
        raise UnusableInput(
            f"the model takes {head.spec.channels} channel(s), {scan.volume.name!r} "
            f"has {scan.volume.data.shape[0]}."
        )


def _encoder_scores(weight: Floats, scan: FewScan, start: Index, stop: Index) -> Floats:
    """The encoder's part of a linear head's scores: (K, d, h, w)."""
    cells, affine = _cells(scan, start, stop)
    flat = cells.reshape(-1, cells.shape[-1]) @ weight.T
    maps = np.ascontiguousarray(flat.T).reshape(-1, *cells.shape[:3])
    target = scan.volume.affine.crop(start)
    shape = _triple([b - a for a, b in zip(start, stop, strict=True)])
    return np.stack([on_grid(m, affine, shape, target) for m in maps])


def _cells(scan: FewScan, start: Index, stop: Index) -> tuple[Floats, Affine]:
    """The cells (d, h, w, E) that a block of voxels lies between, and their affine."""
    assert scan.features is not None
    features = scan.features
    corners = np.stack(
        np.meshgrid(*[(a, b - 1) for a, b in zip(start, stop, strict=True)]), -1
    ).reshape(-1, 3)
    place = features.affine.inverse().apply(scan.volume.affine.apply(corners))
    limit = np.array(grid_shape(features))
    low = np.clip(np.floor(place.min(axis=0) - 1e-6).astype(np.int64), 0, limit - 1)
    high = np.clip(
        np.floor(place.max(axis=0) + 1e-6).astype(np.int64) + 2, low + 1, limit
    )
    cells = np.moveaxis(features.data, 0, -1)
    z, y, x = (slice(a, b) for a, b in zip(low, high, strict=True))
    return np.asarray(cells[z, y, x], np.float32), features.affine.crop(low)


def _by_vote(head: Head, scan: FewScan, simple: Floats, start: Index) -> Floats:
    """Probabilities (K, d, h, w) of a head that needs every voxel's features."""
    shape = _triple(simple.shape[1:])
    result = np.empty((len(head.classes), *shape), np.float32)
    planes = max(1, _FEATURES_AT_ONCE // (head.size * prod(shape[1:])))
    for first in range(0, shape[0], planes):
        part = simple[:, first : first + planes]
        size = _triple(part.shape[1:])
        low = (start[0] + first, start[1], start[2])
        if scan.features is not None:
            high = _triple([a + n for a, n in zip(low, size, strict=True)])
            cells, affine = _cells(scan, low, high)
            target = scan.volume.affine.crop(low)
            maps = [
                on_grid(cells[..., e], affine, size, target)
                for e in range(cells.shape[-1])
            ]
            part = np.concatenate([np.stack(maps), part])
        votes = head.probabilities(part.reshape(len(part), -1).T)
        result[:, first : first + planes] = votes.T.reshape(-1, *size)
    return result


def _labels(head: Head, chances: Floats) -> NDArray[np.int32]:
    """The likeliest class; 0 where nothing is known."""
    table = np.array([c.written for c in head.classes], np.int32)
    found: NDArray[np.int32] = table[chances.argmax(axis=0)]
    found[chances.max(axis=0) == 0] = 0
    return found


def _keep_paint(
    head: Head, values: NDArray[np.int32], paint: NDArray[np.integer]
) -> None:
    """Painted voxels get their own class, the background's 0."""
    where = paint != 0
    own = paint[where].astype(np.int32)
    for known in head.classes:
        if known.background:
            own[own == known.value] = 0
    values[where] = own


def _highest(labels: LabelMap | None) -> list[int]:
    return [] if labels is None or not labels.data.size else [int(labels.data.max())]


def _cut(data: NDArray[np.integer], start: Index, stop: Index) -> NDArray[np.integer]:
    z, y, x = (slice(a, b) for a, b in zip(start, stop, strict=True))
    return data[z, y, x]


def _triple(values: list[int] | tuple[int, ...]) -> Index:
    z, y, x = values
    return int(z), int(y), int(x)
