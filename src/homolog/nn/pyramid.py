"""A feature pyramid: coarse maps tell the fine ones where in the body they are."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional


class FeaturePyramid(nn.Module):
    """Top-down pathway: every map gets what all coarser maps know.

    Each map is projected to one width; from the coarsest on, the sum so far is enlarged
    (trilinear) and added to the next finer one.

    Args:
        channels: Channels of the maps, fine to coarse.
        width: Channels of every result.

    Source: Lin et al., "Feature Pyramid Networks", CVPR 2017, with three axes.
    Differs from the paper: trilinear instead of nearest enlargement (blocks of equal
    features would blur the peak of a similarity map); the 3^3 smoothing belongs to the
    heads that read a map.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.width = width
        self.lateral = nn.ModuleList(nn.Conv3d(c, width, 1) for c in channels)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps (B, E_i, d_i, h_i, w_i) -> as many maps (B, width, d_i, h_i, w_i)."""
        flat = [layer(m) for layer, m in zip(self.lateral, maps, strict=True)]
        found = [flat[-1]]
        for finer in reversed(flat[:-1]):
            above = functional.interpolate(
                found[0], size=finer.shape[2:], mode="trilinear", align_corners=False
            )
            found.insert(0, finer + above)
        return tuple(found)


class PlaceHead(nn.Sequential):
    """Reads one map of a pyramid: 3^3 convolution, then the embedding of every cell."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__(
            nn.Conv3d(width, width, 3, padding=1),
            nn.GELU(),
            nn.Conv3d(width, dim, 1),
        )
