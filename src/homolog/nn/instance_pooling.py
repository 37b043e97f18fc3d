"""Many vectors of one bag (slices of a scan) become one: mean, largest, attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

POOLINGS = ("attention", "mean", "max")


class InstancePooling(nn.Module):
    """A bag's vectors -> one vector and the share each had in it.

    Args:
        features: Length of a vector (E).
        kind: ``attention`` weighs by what is seen (gated attention), ``mean`` counts
            all alike, ``max`` takes the largest value of each feature.
        hidden: Width of the attention.

    Source: Ilse et al., ICML 2018, Eq. 7 and 9.
    Differs from the paper: the attention sees layer-normalised vectors.
    """

    def __init__(self, features: int, kind: str = "attention", hidden: int = 128):
        super().__init__()
        if kind not in POOLINGS:
            raise ValueError(f"pooling must be one of {POOLINGS}, got {kind!r}.")
        self.kind = kind
        if kind == "attention":
            self.norm = nn.LayerNorm(features)
            self.value = nn.Linear(features, hidden)
            self.gate = nn.Linear(features, hidden)
            self.weight = nn.Linear(hidden, 1)

    def forward(self, bag: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Pool.

        Args:
            bag: (B, N, E).
            known: (B, N) bool; the others are left out. All count where none is known.

        Returns:
            (B, E), and the share of each vector (B, N) float32; shares sum to 1. Of
            ``max`` the share of features that came from it.
        """
        known = known | ~known.any(1, keepdim=True)
        if self.kind == "max":
            low = torch.finfo(bag.dtype).min
            largest, place = bag.masked_fill(~known[..., None], low).max(1)
            shares = nn.functional.one_hot(place, bag.shape[1]).float().mean(1)
            return largest, shares
        if self.kind == "mean":
            shares = known.float() / known.sum(1, keepdim=True)
        else:
            seen = self.norm(bag)
            inner = torch.tanh(self.value(seen)) * torch.sigmoid(self.gate(seen))
            worth = self.weight(inner)[..., 0].float()
            shares = worth.masked_fill(~known, float("-inf")).softmax(1)
        return torch.einsum("bn,bne->be", shares.to(bag.dtype), bag), shares
