"""The map of one scan to another: a shift, an affine, then a smooth displacement.

One tool does all of it: how unlike the places around every cell are (a cost volume),
from which neighbouring cells choose together. Cells whose choice does not lead back
count little, and those who know nothing follow the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from homolog.geometry.affine import Affine, Index
from homolog.propagation.descriptors import (
    Field,
    GreyFields,
    Seen,
    read_index,
    smoothed,
)

Reader = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Grid:
    """A grid of places.

    Attributes:
        affine: Cell -> world mm.
        shape: Cells (d, h, w).
    """

    affine: Affine
    shape: Index

    @classmethod
    def over(cls, affine: Affine, shape: Index, step_mm: Sequence[float]) -> Grid:
        """A grid over another one's extent, its cells about ``step_mm`` wide."""
        sides = np.array(affine.spacing_mm) * np.array(shape)
        cells = np.maximum(np.round(sides / np.array(step_mm)), 1).astype(int)
        factor = np.array(shape) / cells
        moved = affine @ Affine.shift((factor - 1) / 2) @ Affine.scale(factor)
        d, h, w = (int(n) for n in cells)
        return cls(moved, (d, h, w))

    @property
    def index(self) -> Tensor:
        """Cells (d, h, w, 3) in cell units, float32."""
        axes = [torch.arange(n, dtype=torch.float32) for n in self.shape]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)

    @property
    def places_mm(self) -> Tensor:
        """(d, h, w, 3)."""
        return moved_by(self.affine.matrix, self.index)


def moved_by(matrix: NDArray[np.float64], points: Tensor) -> Tensor:
    """Points (..., 3) through a 4 x 4 matrix."""
    own = torch.tensor(np.asarray(matrix), dtype=points.dtype)
    return points @ own[:3, :3].T + own[:3, 3]


