"""Swapped prediction: J-T1, J-T2, J-T3, H-T9 and E-T7."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from homolog.losses.assignment import balanced_codes, swapped_prediction


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def one_hot(*places: int, count: int = 5) -> Tensor:
    return torch.eye(count, dtype=torch.float64)[list(places)]


def test_j_t1_each_view_predicts_the_other_views_code() -> None:
    """Paper: Joint Eq. 3, 4."""
    s, t = random(3, 5), random(3, 5, seed=1).requires_grad_()
    codes = {0: one_hot(0, 1, 2), 1: one_hot(3, 3, 4)}
    loss = swapped_prediction([s, t], codes, temperature=0.1)
    log_s, log_t = (x.div(0.1).log_softmax(1) for x in (s, t))
    rows = torch.arange(3)
    expected = -(log_t[rows, [0, 1, 2]] + log_s[rows, [3, 3, 4]]).mean() / 2
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-5, atol=0)
    unswapped = -(log_s[rows, [0, 1, 2]] + log_t[rows, [3, 3, 4]]).mean() / 2
    assert abs(loss - unswapped) > 0.1
    (gradient,) = torch.autograd.grad(loss, t)
    other = {0: codes[0], 1: one_hot(0, 0, 0)}
    again = swapped_prediction([s, t], other, temperature=0.1)
    torch.testing.assert_close(torch.autograd.grad(again, t)[0], gradient)


def test_j_t2_neither_the_order_of_views_nor_of_samples_matters() -> None:
    s, t = random(6, 5), random(6, 5, seed=1)
    q, r = (balanced_codes(x) for x in (s, t))
    loss = swapped_prediction([s, t], {0: q, 1: r})
    torch.testing.assert_close(swapped_prediction([t, s], {0: r, 1: q}), loss)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    mixed = swapped_prediction([s[order], t[order]], {0: q[order], 1: r[order]})
    torch.testing.assert_close(mixed, loss)


def test_j_t3_uniform_predictions_cost_ln_k() -> None:
    """Paper: Joint Eq. 3, 4."""
    flat = torch.ones(4, 7, dtype=torch.float64)
    codes = {0: random(4, 7).softmax(1), 1: random(4, 7, seed=2).softmax(1)}
    loss = swapped_prediction([flat, flat, flat], codes)
    assert float(loss) == pytest.approx(math.log(7), rel=1e-6)


def test_h_t9_small_crops_predict_and_never_make_a_code() -> None:
    large = [random(4, 6, seed=k) for k in range(2)]
    small = [random(4, 6, seed=k) for k in (2, 3)]
    codes = {k: balanced_codes(x) for k, x in enumerate(large)}
    loss = swapped_prediction([*large, *small], codes)
    swapped = swapped_prediction([*large, *reversed(small)], codes)
    torch.testing.assert_close(swapped, loss)
    # every code is predicted by three views: the mean over six pairs
    pairs = [
        swapped_prediction([large[a], other], {0: codes[a]})
        for a in range(2)
        for other in [large[1 - a], *small]
    ]
    torch.testing.assert_close(loss, torch.stack(pairs).mean())


def test_what_cannot_be_swapped_is_refused() -> None:
    with pytest.raises(ValueError, match="two views"):
        swapped_prediction([random(2, 3)], {0: random(2, 3).softmax(1)})
    with pytest.raises(ValueError, match="0 codes"):
        swapped_prediction([random(2, 3), random(2, 3)], {})
