"""A 2D encoder on the slices of volumes, a few at a time: memory stays bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from homolog.nn.heads import pooled

if TYPE_CHECKING:
    from homolog.backbones.base import Backbone


# Slices that are in the network at once.
CHUNK = 16


def slice_vectors(
    encoder: Backbone,
    image: Tensor,
    known: Tensor,
    pool: Callable[[Tensor], Tensor] = pooled,
    chunk: int = CHUNK,
) -> Tensor:
    """The encoder's deepest map of each slice, pooled.

    Where a gradient is wanted and there are more slices than a chunk holds, only one
    chunk's activations are kept: the others are computed a second time on the way back.

    Args:
        encoder: 2D.
        image: (B, C, D, H, W).
        known: (B, D) bool; slices that are not are not looked at.
        pool: (n, E', 1, h, w) -> (n, E).
        chunk: Slices at once.

    Returns:
        (B, D, E); 0 where a slice is not known.
    """
    batch, _, depth = image.shape[:3]
    slices = image.transpose(1, 2).flatten(0, 1)
    wanted = known.flatten().nonzero()[:, 0]
    twice = torch.is_grad_enabled() and len(wanted) > chunk

    def look(part: Tensor) -> Tensor:
        return pool(encoder.maps(part.unsqueeze(2))[-1])

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _averages_at_rest(encoder)

    if not len(wanted):  # one all the same: its weights must be met in every step
        wanted = torch.arange(len(slices), device=image.device)[:1]
    found = [
        checkpoint(look, slices[part], use_reentrant=False, context_fn=contexts)
        if twice
        else look(slices[part])
        for part in (wanted[k : k + chunk] for k in range(0, len(wanted), chunk))
    ]
    seen = torch.cat(found)
    whole = seen.new_zeros(batch * depth, seen.shape[1]).index_copy(0, wanted, seen)
    return whole.reshape(batch, depth, -1)


@contextmanager
def _averages_at_rest(module: nn.Module) -> Iterator[None]:
    """Batch norms do not count the same slices twice."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, kept, strict=True):
            norm.momentum = momentum
