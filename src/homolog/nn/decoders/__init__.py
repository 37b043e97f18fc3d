"""Decoders: feature maps of a backbone and the image -> a map at full resolution.

One file is one decoder; its name is the key. A backbone names the one that suits it.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.functional import avg_pool3d

from homolog.backbones.base import Backbone, adapt_channels
from homolog.geometry.affine import Index
from homolog.registry import Registry

AUTO = "auto"


class Decoder(nn.Module, ABC):
    """The expanding half of a segmentation network.

    ``forward`` is ``head(features)``: sliding windows may blend the few features, which
    do not grow with the number of classes, and apply the head once.

    Args:
        channels: Channels of each map, fine to coarse.
        strides: Voxels (z, y, x) per cell of each map.
        in_channels: Image channels.
        out_channels: Channels of the result (classes).
        width: Channels F of the features; None takes what is usual for the kind.
        spatial_dims: 2: images and maps have no depth axis; of the strides y and x
            count.

    Attributes:
        kind: Its name among ``DECODERS``.
        usual_width: Channels of the features; 0: those of the finest map.
        in_2d: Whether it takes 2D maps, too.
        mark: Name by which other people's files show that they hold such a decoder.
        stage_channels: Channels of what ``stages`` makes.
    """

    kind: ClassVar[str] = ""
    usual_width: ClassVar[int] = 0
    in_2d: ClassVar[bool] = False
    mark: ClassVar[str] = ""
    stage_channels: tuple[int, ...]

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
        super().__init__()
        self.width = width or self.usual_width or channels[0]
        self.spatial_dims = spatial_dims
        head = nn.Conv3d if spatial_dims == 3 else nn.Conv2d
        self.head: nn.Module = head(self.width, out_channels, 1)

    @classmethod
    def translated(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of a foreign state dict (prefixes cut) the decoder's part, in own names."""
        return {}

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


DECODERS: Registry[Decoder] = Registry(__name__, f"{__name__}:Decoder", "decoder")


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


@dataclass(frozen=True, eq=False)
class ForeignDecoder:
    """The decoder of another project's weight file.

    Attributes:
        kind: Which of ``DECODERS``.
        state: Names of ours -> tensor; fits ``suited_decoder(backbone, classes)``.
        classes: Channels of its head, the tensors ``head.``; 0: it has none.
        missing: Names of ours that the file has not, ``head.`` aside.
        left_over: The file's names that have no place: heads of deep supervision.
    """

    kind: str
    state: dict[str, Tensor]
    classes: int
    missing: tuple[str, ...] = ()
    left_over: tuple[str, ...] = ()


def foreign_decoder(
    state: Mapping[str, Tensor], backbone: Backbone
) -> ForeignDecoder | None:
    """The decoder that a weight file holds beside the encoder.

    Args:
        state: The file's tensors under its own names, whatever stands before them.
        backbone: The network made for the file's encoder.

    Returns:
        None where there is none, or one that the network's own decoder is not like:
        more blocks, other widths, batch norm.
    """
    kind = backbone.decoder
    mark = DECODERS.get(kind).mark if kind != AUTO else ""
    ends = [key for key in state if mark and key.endswith(mark)]
    if not ends:
        return None
    before = min(ends, key=len).removesuffix(mark)
    inside = {
        k.removeprefix(before): v for k, v in state.items() if k.startswith(before)
    }
    given = DECODERS.get(kind).translated(inside)
    classes = len(given["head.weight"]) if "head.weight" in given else 0
    made = suited_decoder(backbone, classes or 1)
    wanted = made.state_dict()
    channels = backbone.config.in_channels
    found = {
        key: adapt_channels(value, wanted[key], channels)
        for key, value in given.items()
        if key in wanted
    }
    left = tuple(key for key in given if key not in wanted)
    same = all(value.shape == wanted[key].shape for key, value in found.items())
    if not same or any(".head." not in key for key in left):
        return None
    absent = (k for k in wanted if k not in found and not k.startswith("head."))
    return ForeignDecoder(kind, found, classes, tuple(absent), left)


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
    known = (AUTO, *DECODERS.names())
    if kind not in known:
        raise ValueError(f"unknown decoder {kind!r}; known: {', '.join(known)}.")
    if not channels or len(channels) != len(strides):
        raise ValueError(
            f"a decoder needs as many channels as strides, got {tuple(channels)} "
            f"and {tuple(strides)}."
        )
    name = _choose(channels, strides) if kind == AUTO else kind
    cls = DECODERS.get(name)
    if spatial_dims == 2 and not cls.in_2d:
        raise ValueError(
            f"only the residual decoder takes 2D maps, not {name} (strides "
            f"{tuple(strides)})."
        )
    return cls(
        channels, strides, in_channels, out_channels,
        width=width, spatial_dims=spatial_dims,
    )  # fmt: skip


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


def check_full_map(
    kind: str, channels: Sequence[int], strides: Sequence[Index], width: int | None
) -> None:
    """Raise ValueError unless the finest map can be a decoder's last skip.

    Args:
        kind: Of the decoder, for the message.
        channels: Channels of each map, fine to coarse.
        strides: Voxels (z, y, x) per cell of each map.
        width: Channels asked of the decoder's features.
    """
    if max(strides[0]) > 1 or len(strides) < 2:
        raise ValueError(
            f"the {kind} decoder takes maps from the image's resolution on "
            f"(full_map=true), got strides {tuple(strides)}."
        )
    if width not in (None, channels[0]):
        raise ValueError(
            f"features of the {kind} decoder are {channels[0]} wide, as the finest map "
            f"is, got {width}."
        )


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


def upsampling(inside: int, outside: int, factors: Index, flat: bool) -> nn.Module:
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
