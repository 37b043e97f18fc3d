"""Losses are computed in float32 or better, whatever autocast the network runs in."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

_NARROW = (torch.float16, torch.bfloat16)


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function outside autocast, its half-precision tensors widened to float32.

    float32 and float64 tensors stay as they are. Softmax, Sinkhorn and similarity
    products in bfloat16 lose the small entries, in float16 they overflow. On a GPU
    products are not rounded to TF32 either, which some images of PyTorch switch on.

    Source: methods reference 1.1.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        everything = [*args, *kwargs.values()]
        device = next((a.device.type for a in everything if isinstance(a, Tensor)), "")
        wide_args = [_widen(a) for a in args]
        wide_kwargs = {k: _widen(v) for k, v in kwargs.items()}
        call = cast("Callable[..., R]", function)
        if not device:
            return call(*wide_args, **wide_kwargs)
        with torch.autocast(device, enabled=False), _exact_products(device):
            return call(*wide_args, **wide_kwargs)

    return wrapped


@contextlib.contextmanager
def _exact_products(device: str) -> Iterator[None]:
    """float32 products in float32 on a GPU."""
    if device != "cuda" or not torch.backends.cuda.matmul.allow_tf32:
        yield
        return
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = True


def _widen(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype in _NARROW:
        return value.float()
    return value
