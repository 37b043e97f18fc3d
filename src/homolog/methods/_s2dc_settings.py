"""Settings and recipes of S2DC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from homolog.config import option


@dataclass(frozen=True)
class S2DCConfig:
    """Settings of S2DC; the defaults are those of a small machine."""

    size: tuple[int, int, int] = option(
        (48, 48, 48), "crop size z, y, x", unit="voxel", minimum=1, maximum=512
    )
    token_stride: int = option(
        8, "which feature map gives the tokens", unit="voxel", choices=(2, 4, 8, 16, 32)
    )
    rotate_deg: tuple[float, float, float] = option(
        (20.0, 20.0, 20.0),
        "rotation of the second view about z, y, x, drawn in +- this",
        unit="deg",
        minimum=0,
        maximum=180,
    )
    scale: tuple[float, float] = option(
        (0.9, 1.2), "range of the second view's zoom", minimum=0.25, maximum=4
    )
    translate: tuple[float, float, float] = option(
        (0.25, 0.25, 0.25),
        "largest shift of the second view along z, y, x, as a share of the crop",
        minimum=0,
        maximum=1,
    )
    flip: tuple[float, float, float] = option(
        (0.0, 0.0, 0.0),
        "probability of flips along z, y, x; flips hide left from right",
        minimum=0,
        maximum=1,
        advanced=True,
    )
    intensity_probability: float = option(
        0.3, "probability of each intensity change", minimum=0, maximum=1
    )
    shift_only: bool = option(
        False, "change intensity by an offset only (the published code)", advanced=True
    )
    augment_both: bool = option(
        True, "change the intensity of the student's view too", advanced=True
    )
    min_valid: float = option(
        0.5,
        "tokens showing less of the scan than this share are left out",
        minimum=0,
        maximum=1,
        advanced=True,
    )
    head_layers: int = option(2, "layers of the heads", minimum=1, maximum=4)
    head_hidden: int = option(128, "width of the heads", minimum=1)
    head_dim: int = option(64, "features compared by the losses", minimum=1)
    queue_length: int = option(256, "negatives of the global loss", minimum=1)
    temperature: float = option(0.1, "of the global loss", minimum=0.01)
    momentum: float = option(0.99, "of the teacher", minimum=0, maximum=1)
    batch_negatives: bool = option(
        False, "other crops of the batch are negatives too", advanced=True
    )
    assignment: str = option(
        "dual_softmax",
        "how tokens are matched",
        choices=("dual_softmax", "sinkhorn"),
        advanced=True,
    )
    match_temperature: float = option(0.1, "of the assignment", minimum=0.01)
    sinkhorn_rounds: int = option(
        100, "rounds of the assignment", minimum=1, advanced=True
    )
    dustbin_score: float = option(
        1.0, "first value of the learnt dustbin score", advanced=True
    )
    dustbin_loss: bool = option(
        True, "tokens without partner are drawn to the dustbin", advanced=True
    )
    one_to_one: bool = option(False, "mutually nearest partners only", advanced=True)
    negatives: bool = option(
        False, "push pairs that do not match apart (the published code)", advanced=True
    )
    unbiased_sigma: bool = option(
        False, "Sharpe ratio with the unbiased standard deviation", advanced=True
    )
    detach_weights: bool = option(
        True, "no gradient through the structure weights", advanced=True
    )
    paper_norm: bool = option(
        False, "divide the structure term by N^2 as printed; it vanishes", advanced=True
    )
    weight_global: float = option(1.0, "weight of the global loss", minimum=0)
    weight_p2p: float = option(1.0, "weight of patch-to-patch", minimum=0)
    weight_p2s: float = option(1.0, "weight of patch-to-structure", minimum=0)
    keep: str = option(
        "teacher", "whose backbone is saved", choices=("teacher", "student")
    )


RECIPES: Mapping[str, Mapping[str, Any]] = {
    "cpu": {
        "method": {"size": [48, 48, 48], "token_stride": 8},
        "backbone": {"name": "resunet"},
        "training": {
            "steps": 400,
            "batch_size": 4,
            "learning_rate": 1e-3,
            "weight_decay": 0.05,
            "warmup_steps": 20,
        },
    },
    # 24 GB: batch 4-8; 80 GB: 16-32.
    "gpu": {
        "method": {
            "size": [96, 96, 96],
            "token_stride": 16,
            "head_layers": 3,
            "head_hidden": 2048,
            "head_dim": 512,
            "queue_length": 4096,
            "momentum": 0.999,
        },
        "backbone": {"name": "swin", "feature_size": 48},
        "training": {
            "steps": 20000,
            "batch_size": 8,
            "learning_rate": 3e-4,
            "weight_decay": 0.1,
            "warmup_steps": 500,
        },
    },
    # Paper: 96^3, Swin-B, 100k iterations, no temperature in Eq. 4, weights 1.
    # Not in the paper, from the published code: heads, momentum, affine, optimiser.
    "paper": {
        "method": {
            "size": [96, 96, 96],
            "token_stride": 16,
            "rotate_deg": [30.0, 0.0, 0.0],
            "scale": [0.9, 1.2],
            "translate": [0.0, 0.25, 0.25],
            "intensity_probability": 0.1,
            "shift_only": True,
            "augment_both": False,
            "head_layers": 3,
            "head_hidden": 2048,
            "head_dim": 512,
            "queue_length": 4096,
            "momentum": 0.999,
            "match_temperature": 1.0,
        },
        "backbone": {"name": "swin", "feature_size": 48, "use_v2": True},
        "training": {
            "steps": 100_000,
            "batch_size": 16,
            "learning_rate": 3e-4,
            "weight_decay": 0.1,
            "warmup_steps": 500,
            "precision": "fp32",
        },
    },
}
