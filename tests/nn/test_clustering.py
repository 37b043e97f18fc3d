"""Online clustering: prototypes, queues (E-T8) and what rests."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from homolog.losses.assignment import balanced_codes, swapped_prediction
from homolog.nn.memory_bank import Clustering


def features(count: int = 6, dim: int = 4, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(count, dim, generator=generator), dim=1)


def clustering(**settings: object) -> Clustering:
    torch.manual_seed(0)
    return Clustering(4, 3, **settings)  # type: ignore[arg-type]


def test_without_queues_it_is_the_swapped_prediction_of_balanced_codes() -> None:
    """Paper: Hundred Million Eq. 1, 2."""
    made = clustering(temperature=0.2, epsilon=0.1, rounds=5)
    views = [features(seed=k) for k in range(3)]
    scores = [v @ made.weight.mT for v in views]
    codes = {k: balanced_codes(scores[k], 0.1, 5) for k in range(2)}
    expected = swapped_prediction(scores, codes, 0.2)
    torch.testing.assert_close(made(views), expected)


def test_prototypes_are_of_unit_length_before_they_are_used() -> None:
    made = clustering()
    views = [features(), features(seed=1)]
    loss = made(views)
    with torch.no_grad():
        made.weight.mul_(torch.tensor([[2.0], [0.5], [7.0]]))
    torch.testing.assert_close(made(views), loss)
    torch.testing.assert_close(made.weight.norm(dim=1), torch.ones(3))


def test_prototypes_of_unit_length_stay_to_the_bit() -> None:
    torch.manual_seed(0)
    clusters = Clustering(128, 64)
    view = nn.functional.normalize(torch.randn(8, 128), dim=1)
    clusters([view, view])
    before = clusters.weight.detach().clone()
    for _ in range(4):
        clusters([view, view])
    assert torch.equal(clusters.weight, before)


def test_looking_changes_nothing() -> None:
    made = clustering(queue_length=4)
    views = [features(), features(seed=1)]
    loss = made(views)
    with torch.no_grad():
        made.weight.mul_(3.0)
    made.load_state_dict(made.state_dict())
    before = {k: v.clone() for k, v in made.state_dict().items()}
    made.eval()
    torch.testing.assert_close(made(views), loss)
    made.after_step()
    assert all(torch.equal(v, before[k]) for k, v in made.state_dict().items())


def test_frozen_prototypes_are_moved_by_nothing() -> None:
    made = clustering()
    optimiser = torch.optim.AdamW(made.parameters(), lr=0.1, weight_decay=0.5)
    views = [features().requires_grad_(), features(seed=1)]
    made(views)  # unit length
    before = made.weight.detach().clone()
    made(views, frozen=True).backward()
    assert made.weight.grad is None
    assert views[0].grad is not None
    optimiser.step()
    assert torch.equal(made.weight, before)
    made(views).backward()
    optimiser.step()
    assert not torch.allclose(made.weight, before)


def test_a_queue_counts_once_it_is_full_and_its_rows_come_first() -> None:
    made = clustering(queue_length=12)
    plain = clustering()
    seen: list[Tensor] = []
    for step in range(4):
        views = [features(seed=2 * step), features(seed=2 * step + 1)]
        loss = made(views)
        if step < 2:  # 0 and 6 rows of 12
            torch.testing.assert_close(loss, plain(views))
        else:
            assert abs(loss - plain(views)) > 1e-4
            codes = {}
            for k in range(2):
                rows = torch.cat([*(s[k] for s in seen[-2:]), views[k]])
                codes[k] = balanced_codes(rows @ made.weight.mT)[-6:]
            scores = [v @ made.weight.mT for v in views]
            torch.testing.assert_close(loss, swapped_prediction(scores, codes, 0.1))
            torch.testing.assert_close(made(views, queued=False), plain(views))
            made(views)
        made.after_step()
        seen.append(views)  # type: ignore[arg-type]


def test_e_t8_the_queue_is_saved_and_gets_no_gradient() -> None:
    made = clustering(queue_length=4)
    made([features(), features(seed=1)])
    made.after_step()
    other = clustering(queue_length=4)
    other.load_state_dict(made.state_dict())
    views = [features(seed=2).requires_grad_(), features(seed=3)]
    loss = made(views)
    torch.testing.assert_close(other(views), loss)
    loss.backward()
    assert all(not b.requires_grad for b in made.buffers())
    # what a step that was not finished left behind does not survive a load
    other.load_state_dict(made.state_dict())
    state = {k: v.clone() for k, v in other.state_dict().items()}
    other.after_step()
    assert all(torch.equal(v, state[k]) for k, v in other.state_dict().items())


def test_usage_is_1_where_codes_are_even_and_falls_where_one_is_taken() -> None:
    made = clustering(hard=True)
    assert float(made.usage()) == pytest.approx(1.0)
    with torch.no_grad():
        made.mean_code.copy_(torch.tensor([0.5, 0.5, 0.0]))
    assert float(made.usage()) == pytest.approx(math.log(2) / math.log(3), rel=1e-6)


def test_samples_that_do_not_count_take_no_share() -> None:
    scores = features(9, 5) @ features(4, 5, seed=1).T
    real = torch.tensor([False] * 3 + [True] * 6)
    found = balanced_codes(scores, 0.1, 4, real)
    torch.testing.assert_close(found[3:], balanced_codes(scores[3:], 0.1, 4))
    torch.testing.assert_close(found.sum(1), torch.ones(9))
