"""Binary cross-entropy that leaves out what is not known."""

from __future__ import annotations

import math

import pytest
import torch

from homolog.losses.segmentation import partial_binary_cross_entropy


def test_it_is_the_mean_over_what_is_known() -> None:
    scores = torch.tensor([[0.0, 2.0], [1.0, -3.0]], requires_grad=True)
    truth = torch.tensor([[1, -1], [0, 1]])
    found = partial_binary_cross_entropy(scores, truth)
    terms = [math.log(2), math.log1p(math.e), math.log1p(math.exp(3.0))]
    assert float(found.detach()) == pytest.approx(sum(terms) / 3, rel=1e-6)
    found.backward()
    assert scores.grad is not None
    assert scores.grad[0, 1] == 0
    assert (scores.grad[truth >= 0] != 0).all()


def test_nothing_known_costs_nothing() -> None:
    scores = torch.randn(3, 2, requires_grad=True)
    found = partial_binary_cross_entropy(scores, torch.full((3, 2), -1))
    found.backward()
    assert float(found.detach()) == 0
    assert scores.grad is not None
    assert scores.grad.abs().sum() == 0


def test_presence_weighs_more_and_smoothing_asks_for_less() -> None:
    truth = torch.tensor([[1], [0]])
    scores = torch.zeros(2, 1)
    heavy = partial_binary_cross_entropy(scores, truth, torch.tensor([3.0]))
    assert float(heavy) == pytest.approx((3 + 1) / 2 * math.log(2))
    sure = torch.tensor([[20.0], [-20.0]])
    smooth = partial_binary_cross_entropy(sure, truth, smoothing=0.1)
    assert float(smooth) == pytest.approx(0.05 * 20, rel=1e-3)
