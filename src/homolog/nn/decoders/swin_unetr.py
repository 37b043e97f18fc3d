"""The decoder of Swin UNETR, of MONAI's blocks: a doubling pyramid of five maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from homolog.geometry.affine import Index
from homolog.nn.decoders import Decoder, ratio
from homolog.nn.decoders.unetr import basic, raise_by, unetr_up
from homolog.small_maps import guard_small_maps


# Paper: Alice UNETR, Swin UNETR.
class SwinUnetrDecoder(Decoder):
    """The decoder of MONAI's SwinUNETR, for sizes that 32 does not divide, too.

    A residual block on the image and on each map but the last but one, which goes in as
    it is; then five times transposed convolution, concatenation, residual block. With
    sizes divisible by 32 the numbers are MONAI's; an odd map was padded by one before
    merging, so what comes up from it is cut by one. Modules carry MONAI's names, so a
    SwinUNETR state dict loads (``out.conv.conv`` is ``head``).

    In bfloat16 autocast on a CPU the original trains on wrong, now and then non-finite
    gradients: see homolog.small_maps.

    Source: Hatamizadeh et al., Swin UNETR, 2022; MONAI 1.6.1,
    networks/nets/swin_unetr.py.

    Args:
        channels: Channels of the five maps, doubling, fine to coarse.
        strides: Voxels (z, y, x) per cell of each map, doubling.
        in_channels: Image channels.
        out_channels: Channels of the result.
        width: Channels of the features; None takes the channels of the finest map, and
            nothing else is possible with MONAI's blocks where weights are to be loaded.
    """

    kind: ClassVar[str] = "swin_unetr"
    # of the blocks on the maps, which files of encoders alone (VoCo) have, too
    mark: ClassVar[str] = "encoder10.layer.conv1.conv.weight"

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
        _check_pyramid(channels, strides)
        super().__init__(
            channels, strides, in_channels, out_channels,
            width=width, spatial_dims=spatial_dims,
        )  # fmt: skip
        c = list(channels)
        self.encoder1 = basic(in_channels, self.width)
        self.encoder2 = basic(c[0], c[0])
        self.encoder3 = basic(c[1], c[1])
        self.encoder4 = basic(c[2], c[2])
        self.encoder10 = basic(c[4], c[4])
        self.decoder5 = unetr_up(c[4], c[3], ratio(strides[3], strides[4]))
        self.decoder4 = unetr_up(c[3], c[2], ratio(strides[2], strides[3]))
        self.decoder3 = unetr_up(c[2], c[1], ratio(strides[1], strides[2]))
        self.decoder2 = unetr_up(c[1], c[0], ratio(strides[0], strides[1]))
        self.decoder1 = unetr_up(c[0], self.width, strides[0])
        self.stage_channels = (*c[3::-1], self.width)
        guard_small_maps(self)

    def stages(self, image: Tensor, maps: Sequence[Tensor]) -> Iterator[Tensor]:
        """See :class:`Decoder`."""
        current = self.encoder10(maps[4])
        yield (current := raise_by(self.decoder5, current, maps[3]))
        yield (current := raise_by(self.decoder4, current, self.encoder4(maps[2])))
        yield (current := raise_by(self.decoder3, current, self.encoder3(maps[1])))
        yield (current := raise_by(self.decoder2, current, self.encoder2(maps[0])))
        yield raise_by(self.decoder1, current, self.encoder1(image))

    @classmethod
    def translated(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """MONAI's names: ``out.conv.conv`` is the head."""
        return {
            key.replace("out.conv.conv.", "head."): value
            for key, value in state.items()
            if key.startswith(_PARTS)
        }


_PARTS = (
    *(f"encoder{i}." for i in (1, 2, 3, 4, 10)),
    *(f"decoder{i}." for i in range(1, 6)),
    "out.conv.conv.",
)


def _check_pyramid(channels: Sequence[int], strides: Sequence[Index]) -> None:
    if len(channels) != 5:
        raise ValueError(
            f"the swin_unetr decoder takes five maps, got {len(channels)} with strides "
            f"{tuple(strides)}; the residual decoder takes any pyramid."
        )
