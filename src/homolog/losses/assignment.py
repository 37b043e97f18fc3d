"""Soft assignments and their losses: optimal transport, Sinkhorn, swapped prediction.

Shapes: B samples, N tokens of the first view, M of the second. ``valid_a`` (B, N) and
``valid_b`` (B, M) mark the tokens that show the scan; the others (padding) are neither
matched nor candidates. Samples without one matched pair are left out by arithmetic, not
by a branch: no wait for the device, and a batch without any pair gives a loss of 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from homolog import distributed
from homolog.losses.similarity import full_precision

# Balanced soft codes: every prototype gets the same share of the samples.


@torch.no_grad()
@full_precision
def balanced_codes(
    scores: Tensor,
    epsilon: float = 0.05,
    rounds: int = 3,
    real: Tensor | None = None,
) -> Tensor:
    """Sinkhorn-Knopp codes of samples over prototypes, in the log domain.

    Under torch.distributed every rank passes its own samples and gets their codes; the
    shares of the prototypes are taken over the samples of all ranks.

    Args:
        scores: Cosines of samples and prototypes, (B, K). Any finite values work.
        epsilon: Entropy regularisation; small is sharp.
        rounds: Row and column scalings. The samples' codes are exact after any number,
            the prototypes' shares only in the limit.
        real: (B,) bool, samples that count; the others (a queue that is not full) get
            codes too but take no share. All where None; at least one on every process.

    Returns:
        Codes (B, K), each row sums to 1, columns to about B / K; no gradient.

    Raises:
        ValueError: epsilon or rounds not positive.

    Source: Caron et al., NeurIPS 2020 (SwAV), Eq. 3-5; methods reference 1.2.
    Differs from the paper: log domain, equal up to rounding; no score overflows.

    Paper: Joint Eq. 2; Hundred Million Eq. 3.
    """
    if epsilon <= 0 or rounds < 1:
        raise ValueError(
            f"epsilon must be > 0 and rounds >= 1, got {epsilon} and {rounds}."
        )
    logs = scores / epsilon  # (B, K)
    for _ in range(rounds):
        counted = logs if real is None else logs.masked_fill(~real[:, None], -torch.inf)
        logs = logs - _logsumexp_of_samples(counted)
        logs = logs - torch.logsumexp(logs, dim=1, keepdim=True)
    return logs.exp()


def _logsumexp_of_samples(logs: Tensor) -> Tensor:
    """(B, K) -> (1, K), over the samples of all ranks."""
    if distributed.world().size == 1:
        return torch.logsumexp(logs, dim=0, keepdim=True)
    peak = distributed.max_over_ranks(logs.amax(dim=0, keepdim=True))
    total = distributed.sum_over_ranks((logs - peak).exp().sum(dim=0, keepdim=True))
    return peak + total.log()


# Swapped prediction: one view's code is predicted from the other views.


@full_precision
def swapped_prediction(
    scores: Sequence[Tensor], codes: Mapping[int, Tensor], temperature: float = 0.1
) -> Tensor:
    """Cross-entropy between the code of a view and the prediction of every other one.

    Args:
        scores: Per view, cosines of samples and prototypes (B, K).
        codes: View number -> its codes (B, K), rows sum to 1; views without a code
            only predict.
        temperature: Divides the cosines of the prediction.

    Returns:
        Scalar, the mean over pairs of views and over samples; ln K where predictions
        are uniform, whatever the codes. With two views half of the paper's sum.

    Raises:
        ValueError: Fewer than two views, or no code.

    Source: Caron et al., NeurIPS 2020 (SwAV), Eq. 2 and section 3.2 (multi-crop);
    Joint, Eq. 3 and 11; Hundred Million, Eq. 1.
    Differs from the paper: Joint prints Eq. 11 unswapped, which has nothing to do with
    agreement of views.

    Paper: Joint Eq. 3, 4.
    """
    if len(scores) < 2 or not codes:
        raise ValueError(
            f"swapped prediction needs two views and a code, got {len(scores)} views "
            f"and {len(codes)} codes."
        )
    logs = [torch.log_softmax(s / temperature, dim=1) for s in scores]
    terms = [
        -(code * log).sum(dim=1).mean()
        for view, code in codes.items()
        for other, log in enumerate(logs)
        if other != view
    ]
    return torch.stack(terms).mean()


@full_precision
def token_codes(
    scores: Tensor,
    told: Tensor,
    centre: Tensor,
    counted: Tensor,
    temperature: float = 0.1,
    told_temperature: float = 0.04,
) -> Tensor:
    """Cross-entropy between a target's assignments of tokens and their predictions.

    Args:
        scores: (B, N, K) the student's outputs for K prototypes.
        told: (B, N, K) the target's; no gradient flows into them.
        centre: (K,) running mean of the target's outputs, taken off.
        counted: (B, N) bool, tokens that count: hidden ones.
        temperature: Divides the student's outputs.
        told_temperature: Divides the target's.

    Returns:
        Scalar, the mean over counted tokens; ln K where predictions are uniform; 0
        where nothing counts.

    Source: Zhou et al., "iBOT: Image BERT Pre-Training with Online Tokenizer", ICLR
    2022, Eq. 2 and section 4.1; Caron et al., ICCV 2021 (DINO), centring.
    Differs from the paper: the mean over all hidden tokens of a batch, not over each
    crop's first (every crop hides as many).

    Paper: Alice Table 6.
    """
    with torch.no_grad():
        codes = torch.softmax((told - centre) / told_temperature, dim=-1)
    errors = -(codes * torch.log_softmax(scores / temperature, dim=-1)).sum(-1)
    weight = counted.to(errors.dtype)
    total: Tensor = (errors * weight).sum() / weight.sum().clamp_min(1.0)
    return total


# Optimal transport between two token sets, with a dustbin for the unmatched.


# Score of a token that holds padding: far below any cosine over temperature, finite.
NEVER = -1e4
_ROUNDS_KEPT = 10


@full_precision
def log_transport(
    scores: Tensor,
    dustbin: Tensor,
    *,
    rounds: int = 100,
    valid_a: Tensor | None = None,
    valid_b: Tensor | None = None,
) -> Tensor:
    """Log of the entropic transport plan of two token sets and their dustbins.

    Real rows and columns carry mass 1, the dustbin row mass M, the dustbin column mass
    N: any number of tokens may stay unmatched. Take minus the result directly as a
    loss; exp and log again would lose precision.

    Args:
        scores: Similarities over temperature, (B, N, M).
        dustbin: Score of the dustbins, a scalar tensor, learnable.
        rounds: Row and column scalings.
        valid_a: (B, N) bool; tokens marked False can only go to the dustbin.
        valid_b: (B, M) bool, the same for columns.

    Returns:
        (B, N + 1, M + 1) log plan; the last row and column are the dustbins.

    Raises:
        ValueError: rounds not positive.

    Source: Sarlin et al., CVPR 2020 (SuperGlue), section 3.2; methods reference S 3.13.
    Differs from the paper: masses are not divided by N + M and multiplied back.

    Paper: S2DC Sinkhorn.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}.")
    batch, n, m = scores.shape
    if valid_a is not None:
        scores = scores.masked_fill(~valid_a[:, :, None], NEVER)
    if valid_b is not None:
        scores = scores.masked_fill(~valid_b[:, None, :], NEVER)
    bin_column = dustbin.to(scores.dtype).expand(batch, n, 1)
    bin_row = dustbin.to(scores.dtype).expand(batch, 1, m + 1)
    full = torch.cat([torch.cat([scores, bin_column], 2), bin_row], 1)
    log_rows = full.new_zeros(n + 1)
    log_columns = full.new_zeros(m + 1)
    log_rows[n], log_columns[m] = math.log(m), math.log(n)

    u = full.new_zeros(batch, n + 1)
    v = full.new_zeros(batch, m + 1)
    for done in range(0, rounds, _ROUNDS_KEPT):
        some = min(_ROUNDS_KEPT, rounds - done)
        # Recomputed in the backward pass: 100 kept rounds of 1728 tokens are 2.4 GB.
        u, v = checkpoint(
            _scale, full, v, log_rows, log_columns, some, use_reentrant=False
        )
    return full + u[:, :, None] + v[:, None, :]


def _scale(
    full: Tensor, v: Tensor, log_rows: Tensor, log_columns: Tensor, rounds: int
) -> tuple[Tensor, Tensor]:
    """Rounds of row and column scaling; returns the potentials u and v."""
    for _ in range(rounds):
        u = log_rows - torch.logsumexp(full + v[:, None, :], dim=2)
        v = log_columns - torch.logsumexp(full + u[:, :, None], dim=1)
    return u, v


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

    Paper: S2DC Eq. 4.
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

    Paper: S2DC Eq. 5.
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

    Paper: S2DC Eq. 6.
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

    Paper: S2DC Eq. 7, 8.
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

    Paper: S2DC Eq. 7, 8.
    """
    per_sample = -(log_assignment * weights).sum(dim=(1, 2))
    return mean_of_present(per_sample, weights.detach().sum(dim=(1, 2)) > 0)


def mean_of_present(per_sample: Tensor, present: Tensor) -> Tensor:
    """Mean over the samples marked present, (B,) -> scalar; 0 when there is none."""
    share = present.to(per_sample.dtype)
    return (per_sample * share).sum() / share.sum().clamp_min(1.0)
