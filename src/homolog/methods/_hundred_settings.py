"""Settings and recipes of Hundred Million."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from homolog.config import option
from homolog.methods._swav_settings import MultiCropConfig


@dataclass(frozen=True)
class HundredMillionConfig(MultiCropConfig):
    """Settings of Hundred Million; the defaults suit a small machine."""

    scale: tuple[float, float] = option(
        (0.4, 1.2),
        "range of zoom; the paper shrinks images to 0.1 to 0.7 of their side",
        minimum=0.05,
        maximum=8,
    )
    clustering: str = option(
        "modality",
        "modality: every modality has clusters of its own and its share of each batch; "
        "together: all share them, which tends to find the modalities themselves",
        choices=("modality", "together"),
    )
    modalities: tuple[str, ...] = option(
        (), "whose turn it is in a batch; empty: those of the stores", advanced=True
    )
    class_names: tuple[str, ...] = option(
        (), "classes of whole scans; empty: those of the stores", advanced=True
    )
    class_several: bool = option(
        False,
        "a scan shows any of the classes or none; set where any scan has more than one",
        advanced=True,
    )
    weight_clusters: float = option(1.0, "weight of the clustering, alpha", minimum=0)
    weight_classes: float = option(
        1.0,
        "weight of the classes of those scans that have one, beta; 0: labels unused",
        minimum=0,
    )
    weight_masks: float = option(
        1.0,
        "weight of the label maps and boxes of those scans that have some; 0: unused",
        minimum=0,
    )
    mask_stride: int = option(
        4,
        "masks are read off the encoder's map of this stride in plane, and the deeper "
        "ones",
        unit="voxel",
        minimum=1,
        advanced=True,
    )
    mask_names: tuple[str, ...] = option(
        (), "classes of label maps and boxes; empty: those of the stores", advanced=True
    )
    mask_rows: tuple[tuple[int, int, int], ...] = option(
        (),
        "store, label value there, class from 1; empty: as the stores have them",
        advanced=True,
    )
    strict: bool = option(
        False,
        "the terms of classes and masks are divided by all samples of a batch, as "
        "printed, not by the labelled ones",
        advanced=True,
    )
    bands_probability: float = option(
        0.5, "probability of other energies of frequency bands", minimum=0, maximum=1
    )
    bands_sigmas: tuple[float, ...] = option(
        (0.5, 1.0, 2.0, 4.0),
        "Gaussians that split an image into bands, fine to coarse",
        unit="voxel",
        minimum=0.3,
        advanced=True,
    )
    bands_mean: tuple[float, ...] = option(
        (),
        "mean energy of each band, the low-pass last; empty: measured in the stores",
        minimum=0,
        advanced=True,
    )
    bands_std: tuple[float, ...] = option(
        (), "their standard deviations", minimum=0, advanced=True
    )
    gamma: tuple[float, float] = option(
        (0.6, 1.8), "range of gamma; the paper's 1.8 to 2.6 only darkens", minimum=0.1
    )


RECIPES: Mapping[str, Mapping[str, Any]] = {
    "cpu": {
        "method": {
            "size": [1, 64, 64],
            "small_size": [1, 32, 32],
            "queue_length": 64,
            "prototypes": 16,
            "scale": [0.8, 1.25],
            "intensity_probability": 0.3,
            "bands_probability": 0.3,
        },
        "backbone": {
            "name": "resnet2d",
            "widths": [16, 32, 64, 128],
            "stage_blocks": [1, 1, 1, 1],
            "block": "basic",
            "norm": "group",
        },
        "training": {
            "steps": 1000,
            "batch_size": 40,
            "learning_rate": 1e-3,
            "weight_decay": 0.01,
            "warmup_steps": 40,
        },
    },
    "gpu": {
        "method": {
            "size": [1, 224, 224],
            "small_size": [1, 96, 96],
            "small_count": 6,
            "queue_length": 3840,
            "prototypes": 1000,
            "epsilon": 0.03,
            "hidden": 2048,
        },
        "backbone": {"name": "resnet2d"},
        "training": {
            "steps": 50_000,
            "batch_size": 128,
            "learning_rate": 3e-4,
            "weight_decay": 1e-6,
            "warmup_steps": 1000,
        },
    },
    # 2 crops of 224 and 6 of 92, K 3000, queue 3840 from epoch 10 of 100, prototypes
    # rest 10 000 iterations. LARC falls from 0.6 to 0.0006 at batch 1024, which is that
    # of 32 processes: take less with fewer.
    "paper": {
        "method": {
            "size": [1, 224, 224],
            "small_size": [1, 96, 96],
            "small_count": 6,
            "queue_length": 3840,
            "queue_start": 0.1,
            "prototypes": 3000,
            "freeze": 0.001,
            "epsilon": 0.03,
            "hidden": 2048,
            "place": "scan",
            "prototype_rate": 1.0,
            "scale": [0.1, 0.7],
            "gamma": [1.8, 2.6],
        },
        "backbone": {"name": "resnet2d", "widths": [128, 256, 512, 1024]},
        "training": {
            "steps": 10_000_000,
            "batch_size": 32,
            "optimizer": "larc",
            "learning_rate": 0.6,
            "min_learning_rate_factor": 0.001,
            "clip_norm": 0.0,
            "weight_decay": 1e-6,
            "warmup_steps": 10_000,
        },
    },
}
