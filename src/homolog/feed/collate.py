"""The samples of one step put together: what travels to the device at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from homolog.data.card import Card
from homolog.geometry.affine import Index
from homolog.geometry.sampling import constant
from homolog.views.generate import Block, GroupDraw, Levels
from homolog.views.intensity import Draws
from homolog.views.plan import GroupPlan


@dataclass(frozen=True)
class Batch:
    """One batch before it goes to the device.

    Attributes:
        step: Number of the batch.
        ids: Case id of each of the B samples.
        case: (B,) int64, position in the feed's cases.
        partner: (B,) int64, the same of the other patient of each sample; its own
            where it has none.
        levels: How stored numbers become intensities.
        partner_levels: The same for the partners.
        draws: Group -> drawn views.
        blocks: Boxes of the scans, int16; in the order of the feed's shares.
    """

    step: int
    ids: tuple[str, ...]
    case: Tensor
    partner: Tensor
    levels: Levels
    partner_levels: Levels
    draws: Mapping[str, GroupDraw]
    blocks: tuple[Block, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the boxes."""
        parts = (t for b in self.blocks for t in (b.image, b.label, b.depth))
        return sum(t.nbytes for t in parts if t is not None)


def levels_of(cards: Sequence[Card]) -> Levels:
    """Normalised = (clip(stored * scale + offset, low, high) - centre) / spread."""

    def column(values: list[float]) -> Tensor:
        whole = torch.tensor(values, dtype=torch.float64)[:, None]
        return whole.float().repeat(1, cards[0].channels)

    return Levels(
        gain=column([c.scale / c.spread for c in cards]),
        bias=column([(c.offset - c.centre) / c.spread for c in cards]),
        low=column([(c.low - c.centre) / c.spread for c in cards]),
        high=column([(c.high - c.centre) / c.spread for c in cards]),
    )


def fractions_of(cards: Sequence[Card]) -> Tensor:
    """(N, 4, 4) float64: world mm -> place in the scan's box, 0..1 along z, y, x."""
    found = []
    for card in cards:
        share = np.eye(4)
        share[:3, :3] /= card.shape
        share[:3, 3] = 0.5 / np.array(card.shape)  # voxel 0 is centred half a voxel in
        found.append(share @ card.affine.inverse().matrix)
    return torch.from_numpy(np.stack(found))


def centres_within(affine: Tensor, size: Index, fractions: Tensor) -> Tensor:
    """``View.where``, (B, V, 3) float32.

    Args:
        affine: (B, V, 4, 4) float64, view voxel -> world mm.
        size: Voxels of a view.
        fractions: (B, 4, 4), of each sample's scan, as made by ``fractions_of``.
    """
    middle = constant((*((n - 1) / 2 for n in size), 1.0), affine.device)
    return ((fractions[:, None] @ affine) @ middle)[..., :3].float()


def stack_plans(plans: Sequence[GroupPlan]) -> GroupDraw:
    """The views of one group, of all samples."""
    fields = [p.displacement_mm for p in plans if p.displacement_mm is not None]
    return GroupDraw(
        affine=torch.from_numpy(np.stack([p.affine for p in plans])),
        displacement_mm=torch.from_numpy(np.stack(fields)) if fields else None,
        intensity=Draws.stack([p.intensity for p in plans]),
    )


def pad_blocks(blocks: list[Block]) -> Block:
    """One block per sample -> one for the batch, filled up to the largest."""
    shape = [max(b.image.shape[axis] for b in blocks) for axis in (-3, -2, -1)]

    def grown(values: Tensor) -> Tensor:
        gaps = [n - m for n, m in zip(shape, values.shape[-3:], strict=True)]
        if not any(gaps):
            return values
        return torch.nn.functional.pad(values, (0, gaps[2], 0, gaps[1], 0, gaps[0]))

    labels = [grown(b.label) for b in blocks if b.label is not None]
    depths = [grown(b.depth) for b in blocks if b.depth is not None]
    extents = [b.extent for b in blocks if b.extent is not None]
    extent = torch.stack(extents)
    is_full = bool((extent == torch.tensor(shape, dtype=torch.float64)).all())
    return Block(
        image=torch.stack([grown(b.image) for b in blocks]),
        affine=torch.stack([b.affine for b in blocks]),
        extent=None if is_full else extent,
        label=torch.stack(labels) if labels else None,
        depth=torch.stack(depths) if depths else None,
    )


def pinned(batch: Batch) -> Batch:
    """The batch with its boxes in pinned memory."""
    blocks = tuple(block.each(Tensor.pin_memory) for block in batch.blocks)
    return dataclasses.replace(batch, blocks=blocks)
