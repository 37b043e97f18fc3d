"""Settings and recipes of Alice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from homolog.config import option


@dataclass(frozen=True)
class AliceConfig:
    """Settings of Alice; the defaults suit a small machine."""

    size: tuple[int, int, int] = option(
        (48, 48, 48), "crop size z, y, x", unit="voxel", minimum=1, maximum=512
    )
    token_stride: int = option(
        8,
        "side of a hidden patch: the stride of one of the backbone's maps",
        unit="voxel",
        choices=(2, 4, 8, 16, 32),
    )
    mask_ratio: float = option(
        0.75, "share of patches hidden", minimum=0.05, maximum=0.95
    )
    pairs: str = option(
        "aligned",
        "where the two patients' crops lie: aligned by the store's table of matching "
        "places, at random places, or the same place of the same patient",
        choices=("aligned", "random", "same"),
    )
    least_score: float = option(
        0.7,
        "matches less similar than this are not used; a crop without a match is paired "
        "with itself",
        minimum=-1,
        maximum=1,
    )
    largest_cycle_mm: float = option(
        0.0,
        "matches that lead back further from where they began are not used; 0: any",
        unit="mm",
        minimum=0,
        advanced=True,
    )
    weight_reconstruction: float = option(1.0, "weight of l_r", minimum=0)
    weight_between: float = option(1.0, "weight of l_dv, between patients", minimum=0)
    weight_within: float = option(
        1.0, "weight of l_st, the semantic alignment within a crop", minimum=0
    )
    similarity: str = option(
        "info_nce",
        "how the branches are compared; cosine is the paper's default, and settles on "
        "one vector for everything at small batches",
        choices=("info_nce", "cosine"),
    )
    temperature: float = option(0.2, "of InfoNCE", minimum=0.01, advanced=True)
    rotate_deg: tuple[float, float, float] = option(
        (15.0, 15.0, 15.0),
        "rotation of the target's view about z, y, x, drawn in +- this",
        unit="deg",
        minimum=0,
        maximum=180,
    )
    scale: tuple[float, float] = option(
        (0.9, 1.2), "zoom of the target's view", minimum=0.25, maximum=4
    )
    flip: tuple[float, float, float] = option(
        (0.0, 0.0, 0.0),
        "probability of flips of the target's view along z, y, x (the paper flips)",
        minimum=0,
        maximum=1,
        advanced=True,
    )
    intensity_probability: float = option(
        0.5, "probability of each intensity change of the target's view",
        minimum=0, maximum=1,
    )  # fmt: skip
    normalise: bool = option(True, "predict patches of mean 0 and std 1", advanced=True)
    decoder_layers: int = option(
        2, "transformer blocks of the decoder (backbones that drop tokens)", minimum=1
    )
    decoder_width: int = option(
        0, "features inside the decoder; 0: as many as the encoder's tokens", minimum=0,
        advanced=True,
    )  # fmt: skip
    head_hidden: int = option(128, "width inside the heads", minimum=2)
    head_bottleneck: int = option(64, "unit vector inside the heads", minimum=2)
    head_dim: int = option(128, "length of the heads' vectors", minimum=2)
    alignment_dim: int = option(96, "width of the semantic alignment", minimum=2)
    predictor: bool = option(
        False,
        "a perceptron after the online vectors, as in BYOL: the first remedy where the "
        "features collapse",
        advanced=True,
    )
    momentum: float = option(
        0.99, "of the target at the start; rises to 1 over the training", minimum=0,
        maximum=1,
    )  # fmt: skip
    min_valid: float = option(
        0.5,
        "patches showing less of the scan than this share are not reconstructed",
        minimum=0,
        maximum=1,
        advanced=True,
    )
    keep: str = option(
        "student", "whose encoder is saved", choices=("student", "teacher")
    )


RECIPES: Mapping[str, Mapping[str, Any]] = {
    "cpu": {
        "method": {"size": [48, 48, 48], "token_stride": 8},
        "backbone": {
            "name": "vit",
            "image_size": [48, 48, 48],
            "patch": [8, 8, 8],
            "hidden": 96,
            "inner": 384,
            "layers": 4,
            "heads": 4,
        },
        "training": {
            "steps": 800,
            "batch_size": 4,
            "learning_rate": 5e-4,
            "weight_decay": 0.05,
            "beta2": 0.95,
            "warmup_steps": 80,
        },
    },
    # 24 GB: batch 4 pairs of 96^3; 80 GB: 8.
    "gpu": {
        "method": {
            "size": [96, 96, 96],
            "token_stride": 16,
            "decoder_layers": 4,
            "head_hidden": 2048,
            "head_bottleneck": 256,
            "head_dim": 512,
            "alignment_dim": 384,
            "momentum": 0.996,
        },
        "backbone": {"name": "vit"},
        "training": {
            "steps": 20000,
            "batch_size": 4,
            "learning_rate": 1e-4,
            "weight_decay": 0.05,
            "beta2": 0.95,
            "warmup_steps": 1000,
        },
    },
    # Crops of 192 x 192 x 64, ViT-B, batch 64, AdamW (0.9, 0.95) 5e-5, 100k iterations.
    "paper": {
        "method": {
            "size": [64, 192, 192],
            "token_stride": 16,
            "flip": [0.5, 0.5, 0.5],
            "similarity": "cosine",
            "decoder_layers": 8,
            "head_hidden": 2048,
            "head_bottleneck": 256,
            "head_dim": 512,
            "alignment_dim": 768,
            "momentum": 0.996,
        },
        "backbone": {
            "name": "vit",
            "image_size": [64, 192, 192],
            "hidden": 768,
            "inner": 3072,
            "layers": 12,
            "heads": 12,
        },
        "training": {
            "steps": 100_000,
            "batch_size": 8,
            "accumulate": 8,
            "learning_rate": 5e-5,
            "weight_decay": 0.05,
            "beta2": 0.95,
            "warmup_steps": 5000,
        },
    },
}
