"""Losses of a segmentation: Dice plus cross-entropy on labelled voxels."""

from __future__ import annotations

import torch
from torch import Tensor

SMOOTH = 1e-5


def dice_cross_entropy(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Soft Dice loss of the foreground classes, and cross-entropy of all.

    On fully labelled crops both equal MONAI's ``DiceCELoss(include_background=False,
    softmax=True, to_onehot_y=True)``, which cannot leave voxels out.

    Args:
        logits: (B, K, D, H, W), class 0 is background; computed in float32 at least.
        target: (B, D, H, W) int64 class indices; negative is unlabelled and ignored.

    Returns:
        ``(dice, cross_entropy)`` scalars. Both are 0 (with zero gradient) where nothing
        is labelled.

    Source: Milletari et al., 3DV 2016 (Dice); sum with cross-entropy as in nnU-Net,
        Isensee et al., Nature Methods 2021.
    """
    exact = logits if logits.dtype == torch.float64 else logits.float()
    log_share = torch.log_softmax(exact, dim=1)
    known = (target >= 0).unsqueeze(1)
    classes = target.clamp_min(0).unsqueeze(1)
    picked = log_share.gather(1, classes)
    cross_entropy = -(picked * known).sum() / known.sum().clamp_min(1)

    share = log_share.exp() * known
    truth = torch.zeros_like(share).scatter_(1, classes, known.to(share.dtype))
    space = tuple(range(2, share.ndim))
    both = (share * truth).sum(space)[:, 1:]
    either = (share.sum(space) + truth.sum(space))[:, 1:]
    scores = 1.0 - (2.0 * both + SMOOTH) / (either + SMOOTH)  # (B, K - 1)
    labelled = known.flatten(1).any(1).to(scores.dtype)
    dice = (scores.mean(1) * labelled).sum() / labelled.sum().clamp_min(1)
    return dice, cross_entropy
