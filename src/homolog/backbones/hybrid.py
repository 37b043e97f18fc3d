"""Hybrid: a 2D ResNet sees every slice, attention sees how the slices hang together."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from homolog.backbones.base import Backbone
from homolog.backbones.resnet2d import ResNet2D, ResNet2DConfig
from homolog.config import ConfigError, option
from homolog.geometry.affine import Index
from homolog.losses.similarity import unit

# Attention over the slices of a volume that looks where it learns to look.


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
        """Where ``count`` slices are read without offsets: (ceil(n / r),).

        Paper: Joint Eq. 7, grid.
        """
        places = torch.arange(-(-count // self.reduction), device=device)
        return ((places + 0.5) * self.reduction - 0.5).clamp(max=count - 1.0)

    def places(self, slices: Tensor) -> Tensor:
        """(B, n, F) -> where each group reads, (B, G, m), within 0..n - 1.

        Paper: Joint Eq. 7.
        """
        batch, count, _ = slices.shape
        reference = self.references(count, slices.device)
        query = self.query(slices).reshape(batch, count, self.groups, -1)
        query = query.permute(0, 2, 3, 1).flatten(0, 1)  # (B G, F / G, n)
        seen = read_between(self.around(query).mT, reference.expand(len(query), -1))
        moved = self.move(functional.gelu(self.norm(seen)))[..., 0]
        offset = self.reach * torch.tanh(moved).reshape(batch, self.groups, -1)
        return (reference + offset).clamp(0, count - 1)

    def attend(self, slices: Tensor, places: Tensor) -> Tensor:
        """Attention of (B, n, F) slices to what is read at places (B, G, m).

        Paper: Joint Eq. 6.
        """
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
        """Bias (B, heads, n, m) by slices between query and place, interpolated.

        Paper: Joint Eq. 8.
        """
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


# Paper: Joint attention layers.
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

    Paper: Joint Eq. 7, grid.
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


# Paper: Joint Eq. 7.
@dataclass(frozen=True)
class HybridConfig(ResNet2DConfig):
    """Defaults are Joint's: ResNet-50 and four layers of attention over slices."""

    levels: tuple[int, ...] = option(
        (),
        "maps of the 2D network that describe a slice, 0 the finest; empty: all; the "
        "last alone: no multi-level features",
        minimum=0,
        advanced=True,
    )
    dim: int = option(640, "features of a slice in the attention", minimum=8)
    layers: int = option(4, "layers of attention over slices", minimum=1)
    heads: int = option(8, "heads of each", minimum=1, advanced=True)
    inner: int = option(720, "width of its feed-forward part", minimum=8, advanced=True)
    reduction: int = option(
        4, "slices per place that is read", unit="slice", minimum=1, advanced=True
    )
    groups: int = option(
        1,
        "sets of heads that look at places of their own; as many as heads: each does, "
        "as in the paper and the recipes gpu and paper",
        minimum=1,
        advanced=True,
    )
    reach: float = option(
        2.0, "how far a place may move", unit="slice", minimum=0, advanced=True
    )
    slices: int = option(
        128, "slices of a volume, at most", minimum=1, maximum=4096, advanced=True
    )
    dropout: float = option(0.1, "in the attention", minimum=0, maximum=0.9)
    slices_at_once: int = option(
        0,
        "slices whose activations are kept at a time in training, the others being "
        "made anew for the gradient; 0: all, fast but hungry",
        minimum=0,
        advanced=True,
    )


