"""A first-in first-out store of feature vectors, the same on every process."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from homolog import distributed


class FeatureQueue(nn.Module):
    """The last vectors a key encoder made; negatives of a contrastive loss.

    All state lies in buffers: it is saved, resumed and moved with the module. Rows that
    were never filled are marked by ``occupied``, not by zeros.

    Attributes:
        rows: (L, E) unit vectors.
        occupied: (L,) bool.
        pointer: () int64, where the next row goes.

    Args:
        length: Rows kept (L), over all processes together.
        dim: Size of a vector (E).

    Source: He et al., CVPR 2020 (MoCo); methods reference 1.4, 1.5.
    Differs from the paper: rows are normalised on entry, empty rows are marked
    instead of random, and the length need not be a multiple of the batch.
    """

    rows: Tensor
    occupied: Tensor
    pointer: Tensor

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        if length < 1 or dim < 1:
            raise ValueError(f"a queue needs length and dim >= 1, got {length}, {dim}.")
        self.register_buffer("rows", torch.zeros(length, dim))
        self.register_buffer("occupied", torch.zeros(length, dtype=torch.bool))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    @property
    def length(self) -> int:
        """Rows kept."""
        return len(self.rows)

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Add this process's keys and, in rank order, those of all others.

        A key that is not finite (a step that diverged) leaves the older row in place.

        Args:
            keys: (B, E), any length but the same on every process.
        """
        keys = distributed.gather_rows(keys.detach().to(self.rows.dtype))
        keys = functional.normalize(keys, dim=1, eps=1e-6)
        skipped = max(0, len(keys) - self.length)
        count = len(keys) - skipped
        places = torch.arange(count, device=keys.device) + self.pointer + skipped
        places = places % self.length
        sound = keys[skipped:].isfinite().all(dim=1)
        self.rows[places] = torch.where(
            sound[:, None], keys[skipped:], self.rows[places]
        )
        self.occupied[places] = self.occupied[places] | sound
        self.pointer.copy_((self.pointer + len(keys)) % self.length)

    def ordered(self) -> Tensor:
        """(n, E) occupied rows, oldest first; waits for the device."""
        order = torch.arange(self.length, device=self.rows.device) + self.pointer
        order = order % self.length
        return self.rows[order][self.occupied[order]]
