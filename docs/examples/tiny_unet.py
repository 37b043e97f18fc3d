"""Tiny U-Net: four stages of plain convolutions, to be read in a minute."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor, nn

from homolog.backbones.base import Backbone, BackboneConfig
from homolog.config import option


@dataclass(frozen=True)
class TinyUNetConfig(BackboneConfig):
    """Settings of the tiny U-Net."""

    channels: tuple[int, ...] = option(
        (32, 64, 128, 256), "channels of each stage, fine to coarse", minimum=4
    )


class TinyUNet(Backbone):
    """The contracting path of a U-Net: every stage halves the map.

    Source: Ronneberger et al., U-Net, MICCAI 2015; Cicek et al., 3D U-Net, MICCAI 2016.
    Differs from the paper: strided convolutions instead of pooling, group norm, and no
    map of full resolution; decoders are those of this project.
    """

    Config = TinyUNetConfig
    title = "Tiny U-Net encoder"
    SMALL = MappingProxyType({"channels": [16, 32, 64]})
    FINETUNE = MappingProxyType({"segment": {"cpu": {"learning_rate": 2e-3}}})

    def __init__(self, config: TinyUNetConfig) -> None:
        super().__init__(config)
        self.channels = config.channels
        sides = [2 ** (i + 1) for i in range(len(config.channels))]
        self.strides = tuple((n, n, n) for n in sides)
        self.size_divisor = self.free_divisor = self.strides[-1]
        widths = (config.in_channels, *config.channels)
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(narrow, wide, 3, stride=2, padding=1),
                nn.GroupNorm(4, wide),
                nn.GELU(),
                nn.Conv3d(wide, wide, 3, padding=1),
                nn.GroupNorm(4, wide),
                nn.GELU(),
            )
            for narrow, wide in itertools.pairwise(widths)
        )

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, C, D, H, W) -> one map per stage, (B, E_i, d_i, h_i, w_i)."""
        self.check_size((image.shape[2], image.shape[3], image.shape[4]))
        maps = []
        for stage in self.stages:
            image = stage(image)
            maps.append(image)
        return tuple(maps)
