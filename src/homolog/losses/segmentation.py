"""Losses of a segmentation: Dice plus cross-entropy on labelled voxels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from homolog.distributed import evened

# Binary cross-entropy of several classes, each there, absent or not known.


def partial_binary_cross_entropy(
    scores: Tensor, truth: Tensor, weight: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Mean over all entries that are known; 0 with zero gradient where none is.

    Args:
        scores: (..., K) logits; computed in float32 at least.
        truth: (..., K); 1 there, 0 absent, negative not known.
        weight: (K,) weight of the entries that are 1; those that are 0 count 1.
        smoothing: Share of the truth given to there and absent alike.
    """
    exact = scores if scores.dtype == torch.float64 else scores.float()
    known = truth >= 0
    sure = truth.clamp_min(0).to(exact.dtype) * (1.0 - smoothing) + smoothing / 2.0
    error = torch.nn.functional.binary_cross_entropy_with_logits(
        exact, sure, pos_weight=weight, reduction="none"
    )
    return evened((error * known).sum() / known.sum().clamp_min(1), known.sum())


SMOOTH = 1e-5


def dice_cross_entropy(
    logits: Tensor,
    target: Tensor,
    annotated: Tensor | None = None,
    *,
    together: bool = False,
) -> tuple[Tensor, Tensor]:
    """Soft Dice loss of the foreground classes, and cross-entropy of all.

    On fully labelled crops both equal MONAI's ``DiceCELoss(include_background=False,
    softmax=True, to_onehot_y=True)``, which cannot leave voxels out.

    Args:
        logits: (B, K, D, H, W), class 0 is background; computed in float32 at least.
        target: (B, D, H, W) int64 class indices; negative is unlabelled and ignored.
        annotated: (B, K) bool, the classes that a crop's data set annotates; all if
            None. A background voxel may be any of the others: their shares count as
            background's, and their Dice does not count.
        together: Dice of all crops as one: a slice seldom shows every class, and the
            Dice of a class that is not there says little (hippocampus, 200 steps of 16
            slices: validation Dice 0.70 together, 0.60 one by one).

    Returns:
        ``(dice, cross_entropy)`` scalars. Both are 0 (with zero gradient) where nothing
        is labelled.

    Source: Milletari et al., 3DV 2016 (Dice); sum with cross-entropy as in nnU-Net,
        Isensee et al., Nature Methods 2021 (which takes 2D crops together); marginal
        loss of partly labelled data: Shi et al., Medical Image Analysis 70, 2021.
    """
    exact = logits if logits.dtype == torch.float64 else logits.float()
    log_share = torch.log_softmax(exact, dim=1)
    if annotated is not None:
        log_share = _merged(log_share, annotated)
    known = (target >= 0).unsqueeze(1)
    classes = target.clamp_min(0).unsqueeze(1)
    picked = log_share.gather(1, classes)
    cross_entropy = -(picked * known).sum() / known.sum().clamp_min(1)
    cross_entropy = evened(cross_entropy, known.sum())

    share = log_share.exp() * known
    truth = torch.zeros_like(share).scatter_(1, classes, known.to(share.dtype))
    space = tuple(range(2, share.ndim))
    both = (share * truth).sum(space)[:, 1:]
    either = (share.sum(space) + truth.sum(space))[:, 1:]
    counted = known.flatten(1).any(1)[:, None].expand_as(both)
    if annotated is not None:
        counted = counted & annotated[:, 1:]
    if together:
        both, either = ((x * counted).sum(0, keepdim=True) for x in (both, either))
        counted = counted.any(0, keepdim=True)
    scores = 1.0 - (2.0 * both + SMOOTH) / (either + SMOOTH)  # (B or 1, K - 1)
    per_crop = (scores * counted).sum(1) / counted.sum(1).clamp_min(1)
    labelled = counted.any(1).sum()
    return evened(per_crop.sum() / labelled.clamp_min(1), labelled), cross_entropy


def scale_weights(count: int) -> list[float]:
    """Weights of the answers of several resolutions, the full one first.

    Each counts half as much as the one before, the coarsest nothing; together 1.

    Args:
        count: Resolutions.

    Source: Isensee et al., nnU-Net, Nature Methods 2021, supplementary note 2 (deep
        supervision), and nnUNetTrainer of its second version; three of them are
        nnFormer's (Zhou et al., IEEE TIP 2023, section 4.1).
    """
    halves = [0.5**place for place in range(count)]
    if count > 1:
        halves[-1] = 0.0
    return [half / sum(halves) for half in halves]


def at_scale(target: Tensor, size: Sequence[int]) -> Tensor:
    """Labels (B, D, H, W) at a coarser resolution: of the voxel amid each cell."""
    amid = torch.nn.functional.interpolate(
        target[:, None].float(), size=tuple(size), mode="nearest-exact"
    )
    return amid[:, 0].long()


def _merged(log_share: Tensor, annotated: Tensor) -> Tensor:
    """Background takes the shares of what is not annotated; those become nothing."""
    shape = (*annotated.shape, *(1,) * (log_share.ndim - 2))
    own = annotated.clone()
    own[:, 0] = False
    own = own.reshape(shape)
    low = float("-inf")
    background = log_share.masked_fill(own, low).logsumexp(1, keepdim=True)
    # finite, since its exponent and gradient are taken
    rest = log_share[:, 1:].masked_fill(~own[:, 1:], -1e4)
    return torch.cat([background, rest], dim=1)
