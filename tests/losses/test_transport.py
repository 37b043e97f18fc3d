"""Optimal transport with dustbins."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from each import each
from homolog.losses.assignment import log_transport


def scores_of(n: int, m: int) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randn(2, n, m, generator=generator, dtype=torch.float64) * 3


def dustbin(value: float = 1.0) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize(("n", "m"), [(20, 20), (20, 33)])
def test_s_t11_masses_hold_after_a_hundred_rounds(n: int, m: int) -> None:
    """Paper: S2DC Sinkhorn."""
    plan = log_transport(scores_of(n, m), dustbin(), rounds=100).exp()
    rows, columns = plan.sum(2), plan.sum(1)
    ones = torch.ones(2, n, dtype=torch.float64)
    torch.testing.assert_close(rows[:, :n], ones, atol=1e-4, rtol=0)
    ones = torch.ones(2, m, dtype=torch.float64)
    torch.testing.assert_close(columns[:, :m], ones, atol=1e-4, rtol=0)
    assert rows[:, n].tolist() == pytest.approx([m, m], abs=1e-4)
    assert columns[:, m].tolist() == pytest.approx([n, n], abs=1e-4)


@each("n, temperature, floor", [(27, 1.0, 2.75), (144, 1.0, 4.31), (216, 1.0, 4.71),
     (27, 0.1, 0.06), (144, 0.1, 0.13), (216, 0.1, 0.15)])  # fmt: skip
def test_floors_are_those_of_the_reference_table(
    n: int, temperature: float, floor: float
) -> None:
    cosine = 2 * torch.eye(n, dtype=torch.float64)[None] - 1
    plan = log_transport(cosine / temperature, dustbin(), rounds=100)
    assert -plan[0, 0, 0].item() == pytest.approx(floor, abs=0.006)


@pytest.mark.parametrize("bin_score", [1.0, -2.0])
def test_equal_scores_give_the_closed_form(bin_score: float) -> None:
    scores = torch.zeros(1, 30, 30, dtype=torch.float64)
    plan = log_transport(scores, dustbin(bin_score), rounds=200)
    expected = 1 / (1 + math.exp(bin_score / 2)) / 30
    assert plan[0, 3, 5].exp().item() == pytest.approx(expected, rel=1e-9)


def test_padding_tokens_go_to_the_dustbin() -> None:
    valid = torch.ones(2, 10, dtype=torch.bool)
    valid[:, 7:] = False
    plan = log_transport(scores_of(10, 10), dustbin(), valid_a=valid, valid_b=valid)
    assert plan.isfinite().all()
    mass = plan.exp()
    assert mass[:, 7:10, :10].max() < 1e-12
    assert mass[:, :10, 7:10].max() < 1e-12
    lone = torch.ones(2, 3, dtype=torch.float64)
    torch.testing.assert_close(mass[:, 7:10, 10], lone, atol=1e-6, rtol=0)


def test_gradients_are_those_of_kept_rounds() -> None:
    scores = scores_of(5, 6)[:1, :, :].requires_grad_()
    score = dustbin().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s, d: log_transport(s, d, rounds=23), (scores, score)
    )
