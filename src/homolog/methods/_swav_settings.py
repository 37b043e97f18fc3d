"""Settings and recipes of SwAV; the crops and clusters it shares with others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from homolog.config import option


@dataclass(frozen=True)
class MultiCropConfig:
    """Crops, clusters and codes; the defaults suit a small machine."""

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
    prototype_rate: float = option(
        10.0,
        "learning rate of the prototypes, times that of the rest: of unit length, they "
        "would hardly move otherwise",
        minimum=0,
        advanced=True,
    )
    queue_length: int = option(
        64,
        "features of earlier batches that share the assignment, per large crop, over "
        "all processes; 0: none. Where the loss rises when it comes in, a shorter one "
        "helps: its features are of an older network",
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


@dataclass(frozen=True)
class VariantConfig(MultiCropConfig):
    """And whether targets come from batches or from clusters of all samples."""

    variant: str = option(
        "online",
        "online: targets from each batch; offline (DeepCluster-v2): clusters "
        "of all samples, found anew now and then",
        choices=("online", "offline"),
    )
    heads: int = option(3, "offline: clusterings side by side", minimum=1)
    every: int = option(
        100,
        "offline: steps between clusterings, about an epoch; the first so many steps "
        "only fill the memory",
        minimum=1,
    )
    bins: tuple[int, int, int] = option(
        (4, 2, 2),
        "offline: parts of a scan along z, y, x that are samples of their own, unless "
        "one scan is one thing (place scan)",
        minimum=1,
        advanced=True,
    )
    kmeans_rounds: int = option(
        10, "offline: rounds of the k-means", minimum=1, advanced=True
    )
    samples: int = option(
        0,
        "offline: how many there are; counted in the stores",
        minimum=0,
        advanced=True,
    )


@dataclass(frozen=True)
class SwAVConfig(VariantConfig):
    """Settings of SwAV; the defaults suit a small machine."""


RECIPES: Mapping[str, Mapping[str, Any]] = {
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
    # 120 000 steps. LARC falls from 4.8 to 0.0048 at batch 4096: from 0.075 at 64, so
    # take n times as much with n processes.
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
            "prototype_rate": 1.0,
        },
        "backbone": {"name": "resnet"},
        "training": {
            "steps": 120_000,
            "batch_size": 64,
            "optimizer": "larc",
            "learning_rate": 0.075,
            "min_learning_rate_factor": 0.001,
            "clip_norm": 0.0,
            "weight_decay": 1e-6,
            "warmup_steps": 3000,
        },
    },
}
