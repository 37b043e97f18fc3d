"""The contract of a detector, several of them as one, and how one is trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from homolog.backbones.base import Backbone
from homolog.distributed import sum_over_ranks, world
from homolog.geometry.affine import Index
from homolog.nn.heads import FeaturePyramid
from homolog.tasks.base import TaskModule
from homolog.tasks.detect.targets import Levels, Seen, boxes_in_view
from homolog.views.view import Views, ViewSpec, affine_of

# Boxes that are looked at, the surest: of a level or of key points of a window.
MOST_FOUND = 300
# Of the running mean of what learns a box.
# Source: detectron2, modeling/meta_arch/retinanet.py (loss normaliser).
_MOMENTUM = 0.1


Usual: TypeAlias = Callable[[int], Tensor]


class Found(NamedTuple):
    """Boxes of one window.

    Attributes:
        boxes: (N, 6) low and high edges (z, y, x) in voxels of the window.
        label: (N,) int64.
        scores: (N,) 0..1.
    """

    boxes: Tensor
    label: Tensor
    scores: Tensor


class Detector(nn.Module, ABC):
    """Finds boxes in windows.

    Attributes:
        encoder: Says which windows are legal.
        axes: Those along which boxes are measured: 0, 1, 2, or 1, 2 of slices.
        classes: How many there are (K).
        first: What learns a box in a batch is about so much, before it is known.
    """

    encoder: Backbone
    axes: tuple[int, ...]
    classes: int
    first: float = 1.0

    @abstractmethod
    def forward(self, image: Tensor) -> Any:
        """What it says of windows (B, C, D, H, W) of normalised intensities."""

    @abstractmethod
    def losses(
        self, image: Tensor, seen: Sequence[Seen], usual: Usual
    ) -> dict[str, Tensor]:
        """The terms of a batch.

        Args:
            image: (B, C, D, H, W).
            seen: The boxes of each sample.
            usual: How much of this batch learns a box -> () how much does on average,
                above 0.
                Terms that batches without a box have, too, are divided by that: by a
                batch's own, one that happens to show none would shake the network.
        """

    @abstractmethod
    def found(self, said: Any, size: Index, least: float) -> list[Found]:
        """Boxes of what was said of one window; each entry is an opinion of its own.

        Args:
            said: Of ``forward``.
            size: Of the window (D, H, W).
            least: Boxes of smaller scores are left out.
        """

    @staticmethod
    @abstractmethod
    def mean(said: Sequence[Any]) -> Any:
        """What several detectors say of a window, as one."""


class JoinedDetectors(Detector):
    """Several detectors of the same boxes; the mean of what they say.

    Args:
        networks: Detectors of one kind, of the same levels and classes.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(networks)

    @property
    def encoder(self) -> Backbone:  # type: ignore[override]
        """The first one's."""
        return self._first.encoder

    @property
    def axes(self) -> tuple[int, ...]:  # type: ignore[override]
        """Those along which boxes are measured."""
        return self._first.axes

    @property
    def _first(self) -> Detector:
        first = self.members[0]
        assert isinstance(first, Detector)
        return first

    def forward(self, image: Tensor) -> Any:
        """As that of one."""
        return self._first.mean([network(image) for network in self.members])

    def losses(
        self, image: Tensor, seen: Sequence[Seen], usual: Usual
    ) -> dict[str, Tensor]:
        """It learns no more."""
        raise NotImplementedError("joined detectors do not learn.")

    def found(self, said: Any, size: Index, least: float) -> list[Found]:
        """As of one."""
        return self._first.found(said, size, least)

    @staticmethod
    def mean(said: Sequence[Any]) -> Any:
        """They are joined once."""
        raise NotImplementedError("join all models at once.")


