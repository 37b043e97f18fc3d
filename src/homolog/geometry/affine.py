"""The affine value type: voxel index -> world position, both written z, y, x."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from homolog.words import times

Index: TypeAlias = tuple[int, int, int]
Triple: TypeAlias = tuple[float, float, float]
Array: TypeAlias = NDArray[np.float64]

# Letters of the positive world axes (LPS), written z, y, x, and of their opposites.
_POSITIVE, _NEGATIVE = "SPL", "IAR"


@dataclass(frozen=True, eq=False)
class Affine:
    """Voxel index (z, y, x) -> world position (z, y, x) in mm, LPS. float64, 4 x 4.

    Attributes:
        matrix: (4, 4) float64; the last row is 0 0 0 1.
    """

    matrix: Array

    def __post_init__(self) -> None:
        matrix = np.array(self.matrix, dtype=np.float64)
        if matrix.shape != (4, 4):
            raise ValueError(f"an affine must be 4 x 4, got shape {matrix.shape}.")
        if not np.isfinite(matrix).all():
            raise ValueError("an affine must be finite, got NaN or infinity.")
        if not np.array_equal(matrix[3], (0.0, 0.0, 0.0, 1.0)):
            raise ValueError(f"the last row must be 0 0 0 1, got {matrix[3].tolist()}.")
        matrix.setflags(write=False)
        object.__setattr__(self, "matrix", matrix)

    @classmethod
    def identity(cls) -> Affine:
        """Index equals millimetres."""
        return cls(np.eye(4))

    @classmethod
    def of(
        cls,
        spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
        origin_mm: Sequence[float] = (0.0, 0.0, 0.0),
        direction: Any = None,
    ) -> Affine:
        """From spacing (z, y, x), origin (z, y, x) and a 3 x 3 direction.

        Args:
            spacing_mm: Voxel size per array axis, positive.
            origin_mm: World position of voxel 0, 0, 0.
            direction: Column i is the world direction of array axis i; None: identity.
        """
        spacing = np.asarray(spacing_mm, dtype=np.float64)
        if spacing.shape != (3,) or not (spacing > 0).all():
            raise ValueError(
                f"spacing_mm must be three positive numbers, got {tuple(spacing_mm)}."
            )
        matrix = np.eye(4)
        matrix[:3, :3] = (
            np.eye(3) if direction is None else np.asarray(direction)
        ) * spacing
        matrix[:3, 3] = origin_mm
        return cls(matrix)

    @classmethod
    def shift(cls, offset: Sequence[float] | Array) -> Affine:
        """Translation by an offset (z, y, x)."""
        matrix = np.eye(4)
        matrix[:3, 3] = offset
        return cls(matrix)

    @classmethod
    def scale(cls, factors: Sequence[float] | Array) -> Affine:
        """Scaling by factors (z, y, x) about the origin."""
        return cls(np.diag([*factors, 1.0]))

    def __matmul__(self, other: Affine) -> Affine:
        return Affine(self.matrix @ other.matrix)

    def inverse(self) -> Affine:
        """World -> voxel index."""
        return self._inverse

    @cached_property
    def _inverse(self) -> Affine:
        return Affine(np.vstack([np.linalg.inv(self.matrix)[:3], (0.0, 0.0, 0.0, 1.0)]))

    def apply(self, points: Any) -> Array:
        """Map points, (N, 3) or (3,) -> same shape."""
        points = np.asarray(points, dtype=np.float64)
        if points.shape[-1:] != (3,):
            raise ValueError(f"points must have shape (N, 3), got {points.shape}.")
        mapped: Array = points @ self.matrix[:3, :3].T + self.matrix[:3, 3]
        return mapped

    def crop(self, start: Sequence[float] | Array) -> Affine:
        """Affine of the box whose voxel 0, 0, 0 is this grid's voxel ``start``."""
        return self @ Affine.shift(start)

    def coarsen(self, stride: Sequence[int]) -> Affine:
        """Affine of a feature grid of that stride; cell centres stay true."""
        factors = np.asarray(stride, dtype=np.float64)
        return self @ Affine.shift((factors - 1.0) / 2.0) @ Affine.scale(factors)

    def reorient(
        self, axes: Sequence[int], flips: Sequence[bool], shape: Index
    ) -> Affine:
        """Affine of ``np.flip(np.transpose(array, axes), where flips)``.

        Args:
            axes: New axis i is old axis ``axes[i]``.
            flips: Whether new axis i runs backwards.
            shape: Shape of the old array (z, y, x).
        """
        old_from_new = np.zeros((4, 4))
        old_from_new[3, 3] = 1.0
        for new, (old, flip) in enumerate(zip(axes, flips, strict=True)):
            old_from_new[old, new] = -1.0 if flip else 1.0
            if flip:
                old_from_new[old, 3] = shape[old] - 1
        return Affine(self.matrix @ old_from_new)

    @cached_property
    def spacing_mm(self) -> Triple:
        """Distance between neighbouring voxels along each array axis."""
        z, y, x = np.linalg.norm(self.matrix[:3, :3], axis=0)
        return float(z), float(y), float(x)

    @property
    def origin_mm(self) -> Triple:
        """World position of voxel 0, 0, 0."""
        z, y, x = self.matrix[:3, 3]
        return float(z), float(y), float(x)

    @property
    def direction(self) -> Array:
        """(3, 3); column i is the unit world direction of array axis i."""
        direction: Array = self.matrix[:3, :3] / np.linalg.norm(
            self.matrix[:3, :3], axis=0
        )
        return direction

    def closest_axes(self) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        """The permutation and flips that bring the array closest to z, y, x of LPS.

        Returns:
            ``(axes, flips)`` as taken by ``reorient``. All 48 cases are told apart;
            ties of a scan at exactly 45 degrees go to the best total alignment.
        """
        from itertools import permutations

        cosines = self.direction  # rows: world z, y, x; columns: array axes
        best = max(
            permutations(range(3)),
            key=lambda axes: sum(abs(cosines[w, a]) for w, a in enumerate(axes)),
        )
        return best, tuple(bool(cosines[w, a] < 0) for w, a in enumerate(best))

    def acquired_axes(self, shape: Index) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        """The permutation that brings the axis across slices to z; nothing is flipped.

        The other axes keep their order, so that slices look as they were acquired,
        however oblique they lie in the body.

        Args:
            shape: Shape of the array (z, y, x).

        Returns:
            ``(axes, flips)`` as taken by ``reorient``. As ``closest_axes`` where no
            axis is single or has voxels half as long again as the others.
        """
        spacing = self.spacing_mm
        across = max(range(3), key=lambda axis: (shape[axis] == 1, spacing[axis]))
        rest = [axis for axis in range(3) if axis != across]
        single = shape[across] == 1
        if not single and spacing[across] < 1.5 * max(spacing[axis] for axis in rest):
            return self.closest_axes()
        return (across, *rest), (False, False, False)

    @property
    def orientation(self) -> str:
        """Letters of the direction each array axis runs to, e.g. ``"SPL"``."""
        axes, flips = self.closest_axes()
        letters = [""] * 3
        for world, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
            letters[axis] = (_NEGATIVE if flip else _POSITIVE)[world]
        return "".join(letters)

    @property
    def is_axis_aligned(self) -> bool:
        """Whether every array axis runs along one world axis (to 1e-4)."""
        return bool((np.sort(np.abs(self.direction), axis=0)[:2] < 1e-4).all())

    @property
    def shear(self) -> float:
        """Largest absolute cosine between two array axes; 0 when orthogonal."""
        gram = self.direction.T @ self.direction
        return float(np.abs(gram - np.diag(np.diag(gram))).max())

    def close_to(
        self, other: Affine, shape: Index, tolerance_voxels: float = 0.01
    ) -> bool:
        """Whether both map every corner of a grid to the same place.

        Args:
            other: The affine compared with.
            shape: Grid size (z, y, x).
            tolerance_voxels: Allowed distance in units of the smallest spacing.
        """
        corners = np.stack(np.meshgrid(*[(0.0, n - 1.0) for n in shape]), -1).reshape(
            -1, 3
        )
        gap = np.linalg.norm(self.apply(corners) - other.apply(corners), axis=1).max()
        return bool(gap <= tolerance_voxels * min(self.spacing_mm))

    def axes_along(self, other: Affine) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        """The axes of this grid that run along each of another's.

        Returns:
            ``(axes, flips)`` as taken by ``reorient``; an axis comes twice where the
            grids are turned too far against each other.
        """
        cosines = other.direction.T @ self.direction  # rows: the other's axes
        axes = tuple(int(a) for a in np.abs(cosines).argmax(axis=1))
        return axes, tuple(bool(cosines[i, a] < 0) for i, a in enumerate(axes))

    def to_list(self) -> list[list[float]]:
        """Rows as plain numbers, for JSON."""
        rows: list[list[float]] = self.matrix.tolist()
        return rows

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Affine) and np.array_equal(self.matrix, other.matrix)

    def __hash__(self) -> int:
        return hash(self.matrix.tobytes())

    def __repr__(self) -> str:
        spacing = times(self.spacing_mm)
        origin = ", ".join(f"{o:g}" for o in self.origin_mm)
        return f"Affine({self.orientation}, {spacing} mm, origin z, y, x = {origin} mm)"
