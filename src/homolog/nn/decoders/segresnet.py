"""The decoder of SegResNetDS, of MONAI's blocks: maps up to full resolution."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from monai.networks.blocks.upsample import UpSample
from monai.networks.nets.segresnet_ds import SegResBlock
from torch import Tensor, nn

from homolog.geometry.affine import Index
from homolog.nn.decoders import Decoder, check_full_map, crop_to, ratio
from homolog.small_maps import guard_small_maps

_NORM = ("instance", {"affine": True})
_ACT = ("relu", {"inplace": True})


class SegResNetDecoder(Decoder):
    """SegResNetDS's: a transposed convolution, the encoder's map added, one block.

    The finest map must have the resolution of the image (``full_map`` of the network
    ``segresnet``): the image itself is no input. Modules carry MONAI's names, so that
    weights load; of its heads the finest one, the others serve deep supervision.

    Source: Myronenko, 3D MRI brain tumor segmentation using autoencoder
    regularization, BrainLes 2018; MONAI 1.6.1, networks/nets/segresnet_ds.py.

    Args:
        channels: Channels of each map, fine to coarse.
        strides: Voxels (z, y, x) per cell of each map; the first (1, 1, 1).
        in_channels: Image channels; not used.
        out_channels: Channels of the result.
        width: Channels of the features; they are those of the finest map.
    """

    kind: ClassVar[str] = "segresnet"
    mark: ClassVar[str] = "up_layers.0.upsample.deconv.weight"

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
        pairs = list(zip(channels, strides, strict=True))
        self.up_layers = nn.ModuleList()
        for (fine, fine_stride), (coarse, coarse_stride) in zip(
            pairs[-2::-1], pairs[:0:-1], strict=True
        ):
            factors = ratio(fine_stride, coarse_stride)
            kernel = [3 if n > 1 else 1 for n in factors]
            level = nn.ModuleDict()
            level["upsample"] = UpSample(
                3, coarse, fine, factors, kernel_size=kernel, bias=False
            )
            level["blocks"] = nn.Sequential(SegResBlock(3, fine, _NORM, kernel, _ACT))
            self.up_layers.append(level)
        self.stage_channels = tuple(channels[-2::-1])
        guard_small_maps(self)

    def stages(self, image: Tensor, maps: Sequence[Tensor]) -> Iterator[Tensor]:
        """See :class:`Decoder`."""
        current = maps[-1]
        for level, skip in zip(self.up_layers, maps[-2::-1], strict=True):
            raised = crop_to(level["upsample"](current), skip)  # type: ignore[index]
            current = level["blocks"](raised + skip)  # type: ignore[index]
            yield current

    @classmethod
    def translated(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """MONAI's names: the finest level's ``head`` is ours."""
        found = {k: v for k, v in state.items() if k.startswith("up_layers.")}
        last = max(int(key.split(".")[1]) for key in found)
        head = f"up_layers.{last}.head."
        return {key.replace(head, "head."): value for key, value in found.items()}
