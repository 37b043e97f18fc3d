"""Cosine similarity of sets of vectors."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from homolog.losses.precision import full_precision

_SMALLEST_NORM = 1e-6


@full_precision
def unit(features: Tensor, dim: int = -1) -> Tensor:
    """Scale vectors to unit length; those shorter than 1e-6 are divided by 1e-6.

    Args:
        features: Any shape; float16 and bfloat16 become float32.
        dim: Axis of the vectors.

    Source: methods reference 1.1, x / max(||x||, 1e-6).
    """
    return functional.normalize(features, dim=dim, eps=_SMALLEST_NORM)


@full_precision
def cosine_matrix(a: Tensor, b: Tensor) -> Tensor:
    """(..., N, E) and (..., M, E) -> (..., N, M) cosines in -1..1."""
    return unit(a) @ unit(b).mT


@full_precision
def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean of 2 - 2 cos(a, b); no gradient flows into ``b``.

    Args:
        a: (..., E), from the branch that learns.
        b: (..., E), from the target branch.

    Returns:
        Scalar in 0..4: 0 for equal directions, 2 for orthogonal, 4 for opposite ones.

    Source: Grill et al., NeurIPS 2020 (BYOL), Eq. 2; Alice, l_s of Eq. 2 and 5.
    """
    return (2.0 - 2.0 * (unit(a) * unit(b).detach()).sum(-1)).mean()
