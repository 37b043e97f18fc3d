"""Random numbers that follow from their place alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from homolog.views.random import generator, mix32, normal_noise


def test_a_place_always_gives_the_same_numbers() -> None:
    first = generator(3, 7, 1, stream="shape/global").random(5)
    assert np.array_equal(first, generator(3, 7, 1, stream="shape/global").random(5))
    others = [
        generator(4, 7, 1, stream="shape/global"),
        generator(3, 8, 1, stream="shape/global"),
        generator(3, 7, 2, stream="shape/global"),
        generator(3, 7, 1, stream="shape/local"),
        generator(3, 1, 7, stream="shape/global"),
    ]
    assert all(not np.array_equal(first, other.random(5)) for other in others)


def test_neighbouring_places_do_not_share_numbers() -> None:
    draws = np.concatenate(
        [generator(0, s, stream="a").random(1000) for s in range(50)]
    )
    assert len(np.unique(draws)) == draws.size


def test_negative_and_large_seeds_are_seeds() -> None:
    values = [generator(seed).random() for seed in (-1, 0, 2**63 + 1)]
    assert len(set(values)) == 3


def test_a_place_has_at_most_three_numbers() -> None:
    with pytest.raises(ValueError, match="at most three"):
        generator(0, 1, 2, 3, 4)


def test_the_hash_is_lowbias32() -> None:
    def reference(x: int) -> int:
        x ^= x >> 16
        x = (x * 0x7FEB352D) % 2**32
        x ^= x >> 15
        x = (x * 0x846CA68B) % 2**32
        return x ^ (x >> 16)

    inputs = [0, 1, 2, 12345, 0xFFFFFFFF, 0x80000000, 0xDEADBEEF]
    assert mix32(torch.tensor(inputs)).tolist() == [reference(x) for x in inputs]


def test_noise_is_standard_normal_and_without_order() -> None:
    noise = normal_noise(torch.tensor([1, 2, 2**61 + 5]), 40001)
    assert noise.shape == (3, 40001)
    for row in noise.double().numpy():
        assert kstest(row, "norm").pvalue > 1e-3
        assert abs(np.corrcoef(row[:-1], row[1:])[0, 1]) < 0.02
        half = len(row) // 2
        assert abs(np.corrcoef(row[:half], row[half : 2 * half])[0, 1]) < 0.03
    assert abs(torch.corrcoef(noise)[0, 1]) < 0.02


def test_every_bit_of_a_key_counts() -> None:
    keys = torch.tensor([0, *(1 << bit for bit in range(62))])
    assert len(normal_noise(keys, 8).unique(dim=0)) == 63


def test_noise_of_a_key_does_not_depend_on_its_neighbours() -> None:
    together = normal_noise(torch.tensor([5, 6, 7]), 101)
    assert torch.equal(together[1:2], normal_noise(torch.tensor([6]), 101))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_noise_is_the_same_on_the_gpu() -> None:
    keys = torch.tensor([1, 2**61 + 5])
    there = normal_noise(keys.cuda(), 9999).cpu()
    torch.testing.assert_close(there, normal_noise(keys, 9999), atol=1e-5, rtol=1e-5)
