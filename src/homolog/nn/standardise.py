"""Features centred and scaled as they vary between samples."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class Standardise(nn.Module):
    """Each feature with mean 0 and variance 1 over the samples.

    Features of one kind of scan are nearly the same vector: what tells patients apart
    is small beside what they share, and a linear layer would need very long to find it.

    In training the samples of the batch count, and running averages are kept; in
    evaluation, and for a single sample, the averages do.

    Args:
        width: Features F.
        eps: Added to the variance, so that a feature that hardly varies stays small.

    Source: the linear classifiers of He et al., Masked Autoencoders Are Scalable Vision
        Learners, CVPR 2022, A.1 (batch norm without affine before the last layer).
    """

    def __init__(self, width: int, eps: float = 1e-3) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, eps=eps, affine=False)

    def forward(self, features: Tensor) -> Tensor:
        """(..., F) -> (..., F) in float32."""
        norm = self.norm
        rows = features.flatten(0, -2).float()
        found = functional.batch_norm(
            rows,
            norm.running_mean,
            norm.running_var,
            training=self.training and len(rows) > 1,
            momentum=norm.momentum or 0.0,
            eps=norm.eps,
        )
        return found.reshape(features.shape)
