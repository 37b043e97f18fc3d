"""Contrastive losses: of places, of labels, and of pairs, in little memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from homolog.losses.similarity import full_precision, unit


@full_precision
def info_nce(
    queries: Tensor,
    keys: Tensor,
    negatives: Tensor,
    temperature: float,
    *,
    occupied: Tensor | None = None,
    batch_negatives: bool = False,
) -> Tensor:
    """-log softmax of each query's own key among its key and the negatives.

    Args:
        queries: (B, E); scaled to unit length here, as keys and negatives are.
        keys: (B, E), the positives; no gradient flows into them.
        negatives: (K, E), e.g. a queue; no gradient flows into them.
        temperature: Divides the cosines.
        occupied: (K,) bool; rows marked False are no negatives. None: all count.
        batch_negatives: The other samples' keys are negatives as well.

    Returns:
        Scalar mean over the batch. K orthogonal negatives and a perfect positive give
        ln(1 + K exp(-1 / temperature)); total ignorance gives ln(K + 1).

    Source: van den Oord et al. 2018; He et al., CVPR 2020 (MoCo); S2DC Eq. 1, its
    misplaced bracket read as exp(q . k / tau), one positive and K negatives.

    Paper: S2DC Eq. 1.
    """
    queries, keys = unit(queries), unit(keys).detach()
    scores = queries @ unit(negatives).detach().mT
    if occupied is not None:
        scores = scores.masked_fill(~occupied, float("-inf"))
    positive = (queries * keys).sum(dim=1, keepdim=True)
    if not batch_negatives:
        logits = torch.cat([positive, scores], dim=1) / temperature
        target = torch.zeros(len(queries), dtype=torch.long, device=queries.device)
        return functional.cross_entropy(logits, target)
    logits = torch.cat([queries @ keys.mT, scores], dim=1) / temperature
    return functional.cross_entropy(
        logits, torch.arange(len(queries), device=queries.device)
    )


# Voxels of one label resemble each other across two crops.


BACKGROUND = 0


@dataclass(frozen=True)
class Labelled:
    """Voxels drawn from crops.

    Attributes:
        features: (N, E), any length.
        label: (N,) int64, 0 is background.
        space: (N,) int64, labels are compared within one label space only.
        drawn: (N,) bool, whether this slot holds a voxel at all.
    """

    features: Tensor
    label: Tensor
    space: Tensor
    drawn: Tensor


def relation(
    one: Labelled, other: Labelled, *, background_negative: bool = False
) -> tuple[Tensor, Tensor]:
    """Which pairs are positive and which negative, both (N, M) bool.

    Background is never compared with background: what one data set leaves unlabelled
    may be an organ in another. Labelled voxels are compared with background only where
    ``background_negative`` says so.

    Source: MixCL, section 2.3, the label relation matrix A.

    Paper: MixCL relation.
    """
    real = one.drawn[:, None] & other.drawn[None]
    real &= one.space[:, None] == other.space[None]
    a, b = (x.label > BACKGROUND for x in (one, other))
    both = a[:, None] & b[None]
    same = one.label[:, None] == other.label[None]
    positive = real & both & same
    negative = real & both & ~same
    if background_negative:
        known = (one.label >= BACKGROUND)[:, None] & (other.label >= BACKGROUND)[None]
        negative |= real & known & (a[:, None] ^ b[None])
    return positive, negative


@full_precision
def label_contrast(
    one: Labelled,
    other: Labelled,
    temperature: float,
    *,
    background_negative: bool = False,
    within: bool = False,
    global_ratio: bool = False,
) -> Tensor:
    """-log of the share of positives among positives and negatives.

    Per anchor with at least one positive, mean over anchors; both sides are anchors in
    turn, and the result is the mean of the two.

    Args:
        one: Voxels of the first crops.
        other: Voxels of the second crops.
        temperature: Divides the cosines.
        background_negative: See ``relation``.
        within: An anchor is also compared with the voxels of its own side.
        global_ratio: One logarithm of the ratio of the sums over all pairs, as printed;
            a few easy pairs satisfy it.

    Returns:
        Scalar. ln(1 + n- / n+ exp(-1 / temperature)) where classes point along
        orthogonal directions; 0 where all pairs are positive; an exact 0 with finite
        gradients where no anchor has a positive.

    Source: MixCL, Eq. 6, its two factors read as of the two crops.
    Differs from the paper: per anchor, and both sides.

    Paper: MixCL Eq. 6.
    """
    if global_ratio:
        return _ratio(one, other, temperature, background_negative)
    sides = [
        _anchored(a, b, temperature, background_negative, within)
        for a, b in ((one, other), (other, one))
    ]
    return torch.stack(sides).mean()


def _anchored(
    one: Labelled,
    other: Labelled,
    temperature: float,
    background_negative: bool,
    within: bool,
) -> Tensor:
    scores, positive, negative = _compared(one, other, temperature, background_negative)
    if within:
        more, same, differs = _compared(one, one, temperature, background_negative)
        same = same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
        scores = torch.cat([scores, more], 1)
        positive = torch.cat([positive, same], 1)
        negative = torch.cat([negative, differs], 1)
    anchors = positive.any(1)
    # rows without a positive stay finite here and are left out below
    positive = positive | ~anchors[:, None]
    low = float("-inf")
    near = scores.masked_fill(~positive, low).logsumexp(1)
    all_pairs = scores.masked_fill(~(positive | negative), low).logsumexp(1)
    terms = torch.where(anchors, all_pairs - near, torch.zeros_like(near))
    return terms.sum() / anchors.sum().clamp_min(1)


def _ratio(
    one: Labelled, other: Labelled, temperature: float, background_negative: bool
) -> Tensor:
    scores, positive, negative = _compared(one, other, temperature, background_negative)
    known = positive.any()
    positive = positive | ~known
    low = float("-inf")
    near = scores.masked_fill(~positive, low).flatten().logsumexp(0)
    all_pairs = scores.masked_fill(~(positive | negative), low).flatten().logsumexp(0)
    return torch.where(known, all_pairs - near, torch.zeros_like(near))


def _compared(
    one: Labelled, other: Labelled, temperature: float, background_negative: bool
) -> tuple[Tensor, Tensor, Tensor]:
    scores = unit(one.features) @ unit(other.features).mT / temperature
    return scores, *relation(one, other, background_negative=background_negative)


# Contrast of places: a voxel against its own place in another crop and all others.


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

    Paper: SAM fine.
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
