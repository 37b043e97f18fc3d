"""The light decoder of a residual U-Net."""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.blocks.dynunet_block import UnetResBlock
from torch import Tensor, nn

from homolog.geometry.affine import Index
from homolog.nn.decoders import Decoder, crop_to, ratio
from homolog.small_maps import guard_small_maps

_NORM = ("instance", {"affine": True})


class ResidualDecoder(Decoder):
    """Upsample, add the encoder's map, one residual block; light at full resolution.

    At full resolution every convolution with a gradient costs as much as a whole stage
    below (measured on two cores: half the step of a common U-Net), so there are only a
    3^3 convolution of the image itself and a transposed convolution, added, and a
    pointwise one.

    Source: He et al., Deep Residual Learning, 2016; Isensee et al., nnU-Net Revisited,
    MICCAI 2024 (light decoder); the sum of skips as in LinkNet (Chaurasia and
    Culurciello, 2017).

    Args:
        channels: Channels of each map, fine to coarse.
        strides: Voxels (z, y, x) per cell of each map.
        in_channels: Image channels.
        out_channels: Channels of the result.
        width: Channels of the features.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[Index],
        in_channels: int,
        out_channels: int,
        *,
        width: int = 16,
    ) -> None:
        super().__init__(width, out_channels)
        pairs = list(zip(channels, strides, strict=True))
        self.ups, self.blocks = nn.ModuleList(), nn.ModuleList()
        for (fine, fine_stride), (coarse, coarse_stride) in zip(
            pairs[-2::-1], pairs[:0:-1], strict=True
        ):
            self.ups.append(_up(coarse, fine, ratio(fine_stride, coarse_stride)))
            self.blocks.append(UnetResBlock(3, fine, fine, 3, 1, _NORM))
        self.last_up = _up(channels[0], width, strides[0])
        self.stem = nn.Conv3d(in_channels, width, 3, padding=1, bias=False)
        self.mix = nn.Sequential(
            nn.InstanceNorm3d(width, affine=True),
            nn.LeakyReLU(0.01, inplace=True),
            nn.Conv3d(width, width, 1, bias=False),
            nn.InstanceNorm3d(width, affine=True),
            nn.LeakyReLU(0.01, inplace=True),
        )
        guard_small_maps(self)

    def features(self, image: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """See :class:`Decoder`."""
        current = maps[-1]
        for up, block, skip in zip(self.ups, self.blocks, maps[-2::-1], strict=True):
            current = block(crop_to(up(current), skip) + skip)
        mixed: Tensor = self.mix(
            crop_to(self.last_up(current), image) + self.stem(image)
        )
        return mixed


def _up(inside: int, outside: int, factors: Index) -> nn.Module:
    return nn.ConvTranspose3d(inside, outside, factors, factors, bias=False)
