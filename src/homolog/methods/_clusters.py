"""Clusters of samples, online or offline, as the settings of a method say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from homolog.config import as_in, option
from homolog.geometry.affine import Index
from homolog.geometry.sampling import constant
from homolog.losses.similarity import full_precision
from homolog.methods.base import CropConfig, TokenCropConfig
from homolog.nn.memory_bank import Clustering, OfflineClustering
from homolog.views.view import Anchor, Elsewhere, Intensity, View, ViewSpec, Within

# Numbers of samples, for what a method remembers of each: a scan, or a part of one.


def sample_count(cases: int, bins: Index) -> int:
    """How many numbers ``sample_numbers`` gives out."""
    return cases * math.prod(bins)


def sample_numbers(view: View, bins: Index) -> Tensor:
    """(B,) int64: the number of the scan times its parts, plus that of the part.

    Args:
        view: The group whose first view says where the sample lies.
        bins: Parts of a scan along z, y, x; (1, 1, 1) where a scan is one sample.

    Raises:
        ValueError: There are parts, but the view does not know where it lies.
    """
    parts = math.prod(bins)
    if parts == 1:
        return view.case
    if view.where is None:
        raise ValueError(f"{parts} parts of a scan need views that know their place.")
    counts = constant(bins, view.where.device, torch.int64)
    part = (view.where[:, 0] * counts).long().clamp_min(0).minimum(counts - 1)
    z, y, x = part.unbind(1)
    return view.case * parts + (z * bins[1] + y) * bins[2] + x


# Settings and recipes of SwAV; the crops and clusters it shares with others.


@dataclass(frozen=True)
class MultiCropConfig(CropConfig):
    """Crops, clusters and codes; the defaults suit a small machine."""

    size: tuple[int, int, int] = as_in(CropConfig, "size", help="large crop z, y, x")
    rotate_deg: tuple[float, float, float] = as_in(
        CropConfig, "rotate_deg", default=(15.0, 15.0, 15.0)
    )
    scale: tuple[float, float] = as_in(
        CropConfig, "scale", default=(0.7, 1.4), minimum=0.1, maximum=8
    )
    intensity_probability: float = as_in(
        CropConfig, "intensity_probability", default=0.5
    )
    flip: tuple[float, float, float] = as_in(TokenCropConfig, "flip")

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
        "where the other crops lie: anywhere in the scan (one scan is one thing), "
        "anywhere in the slices of the first crop (one slice, or stack of slices, is "
        "one image, as in papers on images), or around the place of the first crop",
        choices=("scan", "slices", "sample"),
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

_LEAST, _MOST = 8, 3000
_SAMPLES_PER_CLUSTER = 8


def default_prototypes(queue_length: int) -> int:
    """Clusters that so many features can tell apart."""
    return min(max(queue_length // 4, _LEAST), _MOST)


def default_offline(samples: int) -> int:
    """Clusters that so many samples can fill."""
    wanted = min(max(samples // _SAMPLES_PER_CLUSTER, _LEAST), _MOST)
    return max(2, min(wanted, samples // 2))


def clustering_of(config: MultiCropConfig, prototypes: int) -> Clustering:
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


class Clusters(nn.Module):
    """Online (SwAV) or offline (DeepCluster-v2) clusters of one kind of sample.

    Args:
        config: Decides which, and how.
        samples: How many there are; offline remembers them all.

    Attributes:
        prototypes: K.
        is_offline: Whether it is DeepCluster-v2.
    """

    def __init__(self, config: VariantConfig, samples: int) -> None:
        super().__init__()
        self.is_offline = config.variant == "offline"
        self.freeze, self.queue_start = config.freeze, config.queue_start
        self.online: Clustering | None = None
        self.offline: OfflineClustering | None = None
        if self.is_offline:
            self.prototypes = config.prototypes or default_offline(samples)
            self.offline = OfflineClustering(
                config.dim,
                [self.prototypes] * config.heads,
                samples,
                every=config.every,
                temperature=config.temperature,
                rounds=config.kmeans_rounds,
            )
        else:
            length = config.queue_length
            self.prototypes = config.prototypes or default_prototypes(length)
            self.online = clustering_of(config, self.prototypes)

    def forward(
        self, features: Sequence[Tensor], numbers: Tensor, progress: float
    ) -> Tensor:
        """The loss of some views of the same samples.

        Args:
            features: Per view (B, E), unit length, the two large ones first.
            numbers: (B,), which samples they are.
            progress: Share of the training, or of its stage, that is done.
        """
        if self.offline is not None:
            told: Tensor = self.offline(features, numbers)
            return told
        assert self.online is not None
        loss: Tensor = self.online(
            features,
            frozen=progress < self.freeze,
            queued=progress >= self.queue_start,
        )
        return loss

    def after_step(self) -> None:
        """Fill the queues, or the memory."""
        for clustering in (self.online, self.offline):
            if clustering is not None:
                clustering.after_step()

    @torch.no_grad()
    @full_precision
    def nearest(self, features: Tensor) -> Tensor:
        """(B, E) unit features -> (B,) the cluster of each (of the first head)."""
        if self.offline is not None:
            return (features @ self.offline.get_buffer("weight_0").mT).argmax(1)
        assert self.online is not None
        return self.online.scores(features).argmax(1)

    def monitors(self) -> dict[str, Tensor]:
        """``usage`` in units of ln K; offline ``seen``, the share remembered."""
        if self.offline is not None:
            return {"usage": self.offline.usage(), "seen": self.offline.coverage()}
        assert self.online is not None
        return {"usage": self.online.usage()}


# Large and small crops of one sample: what the clustering methods look at.


def plain_changes(config: MultiCropConfig) -> Intensity:
    """Changes of grey values, each with the probability of the settings."""
    p = config.intensity_probability
    return Intensity(
        shift_probability=p, scale_probability=p, gamma_probability=p,
        noise_probability=p, blur_probability=p / 2,
    )  # fmt: skip


def multi_crop(config: MultiCropConfig, intensity: Intensity) -> dict[str, ViewSpec]:
    """Two large crops, and small ones within the first of them or anywhere.

    Crops of the same slices copy these: they are turned and scaled in plane alone.

    Paper: Hundred Million III-A, one image.
    """
    far, level = config.place != "sample", config.place == "slices"
    large = ViewSpec(
        size=config.size,
        count=2,
        place=Elsewhere(slices=level) if far else Anchor(),
        translate=(0.0, 0.0, 0.0) if far else (0.25, 0.25, 0.25),
        rotate_deg=(config.rotate_deg[0], 0.0, 0.0) if level else config.rotate_deg,
        planar=level,
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
        place=large.place if far else Within("large"),
        translate=(0.0, 0.0, 0.0),
    )
    return {"large": large, "small": small}
