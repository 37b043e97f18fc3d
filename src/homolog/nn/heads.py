"""Heads between a backbone and a loss: projectors of vectors and of dense maps."""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from homolog.losses.similarity import unit


class Projector(nn.Module):
    """A small multi-layer perceptron on the last axis, (..., E_in) -> (..., E_out).

    Layer norm between the layers: batch norm would tell which keys came from the same
    batch, and cannot run on a batch of one.

    Args:
        in_features: E_in.
        out_features: E_out.
        hidden: Width of the inner layers.
        layers: Number of linear layers, at least 1.
        normalise: Scale the result to unit length, in float32.

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
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"a projector needs at least 1 layer, got {layers}.")
        widths = [in_features, *[hidden] * (layers - 1)]
        parts: list[nn.Module] = []
        for narrow, wide in itertools.pairwise(widths):
            parts += [nn.Linear(narrow, wide), nn.LayerNorm(wide), nn.GELU()]
        parts.append(nn.Linear(widths[-1], out_features))
        self.layers = nn.Sequential(*parts)
        self.normalise = normalise

    def forward(self, features: Tensor) -> Tensor:
        """(..., E_in) -> (..., E_out)."""
        projected: Tensor = self.layers(features)
        return unit(projected) if self.normalise else projected


def tokens_of(maps: Tensor) -> Tensor:
    """(B, E, d, h, w) -> (B, N, E), tokens in z, y, x order (x fastest)."""
    return maps.flatten(2).mT


def pooled(maps: Tensor) -> Tensor:
    """(B, E, d, h, w) -> (B, E), the mean over the grid."""
    return maps.flatten(2).mean(dim=2)


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
        grid = maps[0].shape[2:]
        total = self.inputs[0](maps[0])
        for layer, features in zip(self.inputs[1:], maps[1:], strict=True):
            total = total + nn.functional.interpolate(
                layer(features), size=grid, mode="trilinear", align_corners=False
            )
        decoded: Tensor = self.output(self.mix(total))
        return decoded
