"""Settings and recipes of Joint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from homolog.config import option
from homolog.methods._swav_settings import VariantConfig


@dataclass(frozen=True)
class JointConfig(VariantConfig):
    """Settings of Joint; the defaults suit a small machine."""

    size: tuple[int, int, int] = option(
        (16, 64, 64),
        "volumes of the second and third stage z, y, x",
        unit="voxel",
        minimum=1,
        maximum=512,
    )
    slice_size: tuple[int, int, int] = option(
        (1, 64, 64),
        "slices and images of the first stage",
        unit="voxel",
        minimum=1,
        maximum=1024,
    )
    bins: tuple[int, int, int] = option(
        (8, 1, 1),
        "offline: parts of a scan along z, y, x whose slices count as one sample",
        minimum=1,
        advanced=True,
    )
    small_size: tuple[int, int, int] = option(
        (1, 32, 32), "small crops of slices", unit="voxel", minimum=1, maximum=512
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
        "backbone": {"name": "hybrid", "slices_at_once": 128},
        "training": {
            "steps": 40_000,
            "batch_size": 128,
            "learning_rate": 3e-4,
            "weight_decay": 1e-6,
            "warmup_steps": 1000,
        },
    },
    # 100 epochs a stage; 1024 images, then 12 volumes of 64 x 128 x 128 a batch; K 3000
    # in both, prototypes rest 313 iterations, no queue. Its SGD with LARC is AdamW.
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
            "place": "scan",
            "prototype_rate": 1.0,
        },
        "backbone": {"name": "hybrid", "slices_at_once": 128},
        "training": {
            "steps": 300_000,
            "batch_size": 1024,
            "learning_rate": 3e-4,
            "weight_decay": 1e-6,
            "warmup_steps": 3000,
        },
    },
}
