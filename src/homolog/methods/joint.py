"""Joint: a 2D network learns slices and images, attention learns whole volumes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from homolog.backbones.base import Backbone
from homolog.backbones.hybrid import Hybrid
from homolog.config import ConfigError, as_in, option
from homolog.losses.similarity import hidden_feature_error, unit
from homolog.methods._clusters import (
    Clusters,
    VariantConfig,
    multi_crop,
    plain_changes,
    sample_count,
    sample_numbers,
)
from homolog.methods.base import Case, Method
from homolog.nn.heads import Projector, pooled
from homolog.nn.masking import hidden_patches
from homolog.nn.memory_bank import shared_information
from homolog.recipes import Sources
from homolog.views.view import Phase, View, Views, ViewSpec, Within, phase_at

# Settings and recipes of Joint.


# Paper: Joint Table 7.
@dataclass(frozen=True)
class JointConfig(VariantConfig):
    """Settings of Joint; the defaults suit a small machine."""

    size: tuple[int, int, int] = as_in(
        VariantConfig,
        "size",
        default=(16, 64, 64),
        help="volumes of the second and third stage z, y, x",
    )
    bins: tuple[int, int, int] = as_in(
        VariantConfig,
        "bins",
        default=(8, 1, 1),
        help="offline: parts of a scan along z, y, x whose slices count as one sample",
    )
    small_size: tuple[int, int, int] = as_in(
        VariantConfig, "small_size", default=(1, 32, 32), help="small crops of slices"
    )

    slice_size: tuple[int, int, int] = option(
        (1, 64, 64),
        "slices and images of the first stage",
        unit="voxel",
        minimum=1,
        maximum=1024,
    )
    share_slices: float = option(
        0.4,
        "share of the training that clusters slices and images; 0 leaves it out",
        minimum=0,
        maximum=1,
    )
    share_masked: float = option(
        0.2,
        "share that predicts masked slices; 0 leaves it out (the paper's ablation)",
        minimum=0,
        maximum=1,
    )
    share_volumes: float = option(
        0.4,
        "share that clusters volumes; 0 leaves it out (the paper's ablation)",
        minimum=0,
        maximum=1,
    )
    volume_samples: float = option(
        0.5,
        "volumes in a batch, as a share of its slices",
        minimum=0.001,
        maximum=1,
    )
    masked_ratio: float = option(
        0.1, "share of a volume's slices that is masked", minimum=0.01, maximum=0.9
    )
    literal: bool = option(
        False,
        "the masked term is the printed sum of distances, not the mean of squares",
        advanced=True,
    )
    prototypes_volumes: int = option(
        0, "clusters of volumes; 0: as of slices, from queue_volumes", minimum=0
    )
    hard_volumes: bool = option(
        True,
        "codes of volumes are made one-hot: at first volumes look alike, and soft "
        "codes of them say nothing (the loss stays at ln K)",
        advanced=True,
    )
    queue_volumes: int = option(
        0,
        "features of earlier volumes that share their assignment; 0: none. With few "
        "volumes a batch, all of them can drift away from those of a queue together, "
        "which lowers the loss and teaches nothing",
        minimum=0,
    )
    token_stride: int = option(
        8, "voxels per cell of the features kept for similarity", minimum=2
    )


# Paper: Joint stages.
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "cpu": {
        "method": {},
        "backbone": {
            "name": "hybrid",
            "widths": [16, 32, 64, 128],
            "stage_blocks": [1, 1, 1, 1],
            "block": "basic",
            "norm": "group",
            "dim": 64,
            "layers": 2,
            "heads": 4,
            "inner": 96,
            "reduction": 2,
            "dropout": 0.0,
        },
        "training": {
            "steps": 2000,
            "batch_size": 16,
            "learning_rate": 1e-3,
            "weight_decay": 0.01,
            "warmup_steps": 40,
        },
    },
    "gpu": {
        "method": {
            "size": [32, 128, 128],
            "slice_size": [1, 224, 224],
            "small_size": [1, 96, 96],
            "queue_length": 3840,
            "queue_volumes": 64,
            "volume_samples": 0.0625,
            "hidden": 2048,
        },
        "backbone": {"name": "hybrid", "groups": 8, "slices_at_once": 128},
        "training": {
            "steps": 40_000,
            "batch_size": 128,
            "learning_rate": 3e-4,
            "weight_decay": 1e-6,
            "warmup_steps": 1000,
        },
    },
    # 100 epochs a stage; 1024 images, then 12 volumes of 64 x 128 x 128 a batch; K 3000
    # in both, prototypes rest 313 iterations, no queue; SGD and LARC, a cosine a stage.
    "paper": {
        "method": {
            "size": [64, 128, 128],
            "slice_size": [1, 224, 224],
            "small_size": [1, 96, 96],
            "small_count": 6,
            "prototypes": 3000,
            "prototypes_volumes": 3000,
            "queue_length": 0,
            "queue_volumes": 0,
            "hard_volumes": False,
            "freeze": 0.003,
            "volume_samples": 0.0117,
            "share_slices": 0.34,
            "share_masked": 0.33,
            "share_volumes": 0.33,
            "hidden": 2048,
            "place": "slices",
            "prototype_rate": 1.0,
        },
        "backbone": {"name": "hybrid", "groups": 8, "slices_at_once": 128},
        "training": {
            "steps": 300_000,
            "batch_size": 1024,
            "optimizer": "larc",
            "learning_rate": 0.01,
            "min_learning_rate_factor": 0.0,
            "restarts": True,
            "clip_norm": 2.0,
            "weight_decay": 1e-6,
            "warmup_steps": 10_000,
        },
    },
}

# Modalities that are told apart in the count of clusters.
_MODALITIES = 16
# What Table 8 says.
_PAPERS_PARAMETERS = 31.16e6


SOURCES: Mapping[str, Sources] = {
    "paper": {
        "paper: Pre-training": "training.batch_size method.volume_samples "
        "method.share_slices method.share_masked method.share_volumes "
        "training.restarts",
        "paper: ResNet-50 with four blocks of attention": "backbone.name",
        "paper: Eq. 7": "backbone.groups",
        "paper: Eq. 11, the same slices": "method.place",
        "paper: 10 % of the slices": "method.masked_ratio",
        "code": "method.size method.prototypes method.prototypes_volumes "
        "method.queue_length method.queue_volumes method.hard_volumes method.freeze "
        "method.prototype_rate training.optimizer training.learning_rate "
        "training.min_learning_rate_factor training.clip_norm training.weight_decay",
        "code: 10 of 100 epochs": "training.warmup_steps",
        "code: SwAV, of images": "method.slice_size method.small_size "
        "method.small_count method.hidden",
        "own: 100 000 steps for 100 epochs": "training.steps",
        "own: for memory, changes no result": "backbone.slices_at_once",
    }
}


class Joint(Method):
    """2D images and volumes together, in three stages of one run.

    First slices and images: crops of one fall into the same cluster (SwAV, or offline
    DeepCluster-v2). Then only
    the attention: the features of masked slices are told from those of the others. Then
    everything: two views of a volume fall into the same cluster. A term is there for
    every group of views that is: ``slices``, ``masked`` and ``volumes``.

    ``slices_usage`` and ``volumes_usage`` are entropies of mean codes in units of ln K;
    ``explained`` is the share of the variance of masked features that is predicted;
    ``information`` how much of the modality the cluster of a slice tells.

    Source: Nguyen et al., "Joint Self-Supervised Image-Volume Representation Learning
    with Intra-Inter Contrastive Clustering", AAAI 2023.
    Differs from the paper: Eq. 11 swapped, as its text and code; clusters of slices and
    of volumes are not the same ones; only scans of several slices are volumes; the two
    views of a volume overlap by default, and need not show the same slices (in the
    recipe ``paper`` they do, as in the paper, with ``place=slices``; ``place=scan`` is
    no form of the paper's: its crops may show quite other organs); one course of the
    learning rate for all stages, and AdamW, but in the recipe ``paper``; there one peak
    rate, the public code's for volumes, and one course of the moments, for all stages;
    statistics of batch norm rest after the first stage.
    """

    Config = JointConfig
    title: ClassVar[str] = "Joint: images and volumes by clustering"
    paper: ClassVar[str] = (
        "Nguyen et al., Joint Self-Supervised Image-Volume Representation Learning "
        "with Intra-Inter Contrastive Clustering, AAAI 2023"
    )
    backbones: ClassVar[tuple[str, ...]] = ("hybrid",)
    share_power: ClassVar[float] = 0.5
    per_rank: ClassVar[Mapping[str, str]] = {
        "slices": "batch norm of the projector; codes and queues are shared",
    }
    sees_padding: ClassVar[Mapping[str, str]] = {
        "slices": "the vector of a slice is the mean over all of its cells",
        "masked": "the vector of a slice is pooled from all of its cells",
        "volumes": "the vector of a volume is pooled from all of its cells",
    }
    SOURCES: ClassVar[Mapping[str, Sources]] = SOURCES
    RECIPES: ClassVar[Mapping[str, Mapping[str, Any]]] = RECIPES

    config: JointConfig

    def __init__(self, backbone: Backbone, config: JointConfig) -> None:
        super().__init__(backbone, config)
        if not isinstance(backbone, Hybrid):
            raise ConfigError(
                "joint needs the backbone hybrid, a 2D network with attention over "
                f"slices, got {type(backbone).__name__}."
            )
        deep = config.share_masked > 0 or config.share_volumes > 0
        flat = config.slice_size[0] == config.small_size[0] == 1
        if not flat or (deep and config.size[0] < 2):
            raise ConfigError(
                "joint needs volumes (size) of two slices or more, and slice_size and "
                f"small_size of one, got {config.size}, {config.slice_size} and "
                f"{config.small_size}."
            )
        if not self.phases():
            raise ConfigError("joint needs a stage: all three shares are 0.")
        for spec in self.views().values():
            backbone.check_size(spec.size)
        self.backbone = backbone
        self.slices: Clusters | None = None
        self.volumes: Clusters | None = None
        if config.share_slices > 0:
            self.projector = Projector(
                backbone.intra.channels[-1],
                config.dim,
                hidden=config.hidden,
                norm="batch",
            )
            self.slices = Clusters(config, sample_count(config.samples, config.bins))
        if config.share_volumes > 0:
            of_volumes = replace(
                config,
                dim=backbone.config.dim,
                prototypes=config.prototypes_volumes,
                queue_length=config.queue_volumes,
                hard=config.hard_volumes,
            )
            self.volumes = Clusters(of_volumes, config.samples)
        if config.share_masked > 0:
            self.masked = nn.Parameter(torch.randn(backbone.described) * 0.02)
            self.decode = nn.Linear(backbone.config.dim, backbone.described)
        self._raw: dict[str, Tensor] = {}
        self.seen: Tensor
        count = 1 if self.slices is None else self.slices.prototypes
        self.register_buffer("seen", torch.zeros(_MODALITIES, count))

    @classmethod
    def settled(
        cls, settings: Mapping[str, Any], cases: Sequence[Case]
    ) -> dict[str, Any]:
        """How many scans there are; without volumes there is only the first stage."""
        found = dict(settings)
        if found["variant"] == "offline":
            found["samples"] = len(cases)
        if not any(case.card.shape[0] > 1 for case in cases):
            found |= {"share_slices": 1.0, "share_masked": 0.0, "share_volumes": 0.0}
        return found

    def remarks(self, classes: Mapping[str, int]) -> list[str]:
        """Its size beside the paper's, and its stages.

        Paper: Joint network.
        """
        count = sum(p.numel() for p in self.backbone.parameters())
        shares = [f"{p.groups[0]} {p.share:.0%}" for p in self.phases()]
        told = [
            f"stages: {', '.join(shares)} of the training; {count / 1e6:.2f} M weights "
            f"(the paper: {_PAPERS_PARAMETERS / 1e6:.2f} M)."
        ]
        if len(shares) == 1 and self.slices is not None:
            told.append("only slices and images are learnt; attention over slices not.")
        return told

    def phases(self) -> Sequence[Phase]:
        """Slices, masked slices, volumes.

        Paper: Joint Eq. 12.
        """
        config = self.config
        few = config.volume_samples
        stages = [
            Phase(config.share_slices, tuple(self._slice_views())),
            Phase(config.share_masked, ("masked",), few, volumes=True),
            Phase(config.share_volumes, ("volumes",), few, volumes=True),
        ]
        total = sum(stage.share for stage in stages)
        return [replace(s, share=s.share / total) for s in stages if s.share > 0]

    def rate_factors(self) -> Mapping[str, float]:
        """Prototypes learn at a rate of their own."""
        return dict.fromkeys(("slices.", "volumes."), self.config.prototype_rate)

    def views(self) -> dict[str, ViewSpec]:
        """Two views of volumes, and of slices, with small crops of those.

        Paper: Joint Eq. 11, the same n slices.
        """
        config = self.config
        found: dict[str, ViewSpec] = {}
        volume = multi_crop(replace(config, small_count=0), plain_changes(config))[
            "large"
        ]
        if config.share_volumes > 0:
            found["volumes"] = volume
        if config.share_masked > 0:
            found["masked"] = volume
        return {**found, **(self._slice_views() if config.share_slices > 0 else {})}

    def _slice_views(self) -> dict[str, ViewSpec]:
        """Paper: Joint Eq. 5."""
        config = self.config
        turned = (config.rotate_deg[0], 0.0, 0.0)  # an image has no depth to tilt in
        flat = replace(
            config, size=config.slice_size, rotate_deg=turned,
            place="slices" if config.place == "slices" else "sample",
        )  # fmt: skip
        views = multi_crop(flat, plain_changes(config))
        along = views["large"].translate[1:]  # both views are of one slice
        found = {"slices": replace(views["large"], translate=(0.0, *along))}
        if "small" in views:
            near = flat.place == "sample"
            place = Within("slices") if near else views["small"].place
            found["small"] = replace(views["small"], place=place)
        return found

    def losses(self, views: Views, progress: float) -> dict[str, Tensor]:
        """``slices``, ``masked``, ``volumes``: of those whose views are there."""
        # monitors tell of this step alone, or a resumed run would tell another story
        self._watched.clear()
        self._raw.clear()
        found = {}
        if "slices" in views:
            found["slices"] = self._slices_term(views, self._stage_at(views, progress))
        with _resting_statistics(self.backbone.intra):
            if "masked" in views:
                found["masked"] = self._masked_term(views["masked"], progress)
            if "volumes" in views:
                local = self._stage_at(views, progress)
                found["volumes"] = self._volumes_term(views["volumes"], local)
        return found

    def _stage_at(self, views: Views, progress: float) -> float:
        """Share of the running stage that is done; of all where all run at once."""
        phases = self.phases()
        if sum(phase.groups[0] in views for phase in phases) > 1:
            return progress
        number = phase_at(phases, progress)
        begin = sum(phase.share for phase in phases[:number])
        return min(max((progress - begin) / phases[number].share, 0.0), 1.0)

    def _slices_term(self, views: Views, local: float) -> Tensor:
        """Swapped prediction of the crops of slices and images, Eq. 1 to 5.

        Paper: Joint Eq. 1.
        """
        assert self.slices is not None
        features: list[Tensor] = []
        for name in ("slices", "small"):
            if name in views:
                flat = views[name].flat()[:, :, 0]
                found = self.projector(pooled(self.backbone.intra(flat)[-1]))
                features += found.reshape(*views[name].image.shape[:2], -1).unbind(1)
        self.watch("slices", features[0])
        modality = views["slices"].modality
        if self.training and modality is not None:
            self._count(features[0].detach(), modality)
        bins = self.config.bins if self.slices.is_offline else (1, 1, 1)
        numbers = sample_numbers(views["slices"], bins)
        loss: Tensor = self.slices(features, numbers, local)
        return loss

    def _masked_term(self, view: View, progress: float) -> Tensor:
        """The features of masked slices, told from those of the others, Eq. 13 to 15.

        Only the attention, the mask and the decoder learn.

        Paper: Joint Eq. 13, 14.
        """
        with torch.no_grad():
            target = self.backbone.describe(self.backbone.slice_maps(view.flat()))
        ratio = self.config.masked_ratio
        hidden = hidden_patches(view, progress, target.shape[1], ratio)
        shown = torch.where(hidden[..., None], self.masked, target)
        told = self.decode(self.backbone.between(shown))
        error = hidden_feature_error(told, target, hidden, literal=self.config.literal)
        with torch.no_grad():
            spread = target.flatten(0, 1).var(dim=0, correction=0).sum()
            plain = hidden_feature_error(told.detach(), target, hidden)
            self._raw["explained"] = 1 - plain / spread.clamp_min(1e-12)
        return error

    def _volumes_term(self, view: View, local: float) -> Tensor:
        """Swapped prediction of the two views of a volume, Eq. 9 to 12.

        Paper: Joint Eq. 10; Joint Eq. 11.
        """
        assert self.volumes is not None
        described = self.backbone.describe(self.backbone.slice_maps(view.flat()))
        vectors = unit(self.backbone.between(described).mean(dim=1))
        features = vectors.reshape(*view.image.shape[:2], -1).unbind(1)
        self.watch("volumes", features[0])
        loss: Tensor = self.volumes(features, view.case, local)
        return loss

    @torch.no_grad()
    def _count(self, features: Tensor, modality: Tensor) -> None:
        """How often slices of each modality fall to each cluster."""
        assert self.slices is not None
        nearest = self.slices.nearest(features)
        hits = torch.zeros_like(self.seen)
        row = modality.clamp_max(_MODALITIES - 1)
        ones = torch.ones_like(nearest, dtype=hits.dtype)
        self._raw["hits"] = hits.index_put((row, nearest), ones, accumulate=True)

    def after_step(self, progress: float) -> None:
        """Fill the queues and the counts."""
        for clusters in (self.slices, self.volumes):
            if clusters is not None:
                clusters.after_step()
        hits = self._raw.pop("hits", None)
        if hits is not None:
            self.seen.mul_(0.95).add_(hits)

    def encoder(self) -> Backbone:
        """The hybrid network; prototypes, mask and decoder are dropped."""
        return self.backbone

    @torch.no_grad()
    def monitors(self) -> dict[str, Tensor]:
        """Spread of the features, use of clusters, what is predicted of masked ones."""
        found = super().monitors()
        for name in ("slices", "volumes"):
            clusters = getattr(self, name)
            if name in self._watched and clusters is not None:
                told = clusters.monitors()
                found |= {f"{name}_{what}": value for what, value in told.items()}
        if "slices" in self._watched and (self.seen.sum(1) > 0).sum() > 1:
            found["information"] = shared_information(self.seen)
        if "explained" in self._raw:
            found["explained"] = self._raw["explained"]
        return found


@contextlib.contextmanager
def _resting_statistics(network: nn.Module) -> Iterator[None]:
    """Batch norms use, and do not change, what they know.

    Slices of few volumes are alike: statistics of a batch would say which volume.
    """
    resting = [
        m for m in network.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training
    ]  # fmt: skip
    for module in resting:
        module.eval()
    try:
        yield
    finally:
        for module in resting:
            module.train()
