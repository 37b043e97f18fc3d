"""Settings of the segment task: what a user may choose, and the recipes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from homolog.config import option
from homolog.tasks._base import LearnedConfig
from homolog.views.view import Intensity

# Slices are small samples, and one says little.
_SLICES_CPU = {"batch_size": 16, "learning_rate": 3e-3, "warmup_steps": 20}
_SLICES_GPU = {"batch_size": 16, "learning_rate": 4e-4}

RECIPES: Mapping[str, Mapping[str, Any]] = {
    "cpu": {
        "backbone": {"name": "resunet"},
        "training": {
            "steps": 1500,
            "batch_size": 2,
            "learning_rate": 1e-3,
            "validate_every": 300,
        },
        "with": {
            "swin": {"training": {"learning_rate": 1e-3, "warmup_steps": 20}},
            "vit": {"training": {"learning_rate": 5e-4, "warmup_steps": 50}},
            "resnet2d": {"training": _SLICES_CPU},
            "hybrid": {"training": _SLICES_CPU},
        },
    },
    "gpu": {
        "backbone": {"name": "resunet"},
        "training": {
            "steps": 20000,
            "batch_size": 4,
            "learning_rate": 1e-3,
            "warmup_steps": 200,
            "validate_every": 1000,
        },
        "with": {
            "swin": {"training": {"learning_rate": 4e-4}},
            "vit": {"training": {"learning_rate": 4e-4}},
            "resnet2d": {"training": _SLICES_GPU},
            "hybrid": {"training": _SLICES_GPU},
        },
    },
}


@dataclass(frozen=True)
class SegmentConfig(LearnedConfig):
    """How a segmentation is learnt."""

    window: tuple[int, int, int] | None = option(
        None,
        "crop z, y, x; empty takes the median scan's size as far as memory allows, "
        "of a 2D network one slice",
        unit="voxel",
        minimum=1,
    )
    balance: float = option(
        0.67, "share of crops centred on a label", minimum=0.0, maximum=1.0
    )
    rotate_deg: float = option(
        15.0, "largest rotation about each axis", unit="deg", minimum=0.0, maximum=180.0
    )
    scale: float = option(
        0.15, "largest change of size, as a share", minimum=0.0, maximum=0.9
    )
    elastic_mm: float = option(
        0.0, "standard deviation of elastic displacement", unit="mm", minimum=0.0
    )
    flip: tuple[float, float, float] = option(
        (0.0, 0.0, 0.0),
        "probability of a mirrored crop along z, y, x; labels that tell left from "
        "right do not survive mirroring",
        minimum=0.0,
        maximum=1.0,
    )
    intensity: float = option(
        1.0, "strength of random intensity changes; 0: none", minimum=0.0, maximum=3.0
    )
    overlap: float = option(
        0.5, "shared part of neighbouring windows", minimum=0.0, maximum=0.9
    )


def intensity_changes(strength: float) -> Intensity:
    """Random intensity changes of nnU-Net's kind; ``strength`` scales their chance."""
    often, seldom = min(1.0, 0.3 * strength), min(1.0, 0.15 * strength)
    return Intensity(
        shift=(-0.2, 0.2),
        shift_probability=often,
        scale=(0.75, 1.25),
        scale_probability=often,
        gamma=(0.7, 1.5),
        gamma_probability=often,
        noise_std=(0.0, 0.15),
        noise_probability=seldom,
        blur_voxels=(0.5, 1.0),
        blur_probability=seldom,
        contrast=(0.75, 1.25),
        contrast_probability=seldom,
        low_resolution=(0.5, 1.0),
        low_resolution_probability=seldom,
    )
