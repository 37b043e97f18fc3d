"""A scan as few-voxel heads see it: features of an encoder, or of no network at all.

Every value is the same sum of the same numbers whether a block, a slice or a single
voxel is asked for: nothing changes where two blocks meet.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.errors import UnusableInput
from homolog.features.search import Body, find_body, grid_shape
from homolog.geometry.affine import Affine, Index, Triple
from homolog.scans.volume import FeatureMap, LabelMap, Volume
from homolog.store.preprocess import Intensities, Preprocessing, prepare_volume
from homolog.tasks.few_voxels.config import FewConfig
from homolog.words import times

# What a few-voxel model is told: settings, classes. No torch here.


# Okabe and Ito's colours without black and grey, told apart by the colour-blind.
_COLOURS = (
    "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7",
)  # fmt: skip
_GREY = "#999999"


@dataclass(frozen=True)
class FewClass:
    """One class of the paint.

    Attributes:
        value: In the painted labels, and in the prediction.
        name: For people.
        colour: ``#rrggbb``.
        background: Predicted as 0: what is none of the other classes.
    """

    value: int
    name: str
    colour: str
    background: bool = False

    @property
    def written(self) -> int:
        """Its value in predictions."""
        return 0 if self.background else self.value


def few_classes(
    values: Sequence[int],
    names: Mapping[int, str] | None = None,
    colours: Mapping[int, str] | None = None,
    background: int | None = None,
) -> tuple[FewClass, ...]:
    """The classes of painted values, sorted by value.

    Args:
        values: Painted values, positive.
        names: Value -> name; ``label 3`` where there is none.
        colours: Value -> ``#rrggbb``; a colour of our own where there is none.
        background: Value whose paint means none of the other classes.

    Raises:
        UnusableInput: The background is a value that nobody painted.
    """
    names, colours = names or {}, colours or {}
    known = sorted(set(values))
    if background is not None and background not in known:
        raise UnusableInput(
            f"the background is to be label {background}, but the painted labels are "
            f"{', '.join(map(str, known)) or 'none'}."
        )
    return tuple(
        FewClass(
            value,
            names.get(value)
            or ("background" if value == background else f"label {value}"),
            colours.get(value) or (_GREY if value == background else _colour(place)),
            value == background,
        )
        for place, value in enumerate(known)
    )


def _colour(place: int) -> str:
    if place < len(_COLOURS):
        return _COLOURS[place]
    # the golden angle keeps later hues apart
    parts = colorsys.hsv_to_rgb(place * 0.618034 % 1.0, 0.65, 0.9)
    return "#" + "".join(f"{round(255 * part):02x}" for part in parts)


Floats = NDArray[np.float32]

# Gaussians end at this many sigmas.
_TRUNCATE = 3.0
# Voxels read at once around single places: 32 MB of float32.
_READ_AT_ONCE = 8_000_000
# Knots nearer than this in normalised values are one.
_APART = 0.01
# Places are told in this unit, so that their numbers are near 1.
PLACE_MM = 100.0


@dataclass(frozen=True)
class SimpleSpec:
    """Which simple features there are.

    Attributes:
        smoothing_mm: Widths (sigma) of the intensities; 0 is the voxel itself.
        position: Whether the place counts: z, y, x from the middle of the body box
            and their products.
        knots: Per channel, ascending normalised values. Each smoothed intensity is also
            told by how near it is to each of them, since organs are bands of grey.
    """

    smoothing_mm: tuple[float, ...]
    position: bool
    knots: tuple[tuple[float, ...], ...] = ((),)

    @property
    def channels(self) -> int:
        """Of the scan."""
        return len(self.knots)

    @property
    def intensities(self) -> int:
        """How many features tell the intensity."""
        widths = len(self.smoothing_mm)
        return sum(widths * (1 + len(k)) + 1 for k in self.knots)

    @property
    def size(self) -> int:
        """How many features there are."""
        return self.intensities + 9 * self.position


@dataclass(frozen=True, eq=False)
class SimpleFeatures:
    """The simple features of one scan, computed where they are asked for.

    Attributes:
        volume: The scan as stored in its file.
        intensity: How its values are normalised.
        centre_mm: Middle of its body box, world mm (z, y, x).
        spec: Which features.
    """

    volume: Volume
    intensity: Intensities
    centre_mm: Triple
    spec: SimpleSpec

    def block(self, start: Index, stop: Index) -> Floats:
        """Features (F, d, h, w) of the voxels from ``start`` to before ``stop``."""
        halo = self._halo()
        index = [
            np.clip(np.arange(a - h, b + h), 0, n - 1)
            for a, b, h, n in zip(start, stop, halo, self.volume.shape, strict=True)
        ]
        result = []
        for channel, knots in zip(self.volume.data, self.spec.knots, strict=True):
            values = self.intensity.normalise(channel[np.ix_(*index)])
            result += self._filtered(values[None], halo, knots)
        if self.spec.position:
            axes = [np.arange(a, b) for a, b in zip(start, stop, strict=True)]
            shape = tuple(len(a) for a in axes)
            result += [
                np.broadcast_to(p, (1, *shape)) for p in self._place(*np.ix_(*axes))
            ]
        return np.concatenate(result).astype(np.float32, copy=False)

    def at(self, voxels: NDArray[np.int64]) -> Floats:
        """Features (N, F) of single voxels (N, 3)."""
        halo = self._halo()
        size = prod(2 * h + 1 for h in halo)
        step = max(1, _READ_AT_ONCE // size)
        found = np.empty((len(voxels), self.spec.size), np.float32)
        for first in range(0, len(voxels), step):
            some = voxels[first : first + step]
            z, y, x = (
                np.clip(some[:, a, None] + np.arange(-h, h + 1), 0, n - 1)
                for a, (h, n) in enumerate(zip(halo, self.volume.shape, strict=True))
            )
            columns = []
            for channel, knots in zip(self.volume.data, self.spec.knots, strict=True):
                read = channel[
                    z[:, :, None, None], y[:, None, :, None], x[:, None, None, :]
                ]
                columns += self._filtered(self.intensity.normalise(read), halo, knots)
            if self.spec.position:
                columns += self._place(*some.T)
            for i, column in enumerate(columns):
                found[first : first + step, i] = column.reshape(-1)
        return found

    def _halo(self) -> list[int]:
        """Voxels needed around a place, per axis; one more for the gradient."""
        radii = [self._radii(s) for s in self.spec.smoothing_mm]
        slope = [r + 1 for r in self._radii(self._slope_mm())]
        return [max(column) for column in zip(*radii, slope, strict=True)]

    def _slope_mm(self) -> float:
        """Width at which the gradient is taken: the first that smooths."""
        return next((s for s in sorted(self.spec.smoothing_mm) if s > 0), 0.0)

    def _radii(self, sigma_mm: float) -> list[int]:
        return [ceil(_TRUNCATE * sigma_mm / s) for s in self.volume.affine.spacing_mm]

    def _filtered(
        self, values: Floats, halo: list[int], knots: tuple[float, ...]
    ) -> list[Floats]:
        """Intensity features of (B, ...) values with a halo around."""
        found = [self._smooth(values, halo, s, 0) for s in self.spec.smoothing_mm]
        wide = self._smooth(values, halo, self._slope_mm(), 1)
        total = np.zeros_like(found[0])
        for axis, spacing in enumerate(self.volume.affine.spacing_mm):
            ends = []
            for side in (0, 2):
                cut = [slice(None), *[slice(1, -1)] * 3]
                cut[axis + 1] = slice(side, wide.shape[axis + 1] - 2 + side)
                ends.append(wide[tuple(cut)])
            total += ((ends[1] - ends[0]) / np.float32(2 * spacing)) ** 2
        bands = [hat for smooth in found for hat in _hats(smooth, knots)]
        return [*found, np.sqrt(total), *bands]

    def _smooth(
        self, values: Floats, halo: list[int], sigma_mm: float, extra: int
    ) -> Floats:
        """A Gaussian of (B, ...) values; ``extra`` voxels of the halo remain."""
        for axis, (radius, h, spacing) in enumerate(
            zip(self._radii(sigma_mm), halo, self.volume.affine.spacing_mm, strict=True)
        ):
            cut = [slice(None)] * 4
            spare = h - radius - extra
            cut[axis + 1] = slice(spare, values.shape[axis + 1] - spare)
            values = _along(
                values[tuple(cut)], _kernel(radius, sigma_mm / spacing), axis + 1
            )
        return values

    def _place(self, *index: NDArray[np.int64]) -> list[Floats]:
        """z, y, x in units of 100 mm from the middle of the body, and products."""
        matrix = self.volume.affine.matrix
        z, y, x = (
            np.asarray(
                sum(matrix[w, a] * index[a] for a in range(3) if matrix[w, a])
                + (matrix[w, 3] - self.centre_mm[w]),
                np.float64,
            )
            / PLACE_MM
            for w in range(3)
        )
        both = (z, y, x, z * z, y * y, x * x, z * y, z * x, y * x)
        return [np.asarray(p, np.float32) for p in both]


def _kernel(radius: int, sigma: float) -> Floats:
    if radius == 0:
        return np.ones(1, np.float32)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    scaled: Floats = (weights / weights.sum()).astype(np.float32)
    return scaled


def _along(values: Floats, kernel: Floats, axis: int) -> Floats:
    """Symmetric filter along an axis, without the ends that lack neighbours."""
    radius = len(kernel) // 2
    size = values.shape[axis] - 2 * radius

    def shifted(by: int) -> Floats:
        cut = [slice(None)] * values.ndim
        cut[axis] = slice(by, by + size)
        return values[tuple(cut)]

    total: Floats = shifted(radius) * kernel[radius]
    for t in range(1, radius + 1):
        total += (shifted(radius - t) + shifted(radius + t)) * kernel[radius + t]
    return total


def _hats(values: Floats, knots: tuple[float, ...]) -> list[Floats]:
    """How near values are to each knot: 1 at it, 0 at its neighbours; sum 1."""
    if len(knots) < 2:
        return [np.ones_like(values) for _ in knots]
    k = np.array(knots, np.float32)
    before, found = None, []
    for a, b in pairwise(k):
        ramp = values - a  # 0 up to the one knot, 1 from the next on
        ramp *= 1 / (b - a)
        np.clip(ramp, 0, 1, out=ramp)
        found.append(1 - ramp if before is None else before - ramp)
        before = ramp
    assert before is not None
    return [*found, before]


def knots_of(
    values: Sequence[NDArray[np.float32]], most: int = 12
) -> tuple[float, ...]:
    """Knots where painted values lie, every class counting the same.

    Args:
        values: Normalised values (N_k,) of each class.
        most: Knots, at most.

    Returns:
        Ascending; fewer than two distinct values give none.
    """
    levels = np.linspace(0, 1, 21)
    pool = np.concatenate([np.quantile(v, levels) for v in values if len(v)])
    found: list[float] = []
    for value in np.quantile(pool, np.linspace(0, 1, most)).astype(np.float32).tolist():
        if not found or value - found[-1] > _APART:
            found.append(value)
    return tuple(found) if len(found) > 1 else ()


# A scan with its features and its paint, as the few-voxel head reads them.


Voxels = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class FewScan:
    """One open scan.

    Attributes:
        volume: As stored in its file.
        features: Of an encoder, or None: intensity and place alone.
        intensity: How values are normalised.
        centre_mm: Middle of the body box, world mm (z, y, x).
        body: Where the body is.
    """

    volume: Volume
    features: FeatureMap | None
    intensity: Intensities
    centre_mm: Triple
    body: Body

    @property
    def encoder_id(self) -> str:
        """Of the features; empty where there are none."""
        return "" if self.features is None else self.features.encoder_id

    @property
    def encoder_size(self) -> int:
        """Length of an encoder feature; 0 where there are none."""
        return 0 if self.features is None else int(self.features.data.shape[0])

    def simple(self, spec: SimpleSpec) -> SimpleFeatures:
        """Its simple features."""
        return SimpleFeatures(self.volume, self.intensity, self.centre_mm, spec)

    def vectors(self, voxels: Voxels, spec: SimpleSpec) -> NDArray[np.float32]:
        """Encoder features, then simple ones, of voxels (N, 3): (N, E + F)."""
        parts = [self.simple(spec).at(voxels)]
        if self.features is not None:
            mm = self.volume.affine.apply(voxels)
            parts.insert(0, features_at(self.features, mm))
        return np.concatenate(parts, axis=1)


@dataclass(frozen=True, eq=False)
class Paint:
    """The painted voxels of one scan.

    Attributes:
        scan: Which of the scans it belongs to.
        voxels: (N, 3) indices (z, y, x) on the scan's own grid, in the array's order.
        values: (N,) positive labels.
        mm: (N, 3) world positions.
        covered: (N,) whether the encoder's features reach there.
        in_body: (N,) whether the body is there.
    """

    scan: int
    voxels: Voxels
    values: NDArray[np.int64]
    mm: NDArray[np.float64]
    covered: NDArray[np.bool_]
    in_body: NDArray[np.bool_]


def few_scan(
    volume: Volume,
    features: FeatureMap | None = None,
    preprocessing: Preprocessing | None = None,
) -> FewScan:
    """A scan made ready; its values are read once.

    Args:
        volume: As stored in its file.
        features: Of an encoder; (E, d, h, w).
        preprocessing: The encoder's; decides how values are normalised.

    Raises:
        UnusableInput: NaN or infinite values.
    """
    # the scan's own voxels: only the numbers of normalisation are wanted
    recipe = replace(preprocessing or Preprocessing(), spacing_mm=None)
    prepared = prepare_volume(volume, recipe)
    start, stop = (np.array(corner, np.float64) for corner in prepared.foreground)
    z, y, x = prepared.affine.apply((start + stop - 1) / 2)
    centre = float(z), float(y), float(x)
    return FewScan(volume, features, prepared.intensity, centre, find_body(volume))


def painted(scan: FewScan, labels: LabelMap, number: int = 0) -> Paint:
    """The painted voxels of a scan.

    Args:
        scan: The scan.
        labels: On the scan's own grid; 0 is unpainted, classes are positive.
        number: Which of the scans it is.

    Raises:
        UnusableInput: Another grid than the scan's, or negative labels.
    """
    check_grid(scan.volume, labels)
    if labels.data.size and labels.data.min() < 0:
        raise UnusableInput(
            f"painted labels must be 0 (unpainted) or positive, got "
            f"{int(labels.data.min())} in {_named(labels)}."
        )
    voxels = np.argwhere(labels.data)
    values = labels.data[tuple(voxels.T)].astype(np.int64)
    mm = scan.volume.affine.apply(voxels)
    if scan.features is None:
        reached = np.ones(len(voxels), bool)
    else:
        reached = covered(scan.features, mm)
    return Paint(number, voxels, values, mm, reached, scan.body.at(voxels))


def check_grid(volume: Volume, labels: LabelMap) -> None:
    """Refuse labels of another grid than the scan's.

    Raises:
        UnusableInput: Another shape, or another place in the world.
    """
    if labels.shape != volume.shape:
        raise UnusableInput(
            f"the painted labels {_named(labels)} must have the shape "
            f"{times(volume.shape)} of their scan {_named(volume)}, got "
            f"{times(labels.shape)}."
        )
    if not labels.affine.close_to(volume.affine, volume.shape, 0.1):
        raise UnusableInput(
            f"the painted labels {_named(labels)} must lie where their scan "
            f"{_named(volume)} does: expected {volume.affine}, got {labels.affine}."
        )


def simple_spec(
    scans: Sequence[FewScan], paints: Sequence[Paint], config: FewConfig
) -> SimpleSpec:
    """Which simple features a model of these scans has; the paint places its knots.

    Raises:
        UnusableInput: Scans of different encoders or numbers of channels.
    """
    first = scans[0]
    for scan in scans[1:]:
        if (scan.encoder_id, scan.encoder_size) != (
            first.encoder_id,
            first.encoder_size,
        ):
            raise UnusableInput(
                f"scans of one model must have features of one encoder: "
                f"{_named(first.volume)} has {first.encoder_id or 'none'}, "
                f"{_named(scan.volume)} has {scan.encoder_id or 'none'}."
            )
        if scan.volume.data.shape[0] != first.volume.data.shape[0]:
            raise UnusableInput(
                f"scans of one model must have the same number of channels: "
                f"{_named(first.volume)} has {first.volume.data.shape[0]}, "
                f"{_named(scan.volume)} has {scan.volume.data.shape[0]}."
            )
    step_mm = float(np.prod(first.volume.affine.spacing_mm) ** (1 / 3))
    smoothing = config.smoothing_mm or (0.0, step_mm, 2 * step_mm)
    knots = tuple(
        _knots(scans, paints, channel) for channel in range(first.volume.data.shape[0])
    )
    return SimpleSpec(tuple(float(s) for s in smoothing), config.position, knots)


def _knots(
    scans: Sequence[FewScan], paints: Sequence[Paint], channel: int
) -> tuple[float, ...]:
    """Where the painted values of a channel lie."""
    values = np.concatenate([p.values for p in paints])
    if not len(values):
        return ()
    greys = np.concatenate(
        [
            scan.intensity.normalise(scan.volume.data[channel][tuple(paint.voxels.T)])
            for scan, paint in zip(scans, paints, strict=True)
        ]
    )
    return knots_of([greys[values == v] for v in np.unique(values)])


def features_at(features: FeatureMap, mm: NDArray[np.float64]) -> NDArray[np.float32]:
    """Features (N, E) at world positions (N, 3), trilinear, border cells held.

    Not scaled to unit norm again: what is linear in the cells stays so.
    """
    shape = np.array(grid_shape(features))
    index = np.clip(features.affine.inverse().apply(mm), 0, shape - 1)
    low = np.minimum(index.astype(np.int64), np.maximum(shape - 2, 0))
    share = index - low
    cells = np.moveaxis(features.data, 0, -1)
    total = np.zeros((len(index), features.data.shape[0]), np.float32)
    for corner in np.ndindex(2, 2, 2):
        z, y, x = np.minimum(low + corner, shape - 1).T
        weight = np.prod(np.where(corner, share, 1 - share), axis=1)
        total += weight[:, None].astype(np.float32) * cells[z, y, x].astype(np.float32)
    return total


def covered(features: FeatureMap, mm: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether positions (N, 3) lie in the cells' boxes."""
    index = features.affine.inverse().apply(mm)
    shape = np.array(grid_shape(features))
    inside = (index >= -0.5 - 1e-6) & (index <= shape - 0.5 + 1e-6)
    found: NDArray[np.bool_] = np.asarray(inside.all(axis=1))
    return found


def block_covered(
    features: FeatureMap, affine: Affine, start: Index, stop: Index
) -> NDArray[np.bool_] | None:
    """Which voxels of a block lie in the cells' boxes; None: all of them."""
    ends = [(a, b - 1) for a, b in zip(start, stop, strict=True)]
    corners = np.stack(np.meshgrid(*ends), -1).reshape(-1, 3)
    if covered(features, affine.apply(corners)).all():
        return None
    index = np.indices([b - a for a, b in zip(start, stop, strict=True)])
    flat = index.reshape(3, -1).T + np.array(start)
    inside = covered(features, affine.apply(flat))
    return inside.reshape(index.shape[1:])


def _named(thing: Any) -> str:
    source = thing.meta.get("source")
    return str(source) if source else repr(thing.name)
