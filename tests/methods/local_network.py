"""A network whose cells see nothing but their own voxels, and views with padding."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from homolog.backbones.base import Backbone, BackboneConfig
from homolog.views.view import Same, View, Views, ViewSpec

# Long and thin: what lies at its ends is out of reach of its middle.
SIZE = (128, 16, 16)
_NORMS = (nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)


class _ChannelNorm(nn.LayerNorm):
    """Of each cell by itself: (B, E, d, h, w) -> the same."""

    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(maps.movedim(1, -1)).movedim(-1, 1)


class LocalBackbone(Backbone):
    """Blocks of voxels to vectors, four times: strides 2, 4, 8 and 16."""

    size_divisor = (16, 16, 16)
    channels = (8, 12, 16, 24)
    strides = ((2, 2, 2), (4, 4, 4), (8, 8, 8), (16, 16, 16))

    def __init__(self) -> None:
        super().__init__(BackboneConfig())
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv3d(narrow, wide, 2, 2), _ChannelNorm(wide), nn.GELU())
            for narrow, wide in itertools.pairwise((1, *self.channels))
        )

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        maps = []
        for layer in self.layers:
            image = layer(image)
            maps.append(image)
        return tuple(maps)


def without_norms_over_space(module: nn.Module) -> None:
    """Replace the norms that would carry what is at the ends to the middle."""
    for name, child in module.named_children():
        if isinstance(child, _NORMS):
            setattr(module, name, nn.Identity())
        without_norms_over_space(child)


def padded(
    views: Views, specs: Mapping[str, ViewSpec], noise: float, *, apart: bool = False
) -> Views:
    """The same views, of which only the middle quarter of the longest side is inside.

    There two labels alternate.

    Args:
        views: Of any size.
        specs: What they are; those that show the same have the same padding.
        noise: Std of what is added to voxels outside, three eighths away from inside
            (of views whose last quarter is inside: two eighths).
        apart: Of every other view it is the last quarter that is inside, so that what
            is inside in one is outside in the next.
    """
    generator = torch.Generator().manual_seed(0)
    roots = {
        name: spec.place.group if isinstance(spec.place, Same) else name
        for name, spec in specs.items()
    }
    order = list(dict.fromkeys(roots.values()))
    made = {}
    for name, view in views.items():
        last = apart and order.index(roots[name]) % 2 == 1
        made[name] = _padded(view, noise, generator, last=last)
    return Views(made)


def _padded(
    view: View, noise: float, generator: torch.Generator, *, last: bool
) -> View:
    axis = max(range(3), key=lambda i: view.size[i]) - 3
    eighth = view.size[axis] // 8
    inside = torch.zeros_like(view.valid)
    inside.narrow(axis, (6 if last else 3) * eighth, 2 * eighth).fill_(True)
    image = view.image.masked_fill(~inside[:, :, None], -1.0)
    for start, count in ((0, 4),) if last else ((0, 1), (7, 1)):
        end = image.narrow(axis, start * eighth, count * eighth)
        end += noise * torch.randn(end.shape, generator=generator)
    shape = [1] * 5
    shape[axis] = -1
    classes = 1 + torch.arange(view.size[axis]).reshape(shape) // 8 % 2
    label = None if view.label is None else torch.where(inside, classes, -1)
    depth = None if view.depth is None else inside.float()
    return dataclasses.replace(
        view, image=image, valid=inside, label=label, depth=depth
    )
