"""A detector of key points: heat maps of middles and corners, from an encoder-decoder.

Every class has three heat maps on one fine grid: of the middles of its boxes, and of
their low and high corners. A middle says how far its faces are; the corners thus told
move to the nearest corners that were found.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from homolog.backbones.base import Backbone
from homolog.distributed import evened
from homolog.geometry.affine import Index
from homolog.tasks.detect.detector import (
    MOST_FOUND,
    Found,
    PyramidDetector,
    Usual,
    filled,
)
from homolog.tasks.detect.one_stage import (
    conv_layers,
    decoded,
    log_sides,
    middles_of,
    paired_giou,
)
from homolog.tasks.detect.targets import Levels, Seen, sent

MIDDLE, LOW, HIGH = 0, 1, 2
# A box whose corners lie within the radius of the true ones overlaps the true one by so
# much. Source: CornerNet (arXiv 1808.01244), section 3.2.
_OVERLAP = 0.3
# Powers of the focal loss of heat maps. Source: CornerNet, equation 1.
_ALPHA, _BETA = 2, 4
# Chance at first. Source: Objects as Points (arXiv 1904.07850), the authors' code.
_PRIOR = 0.1
# Standard deviation of a heat map's spot: a third of the radius (CornerNet, 3.2), never
# so narrow that cells beside the right one learn nothing.
_OF_RADIUS, _LEAST_CELLS = 1.0 / 3.0, 0.5
# Cells with less of a middle's spot do not learn its box.
_SPOT = 0.2
# Corners are found from this chance on. Source: Objects as Points, section 4.2, with
# 0.1; but that is what an untrained network says. On breast ultrasound after 300 steps
# of 4 images AP50 was 0.25 with 0.1, 0.43 with 0.5.
_CORNER = 0.5


@dataclass(frozen=True, eq=False)
class Heat:
    """What is said at the cells of the grid.

    Attributes:
        points: (B, K, 3, d, h, w) logits: is a middle, a low, a high corner here?
        sides: (B, K, 2 * axes, d, h, w) logarithms of the distances from here to the
            faces, where a middle is; see ``one_stage.decoded``.
        offsets: (B, 2, axes, d, h, w) from the middle of the cell to a low and to a
            high corner in it, in cells.
        stride: Voxels per cell (z, y, x).
    """

    points: Tensor
    sides: Tensor
    offsets: Tensor
    stride: Index


class PointNetwork(PyramidDetector):
    """Encoder, decoder (feature pyramid) to one fine grid, and heat maps on it.

    Args:
        encoder: 2D or 3D.
        levels: The finest is the grid; all maps from there on go into the decoder.
        classes: How many (K).
        width: Channels of the decoder and the head.
        depth: Convolutions of the head before its last.
        planar: Windows are one slice.

    Source: Zhou et al., "Objects as Points", arXiv 1904.07850 (middles, what they say,
        key points that are moved to those found: section 4.2); Law and Deng,
        "CornerNet", ECCV 2018 (corners, spots and loss of heat maps); Liu et al.,
        "Training-Time-Friendly Network", AAAI 2020 (cells around a middle learn its
        box, each by its part of the spot).
    Differs from the papers: two or three axes; two corners are enough for a box,
        whatever its axes; spots have a radius along each axis, in closed form; faces
        are told as logarithms, with GIoU and a smooth L1; no corner pooling.
    """

    first = 3.0

    def __init__(
        self,
        encoder: Backbone,
        levels: Levels,
        classes: int,
        *,
        width: int = 64,
        depth: int = 2,
        planar: bool = False,
    ) -> None:
        super().__init__(encoder, levels, classes, width=width, planar=planar)
        kernel = (1, 3, 3) if planar else (3, 3, 3)
        count = len(self.axes)
        self.tower = conv_layers(width, kernel, depth)
        self.box_tower = conv_layers(width, kernel, depth)
        self.point = nn.Conv3d(width, 3 * classes, kernel, padding="same")
        self.measure = nn.Conv3d(width, 2 * count * classes, kernel, padding="same")
        self.offset = nn.Conv3d(width, 2 * count, kernel, padding="same")
        for layer in (self.point, self.measure, self.offset):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        assert self.point.bias is not None
        nn.init.constant_(self.point.bias, -math.log((1 - _PRIOR) / _PRIOR))

    def forward(self, image: Tensor) -> Heat:
        """Normalised intensities (B, C, D, H, W) -> heat maps."""
        features = self.level_maps(image)[0]
        seen, measured = self.tower(features), self.box_tower(features)
        return Heat(
            self.point(seen).unflatten(1, (self.classes, 3)),
            self.measure(measured).unflatten(1, (self.classes, -1)),
            self.offset(seen).unflatten(1, (2, -1)),
            self.levels.strides[0],
        )

    def losses(
        self, image: Tensor, seen: Sequence[Seen], usual: Usual
    ) -> dict[str, Tensor]:
        """``points``, ``boxes``, ``sides`` and ``offsets``."""
        heat = self(image)
        d, h, w = heat.points.shape[3:]
        wanted = [spots(one, (d, h, w), heat.stride, self.axes) for one in seen]
        with torch.autocast(image.device.type, enabled=False):
            return point_losses(heat, wanted, self.axes, usual)

    def found(self, said: Heat, size: Index, least: float) -> list[Found]:
        """Boxes around the peaks of the middles, as one opinion."""
        return [boxes_of_heat(said, self.axes, size, least)]

    @staticmethod
    def mean(said: Sequence[Heat]) -> Heat:
        """Chances are averaged, logarithms of sides, and offsets."""
        chances = torch.stack([one.points.float().sigmoid() for one in said]).mean(0)
        return Heat(
            chances.logit(eps=1e-6),
            torch.stack([one.sides.float() for one in said]).mean(0),
            torch.stack([one.offsets.float() for one in said]).mean(0),
            said[0].stride,
        )


# What cells learn.


@dataclass(frozen=True, eq=False)
class Spots:
    """What the cells are to say, of one sample.

    Attributes:
        points: (K, 3, d, h, w) 1 where a key point is, falling to 0 around it.
        counts: (K, 3, d, h, w) bool: whether the answer is judged.
        weights: (K, d, h, w) how much a cell learns of a box.
        boxes: (K, d, h, w, 2 * axes) that box.
        offsets: (2, axes, d, h, w) to the corner in a cell; NaN where there is none.
    """

    points: Tensor
    counts: Tensor
    weights: Tensor
    boxes: Tensor
    offsets: Tensor


def radius_share(axes: int) -> float:
    """Part of a side that a corner may be off, for boxes to overlap by ``_OVERLAP``.

    Both corners off by f of every side, inwards: (1 - 2 f)^axes of the box is left;
    outwards and to one side it overlaps by more.
    """
    return (1.0 - math.pow(_OVERLAP, 1.0 / axes)) / 2.0


def spots(seen: Seen, grid: Index, stride: Index, axes: Sequence[int]) -> Spots:
    """The heat maps of the boxes in a window.

    A corner outside the window is not asked for. Where a middle lies outside, the cells
    within its box are neither asked for such a middle nor denied it.

    Args:
        seen: The boxes.
        grid: Cells (d, h, w).
        stride: Voxels per cell.
        axes: That count.
    """
    classes, count, own = len(seen.known), len(axes), list(axes)
    device = seen.low.device
    points = torch.zeros(classes, 3, *grid, device=device)
    counts = seen.known[:, None, None, None, None].expand_as(points).clone()
    weights = torch.zeros(classes, *grid, device=device)
    boxes = torch.zeros(classes, *grid, 2 * count, device=device)
    offsets = torch.full((2, count, *grid), torch.nan, device=device)
    steps = torch.tensor(stride, device=device, dtype=torch.float32)
    middles, sides = (seen.low + seen.high) / 2, seen.high - seen.low
    at = middles_of(grid, stride, device)
    for n in sides[:, own].prod(1).argsort(descending=True).tolist():
        number = int(seen.label[n])
        ends = torch.cat([seen.low[n][own], seen.high[n][own]])
        for kind, place in (
            (MIDDLE, middles[n]),
            (LOW, seen.low[n]),
            (HIGH, seen.high[n]),
        ):
            cell = _cell(place, grid, steps, own)
            if cell is None:
                if kind == MIDDLE:
                    inside = ((at > seen.low[n]) & (at < seen.high[n]))[..., own]
                    counts[number, MIDDLE][inside.all(-1)] = False
                continue
            spot = _spot(cell, sides[n], grid, steps, own)
            heat = points[number, kind]
            torch.maximum(heat, spot, out=heat)
            if kind == MIDDLE:
                near = (spot >= weights[number]) & (spot >= _SPOT)
                weights[number][near] = spot[near]
                boxes[number][near] = ends
            else:
                off = (place - (cell + 0.5) * steps) / steps
                z, y, x = (int(c) for c in cell)
                offsets[kind - 1, :, z, y, x] = off[own]
    return Spots(points, counts, weights, boxes, offsets)


def _cell(place: Tensor, grid: Index, steps: Tensor, axes: list[int]) -> Tensor | None:
    """The cell (3,) that holds a place; None outside. A far edge is still inside."""
    limit = steps.new_tensor(grid)
    cell = (place / steps).floor()
    on_edge = (place - limit * steps).abs() < 1e-3
    cell = torch.where(on_edge, limit - 1, cell)
    cell = torch.where(((place < 0) & (place > -1e-3)), torch.zeros_like(cell), cell)
    inside = ((cell >= 0) & (cell < limit))[axes].all()
    return cell.clamp(min=0).minimum(limit - 1) if bool(inside) else None


def _spot(
    cell: Tensor, side: Tensor, grid: Index, steps: Tensor, axes: list[int]
) -> Tensor:
    """(d, h, w) exactly 1 at a cell, less around it."""
    share = radius_share(len(axes)) * _OF_RADIUS
    deviation = (side / steps * share).clamp(min=_LEAST_CELLS)
    spot = steps.new_ones(grid)
    for axis in axes:
        away = torch.arange(grid[axis], device=steps.device) - cell[axis]
        along = torch.exp(-0.5 * (away / deviation[axis]).square())
        shape = [1, 1, 1]
        shape[axis] = -1
        spot = spot * along.view(shape)
    return spot


def point_losses(
    heat: Heat, wanted: Sequence[Spots], axes: Sequence[int], usual: Usual
) -> dict[str, Tensor]:
    """The terms of a batch.

    Args:
        heat: Of the network.
        wanted: Of each sample.
        axes: That count.
        usual: See ``Detector.losses``.
    """
    device = heat.points.device
    points = torch.stack([one.points for one in wanted])
    counts = torch.stack([one.counts for one in wanted])
    focal = heat_focal(heat.points.float(), sent(points, device)) * sent(counts, device)
    hits = int(((points == 1) & counts).sum())
    weights = torch.stack([one.weights for one in wanted])
    weights = weights * counts[:, :, MIDDLE]
    true = torch.stack([one.boxes for one in wanted])
    learns = weights > 0
    d, h, w = points.shape[3:]
    at = middles_of((d, h, w), heat.stride, points.device)
    at = at.expand(*learns.shape, 3)[learns]
    where = tuple(sent(index, device) for index in learns.nonzero(as_tuple=True))
    told = heat.sides.movedim(2, -1)[where].float()
    weighed = sent(weights.sum(), device)
    total = weighed.clamp(min=1e-3)
    # of crops without boxes: a gradient of 0, but one
    boxes = heat.sides.sum().square() * 0.0
    sides = boxes
    if len(at):
        logs = sent(log_sides(true[learns], at, heat.stride, axes), device)
        share = sent(weights[learns], device)
        found = decoded(told, sent(at, device), heat.stride, axes)
        giou = paired_giou(found, sent(true[learns], device))
        boxes = (share * (1.0 - giou)).sum()
        smooth = functional.smooth_l1_loss(told, logs, reduction="none", beta=0.2)
        sides = (share * smooth.mean(1)).sum()
    corners = torch.stack([one.offsets for one in wanted])
    known = ~corners.isnan()
    told_of = int(known.sum())
    known, corners = sent(known, device), sent(corners.nan_to_num(), device)
    away = torch.where(known, heat.offsets.float() - corners, 0.0)
    return {
        "points": focal.sum() / usual(hits),
        "boxes": evened(boxes / total, weighed),
        "sides": evened(sides / total, weighed),
        "offsets": evened(away.abs().sum() / max(1, told_of), told_of),
    }


def heat_focal(logits: Tensor, wanted: Tensor) -> Tensor:
    """Focal loss of heat maps, elementwise: near a key point less is asked.

    Source: CornerNet, equation 1; Objects as Points, equation 1.
    """
    chance = logits.sigmoid()
    yes = (1.0 - chance).pow(_ALPHA) * functional.logsigmoid(logits)
    no = (1.0 - wanted).pow(_BETA) * chance.pow(_ALPHA) * functional.logsigmoid(-logits)
    return -torch.where(wanted == 1, yes, no)


# From heat maps to boxes.


def peaks(chances: Tensor) -> Tensor:
    """The same (..., d, h, w), 0 where a neighbour is larger.

    Source: Objects as Points, section 4.
    """
    flat = chances.flatten(0, -4)[None]
    kernel = [min(3, 2 * n - 1) for n in chances.shape[-3:]]
    most = functional.max_pool3d(flat, kernel, 1, [k // 2 for k in kernel])
    return torch.where(most == flat, flat, 0.0)[0].reshape(chances.shape)


def boxes_of_heat(heat: Heat, axes: Sequence[int], size: Index, least: float) -> Found:
    """Boxes of the surest middles of one window, their corners as they were found."""
    chances = peaks(heat.points[0].float().sigmoid())
    middle = chances[:, MIDDLE]
    flat = middle.flatten()
    top, places = flat.topk(min(MOST_FOUND, len(flat)))
    places = places[top >= max(least, 1e-6)]
    at = torch.unravel_index(places, middle.shape)
    d, h, w = middle.shape[1:]
    cells = middles_of((d, h, w), heat.stride, middle.device)
    sides = heat.sides[0].movedim(1, -1)[at]
    told = decoded(sides, cells[at[1], at[2], at[3]], heat.stride, axes)
    count, own = len(axes), list(axes)
    reach = radius_share(count) * (told[:, count:] - told[:, :count])
    for kind, part in ((LOW, told[:, :count]), (HIGH, told[:, count:])):
        for label in sorted(set(at[0].tolist())):
            sure = (chances[label, kind] >= _CORNER).nonzero(as_tuple=True)
            if not len(sure[0]):
                continue
            off = heat.offsets[0, kind - 1].movedim(0, -1)[sure].float()
            steps = cells.new_tensor(heat.stride)[own]
            corners = cells[sure][:, own] + off * steps
            mine = at[0] == label
            # in radii: within one, a corner is that of this box
            away = (part[mine][:, None] - corners) / reach[mine][:, None]
            nearest, which = away.abs().amax(-1).min(1)
            moved = torch.where((nearest <= 1)[:, None], corners[which], part[mine])
            part[mine] = moved
    return Found(filled(told, axes, size), at[0], flat[places])
