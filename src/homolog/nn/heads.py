"""Heads between a backbone and a loss: projectors of vectors and of dense maps."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from homolog.geometry.affine import Index
from homolog.losses.similarity import cosine_matrix, unit

_NORMS: dict[str, type[nn.Module]] = {
    "layer": nn.LayerNorm,
    "batch": nn.BatchNorm1d,
}


class Projector(nn.Module):
    """A small multi-layer perceptron on the last axis, (..., E_in) -> (..., E_out).

    Args:
        in_features: E_in.
        out_features: E_out.
        hidden: Width of the inner layers.
        layers: Number of linear layers, at least 1.
        normalise: Scale the result to unit length, in float32.
        norm: Between the layers. ``layer`` where a sample is compared with others one
            by one: batch norm would tell which keys came from the same batch. ``batch``
            for clusters: with layer norm all samples start out nearly parallel, codes
            are uniform, and features collapse.

    Source: methods reference 1.5 and S 3.14.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        hidden: int,
        layers: int = 2,
        normalise: bool = True,
        norm: str = "layer",
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"a projector needs at least 1 layer, got {layers}.")
        if norm not in _NORMS:
            known = ", ".join(sorted(_NORMS))
            raise ValueError(f"a projector's norm is one of {known}, got {norm!r}.")
        widths = [in_features, *[hidden] * (layers - 1)]
        parts: list[nn.Module] = []
        for narrow, wide in itertools.pairwise(widths):
            parts += [nn.Linear(narrow, wide), _NORMS[norm](wide), nn.GELU()]
        parts.append(nn.Linear(widths[-1], out_features))
        self.layers = nn.Sequential(*parts)
        self.normalise = normalise

    def forward(self, features: Tensor) -> Tensor:
        """(..., E_in) -> (..., E_out)."""
        flat = features.reshape(-1, features.shape[-1])
        projected: Tensor = self.layers(flat).reshape(*features.shape[:-1], -1)
        return unit(projected) if self.normalise else projected


class BottleneckHead(nn.Module):
    """Three-layer perceptron, a bottleneck of unit length, then unit prototypes.

    Args:
        in_features: E_in.
        hidden: Width of the inner layers.
        bottleneck: Length of the vector that is scaled to unit length.
        out_features: E_out.

    Source: Caron et al., ICCV 2021 (DINO), appendix C; Alice, section 3.2.
    Differs from the paper: layer norm between the layers (see Projector).
    """

    def __init__(
        self, in_features: int, *, hidden: int, bottleneck: int, out_features: int
    ) -> None:
        super().__init__()
        self.narrow = Projector(in_features, bottleneck, hidden=hidden, layers=3)
        self.wide = nn.Parameter(torch.empty(out_features, bottleneck))
        nn.init.trunc_normal_(self.wide, std=0.02)

    def forward(self, features: Tensor) -> Tensor:
        """(..., E_in) -> (..., E_out), cosines with the rows of ``wide``, float32."""
        return cosine_matrix(self.narrow(features), self.wide)


def tokens_of(maps: Tensor) -> Tensor:
    """(B, E, d, h, w) -> (B, N, E), tokens in z, y, x order (x fastest)."""
    return maps.flatten(2).mT


def pooled(maps: Tensor) -> Tensor:
    """(B, E, d, h, w) -> (B, E), the mean over the grid."""
    return maps.flatten(2).mean(dim=2)


def pooled_twice(maps: Tensor) -> Tensor:
    """(B, E, d, h, w) -> (B, 2 E), the mean over the grid, then the largest value.

    Source: Ghesu et al., arXiv 2201.01283, section IV-E.
    """
    return torch.cat([pooled(maps), maps.flatten(2).amax(dim=2)], dim=1)