@dataclass(frozen=True, eq=False)
class Mapping:
    """Where each place of scan B lies in scan A.

    Attributes:
        matrix: (4, 4) world mm of B -> world mm of A, applied last.
        field: Displacement (3, d, h, w) mm added to places of B first, or None.
        unsure_mm: (1, d, h, w) how far there and back misses, or None.
    """

    matrix: NDArray[np.float64]
    field: Field | None = None
    unsure_mm: Field | None = None

    @property
    def affine(self) -> NDArray[np.float64]:
        """The affine part: ``matrix``, or what fits the field best where it has all."""
        if self.field is None or not np.allclose(self.matrix, np.eye(4)):
            return self.matrix
        grid = Grid(self.field.affine, self.field.shape)
        a = grid.places_mm.reshape(-1, 3)[:: max(1, int(np.prod(grid.shape)) // 5000)]
        b = self(a)
        whole = torch.cat([a, torch.ones(len(a), 1)], 1).double()
        found = torch.linalg.lstsq(whole, b.double()).solution.T
        return np.vstack([found.cpu().numpy(), [0.0, 0.0, 0.0, 1.0]])

    def __call__(self, places_mm: Tensor) -> Tensor:
        """Places (..., 3) of B where they lie in A."""
        moved = places_mm
        if self.field is not None:
            moved = moved + torch.movedim(held(self.field, places_mm), 0, -1)
        return moved_by(self.matrix, moved)


def held(field: Field, places_mm: Tensor) -> Tensor:
    """Values (C, ...) of a smooth field; beyond its border those of the border."""
    index = moved_by(field.affine.inverse().matrix, places_mm)
    last = torch.tensor([n - 1.0 for n in field.shape])
    return read_index(field.values, torch.minimum(index.clamp(min=0), last))


# The common ground of a pair.


@dataclass(frozen=True, eq=False)
class Blocks:
    """The kinds of descriptors of one scan, each with its weight."""

    fields: tuple[Field, ...]
    weights: tuple[float, ...]
    body: Field

    def read(self, places_mm: Tensor) -> tuple[Tensor, Tensor]:
        """Descriptors (C, ...) and how much of a body is there (1, ...)."""
        parts = [
            f.read(places_mm) * w
            for f, w in zip(self.fields, self.weights, strict=True)
        ]
        return torch.cat(parts), self.body.read(places_mm)


# Main directions of the dense features that are compared; the rest is mostly noise.
_DIRECTIONS = 16


class Pair:
    """Two scans to be compared, their descriptors on one scale.

    Args:
        a: The scan that is labelled.
        b: The other.
        grey_weight: Of the grey values.
        feature_weight: Of the dense features.
    """

    def __init__(
        self, a: Seen, b: Seen, grey_weight: float, feature_weight: float
    ) -> None:
        self.a, self.b = a, b
        self._grey_weight, self._feature_weight = grey_weight, feature_weight
        self._grey = GreyFields(a), GreyFields(b)
        self._last: tuple[float, tuple[Blocks, Blocks]] | None = None
        self._dense: tuple[Field, Field] | None = None
        if feature_weight > 0 and a.features is not None and b.features is not None:
            self._dense = _on_one_scale(a, b, a.features, b.features, _DIRECTIONS)

    def blocks(self, step_mm: float) -> tuple[Blocks, Blocks]:
        """Descriptors of both; unlike places are about 1 apart (squared distance)."""
        if self._last is None or self._last[0] != step_mm:
            self._last = None  # freed before the next are made
            self._last = step_mm, self._blocks(step_mm)
        return self._last[1]

    def _blocks(self, step_mm: float) -> tuple[Blocks, Blocks]:
        pairs: list[tuple[Field, Field]] = []
        weights: list[float] = []
        if self._dense is not None:
            pairs.append(self._dense)
            weights.append(self._feature_weight)
        if self._grey_weight > 0 or not pairs:
            grey = self._grey[0].at(step_mm), self._grey[1].at(step_mm)
            pairs.append(_on_one_scale(self.a, self.b, *grey))
            weights.append(self._grey_weight or 1.0)
        share = tuple(float(np.sqrt(w / sum(weights))) for w in weights)
        first, second = ((tuple(p[i] for p in pairs)) for i in (0, 1))
        return Blocks(first, share, self.a.body), Blocks(second, share, self.b.body)


def _on_one_scale(
    a: Seen, b: Seen, field_a: Field, field_b: Field, directions: int = 0
) -> tuple[Field, Field]:
    """Centred, turned to the main directions if asked, and scaled together."""
    cells = [_in_body(field_a, a.body), _in_body(field_b, b.body)]
    cells = [c[:, :: max(1, c.shape[1] // 20_000)].double() for c in cells]
    both = torch.cat([c / np.sqrt(c.shape[1]) for c in cells], 1)
    mean = (cells[0].mean(1) + cells[1].mean(1)) / 2
    covariance = both @ both.T / 2 - torch.outer(mean, mean)
    values, vectors = torch.linalg.eigh(covariance)
    count = min(directions or len(values), len(values))
    basis = (
        vectors.flip(1)[:, :count] if directions else torch.eye(len(values)).double()
    )
    kept = values.flip(0)[:count].sum() if directions else values.sum()
    scale = torch.rsqrt(2 * kept.clamp(min=1e-9))
    turn = (basis * scale).T.float()
    ahead = turn @ mean.float()
    return (
        _turned(field_a, turn, ahead),
        _turned(field_b, turn, ahead),
    )


def _turned(field: Field, turn: Tensor, ahead: Tensor) -> Field:
    flat = turn @ field.values.flatten(1) - ahead[:, None]
    return Field(flat.reshape(len(turn), *field.shape), field.affine)


def _in_body(field: Field, body: Field) -> Tensor:
    """Cells (C, N) of a field that lie in the body; all of them if few do."""
    grid = Grid(field.affine, field.shape)
    inside = body.read(grid.places_mm)[0] > 0.5
    if int(inside.sum()) < 50:
        inside = torch.ones_like(inside)
    return field.values[:, inside]


# One shift for all.


def best_shift(
    a: Blocks, b: Blocks, ground: Grid, extent_mm: Affine, shape: Index, least: float
) -> NDArray[np.float64]:
    """The shift (3,) mm of B's places that makes most of them alike to A's.

    Args:
        a: Scan A.
        b: Scan B.
        ground: A grid over B.
        extent_mm: Voxel -> world mm of A.
        shape: Voxels of A.
        least: Of the smaller body, this share must lie on the other.
    """
    # A read on a grid of the same axes and steps that covers it.
    corners = np.stack(np.meshgrid(*[(-0.5, n - 0.5) for n in shape]), -1).reshape(
        -1, 3
    )
    cells = ground.affine.inverse().apply(extent_mm.apply(corners))
    low = np.floor(cells.min(0)).astype(int)
    count = np.ceil(cells.max(0)).astype(int) - low + 1
    other = Grid(ground.affine.crop(low), (int(count[0]), int(count[1]), int(count[2])))
    values_a, body_a = a.read(other.places_mm)
    values_b, body_b = b.read(ground.places_mm)
    body_a, body_b = (body_a > 0.5).float(), (body_b > 0.5).float()
    size = [n + m - 1 for n, m in zip(other.shape, ground.shape, strict=True)]
    shared = _crossed(body_a, body_b, size)[0]
    # 1 - |a - b|^2 summed over what both show
    score = 2 * _crossed(values_a * body_a, values_b * body_b, size).sum(0)
    score -= _crossed((values_a**2).sum(0, True) * body_a, body_b, size)[0]
    score -= _crossed(body_a, (values_b**2).sum(0, True) * body_b, size)[0]
    enough = float(min(body_a.sum(), body_b.sum()))
    mean = (score + shared) / (shared + 0.3 * enough)
    mean[shared < least * enough] = -torch.inf
    place = np.array(np.unravel_index(int(mean.argmax()), size))
    ahead = np.where(place < np.array(other.shape), place, place - np.array(size)) + low
    linear = ground.affine.matrix[:3, :3]
    return np.asarray(linear @ ahead)


def _crossed(a: Tensor, b: Tensor, size: Sequence[int]) -> Tensor:
    """The sum over x of a(x + u) b(x), for every shift u, per channel, by FFT."""
    own = tuple(size)
    fa = torch.fft.rfftn(a, own, dim=(1, 2, 3))
    fb = torch.fft.rfftn(b, own, dim=(1, 2, 3))
    found: Tensor = torch.fft.irfftn(fa * fb.conj(), own, dim=(1, 2, 3))
    return found


# The places around every cell.


def offsets(radius: Sequence[int]) -> Tensor:
    """Displacements (K, 3) in cells, the middle one is none."""
    axes = [torch.arange(-r, r + 1, dtype=torch.float32) for r in radius]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)


def cost_volume(
    b: Tensor, a: Tensor, mask: Tensor, radius: Sequence[int], cap: float = 2.0
) -> Tensor:
    """How unlike (K, d, h, w) each cell of B is to the cells of A around it.

    Args:
        b: (C, d, h, w).
        a: (C, d, h, w).
        mask: (1, d, h, w) where A shows something.
        radius: Cells (z, y, x) around.
        cap: No two places are more unlike; what A does not show costs half of it.
    """
    rz, ry, rx = radius
    pad = (rx, rx, ry, ry, rz, rz)
    wide, seen = functional.pad(a, pad), functional.pad(mask, pad)[0]
    d, h, w = b.shape[1:]
    squares_a = (wide**2).sum(0)
    squares_b = (b**2).sum(0)
    costs = []
    for z in range(2 * rz + 1):
        for y in range(2 * ry + 1):
            for x in range(2 * rx + 1):
                part = (slice(z, z + d), slice(y, y + h), slice(x, x + w))
                dot = (wide[(slice(None), *part)] * b).sum(0)
                cost = (squares_a[part] + squares_b - 2 * dot).clamp(0, cap)
                costs.append(torch.where(seen[part] > 0.5, cost, 0.5 * cap))
    return torch.stack(costs)


def chosen_together(
    cost: Tensor, around: Tensor, weight: Tensor, sigma: Sequence[float]
) -> Tensor:
    """Displacements (3, d, h, w) in cells on which neighbours agree.

    Args:
        cost: (K, d, h, w).
        around: Displacements (K, 3) in cells.
        weight: (1, d, h, w) how much each cell's own choice counts for others.
        sigma: Width of the neighbourhood in cells.

    Source: Heinrich et al., Non-parametric discrete registration with convex
    optimisation, WBIR 2014 (coupled convex); Siebert et al., ConvexAdam, 2021.
    Differs from the paper: the smoothing is weighted by how sure each cell is.
    """
    k, d, h, w = cost.shape
    flat = cost.reshape(k, -1)
    squares = (around**2).sum(1)

    def agreed(choice: Tensor) -> Tensor:
        values = around[choice].T.reshape(3, d, h, w)
        top = smoothed(values * weight, sigma)
        return top / smoothed(weight, sigma).clamp(min=1e-6)

    field = agreed(flat.argmin(0))
    for stiffness in (0.003, 0.01, 0.03, 0.1, 0.3, 1.0):
        # cost and squared way to what the neighbours agree on, but for a constant
        total = torch.addmm(flat, around, field.reshape(3, -1), alpha=-2 * stiffness)
        field = agreed(total.add_(squares[:, None], alpha=stiffness).argmin(0))
    return field


def sureness(cost: Tensor) -> Tensor:
    """(1, d, h, w) in 0..1: how much the best place stands out from the usual."""
    best, usual = cost.min(0).values, cost.mean(0)
    return ((usual - best) / usual.clamp(min=1e-6))[None].clamp(0, 1)


def composed(first: Tensor, second: Tensor) -> Tensor:
    """The displacement of ``first`` and then, from there, ``second``; in cells."""
    index = Grid(Affine.identity(), _size(first)).index
    last = torch.tensor(first.shape[1:]) - 1.0
    there = torch.minimum((index + torch.movedim(first, 0, -1)).clamp(min=0), last)
    return first + read_index(second, there)


def _size(field: Tensor) -> Index:
    d, h, w = field.shape[1:]
    return int(d), int(h), int(w)


def miss(first: Tensor, second: Tensor, steps_mm: NDArray[np.float64]) -> Tensor:
    """How far (1, d, h, w) mm there and back again misses."""
    gap = composed(first, second)
    mm = torch.tensor(steps_mm).float()[:, None, None, None]
    return ((gap * mm) ** 2).sum(0, keepdim=True).sqrt()


# A pair of scans.


@dataclass(frozen=True)
class MatchConfig:
    """How one scan is mapped to another."""

    feature_weight: float = 1.0
    grey_weight: float = 0.0
    shift_cells: int = 6000
    affine_cells: int = 12000
    deform_cells: int = 40000
    margin_mm: float = 30.0
    smooth: float = 1.0
    descent: int = 40
    stiffness: float = 0.3


def map_of(a: Seen, b: Seen, where: Field | None, config: MatchConfig) -> Mapping:
    """The map of places of B to places of A.

    Args:
        a: The scan that is labelled.
        b: The other.
        where: Of one channel in A: only near where this is positive must the map be
            good; everywhere if None.
        config: How.
    """
    pair = Pair(a, b, config.grey_weight, config.feature_weight)
    matrix = _shift_between(pair, config)
    for radius in (4, 3, 2):
        matrix = _affine_round(pair, matrix, radius, config)
    return _bent(pair, matrix, where, config)


def _ground(b: Seen, cells: int, least_mm: float) -> Grid:
    """A grid over a scan of about so many cells of body, nearly as wide every way."""
    d, h, w = b.image.shape
    share = float((b.body.values > 0.5).float().mean())
    volume = d * h * w * float(np.prod(b.image.affine.spacing_mm)) * max(share, 0.05)
    step = max((volume / cells) ** (1 / 3), least_mm)
    steps = [max(step, s) for s in b.image.affine.spacing_mm]
    return Grid.over(b.image.affine, b.image.shape, steps)


def _shift_between(pair: Pair, config: MatchConfig) -> NDArray[np.float64]:
    ground = _ground(pair.b, config.shift_cells, 4.0)
    first, second = pair.blocks(_half(ground))
    image = pair.a.image
    matrix = np.eye(4)
    matrix[:3, 3] = best_shift(first, second, ground, image.affine, image.shape, 0.4)
    return matrix


def _half(grid: Grid) -> float:
    return float(min(grid.affine.spacing_mm)) / 2


def _affine_round(
    pair: Pair, matrix: NDArray[np.float64], radius: int, config: MatchConfig
) -> NDArray[np.float64]:
    """An affine map bettered by the places that choose each other."""
    ground = _ground(pair.b, config.affine_cells, 3.0)
    first, second = pair.blocks(_half(ground))
    places = ground.places_mm
    values_b, body_b = second.read(places)
    values_a, body_a = first.read(moved_by(matrix, places))
    reach = _reach(radius, ground.shape)
    there, back, sure = _both_ways(values_a, body_a, values_b, body_b, reach, 1.0)
    steps = np.array(ground.affine.spacing_mm)
    gap = miss(there, back, steps)
    weight = sure * torch.exp(-((gap / float(steps.mean())) ** 2)) * body_b
    flat = weight[0].flatten().double().cpu().numpy()
    from_mm = places.reshape(-1, 3).double().cpu().numpy()
    linear = ground.affine.matrix[:3, :3]
    to_mm = from_mm + there.reshape(3, -1).double().cpu().numpy().T @ linear.T
    bettered = matrix @ robust_affine(from_mm, to_mm, flat, float(steps.mean()))
    sizes = np.linalg.svd(bettered[:3, :3], compute_uv=False)
    if not (_SIZES[0] < sizes.min() and sizes.max() < _SIZES[1]):
        return matrix  # no two grown-ups differ so much: the matches were chance
    shown = moved_by(bettered, places)
    before = _unlike(values_a, body_a, values_b, body_b)
    after = _unlike(*first.read(shown), values_b, body_b)
    return bettered if after < before else matrix


# Of one body to another, along any axis.
_SIZES = (0.6, 1.7)


def _unlike(a: Tensor, body_a: Tensor, b: Tensor, body_b: Tensor) -> float:
    """Mean cost over the body of B; what A does not show costs 1."""
    cost = ((a - b) ** 2).sum(0).clamp(max=2.0)
    cost = torch.where(body_a[0] > 0.5, cost, torch.ones_like(cost))
    return float(cost[body_b[0] > 0.5].mean())


def _reach(radius: int, shape: Index) -> list[int]:
    """A radius per axis: none along an axis of one cell."""
    return [min(radius, n - 1) for n in shape]


def _both_ways(
    a: Tensor, body_a: Tensor, b: Tensor, body_b: Tensor, reach: Sequence[int],
    sigma: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Displacements of B to A and of A to B in cells, and how sure B's cells are."""
    around = offsets(reach)
    found = []
    for (x, mask_x), (y, mask_y) in (
        ((b, body_b), (a, body_a)),
        ((a, body_a), (b, body_b)),
    ):
        cost = cost_volume(x, y, mask_y, reach)
        sure = sureness(cost) * (mask_x > 0.5) + 1e-3
        found.append((chosen_together(cost, around, sure, [sigma] * 3), sure))
    return found[0][0], found[1][0], found[0][1]


def robust_affine(
    a: NDArray[np.float64], b: NDArray[np.float64], weight: NDArray[np.float64],
    tolerance_mm: float, ridge: float = 0.02,
) -> NDArray[np.float64]:  # fmt: skip
    """The affine map (4, 4) of points a (N, 3) to b that most of the weight agrees on.

    Args:
        a: (N, 3) mm.
        b: (N, 3) mm.
        weight: (N,) at least 0.
        tolerance_mm: Points much farther off than this stop counting.
        ridge: How much the map is held back from any change of shape.

    Source: iteratively reweighted least squares with Geman and McClure's weights.
    """
    matrix = np.eye(4)
    if weight.sum() < 1e-6:
        return matrix
    for scale in (8.0, 4.0, 2.0, 2.0, 2.0):
        away = ((a @ matrix[:3, :3].T + matrix[:3, 3] - b) ** 2).sum(1)
        size = (scale * tolerance_mm) ** 2
        share = weight * (size / (size + away)) ** 2
        share = share / share.sum()
        centre_a, centre_b = share @ a, share @ b
        p, q = a - centre_a, b - centre_b
        gram = p.T @ (share[:, None] * p)
        hold = ridge * np.trace(gram) / 3 * np.eye(3)
        linear = np.linalg.solve(gram + hold, p.T @ (share[:, None] * q) + hold).T
        matrix[:3, :3] = linear
        matrix[:3, 3] = centre_b - linear @ centre_a
    return matrix


def _bent(
    pair: Pair, matrix: NDArray[np.float64], where: Field | None, config: MatchConfig
) -> Mapping:
    """The affine map bent until neighbouring places lie on what they look like."""
    b = pair.b
    region = region_of(b, matrix, where, config.margin_mm)
    sides = np.array(region.affine.spacing_mm) * np.array(region.shape)
    fine = max(float(np.prod(sides) / config.deform_cells) ** (1 / 3), 1.0)
    mapping = Mapping(matrix)
    for factor, radius in ((2.0, 4), (1.0, 3)):
        steps = [max(fine * factor, s) for s in b.image.affine.spacing_mm]
        grid = Grid.over(region.affine, region.shape, steps)
        first, second = pair.blocks(_half(grid))
        mapping = _bend_round(first, second, grid, mapping, radius, config)
    if config.descent:
        mapping = _descended(first, second, grid, mapping, config)
    return mapping


def region_of(
    b: Seen, matrix: NDArray[np.float64], where: Field | None, margin_mm: float
) -> Grid:
    """The part of B's grid onto which what counts in A falls, and ``margin_mm``."""
    whole = Grid(b.image.affine, b.image.shape)
    if where is None or not bool((where.values > 0).any()):
        return whole
    found = torch.nonzero(where.values[0] > 0).double().cpu().numpy()
    ends = np.stack([found.min(0) - 0.5, found.max(0) + 0.5])
    corners = np.stack(np.meshgrid(*ends.T, indexing="ij"), -1).reshape(-1, 3)
    mm = where.affine.apply(corners)
    inverse = np.linalg.inv(matrix)
    in_b = mm @ inverse[:3, :3].T + inverse[:3, 3]
    cells = b.image.affine.inverse().apply(in_b)
    more = margin_mm / np.array(b.image.affine.spacing_mm)
    low = np.clip(np.floor(cells.min(0) - more), 0, np.array(whole.shape) - 1).astype(
        int
    )
    high = np.clip(np.ceil(cells.max(0) + more) + 1, low + 1, whole.shape).astype(int)
    d, h, w = (int(n) for n in high - low)
    return Grid(whole.affine.crop(low), (d, h, w))


def _bend_round(
    first: Blocks, second: Blocks, grid: Grid, mapping: Mapping, radius: int,
    config: MatchConfig,
) -> Mapping:  # fmt: skip
    places = grid.places_mm
    values_b, body_b = second.read(places)
    values_a, body_a = first.read(mapping(places))
    reach = _reach(radius, grid.shape)
    there, back, _ = _both_ways(
        values_a, body_a, values_b, body_b, reach, config.smooth
    )
    steps = np.array(grid.affine.spacing_mm)
    gap = smoothed(miss(there, back, steps), [1.0] * 3)
    for _ in range(5):
        there, back = (
            0.5 * (there - _at(back, there)),
            0.5 * (back - _at(there, back)),
        )
    linear = torch.tensor(grid.affine.matrix[:3, :3], dtype=torch.float32)
    mm = torch.einsum("ij,jdhw->idhw", linear, there)
    if mapping.field is not None:
        mm = mm + held(mapping.field, places + torch.movedim(mm, 0, -1))
    return Mapping(mapping.matrix, Field(mm, grid.affine), Field(gap, grid.affine))


def _at(field: Tensor, move: Tensor) -> Tensor:
    """A displacement field (3, d, h, w) read where another leads, in cells."""
    return composed(move, field) - move


def _descended(
    first: Blocks, second: Blocks, grid: Grid, mapping: Mapping, config: MatchConfig
) -> Mapping:
    """The displacement bettered by gradient descent, below the size of a cell.

    Source: Siebert et al., ConvexAdam, 2021 (instance optimisation with Adam).
    """
    assert mapping.field is not None
    places = grid.places_mm
    values_b, body_b = second.read(places)
    size = [max(1, n // 2) for n in grid.shape]
    start = functional.interpolate(
        mapping.field.values[None], size, mode="trilinear", align_corners=False
    )
    moves = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([moves], lr=0.15 * float(min(grid.affine.spacing_mm)))
    steps = torch.tensor(grid.affine.spacing_mm).float()
    counted = body_b[0] > 0.5
    for _ in range(config.descent):
        full = functional.interpolate(
            smoothed(moves[0], [1.0] * 3)[None],
            grid.shape,
            mode="trilinear",
            align_corners=False,
        )[0]
        values_a, _ = first.read(
            moved_by(mapping.matrix, places + torch.movedim(full, 0, -1))
        )
        cost = ((values_a - values_b) ** 2).sum(0).clamp(max=2.0)
        loss = cost[counted].mean() + config.stiffness * _roughness(full, steps)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    with torch.no_grad():
        full = functional.interpolate(
            smoothed(moves[0], [1.0] * 3)[None],
            grid.shape,
            mode="trilinear",
            align_corners=False,
        )[0]
    return Mapping(mapping.matrix, Field(full.detach(), grid.affine), mapping.unsure_mm)


def _roughness(field: Tensor, steps: Tensor) -> Tensor:
    """Mean squared slope of a displacement (3, d, h, w) mm."""
    total = field.new_zeros(())
    for axis in range(3):
        if field.shape[axis + 1] > 1:
            slope = torch.diff(field, dim=axis + 1) / steps[axis]
            total = total + (slope**2).sum(0).mean()
    return total
