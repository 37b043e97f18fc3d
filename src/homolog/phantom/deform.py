"""Copies of a scan deformed by a smooth, invertible map that is known exactly.

A place of the copy is moved by one gentle field after the other, then by an affine map,
and shows what lies there in the scan. Each field is a cubic B-spline over a coarse grid
of control points along the scan's own axes. Since none is steeper than STEEPEST, each
is a contraction, so every step has exactly one inverse and a fixed-point iteration
finds it; together they bend as far as bodies differ. numpy and scipy only.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from homolog.geometry.affine import Affine, Index
from homolog.scans.volume import LabelMap, Volume

Cloud = NDArray[np.float64]

STEEPEST = 0.6
# Control points this far apart bend organs, not their texture.
_APART_MM = 60.0
_MOST_FIELDS = 24
_EVERY = 3  # voxels between the places at which a picture follows the fields
_PROBES = 12  # points per axis at which the typical displacement is measured


@dataclass(frozen=True, eq=False)
class Deformation:
    """World mm of a deformed copy -> world mm of the scan, and back.

    Attributes:
        grid: Voxel -> world mm of the scan that is deformed.
        shape: Its voxels (D, H, W); control points are spread evenly over them.
        fields_mm: Each (nz, ny, nx, 3), displacements of the control points, mm; the
            first moves a place of the copy first.
        affine: Applied after the displacements: rotation, scale.
    """

    grid: Affine
    shape: Index
    fields_mm: tuple[Cloud, ...] = ()
    affine: Affine = field(default_factory=Affine.identity)

    def to_scan(self, copy_mm: Cloud) -> Cloud:
        """Where in the scan lies what the copy shows, (N, 3) -> (N, 3) mm."""
        return self.affine.apply(self.bent(copy_mm))

    def bent(self, copy_mm: Cloud) -> Cloud:
        """``to_scan`` before the affine map."""
        found = np.asarray(copy_mm, np.float64)
        for control in self.fields_mm:
            found = found + self._displacement(control, found)
        return found

    def to_copy(self, scan_mm: Cloud, tolerance_mm: float = 1e-9) -> Cloud:
        """Inverse of to_scan: where a place of the scan is seen in the copy."""
        found = self.affine.inverse().apply(np.asarray(scan_mm, np.float64))
        for control in reversed(self.fields_mm):
            straight = found
            for _ in range(200):
                following = straight - self._displacement(control, found)
                gap = float(np.abs(following - found).max(initial=0.0))
                found = following
                if gap < tolerance_mm:
                    break
        return found

    def _displacement(self, control: Cloud, points_mm: Cloud) -> Cloud:
        """One field at world positions, (N, 3) -> (N, 3) mm; mirrored outside."""
        from scipy import ndimage

        index = self.grid.inverse().apply(points_mm)
        sides = np.maximum(np.array(self.shape) - 1, 1)
        last = np.array(control.shape[:3]) - 1
        place = (index * last / sides).T
        return np.stack(
            [
                ndimage.map_coordinates(
                    control[..., axis], place, order=3, prefilter=False, mode="mirror"
                )
                for axis in range(3)
            ],
            axis=-1,
        )

    @property
    def steepness(self) -> float:
        """What the norm of no field's derivative anywhere exceeds."""
        bounds = [steepness(c, self.grid, self.shape) for c in self.fields_mm]
        return max(bounds, default=0.0)

    def applied(self, volume: Volume, *, fill: float | None = None) -> Volume:
        """The deformed copy on the scan's own grid, linear between voxels.

        Args:
            volume: On ``grid``.
            fill: Value of what the scan does not show; its smallest if None.
        """
        data = np.stack([self._warped(c, 1, fill) for c in volume.data])
        if volume.data.dtype.kind in "iu":
            data = np.rint(data)
        return replace(volume, data=data.astype(volume.data.dtype))

    def applied_to_labels(self, labels: LabelMap) -> LabelMap:
        """The label map deformed alike, nearest voxel."""
        data = self._warped(labels.data, 0, 0.0).astype(labels.data.dtype)
        return replace(labels, data=data)

    def _sampled(self) -> tuple[Index, list[Cloud]]:
        """Where the fields together lead, as one cubic spline; nodes (z, y, x).

        The fields are smooth over many voxels: following all of them at every voxel
        would cost minutes, and the spline through every third is right to 0.1 mm.
        """
        from scipy import ndimage

        nz, ny, nx = (-(-(n - 1) // _EVERY) + 1 for n in self.shape)
        axes = [
            np.linspace(0, n - 1, count)
            for n, count in zip(self.shape, (nz, ny, nx), strict=True)
        ]
        voxels = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
        places = self.grid.apply(voxels)
        moved = (self.bent(places) - places).T.reshape(3, nz, ny, nx)
        return (nz, ny, nx), [ndimage.spline_filter(m, order=3) for m in moved]

    def _warped(
        self, values: NDArray[np.generic], order: int, fill: float | None
    ) -> NDArray[np.float32]:
        from scipy import ndimage

        source = np.asarray(values, np.float32)
        outside = float(source.min()) if fill is None else fill
        result = np.empty(self.shape, np.float32)
        back = self.grid.inverse() @ self.affine
        nodes, moved = self._sampled()
        plane = np.indices((1, *self.shape[1:])).reshape(3, -1).T
        steps = (np.array(nodes) - 1) / np.maximum(np.array(self.shape) - 1, 1)
        for z in range(self.shape[0]):
            voxels = plane + np.array([z, 0.0, 0.0])
            at = (voxels * steps).T
            mm = self.grid.apply(voxels)
            for axis in range(3):
                mm[:, axis] += ndimage.map_coordinates(
                    moved[axis], at, order=3, prefilter=False, mode="mirror"
                )
            place = back.apply(mm).astype(np.float32)
            result[z] = ndimage.map_coordinates(
                source, place.T, order=order, mode="constant", cval=outside
            ).reshape(self.shape[1:])
        return result


def random_deformation(
    grid: Affine,
    shape: Index,
    *,
    seed: int,
    typical_mm: float = 10.0,
    degrees: float = 5.0,
    scale: float = 0.05,
) -> Deformation:
    """A smooth random map, a function of its arguments alone.

    Args:
        grid: Voxel -> world mm of the scan.
        shape: Its voxels (D, H, W).
        seed: Which map.
        typical_mm: Root mean square of the displacement, the affine part apart; less
            where that many gentle fields do not reach it.
        degrees: Standard deviation of the rotation about each axis, through the
            scan's middle.
        scale: Standard deviation of the logarithm of the size.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, 0xDEF0]))
    angles = np.radians(rng.normal(0.0, degrees, 3))
    factor = float(np.exp(rng.normal(0.0, scale)))
    if shape[0] == 1:
        angles[1:] = 0.0  # a picture stays in its plane
    middle = grid.apply((np.array(shape) - 1) / 2)
    turn = np.eye(4)
    turn[:3, :3] = _rotation(angles) * factor
    around = Affine.shift(middle) @ Affine(turn) @ Affine.shift(-middle)
    bent = _bent(Deformation(grid, shape), rng, typical_mm)
    return replace(bent, affine=around)


def _bent(
    start: Deformation, rng: np.random.Generator, typical_mm: float
) -> Deformation:
    """Fields added one by one until the typical displacement is reached."""
    axes = [np.linspace(0, n - 1, min(n, _PROBES)) for n in start.shape]
    probes = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    places = start.grid.apply(probes)

    def typical(there: Cloud) -> float:
        return float(np.sqrt(((there - places) ** 2).sum(1).mean()))

    fields: list[Cloud] = []
    here = places  # where the fields so far lead: each is followed once, not each time
    for _ in range(_MOST_FIELDS):
        if typical(here) >= typical_mm:
            break
        control = _control(start, rng)
        there = here + start._displacement(control, here)
        if typical(there) > typical_mm:  # the last field is weakened to end there
            low, high = 0.0, 1.0
            for _ in range(30):
                share = (low + high) / 2
                last = control * share
                there = here + start._displacement(last, here)
                too_far = typical(there) > typical_mm
                low, high = (low, share) if too_far else (share, high)
            fields.append(last)
            break
        fields.append(control)
        here = there
    return replace(start, fields_mm=tuple(fields))


def _control(deformation: Deformation, rng: np.random.Generator) -> Cloud:
    """Random control points of the steepest field allowed."""
    grid, shape = deformation.grid, deformation.shape
    extent = np.array(grid.spacing_mm) * (np.array(shape) - 1)
    counts = [
        max(2, int(length // _APART_MM) + 2) if length > 0 else 1 for length in extent
    ]
    control: Cloud = rng.normal(size=(*counts, 3))
    if shape[0] == 1:
        control[..., 0] = 0.0
    steep = steepness(control, grid, shape)
    return control * (STEEPEST / max(steep, 1e-12))


def steepness(control_mm: Cloud, grid: Affine, shape: Index) -> float:
    """An upper bound of the norm of a field's derivative (per mm of the world).

    Along each axis the derivative of a B-spline is a mean of the differences of
    neighbouring control points, divided by their distance.
    """
    per_voxel = np.zeros(3)
    for axis, size in enumerate(shape):
        points = control_mm.shape[axis]
        if points > 1:
            gaps = np.linalg.norm(np.diff(control_mm, axis=axis), axis=-1)
            per_voxel[axis] = float(gaps.max()) * (points - 1) / max(size - 1, 1)
    # |J| <= |du/dvoxel|_F |dvoxel/dmm|, taken axis by axis.
    inverse = np.linalg.inv(grid.matrix[:3, :3])
    per_axis = np.linalg.norm(inverse, axis=1) * per_voxel
    return (
        float(np.linalg.norm(per_axis)) if _orthogonal(grid) else float(per_axis.sum())
    )


def _orthogonal(grid: Affine) -> bool:
    return grid.shear < 1e-6


def _rotation(angles: Cloud) -> Cloud:
    """(3, 3) rotation about z, then y, then x."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = [a for a in range(3) if a != axis]
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix
