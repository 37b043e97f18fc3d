"""SwAV and DeepCluster-v2: crops of a sample share a cluster, the plain form.

What Joint and Hundred Million build on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from homolog.backbones.base import Backbone
from homolog.geometry.affine import Index
from homolog.methods._clusters import (
    RECIPES,
    Clusters,
    SwAVConfig,
    multi_crop,
    plain_changes,
    sample_count,
    sample_numbers,
)
from homolog.methods.base import Case, Method
from homolog.nn.heads import Projector, pooled
from homolog.recipes import Sources
from homolog.views.view import Views, ViewSpec

SOURCES: Mapping[str, Sources] = {
    "paper": {
        "paper: 4, A": "method.small_count method.prototypes method.queue_length "
        "method.queue_start method.hidden training.optimizer "
        "training.min_learning_rate_factor training.weight_decay",
        "paper: 4.8 for 4096": "training.learning_rate",
        "code": "method.freeze method.prototype_rate training.clip_norm",
        "own: crops of volumes in the place of pictures": "method.size "
        "method.small_size method.place backbone.name training.steps "
        "training.batch_size training.warmup_steps",
    }
}


class SwAV(Method):
    """Crops of one sample are to fall into the same cluster.

    Two large and some small crops; each large crop's code, an assignment to prototypes
    that gives every prototype its share of the samples, is predicted from all other
    crops. The control for what Joint and Hundred Million add.

    The loss begins near ln K; ``usage`` is the entropy of the mean code
    in units of ln K. With gradient accumulation codes are shared out within each part.

    The variant ``offline`` (DeepCluster-v2) remembers the large crops of all samples
    instead, and clusters them now and then: the targets of all crops until the next
    time. Before the first clustering its loss is 0; ``seen`` is the share of samples
    remembered. A sample is a scan, or a part of one (``bins``).

    Source: Caron et al., "Unsupervised Learning of Visual Features by Contrasting
    Cluster Assignments", NeurIPS 2020.
    Differs from the paper: three axes; crops overlap by default, for two far places of
    one body are not the same thing; batch norm of each size of crop by itself; AdamW
    but in the recipe paper; queue and freeze are shares of the training; offline, two
    crops of one part of a scan count as one sample, and the first epoch fills the
    memory without training.
    """

    Config = SwAVConfig
    title: ClassVar[str] = "SwAV: clustering with swapped prediction"
    paper: ClassVar[str] = (
        "Caron et al., Unsupervised Learning of Visual Features by Contrasting Cluster "
        "Assignments, NeurIPS 2020"
    )
    per_rank: ClassVar[Mapping[str, str]] = {
        "swapped": "batch norm of the projector; codes and queues are shared",
        "clusters": "batch norm of the projector; the memory is shared",
    }
    sees_padding: ClassVar[Mapping[str, str]] = {
        "swapped": "the vector of a crop is the mean over all of its cells",
        "clusters": "the vector of a crop is the mean over all of its cells",
    }
    SOURCES: ClassVar[Mapping[str, Sources]] = SOURCES
    RECIPES: ClassVar[Mapping[str, Mapping[str, Any]]] = RECIPES

    config: SwAVConfig

    def __init__(self, backbone: Backbone, config: SwAVConfig) -> None:
        super().__init__(backbone, config)
        self.size: Index = config.size
        backbone.check_size(self.size)
        if config.small_count:
            backbone.check_size(config.small_size)
        self.backbone = backbone
        self.projector = Projector(
            backbone.channels[-1], config.dim, hidden=config.hidden, norm="batch"
        )
        self.clusters = Clusters(config, config.samples)
        self.prototypes = self.clusters.prototypes

    @property
    def is_offline(self) -> bool:
        """Whether it is DeepCluster-v2."""
        return self.config.variant == "offline"

    @classmethod
    def settled(
        cls, settings: Mapping[str, Any], cases: Sequence[Case]
    ) -> dict[str, Any]:
        """How many samples there are to remember."""
        found = dict(settings)
        if found["variant"] == "offline":
            found["samples"] = sample_count(len(cases), _bins(found))
        return found

    def remarks(self, classes: Mapping[str, int]) -> list[str]:
        """What offline waits for; too many clusters for the features of a code."""
        if self.is_offline:
            return [
                f"{self.config.samples} samples are remembered and clustered every "
                f"{self.config.every} steps (method.every; an epoch is about right), "
                f"{self.config.heads} times into {self.prototypes} clusters; the loss "
                "is 0 until the first clustering."
            ]
        if self.prototypes <= max(self.config.queue_length, 1):
            return []
        return [
            f"{self.prototypes} clusters and a queue of {self.config.queue_length} "
            "features: unless a batch holds more, some clusters stay unused and codes "
            "say little (method.prototypes, method.queue_length)."
        ]

    def rate_factors(self) -> Mapping[str, float]:
        """Prototypes learn at a rate of their own."""
        return {"clusters.": self.config.prototype_rate}

    def views(self) -> dict[str, ViewSpec]:
        """See ``multi_crop``."""
        return multi_crop(self.config, plain_changes(self.config))

    def losses(self, views: Views, progress: float) -> dict[str, Tensor]:
        """``swapped``: the codes of the large crops, predicted from the others.

        Offline ``clusters``: those of the samples, predicted from all crops.
        """
        features = [
            one for name in views for one in self.features(views[name].image).unbind(1)
        ]
        self.watch("features", features[0])
        bins = _bins(vars(self.config)) if self.is_offline else (1, 1, 1)
        numbers = sample_numbers(views["large"], bins)
        loss = self.clusters(features, numbers, progress)
        return {"clusters" if self.is_offline else "swapped": loss}

    def features(self, images: Tensor) -> Tensor:
        """(B, V, C, D, H, W) -> (B, V, E), unit length."""
        maps = self.backbone.maps(images.flatten(0, 1))
        found: Tensor = self.projector(pooled(maps[-1]))
        return found.reshape(*images.shape[:2], -1)

    def after_step(self, progress: float) -> None:
        """Fill the queues, or the memory."""
        self.clusters.after_step()

    def encoder(self) -> Backbone:
        """The trained backbone; projector and prototypes are dropped."""
        return self.backbone

    @torch.no_grad()
    def monitors(self) -> dict[str, Tensor]:
        """Spread of the features, and how evenly clusters are used."""
        return {**super().monitors(), **self.clusters.monitors()}


def _bins(settings: Mapping[str, Any]) -> Index:
    """Parts of a scan that are samples of their own."""
    if settings["place"] == "scan":
        return (1, 1, 1)
    z, y, x = settings["bins"]
    return z, y, x
