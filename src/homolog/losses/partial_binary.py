"""Binary cross-entropy of several classes, each there, absent or not known."""

from __future__ import annotations

import torch
from torch import Tensor


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
    return (error * known).sum() / known.sum().clamp_min(1)
