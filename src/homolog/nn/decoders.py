"""Decoders: feature maps of a backbone and the image -> a map at full resolution."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from monai.networks.blocks import UnetrBasicBlock, UnetrPrUpBlock, UnetrUpBlock
from monai.networks.blocks.dynunet_block import UnetResBlock
from torch import Tensor, nn
from torch.nn.functional import avg_pool3d

from homolog.backbones.base import Backbone
from homolog.backbones.nnformer import VolumeBlock
from homolog.geometry.affine import Index
from homolog.small_maps import guard_small_maps

KINDS = ("auto", "residual", "swin_unetr", "unetr", "nnformer")


class Decoder(nn.Module, ABC):
    """The expanding half of a segmentation network.

    ``forward`` is ``head(features)``: sliding windows may blend the few features, which
    do not grow with the number of classes, and apply the head once.

    Args:
        width: Channels F of the features.
        out_channels: Channels of the result (classes).
        spatial_dims: 2: images and maps have no depth axis.

    Attributes:
        kind: Its name among ``KINDS``.
        stage_channels: Channels of what ``stages`` makes.
    """

    kind: ClassVar[str] = ""
    stage_channels: tuple[int, ...]

    def __init__(self, width: int, out_channels: int, spatial_dims: int = 3) -> None:
        super().__init__()
        self.width = width
        self.spatial_dims = spatial_dims
        head = nn.Conv3d if spatial_dims == 3 else nn.Conv2d
        self.head: nn.Module = head(width, out_channels, 1)

    @abstractmethod
    def stages(self, image: Tensor, maps: Sequence[Tensor]) -> Iterator[Tensor]:
        """Features from the coarsest resolution to the full one, one after another.

        Args:
            image: What the backbone saw, (B, C, D, H, W).
            maps: What the backbone returned, fine to coarse, (B, E_i, d_i, h_i, w_i);
                a side that the stride does not divide is rounded up.

        Yields:
            (B, F_i, d_i, h_i, w_i); the last (B, F, D, H, W).
        """

    def features(self, image: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Features at full resolution, the last of ``stages``: (B, F, D, H, W)."""
        for found in self.stages(image, maps):
            last = found
        return last

    def forward(self, image: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """(B, C, D, H, W) and the maps -> (B, out_channels, D, H, W)."""
        result: Tensor = self.head(self.features(image, maps))
        return result

    def dense(self, image: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """``features`` with a depth axis whatever ``spatial_dims`` is.

        Args:
            image: (B, C, D, H, W); D must be 1 for a 2D decoder.
            maps: As of ``Backbone.maps``, (B, E_i, d_i, h_i, w_i).

        Returns:
            (B, F, D, H, W).
        """
        if self.spatial_dims == 3:
            return self.features(image, maps)
        flat = self.features(image.squeeze(2), [m.squeeze(2) for m in maps])
        return flat.unsqueeze(2)

    def cells(self, image: Tensor, maps: Sequence[Tensor], stride: Index) -> Tensor:
        """Means of ``dense`` features over cells of ``stride`` voxels (z, y, x).

        Returns:
            (B, F, D / stride_z, H / stride_y, W / stride_x).
        """
        found = self.dense(image, maps)
        return found if stride == (1, 1, 1) else avg_pool3d(found, stride)

    def dense_result(self, features: Tensor) -> Tensor:
        """``head`` of what ``dense`` returned: (B, F, D, H, W) -> (B, K, D, H, W)."""
        if self.spatial_dims == 3:
            result: Tensor = self.head(features)
            return result
        flat: Tensor = self.head(features.squeeze(2))
        return flat.unsqueeze(2)


def suited_decoder(
    backbone: Backbone, out_channels: int, in_channels: int | None = None
) -> Decoder:
    """The decoder of a backbone's maps: its weights fit wherever it is made for it.

    Args:
        backbone: Tells its maps, and the kind that suits them. Segmentation stands on
            its ``planar()`` network.
        out_channels: Channels of the result.
        in_channels: Image channels; None takes the backbone's.
    """
    return build_decoder(
        backbone.channels,
        backbone.strides,
        backbone.config.in_channels if in_channels is None else in_channels,
        out_channels,
        backbone.decoder,
        spatial_dims=backbone.spatial_dims,
    )


def features_decoder(backbone: Backbone) -> Decoder:
    """A decoder of a backbone's maps that is read before its head, which it has not."""
    made = suited_decoder(backbone, 1)
    made.head = nn.Identity()
    return made


def fine_cell(backbone: Backbone, stride: int) -> Index:
    """Voxels (z, y, x) of a cell ``stride`` wide in plane, as the backbone's maps go.

    An axis that the backbone does not halve so far is left as it is.
    """
    for steps in backbone.strides:
        if steps[2] == stride:
            return steps
    z, y, x = (min(stride, n) for n in backbone.strides[-1])
    return (z, y, x) if stride > 1 else (1, 1, 1)


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
            stride), ``nnformer`` (attention to a pyramid's maps), or ``auto``:
            ``unetr`` where all strides agree, ``swin_unetr`` where the channels double
            from stride 2 to stride 32, else ``residual``.
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
        return ResidualDecoder(
            channels, strides, in_channels, out_channels,
            width=width or 16, spatial_dims=spatial_dims,
        )  # fmt: skip
    if name == "swin_unetr":
        return SwinUnetrDecoder(
            channels, strides, in_channels, out_channels, width=width
        )
    if name == "nnformer":
        return NNFormerDecoder(
            channels, strides, in_channels, out_channels, width=width or 32
        )
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


# Channels of a head of attention, and cells per side of its volumes.
_PER_HEAD, _SIDE = 16, 4


# The light decoder of a residual U-Net.


_NORM = ("instance", {"affine": True})


class ResidualDecoder(Decoder):
    """Upsample, add the encoder's map, one residual block; light at full resolution.

    At full resolution a convolution with a gradient for its input costs as much as a
    whole stage below (measured on two cores: half the step of a common U-Net), so there
    the features are only a transposed convolution of the finest map plus a 3^3
    convolution of the image itself, rectified.

    Nothing is normalised there, either: unit features under a linear head cannot make
    sure answers for small structures but by slow growth of the head. On hippocampi with
    AdamW at 1e-3, 96 steps brought the loss to 0.79 with two norms, 0.48 with none.

    Source: He et al., Deep Residual Learning, 2016; Isensee et al., nnU-Net Revisited,
    MICCAI 2024 (light decoder); the sum of skips as in LinkNet (Chaurasia and
    Culurciello, 2017).

    Args:
        channels: Channels of each map, fine to coarse.
        strides: Voxels (z, y, x) per cell of each map.
        in_channels: Image channels.
        out_channels: Channels of the result.
        width: Channels of the features.
        spatial_dims: 2: all convolutions are 2D; of the strides y and x count.
    """

    kind: ClassVar[str] = "residual"

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[Index],
        in_channels: int,
        out_channels: int,
        *,
        width: int = 16,
        spatial_dims: int = 3,
    ) -> None:
        super().__init__(width, out_channels, spatial_dims)
        flat = spatial_dims == 2
        pairs = list(zip(channels, strides, strict=True))
        self.ups, self.blocks = nn.ModuleList(), nn.ModuleList()
        for (fine, fine_stride), (coarse, coarse_stride) in zip(
            pairs[-2::-1], pairs[:0:-1], strict=True
        ):
            self.ups.append(_up(coarse, fine, ratio(fine_stride, coarse_stride), flat))
            self.blocks.append(UnetResBlock(spatial_dims, fine, fine, 3, 1, _NORM))
        self.last_up = _up(channels[0], width, strides[0], flat)
        self.stage_channels = (*channels[-2::-1], width)
        stem = nn.Conv2d if flat else nn.Conv3d
        self.stem = stem(in_channels, width, 3, padding=1, bias=False)
        self.activation = nn.LeakyReLU(0.01, inplace=True)
        guard_small_maps(self)

    def stages(self, image: Tensor, maps: Sequence[Tensor]) -> Iterator[Tensor]:
        """See :class:`Decoder`."""
        current = maps[-1]
        for up, block, skip in zip(self.ups, self.blocks, maps[-2::-1], strict=True):
            current = block(crop_to(up(current), skip) + skip)
            yield current
        fine = crop_to(self.last_up(current), image) + self.stem(image)
        yield self.activation(fine)


def _up(inside: int, outside: int, factors: Index, flat: bool) -> nn.Module:
    """Transposed convolution without overlap: each cell out sees one cell in."""
    up: nn.Module
    if flat:
        _, y, x = factors
        up = nn.ConvTranspose2d(inside, outside, (y, x), (y, x), bias=False)
    else:
        up = nn.ConvTranspose3d(inside, outside, factors, factors, bias=False)
    # torch's default takes the kernel's volume for its reach and starts too small
    nn.init.normal_(up.weight, std=math.sqrt(2 / inside))
    return up


# The decoders of Swin UNETR and UNETR, of MONAI's blocks.


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
        self.decoder5 = _unetr_up(c[4], c[3], ratio(strides[3], strides[4]))
        self.decoder4 = _unetr_up(c[3], c[2], ratio(strides[2], strides[3]))
        self.decoder3 = _unetr_up(c[2], c[1], ratio(strides[1], strides[2]))
        self.decoder2 = _unetr_up(c[1], c[0], ratio(strides[0], strides[1]))
        self.decoder1 = _unetr_up(c[0], self.width, strides[0])
        self.stage_channels = (*c[3::-1], self.width)
        guard_small_maps(self)

    def stages(self, image: Tensor, maps: Sequence[Tensor]) -> Iterator[Tensor]:
        """See :class:`Decoder`."""
        current = self.encoder10(maps[4])
        yield (current := _raise(self.decoder5, current, maps[3]))
        yield (current := _raise(self.decoder4, current, self.encoder4(maps[2])))
        yield (current := _raise(self.decoder3, current, self.encoder3(maps[1])))
        yield (current := _raise(self.decoder2, current, self.encoder2(maps[0])))
        yield _raise(self.decoder1, current, self.encoder1(image))


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
            self.ups.append(_unetr_up(inside, outside, (2, 2, 2)))
            inside = outside
        self.last = _unetr_up(inside, width, (2, 2, 2))
        coarse = (width * 2**level for level in range(levels - 1, 0, -1))
        self.stage_channels = (*coarse, width)
        guard_small_maps(self)

    def stages(self, image: Tensor, maps: Sequence[Tensor]) -> Iterator[Tensor]:
        """See :class:`Decoder`."""
        current = maps[-1]
        deep_first = [maps[i] for i in reversed(self.picked)]
        for up, project, skip in zip(self.ups, self.skips, deep_first, strict=True):
            current = _raise(up, current, project(skip))
            yield current
        yield _raise(self.last, current, self.stem(image))


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

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[Index],
        in_channels: int,
        out_channels: int,
        *,
        width: int = 32,
    ) -> None:
        super().__init__(width, out_channels)
        pairs = list(zip(channels, strides, strict=True))
        self.ups, self.skips = nn.ModuleList(), nn.ModuleList()
        self.blocks = nn.ModuleList()
        for (fine, fine_stride), (coarse, coarse_stride) in zip(
            pairs[-2::-1], pairs[:0:-1], strict=True
        ):
            heads = math.gcd(fine, max(1, fine // _PER_HEAD))
            self.ups.append(_up(coarse, fine, ratio(fine_stride, coarse_stride), False))
            self.skips.append(VolumeBlock(fine, heads, _SIDE, shifted=False))
            self.blocks.append(VolumeBlock(fine, heads, _SIDE, shifted=True))
        self.last_up = _up(channels[0], width, strides[0], False)
        self.stage_channels = (*channels[-2::-1], width)
        self.stem = nn.Conv3d(in_channels, width, 3, padding=1, bias=False)
        self.activation = nn.LeakyReLU(0.01, inplace=True)
        guard_small_maps(self)

    def stages(self, image: Tensor, maps: Sequence[Tensor]) -> Iterator[Tensor]:
        """See :class:`Decoder`."""
        current = maps[-1]
        for up, attend, block, skip in zip(
            self.ups, self.skips, self.blocks, maps[-2::-1], strict=True
        ):
            raised = crop_to(up(current), skip).movedim(1, -1).contiguous()
            asked = attend(raised, skip.movedim(1, -1).contiguous())
            current = block(asked).movedim(-1, 1).contiguous()
            yield current
        fine = crop_to(self.last_up(current), image) + self.stem(image)
        yield self.activation(fine)


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


def _unetr_up(inside: int, outside: int, factors: Index) -> nn.Module:
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
