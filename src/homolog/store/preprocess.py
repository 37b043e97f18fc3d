"""One recipe from a scan to what the store keeps, and back for labels.

Axes are permuted and flipped, never rotated; the voxel size may change; values become
int16 with a scale and an offset. The same function prepares training and new scans.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import ceil, gcd, prod
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from homolog.config import option, to_dict
from homolog.errors import UnusableInput
from homolog.events import Job, Note
from homolog.geometry.affine import Affine, Index, Triple
from homolog.scans.problems import filled_text
from homolog.scans.volume import (
    CHANNELS,
    MODALITIES,
    Channel,
    LabelMap,
    Volume,
    closest_canonical,
    reorder_axes,
    restore_axes,
)
from homolog.store.learnt_spacing import Learnt, brought_note
from homolog.words import spacing_text, times

# The body: a box for drawing places, values for statistics.
Box: TypeAlias = tuple[Index, Index]  # first voxel, one past the last (z, y, x)

BODY_HU = -500.0
# Statistics look at no more voxels than this, evenly spread.
_SAMPLE = 400_000
# The box is computed on a thinned grid of at most this many voxels per axis.
_COARSE = 112
# Parts smaller than this share of the largest one are table, tubes or noise.
_PART = 0.1
# An exact value shared by this many voxels is padding or a mask's outside.
_PADDING = 0.15
# Without padding, values under this share of the range are air.
_AIR = 0.08


def spread_sample(data: NDArray[Any]) -> NDArray[np.float32]:
    """Evenly spread voxels, at most about 400 000, the same ones every time.

    Args:
        data: (C, D, H, W).
    """
    flat = data.reshape(-1)
    step = ceil(flat.size / _SAMPLE)
    # A step coprime to the row length visits all columns.
    while step > 1 and gcd(step, data.shape[-1] * data.shape[-2]) > 1:
        step += 1
    return np.asarray(flat[::step], dtype=np.float32)


def inside(
    values: NDArray[Any], sample: NDArray[np.float32], is_ct: bool
) -> NDArray[np.bool_]:
    """True where a value belongs to the body rather than to air or padding.

    CT knows its unit: above -500 HU. Elsewhere a value that many voxels share exactly
    (padding, skull stripping) is outside, and so is what is nearly as dark as air.

    Args:
        values: Any shape, in value units.
        sample: (N,) evenly spread values of the same scan.
        is_ct: Whether values are HU.
    """
    if is_ct:
        return np.asarray(values > BODY_HU)
    found, counts = np.unique(sample, return_counts=True)
    top = int(counts.argmax())
    padding = float(found[top]) if counts[top] > _PADDING * sample.size else None
    rest = sample if padding is None else sample[sample != padding]
    if rest.size == 0:
        return np.ones(values.shape, dtype=bool)
    low, high = np.percentile(rest, (0.1, 99.5))
    if padding is not None and padding > low:
        # Normalised scans: the outside lies in the middle of the values.
        return np.asarray(values != np.float32(padding))
    floor = low if padding is None else padding
    return np.asarray(values > floor + _AIR * (high - floor))


def foreground_box(
    data: NDArray[Any],
    sample: NDArray[np.float32],
    is_ct: bool,
    *,
    scale: float = 1.0,
    offset: float = 0.0,
) -> Box:
    """Box around the large connected parts of the body; else the whole scan.

    Args:
        data: (C, D, H, W); the first channel decides.
        sample: As for ``inside``, in value units.
        is_ct: Whether values are HU.
        scale: Value units per step of ``data``.
        offset: Value of a 0 in ``data``.
    """
    from scipy import ndimage

    shape: Index = (data.shape[1], data.shape[2], data.shape[3])
    steps = [max(1, ceil(n / _COARSE)) for n in shape]
    thin = data[0, :: steps[0], :: steps[1], :: steps[2]]
    values = thin * np.float32(scale) + np.float32(offset)
    mask = inside(values, sample, is_ct)
    whole: Box = ((0, 0, 0), shape)
    if mask.mean() > 0.95:
        return whole
    cross = ndimage.generate_binary_structure(2, 1)[None]
    opened = ndimage.binary_opening(mask, cross)  # parts the body from its table
    labels, count = ndimage.label(opened if opened.any() else mask)
    if count == 0:
        return whole
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    kept = (sizes >= _PART * sizes.max())[labels] & (labels > 0)
    start, stop = [0, 0, 0], list(shape)
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        hits = np.flatnonzero(kept.any(axis=others))
        # The opening and the thinning each eat up to a step at the border.
        start[axis] = max(0, (int(hits[0]) - 1) * steps[axis])
        stop[axis] = min(shape[axis], (int(hits[-1]) + 2) * steps[axis])
    box: Box = ((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
    size = [b - a for a, b in zip(*box, strict=True)]
    return box if prod(size) > 0.005 * prod(shape) else whole


# Another voxel size along an array's own axes: separable, centred, undoable.
# Output voxels computed by one matrix product: small enough that the band of a
# resampling matrix wastes little, large enough for BLAS.
_BLOCK = 32
# Two spacings this close (relative) are one; saves an interpolation of 1.0000002 mm.
_SAME = 1e-3


@dataclass(frozen=True, eq=False)
class _Band:
    """Rows of a resampling matrix and the range of input they read."""

    rows: slice
    given: slice
    matrix: NDArray[np.float32]


@dataclass(frozen=True)
class Regrid:
    """How a grid is laid over another one with the same centre and the same axes.

    Attributes:
        source: Shape of the given grid (z, y, x).
        shape: Shape of the new grid.
        step: New voxel size in units of the given one, per axis.
    """

    source: Index
    shape: Index
    step: Triple

    @classmethod
    def between(
        cls, source: Index, spacing_mm: Triple, target_mm: Triple | None
    ) -> Regrid:
        """Grid of ``target_mm`` voxels which covers the same extent, to half a voxel.

        Args:
            source: Shape of the given grid.
            spacing_mm: Its voxel size.
            target_mm: Voxel size wanted; None keeps the grid.
        """
        shape, step = list(source), [1.0, 1.0, 1.0]
        for axis in range(3) if target_mm is not None else ():
            assert target_mm is not None
            ratio = target_mm[axis] / spacing_mm[axis]
            if abs(ratio - 1.0) > _SAME and source[axis] > 1:
                shape[axis] = max(1, round(source[axis] / ratio))
                step[axis] = ratio
        return cls(source, (shape[0], shape[1], shape[2]), (step[0], step[1], step[2]))

    @property
    def is_identity(self) -> bool:
        """Whether nothing has to be interpolated."""
        return self.step == (1.0, 1.0, 1.0)

    def start(self, axis: int) -> float:
        """Given-grid index of the new grid's first voxel."""
        half = (self.shape[axis] - 1) / 2.0 * self.step[axis]
        return (self.source[axis] - 1) / 2.0 - half

    def positions(self, axis: int) -> NDArray[np.float64]:
        """Given-grid index of each new voxel along an axis, (shape[axis],)."""
        steps = np.arange(self.shape[axis]) * self.step[axis]
        return np.asarray(self.start(axis) + steps, dtype=np.float64)

    def inverse_positions(self, axis: int) -> NDArray[np.float64]:
        """New-grid index of each given voxel along an axis, (source[axis],)."""
        offsets = np.arange(self.source[axis]) - self.start(axis)
        return np.asarray(offsets / self.step[axis], dtype=np.float64)

    def affine(self, source: Affine) -> Affine:
        """Affine of the new grid, given that of the source grid."""
        if self.is_identity:
            return source
        start = [self.start(axis) for axis in range(3)]
        return source @ Affine.shift(start) @ Affine.scale(self.step)