class PyramidDetector(Detector):
    """Encoder and feature pyramid, with levels finer than the encoder's maps.

    Args:
        encoder: 2D or 3D.
        levels: Its maps that are looked at.
        classes: How many (K).
        width: Channels of every level.
        planar: Windows are one slice.

    Source: Lin et al., FPN, CVPR 2017; Li et al., ViTDet, ECCV 2022 (finer levels).
    """

    def __init__(
        self,
        encoder: Backbone,
        levels: Levels,
        classes: int,
        *,
        width: int,
        planar: bool,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.levels = levels
        self.classes = classes
        self.axes = (1, 2) if planar else (0, 1, 2)
        self.pyramid = FeaturePyramid([encoder.channels[i] for i in levels.maps], width)
        steps = _steps(encoder.strides[levels.maps[0]], levels)
        self.finer = nn.ModuleList(
            nn.ConvTranspose3d(width, width, step, stride=step) for step in steps
        )

    def level_maps(self, image: Tensor) -> list[Tensor]:
        """(B, C, D, H, W) -> (B, width, d, h, w) of every level, fine to coarse."""
        maps = self.encoder.maps(image)
        found = list(self.pyramid([maps[i] for i in self.levels.maps]))
        for layer in self.finer:
            found.insert(0, layer(found[0]))
        return found[: self.levels.count]


def _steps(coarse: Index, levels: Levels) -> list[Index]:
    """Enlargement of each finer level, the coarsest of them first."""
    steps: list[Index] = []
    for fine in reversed(levels.strides[: levels.finer]):
        z, y, x = (a // b for a, b in zip(coarse, fine, strict=True))
        steps.append((z, y, x))
        coarse = fine
    return steps


def filled(told: Tensor, axes: Sequence[int], size: Index) -> Tensor:
    """Boxes (N, 2 * axes) -> (N, 6): what is not asked for is the whole window."""
    boxes = told.new_zeros(len(told), 6)
    boxes[:, 3:] = told.new_tensor(size)
    count = len(axes)
    for place, axis in enumerate(axes):
        boxes[:, axis], boxes[:, axis + 3] = told[:, place], told[:, place + count]
    return boxes


class DetectModule(TaskModule):
    """A detector that learns from crops with boxes.

    Args:
        network: What learns.
        spec: The crops.
        average: Momentum of the weight average; 0 keeps none.
        remembered: Places in training scans that it can remember, see ``search``.

    Attributes:
        misses: (remembered, 4) float32, see ``homolog.feed.places``; NaN: none. A
            checkpoint holds it, a model does not.
    """

    network: Detector
    misses: Tensor
    positives: Tensor

    def __init__(
        self,
        network: Detector,
        spec: ViewSpec,
        *,
        average: float = 0.0,
        remembered: int = 0,
    ) -> None:
        super().__init__(network, average)
        self.spec = spec
        # of a batch, on average: the first is about one box
        self.register_buffer("positives", torch.tensor(network.first))
        if remembered:
            none = torch.full((remembered, 4), torch.nan)
            self.register_buffer("misses", none, persistent=False)

    def views(self) -> dict[str, ViewSpec]:
        """One crop."""
        return {"crop": self.spec}

    def losses(self, views: Views, progress: float) -> dict[str, Tensor]:
        """The detector's terms."""
        crop, network = views["crop"], self.network
        target, affines = crop.host_target, crop.affine
        if target is None or crop.origin is None:
            target = crop.target
        else:  # what cells learn is decided on the CPU: a GPU would be asked box by box
            affines = affine_of(crop.origin)
        assert target is not None
        seen = [
            boxes_in_view(row, affine[0], network.classes)
            for row, affine in zip(target, affines, strict=True)
        ]
        return network.losses(crop.flat(), seen, self._usual)

    def _usual(self, positives: int) -> Tensor:
        """() at least 1: of the batches of all processes; their share for each."""
        if torch.is_grad_enabled():
            now = torch.full_like(self.positives, float(positives))
            self.positives.lerp_(sum_over_ranks(now), _MOMENTUM)
        return self.positives.clamp(min=1.0) / world().size
