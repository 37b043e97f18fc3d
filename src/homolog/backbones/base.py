"""The contract of a backbone: one image in, feature maps of several scales out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from homolog.config import option
from homolog.geometry.affine import Index, Triple


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
        free_divisor: Of sides in prediction, where any size will do that is a multiple
            of this; None: sides other than those of training do harm (learnt
            positions; a divisor so large that a scan becomes mostly padding).
        spatial_dims: 3: eats (B, C, D, H, W). 2: eats (B, C, H, W), and
            ``strides[i][0]`` is 1.
        drops_tokens: Whether ``forward_visible`` exists (masked tokens left out).
        decoder: Kind of decoder (homolog.nn.decoders) that suits its maps.
        prefixes: Where other people's files keep this network, e.g. ``"swinViT."``.
        SMALL: Settings that two CPU cores can train; ``cpu`` recipes of methods and
            tasks take them when this network is asked for instead of their own.
        FINETUNE: Task -> recipe (``cpu``, ``gpu``) -> settings of the training that
            this network is fine-tuned with where the task's own recipe suits it less.
    """

    Config: ClassVar[type] = BackboneConfig
    title: ClassVar[str] = ""
    spatial_dims: ClassVar[int] = 3
    drops_tokens: ClassVar[bool] = False
    decoder: ClassVar[str] = "auto"
    prefixes: ClassVar[tuple[str, ...]] = ()
    SMALL: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    FINETUNE: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = (
        MappingProxyType({})
    )
    channels: tuple[int, ...]
    strides: tuple[Index, ...]
    size_divisor: Index
    free_divisor: Index | None = None

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def fitted(
        cls, settings: Mapping[str, Any], spacing_mm: Triple, shape: Index
    ) -> dict[str, Any]:
        """Settings that follow from the scans: asked once, then kept with the run.

        Args:
            settings: Those that differ from the defaults; what the user set stays.
            spacing_mm: Voxel size (z, y, x) of a typical scan.
            shape: Its voxels (D, H, W).
        """
        return dict(settings)

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

    def planar(self) -> Backbone:
        """The 2D network within, where there is one; else this network.

        Segmentation stands on it, slice by slice, and the classes of single images.
        """
        return self

    def depths(self) -> dict[str, int]:
        """How deep each parameter lies: the number of the finest map it changes.

        0 are the first layers, ``len(strides) - 1`` what only the coarsest map needs,
        or no map at all. Found by following the maps of a small image back to the
        parameters, so that it holds of every network; nothing is drawn or changed.
        """
        modes = {part: part.training for part in self.modules()}
        found: dict[int, int] = {}
        seen: set[Any] = set()
        self.eval()
        try:
            with torch.enable_grad():
                own = next(self.parameters())
                shape = (1, self.config.in_channels, *self._least())
                maps = self(torch.zeros(shape, dtype=own.dtype, device=own.device))
        finally:
            for part, mode in modes.items():
                part.training = mode
        for depth, features in enumerate(maps):
            ahead = [features.grad_fn]
            while ahead:
                node = ahead.pop()
                if node is None or node in seen:
                    continue
                seen.add(node)
                if hasattr(node, "variable"):
                    found.setdefault(id(node.variable), depth)
                ahead += [before for before, _ in node.next_functions]
        last = len(self.strides) - 1
        return {n: found.get(id(p), last) for n, p in self.named_parameters()}

    def _least(self) -> tuple[int, ...]:
        """Sides of an image with two cells of the coarsest map: one has no variance."""
        sides = [
            (stride // m + 1) * m
            for stride, m in zip(self.strides[-1], self.size_divisor, strict=True)
        ]
        return tuple(sides[-self.spatial_dims :])

    def adapt_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Translate a foreign state dict (prefixes and channels done) to own keys."""
        return dict(state)

    def check_size(self, size: Index) -> None:
        """Raise ValueError naming the nearest legal size when ``size`` does not fit."""
        if self.spatial_dims == 2 and size[0] != 1:
            raise ValueError(
                f"{type(self).__name__} is 2D and needs one slice, sizes (1, y, x), "
                f"got {tuple(size)}."
            )
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
        """Index of the map whose in-plane stride, its largest one, is ``stride``.

        Across thick slices its stride may be smaller.

        Raises:
            ValueError: No such map; the message lists the strides there are.
        """
        for index, sides in enumerate(self.strides):
            if max(sides) == stride:
                return index
        known = ", ".join(str(max(sides)) for sides in self.strides)
        raise ValueError(
            f"{type(self).__name__} has no map of stride {stride}; strides: {known}."
        )


def adapt_state(state: Mapping[str, Tensor], backbone: Backbone) -> dict[str, Tensor]:
    """Make a state dict of the same network, saved elsewhere, fit ``backbone``.

    Strips ``module.`` and the backbone's own foreign prefixes (whole SwinUNETR or UNETR
    files: decoder keys are dropped), renames old keys, and adapts the first layer to
    another number of image channels. Keys that still do not fit are left for the
    caller to report; nothing is loaded.

    Args:
        state: Names to tensors, of any device and dtype.
        backbone: The network to be filled; not changed.

    Returns:
        A new dict; tensors that needed no change are shared with ``state``.
    """
    found = renamed_state(state, backbone)
    wanted = backbone.state_dict()
    channels = backbone.config.in_channels
    return {
        key: adapt_channels(value, wanted[key], channels) if key in wanted else value
        for key, value in found.items()
    }


def renamed_state(state: Mapping[str, Tensor], backbone: Backbone) -> dict[str, Tensor]:
    """As ``adapt_state``, but with the image channels of the file."""
    found = {key.removeprefix("module."): value for key, value in state.items()}
    for prefix in backbone.prefixes:
        inside = {k: v for k, v in found.items() if k.startswith(prefix)}
        if inside:
            found = {k.removeprefix(prefix): v for k, v in inside.items()}
            break
    return backbone.adapt_state(found)


def adapt_channels(weight: Tensor, wanted: Tensor, channels: int) -> Tensor:
    """Image channels of a first convolution, (E, C, ...) -> (E, ``channels``, ...).

    Any other weight is returned as it is. The response to an image repeated in every
    channel stays as it was: one channel becomes many by repeating and dividing, many
    become one by summing.
    """
    same_but_channels = (
        weight.ndim == wanted.ndim >= 3
        and weight.shape[0] == wanted.shape[0]
        and weight.shape[2:] == wanted.shape[2:]
    )
    if weight.shape == wanted.shape or not same_but_channels:
        return weight
    if wanted.shape[1] != channels:
        return weight  # an inner layer of another size: not ours to bend
    summed = weight.sum(
        1, keepdim=True, dtype=torch.promote_types(weight.dtype, torch.float32)
    )
    return (summed / channels).expand_as(wanted).to(weight.dtype).contiguous()
