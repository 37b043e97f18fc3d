"""A one-stage detector on the maps of an encoder, and how it learns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from monai.losses.focal_loss import sigmoid_focal_loss
from torch import Tensor, nn
from torch.nn import functional

from homolog.backbones.base import Backbone
from homolog.distributed import evened
from homolog.geometry.affine import Index
from homolog.geometry.sampling import constant
from homolog.tasks.detect.detector import (
    MOST_FOUND,
    Found,
    PyramidDetector,
    Usual,
    filled,
)
from homolog.tasks.detect.targets import CELLS, Levels, Seen, sent

# Cells nearer than this to a box's middle, in cells, learn that box.
# Source: FCOS (arXiv 2006.09214), section 3.1, centre sampling.
_RADIUS = 1.5
# Of the focal loss. Source: Lin et al., RetinaNet, ICCV 2017, section 5.1.
_GAMMA, _ALPHA, _PRIOR = 2.0, 0.25, 0.01
# A side is at most e^3 times that its level looks for.
_MOST = 3.0
_GROUPS = 8
# Cells that learn a box of a batch with one.
_FIRST_POSITIVES = 27.0
# A box smaller than a cell has no cell inside, but one that learns it.
_LEAST_WEIGHT = 0.1
_EPS = torch.finfo(torch.float32).eps


@dataclass(frozen=True, eq=False)
class Grid:
    """What is said at the cells of one level.

    Attributes:
        classes: (B, K, d, h, w) logits: is the middle of such a box near?
        centre: (B, K, d, h, w) logits: how near its middle?
        sides: (B, K, 2 * axes, d, h, w) logarithms of the distances to the low and
            high faces, in units of half the side that the level looks for.
        stride: Voxels per cell (z, y, x).
    """

    classes: Tensor
    centre: Tensor
    sides: Tensor
    stride: Index


# Paper: Hundred Million IV-C.
class DetectNetwork(PyramidDetector):
    """Encoder, feature pyramid, and one head for all levels.

    Every cell says for each class whether a box's middle is near, and how far its faces
    are. In slices (``planar``) faces along z are not asked for.

    Args:
        encoder: 2D or 3D.
        levels: Its maps that are looked at.
        classes: How many (K).
        width: Channels of pyramid and head.
        depth: Convolutions of the head before its last.
        planar: Windows are one slice.

    Source: Tian et al., "FCOS: A Simple and Strong Anchor-free Object Detector", TPAMI
        2022; Lin et al., RetinaNet and FPN, 2017; Li et al., ViTDet, ECCV 2022 (levels
        finer than the encoder's maps); Rezatofighi et al., GIoU, CVPR 2019.
    Differs from the papers: three axes; faces and centreness are told for each class by
        itself, as organs of one class are alike; a level's box has four cells a side,
        in place of limits on distances. Learning: a smooth L1 on the logarithms of the
        distances stands beside GIoU, whose slope is small while boxes hardly meet, as
        in volumes they do at first.
    """

    first = _FIRST_POSITIVES

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
        self.tower = conv_layers(width, kernel, depth)
        self.box_tower = conv_layers(width, kernel, depth)
        faces = 2 * len(self.axes)
        self.classify = nn.Conv3d(width, classes, kernel, padding="same")
        self.measure = nn.Conv3d(width, classes * faces, kernel, padding="same")
        self.centre = nn.Conv3d(width, classes, kernel, padding="same")
        self.scale = nn.Parameter(torch.ones(levels.count))
        for layer in (self.classify, self.measure, self.centre):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        assert self.classify.bias is not None
        nn.init.constant_(self.classify.bias, -math.log((1 - _PRIOR) / _PRIOR))

    def forward(self, image: Tensor) -> list[Grid]:
        """Normalised intensities (B, C, D, H, W) -> one grid per level."""
        grids = []
        found = self.level_maps(image)
        for number, (features, stride) in enumerate(
            zip(found, self.levels.strides, strict=True)
        ):
            seen, measured = self.tower(features), self.box_tower(features)
            sides = self.measure(measured) * self.scale[number]
            sides = sides.unflatten(1, (self.classes, -1))
            grids.append(
                Grid(self.classify(seen), self.centre(measured), sides, stride)
            )
        return grids

    def losses(
        self, image: Tensor, seen: Sequence[Seen], usual: Usual
    ) -> dict[str, Tensor]:
        """``classes``, ``boxes``, ``sides`` and ``centre``."""
        grids = self(image)
        d, h, w = image.shape[2:]
        targets = [assigned(one, grids, (d, h, w), self.axes) for one in seen]
        with torch.autocast(image.device.type, enabled=False):
            return detection_losses(
                grids, targets, self.axes, usual(_positives(targets))
            )

    def found(self, said: list[Grid], size: Index, least: float) -> list[Found]:
        """The surest of every level, as one opinion."""
        parts = [_of_level(grid, self.axes, least, size) for grid in said]
        boxes, label, scores = (torch.cat(part) for part in zip(*parts, strict=True))
        return [Found(boxes, label, scores)]

    @staticmethod
    def mean(said: Sequence[list[Grid]]) -> list[Grid]:
        """Chances are averaged, and logarithms of sides."""
        return [_mean_grid(level) for level in zip(*said, strict=True)]


def _of_level(grid: Grid, axes: Sequence[int], least: float, size: Index) -> Found:
    """Boxes of one level of one window."""
    sure = grid.classes[0].float().sigmoid() * grid.centre[0].float().sigmoid()
    scores = sure.sqrt()
    flat = scores.flatten()
    top, places = flat.topk(min(MOST_FOUND, len(flat)))
    places = places[top >= least]
    at = torch.unravel_index(places, scores.shape)
    middles = cell_middles(grid)[at[1], at[2], at[3]]
    sides = grid.sides[0].movedim(1, -1)[at]
    told = decoded(sides, middles, grid.stride, axes)
    return Found(filled(told, axes, size), at[0], flat[places])


def _mean_grid(grids: Sequence[Grid]) -> Grid:
    def chance(name: str) -> Tensor:
        sure = [getattr(grid, name).float().sigmoid() for grid in grids]
        return torch.stack(sure).mean(0).logit(eps=1e-6)

    sides = torch.stack([grid.sides.float() for grid in grids]).mean(0)
    return Grid(chance("classes"), chance("centre"), sides, grids[0].stride)


def conv_layers(width: int, kernel: Index, depth: int) -> nn.Sequential:
    """So many convolutions, each normalised and rectified."""
    groups = math.gcd(width, _GROUPS)
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [
            nn.Conv3d(width, width, kernel, padding="same", bias=False),
            nn.GroupNorm(groups, width),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)


def cell_middles(grid: Grid, device: torch.device | None = None) -> Tensor:
    """(d, h, w, 3) middles of the cells, as edges in voxels of the window."""
    d, h, w = grid.classes.shape[2:]
    return middles_of((d, h, w), grid.stride, device or grid.classes.device)


def middles_of(cells: Index, stride: Index, device: torch.device) -> Tensor:
    """(d, h, w, 3) middles of so many cells, as edges in voxels of the window."""
    along = [
        (torch.arange(n, device=device, dtype=torch.float32) + 0.5) * step
        for n, step in zip(cells, stride, strict=True)
    ]
    return torch.stack(torch.meshgrid(*along, indexing="ij"), -1)


def reach_of(stride: Index, axes: Sequence[int]) -> list[float]:
    """Half the side that a level looks for, in voxels, along each axis that counts."""
    return [CELLS / 2 * stride[a] for a in axes]


def decoded(
    sides: Tensor, middles: Tensor, stride: Index, axes: Sequence[int]
) -> Tensor:
    """Boxes (N, 2 * axes) of what cells say.

    Args:
        sides: (N, 2 * axes), as of ``Grid``.
        middles: (N, 3) of the cells.
        stride: Of their level.
        axes: That count.
    """
    count = len(axes)
    reach = constant(tuple(reach_of(stride, axes) * 2), sides.device, torch.float32)
    away = sides.float().clamp(max=_MOST).exp() * reach
    at = torch.stack([middles[:, axis] for axis in axes], 1)
    return torch.cat([at - away[:, :count], at + away[:, count:]], 1)


# Which cells learn which box.


@dataclass(frozen=True, eq=False)
class Targets:
    """What the cells of one level are to say, of one sample.

    Attributes:
        classes: (K, d, h, w) 1 where a box's middle is near, else 0.
        counts: (K, d, h, w) bool: whether the answer is judged.
        boxes: (K, d, h, w, 2 * axes) the box, where there is one.
    """

    classes: Tensor
    counts: Tensor
    boxes: Tensor


def level_of(side: Tensor, strides: Sequence[Index], axes: Sequence[int]) -> int:
    """The level whose boxes are most like one of ``side`` (3,) voxels."""
    own = torch.tensor(strides, dtype=torch.float32)[:, list(axes)]
    ratio = side.cpu()[list(axes)].clamp(min=1e-3) / (CELLS * own)
    return int(ratio.log2().mean(1).abs().argmin())


def assigned(
    seen: Seen, grids: Sequence[Grid], size: Index, axes: Sequence[int]
) -> list[Targets]:
    """What each level is to say of the boxes in a window.

    The cells around a box's middle learn it, at the level that suits its size; at least
    the one that holds the middle. A box may reach out of the window, as far as it does.
    Where its middle lies outside, the cells within it are not asked for that class. Of
    two boxes of a class a cell learns the smaller.

    Args:
        seen: The boxes.
        grids: What the network says; only sizes count.
        size: Of the window (D, H, W).
        axes: That count.
    """
    classes, faces = len(seen.known), 2 * len(axes)
    device = seen.low.device
    targets = []
    for grid in grids:
        shape = (classes, *grid.classes.shape[2:])
        counts = seen.known[:, None, None, None].expand(shape).clone()
        targets.append(
            Targets(
                torch.zeros(shape, device=device),
                counts.to(device),
                torch.zeros((*shape, faces), device=device),
            )
        )
    places = [cell_middles(grid, device) for grid in grids]
    middles, sides = (seen.low + seen.high) / 2, seen.high - seen.low
    limit = torch.tensor(size, device=middles.device)
    inside = ((middles >= 0) & (middles < limit))[:, list(axes)].all(1)
    strides = [grid.stride for grid in grids]
    for n in sides[:, list(axes)].prod(1).argsort(descending=True).tolist():
        number = int(seen.label[n])
        if not inside[n]:
            for at, target in zip(places, targets, strict=True):
                target.counts[number][_within(at, seen.low[n], seen.high[n], axes)] = (
                    False
                )
            continue
        level = level_of(sides[n], strides, axes)
        near = _near(places[level], seen, n, strides[level], axes)
        target = targets[level]
        target.classes[number][near] = 1.0
        ends = [seen.low[n][list(axes)], seen.high[n][list(axes)]]
        target.boxes[number][near] = torch.cat(ends)
    return targets


def _within(at: Tensor, low: Tensor, high: Tensor, axes: Sequence[int]) -> Tensor:
    """(d, h, w) bool."""
    return ((at > low) & (at < high))[..., list(axes)].all(-1)


def _near(at: Tensor, seen: Seen, n: int, stride: Index, axes: Sequence[int]) -> Tensor:
    """(d, h, w) bool: cells that learn a box whose middle lies inside."""
    middle = (seen.low[n] + seen.high[n]) / 2
    step = torch.tensor(stride, device=at.device, dtype=torch.float32)
    away = ((at - middle).abs() / step)[..., list(axes)]
    near = (away < _RADIUS).all(-1) & _within(at, seen.low[n], seen.high[n], axes)
    cell = [
        min(max(int(m // s), 0), count - 1)
        for m, s, count in zip(middle.tolist(), stride, at.shape[:3], strict=True)
    ]
    near[tuple(cell)] = True
    return near


def _positives(targets: Sequence[Sequence[Targets]]) -> int:
    """Cells that learn a box."""
    return sum(
        int(((level.classes > 0) & level.counts).sum())
        for sample in targets
        for level in sample
    )


def detection_losses(
    grids: Sequence[Grid],
    targets: Sequence[Sequence[Targets]],
    axes: Sequence[int],
    usual: Tensor,
) -> dict[str, Tensor]:
    """The terms of a batch.

    The focal loss is divided by the usual number of cells that learn a box: by a
    batch's own, one that happens to show none would shake the network.

    Args:
        grids: Of the network, one per level.
        targets: Of each sample, one per level.
        axes: That count.
        usual: Cells of a batch that learn a box, on average; above 0.
    """
    focal, boxes, sides, centre = [], [], [], []
    weights, positives = [], 0
    for level, grid in enumerate(grids):
        device = grid.classes.device
        wanted = torch.stack([sample[level].classes for sample in targets])
        counts = torch.stack([sample[level].counts for sample in targets])
        true = torch.stack([sample[level].boxes for sample in targets])
        logits = grid.classes.float()
        (alpha,) = constant((_ALPHA,), device, torch.float32)  # a number is copied up
        cost = sigmoid_focal_loss(logits, sent(wanted, device), _GAMMA, alpha)
        focal.append((cost * sent(counts, device)).sum())
        hit = (wanted > 0) & counts
        at = cell_middles(grid, hit.device).expand(*hit.shape, 3)[hit]
        positives += len(at)
        share, logs = _shares(true[hit], at, grid.stride, axes)
        weight = share.clamp(min=_LEAST_WEIGHT)
        weights.append(weight)
        where = tuple(sent(index, device) for index in hit.nonzero(as_tuple=True))
        told = grid.sides.movedim(2, -1)[where].float()
        share, logs, weight = (sent(v, device) for v in (share, logs, weight))
        if len(share):
            found = decoded(told, sent(at, device), grid.stride, axes)
            boxes.append(weight * (1.0 - paired_giou(found, sent(true[hit], device))))
        smooth = functional.smooth_l1_loss(told, logs, reduction="none", beta=0.2)
        sides.append(weight * smooth.mean(1))
        centre.append(
            functional.binary_cross_entropy_with_logits(
                grid.centre[where].float(), share, reduction="sum"
            )
        )
    several = max(1, positives)
    weighed = sent(torch.cat(weights).sum(), usual.device)
    total = weighed.clamp(min=1e-3)
    # of crops without boxes: a gradient of 0, but one
    none = grids[0].sides.sum().square() * 0.0
    return {
        "classes": torch.stack(focal).sum() / usual,
        "boxes": evened((torch.cat(boxes).sum() if boxes else none) / total, weighed),
        "sides": evened((torch.cat(sides).sum() + none) / total, weighed),
        "centre": evened(torch.stack(centre).sum() / several, positives),
    }


def _shares(
    true: Tensor, at: Tensor, stride: Index, axes: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Centreness (N,) of cells in their boxes, and logarithms of the distances.

    The centreness is the geometric mean over the axes of the nearer face's distance by
    the farther's; 0 for a cell outside its box.
    """
    count = len(axes)
    away = _away(true, at, axes)
    logs = log_sides(true, at, stride, axes)
    low, high = away[:, :count], away[:, count:]
    nearer, farther = torch.minimum(low, high), torch.maximum(low, high)
    ratio = (nearer / farther.clamp(min=1e-6)).clamp(min=0.0)
    return ratio.prod(1).pow(1.0 / count), logs


def paired_giou(a: Tensor, b: Tensor) -> Tensor:
    """(N,) generalised overlap of boxes (N, 2 * axes) with those of the same row.

    As MONAI's ``box_pair_giou``, which looks at every value first, for which the host
    would wait for the device.

    Source: Rezatofighi et al., GIoU, CVPR 2019.
    """
    count = a.shape[1] // 2
    size_a, size_b = (_volume(box[:, count:] - box[:, :count]) for box in (a, b))
    low = torch.max(a[:, :count], b[:, :count])
    high = torch.min(a[:, count:], b[:, count:])
    inter = (high - low).clamp(min=0).prod(-1)
    union = size_a + size_b - inter
    low = torch.min(a[:, :count], b[:, :count])
    high = torch.max(a[:, count:], b[:, count:])
    whole = (high - low).clamp(min=0).prod(-1)
    return inter / (union + _EPS) - (whole - union) / (whole + _EPS)


def _volume(sides: Tensor) -> Tensor:
    found = sides[:, 0]
    for axis in range(1, sides.shape[1]):
        found = found * sides[:, axis]
    return found


def log_sides(true: Tensor, at: Tensor, stride: Index, axes: Sequence[int]) -> Tensor:
    """What cells at (N, 3) are to say of boxes (N, 2 * axes): see ``decoded``."""
    reach = torch.tensor(reach_of(stride, axes) * 2, device=at.device)
    return (_away(true, at, axes) / reach).clamp(min=0.02).log()


def _away(true: Tensor, at: Tensor, axes: Sequence[int]) -> Tensor:
    """Distances (N, 2 * axes) from places to the low and high faces."""
    middles, count = at[:, list(axes)], len(axes)
    return torch.cat([middles - true[:, :count], true[:, count:] - middles], 1)
