"""Queue of features (E-T8)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from each import each
from homolog.nn.memory_bank import FeatureQueue


def keys(*numbers: int) -> Tensor:
    """Unit vectors at angles that tell them apart."""
    angle = torch.tensor(numbers) / 10
    return torch.stack([angle.cos(), angle.sin()], 1)


@each("batches", [(3, 3, 3), (2, 5, 4), (9,), (1,) * 11, (12, 2)])
def test_e_t8_the_last_rows_remain_in_order(batches: tuple[int, ...]) -> None:
    queue = FeatureQueue(5, 2)
    first = 0
    for count in batches:
        queue.enqueue(keys(*range(first, first + count)) * 3.0)
        first += count
    torch.testing.assert_close(queue.ordered(), keys(*range(first - 5, first)))


def test_e_t8_the_pointer_wraps() -> None:
    queue = FeatureQueue(5, 2)
    for count, place in ((3, 3), (3, 1), (4, 0), (7, 2)):
        queue.enqueue(keys(*range(count)))
        assert int(queue.pointer) == place


def test_e_t8_a_young_queue_knows_its_empty_rows() -> None:
    queue = FeatureQueue(5, 2)
    assert queue.ordered().shape == (0, 2)
    queue.enqueue(keys(1, 2))
    assert queue.occupied.tolist() == [True, True, False, False, False]
    torch.testing.assert_close(queue.ordered(), keys(1, 2))


def test_e_t8_saving_and_loading_keeps_everything() -> None:
    queue, copy = FeatureQueue(5, 2), FeatureQueue(5, 2)
    queue.enqueue(keys(*range(7)))
    copy.load_state_dict(queue.state_dict())
    for other in (queue, copy):
        other.enqueue(keys(20, 21))
    assert torch.equal(queue.rows, copy.rows)
    assert torch.equal(queue.occupied, copy.occupied)
    assert torch.equal(queue.pointer, copy.pointer)


def test_e_t8_no_gradient_enters() -> None:
    queue = FeatureQueue(5, 2)
    queue.enqueue(keys(1, 2).requires_grad_())
    assert not queue.rows.requires_grad
    assert not list(queue.parameters())


def test_a_key_that_is_not_finite_never_enters() -> None:
    queue = FeatureQueue(3, 2)
    queue.enqueue(keys(0, 1, 2))
    bad = keys(7, 8)
    bad[0, 1] = float("nan")
    queue.enqueue(bad)
    assert queue.rows.isfinite().all()
    torch.testing.assert_close(queue.rows, torch.cat([keys(0), keys(8), keys(2)]))


def test_half_precision_keys_are_kept_in_float32() -> None:
    queue = FeatureQueue(3, 2)
    queue.enqueue(keys(1).bfloat16())
    assert queue.rows.dtype == torch.float32
    assert queue.rows[0].norm().item() == pytest.approx(1.0, abs=1e-6)
