"""Where every view of a sample lies, drawn on the CPU before anything is read.

A view at rest copies voxels of the scan: its axes run along the scan's own, its centre
is put on the voxel grid and its box is kept inside the scan where it fits. Then it is
moved, turned about its centre, scaled, flipped and bent. Of scans of thick slices views
are scaled and bent within the slices only, so that slices are copied, not mixed.

Source: Isensee et al., Nature Methods 2021 (nnU-Net: two-dimensional augmentation of
scans whose voxels are three times as long as wide or more).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from homolog.geometry.affine import Affine, Array, Index, Triple
from homolog.geometry.anisotropy import thick_axis
from homolog.geometry.sampling import spline_slopes, spline_spread, spline_weights
from homolog.views.intensity import Draws, draw_intensity
from homolog.views.random import generator
from homolog.views.view import Anchor, Elsewhere, Matched, Same, ViewSpec, Whole, Within

# Random displacement fields that never fold.


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
    across: int | None = None,
) -> Array:
    """Control points of a smooth displacement of a view.

    Args:
        rng: Source of randomness.
        std_mm: Standard deviation of each component of the displacement.
        points: Control points per axis (p, q, r); a flat axis always has one.
        size: Voxels of the view (D, H, W).
        linear: (3, 3) view voxel -> world mm, the affine's linear part.
        across: An axis of the view along which nothing moves.

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
    if across is not None:
        local[across] = 0.0
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


DrawPlace: TypeAlias = Callable[[np.random.Generator], Array]


@dataclass(frozen=True)
class Scan:
    """The grid of a stored scan.

    Attributes:
        affine: Voxel -> world mm.
        shape: Voxels (D, H, W).
    """

    affine: Affine
    shape: Index


@dataclass(frozen=True)
class GroupPlan:
    """The drawn geometry and intensity changes of one group's V views.

    Attributes:
        affine: (V, 4, 4) float64, view voxel -> world mm.
        displacement_mm: (V, 3, p, q, r) float32 B-spline control points or None.
        intensity: What to do to the values.
    """

    affine: Array
    displacement_mm: NDArray[np.float32] | None
    intensity: Draws


def plan_views(
    specs: Mapping[str, ViewSpec],
    scan: Scan,
    draw_place: DrawPlace,
    *,
    seed: int,
    sample: int,
    matched: Array | None = None,
) -> dict[str, GroupPlan]:
    """Draw all views of one sample.

    Args:
        specs: Groups by name; a Within group comes after the one it names.
        scan: Grid of the scan.
        draw_place: Generator -> (3,) voxel position of interest in the scan.
        seed: Seed of the run.
        sample: Number of the sample, counted over the whole run and all ranks.
        matched: (3,) voxel position of Matched groups in this scan; the anchor if None.

    Returns:
        Group name -> plan; a pure function of the arguments.
    """
    anchor = np.asarray(draw_place(generator(seed, sample, stream="anchor")))
    anchor = _inside(anchor, _anchored_side(specs, scan), scan.shape)
    known = anchor if matched is None else np.asarray(matched)
    plans: dict[str, GroupPlan] = {}
    for name, spec in specs.items():
        twin = plans[spec.place.group] if isinstance(spec.place, Same) else None

        def numbers(what: str, view: int, name: str = name) -> np.random.Generator:
            return generator(seed, sample, view, stream=f"{what}/{name}")

        rows = range(spec.count)
        draws = [draw_intensity(numbers("intensity", v), spec.intensity) for v in rows]
        if twin is not None:
            plans[name] = dataclasses.replace(twin, intensity=Draws.stack(draws))
            continue
        affines = []
        for view in rows:
            place = numbers("place", view)
            at = known if isinstance(spec.place, Matched) else anchor
            centre = _centre(spec, scan, at, draw_place, place, specs, plans)
            affines.append(_turned(spec, scan, centre, numbers("shape", view)))
        across = _across(spec, scan)
        fields = [_field(spec, affines[v], across, numbers("elastic", v)) for v in rows]
        plans[name] = GroupPlan(
            affine=np.stack(affines),
            displacement_mm=np.stack(fields) if spec.elastic_mm > 0 else None,
            intensity=Draws.stack(draws),
        )
    return plans


def base_spacing(spec: ViewSpec, scan: Scan) -> Array:
    """Voxel size in mm of a view before it is scaled at random."""
    own = np.array(scan.affine.spacing_mm)
    spacing = own if spec.spacing_mm is None else np.array(spec.spacing_mm)
    if isinstance(spec.place, Whole):
        solid = np.array(spec.size) > 1
        fit = np.array(scan.shape) * own / (np.array(spec.size) * spacing)
        apart = 1.0
        if spec.place.slices:
            solid[0], apart = False, max(1.0, fit[0])
        factor = fit[solid].max() if solid.any() else 1.0
        spacing = np.where(solid, spacing * factor, spacing)
        spacing[0] *= apart
    return spacing


def _across(spec: ViewSpec, scan: Scan) -> int | None:
    """The axis across slices that views keep to: thick ones, or where it is asked."""
    if spec.planar:
        return 0
    return thick_axis(scan.affine.spacing_mm) if spec.spacing_mm is None else None


