"""Recipes of detection on the papers' networks, and where each setting is from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from homolog.recipes import Sources


PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    # Lesions and pneumothorax in chest X-rays.
    "hundred_million": {
        "backbone": {"name": "resnet2d", "widths": [128, 256, 512, 1024]},
        "task": {"detector": "one_stage", "width": 256, "depth": 4},
        "training": {
            "steps": 20_000,
            "batch_size": 16,
            "learning_rate": 5e-4,
            "warmup_steps": 500,
            "validate_every": 1000,
        },
    },
    # Findings in chest X-rays (VinDr-CXR); needs torchvision.
    "joint": {
        "backbone": {"name": "resnet2d"},
        "task": {"detector": "faster_rcnn", "width": 256},
        "training": {
            "steps": 20_000,
            "batch_size": 16,
            "optimizer": "sgd",
            "learning_rate": 0.01,
            "warmup_steps": 500,
            "validate_every": 1000,
        },
    },
}

_OWN = (
    "training.steps training.batch_size training.warmup_steps training.validate_every"
)
SOURCES: Mapping[str, Sources] = {
    "hundred_million": {
        "paper: Fig. 2, ResNet-50w2": "backbone.name backbone.widths",
        "paper: IV-C, fully convolutional, of several scales": "task.detector",
        "own: FCOS, which it is like": "task.width task.depth",
        "own: not printed": f"{_OWN} training.learning_rate",
    },
    "joint": {
        "paper: Downstream Task": "backbone.name task.detector training.optimizer "
        "training.learning_rate",
        "code: torchvision, fasterrcnn_resnet50_fpn": "task.width",
        "own: in an appendix that is not published": _OWN,
    },
}
