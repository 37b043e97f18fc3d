"""Blocks and plans -> views, on the device: one interpolation per group."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from homolog.geometry.sampling import locate, read
from homolog.views.intensity import Draws, change_intensity
from homolog.views.view import View, ViewSpec


@dataclass(frozen=True)
class Levels:
    """Stored numbers -> normalised intensities: stored * gain + bias, within low..high.

    Attributes:
        gain: (B, C) float32.
        bias: (B, C) float32.
        low: (B, C) float32, also the value outside the scan.
        high: (B, C) float32.
    """

    gain: Tensor
    bias: Tensor
    low: Tensor
    high: Tensor

    def to(self, device: torch.device) -> Levels:
        """On a device, without waiting for it."""
        up = [
            t.to(device, non_blocking=True)
            for t in (self.gain, self.bias, self.low, self.high)
        ]
        return Levels(*up)

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
) -> View:
    """Cut one group of views.

    Args:
        spec: What was asked for.
        draw: Where the views lie and how their values change.
        block: Normalised boxes that hold them.
        outside: (B, C) normalised value outside the scan.
        case: (B,) int64, passed on.
        label_space: (B,) int64, passed on.

    Returns:
        The group; all tensors on the block's device.
    """
    batch, count = draw.affine.shape[:2]
    boxes = block.image.shape[1]
    rows, per = batch * boxes, count // boxes
    image = block.image.flatten(0, 1)
    field, extent = draw.displacement_mm, block.extent
    d, h, w = image.shape[-3:]
    grid = locate(
        (d, h, w),
        block.affine.reshape(rows, 4, 4),
        draw.affine.reshape(rows, per, 4, 4),
        spec.size,
        None if field is None else field.reshape(rows, per, *field.shape[2:]),
        None if extent is None else extent.reshape(rows, 3),
    )
    fill = outside.repeat_interleave(boxes, 0)
    values = read(image, grid, "linear", fill).reshape(
        batch * count, image.shape[1], *spec.size
    )
    valid = grid.valid.reshape(batch * count, *spec.size)
    values = change_intensity(
        values, valid, draw.intensity, outside.repeat_interleave(count, 0),
        spec.intensity.bands_reference,
    )  # fmt: skip

    def nearest(stored: Tensor | None, outside: float) -> Tensor | None:
        if stored is None:
            return None
        values = stored.reshape(rows, 1, d, h, w).float()
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
        displacement_mm=field,
        depth=depth,
        label_space=label_space,
    )


@torch.no_grad()
def recoloured(spec: ViewSpec, draw: GroupDraw, shown: View, outside: Tensor) -> View:
    """The same views with other intensity changes; nothing is cut again.

    Args:
        spec: A group that shows the same as another.
        draw: Its intensity changes.
        shown: The other group, without intensity changes.
        outside: (B, C) normalised value outside the scan.
    """
    count = shown.image.shape[1]
    values = change_intensity(
        shown.flat().clone(), shown.valid.flatten(0, 1), draw.intensity,
        outside.repeat_interleave(count, 0), spec.intensity.bands_reference,
    )  # fmt: skip
    return dataclasses.replace(
        shown,
        image=values.reshape(shown.image.shape),
        label=shown.label if spec.labels else None,
        depth=shown.depth if spec.depths else None,
    )
