"""Contrastive losses that never hold more similarities than they need."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from homolog.losses.precision import full_precision
from homolog.losses.similarity import unit

_ROWS_AT_ONCE = 1024


@full_precision
def info_nce(
    queries: Tensor,
    keys: Tensor,
    negatives: Tensor,
    temperature: float,
    *,
    occupied: Tensor | None = None,
    batch_negatives: bool = False,
) -> Tensor:
    """-log softmax of each query's own key among its key and the negatives.

    Args:
        queries: (B, E); scaled to unit length here, as keys and negatives are.
        keys: (B, E), the positives; no gradient flows into them.
        negatives: (K, E), e.g. a queue; no gradient flows into them.
        temperature: Divides the cosines.
        occupied: (K,) bool; rows marked False are no negatives. None: all count.
        batch_negatives: The other samples' keys are negatives as well.

    Returns:
        Scalar mean over the batch. K orthogonal negatives and a perfect positive give
        ln(1 + K exp(-1 / temperature)); total ignorance gives ln(K + 1).

    Source: van den Oord et al. 2018; He et al., CVPR 2020 (MoCo); S2DC Eq. 1, its
    misplaced bracket read as exp(q . k / tau), one positive and K negatives.
    """
    queries, keys = unit(queries), unit(keys).detach()
    scores = queries @ unit(negatives).detach().mT
    if occupied is not None:
        scores = scores.masked_fill(~occupied, float("-inf"))
    positive = (queries * keys).sum(dim=1, keepdim=True)
    if not batch_negatives:
        logits = torch.cat([positive, scores], dim=1) / temperature
        target = torch.zeros(len(queries), dtype=torch.long, device=queries.device)
        return functional.cross_entropy(logits, target)
    logits = torch.cat([queries @ keys.mT, scores], dim=1) / temperature
    return functional.cross_entropy(
        logits, torch.arange(len(queries), device=queries.device)
    )


@full_precision
def nt_xent(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """Normalised-temperature cross-entropy of N pairs, every other vector a negative.

    The 2N x 2N similarities are made a block of rows at a time, forward and backward:
    memory grows with N, not with N^2.

    Args:
        a: (N, E), first views; scaled to unit length here.
        b: (N, E), second views of the same things.
        temperature: Divides the cosines.

    Returns:
        Scalar mean over the 2N vectors.

    Raises:
        ValueError: Shapes differ.

    Source: Chen et al., ICML 2020 (SimCLR), Eq. 1.
    """
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(
            f"both views must have shape (N, E), got {tuple(a.shape)} and "
            f"{tuple(b.shape)}."
        )
    a, b = unit(a), unit(b)
    positive = (a * b).sum(dim=1) / temperature
    both = torch.cat([a, b])
    normaliser = logsumexp_of_others(both, 1.0 / temperature)
    return normaliser.mean() - positive.mean()


def logsumexp_of_others(features: Tensor, scale: float) -> Tensor:
    """Log of the sum over j != i of exp(scale <x_i, x_j>), (M, E) -> (M,)."""
    result: Tensor = _LogSumExpOfOthers.apply(features, scale)  # type: ignore[no-untyped-call]
    return result


class _LogSumExpOfOthers(torch.autograd.Function):
    """Row blocks of the self-similarity, recomputed in the backward pass."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, scale: float) -> Tensor:
        parts = [
            _block(features, start, scale).logsumexp(dim=1)
            for start in range(0, len(features), _ROWS_AT_ONCE)
        ]
        result = torch.cat(parts)
        ctx.save_for_backward(features, result)
        ctx.scale = scale
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        features, normaliser = ctx.saved_tensors
        (upstream,) = gradients
        total = torch.zeros_like(features)
        for start in range(0, len(features), _ROWS_AT_ONCE):
            stop = min(start + _ROWS_AT_ONCE, len(features))
            share = _block(features, start, ctx.scale)
            share = share.sub_(normaliser[start:stop, None]).exp_()
            share *= (upstream[start:stop] * ctx.scale)[:, None]
            total[start:stop] += share @ features
            total += share.mT @ features[start:stop]
        return total, None


def _block(features: Tensor, start: int, scale: float) -> Tensor:
    """Scaled similarities of some rows with all, -inf on the diagonal."""
    rows = features[start : start + _ROWS_AT_ONCE]
    block = (rows * scale) @ features.mT
    index = torch.arange(len(rows), device=features.device)
    block[index, index + start] = float("-inf")
    return block
