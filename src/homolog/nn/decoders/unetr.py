"""The decoder of UNETR, of MONAI's blocks: maps of one stride."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import torch
from monai.networks.blocks import UnetrBasicBlock, UnetrPrUpBlock, UnetrUpBlock
from torch import Tensor, nn

from homolog.geometry.affine import Index
from homolog.nn.decoders import Decoder, crop_to
from homolog.small_maps import guard_small_maps


# Paper: Alice UNETR, Swin UNETR.
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

    kind: ClassVar[str] = "unetr"
    mark: ClassVar[str] = "decoder5.transp_conv.conv.weight"
    usual_width: ClassVar[int] = 16

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
        levels = _levels(strides)
        super().__init__(
            channels, strides, in_channels, out_channels,
            width=width, spatial_dims=spatial_dims,
        )  # fmt: skip
        self.picked = _pick(len(channels) - 1, levels - 1)
        self.stem = basic(in_channels, self.width)
        self.skips, self.ups = nn.ModuleList(), nn.ModuleList()
        inside = channels[-1]
        for level in range(levels - 1, 0, -1):  # stride 2 ** level, coarse to fine
            outside = self.width * 2**level
            source = channels[self.picked[level - 1]]
            self.skips.append(_project(source, outside, levels - level - 1))
            self.ups.append(unetr_up(inside, outside, (2, 2, 2)))
            inside = outside
        self.last = unetr_up(inside, self.width, (2, 2, 2))
        coarse = (self.width * 2**level for level in range(levels - 1, 0, -1))
        self.stage_channels = (*coarse, self.width)
        guard_small_maps(self)

    def stages(self, image: Tensor, maps: Sequence[Tensor]) -> Iterator[Tensor]:
        """See :class:`Decoder`."""
        current = maps[-1]
        deep_first = [maps[i] for i in reversed(self.picked)]
        for up, project, skip in zip(self.ups, self.skips, deep_first, strict=True):
            current = raise_by(up, current, project(skip))
            yield current
        yield raise_by(self.last, current, self.stem(image))

    @classmethod
    def translated(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """MONAI's UNETR, whose patches have 16 voxels a side: three skips."""
        return {
            new + key.removeprefix(old): value
            for key, value in state.items()
            for old, new in _MONAI.items()
            if key.startswith(old)
        }


_MONAI = {
    "encoder1.": "stem.", "encoder2.": "skips.2.", "encoder3.": "skips.1.",
    "encoder4.": "skips.0.", "decoder5.": "ups.0.", "decoder4.": "ups.1.",
    "decoder3.": "ups.2.", "decoder2.": "last.", "out.conv.conv.": "head.",
}  # fmt: skip


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


# Its blocks, of MONAI; Swin UNETR is made of them, too.


def raise_by(block: nn.Module, coarse: Tensor, skip: Tensor) -> Tensor:
    """MONAI's UnetrUpBlock, cutting what padding added before concatenation."""
    raised = block.transp_conv(coarse)  # type: ignore[operator]
    both = torch.cat([crop_to(raised, skip), skip], dim=1)
    result: Tensor = block.conv_block(both)  # type: ignore[operator]
    return result


def raising(inside: int, outside: int, doublings: int) -> nn.Module:
    """UNETR's projection: a map raised by 2 ** doublings (at least 1), guarded."""
    block = _project(inside, outside, doublings - 1)
    guard_small_maps(block)
    return block


def basic(inside: int, outside: int) -> nn.Module:
    """A residual block of two convolutions."""
    return UnetrBasicBlock(3, inside, outside, 3, 1, "instance", res_block=True)  # type: ignore[no-any-return]


def unetr_up(inside: int, outside: int, factors: Index) -> nn.Module:
    """Transposed convolution, concatenation with a skip, residual block."""
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