def resample(data: NDArray[Any], grid: Regrid) -> NDArray[np.float32]:
    """Values on the new grid: cubic convolution, widened against aliasing.

    Shrinking averages over what a new voxel covers; the result stays in the range of
    the input. Slices are resampled one by one, while they lie in the processor's cache
    (the input is never copied as a whole), then the slice axis.

    Args:
        data: (C, D, H, W) real numbers.
        grid: Its ``source`` is (D, H, W).

    Returns:
        (C, *grid.shape) float32.

    Source: Keys, IEEE TASSP 1981 (a = -0.5); widening as in Pillow and torch.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    bands = [_bands(grid, axis) for axis in range(3)]
    channels, depth = data.shape[:2]
    slices = np.empty((channels, depth, *grid.shape[1:]), np.float32)
    # The products are small: BLAS threads gain little and, on a busy machine, spin.
    with threadpool_limits(1, user_api="blas"):
        for channel in range(channels):
            for z in range(depth):
                plane = np.ascontiguousarray(data[channel, z], dtype=np.float32)
                rows = _multiply(bands[1], plane)
                slices[channel, z] = _multiply(bands[2], rows.T).T
        flat = slices.reshape(channels, depth, -1)
        result = np.stack([_multiply(bands[0], volume) for volume in flat])
    low, high = float(data.min()), float(data.max())
    np.clip(result, low, high, out=result)
    return result.reshape(channels, *grid.shape)


def nearest(data: NDArray[Any], positions: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """The voxel nearest to each grid position; outside, the border voxel.

    Args:
        data: (..., D, H, W), any type.
        positions: Index along each of the last three axes, one array per axis.

    Returns:
        Array of the positions' lengths along the last three axes.
    """
    lead = data.ndim - 3
    result = data
    for axis, wanted in enumerate(positions):
        length = data.shape[lead + axis]
        index = np.clip(np.floor(wanted + 0.5).astype(np.int64), 0, length - 1)
        if not np.array_equal(index, np.arange(length)):
            result = np.take(result, index, axis=lead + axis)
    return result


def _bands(grid: Regrid, axis: int) -> list[_Band] | None:
    """The resampling matrix of one axis as blocks of rows; None changes nothing.

    Each row sums to 1 and reaches only a few voxels, so a block of rows needs only a
    narrow range of the input.
    """
    if grid.step[axis] == 1.0:
        return None
    width = max(1.0, grid.step[axis])
    centres = grid.positions(axis)[:, None]
    distance = np.abs(np.arange(grid.source[axis])[None, :] - centres) / width
    near = (1.5 * distance - 2.5) * distance**2 + 1.0
    far = ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    weights /= weights.sum(axis=1, keepdims=True)
    bands = []
    for first in range(0, len(weights), _BLOCK):
        rows = slice(first, min(first + _BLOCK, len(weights)))
        used = np.flatnonzero(weights[rows].any(axis=0))
        given = slice(int(used[0]), int(used[-1]) + 1)
        matrix = np.ascontiguousarray(weights[rows, given], dtype=np.float32)
        bands.append(_Band(rows, given, matrix))
    return bands


def _multiply(
    bands: list[_Band] | None, data: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Resample the first axis of a matrix (given, n) -> (new, n)."""
    if bands is None:
        return data
    result = np.empty((bands[-1].rows.stop, data.shape[1]), np.float32)
    for band in bands:
        np.matmul(band.matrix, data[band.given], out=result[band.rows])
    return result


