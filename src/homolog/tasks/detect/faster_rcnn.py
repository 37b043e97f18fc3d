"""Faster R-CNN of torchvision on the maps of our encoders, for single images.

torchvision is optional: nothing is imported before this detector is asked for.
"""

from __future__ import annotations

import importlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from homolog.backbones.base import Backbone
from homolog.errors import UnusableInput
from homolog.geometry.affine import Index
from homolog.tasks.detect.detector import (
    Found,
    PyramidDetector,
    Usual,
    filled,
)
from homolog.tasks.detect.targets import CELLS, Levels, Seen

# Of a box that a crop cuts, at least so much must be seen to be asked for.
_VISIBLE = 0.3
# Sides of anchors, in sides that their level looks for, and their shapes (height by
# width). Source: torchvision, faster_rcnn.py, _default_anchorgen (one scale a level).
_RATIOS = (0.5, 1.0, 2.0)


def torchvision_module(name: str) -> Any:
    """A module of torchvision.

    Raises:
        UnusableInput: It is not there, or is made for another torch.
    """
    try:
        return importlib.import_module(f"torchvision.{name}")
    except (ImportError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnusableInput(
            "detector faster_rcnn needs a torchvision that fits torch "
            f"{torch.__version__} ({reason}); install it, or take detector=one_stage."
        ) from error


# Paper: Joint Table 5, detection.
class FasterRcnnNetwork(PyramidDetector):
    """Region proposals on every level of a pyramid, and a head that judges them.

    Both are torchvision's own, made by its FasterRCNN. Windows come normalised and at
    their size, so that its resizing is left out.

    Args:
        encoder: 2D, or flat in z.
        levels: Its maps that are looked at.
        classes: How many (K).
        width: Channels of the pyramid.
        depth: Without meaning here.
        planar: Must be true.

    Source: Ren et al., "Faster R-CNN", NeurIPS 2015; Lin et al., FPN, CVPR 2017;
        torchvision.models.detection.FasterRCNN.
    Differs from the papers: anchors follow the levels that suit the boxes of the store;
        boxes that a crop cuts are clipped to it, and left out where less than 30 % is
        seen; the hidden layers have eight times the pyramid's width at most (1024).

    Raises:
        UnusableInput: Volumes, or no torchvision.
    """

    def __init__(
        self,
        encoder: Backbone,
        levels: Levels,
        classes: int,
        *,
        width: int = 64,
        depth: int = 2,
        planar: bool = True,
    ) -> None:
        check_planar(planar)
        super().__init__(encoder, levels, classes, width=width, planar=planar)
        rcnn = torchvision_module("models.detection.faster_rcnn")
        anchors = torchvision_module("models.detection.anchor_utils")
        ops = torchvision_module("ops")
        names = [str(n) for n in range(levels.count)]
        hidden, cells = min(1024, 8 * width), 7
        pool = ops.MultiScaleRoIAlign(names, output_size=cells, sampling_ratio=2)
        model = rcnn.FasterRCNN(
            _Width(width),
            rpn_anchor_generator=anchors.AnchorGenerator(
                tuple((int(CELLS * max(s)),) for s in levels.strides),
                (_RATIOS,) * levels.count,
            ),
            box_roi_pool=pool,
            box_head=rcnn.TwoMLPHead(width * cells**2, hidden),
            box_predictor=rcnn.FastRCNNPredictor(hidden, classes + 1),
        )
        self.rpn, self.roi_heads = model.rpn, model.roi_heads
        self._images = torchvision_module("models.detection.image_list").ImageList

    def forward(self, image: Tensor) -> list[list[dict[str, Tensor]]]:
        """(B, C, 1, H, W) -> opinions, here one: ``boxes``, ``labels``, ``scores``.

        Boxes are (x, y, x, y), labels count from 1, as torchvision has it.
        """
        features, images = self._seen(image)
        with torch.autocast(image.device.type, enabled=False):
            proposals, _ = self.rpn(images, features)
            found, _ = self.roi_heads(features, proposals, images.image_sizes)
        return [found]

    def losses(
        self, image: Tensor, seen: Sequence[Seen], usual: Usual
    ) -> dict[str, Tensor]:
        """``objects``, ``proposals``, ``classes`` and ``boxes``.

        Raises:
            UnusableInput: Some class is not annotated everywhere.
        """
        if not all(bool(one.known.all()) for one in seen):
            raise UnusableInput(
                "detector faster_rcnn cannot learn from data sets that annotate "
                "different classes; take detector=one_stage."
            )
        features, images = self._seen(image)
        shape = tuple(image.shape[3:])
        wanted = [targets_of(one.to(image.device), shape) for one in seen]
        with torch.autocast(image.device.type, enabled=False):
            proposals, first = self.rpn(images, features, wanted)
            _, second = self.roi_heads(features, proposals, images.image_sizes, wanted)
        return {
            "objects": first["loss_objectness"],
            "proposals": first["loss_rpn_box_reg"],
            "classes": second["loss_classifier"],
            "boxes": second["loss_box_reg"],
        }

    def found(
        self, said: list[list[dict[str, Tensor]]], size: Index, least: float
    ) -> list[Found]:
        """Each network's boxes as an opinion of its own."""
        opinions = []
        for (one,) in said:
            sure = one["scores"] >= least
            told = one["boxes"][sure][:, [1, 0, 3, 2]]
            boxes = filled(told, self.axes, size)
            opinions.append(Found(boxes, one["labels"][sure] - 1, one["scores"][sure]))
        return opinions

    @staticmethod
    def mean(
        said: Sequence[list[list[dict[str, Tensor]]]],
    ) -> list[list[dict[str, Tensor]]]:
        """Regions differ from network to network: each keeps its opinion."""
        return [opinion for one in said for opinion in one]

    def _seen(self, image: Tensor) -> tuple[dict[str, Tensor], Any]:
        maps = self.level_maps(image)
        features = OrderedDict(
            (str(n), m.squeeze(2).float()) for n, m in enumerate(maps)
        )
        h, w = image.shape[3:]
        return features, self._images(image.squeeze(2), [(h, w)] * len(image))


class _Width(nn.Module):
    """Tells torchvision how many channels the maps have; it never runs."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_channels = width


def check_planar(planar: bool) -> None:
    """Refuse volumes.

    Raises:
        UnusableInput: They are.
    """
    if not planar:
        raise UnusableInput(
            "detector faster_rcnn finds boxes in single images, but these scans have "
            "several slices; take detector=one_stage or points."
        )


def targets_of(seen: Seen, size: tuple[int, ...]) -> dict[str, Tensor]:
    """Boxes (N, 4) x, y, x, y within a window (H, W), and labels from 1."""
    limit = seen.low.new_tensor(size)
    low, high = (
        edge[:, 1:].clamp(min=0).minimum(limit) for edge in (seen.low, seen.high)
    )
    whole = (seen.high - seen.low)[:, 1:].prod(1).clamp(min=1e-6)
    visible = (high - low).prod(1) / whole
    kept = (visible >= _VISIBLE) & ((high - low) > 0.5).all(1)
    boxes = torch.cat([low.flip(1), high.flip(1)], 1)
    return {"boxes": boxes[kept], "labels": seen.label[kept] + 1}
