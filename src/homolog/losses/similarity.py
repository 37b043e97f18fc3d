"""Cosine similarity of sets of vectors."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor
from torch.nn import functional

# Losses are computed in float32 or better, whatever autocast the network runs in.


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


_SMALLEST_NORM = 1e-6


@full_precision
def unit(features: Tensor, dim: int = -1) -> Tensor:
    """Scale vectors to unit length; those shorter than 1e-6 are divided by 1e-6.

    Args:
        features: Any shape; float16 and bfloat16 become float32.
        dim: Axis of the vectors.

    Source: methods reference 1.1, x / max(||x||, 1e-6).
    """
    return functional.normalize(features, dim=dim, eps=_SMALLEST_NORM)


@full_precision
def cosine_matrix(a: Tensor, b: Tensor) -> Tensor:
    """(..., N, E) and (..., M, E) -> (..., N, M) cosines in -1..1."""
    return unit(a) @ unit(b).mT


@full_precision
def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean of 2 - 2 cos(a, b); no gradient flows into ``b``.

    Args:
        a: (..., E), from the branch that learns.
        b: (..., E), from the target branch.

    Returns:
        Scalar in 0..4: 0 for equal directions, 2 for orthogonal, 4 for opposite ones.

    Source: Grill et al., NeurIPS 2020 (BYOL), Eq. 2; Alice, l_s of Eq. 2 and 5.
    """
    return (2.0 - 2.0 * (unit(a) * unit(b).detach()).sum(-1)).mean()
