"""Read a volume at any affine. The only place that speaks ``grid_sample``.

``grid_sample`` wants x, y, z in -1..1 over the volume's outer borders; that order and
that scale exist nowhere else. Affines are composed in float64, relative to the
volume's own origin, so that a world offset of metres costs no precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from homolog.geometry.affine import Array, Index

# Uniform cubic B-splines over a coarse grid of control points. numpy only.
#
# The control points of an axis are spread evenly from the first to the last voxel of
# the grid; one more is imagined on either side, equal to its neighbour. Weights are
# never negative and sum to one, so the field stays within its control points' range.


@lru_cache(maxsize=64)
def spline_weights(points: int, samples: int) -> Array:
    """How much each control point counts at each of evenly spread samples.

    Args:
        points: Control points along the axis, at least 1.
        samples: Samples from the first control point to the last, ends included.

    Returns:
        (samples, points) float64, read-only; rows sum to 1.
    """
    return _weights(points, samples, derivative=False)


@lru_cache(maxsize=64)
def spline_slopes(points: int, samples: int) -> Array:
    """Derivative of the weights, per control point spacing; (samples, points)."""
    return _weights(points, samples, derivative=True)


def _weights(points: int, samples: int, *, derivative: bool) -> Array:
    if points < 1 or samples < 1:
        raise ValueError(
            f"a spline needs at least one control point and one sample, "
            f"got {points} and {samples}."
        )
    place = np.linspace(0.0, points - 1.0, samples) if samples > 1 else np.zeros(1)
    cell = np.minimum(np.floor(place), max(points - 2, 0)).astype(int)
    t = place - cell
    if derivative:
        terms = (
            -0.5 * (1 - t) ** 2,
            1.5 * t**2 - 2 * t,
            -1.5 * t**2 + t + 0.5,
            0.5 * t**2,
        )
    else:
        terms = (
            (1 - t) ** 3 / 6,
            (3 * t**3 - 6 * t**2 + 4) / 6,
            (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6,
            t**3 / 6,
        )
    weights = np.zeros((samples, points))
    rows = np.arange(samples)
    for step, term in zip((-1, 0, 1, 2), terms, strict=True):
        np.add.at(weights, (rows, np.clip(cell + step, 0, points - 1)), term)
    weights.setflags(write=False)
    return weights


def spline_spread(points: Index, size: Index) -> float:
    """Standard deviation of the field when its control points have one of 1.

    The mean over the grid; independent control points are assumed.
    """
    shares = [
        (spline_weights(p, n) ** 2).sum(1).mean()
        for p, n in zip(points, size, strict=True)
    ]
    return float(np.sqrt(np.prod(shares)))


@dataclass(frozen=True)
class Grid:
    """Where to read: made once, used for the image and for its label map.

    Attributes:
        place: (B, V, D, H, W, 3) float32, x, y, z in -1..1 over the volume.
        valid: (B, V, D, H, W) bool, whether the place lies in the volume.
    """

    place: Tensor
    valid: Tensor


def sample(
    volume: Tensor,
    volume_affine: Tensor,
    grid_affine: Tensor,
    size: Index,
    mode: str = "linear",
    displacement_mm: Tensor | None = None,
    extent: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Read a volume on another grid.

    A voxel is a box: places up to half a voxel beyond the outermost centres belong to
    the volume and read its edge value, so a slice of one voxel reads like any volume.

    Args:
        volume: (B, C, D, H, W) float.
        volume_affine: (B, 4, 4) volume voxel -> world mm.
        grid_affine: (B, 4, 4) grid voxel -> world mm.
        size: Voxels of the grid (D, H, W).
        mode: ``"linear"`` or ``"nearest"``.
        displacement_mm: (B, 3, p, q, r) control points of a cubic B-spline, world mm
            (z, y, x), spread over the grid; added to the world places.
        extent: (B, 3) voxels of each volume that are real; the rest is padding.

    Returns:
        Image (B, C, *size), zero outside the volume; valid (B, *size) bool.

    Raises:
        ValueError: Unknown mode or shapes that do not fit.
    """
    _check(volume, volume_affine, grid_affine)
    field = None if displacement_mm is None else displacement_mm[:, None]
    grid = locate(
        _shape(volume), volume_affine, grid_affine[:, None], size, field, extent
    )
    return read(volume, grid, mode)[:, 0], grid.valid[:, 0]


