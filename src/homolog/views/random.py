"""Random numbers as a function of their place, the same on CPU and GPU.

Few numbers per view (angles, factors) come from numpy's Philox on the CPU. One number
per voxel (noise) comes from an integer hash on the device: no state, no order.
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.random.bit_generator import ISeedSequence
from torch import Tensor

_MASK64 = (1 << 64) - 1


def generator(seed: int, *place: int, stream: str = "") -> np.random.Generator:
    """A generator that depends on its arguments only.

    Args:
        seed: Seed of the run, any integer.
        place: At most three integers, e.g. sample and view; they fill the counter, so
            that no two places ever share a number.
        stream: Name of what is drawn; goes into the key.
    """
    if len(place) > 3:
        raise ValueError(f"a place has at most three numbers, got {place}.")
    counter = np.zeros(4, dtype=np.uint64)  # the first word counts the draws
    counter[1 : 1 + len(place)] = [p & _MASK64 for p in place]
    key: Any = _key(seed, stream)
    return np.random.Generator(np.random.Philox(key, counter=counter))


class _Key(ISeedSequence):
    """Hands out the key as it is.

    By ``key=`` numpy asks the system for chance first, which takes longer than all the
    rest of a view.
    """

    def __init__(self, words: tuple[int, int]) -> None:
        self._words = np.array(words, dtype=np.uint64)

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> Any:
        return self._words.copy()


@lru_cache(maxsize=4096)
def _key(seed: int, stream: str) -> _Key:
    name = hashlib.blake2b(stream.encode(), digest_size=8).digest()
    return _Key((seed & _MASK64, int.from_bytes(name, "little")))


def mix32(bits: Tensor) -> Tensor:
    """Hash of 32-bit integers kept in int64, 0..2**32 - 1.

    Source: lowbias32, https://nullprogram.com/blog/2018/07/31/ (public domain).
    """
    bits = bits ^ (bits >> 16)
    bits = (bits * 0x7FEB352D) & 0xFFFFFFFF
    bits = bits ^ (bits >> 15)
    bits = (bits * 0x846CA68B) & 0xFFFFFFFF  # wraps at 64 bits; the low 32 are right
    return bits ^ (bits >> 16)


def normal_noise(keys: Tensor, count: int) -> Tensor:
    """Standard normal numbers.

    Args:
        keys: (N,) int64, one stream each; 62 bits are used.
        count: Numbers per stream.

    Returns:
        (N, count) float32 on the keys' device, equal on all devices up to rounding.
    """
    pairs = (count + 1) // 2
    index = torch.arange(pairs, device=keys.device, dtype=torch.int64)
    low, high = keys & 0x7FFFFFFF, (keys >> 31) & 0x7FFFFFFF
    bits = mix32(mix32(index + low[:, None] & 0xFFFFFFFF) ^ high[:, None])
    # (0, 1], so that the logarithm is finite
    radius = ((bits >> 8) + 1).float().mul_(2.0**-24).log_().mul_(-2.0).sqrt_()
    bits = mix32(bits + 0x9E3779B9 & 0xFFFFFFFF)
    angle = (bits >> 8).float().mul_(math.tau * 2.0**-24)
    both = torch.cat([radius * angle.cos(), radius * angle.sin()], 1)
    return both[:, :count]


def uniform_noise(keys: Tensor, count: int) -> Tensor:
    """Numbers evenly spread over 0..1, as ``normal_noise`` makes normal ones.

    Args:
        keys: (N,) int64, one stream each.
        count: Numbers per stream.

    Returns:
        (N, count) float32 on the keys' device.
    """
    return 0.5 * (1 + torch.erf(normal_noise(keys, count) / 2**0.5))
