"""The decoders of Swin UNETR and UNETR, of MONAI's blocks."""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.blocks import UnetrBasicBlock, UnetrPrUpBlock, UnetrUpBlock
from torch import Tensor, nn

from homolog.geometry.affine import Index
from homolog.nn.decoders import Decoder, joined, ratio
from homolog.small_maps import guard_small_maps


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

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[Index],
        in_channels: int,
        out_channels: int,
        *,
        width: int | None = None,
    ) -> None:
        _check_pyramid(channels, strides)
        super().__init__(width or channels[0], out_channels)
        c = list(channels)
        self.encoder1 = _basic(in_channels, self.width)
        self.encoder2 = _basic(c[0], c[0])
        self.encoder3 = _basic(c[1], c[1])
        self.encoder4 = _basic(c[2], c[2])
        self.encoder10 = _basic(c[4], c[4])
        self.decoder5 = _up(c[4], c[3], ratio(strides[3], strides[4]))
        self.decoder4 = _up(c[3], c[2], ratio(strides[2], strides[3]))
        self.decoder3 = _up(c[2], c[1], ratio(strides[1], strides[2]))
        self.decoder2 = _up(c[1], c[0], ratio(strides[0], strides[1]))
        self.decoder1 = _up(c[0], self.width, strides[0])
        guard_small_maps(self)

    def features(self, image: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """See :class:`Decoder`."""
        current = self.encoder10(maps[4])
        current = _raise(self.decoder5, current, maps[3])
        current = _raise(self.decoder4, current, self.encoder4(maps[2]))
        current = _raise(self.decoder3, current, self.encoder3(maps[1]))
        current = _raise(self.decoder2, current, self.encoder2(maps[0]))
        return _raise(self.decoder1, current, self.encoder1(image))


class UnetrDecoder(Decoder):
    """The decoder of UNETR: maps of one stride, each raised to another scale.

    The deepest map is the bottom. The others, shallow to deep, are raised to strides 2,
    4, 8 ... by transposed convolutions, and the image is the finest skip. The stride
    must be a power of two, the same along all axes, and there are log2(stride) - 1
    skips: three for stride 16, two for stride 8. More maps than that are thinned out
    evenly.

    Source: Hatamizadeh et al., UNETR, WACV 2022; MONAI 1.6.1, networks/nets/unetr.py.

    Args:
        channels: Channels of each map.
        strides: The one stride (z, y, x), once per map.
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
        levels = _levels(strides)
        super().__init__(width, out_channels)
        self.picked = _pick(len(channels) - 1, levels - 1)
        self.stem = _basic(in_channels, width)
        self.skips, self.ups = nn.ModuleList(), nn.ModuleList()
        inside = channels[-1]
        for level in range(levels - 1, 0, -1):  # stride 2 ** level, coarse to fine
            outside = width * 2**level
            source = channels[self.picked[level - 1]]
            self.skips.append(_project(source, outside, levels - level - 1))
            self.ups.append(_up(inside, outside, (2, 2, 2)))
            inside = outside
        self.last = _up(inside, width, (2, 2, 2))
        guard_small_maps(self)

    def features(self, image: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """See :class:`Decoder`."""
        current = maps[-1]
        deep_first = [maps[i] for i in reversed(self.picked)]
        for up, project, skip in zip(self.ups, self.skips, deep_first, strict=True):
            current = _raise(up, current, project(skip))
        return _raise(self.last, current, self.stem(image))


def _raise(block: nn.Module, coarse: Tensor, skip: Tensor) -> Tensor:
    """MONAI's UnetrUpBlock, cutting what padding added before concatenation."""
    both = joined(block.transp_conv(coarse), skip)  # type: ignore[operator]
    result: Tensor = block.conv_block(both)  # type: ignore[operator]
    return result


def raising(inside: int, outside: int, doublings: int) -> nn.Module:
    """UNETR's projection: a map raised by 2 ** doublings (at least 1), guarded."""
    block = _project(inside, outside, doublings - 1)
    guard_small_maps(block)
    return block


def _basic(inside: int, outside: int) -> nn.Module:
    return UnetrBasicBlock(3, inside, outside, 3, 1, "instance", res_block=True)  # type: ignore[no-any-return]


def _up(inside: int, outside: int, factors: Index) -> nn.Module:
    return UnetrUpBlock(3, inside, outside, 3, factors, "instance", res_block=True)  # type: ignore[no-any-return]


def _project(inside: int, outside: int, extra: int) -> nn.Module:
    """Raise a map by 2 ** (1 + extra)."""
    return UnetrPrUpBlock(  # type: ignore[no-any-return]
        spatial_dims=3,
        in_channels=inside,
        out_channels=outside,
        num_layer=extra,
        kernel_size=3,
        stride=1,
        upsample_kernel_size=2,
        norm_name="instance",
        conv_block=True,
        res_block=True,
    )


def _check_pyramid(channels: Sequence[int], strides: Sequence[Index]) -> None:
    if len(channels) != 5:
        raise ValueError(
            f"the swin_unetr decoder takes five maps, got {len(channels)} with strides "
            f"{tuple(strides)}; the residual decoder takes any pyramid."
        )


def _levels(strides: Sequence[Index]) -> int:
    """log2 of the one stride."""
    found = {tuple(s) for s in strides}
    sides = set(next(iter(found)))
    side = sides.pop()
    if len(found) > 1 or sides or side < 4 or side & (side - 1):
        raise ValueError(
            "the unetr decoder takes maps of one stride, a power of two of at least 4, "
            f"the same along all axes; got {tuple(strides)}."
        )
    return side.bit_length() - 1


def _pick(available: int, wanted: int) -> list[int]:
    """Which of the shallower maps become skips, shallow to deep, spread evenly."""
    if available < wanted:
        raise ValueError(
            f"the unetr decoder needs {wanted + 1} maps for this stride, "
            f"got {available + 1}."
        )
    return [round((i + 1) * available / wanted) - 1 for i in range(wanted)]