# Any values as int16 with a scale and an offset, exactly where that is possible.
# Values that are not whole numbers get this many levels over their usual range, finer
# than the 12 bits of a scanner; the rest of int16 is room for outliers.
_LEVELS = 8192


def to_int16(
    data: NDArray[Any], grid: Regrid
) -> tuple[NDArray[np.int16], float, float, str]:
    """(stored, scale, offset, note) of values on the new grid.

    Whole numbers that fit are kept exactly (with an offset if need be); after an
    interpolation they are rounded to whole numbers where their range is wide. Anything
    else gets 8192 levels over its usual range.
    """
    values = np.ascontiguousarray(_within_reach(data))
    whole = _is_whole(values)
    if not grid.is_identity:
        values = resample(values, grid)
    if values.dtype.itemsize <= 2 and values.dtype.kind in "bi":
        return values.astype(np.int16, copy=False), 1.0, 0.0, ""
    least, most = float(values.min()), float(values.max())
    usual = [float(p) for p in np.percentile(spread_sample(values), (0.05, 99.95))]
    exact = grid.is_identity or usual[1] - usual[0] >= 1024
    if whole and exact and round(most) - round(least) <= 65535:
        fits = least >= _INT16.min and most <= _INT16.max
        offset = 0.0 if fits else float(round(least) - _INT16.min)
        return _quantise(values, 1.0, offset), 1.0, offset, ""
    low, high = usual if usual[1] > usual[0] else (least, most)
    if not high > low:
        return np.zeros(values.shape, np.int16), 1.0, low, ""
    scale, offset = (high - low) / _LEVELS, (low + high) / 2
    ends = ((least - offset) / scale, (most - offset) / scale)
    note = ""
    if ends[0] < _INT16.min or ends[1] > _INT16.max:
        note = (
            f"values {least:g}..{most:g} were clipped to "
            f"{max(least, offset + scale * _INT16.min):g}.."
            f"{min(most, offset + scale * _INT16.max):g} "
            f"(usual range {low:g}..{high:g})"
        )
    return _quantise(values, scale, offset), scale, offset, note


# Beyond this, sums of squares of float32 values are no numbers.
_REACH = 1e15


