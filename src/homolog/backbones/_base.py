"""The contract of a backbone: one image in, feature maps of several scales out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from homolog.config import option
from homolog.geometry.affine import Index


@dataclass(frozen=True)
class BackboneConfig:
    """What every backbone knows; each adds its own fields."""

    in_channels: int = option(1, "image channels", minimum=1)


class Backbone(nn.Module, ABC):
    """An encoder.

    Attributes:
        channels: Channels of each returned map, one per scale.
        strides: Voxels (z, y, x) per cell of each map, fine to coarse.
        size_divisor: Every input side must be a multiple of this.
        spatial_dims: 3: eats (B, C, D, H, W). 2: eats (B, C, H, W); strides[i][0] is 1.
        drops_tokens: Whether ``forward_visible`` exists (masked tokens left out).
    """

    Config: ClassVar[type] = BackboneConfig
    title: ClassVar[str] = ""
    spatial_dims: ClassVar[int] = 3
    drops_tokens: ClassVar[bool] = False
    channels: tuple[int, ...]
    strides: tuple[Index, ...]
    size_divisor: Index

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, C, D, H, W) -> ((B, E_i, d_i, h_i, w_i), ...), fine to coarse."""

    def maps(self, image: Tensor) -> tuple[Tensor, ...]:
        """``forward`` with a depth axis whatever ``spatial_dims`` is.

        Args:
            image: (B, C, D, H, W); D must be 1 for a 2D backbone.

        Returns:
            Maps (B, E_i, d_i, h_i, w_i), fine to coarse; d_i is 1 for a 2D backbone.
        """
        if self.spatial_dims == 3:
            return tuple(self(image))
        if image.shape[2] != 1:
            raise ValueError(
                f"{type(self).__name__} is 2D and needs views of one slice "
                f"(1, H, W), got {tuple(image.shape[2:])}."
            )
        return tuple(features.unsqueeze(2) for features in self(image.squeeze(2)))

    def check_size(self, size: Index) -> None:
        """Raise ValueError naming the nearest legal size when ``size`` does not fit."""
        if any(n % m for n, m in zip(size, self.size_divisor, strict=True)):
            legal = tuple(
                max(m, round(n / m) * m)
                for n, m in zip(size, self.size_divisor, strict=True)
            )
            raise ValueError(
                f"{type(self).__name__} needs sizes divisible by {self.size_divisor} "
                f"(z, y, x), got {tuple(size)}; the nearest legal size is {legal}."
            )

    def map_of_stride(self, stride: int) -> int:
        """Index of the map whose in-plane (x) stride is ``stride``.

        Raises:
            ValueError: No such map; the message lists the strides there are.
        """
        for index, (_, _, x) in enumerate(self.strides):
            if x == stride:
                return index
        known = ", ".join(str(x) for _, _, x in self.strides)
        raise ValueError(
            f"{type(self).__name__} has no map of stride {stride}; strides: {known}."
        )
