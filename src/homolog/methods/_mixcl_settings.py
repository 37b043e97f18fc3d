"""Settings and recipes of MixCL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from homolog.config import option


@dataclass(frozen=True)
class MixCLConfig:
    """Settings of MixCL; the defaults suit a small machine."""

    size: tuple[int, int, int] = option(
        (32, 32, 32), "crop size z, y, x", unit="voxel", minimum=1, maximum=512
    )
    levels: tuple[int, ...] = option(
        (2, 4, 8), "strides of the maps that the identity term compares", unit="voxel"
    )
    label_stride: int = option(
        0,
        "stride of the map that the label term compares; 0: the second finest of the "
        "network, for a vit 2",
        unit="voxel",
        minimum=0,
    )
    weight_identity: float = option(1.0, "weight of the identity term", minimum=0)
    weight_label: float = option(0.1, "weight of the label term", minimum=0)
    weight_reconstruction: float = option(
        1.0, "weight of the reconstruction term", minimum=0
    )
    sums: bool = option(
        False,
        "sums over features, levels and voxels as in the paper, instead of means; the "
        "paper's weights are 1, 0.01, 0.01",
        advanced=True,
    )
    redundancy: float = option(
        0.0051, "weight of correlations between different features", minimum=0
    )
    center: bool = option(
        True,
        "subtract each feature's mean before correlating, unlike the printed formula",
        advanced=True,
    )
    identity_voxels: int = option(
        4096, "voxels compared by the identity term, per level and batch", minimum=2
    )
    temperature: float = option(0.1, "of the label term", minimum=0.01)
    per_class: int = option(
        48, "voxels drawn per class and crop for the label term", minimum=1
    )
    most_voxels: int = option(
        1024, "voxels drawn per crop for the label term, at most", minimum=1,
        advanced=True,
    )  # fmt: skip
    depth_scale: float = option(
        8.0,
        "mu of the weight by depth within a label: most are drawn half as deep",
        unit="voxel",
        minimum=0.1,
        advanced=True,
    )
    depth_floor: float = option(
        0.05, "epsilon: weight on the boundary", minimum=1e-6, advanced=True
    )
    background_negative: bool = option(
        False, "background counts as another class than every label"
    )
    within: bool = option(
        False, "voxels of one crop are compared with each other too", advanced=True
    )
    global_ratio: bool = option(
        False, "one ratio over all pairs, as printed, instead of one per voxel",
        advanced=True,
    )  # fmt: skip
    same_patient: float = option(
        0.5, "share of second crops cut from the same scan", minimum=0, maximum=1
    )
    projector_norm: str = option(
        "batch",
        "normalisation inside the projectors",
        choices=("batch", "layer", "none"),
    )
    rotate_deg: tuple[float, float, float] = option(
        (15.0, 15.0, 15.0),
        "rotation of crops about z, y, x, drawn in +- this",
        unit="deg",
        minimum=0,
        maximum=180,
    )
    scale: tuple[float, float] = option(
        (0.85, 1.15), "range of zoom", minimum=0.25, maximum=4
    )
    elastic_mm: float = option(
        4.0, "standard deviation of the elastic displacement", unit="mm", minimum=0
    )
    shape_probability: float = option(
        0.5, "probability of rotation and zoom, and of the elastic displacement",
        minimum=0, maximum=1,
    )  # fmt: skip
    intensity_probability: float = option(
        0.2, "probability of each intensity change", minimum=0, maximum=1
    )


# At the paper's probability of 0.2 the two views of a crop are often equal and start
# with correlations of 0.94: nothing is left to learn from them in a short training.
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "cpu": {
        "method": {"size": [32, 32, 32], "intensity_probability": 0.5},
        "backbone": {"name": "resunet"},
        "training": {
            "steps": 600,
            "batch_size": 4,
            "learning_rate": 1e-3,
            "weight_decay": 0.05,
            "warmup_steps": 30,
        },
    },
    # 24 GB: 2 crops of 96^3; 80 GB: 6 to 8.
    "gpu": {
        "method": {
            "size": [96, 96, 96],
            "levels": [2, 4, 8, 16],
            "identity_voxels": 16384,
            "intensity_probability": 0.5,
            "per_class": 256,
            "most_voxels": 4096,
        },
        "backbone": {"name": "swin"},
        "training": {
            "steps": 10000,
            "batch_size": 2,
            "accumulate": 3,
            "learning_rate": 1e-4,
            "weight_decay": 1e-5,
            "warmup_steps": 200,
        },
    },
    # UNETR on 96^3, AdamW 1e-4, weight decay 1e-5, cosine, 1000 iterations of 6 crops.
    "paper": {
        "method": {
            "size": [96, 96, 96],
            "levels": [2, 4, 8, 16],
            "sums": True,
            "weight_label": 0.01,
            "weight_reconstruction": 0.01,
            "identity_voxels": 16384,
            "per_class": 256,
            "most_voxels": 4096,
        },
        "backbone": {"name": "vit", "hidden": 768, "inner": 3072, "heads": 12},
        "training": {
            "steps": 1000,
            "batch_size": 1,
            "accumulate": 6,
            "learning_rate": 1e-4,
            "weight_decay": 1e-5,
            "warmup_steps": 0,
        },
    },
}