class DenseDecoder(nn.Module):
    """A light reading of feature maps: one vector per cell of a chosen map.

    Every map at least as coarse as the chosen one is projected, enlarged to its grid
    and added; one convolution mixes neighbours.

    Args:
        channels: Channels of the maps, fine to coarse, the chosen one first.
        hidden: Width inside.
        out_features: Values per cell.
    """

    def __init__(self, channels: list[int], *, hidden: int, out_features: int) -> None:
        super().__init__()
        self.inputs = nn.ModuleList(nn.Conv3d(c, hidden, 1) for c in channels)
        self.mix = nn.Sequential(
            nn.GroupNorm(1, hidden),
            nn.GELU(),
            nn.Conv3d(hidden, hidden, 3, padding=1),
            nn.GELU(),
        )
        self.output = nn.Conv3d(hidden, out_features, 1)

    def forward(self, maps: tuple[Tensor, ...]) -> Tensor:
        """Maps (B, E_i, d_i, h_i, w_i), the chosen one first -> (B, out, d, h, w)."""
        decoded: Tensor = self.output(self.features(maps))
        return decoded

    def features(self, maps: tuple[Tensor, ...]) -> Tensor:
        """The same before the output layer, (B, hidden, d, h, w)."""
        grid = maps[0].shape[2:]
        total = self.inputs[0](maps[0])
        for layer, features in zip(self.inputs[1:], maps[1:], strict=True):
            total = total + nn.functional.interpolate(
                layer(features), size=grid, mode="trilinear", align_corners=False
            )
        mixed: Tensor = self.mix(total)
        return mixed


class TokenDecoder(nn.Module):
    """A small transformer from visible tokens to a vector for every patch.

    Args:
        in_features: Size of the encoder's tokens.
        grid: Patches (d, h, w) of the whole crop.
        hidden: Width inside; the number of heads is the largest that divides it.
        layers: Transformer blocks.
        out_features: Values per patch.

    Source: He et al., CVPR 2022 (MAE), section 3.
    """

    def __init__(
        self,
        in_features: int,
        *,
        grid: Index,
        hidden: int,
        layers: int,
        out_features: int,
    ) -> None:
        super().__init__()
        self.enter = nn.Linear(in_features, hidden)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, hidden))
        nn.init.normal_(self.mask_token, std=0.02)
        self.places: Tensor
        self.register_buffer("places", sine_places(grid, hidden), persistent=False)
        heads = next(h for h in (16, 12, 8, 6, 4, 3, 2, 1) if hidden % h == 0)
        block = nn.TransformerEncoderLayer(
            hidden,
            heads,
            4 * hidden,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.blocks = nn.TransformerEncoder(
            block, layers, norm=nn.LayerNorm(hidden), enable_nested_tensor=False
        )
        self.output = nn.Linear(hidden, out_features)

    def forward(self, tokens: Tensor, visible: Tensor) -> Tensor:
        """Tokens (B, n, E) at patches ``visible`` (B, n) -> (B, N, out)."""
        decoded: Tensor = self.output(self.features(tokens, visible))
        return decoded

    def features(self, tokens: Tensor, visible: Tensor) -> Tensor:
        """The same before the output layer, (B, N, hidden)."""
        entered = self.enter(tokens)
        batch, _, hidden = entered.shape
        count = self.places.shape[0]
        full = self.mask_token.to(entered.dtype).expand(batch, count, hidden)
        index = visible[:, :, None].expand(-1, -1, hidden)
        full = full.scatter(1, index, entered) + self.places.to(entered.dtype)
        decoded: Tensor = self.blocks(full)
        return decoded


def sine_places(grid: Index, dim: int) -> Tensor:
    """Fixed position vectors of a grid, (N, dim), x fastest.

    Each axis gets a third of the features: sines and cosines of its index at
    geometrically growing wavelengths; features left over are 0.

    Source: Vaswani et al., NeurIPS 2017, per axis.
    """
    waves = dim // 6
    rate = 10_000.0 ** (-torch.arange(waves) / max(waves, 1))
    places = torch.zeros(*grid, dim)
    for axis, count in enumerate(grid):
        angle = torch.arange(count)[:, None] * rate
        shape = [1, 1, 1, 2 * waves]
        shape[axis] = count
        part = torch.cat([angle.sin(), angle.cos()], 1).reshape(shape)
        places[..., 2 * waves * axis : 2 * waves * (axis + 1)] = part
    return places.reshape(-1, dim)
