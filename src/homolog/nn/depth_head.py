"""One score per slice from the maps of a 3D encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class DepthHead(nn.Module):
    """Mean and largest value of every map's planes, one linear layer per slice.

    Coarse maps are interpolated along z; the fine ones tell neighbours apart.

    Args:
        channels: Of the maps.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        width = 2 * sum(channels)
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, 1)

    def forward(self, maps: Sequence[Tensor], depth: int) -> Tensor:
        """Maps (B, E_i, d_i, h_i, w_i) -> (B, ``depth``) logits."""
        parts = []
        for features in maps:
            plane = features.flatten(3)
            both = torch.cat([plane.mean(3), plane.amax(3)], 1)  # (B, 2 E_i, d_i)
            parts.append(
                nn.functional.interpolate(
                    both, size=depth, mode="linear", align_corners=False
                )
            )
        scores: Tensor = self.output(self.norm(torch.cat(parts, 1).mT))[..., 0]
        return scores
