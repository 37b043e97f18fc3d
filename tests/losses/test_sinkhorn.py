"""Balanced codes (E-T3 .. E-T7)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from each import each
from homolog.losses.assignment import balanced_codes


def cosines(samples: int, prototypes: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    a, c = (
        torch.randn(n, 32, generator=generator, dtype=torch.float64)
        for n in (samples, prototypes)
    )
    unit = torch.nn.functional.normalize
    return unit(a, dim=1) @ unit(c, dim=1).T


@each("rounds", [1, 3, 10])
def test_e_t3_every_code_sums_to_one(rounds: int) -> None:
    """Paper: Joint Eq. 2."""
    codes = balanced_codes(cosines(48, 64), 0.05, rounds)
    sums = codes.sum(1)
    torch.testing.assert_close(sums, torch.ones_like(sums), atol=1e-6, rtol=0)


@each("epsilon, rounds", [(0.05, 100), (0.03, 500)])
@each("samples, prototypes", [(64, 64), (64, 16), (16, 64)])
def test_e_t3_every_prototype_gets_its_share(
    epsilon: float, rounds: int, samples: int, prototypes: int
) -> None:
    """Paper: Hundred Million Eq. 3."""
    shares = balanced_codes(cosines(samples, prototypes), epsilon, rounds).sum(0)
    share = torch.full_like(shares, samples / prototypes)
    torch.testing.assert_close(shares, share, atol=0, rtol=1e-6)


@each("rounds", [1, 3, 50])
def test_e_t4_a_constant_per_prototype_changes_nothing(rounds: int) -> None:
    scores = cosines(32, 20)
    shifted = scores + torch.linspace(-1, 1, 20, dtype=torch.float64)
    torch.testing.assert_close(
        balanced_codes(scores, 0.05, rounds), balanced_codes(shifted, 0.05, rounds)
    )


def test_e_t4_a_constant_per_sample_leaves_the_converged_codes_alone() -> None:
    scores = cosines(32, 20)
    shifted = scores + 0.2 * torch.linspace(-1, 1, 32, dtype=torch.float64)[:, None]
    torch.testing.assert_close(
        balanced_codes(scores, 0.05, 200),
        balanced_codes(shifted, 0.05, 200),
        atol=1e-6,
        rtol=0,
    )
    early = balanced_codes(scores, 0.05, 1), balanced_codes(shifted, 0.05, 1)
    assert not torch.allclose(*early, atol=1e-3)


def test_e_t4_permutations_permute_the_codes() -> None:
    scores = cosines(32, 20)
    samples = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    prototypes = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        balanced_codes(scores[samples][:, prototypes]),
        balanced_codes(scores)[samples][:, prototypes],
    )


def test_e_t5_large_epsilon_gives_uniform_codes() -> None:
    codes = balanced_codes(cosines(16, 10), 1e6, 3)
    torch.testing.assert_close(codes, torch.full_like(codes, 0.1), atol=1e-6, rtol=0)


def test_e_t5_small_epsilon_gives_the_optimal_permutation() -> None:
    scores = cosines(8, 8)
    codes = balanced_codes(scores, 0.005, 20_000)
    rows, columns = linear_sum_assignment(-scores.numpy())
    assert np.array_equal(codes.argmax(1).numpy()[rows], columns)
    assert codes[rows, columns].min() > 0.95


@each("rounds", [1, 3, 20])
def test_e_t6_the_log_domain_equals_the_literal_form(rounds: int) -> None:
    """Paper: Joint Eq. 2."""
    scores = cosines(24, 18)
    q = torch.exp(scores / 0.05).T
    q /= q.sum()
    for _ in range(rounds):
        q /= q.sum(1, keepdim=True) * q.shape[0]
        q /= q.sum(0, keepdim=True) * q.shape[1]
    literal = (q * q.shape[1]).T
    codes = balanced_codes(scores, 0.05, rounds)
    torch.testing.assert_close(codes, literal, atol=1e-10, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_e_t6_scores_up_to_a_thousand_stay_finite(dtype: torch.dtype) -> None:
    codes = balanced_codes((cosines(32, 20) * 1000).to(dtype), 0.03, 10)
    assert codes.dtype == torch.float32
    assert codes.isfinite().all()
    torch.testing.assert_close(codes.sum(1), torch.ones(32), atol=1e-5, rtol=0)


def test_e_t7_identical_samples_get_uniform_codes_and_loss_at_least_ln_k() -> None:
    scores = cosines(1, 12).expand(20, 12)
    codes = balanced_codes(scores, 0.05, 1)
    torch.testing.assert_close(codes, torch.full_like(codes, 1 / 12))
    loss = -(codes * torch.log_softmax(scores / 0.1, 1)).sum(1).mean()
    assert loss > math.log(12)
    flat = torch.zeros_like(scores)
    equal = -(codes * torch.log_softmax(flat, 1)).sum(1).mean()
    assert equal.item() == pytest.approx(math.log(12), abs=1e-12)


def test_codes_carry_no_gradient_and_refuse_nonsense() -> None:
    assert not balanced_codes(cosines(4, 4).requires_grad_()).requires_grad
    with pytest.raises(ValueError, match=r"got 0\.0 and 3"):
        balanced_codes(cosines(4, 4), 0.0)
