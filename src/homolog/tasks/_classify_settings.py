"""Settings of the classify task: what a user may choose, and the recipes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from homolog.config import option
from homolog.nn.instance_pooling import POOLINGS
from homolog.tasks._base import LearnedConfig

RECIPES: Mapping[str, Mapping[str, Any]] = {
    "cpu": {
        "backbone": {
            "name": "resnet2d", "widths": [16, 32, 64, 128],
            "stage_blocks": [1, 1, 1, 1], "block": "basic", "norm": "group",
        },
        "training": {
            "steps": 400,
            "batch_size": 8,
            "learning_rate": 1e-3,
            "warmup_steps": 20,
            "validate_every": 50,
        },
    },
    "gpu": {
        "backbone": {"name": "resnet2d"},
        "training": {
            "steps": 5000,
            "batch_size": 32,
            "learning_rate": 3e-4,
            "warmup_steps": 200,
            "validate_every": 250,
        },
    },
}  # fmt: skip


@dataclass(frozen=True)
class ClassifyConfig(LearnedConfig):
    """How a classification of whole scans is learnt."""

    labels: str = option(
        "auto",
        "one class per scan, or several or none of them; auto takes several where any "
        "scan of the store has more than one",
        choices=("auto", "one", "several"),
    )
    window: tuple[int, int, int] | None = option(
        None,
        "the scan is scaled to fit z, y, x; empty takes the median scan's size as far "
        "as memory allows",
        unit="voxel",
        minimum=1,
    )
    slices: int = option(
        32,
        "slices of a volume that an encoder of slices looks at, at most, evenly spread",
        minimum=2,
        maximum=1024,
    )
    slice_pooling: str = option(
        "attention",
        "how the slices of a volume become one answer with a 2D encoder",
        choices=POOLINGS,
    )
    hidden: int = option(
        0,
        "width of a fully connected layer before the last one; 0: no such layer",
        minimum=0,
        advanced=True,
    )
    rotate_deg: float = option(
        10.0, "largest rotation about z", unit="deg", minimum=0.0, maximum=180.0
    )
    scale: float = option(
        0.1, "largest change of size, as a share", minimum=0.0, maximum=0.9
    )
    translate: float = option(
        0.05, "largest shift, as a share of the window", minimum=0.0, maximum=0.5
    )
    flip: tuple[float, float, float] = option(
        (0.0, 0.0, 0.0),
        "probability of a mirrored scan along z, y, x",
        minimum=0.0,
        maximum=1.0,
    )
    intensity: float = option(
        1.0, "strength of random intensity changes; 0: none", minimum=0.0, maximum=3.0
    )
    pooling: str = option(
        "mean",
        "how the deepest features of a scan become one vector; mean_and_max also finds "
        "what is in one small place",
        choices=("mean", "mean_and_max"),
        advanced=True,
    )
    dropout: float = option(0.1, "of the pooled features", minimum=0.0, maximum=0.9)
    smoothing: float = option(
        0.05, "share of the truth given to all classes", minimum=0.0, maximum=0.5
    )
    balanced: bool = option(True, "rare classes count as much as frequent ones")
    threshold: str = option(
        "half",
        "where a scan may have several classes, one is there from a probability of 0.5 "
        "on, or from that which tells the validation scans apart best",
        choices=("half", "validation"),
        advanced=True,
    )
    weight_types: float = option(
        1.0,
        "weight of the further findings (column types); 0 leaves them out",
        minimum=0.0,
        advanced=True,
    )
    weight_slices: float = option(
        0.0,
        "weight of telling which slices show a finding, learnt from label maps (any "
        "label is a finding) or boxes; 0 leaves it out",
        minimum=0.0,
    )
    validate_cases: int | None = option(
        0,
        "labelled held-out cases that choose which weights (and thresholds) are kept, "
        "at most; 0: all; empty: none, the last weights are kept",
        minimum=0,
        empty="none",
    )
