"""The decoder of nnU-Net's residual encoder networks: maps up to full resolution."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from homolog.backbones.resenc import Convolution, plain_names
from homolog.geometry.affine import Index
from homolog.nn.decoders import Decoder, check_full_map, crop_to, ratio
from homolog.small_maps import guard_small_maps


class NNUNetDecoder(Decoder):
    """nnU-Net's: a transposed convolution, the encoder's map beside it, a convolution.

    The finest map must have the resolution of the image (``full_map`` of the network
    ``resenc``): the image itself is no input. Modules carry nnU-Net's names, so that
    weights load; of its ``seg_layers`` the finest one is the head, the others serve
    deep supervision. A convolution's kernel is 1 along an axis that is not halved
    between this map and the next coarser one, nor was before.

    Source: Isensee et al., nnU-Net Revisited, MICCAI 2024; dynamic-network-
    architectures 0.4.4, building_blocks/unet_decoder.py.

    Args:
        channels: Channels of each map, fine to coarse.
        strides: Voxels (z, y, x) per cell of each map; the first (1, 1, 1).
        in_channels: Image channels; not used.
        out_channels: Channels of the result.
        width: Channels of the features; they are those of the finest map.
    """

    kind: ClassVar[str] = "nnunet"
    mark: ClassVar[str] = "decoder.transpconvs.0.weight"

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[Index],
        in_channels: int,
        out_channels: int,
        *,
        width: int | None = None,
        spatial_dims: int = 3,
    ) -> None:
        check_full_map(self.kind, channels, strides, width)
        super().__init__(
            channels, strides, in_channels, out_channels,
            width=width, spatial_dims=spatial_dims,
        )  # fmt: skip
        self.transpconvs, self.mixes = nn.ModuleList(), nn.ModuleList()
        pairs = list(zip(channels, strides, strict=True))
        for (fine, fine_stride), (coarse, coarse_stride) in zip(
            pairs[-2::-1], pairs[:0:-1], strict=True
        ):
            factors = ratio(fine_stride, coarse_stride)
            kernel = cast("Index", tuple(3 if n > 1 else 1 for n in coarse_stride))
            self.transpconvs.append(
                nn.ConvTranspose3d(coarse, fine, factors, factors, bias=True)
            )
            self.mixes.append(_Stage(2 * fine, fine, kernel))
        self.stage_channels = tuple(channels[-2::-1])
        for part in self.modules():
            if isinstance(part, nn.Conv3d | nn.ConvTranspose3d):
                nn.init.kaiming_normal_(part.weight, a=1e-2)
                nn.init.zeros_(cast("Tensor", part.bias))
        guard_small_maps(self)

    def stages(self, image: Tensor, maps: Sequence[Tensor]) -> Iterator[Tensor]:
        """See :class:`Decoder`."""
        current = maps[-1]
        for raise_by, mix, skip in zip(
            self.transpconvs, self.mixes, maps[-2::-1], strict=True
        ):
            current = mix(torch.cat([crop_to(raise_by(current), skip), skip], dim=1))
            yield current

    @classmethod
    def translated(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """nnU-Net's names: ``stages`` are ``mixes``, the last ``seg_layers`` head."""
        inside = {
            key.removeprefix("decoder."): value
            for key, value in plain_names(state).items()
            if key.startswith("decoder.") and not key.startswith("decoder.encoder.")
        }
        last = max(int(k.split(".")[1]) for k in inside if k.startswith("transpconvs."))
        found = {}
        for key, value in inside.items():
            part, _, rest = key.partition(".")
            number, _, name = rest.partition(".")
            if part == "seg_layers":
                key = f"head.{name}" if int(number) == last else f"{key}.head.{name}"
            elif part == "stages":
                key = f"mixes.{rest}"
            found[key] = value
        return found


class _Stage(nn.Module):
    def __init__(self, inside: int, outside: int, kernel: Index) -> None:
        super().__init__()
        one = (1, 1, 1)
        self.convs = nn.Sequential(Convolution(inside, outside, kernel, one, act=True))

    def forward(self, both: Tensor) -> Tensor:
        found: Tensor = self.convs(both)
        return found
