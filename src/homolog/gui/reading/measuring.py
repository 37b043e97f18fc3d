"""What can be measured in a scan: lengths, angles, values in a region or a label.

No Qt, no napari. Places are voxels of a scan (z, y, x); millimetres come from its true
affine, so that they hold for flat voxels and for tilted scans alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.geometry.affine import Affine

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Values:
    """The values in a region.

    Attributes:
        count: Voxels with a finite value whose centre lies in the region.
        mean: Of these, as ``sd``, ``low`` and ``high``; NaN without any.
        sd: Standard deviation of the sample (n - 1); 0 for a single voxel.
        low: The smallest.
        high: The largest.
    """

    count: int
    mean: float
    sd: float
    low: float
    high: float

    @classmethod
    def of(cls, values: NDArray[Any]) -> Values:
        """Of an array of any shape."""
        flat = np.asarray(values, np.float64).ravel()
        flat = flat[np.isfinite(flat)]
        if not flat.size:
            return cls(0, np.nan, np.nan, np.nan, np.nan)
        sd = float(flat.std(ddof=1)) if flat.size > 1 else 0.0
        return cls(
            flat.size, float(flat.mean()), sd, float(flat.min()), float(flat.max())
        )

    def text(self, unit: str = "") -> str:
        """``mean 45.2 HU, SD 12.1`` and the range on a second line."""
        if not self.count:
            return "no voxel's centre inside"
        unit = f" {unit}" if unit else ""
        return (
            f"mean {number(self.mean)}{unit}, SD {number(self.sd)}\n"
            f"{number(self.low)} to {number(self.high)}{unit}"
        )


def number(value: float) -> str:
    """Four digits that count, without an exponent where that is short."""
    if not np.isfinite(value):
        return "-"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def length_mm(affine: Affine, points: Points) -> float:
    """Length of a line through places.

    Args:
        affine: Voxel -> true mm.
        points: (N, 3) voxels.
    """
    steps = np.diff(_mm(affine, points), axis=0)
    return float(np.linalg.norm(steps, axis=1).sum())


def angle_degrees(affine: Affine, points: Points) -> float:
    """The angle at the second of three places, 0 to 180; NaN where two coincide.

    Args:
        affine: Voxel -> true mm.
        points: (3, 3) voxels.
    """
    first, middle, last = _mm(affine, points)
    a, b = first - middle, last - middle
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    if lengths == 0.0:
        return float("nan")
    return float(np.degrees(np.arccos(np.clip(a @ b / lengths, -1.0, 1.0))))


def area_mm2(affine: Affine, kind: str, corners: Points) -> float:
    """Area of a flat region.

    Args:
        affine: Voxel -> true mm.
        kind: ``ellipse``, ``rectangle`` or ``polygon``.
        corners: Of an ellipse those of the rectangle around it, voxels.
    """
    mm = _mm(affine, corners)
    away = mm - mm[0]
    cross = np.cross(away, np.roll(away, -1, axis=0)).sum(axis=0)
    area = 0.5 * float(np.linalg.norm(cross))
    return area * np.pi / 4 if kind == "ellipse" else area


def values_in(data: NDArray[Any], kind: str, corners: Points) -> Values:
    """Values of the voxels whose centre lies in a flat region of one slice.

    Args:
        data: (D, H, W).
        kind: As for ``area_mm2``.
        corners: Voxels; all in one slice of z, y or x.
    """
    axis = int(np.argmin(np.ptp(corners, axis=0)))
    place = int(np.floor(corners[:, axis].mean() + 0.5))
    if not 0 <= place < data.shape[axis]:
        return Values.of(np.empty(0))
    flat = np.delete(corners, axis, axis=1)
    plane = np.take(data, place, axis=axis)
    low = np.maximum(np.ceil(flat.min(axis=0)).astype(int), 0)
    high = np.minimum(np.floor(flat.max(axis=0)).astype(int) + 1, plane.shape)
    if (high <= low).any():
        return Values.of(np.empty(0))
    rows, columns = np.mgrid[low[0] : high[0], low[1] : high[1]]
    inside = _inside(kind, flat, np.stack([rows, columns], axis=-1).astype(np.float64))
    return Values.of(plane[low[0] : high[0], low[1] : high[1]][inside])


def values_of_labels(
    data: NDArray[Any], labels: NDArray[Any], names: Mapping[int, str]
) -> list[tuple[int, str, Values]]:
    """(value, name, values) of each label there is, background left out.

    Args:
        data: (D, H, W).
        labels: On the same grid.
        names: Of the labels; a number stands for what has none.
    """
    flat = labels.ravel()
    inside = np.flatnonzero(flat)
    order = np.argsort(flat[inside], kind="stable")
    sorted_labels, values = flat[inside][order], data.reshape(-1)[inside][order]
    found, starts = np.unique(sorted_labels, return_index=True)
    pieces = np.split(values, starts[1:]) if found.size else []
    return [
        (int(value), names.get(int(value), f"label {int(value)}"), Values.of(piece))
        for value, piece in zip(found, pieces, strict=True)
    ]


def told_of(
    affine: Affine | None, data: NDArray[Any], kind: str, points: Points, unit: str
) -> str:
    """What is written beside a shape.

    Args:
        affine: Voxel -> true mm; None where nobody knows the size of a voxel, as in a
            picture: lengths and areas are those of pixels then.
        data: (D, H, W) of the scan.
        kind: napari's name of the shape.
        points: Its vertices, voxels.
        unit: Of the values, "" for none.
    """
    long, wide = ("px", "px²") if affine is None else ("mm", "mm²")
    affine = affine or Affine.of((1.0, 1.0, 1.0))
    if kind in ("ellipse", "rectangle", "polygon"):
        area = area_mm2(affine, kind, points)
        values = values_in(data, kind, points)
        return f"{values.text(unit)}\n{number(area)} {wide}"
    told = f"{length_mm(affine, points):.1f} {long}"
    if len(points) == 3:
        angle = angle_degrees(affine, points)
        return "no angle" if np.isnan(angle) else f"{angle:.1f}°\n{told} along the line"
    return told


def _mm(affine: Affine, points: Sequence[Any] | Points) -> Points:
    return np.asarray(affine.apply(np.asarray(points, np.float64)), np.float64)


def _inside(kind: str, corners: Points, places: Points) -> NDArray[np.bool_]:
    """Whether places (..., 2) lie in a flat region."""
    if kind == "polygon":
        from skimage.measure import points_in_poly

        found = points_in_poly(  # type: ignore[no-untyped-call]
            places.reshape(-1, 2), corners
        )
        return np.asarray(found, bool).reshape(places.shape[:-1])
    centre = corners.mean(axis=0)
    sides = np.stack([corners[1] - corners[0], corners[3] - corners[0]], axis=1) / 2
    if abs(np.linalg.det(sides)) < 1e-12:
        return np.zeros(places.shape[:-1], bool)
    away = (places - centre) @ np.linalg.inv(sides).T
    if kind == "ellipse":
        return np.asarray((away**2).sum(axis=-1) <= 1.0)
    return np.asarray((np.abs(away) <= 1.0).all(axis=-1))
