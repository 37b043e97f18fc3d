"""Layers that hold at the bottom of a U, where maps are one or two cells deep.

Two things go wrong there with plain layers.

Convolutions in bfloat16 on a CPU. MONAI's SwinUNETR "diverged" in bfloat16 autocast on
hippocampus crops: a few steps in, gradients were no longer finite. Nothing diverges.
oneDNN's kernel for the weight gradient of a bfloat16 3D convolution
(``jit_bf16:avx512_core_bf16``, ``backward_weights``; oneDNN 3.12 in torch 2.13) reads
memory nobody wrote whenever the input has more than one slice but fewer than the
kernel: depth 2 with a kernel of 3, depth 2 to 4 with a kernel of 5. Measured with
poisoned free memory: every such shape is wrong, whatever the channels, batch, height,
width and thread count, and a kernel of 7 can corrupt the heap. Output, input gradient,
depth 1, stride 2, 2D and float32 are right. Free memory often holds small numbers, so
the gradient is mostly silently wrong (up to 1e32 was seen) and only now and then inf or
NaN: hence "at step 6". A U-shaped network meets the case at its bottom: a crop of 48 or
64 slices is 2 slices at stride 32 (``encoder10`` of SwinUNETR), a crop of 32 is 2 at
stride 16 (``decoder5``).

The cure: where the case would arise, the zeros that the convolution would imagine
around the volume are written down along the depth, and the convolution runs without
padding there: the same sum, on a depth the kernel handles.

Instance norm of a single cell. torch refuses it, so MONAI's SwinUNETR cannot take 32^3.
Its limit is plain: the cell minus its own mean is 0.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

M = TypeVar("M", bound=nn.Module)


class SafeConv3d(nn.Conv3d):
    """nn.Conv3d, same parameters and values, right weight gradients in bfloat16."""

    def _conv_forward(
        self,
        input: Tensor,  # noqa: A002 - the name in torch
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        depth, reach = input.shape[-3], self.dilation[0] * (self.kernel_size[0] - 1) + 1
        padding = self.padding
        if (
            isinstance(padding, str)
            or self.padding_mode != "zeros"
            or not 1 < depth < reach
            or not _narrow_on_cpu(input)
        ):
            plain: Tensor = super()._conv_forward(input, weight, bias)
            return plain
        above = int(padding[0])
        written = functional.pad(input, (0, 0, 0, 0, above, above))
        return functional.conv3d(
            written,
            weight,
            bias,
            self.stride,
            (0, int(padding[1]), int(padding[2])),
            self.dilation,
            self.groups,
        )


class SafeInstanceNorm3d(nn.InstanceNorm3d):
    """nn.InstanceNorm3d that gives a map of one cell its limit: 0, scaled and moved."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name in torch
        """(B, C, D, H, W) -> the same shape."""
        return _limit(self, input) if _one_cell(input) else super().forward(input)


class SafeInstanceNorm2d(nn.InstanceNorm2d):
    """The same for images."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name in torch
        """(B, C, H, W) -> the same shape."""
        return _limit(self, input) if _one_cell(input) else super().forward(input)


_SAFE = {
    nn.Conv3d: SafeConv3d,
    nn.InstanceNorm3d: SafeInstanceNorm3d,
    nn.InstanceNorm2d: SafeInstanceNorm2d,
}


def guard_small_maps(module: M) -> M:
    """Give every plain 3D convolution and instance norm its safe form, in place.

    Parameters, keys and values stay; subclasses are left alone. Calling it twice
    changes nothing.
    """
    for part in module.modules():
        safe = _SAFE.get(type(part))
        if safe is not None:
            part.__class__ = safe
    return module


def _one_cell(image: Tensor) -> bool:
    return image.shape[2:].numel() == 1


def _limit(norm: nn.InstanceNorm2d | nn.InstanceNorm3d, image: Tensor) -> Tensor:
    """Of the norm of maps of one cell."""
    nothing = image * 0
    if norm.affine:
        shape = (-1, *image.shape[2:])
        nothing = nothing * norm.weight.view(shape) + norm.bias.view(shape)
    return nothing


def _narrow_on_cpu(image: Tensor) -> bool:
    """Whether a convolution of this tensor would run in a 16-bit type on a CPU."""
    if image.device.type != "cpu":
        return False
    return torch.is_autocast_enabled("cpu") or image.dtype.itemsize < 4
