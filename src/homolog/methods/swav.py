"""SwAV: online clustering, the plain form that Joint and Hundred Million build on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from homolog.backbones._base import Backbone
from homolog.config import option
from homolog.geometry.affine import Index
from homolog.methods._base import Method
from homolog.nn.clustering import Clustering
from homolog.nn.heads import Projector, pooled
from homolog.views.view import Anchor, Elsewhere, Intensity, Views, ViewSpec, Within

_LEAST, _MOST = 8, 3000


@dataclass(frozen=True)
class SwAVConfig:
    """Settings of SwAV; the defaults suit a small machine."""

    size: tuple[int, int, int] = option(
        (48, 48, 48), "large crop z, y, x", unit="voxel", minimum=1, maximum=512
    )
    small_size: tuple[int, int, int] = option(
        (32, 32, 32), "small crop z, y, x", unit="voxel", minimum=1, maximum=512
    )
    small_count: int = option(
        2, "small crops beside the two large ones; they only predict", minimum=0
    )
    prototypes: int = option(
        0,
        "clusters K; 0: a quarter of the features that share a code assignment "
        "(queue_length), 8 to 3000",
        minimum=0,
    )
    queue_length: int = option(
        128,
        "features of earlier batches that share the assignment, per large crop, over "
        "all processes; 0: none",
        minimum=0,
    )
    queue_start: float = option(
        0.1, "share of the training before the queues count", minimum=0, maximum=1
    )
    freeze: float = option(
        0.05, "share of the training in which prototypes rest", minimum=0, maximum=1
    )
    temperature: float = option(0.1, "of the prediction", minimum=0.01)
    epsilon: float = option(
        0.05, "of the assignment; 0.03 if the loss stays at ln K", minimum=0.001
    )
    rounds: int = option(3, "of the assignment (Sinkhorn)", minimum=1, advanced=True)
    hard: bool = option(False, "codes are made one-hot", advanced=True)
    dim: int = option(128, "length of a feature", minimum=2)
    hidden: int = option(512, "width inside the projector", minimum=2, advanced=True)
    place: str = option(
        "sample",
        "where the other crops lie: anywhere in the scan (one scan is one thing, as in "
        "the paper), or around the place of the first crop",
        choices=("scan", "sample"),
    )
    rotate_deg: tuple[float, float, float] = option(
        (15.0, 15.0, 15.0),
        "rotation about z, y, x, drawn in +- this",
        unit="deg",
        minimum=0,
        maximum=180,
    )
    scale: tuple[float, float] = option(
        (0.7, 1.4), "range of zoom", minimum=0.1, maximum=8
    )
    flip: tuple[float, float, float] = option(
        (0.0, 0.0, 0.0),
        "probability of flips along z, y, x; flips hide left from right",
        minimum=0,
        maximum=1,
        advanced=True,
    )
    intensity_probability: float = option(
        0.5, "probability of each intensity change", minimum=0, maximum=1
    )


def default_prototypes(queue_length: int) -> int:
    """Clusters that so many features can tell apart."""
    return min(max(queue_length // 4, _LEAST), _MOST)


def clustering_of(config: SwAVConfig, prototypes: int) -> Clustering:
    """Prototypes and queues as the settings say."""
    return Clustering(
        config.dim,
        prototypes,
        queue_length=config.queue_length,
        temperature=config.temperature,
        epsilon=config.epsilon,
        rounds=config.rounds,
        hard=config.hard,
    )


def multi_crop(config: SwAVConfig, intensity: Intensity) -> dict[str, ViewSpec]:
    """Two large crops, and small ones within the first of them or anywhere."""
    far = config.place == "scan"
    large = ViewSpec(
        size=config.size,
        count=2,
        place=Elsewhere() if far else Anchor(),
        translate=(0.0, 0.0, 0.0) if far else (0.25, 0.25, 0.25),
        rotate_deg=config.rotate_deg,
        scale=config.scale,
        flip=config.flip,
        intensity=intensity,
    )
    if not config.small_count:
        return {"large": large}
    small = replace(
        large,
        size=config.small_size,
        count=config.small_count,
        place=Elsewhere() if far else Within("large"),
        translate=(0.0, 0.0, 0.0),
    )
    return {"large": large, "small": small}


class SwAV(Method):
    """Crops of one sample are to fall into the same cluster.

    Two large and some small crops; each large crop's code, an assignment to prototypes
    that gives every prototype its share of the samples, is predicted from all other
    crops. The control for what Joint and Hundred Million add.

    The loss begins near ln K (``trivial``); ``usage`` is the entropy of the mean code
    in units of ln K. With gradient accumulation codes are shared out within each part.

    Source: Caron et al., "Unsupervised Learning of Visual Features by Contrasting
    Cluster Assignments", NeurIPS 2020.
    Differs from the paper: three axes; crops overlap by default, for two far places of
    one body are not the same thing; layer norm in the projector; AdamW; queue and
    freeze are given as shares of the training.
    """

    Config = SwAVConfig
    title: ClassVar[str] = "SwAV: clustering with swapped prediction"
    paper: ClassVar[str] = (
        "Caron et al., Unsupervised Learning of Visual Features by Contrasting Cluster "
        "Assignments, NeurIPS 2020"
    )
    RECIPES: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cpu": {
            "method": {"size": [48, 48, 48], "small_size": [32, 32, 32]},
            "backbone": {"name": "resunet"},
            "training": {
                "steps": 400,
                "batch_size": 8,
                "learning_rate": 1e-3,
                "weight_decay": 0.01,
                "warmup_steps": 20,
            },
        },
        "gpu": {
            "method": {
                "size": [96, 96, 96],
                "small_size": [48, 48, 48],
                "small_count": 4,
                "queue_length": 960,
            },
            "backbone": {"name": "resnet"},
            "training": {
                "steps": 20000,
                "batch_size": 32,
                "learning_rate": 3e-4,
                "weight_decay": 0.01,
                "warmup_steps": 500,
            },
        },
        # 2 large and 6 small crops, K 3000, queue 3840, prototypes rest 313 of about
        # 120 000 steps; the optimiser (LARC at batch 4096) is AdamW here.
        "paper": {
            "method": {
                "size": [96, 96, 96],
                "small_size": [48, 48, 48],
                "small_count": 6,
                "prototypes": 3000,
                "queue_length": 3840,
                "queue_start": 0.075,
                "freeze": 0.0026,
                "hidden": 2048,
                "place": "scan",
            },
            "backbone": {"name": "resnet"},
            "training": {
                "steps": 120_000,
                "batch_size": 64,
                "learning_rate": 3e-4,
                "weight_decay": 1e-6,
                "warmup_steps": 3000,
            },
        },
    }

    config: SwAVConfig

    def __init__(self, backbone: Backbone, config: SwAVConfig) -> None:
        super().__init__(backbone, config)
        self.size: Index = config.size
        backbone.check_size(self.size)
        if config.small_count:
            backbone.check_size(config.small_size)
        self.backbone = backbone
        self.projector = Projector(
            backbone.channels[-1], config.dim, hidden=config.hidden
        )
        self.prototypes = config.prototypes or default_prototypes(config.queue_length)
        self.clustering = clustering_of(config, self.prototypes)

    def remarks(self, classes: Mapping[str, int]) -> list[str]:
        """Too many clusters for the features that share them."""
        if self.prototypes <= max(self.config.queue_length, 1):
            return []
        return [
            f"{self.prototypes} clusters and a queue of {self.config.queue_length} "
            "features: unless a batch holds more, some clusters stay unused and codes "
            "say little (method.prototypes, method.queue_length)."
        ]

    def views(self) -> dict[str, ViewSpec]:
        """See ``multi_crop``."""
        p = self.config.intensity_probability
        intensity = Intensity(
            shift_probability=p, scale_probability=p, gamma_probability=p,
            noise_probability=p, blur_probability=p / 2,
        )  # fmt: skip
        return multi_crop(self.config, intensity)

    def losses(self, views: Views, progress: float) -> dict[str, Tensor]:
        """``swapped``: the codes of the large crops, predicted from the others."""
        config = self.config
        features = [
            one for name in views for one in self.features(views[name].image).unbind(1)
        ]
        self.watch("features", features[0])
        loss = self.clustering(
            features,
            frozen=progress < config.freeze,
            queued=progress >= config.queue_start,
        )
        return {"swapped": loss}

    def features(self, images: Tensor) -> Tensor:
        """(B, V, C, D, H, W) -> (B, V, E), unit length."""
        maps = self.backbone.maps(images.flatten(0, 1))
        found: Tensor = self.projector(pooled(maps[-1]))
        return found.reshape(*images.shape[:2], -1)

    def after_step(self, progress: float) -> None:
        """Fill the queues."""
        self.clustering.after_step()

    def encoder(self) -> Backbone:
        """The trained backbone; projector and prototypes are dropped."""
        return self.backbone

    @property
    def trivial(self) -> dict[str, float]:
        """Ln K: every prediction uniform."""
        return {"swapped": math.log(self.prototypes)}

    @torch.no_grad()
    def monitors(self) -> dict[str, Tensor]:
        """Spread of the features, and how evenly clusters are used."""
        return {**super().monitors(), "usage": self.clustering.usage()}
