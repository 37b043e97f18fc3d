"""Voxels of one label resemble each other across two crops."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from homolog.losses.precision import full_precision
from homolog.losses.similarity import unit

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
