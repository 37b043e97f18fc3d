"""Recipes of classification as the papers have them, and where each setting is from.

Differs from the paper: what is not printed is ours, see SOURCES.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from homolog.recipes import Sources


# Paper: Alice B, COVID; Hundred Million IV-E; Joint 3D classification.
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    # COVID-19 in chest CT (MosMed) from -1000 to 400 HU:
    # homolog prepare --window-hu=-1000,400
    "alice": {
        "task": {"window": [64, 128, 128], "flip": [0.5, 0.5, 0.5]},
        "backbone": {
            "name": "vit",
            "image_size": [64, 128, 128],
            "hidden": 768,
            "inner": 3072,
            "layers": 12,
            "heads": 12,
        },
        "training": {
            "steps": 10_000,
            "batch_size": 8,
            "learning_rate": 5e-5,
            "weight_decay": 1e-5,
            "warmup_steps": 400,
            "validate_every": 500,
        },
    },
    # Hemorrhage in head CT from -45 to 155 HU: homolog prepare --window-hu=-45,155
    "hundred_million": {
        "task": {
            "window": [40, 224, 192],
            "pooling": "mean_and_max",
            "weight_types": 1.0,
            "weight_slices": 1.0,
        },
        "backbone": {"name": "densenet"},
        "training": {
            "steps": 20_000,
            "batch_size": 8,
            "learning_rate": 1e-3,
            "warmup_steps": 500,
            "validate_every": 1000,
        },
    },
    # Slices of MPRAGE that show a metastasis; the scan and the mask of what is
    # suspected are channels T1 and mask of a manifest, image a|b
    "hundred_million_slices": {
        "task": {
            "labels": "slices",
            "neighbours": 5,
            "compress": 3,
            "slice_threshold": 0.6,
            "slices": 256,
            "window": [256, 224, 224],
        },
        "backbone": {"name": "resnet2d", "widths": [128, 256, 512, 1024]},
        "training": {
            "steps": 20_000,
            "batch_size": 1,
            "learning_rate": 1e-4,
            "warmup_steps": 500,
            "validate_every": 1000,
        },
    },
    "joint": {
        "task": {"hidden": 512},
        "backbone": {"name": "hybrid", "groups": 8, "slices_at_once": 128},
        "training": {
            "steps": 10_000,
            "batch_size": 8,
            "optimizer": "sgd",
            "learning_rate": 0.01,
            "validate_every": 500,
        },
    },
    "s2dc": {
        "task": {"window": [96, 96, 96]},
        "backbone": {"name": "swin", "feature_size": 48, "use_v2": True},
        "training": {
            "steps": 10_000,
            "batch_size": 4,
            "learning_rate": 3e-4,
            "warmup_steps": 500,
            "validate_every": 500,
        },
    },
}

SOURCES: Mapping[str, Sources] = {
    "alice": {
        "paper: B.3": "training.steps training.batch_size training.learning_rate "
        "training.weight_decay training.warmup_steps",
        "paper: B.2": "task.window task.flip",
        "paper: ViT-B, as in pretraining": "backbone.name backbone.image_size "
        "backbone.hidden backbone.inner backbone.layers backbone.heads",
        "own: not printed": "training.validate_every",
    },
    "hundred_million": {
        "paper: IV-E": "task.window task.pooling backbone.name",
        "paper: IV-E, auxiliary tasks; their weights are ours": "task.weight_types "
        "task.weight_slices",
        "own: not printed": "training.steps training.batch_size "
        "training.learning_rate training.warmup_steps training.validate_every",
    },
    "hundred_million_slices": {
        "paper: IV-D": "task.labels task.neighbours task.compress backbone.name "
        "backbone.widths",
        "paper: Table III, operation point": "task.slice_threshold",
        "own: whole scans, the side of its 2D crops": "task.slices task.window",
        "own: not printed": "training.steps training.batch_size "
        "training.learning_rate training.warmup_steps training.validate_every",
    },
    "joint": {
        "paper: two layers on the attention; their width is ours": "task.hidden",
        "paper: Eq. 7": "backbone.groups",
        "paper: Downstream Task": "backbone.name training.optimizer "
        "training.learning_rate",
        "own: for memory, changes no result": "backbone.slices_at_once",
        "own: in an appendix that is not published": "training.steps "
        "training.batch_size training.validate_every",
    },
    "s2dc": {
        "paper: Swin-B, as in pretraining": "backbone.name task.window",
        "code": "backbone.feature_size backbone.use_v2",
        "own: not printed": "training.steps training.batch_size "
        "training.learning_rate training.warmup_steps training.validate_every",
    },
}
