"""Clusters of samples, online or offline, as the settings of a method say."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from homolog.losses.precision import full_precision
from homolog.methods._swav_settings import MultiCropConfig, VariantConfig
from homolog.nn.clustering import Clustering
from homolog.nn.memory_bank import OfflineClustering

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
