"""Features centred and scaled as they vary between samples."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Standardise(nn.Module):
    """Each feature with mean 0 and variance 1 over the samples seen lately.

    Features of one kind of scan are nearly the same vector: what tells patients apart
    is small beside what they share, and a linear layer would need very long to find it.

    In training running averages are kept, and they are what a feature is centred and
    scaled by, in training as later: a batch of three scans, perhaps of one class, says
    little of how scans vary.

    Args:
        width: Features F.
        momentum: Weight of a batch in the averages; of the first ones, more.
        eps: Added to the variance, so that a feature that hardly varies stays small.

    Source: the linear classifiers of He et al., Masked Autoencoders Are Scalable Vision
        Learners, CVPR 2022, A.1 (batch norm without affine before the last layer).
    Differs from the paper: averages instead of the batch's own numbers.
    """

    def __init__(self, width: int, momentum: float = 0.1, eps: float = 1e-3) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.mean: Tensor
        self.square: Tensor
        self.batches: Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("square", torch.ones(width))
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, features: Tensor, counts: Tensor | None = None) -> Tensor:
        """(..., F) -> (..., F) in float32.

        Args:
            features: Of samples; no gradient reaches them through the averages.
            counts: (...) bool, which enter the averages; all where None.
        """
        rows = features.float()
        if self.training:
            self._look(rows.detach().flatten(0, -2), counts)
        spread = (self.square - self.mean.square()).clamp_min(0.0) + self.eps
        return (rows - self.mean) * spread.rsqrt()

    @torch.no_grad()
    def _look(self, rows: Tensor, counts: Tensor | None) -> None:
        """Move the averages; not where nothing counts."""
        weight = (
            rows.new_ones(len(rows)) if counts is None else counts.flatten().float()
        )
        total = weight.sum()
        some = (total > 0).float()
        share = weight / total.clamp_min(1.0)
        self.batches += some
        rate = some * (1.0 / self.batches.clamp_min(1.0)).clamp_min(self.momentum)
        self.mean.lerp_(share @ rows, rate)
        self.square.lerp_(share @ rows.square(), rate)
