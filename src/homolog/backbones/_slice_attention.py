"""Attention over the slices of a volume that looks where it learns to look."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class SliceAttention(nn.Module):
    """Deformable attention: keys and values are read between slices, at learnt places.

    The places are every ``reduction``-th slice, each moved by an offset that the slices
    around it decide; between two slices features are interpolated. Everything counts in
    slices; nothing wraps or pads with zeros at the ends.

    Args:
        dim: Features of a slice (F).
        heads: Of the attention; divides F.
        reduction: Slices per place (r).
        groups: Sets of features that move apart; divides the heads.
        reach: Largest offset, slices.
        kernel: Slices that decide an offset.
        slices: Most slices of a volume; size of the table of relative positions.

    Source: Joint, Eq. 6-8; Xia et al., CVPR 2022 (deformable attention).
    Differs from the paper: offsets in slices (the grid of D x 2 is a copy from images),
    references at (j + 1/2) r - 1/2; the public code attends over features, not slices.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        reduction: int = 1,
        groups: int = 1,
        reach: float = 2.0,
        kernel: int = 5,
        slices: int = 128,
    ) -> None:
        super().__init__()
        if dim % heads or heads % groups or reduction < 1 or kernel % 2 == 0:
            raise ValueError(
                f"heads ({heads}) must divide dim ({dim}), groups ({groups}) the "
                f"heads, reduction ({reduction}) be 1 or more, kernel ({kernel}) odd."
            )
        self.heads, self.groups, self.reduction = heads, groups, reduction
        self.reach, self.slices = reach, slices
        self.query, self.key, self.value, self.out = (
            nn.Linear(dim, dim) for _ in range(4)
        )
        width = dim // groups
        self.around = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.move = nn.Linear(width, 1, bias=False)
        nn.init.zeros_(self.move.weight)  # begins as plain strided attention
        self.bias = nn.Parameter(torch.zeros(heads, 2 * slices - 1))

    def forward(self, slices: Tensor) -> Tensor:
        """(B, n, F) -> (B, n, F)."""
        return self.attend(slices, self.places(slices))

    def references(self, count: int, device: torch.device) -> Tensor:
        """Where ``count`` slices are read without offsets: (ceil(n / r),)."""
        places = torch.arange(-(-count // self.reduction), device=device)
        return ((places + 0.5) * self.reduction - 0.5).clamp(max=count - 1.0)

    def places(self, slices: Tensor) -> Tensor:
        """(B, n, F) -> where each group reads, (B, G, m), within 0..n - 1."""
        batch, count, _ = slices.shape
        reference = self.references(count, slices.device)
        query = self.query(slices).reshape(batch, count, self.groups, -1)
        query = query.permute(0, 2, 3, 1).flatten(0, 1)  # (B G, F / G, n)
        seen = read_between(self.around(query).mT, reference.expand(len(query), -1))
        moved = self.move(functional.gelu(self.norm(seen)))[..., 0]
        offset = self.reach * torch.tanh(moved).reshape(batch, self.groups, -1)
        return (reference + offset).clamp(0, count - 1)

    def attend(self, slices: Tensor, places: Tensor) -> Tensor:
        """Attention of (B, n, F) slices to what is read at places (B, G, m)."""
        batch, count, dim = slices.shape
        if count > self.slices:
            raise ValueError(
                f"at most {self.slices} slices were planned for, got {count}."
            )
        parts = slices.reshape(batch, count, self.groups, -1).transpose(1, 2)
        read = read_between(parts.flatten(0, 1), places.flatten(0, 1))
        read = read.reshape(batch, self.groups, -1, dim // self.groups)
        read = read.transpose(1, 2).flatten(2)  # (B, m, F)
        query, key, value = (
            layer(x).reshape(batch, x.shape[1], self.heads, -1).transpose(1, 2)
            for layer, x in ((self.query, slices), (self.key, read), (self.value, read))
        )
        scores = query @ key.mT / math.sqrt(dim // self.heads)
        weights = (scores + self.relative(places, count)).softmax(dim=-1)
        found: Tensor = self.out((weights @ value).transpose(1, 2).flatten(2))
        return found

    def relative(self, places: Tensor, count: int) -> Tensor:
        """Bias (B, heads, n, m) by slices between query and place, interpolated."""
        index = torch.arange(count, device=places.device)
        apart = index[:, None] - places[:, :, None]  # (B, G, n, m)
        each = self.heads // self.groups
        apart = apart.repeat_interleave(each, dim=1) + (self.slices - 1)
        low = apart.floor().clamp(0, 2 * self.slices - 2)
        share = apart - low
        low = low.long()
        high = (low + 1).clamp(max=2 * self.slices - 2)
        table = self.bias[None, :, None].expand(len(places), -1, count, -1)
        return torch.lerp(
            table.gather(3, low), table.gather(3, high), share.to(table.dtype)
        )


class SliceTransformer(nn.Module):
    """Layers of slice attention and feed-forward, with the place of each slice added.

    Args:
        dim: Features of a slice (F).
        layers: How many.
        heads: Of each.
        inner: Width of the feed-forward part; 0: as wide as F.
        dropout: After attention and feed-forward.
        attention: More settings of SliceAttention.

    Source: Joint, section III-B; post-norm as in its code.
    """

    def __init__(
        self,
        dim: int,
        layers: int,
        heads: int,
        *,
        inner: int = 0,
        dropout: float = 0.1,
        **attention: float,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            _Layer(dim, heads, inner or dim, dropout, attention) for _ in range(layers)
        )

    def forward(self, slices: Tensor) -> Tensor:
        """(B, n, F) -> (B, n, F); n may be 1."""
        found = slices + _places_on(
            slices.shape[1], slices.shape[2], slices.device, slices.dtype
        )
        for layer in self.layers:
            found = layer(found)
        return found


class _Layer(nn.Module):
    def __init__(
        self, dim: int, heads: int, inner: int, dropout: float, attention: dict
    ) -> None:
        super().__init__()
        self.attention = SliceAttention(dim, heads, **attention)
        self.first, self.second = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.wide = nn.Sequential(
            nn.Linear(dim, inner), nn.GELU(), nn.Dropout(dropout), nn.Linear(inner, dim)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, slices: Tensor) -> Tensor:
        found = self.first(slices + self.dropout(self.attention(slices)))
        whole: Tensor = self.second(found + self.dropout(self.wide(found)))
        return whole


def read_between(slices: Tensor, places: Tensor) -> Tensor:
    """Linear interpolation along the slices; what lies beyond an end is that end.

    Args:
        slices: (B, n, E).
        places: (B, m), in slices.

    Returns:
        (B, m, E).
    """
    last = slices.shape[1] - 1
    low = places.floor().clamp(0, last)
    share = (places - low).clamp(0, 1)[..., None].to(slices.dtype)
    low = low.long()
    high = (low + 1).clamp(max=last)

    def at(index: Tensor) -> Tensor:
        return slices.gather(1, index[..., None].expand(-1, -1, slices.shape[2]))

    return torch.lerp(at(low), at(high), share)


def slice_places(count: int, dim: int) -> Tensor:
    """(n, F) sines and cosines of the number of each slice (Vaswani et al., 2017)."""
    index = torch.arange(count, dtype=torch.float32)[:, None]
    half = -(-dim // 2)
    rate = torch.exp(-math.log(10_000.0) * torch.arange(half) / max(half, 1))
    both = torch.cat([torch.sin(index * rate), torch.cos(index * rate)], dim=1)
    return both[:, :dim]


@functools.lru_cache(maxsize=64)
def _places_on(
    count: int, dim: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """The same where they are needed; copied up once, since a copy waits."""
    # a tensor made under inference_mode could not be used in training later
    with torch.inference_mode(False), torch.no_grad():
        return slice_places(count, dim).to(device, dtype)
