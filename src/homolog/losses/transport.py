"""Optimal transport between two token sets, with a dustbin for the unmatched."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from homolog.losses.precision import full_precision

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
