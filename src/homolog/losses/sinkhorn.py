"""Balanced soft codes: every prototype gets the same share of the samples."""

from __future__ import annotations

import torch
from torch import Tensor

from homolog import distributed
from homolog.losses.precision import full_precision


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
