"""Random displacement fields that never fold."""

from __future__ import annotations

import numpy as np

from homolog.geometry.affine import Array, Index
from homolog.geometry.spline import spline_slopes, spline_spread, spline_weights

# Largest local shortening allowed, on a grid twice as fine as the control points; the
# rest to 1 (where tissue would vanish) is kept for what lies between its points.
_LARGEST_SHORTENING = 0.7
_FINER = 2


def draw_field(
    rng: np.random.Generator,
    std_mm: float,
    points: Index,
    size: Index,
    linear: Array,
) -> Array:
    """Control points of a smooth displacement of a view.

    Args:
        rng: Source of randomness.
        std_mm: Standard deviation of each component of the displacement.
        points: Control points per axis (p, q, r); a flat axis always has one.
        size: Voxels of the view (D, H, W).
        linear: (3, 3) view voxel -> world mm, the affine's linear part.

    Returns:
        (3, p, q, r) float64 in world mm, z, y, x; cubic B-spline control points. Where
        ``std_mm`` is too wild for so many control points, the whole field is scaled
        down until its Jacobian is positive everywhere. Along a flat axis (one voxel)
        nothing moves.
    """
    flat = [n == 1 for n in size]
    grid = tuple(1 if f else max(p, 2) for f, p in zip(flat, points, strict=True))
    points = (grid[0], grid[1], grid[2])
    local = rng.standard_normal((3, *points))
    local *= std_mm / spline_spread(points, size)
    local[flat] = 0.0
    spacing = np.linalg.norm(linear, axis=0)
    field: Array = np.einsum("ij,jpqr->ipqr", linear / spacing, local)
    shortening = _shortening(field, size, linear)
    return field * min(1.0, _LARGEST_SHORTENING / max(shortening, 1e-12))


def _shortening(field: Array, size: Index, linear: Array) -> float:
    """Largest local shortening by the field, as a share; 0 where it is surely allowed.

    A Jacobian I + G has a positive determinant wherever its symmetric part is positive
    definite, so the smallest eigenvalue of (G + G') / 2 is what matters; it scales with
    the field.
    """
    points = field.shape[1:]
    samples = [(p - 1) * _FINER + 1 for p in points]
    per_voxel = np.empty((3, 3, *samples))
    for axis in range(3):
        values = field
        for other, (p, n) in enumerate(zip(points, samples, strict=True)):
            if other == axis:
                # a flat axis has one control point: its slopes are all zero
                weights = spline_slopes(p, n) * ((p - 1) / max(size[axis] - 1, 1))
            else:
                weights = spline_weights(p, n)
            values = np.moveaxis(
                np.tensordot(values, weights, (1 + other, 1)), -1, 1 + other
            )
        per_voxel[:, axis] = values
    gradient = np.einsum("ijpqr,jk->pqrik", per_voxel, np.linalg.inv(linear))
    symmetric = (gradient + gradient.swapaxes(-1, -2)).reshape(-1, 3, 3) / 2
    # no eigenvalue is larger than the Frobenius norm: most fields end here
    large = (symmetric**2).sum((-2, -1)) > _LARGEST_SHORTENING**2
    if not large.any():
        return 0.0
    return float(-_smallest_eigenvalue(symmetric[large]).min())


def _smallest_eigenvalue(matrices: Array) -> Array:
    """Of symmetric (..., 3, 3), in closed form: numpy's solver is ten times slower."""
    mean = np.trace(matrices, axis1=-2, axis2=-1) / 3
    apart = matrices - mean[..., None, None] * np.eye(3)
    radius = np.sqrt((apart**2).sum((-2, -1)) / 6)
    half = np.linalg.det(apart) / (2 * np.maximum(radius, 1e-30) ** 3)
    angle = np.arccos(np.clip(half, -1.0, 1.0)) / 3
    smallest: Array = mean + 2 * radius * np.cos(angle + 2 * np.pi / 3)
    return smallest
