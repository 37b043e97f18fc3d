"""Linear probe: what an encoder knows of the labels, without teaching it anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from homolog.backbones.base import Backbone
from homolog.config import as_in
from homolog.tasks.base import LearnedConfig
from homolog.tasks.segment.network import SegmentNetwork
from homolog.tasks.segment.task import Segment, SegmentConfig


class AllMaps(nn.Module):
    """All maps of an encoder side by side, and one linear layer on them.

    Args:
        channels: Of each map.
        classes: How many logits K the head gives.
    """

    def __init__(self, channels: Sequence[int], classes: int) -> None:
        super().__init__()
        self.head = nn.Conv3d(sum(channels), classes, 1)

    def features(self, image: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, E_i, d_i, h_i, w_i) on the image's grid: (B, sum E_i, D, H, W)."""
        size = image.shape[2:]
        return torch.cat(
            [
                nn.functional.interpolate(
                    m, size, mode="trilinear", align_corners=False
                )
                for m in maps
            ],
            dim=1,
        )


@dataclass(frozen=True)
class ProbeConfig(SegmentConfig):
    """As of a segmentation; the encoder stays as it came."""

    head_first: float = as_in(LearnedConfig, "head_first", default=1.0, minimum=1.0)


class Probe(Segment):
    """A segmentation by one linear layer on a frozen 3D encoder's maps.

    Its Dice tells encoders apart that a whole decoder would make equal.
    """

    Config: ClassVar[type] = ProbeConfig
    title: ClassVar[str] = "Linear probe of an encoder"
    RECIPES: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        name: {
            "backbone": {"name": "resunet"},
            "training": {"steps": 500, "batch_size": 2, "learning_rate": 1e-2},
        }
        for name in ("cpu", "gpu")
    }

    def network(self, backbone: Backbone, spec: Mapping[str, Any]) -> SegmentNetwork:
        """The encoder and a linear head, one logit for each of the spec's labels."""
        if backbone.spatial_dims != 3:
            raise ValueError("probe needs a 3D encoder.")
        decoder = AllMaps(backbone.channels, len(spec["label_values"]))
        return SegmentNetwork(backbone, decoder)
