"""Decoders: feature maps of a backbone and the image -> a map at full resolution."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from homolog.geometry.affine import Index

KINDS = ("auto", "residual", "swin_unetr", "unetr")


class Decoder(nn.Module, ABC):
    """The expanding half of a segmentation network.

    ``forward`` is ``head(features)``: sliding windows may blend the few features, which
    do not grow with the number of classes, and apply the head once.

    Args:
        width: Channels F of the features.
        out_channels: Channels of the result (classes).
        spatial_dims: 2: images and maps have no depth axis.
    """

    def __init__(self, width: int, out_channels: int, spatial_dims: int = 3) -> None:
        super().__init__()
        self.width = width
        head = nn.Conv3d if spatial_dims == 3 else nn.Conv2d
        self.head = head(width, out_channels, 1)

    @abstractmethod
    def features(self, image: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Features at full resolution.

        Args:
            image: What the backbone saw, (B, C, D, H, W).
            maps: What the backbone returned, fine to coarse, (B, E_i, d_i, h_i, w_i);
                a side that the stride does not divide is rounded up.

        Returns:
            (B, F, D, H, W).
        """

    def forward(self, image: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """(B, C, D, H, W) and the maps -> (B, out_channels, D, H, W)."""
        result: Tensor = self.head(self.features(image, maps))
        return result


def build_decoder(
    channels: Sequence[int],
    strides: Sequence[Index],
    in_channels: int,
    out_channels: int,
    kind: str = "auto",
    *,
    width: int | None = None,
    spatial_dims: int = 3,
) -> Decoder:
    """A decoder for a backbone, told by numbers only.

    Args:
        channels: Channels of each map, fine to coarse.
        strides: Voxels (z, y, x) per cell of each map.
        in_channels: Image channels.
        out_channels: Channels of the result.
        kind: ``residual`` (light, for convolutional pyramids), ``swin_unetr`` (as in
            MONAI, for five maps of stride 2, 4, 8, 16, 32), ``unetr`` (all maps of one
            stride), or ``auto``: ``unetr`` where all strides agree, ``swin_unetr``
            where the channels double from stride 2 to stride 32, else ``residual``.
        width: Channels F of the features; None takes the kind's own.
        spatial_dims: 2: a decoder of (B, E, h, w); of the strides y and x count.

    Raises:
        ValueError: Unknown kind, or maps that the kind cannot decode.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown decoder {kind!r}; known: {', '.join(KINDS)}.")
    if not channels or len(channels) != len(strides):
        raise ValueError(
            f"a decoder needs as many channels as strides, got {tuple(channels)} "
            f"and {tuple(strides)}."
        )
    name = _choose(channels, strides) if kind == "auto" else kind
    if spatial_dims == 2 and name != "residual":
        raise ValueError(
            f"only the residual decoder takes 2D maps, not {name} (strides "
            f"{tuple(strides)})."
        )
    if name == "residual":
        from homolog.nn.decoder_residual import ResidualDecoder

        return ResidualDecoder(
            channels, strides, in_channels, out_channels,
            width=width or 16, spatial_dims=spatial_dims,
        )  # fmt: skip
    if name == "swin_unetr":
        from homolog.nn.decoder_unetr import SwinUnetrDecoder

        return SwinUnetrDecoder(
            channels, strides, in_channels, out_channels, width=width
        )
    from homolog.nn.decoder_unetr import UnetrDecoder

    return UnetrDecoder(channels, strides, in_channels, out_channels, width=width or 16)


def _choose(channels: Sequence[int], strides: Sequence[Index]) -> str:
    if len(strides) > 1 and len({tuple(s) for s in strides}) == 1:
        return "unetr"
    doubling = all(b == 2 * a for a, b in itertools.pairwise(channels))
    halving = all(tuple(s) == (2 ** (i + 1),) * 3 for i, s in enumerate(strides))
    return "swin_unetr" if doubling and halving and len(channels) == 5 else "residual"


def crop_to(coarse: Tensor, fine: Tensor) -> Tensor:
    """Cut an upsampled map (B, E, ...) to the size of ``fine``.

    A map whose size the stride does not divide was padded at its far ends, so there it
    is cut.
    """
    for axis, size in enumerate(fine.shape[2:], start=2):
        coarse = coarse.narrow(axis, 0, size)
    return coarse


def ratio(fine: Index, coarse: Index) -> Index:
    """Upsampling factors (z, y, x) from one stride to a finer one.

    Raises:
        ValueError: The finer stride does not divide the coarser one.
    """
    if any(c % f for f, c in zip(fine, coarse, strict=True)):
        raise ValueError(
            f"a map of stride {tuple(coarse)} cannot be upsampled to {tuple(fine)}: "
            "strides must divide one another, fine to coarse."
        )
    d, h, w = (c // f for f, c in zip(fine, coarse, strict=True))
    return d, h, w


def joined(up: Tensor, skip: Tensor) -> Tensor:
    """Channels of both, (B, E + S, ...), the first cut to the size of the second."""
    return torch.cat([crop_to(up, skip), skip], dim=1)