def locate(
    shape: Index,
    volume_affine: Tensor,
    grid_affine: Tensor,
    size: Index,
    displacement_mm: Tensor | None = None,
    extent: Tensor | None = None,
) -> Grid:
    """Places of V grids in each of B volumes.

    Args:
        shape: Voxels of the (padded) volumes (D, H, W).
        volume_affine: (B, 4, 4) volume voxel -> world mm.
        grid_affine: (B, V, 4, 4) grid voxel -> world mm.
        size: Voxels of the grids (D, H, W).
        displacement_mm: (B, V, 3, p, q, r) B-spline control points or None.
        extent: (B, 3) real voxels of each volume, whole or not, or None for all.
    """
    linear, offset, inverse = _relative(volume_affine, grid_affine)
    full = constant(shape, linear.device)
    real = full[None] if extent is None else extent.to(linear)  # (1 or B, 3)
    unit = 2.0 / real[:, None, :]  # voxels -> -1..1 over the real part
    linear, offset = linear * unit[..., None], (offset + 0.5) * unit - 1.0
    place = _affine_places(linear.float(), offset.float(), size)
    if displacement_mm is not None:
        # mm -> -1..1 at the few control points, not at the many voxels
        turn = ((inverse[:, None] * unit[..., None]).flip(-2)).float()
        with torch.autocast(turn.device.type, enabled=False):
            field = torch.einsum("bvij,bvjpqr->bvpqri", turn, displacement_mm.float())
            place = _add_field(place, field, size)
    valid = (place[..., 0].abs() <= 1) & (place[..., 1].abs() <= 1)
    valid &= place[..., 2].abs() <= 1
    if extent is not None:
        place = _onto_padded(place, real, full)
    return Grid(place, valid)


def read(
    volume: Tensor, grid: Grid, mode: str = "linear", outside: Tensor | None = None
) -> Tensor:
    """Values at the places of a grid.

    Args:
        volume: (B, C, D, H, W) float.
        grid: Places of V grids per volume.
        mode: ``"linear"`` or ``"nearest"``.
        outside: (B, C) value of places outside the volume; zero if None.

    Returns:
        (B, V, C, *size), the volume's type.
    """
    if mode not in ("linear", "nearest"):
        raise ValueError(f"mode must be 'linear' or 'nearest', got {mode!r}.")
    b, v, d, h, w, _ = grid.place.shape
    channels, kind = volume.shape[1], volume.dtype
    if kind != torch.float64:
        volume = volume.float()  # half precision would round the places too
    values = grid_sample(
        volume,
        grid.place.reshape(b, v * d, h, w, 3).to(volume.dtype),
        mode="bilinear" if mode == "linear" else "nearest",
        padding_mode="border",
        align_corners=False,
    )
    values = values.reshape(b, channels, v, d, h, w).transpose(1, 2)
    if outside is None:
        return (values * grid.valid[:, :, None]).to(kind)
    fill = outside.to(values)[:, None, :, None, None, None]
    return torch.where(grid.valid[:, :, None], values, fill).to(kind)


def displacement_at(displacement_mm: Tensor, size: Index) -> Tensor:
    """The field of B-spline control points at every voxel of a grid.

    Args:
        displacement_mm: (..., 3, p, q, r) world mm.
        size: Voxels of the grid (D, H, W).

    Returns:
        (..., 3, *size) world mm, in the type of the control points.
    """
    field = displacement_mm
    for axis, voxels in zip((-3, -2, -1), size, strict=True):
        weights = _weights_on(field.shape[axis], voxels, field.device, field.dtype)
        field = torch.movedim(torch.movedim(field, axis, -1) @ weights.mT, -1, axis)
    return field


