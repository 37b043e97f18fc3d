"""Contrast of places: a voxel against its own place in another crop and all others."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from homolog.losses.precision import full_precision

_NEVER = float("-inf")


@full_precision
def place_contrast(
    anchors: Tensor,
    positives: Tensor,
    negatives: Tensor,
    temperature: float,
    *,
    counted: Tensor | None = None,
    usable: Tensor | None = None,
) -> Tensor:
    """-log softmax of the own place among it and the anchor's negatives.

    Args:
        anchors: (B, A, E) of unit length.
        positives: (B, A, E), the same places in the other view.
        negatives: (B, A, K, E), other places.
        temperature: Divides the cosines.
        counted: (B, A) bool, anchors that count; None: all.
        usable: (B, A, K) bool; negatives marked False are left out. None: all.

    Returns:
        Scalar mean over the anchors that count, 0 where none does. K orthogonal
        negatives and a perfect positive give ln(1 + K exp(-1 / temperature)).

    Source: Yan et al., "SAM: Self-supervised Learning of Pixel-wise Anatomical
    Embeddings", TMI 2022; methods reference L 1 step 4.
    """
    own = (anchors * positives).sum(-1, keepdim=True)
    others = torch.einsum("bae,bake->bak", anchors, negatives)
    if usable is not None:
        others = others.masked_fill(~usable, _NEVER)
    logits = torch.cat([own, others], dim=-1) / temperature
    loss = logits.logsumexp(-1) - logits[..., 0]
    if counted is None:
        return loss.mean()
    weight = counted.to(loss.dtype)
    return (loss * weight).sum() / weight.sum().clamp_min(1.0)


def pick(numbers: Tensor, allowed: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Some of the allowed columns of each row, chosen by uniform random numbers.

    Args:
        numbers: (..., N) random in 0..1.
        allowed: (..., N) bool.
        count: Columns wanted; N if there are fewer.

    Returns:
        Index (..., k) int64 and whether it is allowed (..., k): rows with fewer allowed
        columns are filled up with forbidden ones.
    """
    scores = torch.where(allowed, numbers, -1.0)
    best = scores.topk(min(count, scores.shape[-1]), dim=-1)
    return best.indices, best.values >= 0


@torch.no_grad()
@full_precision
def hard_negatives(
    similarity: Tensor,
    forbidden: Tensor,
    numbers: Tensor,
    hardest: int,
    count: int,
) -> tuple[Tensor, Tensor]:
    """Hard and diverse: a random part of the most similar wrong places.

    Args:
        similarity: (B, A, N) of each anchor with every candidate.
        forbidden: (B, A, N) bool: too near to the anchor's place, or outside the scan.
        numbers: (B, A, M) random in 0..1, M >= min(hardest, N).
        hardest: How many of the most similar candidates are looked at.
        count: How many of these are taken.

    Returns:
        Index (B, A, k) into N and whether it may be used (B, A, k).

    Source: methods reference L 1 step 3.
    Differs from the published code: forbidden places get -inf instead of 0, so that
    they are never taken, not even when fewer than ``hardest`` candidates are left
    (L 3).
    """
    scores = similarity.masked_fill(forbidden, _NEVER)
    best = scores.topk(min(hardest, scores.shape[-1]), dim=-1)
    chosen, usable = pick(
        numbers[..., : best.indices.shape[-1]], best.values > _NEVER, count
    )
    return best.indices.gather(-1, chosen), usable


def gather_cells(cells: Tensor, index: Tensor) -> Tensor:
    """Vectors (B, N, E) at index (B, ...) -> (B, ..., E)."""
    flat = index.flatten(1)[..., None].expand(-1, -1, cells.shape[-1])
    return cells.gather(1, flat).reshape(*index.shape, cells.shape[-1])


def enlarged(coarse: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Unit vectors (B, E, d, h, w) on a finer grid, unit length again."""
    up = functional.interpolate(
        coarse.float(), size=grid, mode="trilinear", align_corners=False
    )
    return functional.normalize(up, dim=1, eps=1e-6)


def squared_distances(own_mm: Tensor, places_mm: Tensor) -> Tensor:
    """Of (B, A, 3) and (B, N, 3) positions in mm, (B, A, N) float32.

    Positions are taken relative to the first place: near the origin, float32 holds
    millimetres to a thousandth. Axis by axis and without a matrix product, which
    autocast and TF32 would round to three digits: |a|^2 + |b|^2 - 2 a b of places
    300 mm away is then wrong by hundreds of mm^2.
    """
    origin = places_mm[:, :1]
    own, places = (own_mm - origin).float(), (places_mm - origin).float()
    total = (own[:, :, None, 0] - places[:, None, :, 0]).square()
    for axis in (1, 2):
        total = total + (own[:, :, None, axis] - places[:, None, :, axis]).square()
    return total


def cells_of_others(
    pool: Tensor, valid: Tensor, case: Tensor, numbers: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Random cells of the other scans of a batch.

    Args:
        pool: (B, N, E) cells of each sample.
        valid: (B, N) bool.
        case: (B,) which scan each sample shows; samples of one scan are no others.
        numbers: (B, B * N) random in 0..1.
        count: Cells wanted (G).

    Returns:
        Vectors (B, G, E), and whether each is valid and of another scan (B, G).
    """
    other = (case[:, None] != case[None])[..., None] & valid[None]
    index, is_other = pick(numbers, other.flatten(1), count)
    return pool.reshape(-1, pool.shape[-1])[index], is_other
