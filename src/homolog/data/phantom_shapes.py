"""Solid shapes as signed distances in mm: what the procedural anatomy is built of.

Every function maps points (N, 3) (z, y, x in atlas mm) to (N,) approximate distances,
negative inside. Union is a minimum, intersection a maximum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Cloud: TypeAlias = NDArray[np.floating[Any]]
Distance: TypeAlias = Callable[[Cloud], Cloud]
Box: TypeAlias = tuple[tuple[float, float], ...]

FAR_MM = 1e3
ALWAYS = (-FAR_MM, FAR_MM)


def ellipsoid(
    centre: Sequence[float], radii: Sequence[float], tilt: float = 0.0
) -> Distance:
    """An ellipsoid; ``tilt`` turns it (radians) in the coronal (z, x) plane."""
    cos, sin = np.float32(np.cos(tilt)), np.float32(np.sin(tilt))
    middle = np.asarray(centre, np.float32)
    axes = np.asarray(radii, np.float32)

    def distance(points: Cloud) -> Cloud:
        q = points - middle
        if tilt:
            z, x = q[:, 0].copy(), q[:, 2].copy()
            q[:, 0], q[:, 2] = cos * z - sin * x, sin * z + cos * x
        scaled = q / axes
        k0 = np.sqrt(np.einsum("ni,ni->n", scaled, scaled))
        scaled /= axes
        k1 = np.sqrt(np.einsum("ni,ni->n", scaled, scaled))
        result: Cloud = k0 * (k0 - 1) / np.maximum(k1, 1e-6)
        return result

    return distance


def tube(path: Sequence[Sequence[float]], radii: Sequence[float]) -> Distance:
    """A round tube along a polyline; the radius changes from point to point."""
    nodes = np.asarray(path, np.float32)

    def distance(points: Cloud) -> Cloud:
        best: Cloud | None = None
        for i in range(len(nodes) - 1):
            axis = nodes[i + 1] - nodes[i]
            q = points - nodes[i]
            t = np.clip(q @ axis / (axis @ axis), 0, 1)
            gap = np.linalg.norm(q - t[:, None] * axis, axis=1)
            gap -= radii[i] + t * np.float32(radii[i + 1] - radii[i])
            best = gap if best is None else np.minimum(best, gap)
        assert best is not None
        return best

    return distance


def trunk(half_width: float, half_depth: float, waist: float = 0.06) -> Distance:
    """An endless trunk: a rounded oval cross-section that narrows at the waist."""

    def distance(points: Cloud) -> Cloud:
        z, y, x = points.T
        slim = 1 - waist * np.exp(-(((z + 30) / 55) ** 2))
        ratio = (np.abs(x) / (half_width * slim)) ** 2.4
        ratio += (np.abs(y) / (half_depth * slim)) ** 2.4
        radius = ratio ** np.float32(1 / 2.4)
        # Along the ray to the axis one unit of radius is |(x, y)| / radius mm.
        length = np.hypot(x, y)
        near = np.maximum(radius, 1e-3)
        result: Cloud = (radius - 1) * np.maximum(length / near, half_depth * 0.5)
        return result

    return distance


def all_of(*parts: Distance) -> Distance:
    """Where every part is (intersection)."""
    return lambda points: np.maximum.reduce([part(points) for part in parts])


def any_of(*parts: Distance) -> Distance:
    """Where some part is (union)."""
    return lambda points: np.minimum.reduce([part(points) for part in parts])


def without(part: Distance, hole: Distance) -> Distance:
    """A part less a hole."""
    return lambda points: np.maximum(part(points), -hole(points))


def shrunk(part: Distance, margin_mm: float) -> Distance:
    """A part whose surface lies ``margin_mm`` further inside."""
    return lambda points: part(points) + np.float32(margin_mm)


def complement(part: Distance) -> Distance:
    """Where the part is not."""
    return lambda points: -part(points)


@dataclass(frozen=True, eq=False)
class Organ:
    """One thing painted over what was painted before.

    Attributes:
        name: One of the label names, or any word for unlabelled tissue.
        hu: Mean attenuation without contrast medium.
        enhancement_hu: What a full dose of contrast medium adds.
        distance: Signed distance, atlas mm.
        box: ((z0, z1), (y0, y1), (x0, x1)) outside of which it certainly is not.
        keeps_label: Painted inside another organ without changing its label.
        texture_hu: Standard deviation of the patient's own coarse texture.
    """

    name: str
    hu: float
    distance: Distance
    box: Box = (ALWAYS,) * 3
    enhancement_hu: float = 0.0
    keeps_label: bool = False
    texture_hu: float = 0.0