def _centre(
    spec: ViewSpec,
    scan: Scan,
    anchor: Array,
    draw_place: DrawPlace,
    rng: np.random.Generator,
    specs: Mapping[str, ViewSpec],
    plans: Mapping[str, GroupPlan],
) -> Array:
    """Voxel position (3,) in the scan of a view's centre, before its jitter."""
    place, shape = spec.place, np.array(scan.shape)
    if spec.stray > 0 and rng.random() < spec.stray:
        place = Elsewhere()
    if isinstance(place, Whole):
        middle = (shape - 1) / 2
        if place.slices and shape[0] < spec.size[0]:
            # slices are copied, not mixed from their neighbours
            middle[0] += (spec.size[0] - shape[0]) % 2 / 2
        flat = (np.array(spec.size) == 1) & (shape > 1)
        return np.where(flat, np.round(anchor), middle)
    if isinstance(place, Matched):
        return anchor  # exactly there: rounding would undo the alignment of two scans
    if isinstance(place, Anchor):
        centre = anchor
    elif isinstance(place, Within):
        size = np.array(specs[place.group].size)
        inside = rng.uniform(-0.5, size - 0.5)
        world = Affine(plans[place.group].affine[0]).apply(inside)
        centre = np.clip(scan.affine.inverse().apply(world), 0, shape - 1)
    else:
        side = np.array(spec.size) * base_spacing(spec, scan) / scan.affine.spacing_mm
        centre = _inside(np.asarray(draw_place(rng)), side, scan.shape)
        if isinstance(place, Elsewhere) and place.slices:
            centre[0] = anchor[0]
    # onto the voxel grid: between two voxels for even sizes, on one for odd sizes
    even = np.array(spec.size) % 2 == 0
    return np.where(even, np.floor(centre) + 0.5, np.floor(centre + 0.5))


def _anchored_side(specs: Mapping[str, ViewSpec], scan: Scan) -> Array:
    """Sides, in scan voxels, of the largest box that is centred at the anchor."""
    sides = [np.ones(3)]
    for spec in specs.values():
        side = np.array(spec.size) * base_spacing(spec, scan) / scan.affine.spacing_mm
        if isinstance(spec.place, Anchor | Matched):
            sides.append(side)
        elif isinstance(spec.place, Elsewhere) and spec.place.slices:
            sides.append(np.array([side[0], 1.0, 1.0]))  # the anchor is theirs across
    largest: Array = np.max(sides, axis=0)
    return largest


def _inside(centre: Array, side: Array, shape: Index) -> Array:
    """Move a box into the scan; to its middle where it does not fit."""
    low, high = side / 2 - 0.5, np.array(shape) - side / 2 - 0.5
    middle = (np.array(shape) - 1) / 2
    return np.where(low > high, middle, np.clip(centre, low, np.maximum(low, high)))


def _turned(
    spec: ViewSpec, scan: Scan, centre: Array, rng: np.random.Generator
) -> Array:
    """(4, 4) affine of a view about its centre, a voxel position in the scan.

    Every number is drawn whether it is used or not, so that one setting does not
    change the draws of another.
    """
    size, base = np.array(spec.size), base_spacing(spec, scan)
    flat = size == 1
    angles = np.radians(rng.uniform(-1, 1, 3) * spec.rotate_deg)
    factor = rng.uniform(*spec.scale)
    uneven = np.exp(rng.uniform(-1, 1, 3) * np.log1p(spec.anisotropy))
    flips = np.where((rng.random(3) < spec.flip) & ~flat, -1.0, 1.0)
    # whole voxels, so that a moved view still copies voxels
    jitter = np.round(rng.uniform(-1, 1, 3) * spec.translate * size) * base
    turns = [np.eye(3)]
    if spec.quarter_turns:
        z, y, x = base
        turns = _quarter_turns(tuple(spec.size), (float(z), float(y), float(x)))
    turn = turns[int(rng.integers(len(turns)))]
    if spec.shape_probability < 1 and rng.random() >= spec.shape_probability:
        angles, factor, uneven = np.zeros(3), 1.0, np.ones(3)
    if spec.quarter_probability < 1 and rng.random() >= spec.quarter_probability:
        turn = np.eye(3)
    kept = flat | (np.arange(3) == _across(spec, scan))
    spacing = np.where(kept, base, base / (factor * uneven))
    direction = scan.affine.direction
    linear = direction @ _rotation(angles, flat) @ turn @ np.diag(flips * spacing)
    middle = scan.affine.apply(centre) + direction @ np.where(flat, 0.0, jitter)
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = middle - linear @ ((size - 1) / 2)
    return affine


def _field(
    spec: ViewSpec, affine: Array, across: int | None, rng: np.random.Generator
) -> NDArray[np.float32]:
    """(3, p, q, r) control points; empty where the views are not bent."""
    if spec.elastic_mm <= 0:
        return np.zeros(0, dtype=np.float32)
    field = draw_field(
        rng, spec.elastic_mm, spec.elastic_points, spec.size, affine[:3, :3], across
    )
    if spec.elastic_probability < 1 and rng.random() >= spec.elastic_probability:
        field = np.zeros_like(field)
    return field.astype(np.float32)


def _rotation(angles: Array, flat: NDArray[np.bool_]) -> Array:
    """About z, then y, then x, leaving out turns out of a flat view's plane."""
    result = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = (other for other in range(3) if other != axis)
        if flat[i] or flat[j]:
            continue
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        result = result @ turn
    return result


@lru_cache(maxsize=256)
def _quarter_turns(size: Index, spacing: Triple) -> list[Array]:
    """All turns by multiples of 90 degrees in the planes whose sides agree.

    Sides agree when both the number of voxels and their spacing (to 1%) do.
    """

    def agree(i: int, j: int) -> bool:
        same = size[i] == size[j] > 1
        return same and bool(np.isclose(spacing[i], spacing[j], rtol=0.01))

    turns = []
    for axes in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            matrix = np.zeros((3, 3))
            matrix[axes, range(3)] = signs
            # an axis without an equal partner stays as it is
            fits = all(
                agree(i, a)
                if i != a
                else s > 0 or any(agree(i, k) for k in range(3) if k != i)
                for i, (a, s) in enumerate(zip(axes, signs, strict=True))
            )
            if fits and np.linalg.det(matrix) > 0:
                turns.append(matrix)
    return turns
