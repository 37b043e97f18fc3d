"""Blocks and plans -> views, on the device: one interpolation per group."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from homolog.geometry.affine import Affine, Array, Index
from homolog.geometry.sampling import Grid, locate, read
from homolog.views.intensity import Draws, change_intensity
from homolog.views.plan import GroupPlan, Scan
from homolog.views.view import (
    Anchor,
    Elsewhere,
    Matched,
    Same,
    View,
    ViewSpec,
    Within,
    bands_before,
    is_partner,
)

# Which box of the scan the views of a sample need: tight, clipped, shared.


_MARGIN = 1  # voxels around the outermost places: interpolation reaches to the next


@dataclass(frozen=True)
class Share:
    """Groups whose views are read together.

    Attributes:
        groups: Their names.
        per_view: One box for each view (they lie far apart) instead of one for all.
        labels: Whether the label map is read too.
        boxes: Names of boxes that stand in for it.
        depths: Whether the depths within labels are read too.
        partner: Whether they lie in the other patient's scan.
    """

    groups: tuple[str, ...]
    per_view: bool
    labels: bool
    partner: bool = False
    depths: bool = False
    boxes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Box:
    """What to read of a scan.

    Attributes:
        start: First voxel.
        size: Voxels of the scan, inside it and at least one per axis.
        pool: Voxels averaged into one along each axis (odd): a view with much larger
            voxels than the scan's would otherwise skip what lies between its own.
    """

    start: Index
    size: Index
    pool: Index


def share_blocks(specs: Mapping[str, ViewSpec]) -> tuple[Share, ...]:
    """Which groups share a box; follows from the specs alone.

    Groups at the anchor, or within one that is, overlap: they share one box if their
    voxels are of one size; so do those at one matched place, and a group with those
    that show the same. Every other group has a box of its own, and views at independent
    places, or of slices that are changed before, one each.
    """
    keys: dict[tuple[object, ...], list[str]] = {}
    for name, spec in specs.items():
        shown = spec.place.group if isinstance(spec.place, Same) else name
        root = specs[shown].place
        while isinstance(root, Within):
            root = specs[root.group].place
        key: tuple[object, ...] = (shown,)
        if bands_before(spec):
            pass  # every view is cut from a slice of its own
        elif isinstance(root, Anchor | Matched):
            key = (root, spec.spacing_mm)
        keys.setdefault(key, []).append(name)
    return tuple(
        Share(
            groups=tuple(names),
            per_view=isinstance(specs[names[0]].place, Elsewhere)
            or bands_before(specs[names[0]]),
            labels=any(specs[name].labels for name in names),
            partner=is_partner(specs, names[0]),
            depths=any(specs[name].depths for name in names),
            boxes=next((specs[n].boxes for n in names if specs[n].boxes), ()),
        )
        for names in keys.values()
    )


def boxes_of(
    share: Share,
    plans: Mapping[str, GroupPlan],
    specs: Mapping[str, ViewSpec],
    scan: Scan,
) -> list[Box]:
    """The boxes of one sample: one, or one per view."""
    # with one box per view, further groups of the share show the same as the first
    groups = share.groups[:1] if share.per_view else share.groups
    reaches = [_reach(plans[name], specs[name].size, scan) for name in groups]
    low, high, step = (np.concatenate(part) for part in zip(*reaches, strict=True))
    if share.per_view:
        return [_box(*rows, scan.shape) for rows in zip(low, high, step, strict=True)]
    return [_box(low.min(0), high.max(0), step.min(0), scan.shape)]


def block_affine(box: Box, scan: Scan) -> Affine:
    """Block voxel -> world mm; pooled voxels lie at the middle of what they average."""
    return scan.affine.crop(box.start).coarsen(box.pool)


def _reach(plan: GroupPlan, size: Index, scan: Scan) -> tuple[Array, Array, Array]:
    """Lowest and highest scan voxel each view touches, and its step; each (V, 3).

    Exact, since a B-spline stays within the range of its control points.
    """
    inverse = np.linalg.inv(scan.affine.matrix[:3, :3])
    linear = inverse @ plan.affine[:, :3, :3]
    apart = plan.affine[:, :3, 3] - scan.affine.matrix[:3, 3]
    half = (np.array(size) - 1) / 2
    centre = apart @ inverse.T + linear @ half
    reach = np.abs(linear) @ half
    low, high = centre - reach, centre + reach
    if plan.displacement_mm is not None:
        field = np.einsum("ij,vjpqr->vipqr", inverse, plan.displacement_mm)
        low = low + field.min((2, 3, 4))
        high = high + field.max((2, 3, 4))
    return low, high, np.abs(linear).max(-1)


def _box(low: Array, high: Array, step: Array, shape: Index) -> Box:
    last = np.array(shape) - 1
    pool = np.maximum((np.floor(step + 1e-6).astype(int) - 1) // 2 * 2 + 1, 1)
    margin = _MARGIN * pool
    start = np.clip(np.floor(low).astype(int) - margin, 0, last)
    stop = np.clip(np.ceil(high).astype(int) + margin, 0, last) + 1
    return Box(_index(start), _index(stop - start), _index(pool))


def _index(values: Sequence[int] | Array) -> Index:
    d, h, w = (int(v) for v in values)
    return d, h, w


@dataclass(frozen=True)
class Levels:
    """Stored numbers -> normalised intensities: stored * gain + bias, within low..high.

    Attributes:
        gain: (B, C) float32.
        bias: (B, C) float32.
        low: (B, C) float32, also the value outside the scan unless ``beyond`` is it.
        high: (B, C) float32.
        beyond: (B, C) float32, the value outside the scan where it is not ``low``.
    """

    gain: Tensor
    bias: Tensor
    low: Tensor
    high: Tensor
    beyond: Tensor | None = None

    @property
    def outside(self) -> Tensor:
        """(B, C) the value outside the scan."""
        return self.low if self.beyond is None else self.beyond

    def to(self, device: torch.device) -> Levels:
        """On a device, without waiting for it."""
        up = [
            t.to(device, non_blocking=True)
            for t in (self.gain, self.bias, self.low, self.high, self.outside)
        ]
        return Levels(*up)

    @property
    def span(self) -> Tensor:
        """(B, C) width of the range of normalised values."""
        return self.high - self.low

    def normalise(self, stored: Tensor) -> Tensor:
        """(B, n, C, d, h, w) stored numbers -> float32 normalised intensities."""
        gain, bias, low, high = (
            t[:, None, :, None, None, None]
            for t in (self.gain, self.bias, self.low, self.high)
        )
        return torch.clamp(stored.float() * gain + bias, min=low, max=high)


@dataclass(frozen=True)
class Block:
    """Boxes cut from the scans; one (n = 1) or one per view (n = V) for each sample.

    Attributes:
        image: (B, n, C, d, h, w) int16 as stored, or float32 once normalised.
        affine: (B, n, 4, 4) float64, block voxel -> world mm.
        extent: (B, n, 3) float64, voxels that are real where the rest fills up the
            batch; None where all are.
        label: (B, n, d, h, w) int16 or None; -1 where unlabelled.
        depth: (B, n, d, h, w) int16 or None; see ``View.depth``; quarter voxels as
            stored, float32 voxels once normalised.
    """

    image: Tensor
    affine: Tensor
    extent: Tensor | None = None
    label: Tensor | None = None
    depth: Tensor | None = None

    def to(self, device: torch.device) -> Block:
        """On a device, without waiting for it."""
        return self.each(lambda tensor: tensor.to(device, non_blocking=True))

    def each(self, change: Callable[[Tensor], Tensor]) -> Block:
        """The same block with every tensor changed."""
        rest = (self.extent, self.label, self.depth)
        return Block(
            change(self.image),
            change(self.affine),
            *(None if tensor is None else change(tensor) for tensor in rest),
        )


@dataclass(frozen=True)
class GroupDraw:
    """The drawn views of one group of a batch.

    Attributes:
        affine: (B, V, 4, 4) float64, view voxel -> world mm.
        displacement_mm: (B, V, 3, p, q, r) float32 or None.
        intensity: Of the B * V views, sample by sample; stays on the CPU.
    """

    affine: Tensor
    displacement_mm: Tensor | None
    intensity: Draws

    def to(self, device: torch.device) -> GroupDraw:
        """On a device, without waiting for it."""
        field = self.displacement_mm
        return GroupDraw(
            self.affine.to(device, non_blocking=True),
            None if field is None else field.to(device, non_blocking=True),
            self.intensity,
        )


@torch.no_grad()
def generate(
    spec: ViewSpec,
    draw: GroupDraw,
    block: Block,
    outside: Tensor,
    case: Tensor,
    label_space: Tensor | None = None,
    span: Tensor | None = None,
) -> View:
    """Cut one group of views.

    Args:
        spec: What was asked for.
        draw: Where the views lie and how their values change.
        block: Normalised boxes that hold them.
        outside: (B, C) normalised value outside the scan.
        case: (B,) int64, passed on.
        label_space: (B,) int64, passed on.
        span: (B, C) width of each scan's range of normalised values.

    Returns:
        The group; all tensors on the block's device.
    """
    batch, count = draw.affine.shape[:2]
    boxes = block.image.shape[1]
    grid = _grid_of(draw, block, spec.size)
    image = block.image.flatten(0, 1)
    fill = outside.repeat_interleave(boxes, 0)
    values = read(image, grid, "linear", fill).reshape(
        batch * count, image.shape[1], *spec.size
    )
    valid = grid.valid.reshape(batch * count, *spec.size)
    values = change_intensity(
        values, valid, draw.intensity, outside.repeat_interleave(count, 0),
        spec.intensity, None if span is None else span.repeat_interleave(count, 0),
    )  # fmt: skip

    def nearest(stored: Tensor | None, outside: float) -> Tensor | None:
        if stored is None:
            return None
        values = stored.flatten(0, 1)[:, None].float()
        found = read(values, grid, "nearest", torch.full_like(fill[:, :1], outside))
        return found.reshape(batch, count, *spec.size)

    label = nearest(block.label, -1.0) if spec.labels else None
    depth = nearest(block.depth, 0.0) if spec.depths else None
    return View(
        image=values.reshape(batch, count, -1, *spec.size),
        affine=draw.affine,
        valid=valid.reshape(batch, count, *spec.size),
        case=case,
        label=None if label is None else label.long(),
        displacement_mm=draw.displacement_mm,
        depth=depth,
        label_space=label_space,
    )


def _grid_of(draw: GroupDraw, block: Block, size: Index) -> Grid:
    """Where the voxels of the views lie in the boxes, box by box."""
    batch, boxes = block.image.shape[:2]
    rows, per = batch * boxes, draw.affine.shape[1] // boxes
    d, h, w = block.image.shape[-3:]
    field, extent = draw.displacement_mm, block.extent
    return locate(
        (d, h, w),
        block.affine.reshape(rows, 4, 4),
        draw.affine.reshape(rows, per, 4, 4),
        size,
        None if field is None else field.reshape(rows, per, *field.shape[2:]),
        None if extent is None else extent.reshape(rows, 3),
    )


@torch.no_grad()
def recoloured(
    spec: ViewSpec, draw: GroupDraw, shown: View, outside: Tensor, span: Tensor
) -> View:
    """The same views with other intensity changes; nothing is cut again.

    Args:
        spec: A group that shows the same as another.
        draw: Its intensity changes.
        shown: The other group, without intensity changes.
        outside: (B, C) normalised value outside the scan.
        span: (B, C) width of each scan's range of normalised values.
    """
    count = shown.image.shape[1]
    values = change_intensity(
        shown.flat().clone(), shown.valid.flatten(0, 1), draw.intensity,
        outside.repeat_interleave(count, 0), spec.intensity,
        span.repeat_interleave(count, 0),
    )  # fmt: skip
    return dataclasses.replace(
        shown,
        image=values.reshape(shown.image.shape),
        label=shown.label if spec.labels else None,
        depth=shown.depth if spec.depths else None,
    )
