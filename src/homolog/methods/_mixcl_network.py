"""MixCL's parts around the encoder: maps by level, projectors, measured gradients."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from homolog.backbones._base import Backbone
from homolog.geometry.affine import Index
from homolog.nn.decoder_unetr import raising

_TOKEN_WIDTH = 16


class Levels(nn.Module):
    """Maps of an encoder by stride.

    A network whose maps all have one stride (vit) is given UNETR's projections: its
    shallower maps are raised to the strides 2, 4, ..., the shallowest to the finest;
    the deepest map keeps its stride. They are dropped after the training.

    Args:
        backbone: Its channels and strides are read; it is not kept.
        strides: In-plane strides asked for.

    Attributes:
        strides: Voxels (z, y, x) per cell, by in-plane stride.
        channels: Channels, by in-plane stride.

    Raises:
        ValueError: The network has no map of a stride.
    """

    def __init__(self, backbone: Backbone, strides: Sequence[int]) -> None:
        super().__init__()
        wanted = sorted(set(strides))
        self.strides: dict[int, Index] = {}
        self.channels: dict[int, int] = {}
        self._source: dict[int, int] = {}
        self.raised = nn.ModuleDict()
        one_stride = len(set(backbone.strides)) == 1 and len(backbone.strides) > 1
        for stride in wanted:
            if one_stride and stride < backbone.strides[0][2]:
                self._raise(backbone, stride, [s for s in wanted if s <= stride])
                continue
            index = backbone.map_of_stride(stride)
            self._source[stride] = index
            self.strides[stride] = backbone.strides[index]
            self.channels[stride] = backbone.channels[index]

    def _raise(self, backbone: Backbone, stride: int, finer: Sequence[int]) -> None:
        side = backbone.strides[0]
        doublings = (side[2] // stride).bit_length() - 1
        if len(set(side)) > 1 or stride * 2**doublings != side[2]:
            raise ValueError(
                f"maps of stride {side} cannot be raised to stride {stride}: both must "
                "be powers of two, the same along all axes."
            )
        index = min(len(finer) - 1, len(backbone.channels) - 2)
        self._source[stride] = index
        self.strides[stride] = (stride, stride, stride)
        self.channels[stride] = _TOKEN_WIDTH * stride
        self.raised[str(stride)] = raising(
            backbone.channels[index], self.channels[stride], doublings
        )

    def forward(self, maps: Sequence[Tensor]) -> dict[int, Tensor]:
        """All maps of the backbone -> in-plane stride -> (B, E, d, h, w)."""
        found = {}
        for stride, index in self._source.items():
            name = str(stride)
            raised = self.raised[name] if name in self.raised else None
            found[stride] = maps[index] if raised is None else raised(maps[index])
        return found


class VoxelProjector(nn.Module):
    """Three linear layers on vectors, [c, c, 2c], with normalisation and ReLU between.

    The same as 1 x 1 x 1 convolutions, on drawn cells only.

    Args:
        channels: c.
        norm: ``batch`` (over all given vectors; per process), ``layer`` or ``none``.

    Source: MixCL, section 2.1, sigma^l.
    """

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        widths = [channels, channels, channels, 2 * channels]
        parts: list[nn.Module] = []
        for inside, outside in itertools.pairwise(widths):
            if parts:
                parts += [*_norm(norm, inside), nn.ReLU()]
            parts.append(nn.Linear(inside, outside))
        self.layers = nn.Sequential(*parts)

    def forward(self, vectors: Tensor) -> Tensor:
        """(..., c) -> (..., 2c)."""
        projected: Tensor = self.layers(vectors.flatten(0, -2))
        return projected.reshape(*vectors.shape[:-1], -1)


class GradientMeter:
    """How strongly each loss term pulls at the encoder's maps, at no extra backward.

    Each term reads the maps through a meter of its own; what flows back is measured on
    its way.
    """

    def __init__(self) -> None:
        self._squares: dict[str, Tensor] = {}

    def reset(self) -> None:
        """Forget the last step."""
        self._squares = {}

    def through(self, name: str, maps: Sequence[Tensor]) -> list[Tensor]:
        """The same maps, their gradient counted under ``name``."""
        passed = []
        for tensor in maps:
            own = tensor.view_as(tensor)
            if own.requires_grad:
                own.register_hook(lambda g: self._count(name, g))  # type: ignore[no-untyped-call]
            passed.append(own)
        return passed

    def _count(self, name: str, gradient: Tensor) -> None:
        square = gradient.detach().float().square().sum()
        before = self._squares.get(name)
        self._squares[name] = square if before is None else before + square

    def norms(self) -> dict[str, Tensor]:
        """Term -> norm of its gradient over all maps of the last step."""
        return {f"gradient_{k}": v.sqrt() for k, v in self._squares.items()}


def _norm(kind: str, width: int) -> list[nn.Module]:
    if kind == "batch":
        return [nn.BatchNorm1d(width)]
    return [nn.LayerNorm(width)] if kind == "layer" else []


def second_finest(backbone: Backbone) -> int:
    """In-plane stride of the paper's second layer: UNETR's enc2 has stride 2."""
    strides = sorted({x for _, _, x in backbone.strides})
    if len(strides) == 1:
        return min(2, strides[0])
    return strides[1]


def tissue_weights(image: Tensor, valid: Tensor) -> Tensor:
    """Weights (B, N) by which half of the drawn cells are brighter than the mean.

    Args:
        image: (B, N) normalised values.
        valid: (B, N) bool; cells outside the scan weigh nothing.
    """
    real = valid.float()
    mean = (image * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp_min(1)
    bright = real * (image > mean)
    dark = real - bright
    weight = torch.zeros_like(real)
    for part in (bright, dark):
        weight = weight + part / part.sum(1, keepdim=True).clamp_min(1)
    return weight
