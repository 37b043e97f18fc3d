"""The segmentation network, and how it learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from homolog.backbones._base import Backbone
from homolog.geometry.affine import Index
from homolog.losses.segmentation import dice_cross_entropy
from homolog.nn.teacher import Teacher
from homolog.tasks._base import TaskModule
from homolog.tasks._label_spaces import LabelSpace
from homolog.views.view import Views, ViewSpec

# Share of the training after which the weight average has its full momentum.
AVERAGE_FROM = 0.1


class SegmentNetwork(nn.Module):
    """An encoder with a decoder of its kind.

    A 2D encoder makes a 2D U-Net: the slices of a volume become the batch and what
    comes out is stacked again, so that no slice knows of another.

    Args:
        encoder: 3D or 2D backbone.
        decoder: With ``features(image, maps)`` -> (B, F, D, H, W) and ``head``, a
            1 x 1 x 1 convolution from F to K; for a 2D encoder without D.

    Source: Nguyen et al., Joint Self-Supervised Image-Volume Representation Learning,
        AAAI 2023, downstream tasks ("predict segmentation at each 2D slice and merge
        results for 3D volumes").
    """

    def __init__(self, encoder: Backbone, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    @property
    def slicewise(self) -> bool:
        """Whether every slice goes through alone."""
        return self.encoder.spatial_dims == 2

    @property
    def head(self) -> nn.Module:
        """The decoder's last layer, features to logits."""
        head: nn.Module = self.decoder.head  # type: ignore[assignment]
        return head

    def features(self, image: Tensor, *, frozen: bool = False) -> Tensor:
        """(B, C, D, H, W) -> (B, F, D, H, W).

        Args:
            image: Normalised intensities.
            frozen: Send no gradient into the encoder.
        """
        return self._stacked(self._features(self._seen(image), frozen), len(image))

    def forward(self, image: Tensor, *, frozen: bool = False) -> Tensor:
        """(B, C, D, H, W) -> (B, K, D, H, W) logits."""
        logits: Tensor = self.head(self._features(self._seen(image), frozen))
        return self._stacked(logits, len(image))

    def _features(self, image: Tensor, frozen: bool) -> Tensor:
        """Of what the encoder takes: volumes, or slices."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            maps = self.encoder(image)
        features: Tensor = self.decoder.features(image, maps)  # type: ignore[operator]
        return features

    def _seen(self, image: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B * D, C, H, W) where slices go through alone."""
        return image.transpose(1, 2).flatten(0, 1) if self.slicewise else image

    def _stacked(self, found: Tensor, count: int) -> Tensor:
        """(B * D, F, H, W) -> (B, F, D, H, W) where slices went through alone."""
        if not self.slicewise:
            return found
        return found.reshape(count, -1, *found.shape[1:]).transpose(1, 2)


class SegmentModule(TaskModule):
    """Dice plus cross-entropy on label-balanced crops.

    Args:
        network: What learns.
        spec: The crops.
        label_values: Value of each class in the model, background first.
        spaces: What the labels of each store are in the model, in the order of the
            feed's label spaces; none where they are the model's own.
        freeze: Share of the training during which the encoder gets no gradient.
        average: Momentum of the weight average; 0 keeps none. It helps while the rate
            is high (10 % of the hippocampus labels, 0.98: validation Dice 0.850 against
            0.828 after 250 of 1000 steps), not at the end (0.871 against 0.873).
    """

    def __init__(
        self,
        network: SegmentNetwork,
        spec: ViewSpec,
        label_values: Sequence[int],
        *,
        freeze: float = 0.0,
        average: float = 0.0,
        spaces: Sequence[LabelSpace] = (),
    ) -> None:
        super().__init__()
        self.network = network
        self.spec = spec
        self.freeze = freeze
        self.momentum = average
        self.average = Teacher(network) if average > 0 else None
        mappings = [s.values for s in spaces] or [{v: v for v in label_values if v > 0}]
        # Row: label space. Column v + 1: class of value v; -1 stays unlabelled.
        top = max(v for mapping in mappings for v in (0, *mapping))
        number = {value: index for index, value in enumerate(label_values)}
        unknown = 0 if spaces else -1
        table = torch.full((len(mappings), top + 2), unknown, dtype=torch.int64)
        table[:, 0], table[:, 1] = -1, 0
        annotated = torch.zeros(len(mappings), len(label_values), dtype=torch.bool)
        annotated[:, 0] = True
        for row, mapping in enumerate(mappings):
            for value, own in mapping.items():
                table[row, value + 1] = number[own]
                annotated[row, number[own]] = True
        self.partial = bool(spaces)
        self.register_buffer("classes", table, persistent=False)
        self.register_buffer("annotated", annotated, persistent=False)

    def views(self) -> dict[str, ViewSpec]:
        """One crop with its labels."""
        return {"crop": self.spec}

    def losses(self, views: Views, progress: float) -> dict[str, Tensor]:
        """``dice`` and ``cross_entropy``."""
        crop = views["crop"]
        assert crop.label is not None
        table: Tensor = self.classes  # type: ignore[assignment]
        known: Tensor = self.annotated  # type: ignore[assignment]
        column = (crop.label.flatten(0, 1) + 1).clamp(0, table.shape[1] - 1)
        annotated = None
        row = torch.zeros(len(column), dtype=torch.int64, device=column.device)
        if self.partial:
            assert crop.label_space is not None
            row = crop.label_space.repeat_interleave(crop.image.shape[1])
            annotated = known[row]
        target = table[row[:, None, None, None], column]
        logits = self.network(crop.flat(), frozen=progress < self.freeze)
        with torch.autocast(logits.device.type, enabled=False):
            dice, cross_entropy = dice_cross_entropy(
                logits, target, annotated, together=self.network.slicewise
            )
        return {"dice": dice, "cross_entropy": cross_entropy}

    def after_step(self, progress: float) -> None:
        """Move the weight average; it starts as a copy and slows down."""
        if self.average is not None:
            share = min(1.0, progress / AVERAGE_FROM)
            self.average.update(self.network, self.momentum * share)

    def encoder(self) -> Backbone:
        """The network's encoder."""
        return self.network.encoder

    def deployed(self) -> nn.Module:
        """The average where there is one."""
        return self.network if self.average is None else self.average.module


def choose_window(
    shapes: Sequence[Index],
    divisor: Index,
    smallest: Index,
    *,
    side: int,
    voxels: int,
) -> Index:
    """A window about as large as the median scan, where that is affordable.

    Rounded to the nearest multiple: what a window reaches beyond the scan is computed
    for nothing (on hippocampus crops of 35 x 50 x 35 voxels, 48 x 64 x 48 takes three
    times as long a step as 32 x 48 x 32 and learns slower per minute).

    Args:
        shapes: Sizes of the scans (D, H, W).
        divisor: What every side must be a multiple of.
        smallest: No side is shorter.
        side: No side is longer.
        voxels: No window has more voxels, as far as ``smallest`` allows.

    Returns:
        (D, H, W), multiples of the divisor.
    """
    median = [sorted(s[a] for s in shapes)[len(shapes) // 2] for a in range(3)]
    window = [
        max(min(round(n / m), side // m) * m, least)
        for n, m, least in zip(median, divisor, smallest, strict=True)
    ]
    while window[0] * window[1] * window[2] > voxels:
        # shorten the longest side that can be shortened
        longest = max(
            (a for a in range(3) if window[a] - divisor[a] >= smallest[a]),
            key=lambda a: window[a],
            default=None,
        )
        if longest is None:
            break
        window[longest] -= divisor[longest]
    return window[0], window[1], window[2]


def smallest_window(backbone: Backbone) -> Index:
    """Sides with two cells of the coarsest map: one cell alone has no variance.

    One slice where the backbone is 2D.
    """
    d, h, w = (
        (stride // m + 1) * m
        for stride, m in zip(backbone.strides[-1], backbone.size_divisor, strict=True)
    )
    return (1 if backbone.spatial_dims == 2 else d), h, w


def spec_index(spec: Mapping[str, Any], key: str) -> Index:
    """A (D, H, W) triple of a spec that went through JSON."""
    d, h, w = spec[key]
    return int(d), int(h), int(w)
