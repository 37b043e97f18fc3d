"""The two branches of Alice: encoder, decoder and head; encoder and head."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from homolog.backbones._base import Backbone
from homolog.geometry.affine import Index
from homolog.methods._alice_settings import AliceConfig
from homolog.nn.heads import (
    BottleneckHead,
    DenseDecoder,
    Projector,
    TokenDecoder,
    tokens_of,
)
from homolog.nn.masking import to_voxels, visible_tokens


class Seen(NamedTuple):
    """What the online branch makes of masked crops.

    Attributes:
        visible: (B, n, E) the encoder's visible tokens.
        tokens: (B, N, H) projected tokens of the decoder, all patches.
        pooled: (B, H) their mean.
        asked: (B, H) what is compared with the other patient: the mean, or the
            predictor's reading of it.
        patches: (B, N, P) predicted voxels.
    """

    visible: Tensor
    tokens: Tensor
    pooled: Tensor
    asked: Tensor
    patches: Tensor


class Online(nn.Module):
    """Encoder of visible tokens, decoder of all tokens, head phi.

    The target's head psi is the moving average of phi, so both read the same number of
    features: a decoder of another width is lifted to the encoder's first.
    """

    def __init__(
        self, backbone: Backbone, config: AliceConfig, map_index: int, grid: Index
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.map_index = map_index
        self.grid = grid
        self.patch = backbone.strides[map_index]
        self.mask_ratio = config.mask_ratio
        width = backbone.channels[map_index]
        inside = config.decoder_width or width
        channels: int = backbone.config.in_channels
        voxels = channels * math.prod(self.patch)
        if backbone.drops_tokens:
            self.decoder: nn.Module = TokenDecoder(
                width,
                grid=grid,
                hidden=inside,
                layers=config.decoder_layers,
                out_features=voxels,
            )
        else:
            self.mask_value = nn.Parameter(torch.zeros(1, channels, 1, 1, 1))
            self.decoder = DenseDecoder(
                list(backbone.channels[map_index:]), hidden=inside, out_features=voxels
            )
        self.lift = nn.Linear(inside, width) if inside != width else nn.Identity()
        self.head = BottleneckHead(
            width,
            hidden=config.head_hidden,
            bottleneck=config.head_bottleneck,
            out_features=config.head_dim,
        )
        self.predictor: nn.Module = nn.Identity()
        if config.predictor:
            self.predictor = Projector(
                config.head_dim,
                config.head_dim,
                hidden=config.head_hidden,
                normalise=False,
            )

    def forward(self, image: Tensor, mask: Tensor) -> Seen:
        """Crops (B, C, D, H, W), hidden patches (B, N) bool."""
        if self.backbone.drops_tokens:
            keep = visible_tokens(mask, self.mask_ratio)
            visible: Tensor = self.backbone.forward_visible(image, keep)  # type: ignore[operator]
            features = self.decoder.features(visible, keep)  # type: ignore[operator]
            patches = self.decoder.output(features)  # type: ignore[operator]
        else:
            blocks = to_voxels(mask, self.grid, self.patch)
            hidden = torch.where(blocks, self.mask_value.to(image.dtype), image)
            maps = self.backbone.maps(hidden)[self.map_index :]
            cells = tokens_of(maps[0])
            keep = visible_tokens(mask, self.mask_ratio)
            visible = cells.gather(1, keep[..., None].expand(-1, -1, cells.shape[-1]))
            decoded = self.decoder.features(maps)  # type: ignore[operator]
            patches = tokens_of(self.decoder.output(decoded))  # type: ignore[operator]
            features = tokens_of(decoded)
        tokens = self.head(self.lift(features))
        pooled = tokens.mean(1)
        return Seen(visible, tokens, pooled, self.predictor(pooled), patches)


class Target(nn.Module):
    """Encoder and head psi over whole crops, (B, C, D, H, W) -> (B, N, H).

    Made of the online branch's own modules: the teacher copies it, and is moved towards
    it.
    """

    def __init__(self, online: Online) -> None:
        super().__init__()
        self.backbone = online.backbone
        self.head = online.head
        self.map_index = online.map_index

    def forward(self, image: Tensor) -> Tensor:
        """Whole crops -> projected tokens."""
        maps = self.backbone.maps(image)
        tokens: Tensor = self.head(tokens_of(maps[self.map_index]))
        return tokens
