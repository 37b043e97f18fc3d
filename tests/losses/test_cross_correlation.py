"""The identity term: the proof tests M-T1 to M-T4."""

from __future__ import annotations

import pytest
import torch
from monai.losses import BarlowTwinsLoss

from homolog.losses.similarity import cross_correlation, redundancy


def rows(count: int = 64, features: int = 6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, features, generator=generator, dtype=torch.float64)


def total(a: torch.Tensor, b: torch.Tensor, *, center: bool = True) -> torch.Tensor:
    return sum(redundancy(cross_correlation(a, b, center=center), 0.1))  # type: ignore[return-value]


def test_m_t1_a_view_correlates_with_itself_and_whitened_features_cost_nothing() -> (
    None
):
    """Paper: MixCL Eq. 5."""
    z = rows() + 5.0
    diagonal = cross_correlation(z, z).diagonal()
    torch.testing.assert_close(diagonal, torch.ones_like(diagonal))
    white = torch.linalg.qr(z - z.mean(0)).Q
    white = torch.linalg.qr(white - white.mean(0)).Q
    assert total(white, white) < 1e-6
    assert total(z, z) > 1e-3  # alike, but not each something else


def test_m_t2_what_leaves_the_loss_as_it_is() -> None:
    a, b = rows(), rows(seed=1)
    matrix = cross_correlation(a, b)
    assert matrix.abs().max() <= 1
    loss = total(a, b)
    order = torch.randperm(len(a), generator=torch.Generator().manual_seed(0))
    scale = torch.linspace(0.5, 4, a.shape[1], dtype=torch.float64)
    for x, y in (
        (a[order], b[order]),
        (a * scale, b),
        (a, b * scale),
        (a + scale, b - 7 * scale),
    ):
        torch.testing.assert_close(total(x, y), loss)
    assert not torch.isclose(total(a[order], b), loss)
    plain = total(a, b, center=False)
    assert not torch.isclose(total(a + scale, b, center=False), plain)
    alike, _ = redundancy(cross_correlation(a, -a), 0.1)
    torch.testing.assert_close(alike, torch.tensor(4.0 * 6).double())


def test_m_t3_the_off_diagonal_term_counts_different_features() -> None:
    """Paper: MixCL Eq. 4."""
    rho = 0.6
    first = torch.linalg.qr(rows(50, 3) - rows(50, 3).mean(0)).Q
    first = torch.linalg.qr(first - first.mean(0)).Q
    z = torch.stack(
        [first[:, 0], rho * first[:, 0] + (1 - rho**2) ** 0.5 * first[:, 1]], 1
    )
    weight = 0.25
    alike, beside = redundancy(cross_correlation(z, z), weight)
    torch.testing.assert_close(alike, torch.zeros_like(alike), atol=1e-12, rtol=0)
    torch.testing.assert_close(beside, torch.tensor(weight * 2 * rho**2).double())
    # as printed, sum_i sum_{j != i} C_ii^2, it would be weight * 2 whatever rho is
    assert abs(float(beside) - weight * 2) > 0.1
    mean = redundancy(cross_correlation(z, z), weight, mean=True)[1]
    torch.testing.assert_close(mean, beside / 2)


def test_m_t4_agrees_with_monai() -> None:
    a, b = rows(40, 5), rows(40, 5, seed=1)
    # theirs divides centred sums by n and their spread by n - 1
    matrix = cross_correlation(a, b) * (39 / 40)
    ours = sum(redundancy(matrix, 0.005))
    theirs = BarlowTwinsLoss(lambd=0.005)(a, b)
    torch.testing.assert_close(ours, theirs)


def test_a_constant_feature_is_uncorrelated_and_has_finite_gradients() -> None:
    a, b = rows(), rows(seed=1)
    a[:, 2] = 3.0
    a.requires_grad_()
    matrix = cross_correlation(a, b)
    torch.testing.assert_close(matrix[2].detach(), torch.zeros(6).double())
    sum(redundancy(matrix, 0.1)).backward()  # type: ignore[union-attr]
    assert a.grad is not None
    assert torch.isfinite(a.grad).all()


def test_views_of_different_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(64, 6\) and \(63, 6\)"):
        cross_correlation(rows(), rows()[1:])
