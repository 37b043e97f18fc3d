"""Smooth invertible maps between the atlas and a patient."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from homolog.geometry.affine import Affine

Cloud = NDArray[np.float64]

# A displacement whose steepness stays below this is a contraction, so x + u(x) has
# exactly one inverse and the fixed-point iteration finds it.
STEEPEST = 0.6


@dataclass(frozen=True, eq=False)
class Warp:
    """Patient world mm -> atlas mm in closed form, and back by iteration.

    The map is ``affine(p)`` followed by ``q + u(q)``, where u is a sum of Gaussian
    bumps, each of which shifts and swells the anatomy around its centre.

    Attributes:
        affine: Patient world mm -> undeformed atlas mm.
        centres: (K, 3) bump centres, atlas mm.
        shifts: (K, 3) displacement at the centre, mm.
        swells: (K,) relative growth at the centre.
        widths: (K,) standard deviations, mm.
    """

    affine: Affine
    centres: Cloud
    shifts: Cloud
    swells: Cloud
    widths: Cloud

    def to_atlas(self, patient_mm: Cloud) -> Cloud:
        """Patient world mm -> atlas mm, (N, 3) -> (N, 3)."""
        q = self.affine.apply(patient_mm)
        return q + self.displacement(q)

    def to_patient(self, atlas_mm: Cloud, tolerance_mm: float = 1e-9) -> Cloud:
        """Atlas mm -> patient world mm, (N, 3) -> (N, 3); exact to the tolerance."""
        atlas = np.asarray(atlas_mm, dtype=np.float64)
        q = atlas.copy()
        for _ in range(200):
            following = atlas - self.displacement(q)
            gap = np.abs(following - q).max(initial=0.0)
            q = following
            if gap < tolerance_mm:
                break
        return self.affine.inverse().apply(q)

    def displacement(self, points: Cloud) -> Cloud:
        """Where u leads from undeformed atlas positions, (N, 3) -> (N, 3) mm."""
        moved = np.zeros_like(points)
        kind = points.dtype
        for centre, shift, swell, width in zip(
            self.centres, self.shifts, self.swells, self.widths, strict=True
        ):
            q = points - centre.astype(kind)
            near = np.exp(np.einsum("ni,ni->n", q, q) * kind.type(-0.5 / width**2))
            moved += near[:, None] * (shift.astype(kind) + kind.type(swell) * q)
        return moved

    def tamed(self, points: Cloud) -> Warp:
        """The same warp, its bumps weakened until u is nowhere steeper than STEEPEST.

        Args:
            points: (N, 3) atlas positions at which the steepness is bounded; the
                bumps are much wider than their distance should be.
        """
        steepness = np.zeros(len(points))
        for centre, shift, swell, width in zip(
            self.centres, self.shifts, self.swells, self.widths, strict=True
        ):
            r = np.linalg.norm(points - centre, axis=1) / width
            near = np.exp(-0.5 * r**2)
            # |grad(shift g)| = |shift| r g / width, and
            # |grad(swell q g)| <= |swell| g max(1, |1 - r^2|).
            steepness += np.linalg.norm(shift) * r * near / width
            steepness += abs(swell) * near * np.maximum(1.0, np.abs(1 - r**2))
        factor = min(1.0, STEEPEST / max(float(steepness.max()), 1e-9))
        return replace(self, shifts=self.shifts * factor, swells=self.swells * factor)


def random_warp(
    rng: np.random.Generator, centres: Cloud, *, strength: float = 1.0
) -> Warp:
    """A patient's build: size, posture, and each organ shifted and swollen by itself.

    Args:
        rng: Where the numbers come from.
        centres: (K, 3) atlas positions around which the anatomy varies.
        strength: 0 gives the atlas itself, 1 ordinary variety.
    """
    build = np.exp(rng.normal(0.0, 0.06 * strength))
    factors = build * np.exp(rng.normal(0.0, 0.04 * strength, 3))
    angles = np.radians(rng.normal(0.0, 2.5 * strength, 3))
    table = rng.uniform(-120.0, 120.0, 3) * strength
    patient_from_atlas = (
        Affine.shift(table)
        @ _rotation(angles)
        @ Affine.scale([float(f) for f in factors])
    )
    count = len(centres)
    grid = np.stack(
        np.meshgrid(*[np.arange(-h, h + 1, 12.0) for h in (132, 108, 156)]), -1
    ).reshape(-1, 3)
    return Warp(
        patient_from_atlas.inverse(),
        centres + rng.normal(0.0, 8.0, (count, 3)),
        rng.normal(0.0, 7.0 * strength, (count, 3)),
        rng.normal(0.0, 0.14 * strength, count),
        rng.uniform(30.0, 48.0, count),
    ).tamed(grid)


def _rotation(angles: NDArray[np.float64]) -> Affine:
    """Rotation about z, then y, then x, by angles in radians."""
    matrix = np.eye(4)
    for axis, angle in enumerate(angles):
        i, j = [a for a in range(3) if a != axis]
        turn = np.eye(4)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return Affine(matrix)
