"""The decoder of nnFormer: attention to the encoder's maps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar

from torch import Tensor, nn

from homolog.backbones.nnformer import VolumeBlock
from homolog.geometry.affine import Index
from homolog.nn.decoders import Decoder, crop_to, ratio, upsampling
from homolog.small_maps import guard_small_maps

# Channels of a head of attention, and cells per side of its volumes.
_PER_HEAD, _SIDE = 16, 4


# Paper: Alice nnFormer.
class NNFormerDecoder(Decoder):
    """nnFormer's: each raised map asks, and the encoder's map of its stride answers.

    From coarse to fine a transposed convolution raises the map; a block of attention
    inside local volumes takes queries from it, keys and values from the encoder's map
    (skip attention), and a block of shifted volumes follows. A last transposed
    convolution makes the features.

    Source: Zhou et al., "nnFormer: Volumetric Medical Image Segmentation via a 3D
    Transformer", IEEE TIP 2023, section 3.3.
    Differs from the paper: queries are projected, too; the image is a last skip.
    Answers at coarser resolutions are the task's (``deep_supervision``).

    Args:
        channels: Channels of each map, fine to coarse.
        strides: Voxels (z, y, x) per cell of each map.
        in_channels: Image channels.
        out_channels: Channels of the result.
        width: Channels of the features.
    """

    kind: ClassVar[str] = "nnformer"
    usual_width: ClassVar[int] = 32

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
        super().__init__(
            channels, strides, in_channels, out_channels,
            width=width, spatial_dims=spatial_dims,
        )  # fmt: skip
        pairs = list(zip(channels, strides, strict=True))
        self.ups, self.skips = nn.ModuleList(), nn.ModuleList()
        self.blocks = nn.ModuleList()
        for (fine, fine_stride), (coarse, coarse_stride) in zip(
            pairs[-2::-1], pairs[:0:-1], strict=True
        ):
            heads = math.gcd(fine, max(1, fine // _PER_HEAD))
            self.ups.append(
                upsampling(coarse, fine, ratio(fine_stride, coarse_stride), False)
            )
            self.skips.append(VolumeBlock(fine, heads, _SIDE, shifted=False))
            self.blocks.append(VolumeBlock(fine, heads, _SIDE, shifted=True))
        self.last_up = upsampling(channels[0], self.width, strides[0], False)
        self.stage_channels = (*channels[-2::-1], self.width)
        self.stem = nn.Conv3d(in_channels, self.width, 3, padding=1, bias=False)
        self.activation = nn.LeakyReLU(0.01, inplace=True)
        guard_small_maps(self)

    def stages(self, image: Tensor, maps: Sequence[Tensor]) -> Iterator[Tensor]:
        """See :class:`Decoder`."""
        current = maps[-1]
        for up, attend, block, skip in zip(
            self.ups, self.skips, self.blocks, maps[-2::-1], strict=True
        ):
            coarse = crop_to(up(current), skip).movedim(1, 4).contiguous()
            asked = attend(coarse, skip.movedim(1, 4).contiguous())
            current = block(asked).movedim(4, 1).contiguous()
            yield current
        fine = crop_to(self.last_up(current), image) + self.stem(image)
        yield self.activation(fine)
