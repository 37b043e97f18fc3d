"""Where a layer's voxels truly lie: between the shown world and the patient's.

A scan's array is turned to run closest to z, y, x of LPS and shown with scale and
translate only. Where the scan is tilted, the world shown is "straight": turned about
the scan's centre. Free of napari and Qt; layers are only looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from homolog.geometry.affine import Affine, Index

# What tells our entry in ``layer.metadata``.
KEY = "homolog"
_TILT_TOLD_DEGREES = 0.05
_MM_PER = {
    "millimeter": 1.0, "millimetre": 1.0, "mm": 1.0, "pixel": 1.0, "": 1.0,
    "micrometer": 1e-3, "micron": 1e-3, "um": 1e-3, "µm": 1e-3, "nanometer": 1e-6,
    "nm": 1e-6, "centimeter": 10.0, "cm": 10.0, "meter": 1e3, "m": 1e3,
}  # fmt: skip


@dataclass(frozen=True)
class SourceGrid:
    """The grid of the file a layer came from, and how its array was turned.

    Attributes:
        affine: Voxel of the file's own array -> true mm, LPS.
        shape: Shape of the file's own array (D, H, W).
        axes: Axis i of the layer is axis ``axes[i]`` of the file.
        flips: Whether axis i of the layer runs backwards.
    """

    affine: Affine
    shape: Index
    axes: tuple[int, ...]
    flips: tuple[bool, ...]

    @classmethod
    def of(cls, affine: Affine, shape: Index) -> SourceGrid:
        """The grid of an array that is shown closest-canonical."""
        axes, flips = affine.closest_axes()
        return cls(affine, shape, axes, flips)

    @property
    def turned(self) -> Affine:
        """Voxel of the layer -> true mm."""
        return self.affine.reorient(self.axes, self.flips, self.shape)

    @property
    def turned_shape(self) -> Index:
        """Shape of the layer (D, H, W)."""
        d, h, w = (self.shape[a] for a in self.axes)
        return d, h, w

    @property
    def shown(self) -> Affine:
        """Voxel of the layer -> shown mm; scale and translate only."""
        turned = self.turned
        spacing = turned.spacing_mm
        if turned.is_axis_aligned:
            return Affine.of(spacing, turned.origin_mm)
        centre = (np.array(self.turned_shape) - 1) / 2
        return Affine.of(spacing, tuple(turned.apply(centre) - centre * spacing))

    @property
    def shown_to_true(self) -> Affine:
        """Shown world mm -> true world mm; the identity unless the scan is tilted."""
        return _snapped(self.turned @ self.shown.inverse())

    @property
    def tilt_degrees(self) -> float:
        """Largest angle between an array axis and its world axis; 0 when negligible."""
        cosine = min(float(np.abs(self.affine.direction).max(axis=0).min()), 1.0)
        degrees = math.degrees(math.acos(cosine))
        return degrees if degrees >= _TILT_TOLD_DEGREES else 0.0

    def to_metadata(self) -> dict[str, Any]:
        """Plain JSON types for ``layer.metadata["homolog"]``."""
        return {
            "affine": self.affine.to_list(),
            "shape": tuple(int(n) for n in self.shape),
            "axes": tuple(int(a) for a in self.axes),
            "flips": tuple(bool(f) for f in self.flips),
        }


def is_kind(layer: Any, name: str) -> bool:
    """Whether a layer is an ``Image``, ``Labels`` ...; by name, without napari.

    ``__class__``, not ``type``: napari hands plugins layers in a proxy.
    """
    return any(kind.__name__ == name for kind in layer.__class__.__mro__)


def notes_of(layer: Any) -> Mapping[str, Any]:
    """Our entry in a layer's metadata; empty where there is none."""
    metadata = getattr(layer, "metadata", None)
    found = metadata.get(KEY) if isinstance(metadata, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def source_grid(layer: Any) -> SourceGrid | None:
    """The grid that a layer's metadata tell of; None without, or with broken ones."""
    notes = notes_of(layer)
    try:
        d, h, w = (int(n) for n in notes["shape"])
        axes = tuple(int(a) for a in notes["axes"])
        flips = tuple(bool(f) for f in notes["flips"])
        if sorted(axes) != [0, 1, 2] or len(flips) != 3:
            return None
        return SourceGrid(Affine(notes["affine"]), (d, h, w), axes, flips)
    except (KeyError, TypeError, ValueError):
        return None


def shape_of(layer: Any) -> Index:
    """Shape (D, H, W) of a layer of two or three dimensions; D is 1 for two."""
    d, h, w = (1, *layer.data.shape)[-3:]
    return int(d), int(h), int(w)


def shown_affine(layer: Any) -> Affine:
    """Voxel (z, y, x) of a layer -> shown world, mm, as the layer lies now."""
    ndim = len(layer.data.shape)
    k = min(ndim, 3)
    matrix = np.eye(4)
    matrix[3 - k : 3, 3 - k : 3] = np.diag(np.asarray(layer.scale, np.float64)[-k:])
    matrix[3 - k : 3, 3] = np.asarray(layer.translate, np.float64)[-k:]
    if _is_turned_by_user(layer):
        zero = np.zeros(ndim)
        origin = np.asarray(layer.data_to_world(zero), np.float64)
        for axis in range(ndim - k, ndim):
            step = zero.copy()
            step[axis] = 1.0
            column = np.asarray(layer.data_to_world(step), np.float64) - origin
            matrix[3 - k : 3, axis - ndim + 3] = column[-k:]
        matrix[3 - k : 3, 3] = origin[-k:]
    return Affine.scale(_mm_per_unit(layer)) @ Affine(matrix)


def true_affine(layer: Any) -> Affine:
    """Voxel (z, y, x) of a layer -> true world, mm, LPS."""
    grid = source_grid(layer)
    if grid is None:
        return shown_affine(layer)
    if lies_on(layer, grid):
        return grid.turned
    return grid.shown_to_true @ shown_affine(layer)


def lies_on(layer: Any, grid: SourceGrid) -> bool:
    """Whether a layer still has that grid: not cropped, coarsened or moved."""
    return shape_of(layer) == grid.turned_shape and np.allclose(
        shown_affine(layer).matrix, grid.shown.matrix, rtol=1e-6, atol=1e-4
    )


def tilt_note(grid: SourceGrid) -> str:
    """What to tell about a tilted scan, "" when it is not."""
    degrees = grid.tilt_degrees
    if degrees == 0.0:
        return ""
    said = f"{degrees:.0f}" if degrees >= 1 else f"{degrees:.1f}"
    plural = "" if said == "1" else "s"
    return f"tilted {said} degree{plural}: shown straight, saved tilted"


def _is_turned_by_user(layer: Any) -> bool:
    """Whether more than scale and translate places the layer."""
    if not hasattr(layer, "data_to_world"):
        return False
    rotate = np.asarray(getattr(layer, "rotate", 0.0))
    off = rotate.ndim == 2 and not np.allclose(rotate, np.eye(len(rotate)))
    shear = np.asarray(getattr(layer, "shear", 0.0))
    extra = getattr(getattr(layer, "affine", None), "affine_matrix", None)
    moved = extra is not None and not np.allclose(extra, np.eye(len(extra)))
    return bool(off or (shear.size and np.abs(shear).max() > 1e-9) or moved)


def _mm_per_unit(layer: Any) -> tuple[float, float, float]:
    units = [str(u) for u in (getattr(layer, "units", None) or ())][-3:]
    z, y, x = ([1.0] * 3 + [_MM_PER.get(u, 1.0) for u in units])[-3:]
    return z, y, x


def _snapped(affine: Affine) -> Affine:
    """The identity where only rounding keeps it from being it."""
    near = np.allclose(affine.matrix[:3, :3], np.eye(3), rtol=0, atol=1e-9)
    if near and np.allclose(affine.matrix[:3, 3], 0.0, rtol=0, atol=1e-6):
        return Affine.identity()
    return affine
