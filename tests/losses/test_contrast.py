"""InfoNCE and NT-Xent."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from each import each
from homolog.losses.contrast import info_nce


def vectors(n: int, dim: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=generator, dtype=torch.float64)


@each("temperature", [0.07, 0.1, 0.9])
@each("count", [1, 20, 90])
def test_s_t10_orthogonal_negatives_give_the_closed_form(
    count: int, temperature: float
) -> None:
    """Paper: S2DC Eq. 1."""
    basis = torch.eye(count + 1, dtype=torch.float64)
    loss = info_nce(basis[:1], basis[:1], basis[1:], temperature)
    expected = math.log(1 + count * math.exp(-1 / temperature))
    assert loss.item() == pytest.approx(expected, abs=1e-12)


def test_s_t10_ignorance_gives_the_logarithm_of_the_candidates() -> None:
    same = torch.ones(3, 5, dtype=torch.float64)
    loss = info_nce(same, same, torch.ones(90, 5, dtype=torch.float64), 0.9)
    assert loss.item() == pytest.approx(math.log(91), abs=1e-12)


def test_empty_queue_rows_are_no_negatives() -> None:
    queries, keys, rows = vectors(4, 8), vectors(4, 8, 1), vectors(10, 8, 2)
    occupied = torch.arange(10) < 6
    masked = info_nce(queries, keys, rows, 0.1, occupied=occupied)
    torch.testing.assert_close(masked, info_nce(queries, keys, rows[:6], 0.1))
    nobody = torch.zeros(10, dtype=torch.bool)
    assert info_nce(queries, keys, rows, 0.1, occupied=nobody).item() == 0.0


def test_batch_negatives_are_the_other_keys() -> None:
    queries, keys, rows = vectors(3, 8), vectors(3, 8, 1), vectors(5, 8, 2)
    loss = info_nce(queries, keys, rows, 0.2, batch_negatives=True)
    singles = [
        info_nce(
            queries[i : i + 1],
            keys[i : i + 1],
            torch.cat([rows, keys[torch.arange(3) != i]]),
            0.2,
        )
        for i in range(3)
    ]
    torch.testing.assert_close(loss, torch.stack(singles).mean())


def test_e_t8_no_gradient_reaches_keys_or_queue() -> None:
    queries, keys, rows = (vectors(3, 8, s).requires_grad_() for s in range(3))
    info_nce(queries, keys, rows, 0.1, batch_negatives=True).backward()
    assert queries.grad is not None
    assert keys.grad is None
    assert rows.grad is None


def test_e_t10_micro_batches_give_the_gradient_of_the_large_batch() -> None:
    queries, keys, rows = vectors(6, 8), vectors(6, 8, 1), vectors(5, 8, 2)
    weight = torch.eye(8, dtype=torch.float64, requires_grad=True)
    (whole,) = torch.autograd.grad(info_nce(queries @ weight, keys, rows, 0.1), weight)
    parts = [
        info_nce(queries[i : i + 2] @ weight, keys[i : i + 2], rows, 0.1) / 3
        for i in (0, 2, 4)
    ]
    (sum_of_parts,) = torch.autograd.grad(torch.stack(parts).sum(), weight)
    torch.testing.assert_close(whole, sum_of_parts)
