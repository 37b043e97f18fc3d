"""Which token of one view is which of the other: soft assignments and their losses.

Shapes: B samples, N tokens of the first view, M of the second. ``valid_a`` (B, N) and
``valid_b`` (B, M) mark the tokens that show the scan; the others (padding) are neither
matched nor candidates. Samples without one matched pair are left out by arithmetic, not
by a branch: no wait for the device, and a batch without any pair gives a loss of 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from homolog.losses.precision import full_precision
from homolog.losses.transport import NEVER

_SMALLEST_STD = 1e-6
_MOST_CERTAIN = math.log1p(-1e-6)


@full_precision
def dual_log_softmax(
    similarity: Tensor,
    temperature: float,
    *,
    valid_a: Tensor | None = None,
    valid_b: Tensor | None = None,
) -> Tensor:
    """Log of the softmax over a row times the softmax over a column, (B, N, M).

    Args:
        similarity: Cosines, (B, N, M).
        temperature: Divides the cosines.
        valid_a: (B, N) bool or None.
        valid_b: (B, M) bool or None.

    Source: Rocco et al., NeurIPS 2018; S2DC Eq. 4.
    Differs from the paper: a temperature; at 1 unit vectors cannot tell many tokens
    apart (methods reference S 4.1).
    """
    scores = similarity / temperature
    rows = scores
    if valid_b is not None:
        rows = scores.masked_fill(~valid_b[:, None, :], NEVER)
    columns = scores
    if valid_a is not None:
        columns = scores.masked_fill(~valid_a[:, :, None], NEVER)
    return torch.log_softmax(rows, dim=2) + torch.log_softmax(columns, dim=1)


@full_precision
def patch_to_patch(log_assignment: Tensor, matches: Tensor) -> Tensor:
    """Mean of -log assignment over the matched pairs of a sample, mean over samples.

    Args:
        log_assignment: (B, N, M), at most 0.
        matches: (B, N, M) bool, the true pairs.

    Returns:
        Scalar; equal similarities give 2 ln N after a dual softmax.

    Source: S2DC Eq. 5, sums from 1.
    """
    pairs = matches.to(log_assignment.dtype)
    count = pairs.sum(dim=(1, 2))
    per_sample = -(log_assignment * pairs).sum(dim=(1, 2)) / count.clamp_min(1.0)
    return mean_of_present(per_sample, count > 0)


@full_precision
def unmatched_pairs(log_assignment: Tensor, wrong: Tensor) -> Tensor:
    """Mean of -log(1 - assignment) over the pairs that must not match.

    Args:
        log_assignment: (B, N, M).
        wrong: (B, N, M) bool, valid pairs that do not match.

    Source: the published S2DC code (not the paper), by log1p and bounded.
    """
    pairs = wrong.to(log_assignment.dtype)
    count = pairs.sum(dim=(1, 2))
    certain = log_assignment.clamp_max(_MOST_CERTAIN)
    repulsion = -torch.log1p(-certain.exp())
    per_sample = (repulsion * pairs).sum(dim=(1, 2)) / count.clamp_min(1.0)
    return mean_of_present(per_sample, count > 0)


@full_precision
def to_dustbins(
    log_plan: Tensor, matches: Tensor, valid_a: Tensor, valid_b: Tensor
) -> Tensor:
    """Mean of -log plan of sending unmatched tokens to the dustbins.

    Args:
        log_plan: (B, N + 1, M + 1) of ``log_transport``.
        matches: (B, N, M) bool.
        valid_a: (B, N) bool.
        valid_b: (B, M) bool.

    Source: Sarlin et al., CVPR 2020 (SuperGlue), Eq. 6. Without it a learnable dustbin
    score only falls.
    """
    lone_a = (valid_a & ~matches.any(dim=2)).to(log_plan.dtype)
    lone_b = (valid_b & ~matches.any(dim=1)).to(log_plan.dtype)
    count = lone_a.sum(1) + lone_b.sum(1)
    total = (log_plan[:, :-1, -1] * lone_a).sum(1)
    total = total + (log_plan[:, -1, :-1] * lone_b).sum(1)
    return mean_of_present(-total / count.clamp_min(1.0), count > 0)


@full_precision
def sharpe_ratio(
    similarity: Tensor, valid: Tensor | None = None, *, unbiased: bool = False
) -> Tensor:
    """How much the best partner of a token stands out: (max - mean) / std of its row.

    Args:
        similarity: Raw cosines, (B, N, M).
        valid: (B, M) bool or None; only these candidates count.
        unbiased: Divide the variance by M - 1 instead of M.

    Returns:
        (B, N); between 1 / sqrt(M - 1) and sqrt(M - 1) (population std), 0 for a
        constant row.

    Source: S2DC Eq. 6.
    Differs from the paper: sigma is the standard deviation, at least 1e-6, where the
    text says "variance" (methods reference S 3.5).
    """
    if valid is None:
        weight = similarity.new_ones(similarity.shape[0], 1, similarity.shape[2])
    else:
        weight = valid[:, None, :].to(similarity.dtype)
    count = weight.sum(2)
    mean = (similarity * weight).sum(2) / count.clamp_min(1.0)
    squares = ((similarity - mean[..., None]) ** 2 * weight).sum(2)
    variance = squares / (count - float(unbiased)).clamp_min(1.0)
    # The inner clamp keeps the gradient of the root finite on constant rows.
    std = variance.clamp_min(_SMALLEST_STD**2).sqrt()
    best = similarity.masked_fill(weight == 0, -2.0).amax(2)
    return (best - mean).masked_fill(count == 0, 0.0) / std


@full_precision
def structure_weights(
    similarity: Tensor,
    matches: Tensor,
    *,
    valid_a: Tensor | None = None,
    valid_b: Tensor | None = None,
    unbiased: bool = False,
    paper_norm: bool = False,
) -> Tensor:
    """Weight of every matched pair, (B, N, M): high where both tokens are distinct.

    Tokens that resemble many others (a shared structure) get little weight, which
    relaxes their patch-to-patch loss.

    Args:
        similarity: Raw cosines, (B, N, M).
        matches: (B, N, M) bool.
        valid_a: (B, N) bool or None.
        valid_b: (B, M) bool or None.
        unbiased: See ``sharpe_ratio``.
        paper_norm: Softmax over all tokens and division by N * M, as printed.

    Returns:
        Zero off the matched pairs. The weights of a sample's pairs sum to 1, unless
        ``paper_norm``.

    Source: S2DC Eq. 6-8.
    Differs from the paper: normalised over the matched pairs, so that equal ratios give
    the patch-to-patch loss itself; the printed 1 / N^2 makes the term vanish
    (methods reference S 3.7).
    """
    rows = sharpe_ratio(similarity, valid_b, unbiased=unbiased)
    columns = sharpe_ratio(similarity.mT, valid_a, unbiased=unbiased)
    pairs = matches.to(similarity.dtype)
    if paper_norm:
        row_weight = _softmax_of(rows, valid_a)
        column_weight = _softmax_of(columns, valid_b)
        scale = 1.0 / (matches.shape[1] * matches.shape[2])
    else:
        row_weight = _softmax_over_pairs(rows, pairs.sum(2))
        column_weight = _softmax_over_pairs(columns, pairs.sum(1))
        scale = 1.0
    return (row_weight[:, :, None] + column_weight[:, None, :]) * pairs * (0.5 * scale)


def _softmax_of(ratio: Tensor, valid: Tensor | None) -> Tensor:
    if valid is not None:
        ratio = ratio.masked_fill(~valid, NEVER)
    return torch.softmax(ratio, dim=1)


def _softmax_over_pairs(ratio: Tensor, count: Tensor) -> Tensor:
    """exp(ratio) over its sum, each token counted as often as it is matched."""
    peak = ratio.masked_fill(count == 0, NEVER).amax(1, keepdim=True)
    odds = (ratio - peak).clamp_max(0.0).exp()
    total = (odds * count).sum(1, keepdim=True)
    return odds / total.clamp_min(_SMALLEST_STD)


@full_precision
def patch_to_structure(log_assignment: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of -log assignment over matched pairs, mean over samples.

    Args:
        log_assignment: (B, N, M).
        weights: (B, N, M) of ``structure_weights``; detach them to keep the loss from
            falling by moving weight to easy pairs (methods reference S 3.9).

    Source: S2DC Eq. 7-8.
    """
    per_sample = -(log_assignment * weights).sum(dim=(1, 2))
    return mean_of_present(per_sample, weights.detach().sum(dim=(1, 2)) > 0)


def mean_of_present(per_sample: Tensor, present: Tensor) -> Tensor:
    """Mean over the samples marked present, (B,) -> scalar; 0 when there is none."""
    share = present.to(per_sample.dtype)
    return (per_sample * share).sum() / share.sum().clamp_min(1.0)
