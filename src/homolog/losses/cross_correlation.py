"""Features of two views that say the same, each something else: Barlow Twins."""

from __future__ import annotations

from torch import Tensor

from homolog.distributed import sum_over_ranks_with_gradient
from homolog.losses.similarity import full_precision

# Below this sum of squares per row a feature counts as constant.
_LEAST = 1e-10


@full_precision
def cross_correlation(a: Tensor, b: Tensor, *, center: bool = True) -> Tensor:
    """Correlation of every feature of one view with every feature of the other.

    All rows of all processes count as one batch.

    Args:
        a: (M, D), e.g. voxels of one view.
        b: (M, D), the same voxels in the other view.
        center: Subtract each feature's mean first. Without, as the formula is printed,
            features of one sign all look correlated.

    Returns:
        (D, D), entries within [-1, 1]; 0 for a constant feature.

    Source: MixCL, Eq. 5, its second factor and root read as of the other view;
    Zbontar et al., ICML 2021 (Barlow Twins), Eq. 2.
    Differs from the paper: centred by default, as in Barlow Twins.
    """
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(
            f"both views must have shape (M, D), got {tuple(a.shape)} and "
            f"{tuple(b.shape)}."
        )
    count = sum_over_ranks_with_gradient(a.new_full((), float(len(a))))
    if center:
        a = a - sum_over_ranks_with_gradient(a.sum(0)) / count
        b = b - sum_over_ranks_with_gradient(b.sum(0)) / count
    product = sum_over_ranks_with_gradient(a.mT @ b)
    least = _LEAST * count
    roots = [
        sum_over_ranks_with_gradient(x.square().sum(0)).clamp_min(least).sqrt()
        for x in (a, b)
    ]
    return product / roots[0][:, None] / roots[1][None, :]


@full_precision
def redundancy(
    correlation: Tensor, weight: float, *, mean: bool = False
) -> tuple[Tensor, Tensor]:
    """How far a correlation matrix is from the identity.

    Args:
        correlation: (D, D).
        weight: Of the entries beside the diagonal (lambda).
        mean: Divide both by D, so that the number of features does not matter.

    Returns:
        sum_i (1 - C_ii)^2, and weight * sum_{i != j} C_ij^2.

    Source: MixCL, Eq. 4, the second term read as C_ij (as printed, C_ii, it would pull
    the diagonal to zero, against the first).
    """
    diagonal = correlation.diagonal()
    alike = (1.0 - diagonal).square().sum()
    beside = correlation.square().sum() - diagonal.square().sum()
    share = 1.0 / len(correlation) if mean else 1.0
    return alike * share, weight * beside * share