def _within_reach(values: NDArray[Any]) -> NDArray[Any]:
    """The same values; those that float32 cannot reckon with at the edge of it."""
    if values.dtype.kind != "f" or not values.size:
        return values
    if -_REACH <= float(values.min()) and float(values.max()) <= _REACH:
        return values
    within: NDArray[Any] = np.clip(values, -_REACH, _REACH)
    return within


def _is_whole(values: NDArray[Any]) -> bool:
    """Whether all values are whole numbers; stops at the first part that is not."""
    if values.dtype.kind in "biu":
        return True
    flat = values.reshape(-1)
    parts = range(0, flat.size, 1 << 20)
    return all(
        bool(np.array_equal(part, np.rint(part)))
        for part in (flat[i : i + (1 << 20)] for i in parts)
    )


def _quantise(values: NDArray[Any], scale: float, offset: float) -> NDArray[np.int16]:
    """Round((value - offset) / scale) as int16, plane by plane to save memory."""
    stored = np.empty(values.shape, np.int16)
    for channel in range(values.shape[0]):
        for z in range(values.shape[1]):
            plane = values[channel, z].astype(np.float64)
            plane = np.rint((plane - offset) / scale)
            stored[channel, z] = np.clip(plane, _INT16.min, _INT16.max)
    return stored


# More voxels than this (about 2.4 GB as int16) fit no machine we know while training.
MAX_VOXELS = 1_200_000_000
_INT16 = np.iinfo(np.int16)


# What values become, see Preprocessing.scaling.
SCALINGS = ("usual", "unit", "signed", "zscore", "dataset")


@dataclass(frozen=True)
class Preprocessing:
    """What is done to every scan before a network sees it."""

    spacing_mm: tuple[float, float, float] | None = option(
        None,
        "Voxel size z, y, x of the prepared scans; empty keeps each scan's own.",
        unit="mm",
        minimum=0.001,
        maximum=1000.0,
    )
    window_hu: tuple[float, float] = option(
        (-1000.0, 1000.0), "CT values kept: darkest and brightest.", unit="HU"
    )
    percentiles: tuple[float, float] = option(
        (0.5, 99.5),
        "Foreground values kept in other scans: darkest and brightest.",
        unit="%",
        minimum=0.0,
        maximum=100.0,
    )
    modality: str | None = option(
        None,
        "Treat every scan as this modality; empty takes what each file says.",
        choices=MODALITIES,
    )
    axes: str = option(
        "anatomical",
        "z, y, x are the nearest axes of the body, or z runs across the slices as they "
        "were acquired, and y and x lie within them.",
        choices=("anatomical", "acquired"),
    )
    scaling: str = option(
        "usual",
        "What values a network sees. usual: CT from -1 to 1 within its window, other "
        "scans mean 0 and spread 1 over the body. unit: from 0 to 1. signed: from -1 "
        "to 1 between the percentiles of all voxels, CT too. zscore: mean 0 and spread "
        "1 over all voxels, CT too, nothing cut. dataset: CT less the mean and by the "
        "spread of a data set. All but the first are how published networks learnt.",
        choices=SCALINGS,
        later=True,
    )
    dataset_hu: tuple[float, float] = option(
        (0.0, 1.0),
        "With scaling dataset: mean and spread of the CT values of a data set.",
        unit="HU",
        later=True,
    )
    fill_nan: bool = option(
        False,
        "Values that are NaN or infinite become the least finite one; otherwise such a "
        "scan is refused.",
    )

    @property
    def acquired(self) -> bool:
        """Whether z runs across the slices, however they lie in the body."""
        return self.axes == "acquired"

    def settings(self) -> dict[str, Any]:
        """All settings, for hashes: the newer ones only where they are not as before.

        Stores and features of earlier versions stay current by that.
        """
        found: dict[str, Any] = to_dict(self)
        if not self.acquired:
            del found["axes"]
        if not self.fill_nan:
            del found["fill_nan"]
        return found

    def axes_of(
        self, affine: Affine, shape: Index
    ) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        """How the axes of a scan are turned, as taken by ``Affine.reorient``."""
        return affine.acquired_axes(shape) if self.acquired else affine.closest_axes()


def recipe_words(recipe: Mapping[str, Any]) -> str:
    """``1.5 mm, CT -175 to 250 HU as 0 to 1``."""
    spacing = recipe.get("spacing_mm")
    size = "each scan's own voxels" if spacing is None else spacing_text(spacing)
    return f"{size}, {values_words(recipe)}"


