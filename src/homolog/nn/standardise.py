"""Features centred and scaled as they vary between samples."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Standardise(nn.Module):
    """Each feature with mean 0 and variance 1 over the samples.

    Features of one kind of scan are nearly the same vector: what tells patients apart
    is small beside what they share, and a linear layer would need very long to find it.

    In training a batch is centred and scaled by its own numbers, and running averages
    are kept; in evaluation by the averages. So are small batches in training: three
    scans, perhaps of one class, say little of how scans vary.

    Args:
        width: Features F.
        least: Samples from which on a batch has its own numbers.
        momentum: Weight of a batch in the averages; of the first ones, more.
        eps: Added to the variance, so that a feature that hardly varies stays small.

    Source: the linear classifiers of He et al., Masked Autoencoders Are Scalable Vision
        Learners, CVPR 2022, A.1 (batch norm without affine before the last layer).
    Differs from the paper: averages for small batches.
    """

    def __init__(
        self, width: int, *, least: int = 8, momentum: float = 0.1, eps: float = 1e-3
    ) -> None:
        super().__init__()
        self.least, self.momentum, self.eps = least, momentum, eps
        self.mean: Tensor
        self.square: Tensor
        self.batches: Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("square", torch.ones(width))
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, features: Tensor, counts: Tensor | None = None) -> Tensor:
        """(..., F) -> (..., F) in float32.

        Args:
            features: Of samples.
            counts: (...) bool, which of them count; all where None.
        """
        rows = features.float()
        mean, square = self.mean, self.square
        if self.training:
            weight = rows.new_ones(rows.shape[:-1]) if counts is None else counts
            weight = weight.flatten().float()
            total = weight.sum()
            share = (weight / total.clamp_min(1.0))[:, None]
            flat = rows.flatten(0, -2)
            # no matrix product: autocast would round it to bfloat16
            own_mean = (share * flat).sum(0)
            own_square = (share * flat.square()).sum(0)
            self._keep(own_mean.detach(), own_square.detach(), total)
            many = total >= self.least  # stays on the device
            mean = torch.where(many, own_mean, self.mean)
            square = torch.where(many, own_square, self.square)
        spread = (square - mean.square()).clamp_min(0.0) + self.eps
        return (rows - mean) * spread.rsqrt()

    @torch.no_grad()
    def _keep(self, mean: Tensor, square: Tensor, total: Tensor) -> None:
        """Move the averages; not where nothing counts."""
        some = (total > 0).float()
        self.batches += some
        rate = some * (1.0 / self.batches.clamp_min(1.0)).clamp_min(self.momentum)
        self.mean.lerp_(mean, rate)
        self.square.lerp_(square, rate)
