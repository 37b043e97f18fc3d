"""Features as they vary between samples."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from homolog.nn.heads import Standardise


def alike(count: int, seed: int = 0) -> torch.Tensor:
    """(count, 3): one vector, and little that differs."""
    noise = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    return torch.tensor([5.0, -2.0, 0.0]) + 0.2 * noise


def test_what_samples_share_is_taken_away_and_the_rest_grows() -> None:
    module = Standardise(3, eps=0.0)
    rows = alike(64)
    found = module(rows)  # the first batch makes the averages
    torch.testing.assert_close(found.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        found.var(0, correction=0), torch.ones(3), atol=1e-3, rtol=0
    )
    # any number of leading axes; each row by itself; the same in evaluation
    module.eval()
    torch.testing.assert_close(module(rows.reshape(4, 16, 3)).reshape(64, 3), found)
    torch.testing.assert_close(module(rows[7]), found[7])


def test_a_batch_of_many_has_its_own_numbers() -> None:
    module = Standardise(3, eps=1e-9)
    module(alike(64))
    moved = module(alike(64, 1) + 3.0)
    torch.testing.assert_close(moved.mean(0), torch.zeros(3), atol=1e-3, rtol=0)
    few = module(alike(4, 2) + 3.0)
    assert few.mean(0).min() > 0.5
    # those that do not count are placed as the others are
    rows = torch.cat([alike(16, 3), torch.full((4, 3), 9.0)])
    counts = torch.arange(20) < 16
    torch.testing.assert_close(module(rows, counts)[:16], module(alike(16, 3)))


def test_the_averages_are_of_the_batches_before_and_of_those_that_count() -> None:
    module = Standardise(3)
    for seed in range(60):
        rows = torch.cat([alike(32, seed), torch.full((8, 3), 1e3)])
        module(rows, torch.arange(40) < 32)
    torch.testing.assert_close(
        module.mean, torch.tensor([5.0, -2.0, 0.0]), atol=0.05, rtol=0
    )
    state = {name: value.clone() for name, value in module.state_dict().items()}
    module(alike(4), torch.zeros(4, dtype=torch.bool))  # nothing counts
    module.eval()(alike(8))
    assert all(torch.equal(v, state[n]) for n, v in module.state_dict().items())


def test_a_batch_of_one_class_is_not_centred_away() -> None:
    module = Standardise(3)
    for seed in range(60):
        module(alike(32, seed))
    ill = alike(3) + torch.tensor([0.0, 0.0, 0.6])
    assert module(ill)[:, 2].mean() > 1.0


def test_a_feature_that_does_not_vary_stays_small() -> None:
    module = Standardise(2)
    rows = torch.tensor([[1.0, 3.0], [1.0, -3.0]])
    for _ in range(100):
        assert module(rows)[:, 0].abs().max() < 1e-3
    late = module.eval()(torch.tensor([[1.01, 0.0]]))
    assert late[0, 0].abs() < 0.4


def test_a_small_difference_is_learnt_in_few_steps() -> None:
    """With a plain linear layer 40 steps of this rate do not tell the two apart."""
    truth = torch.arange(32) % 2
    rows = torch.randn(1, 16, generator=torch.Generator().manual_seed(1)).repeat(32, 1)
    rows[:, 3] += 0.1 * (truth * 2.0 - 1)

    def loss_of(*first: nn.Module) -> float:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = nn.Sequential(*first, nn.Linear(16, 2))
        optimiser = torch.optim.AdamW(network.parameters(), 1e-2)
        for _ in range(40):
            loss = nn.functional.cross_entropy(network(rows), truth)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return loss.item()

    assert loss_of(Standardise(16)) < 0.45
    assert loss_of() > 0.6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision_gives_float32(dtype: torch.dtype) -> None:
    plain, cast = Standardise(3), Standardise(3)
    rows = alike(16).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        found = cast(rows)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, plain(rows))
    torch.testing.assert_close(cast.mean, plain.mean)