def values_words(recipe: Mapping[str, Any]) -> str:
    """``CT -175 to 250 HU as 0 to 1``."""
    low, high = recipe.get("window_hu") or (-1000.0, 1000.0)
    first, last = recipe.get("percentiles") or (0.5, 99.5)
    mean, spread = recipe.get("dataset_hu") or (0.0, 1.0)
    kinds = {
        "usual": f"CT {low:g} to {high:g} HU as -1 to 1, other scans mean 0, spread 1",
        "unit": f"CT {low:g} to {high:g} HU as 0 to 1, other scans their percentiles",
        "signed": f"values from the {first:g} to the {last:g} percentile as -1 to 1",
        "zscore": "mean 0 and spread 1 over all voxels",
        "dataset": f"CT {low:g} to {high:g} HU less {mean:g} by {spread:g}, other "
        "scans mean 0, spread 1",
    }
    return kinds[recipe.get("scaling", "usual")]


def differing_settings(recipes: Sequence[Preprocessing]) -> list[str]:
    """Settings in which any recipe differs from the first; not the modality.

    Stores of several modalities leave a new scan its own.
    """
    names = [f.name for f in fields(Preprocessing) if f.name != "modality"]
    told = [[getattr(recipe, name) for recipe in recipes] for name in names]
    pairs = zip(names, told, strict=True)
    return sorted(name for name, values in pairs if any(v != values[0] for v in values))