# Paper: Joint network.
class Hybrid(Backbone):
    """The maps of every slice, and one more that knows the whole volume.

    A slice is described by the means of its maps, each of unit length, side by side
    (F_in); attention over the slices makes F = ``dim`` features of it. They are the
    last map, the same at every place of the slice, so that the mean of that map is the
    vector of the volume. A 2D image is a volume of one slice.

    Source: Nguyen et al., "Joint Self-Supervised Image-Volume Representation Learning
    with Intra-Inter Contrastive Clustering", AAAI 2023, Eq. 6 to 10.
    Differs from the paper: five different levels (its code takes the deepest twice);
    attention over slices, where the public code attends over features; the place of a
    slice is sines and cosines, added to layer-normed features; with ``groups=1``, the
    default, all heads share their offsets (Eq. 7 has one per head, as the recipes
    ``gpu`` and ``paper`` do).
    """

    Config = HybridConfig
    title = "Hybrid: ResNet per slice, attention over slices"
    decoder = "residual"
    SMALL = MappingProxyType(
        {**ResNet2D.SMALL, "dim": 64, "layers": 2, "heads": 4, "inner": 96,
         "reduction": 2, "dropout": 0.0}
    )  # fmt: skip
    FINETUNE = ResNet2D.FINETUNE  # it segments slice by slice

    def __init__(self, config: HybridConfig) -> None:
        super().__init__(config)
        own = {f.name: getattr(config, f.name) for f in fields(ResNet2DConfig)}
        self.intra = ResNet2D(ResNet2DConfig(**own))
        count = len(self.intra.channels)
        self.levels = config.levels or tuple(range(count))
        if max(self.levels) >= count:
            raise ConfigError(
                f"levels must name some of the {count} maps 0 to {count - 1}, got "
                f"{config.levels}."
            )
        if config.dim % config.heads or config.heads % config.groups:
            raise ConfigError(
                f"heads ({config.heads}) must divide dim ({config.dim}), and groups "
                f"({config.groups}) the heads."
            )
        self.described = sum(self.intra.channels[i] for i in self.levels)
        # without the norm the places of slices would drown what is seen in them
        self.narrow = nn.Sequential(
            nn.Linear(self.described, config.dim), nn.LayerNorm(config.dim)
        )
        self.inter = SliceTransformer(
            config.dim, config.layers, config.heads, inner=config.inner,
            dropout=config.dropout, reduction=config.reduction, groups=config.groups,
            reach=config.reach, slices=config.slices,
        )  # fmt: skip
        self.channels = (*self.intra.channels, config.dim)
        self.strides = (*self.intra.strides, self.intra.strides[-1])
        self.size_divisor: Index = self.intra.size_divisor

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, C, n, H, W) -> maps of stride 2 to 32 in plane, and that of slices."""
        maps = self.slice_maps(image)
        known = self.between(self.describe(maps)).transpose(1, 2)  # (B, F, n)
        last = known[..., None, None].expand(*known.shape, *maps[-1].shape[-2:])
        return (*maps, last)

    def slice_maps(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, C, n, H, W) -> the 2D network's maps (B, E_i, n, h_i, w_i)."""
        batch, _, count = image.shape[:3]
        slices = image.transpose(1, 2).flatten(0, 1)  # (B n, C, H, W)
        return tuple(
            found.reshape(batch, count, *found.shape[1:]).transpose(1, 2)
            for found in self._seen(slices)
        )

    def _seen(self, slices: Tensor) -> tuple[Tensor, ...]:
        at_once = self.config.slices_at_once
        if not at_once or len(slices) <= at_once or not torch.is_grad_enabled():
            found: tuple[Tensor, ...] = self.intra(slices)
            return found
        parts = [
            checkpoint(self.intra, part, use_reentrant=False)
            for part in torch.split(slices, at_once)
        ]
        return tuple(torch.cat(level) for level in zip(*parts, strict=True))

    def describe(self, maps: tuple[Tensor, ...]) -> Tensor:
        """Maps of every slice -> what describes it (B, n, F_in), Eq. 9.

        Paper: Joint Eq. 9.
        """
        means = [maps[i].mean(dim=(-2, -1)) for i in self.levels]
        return torch.cat([unit(mean.transpose(1, 2)) for mean in means], dim=-1)

    def between(self, described: Tensor) -> Tensor:
        """(B, n, F_in) -> features that know the other slices (B, n, F), Eq. 6 to 8."""
        found: Tensor = self.inter(self.narrow(described))
        return found

    def planar(self) -> Backbone:
        """The 2D network: the paper's 2D tasks and its U-Net stand on it."""
        return self.intra

    def adapt_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A bare 2D ResNet (torchvision's keys) fills the part that sees slices."""
        if "conv1.weight" in state:
            state = self.intra.adapt_state(state)
            return {f"intra.{key}": value for key, value in state.items()}
        return dict(state)
