"""One recipe from a scan to what the store keeps, and back for labels.

Axes are permuted and flipped, never rotated; the voxel size may change; values become
int16 with a scale and an offset. The same function prepares training and new scans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.config import option
from homolog.data.foreground import Box, foreground_box, inside, spread_sample
from homolog.data.learnt_spacing import Learnt
from homolog.data.quantise import to_int16
from homolog.data.resample import Regrid, nearest
from homolog.data.volume import (
    MODALITIES,
    LabelMap,
    Volume,
    closest_canonical,
    reorder_axes,
    restore_axes,
)
from homolog.errors import UnusableInput
from homolog.geometry.affine import Affine, Index

# More voxels than this (about 2.4 GB as int16) fit no machine we know while training.
MAX_VOXELS = 1_200_000_000
_INT16 = np.iinfo(np.int16)


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


@dataclass(frozen=True, eq=False)
class Prepared:
    """A scan as the store keeps it.

    Attributes:
        data: (C, D, H, W) int16; value = data * scale + offset.
        affine: Prepared voxel -> world mm, LPS.
        scale: Value units per step.
        offset: Value of a stored 0.
        intensity: How values are normalised.
        modality: One of MODALITIES.
        foreground: Box of the body (first voxel, one past the last).
        grid: From the scan's closest-canonical grid to the prepared one.
        axes: Permutation that made the scan canonical.
        flips: Flips that did.
        note: A sentence when values had to be clipped, else empty.
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

    @property
    def own_shape(self) -> Index:
        """Shape (z, y, x) of the scan as its file holds it."""
        shape = [0, 0, 0]
        for new, old in enumerate(self.axes):
            shape[old] = self.grid.source[new]
        return shape[0], shape[1], shape[2]

    def normalised(self) -> NDArray[np.float32]:
        """(C, D, H, W) float32 as a network sees it."""
        return self.intensity.normalise(
            self.data * np.float32(self.scale) + np.float32(self.offset)
        )


def prepare_volume(
    volume: Volume, preprocessing: Preprocessing, learnt: Learnt | None = None
) -> Prepared:
    """Canonical axes, target voxel size, int16, and the numbers to normalise with.

    Args:
        volume: A scan as stored in its file.
        preprocessing: The recipe. A single slice keeps its own pixels.
        learnt: Of a model that is to see the scan: where the recipe names no voxel
            size, a scan of another one than was learnt from is brought to it.

    Raises:
        UnusableInput: The scan holds NaN or infinity, or would become too large.
    """
    name = volume.name or "this scan"
    if not np.isfinite([float(volume.data.min()), float(volume.data.max())]).all():
        raise UnusableInput(f"scan {name!r} holds NaN or infinite values.")
    canonical = closest_canonical(volume)
    grid = plan_grid(canonical.affine, canonical.shape, preprocessing)
    if preprocessing.spacing_mm is None and learnt is not None:
        own = canonical.affine.spacing_mm
        target = learnt.target_mm(canonical, own, canonical.shape)
        grid = Regrid.between(canonical.shape, own, target)
    if prod(grid.shape) * volume.data.shape[0] > MAX_VOXELS:
        size = grid.affine(canonical.affine).spacing_mm
        end = "the size the model learnt at" if learnt else "choose a coarser spacing"
        raise UnusableInput(
            f"scan {name!r} would have {' x '.join(map(str, grid.shape))} voxels of "
            f"{' x '.join(f'{v:.3g}' for v in size)} mm (z, y, x), more than "
            f"{MAX_VOXELS:,}; {end}."
        )
    data, scale, offset, note = to_int16(canonical.data, grid)
    modality = preprocessing.modality or volume.modality
    is_ct = modality == "CT"
    sample = spread_sample(data) * np.float32(scale) + np.float32(offset)
    if is_ct:
        low, high = preprocessing.window_hu
        intensity = Intensities(low, high, (low + high) / 2, (high - low) / 2)
    else:
        intensity = _robust_intensities(sample, preprocessing.percentiles)
    return Prepared(
        data=data,
        affine=grid.affine(canonical.affine),
        scale=scale,
        offset=offset,
        intensity=intensity,
        modality=modality,
        foreground=foreground_box(data, sample, is_ct, scale=scale, offset=offset),
        grid=grid,
        axes=canonical.meta["axes"],
        flips=canonical.meta["flips"],
        note=note,
    )


def plan_grid(
    affine: Affine, shape: tuple[int, int, int], preprocessing: Preprocessing
) -> Regrid:
    """The prepared grid of a closest-canonical scan, from its header alone."""
    is_slice = min(shape) == 1
    target = None if is_slice else preprocessing.spacing_mm
    return Regrid.between(shape, affine.spacing_mm, target)


def prepare_labels(
    labels: LabelMap, volume: Volume, prepared: Prepared
) -> NDArray[np.int16]:
    """The label map on the prepared grid: nearest voxel, no new values.

    Args:
        labels: On the scan's own grid.
        volume: The scan.
        prepared: What ``prepare_volume`` made of it.

    Raises:
        UnusableInput: Another grid than the scan's, or a value that int16 cannot hold.
    """
    if labels.shape != volume.shape:
        raise _other_grid(labels, volume.shape)
    return labels_on_grid(labels, prepared)


def labels_on_grid(labels: LabelMap, prepared: Prepared) -> NDArray[np.int16]:
    """As ``prepare_labels``, when the scan itself is no longer in memory."""
    if labels.shape != prepared.own_shape:
        raise _other_grid(labels, prepared.own_shape)
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


def _other_grid(labels: LabelMap, shape: Index) -> UnusableInput:
    return UnusableInput(
        f"label map {labels.name!r} must have the shape of its scan {shape}, "
        f"got {labels.shape}."
    )


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
