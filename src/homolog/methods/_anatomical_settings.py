"""Settings and recipes of the anatomical embedding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from homolog.config import option


@dataclass(frozen=True)
class AnatomicalEmbeddingConfig:
    """Settings of the anatomical embedding; the defaults suit a small machine.

    Distances of 0 mm mean "by the cell": the store's spacing decides how many
    millimetres a cell of the feature map has.
    """

    size: tuple[int, int, int] = option(
        (48, 48, 48), "crop size z, y, x", unit="voxel", minimum=1, maximum=512
    )
    fine_stride: int = option(
        2, "map of the fine embedding", unit="voxel", choices=(1, 2, 4)
    )
    coarse_stride: int = option(
        8, "map of the coarse embedding", unit="voxel", choices=(4, 8, 16, 32)
    )
    width: int = option(48, "channels of the feature pyramid", minimum=4)
    dim: int = option(32, "length of each of the two embeddings", minimum=2)
    temperature: float = option(0.5, "divides the cosines of both terms", minimum=0.01)
    anchors: int = option(64, "places asked for per pair and direction", minimum=1)
    hardest: int = option(
        512, "wrong places most like an anchor that are looked at", minimum=1
    )
    negatives: int = option(128, "how many of these are taken at random", minimum=1)
    coarse_hardest: int = option(
        64, "the same for the coarse embedding", minimum=1, advanced=True
    )
    coarse_negatives: int = option(48, "how many of these are taken", minimum=1)
    global_negatives: int = option(
        64, "coarse places of other scans of the batch", minimum=0
    )
    positive_mm: float = option(
        0.0, "a partner lies nearer than this; 0: one fine cell", unit="mm", minimum=0
    )
    ignore_mm: float = option(
        0.0,
        "places nearer than this to the own one are no negatives; 0: half a fine cell",
        unit="mm",
        minimum=0,
        advanced=True,
    )
    coarse_positive_mm: float = option(
        0.0,
        "the same for the coarse embedding; 0: one coarse cell",
        unit="mm",
        minimum=0,
        advanced=True,
    )
    coarse_positive_z_mm: float = option(
        0.0,
        "and along z alone; 0: no limit of its own",
        unit="mm",
        minimum=0,
        advanced=True,
    )
    coarse_ignore_mm: float = option(
        0.0,
        "coarse places nearer than this are no negatives; 0: half a coarse cell",
        unit="mm",
        minimum=0,
        advanced=True,
    )
    translate: tuple[float, float, float] = option(
        (0.25, 0.25, 0.25),
        "how far each crop is moved off the common place, as a share of its size",
        minimum=0,
        maximum=0.5,
    )
    scale: tuple[float, float] = option(
        (0.8, 1.2), "range of zoom of each crop", minimum=0.25, maximum=4
    )
    rotate_deg: tuple[float, float, float] = option(
        (0.0, 0.0, 0.0),
        "rotation of each crop about z, y, x, drawn in +- this; 0 keeps the "
        "embedding aware of the patient's axes",
        unit="deg",
        minimum=0,
        maximum=90,
    )
    stray: float = option(
        0.2, "share of pairs whose crops lie anywhere", minimum=0, maximum=1
    )
    intensity_probability: float = option(
        0.3, "probability of each intensity change", minimum=0, maximum=1
    )
    other_modality: float = option(
        0.0,
        "probability of a random grey value curve, against other scanners and "
        "modalities",
        minimum=0,
        maximum=1,
    )
    min_valid: float = option(
        0.5,
        "cells showing less of the scan than this share are left out",
        minimum=0,
        maximum=1,
        advanced=True,
    )


RECIPES: Mapping[str, Mapping[str, Any]] = {
    # At 0.5 hard negatives hold the fine term at chance for hundreds of steps; at 0.1
    # it falls from the first. 37 minutes of two cores, beside other work, on body CT.
    "cpu": {
        "method": {"size": [48, 64, 64], "temperature": 0.1, "hardest": 2048},
        "backbone": {"name": "resunet", "channels": [16, 32, 64, 128]},
        "training": {
            "steps": 1200,
            "batch_size": 2,
            "learning_rate": 1e-3,
            "weight_decay": 1e-4,
            "warmup_steps": 20,
        },
    },
    # 24 GB: batch 3; 80 GB: batch 6-8.
    "gpu": {
        "method": {
            "size": [64, 96, 96],
            "coarse_stride": 16,
            "width": 128,
            "dim": 128,
            "temperature": 0.1,
            "anchors": 100,
            "hardest": 2000,
            "negatives": 500,
            "coarse_hardest": 250,
            "coarse_negatives": 200,
            "global_negatives": 300,
        },
        "backbone": {"name": "resnet"},
        "training": {
            "steps": 20000,
            "batch_size": 4,
            "learning_rate": 3e-4,
            "weight_decay": 1e-4,
            "warmup_steps": 500,
        },
    },
    # The published configuration for DeepLesion (scans at 2 mm): crops 96 x 96 x 32,
    # 20000 iterations of 3 pairs in fp32. SGD 0.02 there; AdamW here.
    "paper": {
        "method": {
            "size": [32, 96, 96],
            "coarse_stride": 16,
            "width": 128,
            "dim": 128,
            "temperature": 0.5,
            "anchors": 100,
            "hardest": 2000,
            "negatives": 500,
            "coarse_hardest": 250,
            "coarse_negatives": 200,
            "global_negatives": 300,
            "positive_mm": 5.0,
            "ignore_mm": 3.0,
            "coarse_positive_mm": 25.0,
            "coarse_ignore_mm": 5.0,
            "intensity_probability": 0.0,
        },
        "backbone": {"name": "resnet"},
        "training": {
            "steps": 20000,
            "batch_size": 3,
            "learning_rate": 3e-4,
            "weight_decay": 1e-4,
            "warmup_steps": 500,
            "precision": "fp32",
        },
    },
}