def _relative(volume_affine: Tensor, grid_affine: Tensor) -> tuple[Tensor, ...]:
    """Grid voxel -> volume voxel: (B, V, 3, 3), (B, V, 3); mm -> voxel (B, 3, 3)."""
    volume_affine, grid_affine = volume_affine.double(), grid_affine.double()
    # inv_ex does not wait for the device to report a singular matrix, inv does
    inverse = torch.linalg.inv_ex(volume_affine[:, :3, :3]).inverse
    linear = inverse[:, None] @ grid_affine[..., :3, :3]
    apart_mm = grid_affine[..., :3, 3] - volume_affine[:, None, :3, 3]
    offset = (inverse[:, None] @ apart_mm[..., None])[..., 0]
    return linear, offset, inverse


def _affine_places(linear: Tensor, offset: Tensor, size: Index) -> Tensor:
    """(B, V, D, H, W, 3) in x, y, z order."""
    b, v = linear.shape[:2]
    columns = linear.flip(-2)  # rows x, y, z; columns are grid axes z, y, x
    place = offset.flip(-1).reshape(b, v, 1, 1, 1, 3)
    for axis, voxels in enumerate(size):
        steps = torch.arange(voxels, dtype=linear.dtype, device=linear.device)
        shape = [1, 1, 1, 1, 1, 1]
        shape[2 + axis] = voxels
        along = columns[..., axis].reshape(b, v, 1, 1, 1, 3)
        place = place + along * steps.reshape(shape)
    return place


def _add_field(place: Tensor, field: Tensor, size: Index) -> Tensor:
    """Add a coarse field (B, V, p, q, r, 3) to places (B, V, D, H, W, 3).

    Axis by axis; the last and widest step writes all three components in one matrix
    product straight into the places.
    """
    b, v, p, q, r, _ = field.shape
    depth, height, width = size
    n, device = b * v, field.device
    coarse = field.reshape(n, p, q * r * 3)
    coarse = _weights_on(p, depth, device, field.dtype) @ coarse
    coarse = coarse.reshape(n * depth, q, r * 3)
    coarse = _weights_on(q, height, device, field.dtype) @ coarse
    spread = _interleaved_weights_on(r, width, device, field.dtype)
    flat = place.view(n * depth * height, width * 3)
    flat.addmm_(coarse.reshape(n * depth * height, r * 3), spread)
    return place


def _onto_padded(place: Tensor, real: Tensor, full: Tensor) -> Tensor:
    """-1..1 over the real part -> -1..1 over the padded volume, edges held."""
    share = (real / full).flip(-1).float()[:, None, None, None, None]
    edge = (1.0 - 1.0 / real).flip(-1).float()[:, None, None, None, None]
    return place.clamp_(min=-edge, max=edge).mul_(share).add_(share - 1.0)


@lru_cache(maxsize=256)
def constant(
    values: tuple[float, ...],
    device: torch.device,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Numbers on a device; copied up once, and nothing waits for it."""
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)


@lru_cache(maxsize=64)
def _weights_on(
    points: int, samples: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    weights = torch.tensor(spline_weights(points, samples), dtype=dtype)
    return weights.to(device, non_blocking=True)


@lru_cache(maxsize=64)
def _interleaved_weights_on(
    points: int, samples: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """(points * 3, samples * 3): the same weights for x, y, z lying side by side."""
    weights = _weights_on(points, samples, device, dtype).mT.contiguous()
    return torch.kron(weights, torch.eye(3, dtype=dtype, device=device))


def _shape(volume: Tensor) -> Index:
    d, h, w = volume.shape[-3:]
    return d, h, w


def _check(volume: Tensor, volume_affine: Tensor, grid_affine: Tensor) -> None:
    if volume.ndim != 5 or not volume.is_floating_point():
        raise ValueError(
            f"volume must be (B, C, D, H, W) float, got {tuple(volume.shape)} "
            f"{volume.dtype}."
        )
    expected = (volume.shape[0], 4, 4)
    for name, affine in (("volume", volume_affine), ("grid", grid_affine)):
        if tuple(affine.shape) != expected:
            raise ValueError(
                f"{name}_affine must be {expected}, got {tuple(affine.shape)}."
            )