@dataclass(frozen=True)
class Intensities:
    """How values become what a network sees; all four in the scan's own unit.

    normalised = (clip(value, low, high) - centre) / spread
    """

    low: float
    high: float
    centre: float
    spread: float

    def normalise(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Values (any shape, value units) -> normalised float32."""
        kept = np.clip(np.asarray(values, dtype=np.float32), self.low, self.high)
        return np.asarray((kept - self.centre) / self.spread, dtype=np.float32)


@dataclass(frozen=True)
class ChannelLevels:
    """What the stored numbers of one channel of a case mean.

    Attributes:
        name: Of the channel; "" where nobody says.
        modality: One of MODALITIES.
        scale: Value units per stored step.
        offset: Value of a stored 0.
        intensity: How values are normalised.
    """

    name: str
    modality: str
    scale: float
    offset: float
    intensity: Intensities

    @property
    def gain(self) -> float:
        """Normalised units per stored step."""
        return self.scale / self.intensity.spread

    @property
    def bias(self) -> float:
        """The normalised value of a stored 0."""
        return (self.offset - self.intensity.centre) / self.intensity.spread

    @property
    def low(self) -> float:
        """The least normalised value: what a network sees outside the scan."""
        return (self.intensity.low - self.intensity.centre) / self.intensity.spread

    @property
    def high(self) -> float:
        """The largest normalised value."""
        return (self.intensity.high - self.intensity.centre) / self.intensity.spread

    @property
    def fill(self) -> int:
        """Stored value of the darkest value kept."""
        wanted = (self.intensity.low - self.offset) / self.scale
        return max(-32768, min(32767, round(wanted)))

    def values(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """Stored numbers (any shape) in value units."""
        values = np.asarray(stored).astype(np.float32)
        values *= np.float32(self.scale)
        values += np.float32(self.offset)
        return values

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "name": self.name, "modality": self.modality, "scale": self.scale,
            "offset": self.offset, **to_dict(self.intensity),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> ChannelLevels:
        """Inverse of ``to_dict``."""
        numbers = Intensities(
            *(float(told[k]) for k in ("low", "high", "centre", "spread"))
        )
        return cls(
            str(told["name"]), str(told["modality"]), float(told["scale"]),
            float(told["offset"]), numbers,
        )  # fmt: skip


def in_units(
    stored: NDArray[Any], levels: Sequence[ChannelLevels]
) -> NDArray[np.float32]:
    """Stored numbers (C, ...) in the value units of each channel."""
    found = np.empty(stored.shape, np.float32)
    for part, whole, one in zip(stored, found, levels, strict=True):
        whole[...] = one.values(part)
    return found


def in_network_units(
    stored: NDArray[Any], levels: Sequence[ChannelLevels]
) -> NDArray[np.float32]:
    """Stored numbers (C, ...) as a network sees them, channel by channel."""
    found = in_units(stored, levels)
    for part, one in zip(found, levels, strict=True):
        part[...] = one.intensity.normalise(part)
    return found


@dataclass(frozen=True, eq=False)
class Prepared:
    """A scan as the store keeps it.

    Of several channels each has numbers of its own, see ``levels``; those below are the
    first one's.

    Attributes:
        data: (C, D, H, W) int16; value = data * scale + offset.
        affine: Prepared voxel -> world mm, LPS.
        scale: Value units per step.
        offset: Value of a stored 0.
        intensity: How values are normalised.
        modality: One of MODALITIES.
        foreground: Box of the body (first voxel, one past the last).
        grid: From the scan's grid, its axes turned, to the prepared one.
        axes: Permutation that turned them.
        flips: Flips that did.
        note: A sentence when values had to be clipped, else empty.
        levels: What the numbers of each channel mean.
    """

    data: NDArray[np.int16]
    affine: Affine
    scale: float
    offset: float
    intensity: Intensities
    modality: str
    foreground: Box
    grid: Regrid
    axes: tuple[int, ...]
    flips: tuple[bool, ...]
    note: str = ""
    levels: tuple[ChannelLevels, ...] = ()

    @property
    def own_shape(self) -> Index:
        """Shape (z, y, x) of the scan as its file holds it."""
        shape = [0, 0, 0]
        for new, old in enumerate(self.axes):
            shape[old] = self.grid.source[new]
        return shape[0], shape[1], shape[2]

    def normalised(self) -> NDArray[np.float32]:
        """(C, D, H, W) float32 as a network sees it."""
        return in_network_units(self.data, self.levels)


def prepare_volume(
    volume: Volume, preprocessing: Preprocessing, learnt: Learnt | None = None
) -> Prepared:
    """Axes and voxel size of the recipe, int16, and the numbers to normalise with.

    Args:
        volume: A scan as stored in its file.
        preprocessing: The recipe. A single slice keeps its own pixels.
        learnt: Of a model that is to see the scan: where the recipe names no voxel
            size, a scan of another one than was learnt from is brought to it.

    Raises:
        UnusableInput: The scan holds NaN or infinity, would become too large, or has
            voxels so coarse that nothing learnt can be seen.
    """
    name = volume.name or "this scan"
    filled = ""
    if not np.isfinite([float(volume.data.min()), float(volume.data.max())]).all():
        if not preprocessing.fill_nan:
            raise UnusableInput(f"scan {name!r} holds NaN or infinite values.")
        volume, filled = without_nan(volume)
    canonical = closest_canonical(volume, acquired=preprocessing.acquired)
    grid, far = _planned(canonical, preprocessing, learnt, name)
    parts = [
        _prepared_channel(canonical.data[c : c + 1], grid, preprocessing, name, kind)
        for c, (name, kind) in enumerate(_told(volume, preprocessing))
    ]
    data, notes, levels = zip(*parts, strict=True)
    first = levels[0]
    sample = first.values(spread_sample(data[0]))
    is_ct = first.modality == "CT"
    kinds = {one.modality for one in levels}
    return Prepared(
        data=data[0] if len(data) == 1 else np.concatenate(data),
        affine=grid.affine(canonical.affine),
        scale=first.scale,
        offset=first.offset,
        intensity=first.intensity,
        modality=kinds.pop() if len(kinds) == 1 else "OTHER",
        foreground=foreground_box(
            data[0], sample, is_ct, scale=first.scale, offset=first.offset
        ),
        grid=grid,
        axes=canonical.meta["axes"],
        flips=canonical.meta["flips"],
        note="; ".join(note for note in (far, filled, *notes) if note),
        levels=levels,
    )


def without_nan(volume: Volume) -> tuple[Volume, str]:
    """The scan with NaN and infinity as the least finite value, and how many they were.

    Raises:
        UnusableInput: A channel has no finite value.
    """
    data = np.array(volume.data)
    sentences = []
    for number, channel in enumerate(data):
        lost = ~np.isfinite(channel)
        count = int(np.count_nonzero(lost))
        if count == lost.size:
            raise UnusableInput(f"scan {volume.name!r} holds no finite value.")
        if count:
            least = channel[~lost].min()
            channel[lost] = least
            where = f" of channel {number + 1}" if len(data) > 1 else ""
            sentences.append(filled_text(count, lost.size, float(least)) + where)
    return replace(volume, data=data), "; ".join(sentences)


def _planned(
    canonical: Volume, preprocessing: Preprocessing, learnt: Learnt | None, name: str
) -> tuple[Regrid, str]:
    """The prepared grid of a scan whose axes are turned, and a warning about it.

    Raises:
        UnusableInput: It would be too large, or nothing learnt can be seen there.
    """
    own = canonical.affine.spacing_mm
    far = None if learnt is None else learnt.far_of(canonical, own, canonical.shape)
    if far is not None and far.hides:
        raise UnusableInput(f"scan {name!r} has {far.text}; take one of finer voxels.")
    grid = plan_grid(canonical.affine, canonical.shape, preprocessing)
    if preprocessing.spacing_mm is None and learnt is not None:
        target = learnt.target_mm(canonical, own, canonical.shape)
        grid = Regrid.between(canonical.shape, own, target)
    if prod(grid.shape) * canonical.data.shape[0] > MAX_VOXELS:
        size = grid.affine(canonical.affine).spacing_mm
        end = "the size the model learnt at" if learnt else "choose a coarser spacing"
        raise UnusableInput(
            f"scan {name!r} would have {times(grid.shape)} voxels of "
            f"{times(size, 3)} mm (z, y, x), more than "
            f"{MAX_VOXELS:,}; {end}."
        )
    return grid, far.text if far else ""


def _told(volume: Volume, preprocessing: Preprocessing) -> list[tuple[str, str]]:
    """Name and modality of each channel.

    The modality of a recipe is that of all its scans, and says nothing of channels that
    differ.
    """
    told = volume.meta.get(CHANNELS)
    if told and len(told) == len(volume.data) > 1:
        return [(str(one["name"]), str(one["modality"])) for one in told]
    kind = preprocessing.modality or volume.modality
    return [("", kind)] * len(volume.data)


def _prepared_channel(
    values: NDArray[Any], grid: Regrid, recipe: Preprocessing, name: str, kind: str
) -> tuple[NDArray[np.int16], str, ChannelLevels]:
    """One channel (1, D, H, W) as the store keeps it, a remark, and its numbers."""
    data, scale, offset, note = to_int16(values, grid)
    if name and kind != "CT" and Channel(Path(), name).is_mask:
        intensity = Intensities(0.0, 1.0, 0.0, 1.0)
    elif recipe.scaling in ("signed", "zscore"):
        intensity = _over_all_voxels(data, scale, offset, recipe)
    elif kind == "CT":
        low, high = recipe.window_hu
        if recipe.scaling == "dataset":
            intensity = Intensities(low, high, *recipe.dataset_hu)
        else:
            intensity = _between(low, high, unit=recipe.scaling == "unit")
    else:
        sample = spread_sample(data) * np.float32(scale) + np.float32(offset)
        intensity = _robust_intensities(sample, recipe.percentiles)
        if recipe.scaling == "unit":
            intensity = _between(intensity.low, intensity.high, unit=True)
    note = f"{name}: {note}" if name and note else note
    return data, note, ChannelLevels(name, kind, scale, offset, intensity)


def _between(low: float, high: float, *, unit: bool) -> Intensities:
    """From 0 to 1, or from -1 to 1, between two values."""
    span = high - low if high > low else 1.0
    return Intensities(low, high, low if unit else (low + high) / 2, span / (2 - unit))


def _over_all_voxels(
    data: NDArray[np.int16], scale: float, offset: float, recipe: Preprocessing
) -> Intensities:
    """Percentiles, or mean and spread, of a whole scan, air and table included."""
    sample = spread_sample(data) * np.float32(scale) + np.float32(offset)
    least, most = (float(end) * scale + offset for end in (data.min(), data.max()))
    if recipe.scaling == "signed":
        low, high = (float(p) for p in np.percentile(sample, recipe.percentiles))
        if not high > low:
            low, high = least, most
        return _between(low, high, unit=False)
    spread = float(sample.std(dtype=np.float64))
    if not spread > 1e-6 * max(abs(least), abs(most), 1e-30):
        spread = 1.0
    return Intensities(least, most, float(sample.mean(dtype=np.float64)), spread)


def plan_grid(
    affine: Affine, shape: tuple[int, int, int], preprocessing: Preprocessing
) -> Regrid:
    """The prepared grid of a scan whose axes are turned, from its header alone."""
    is_slice = min(shape) == 1
    target = None if is_slice else preprocessing.spacing_mm
    return Regrid.between(shape, affine.spacing_mm, target)


def labels_on_grid(labels: LabelMap, prepared: Prepared) -> NDArray[np.int16]:
    """The label map on the prepared grid: nearest voxel, no new values.

    Args:
        labels: On the scan's own grid.
        prepared: What ``prepare_volume`` made of the scan.

    Raises:
        UnusableInput: Another grid than the scan's, or a value that int16 cannot hold.
    """
    if labels.shape != prepared.own_shape:
        raise UnusableInput(
            f"label map {labels.name!r} must have the shape of its scan "
            f"{prepared.own_shape}, got {labels.shape}."
        )
    if labels.data.size and (labels.data.max() > _INT16.max or labels.data.min() < -1):
        raise UnusableInput(
            f"label values must be in -1..{_INT16.max}, got {labels.data.min()}.."
            f"{labels.data.max()} in {labels.name!r}."
        )
    turned = reorder_axes(labels.data, prepared.axes, prepared.flips)
    grid = prepared.grid
    if not grid.is_identity:
        turned = nearest(turned, [grid.positions(axis) for axis in range(3)])
    return np.ascontiguousarray(turned, dtype=np.int16)


def restore_labels(array: NDArray[Any], prepared: Prepared, volume: Volume) -> LabelMap:
    """Labels on the prepared grid -> the scan's own grid and affine.

    Exact where only axes were turned; one nearest-voxel step where the voxel size
    changed.

    Args:
        array: (D, H, W) integers on the prepared grid.
        prepared: What ``prepare_volume`` made of the scan.
        volume: The scan.
    """
    if array.shape != prepared.grid.shape:
        raise ValueError(
            f"labels must lie on the prepared grid {prepared.grid.shape}, "
            f"got {array.shape} for {volume.name!r}."
        )
    grid = prepared.grid
    if not grid.is_identity:
        array = nearest(array, [grid.inverse_positions(axis) for axis in range(3)])
    data = np.ascontiguousarray(restore_axes(array, prepared.axes, prepared.flips))
    return LabelMap(data=data, affine=volume.affine, name=volume.name, meta=volume.meta)


def restore_values(
    array: NDArray[np.float32], prepared: Prepared, volume: Volume
) -> Volume:
    """Values on the prepared grid -> an image on the scan's own grid and affine.

    Exact where only axes were turned; linear between voxels where their size changed.

    Args:
        array: (C, D, H, W) on the prepared grid.
        prepared: What ``prepare_volume`` made of the scan.
        volume: The scan.
    """
    grid = prepared.grid
    if array.shape[1:] != grid.shape:
        raise ValueError(
            f"values must lie on the prepared grid {grid.shape}, got {array.shape}."
        )
    for axis in range(3 if not grid.is_identity else 0):
        at = np.clip(grid.inverse_positions(axis), 0, grid.shape[axis] - 1)
        first = np.minimum(at.astype(int), max(grid.shape[axis] - 2, 0))
        share = (at - first).astype(np.float32)
        share = share.reshape(-1, *(1,) * (2 - axis))
        following = np.minimum(first + 1, grid.shape[axis] - 1)
        low, high = (np.take(array, i, axis=axis + 1) for i in (first, following))
        array = low + (high - low) * share
    data = np.ascontiguousarray(restore_axes(array, prepared.axes, prepared.flips))
    meta = {k: v for k, v in volume.meta.items() if k != CHANNELS}
    return Volume(data, volume.affine, volume.name, volume.modality, meta)


def _robust_intensities(
    sample: NDArray[np.float32], percentiles: tuple[float, float]
) -> Intensities:
    """Percentiles, mean and standard deviation of the foreground of a spread sample."""
    body = sample[inside(sample, sample, False)]
    if body.size < 16:
        body = sample
    low, high = (float(p) for p in np.percentile(body, percentiles))
    if not high > low:
        low, high = float(sample.min()), float(sample.max())
    kept = np.clip(body, low, high)
    spread = float(kept.std())
    if not spread > 1e-6 * max(abs(low), abs(high), 1e-30):
        spread = high - low if high > low else 1.0
    return Intensities(low, high, float(kept.mean()), spread)


def preparation_notes(
    volume: Volume, prepared: Prepared, *, named_size: object = None
) -> Job[None]:
    """What was done to a scan's values, and to its voxels where no recipe required it.

    Args:
        volume: The scan.
        prepared: What ``prepare_volume`` made of it.
        named_size: The recipe's own voxel size; None: it names none.
    """
    if prepared.note:
        yield Note(f"{volume.name}: {prepared.note}.", "warning")
    if named_size is None and not prepared.grid.is_identity:
        new = prepared.affine.spacing_mm
        z, y, x = (mm / s for mm, s in zip(new, prepared.grid.step, strict=True))
        yield Note(brought_note(volume.name, (z, y, x), new))
