"""Recipes of segmentation as the papers have them, and where each setting is from.

Differs from the paper: what is not printed is ours, see SOURCES.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from homolog.recipes import Sources

# Paper: Alice Table 8; MixCL 3.1, fine-tuning; Joint 2D U-Net.
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    # Scans at 1.5 x 0.76 x 0.76 mm (z, y, x): homolog prepare --spacing 1.5,0.76,0.76
    "alice": {
        "task": {
            "window": [96, 96, 96],
            "flip": [0.5, 0.5, 0.5],
            "rotate_deg": 15.0,
            "scale": 0.0,
        },
        "backbone": {
            "name": "vit",
            "image_size": [96, 96, 96],
            "hidden": 768,
            "inner": 3072,
            "layers": 12,
            "heads": 12,
        },
        "training": {
            "epochs": 1000.0,
            "warmup_epochs": 50.0,
            "batch_size": 8,
            "learning_rate": 1e-4,
            "weight_decay": 1e-5,
            "validate_every": 1000,
        },
    },
    "alice_swin": {
        "task": {
            "window": [96, 96, 96],
            "flip": [0.5, 0.5, 0.5],
            "rotate_deg": 15.0,
            "scale": 0.0,
        },
        "backbone": {"name": "swin", "feature_size": 48},
        "training": {
            "epochs": 1000.0,
            "warmup_epochs": 50.0,
            "batch_size": 8,
            "learning_rate": 4e-4,
            "weight_decay": 1e-5,
            "validate_every": 1000,
        },
    },
    "alice_nnformer": {
        "task": {
            "window": [96, 128, 128],
            "flip": [0.5, 0.5, 0.5],
            "rotate_deg": 0.0,
            "scale": 0.3,
            "deep_supervision": True,
        },
        "backbone": {"name": "nnformer", "decoder": "nnformer"},
        "training": {
            "epochs": 1000.0,
            "warmup_epochs": 40.0,
            "batch_size": 8,
            "optimizer": "sgd",
            "momentum": 0.99,
            "schedule": "poly",
            "min_learning_rate_factor": 0.0,
            "learning_rate": 0.01,
            "weight_decay": 3e-5,
            "validate_every": 1000,
        },
    },
    # Scans at 2 x 1.5 x 1.5 mm, -150 to 250 HU:
    # homolog prepare --spacing 2,1.5,1.5 --window-hu=-150,250
    "mixcl": {
        "task": {
            "window": [96, 96, 96],
            "flip": [0.2, 0.2, 0.2],
            "quarter_turns": 0.2,
            "rotate_deg": 0.0,
            "scale": 0.0,
            "intensity": 0.667,
        },
        "backbone": {"name": "vit", "hidden": 768, "inner": 3072, "heads": 12},
        "training": {
            "steps": 2000,
            "batch_size": 2,
            "learning_rate": 1e-4,
            "weight_decay": 1e-5,
            "warmup_steps": 0,
            "validate_every": 200,
        },
    },
    # Slice by slice, by a 2D U-Net on ResNet-50.
    "joint": {
        "backbone": {"name": "resnet2d"},
        "training": {
            "steps": 20000,
            "batch_size": 16,
            "optimizer": "sgd",
            "learning_rate": 0.01,
            "validate_every": 1000,
        },
    },
    "s2dc": {
        "task": {"window": [96, 96, 96]},
        "backbone": {"name": "swin", "feature_size": 48, "use_v2": True},
        "training": {
            "steps": 20000,
            "batch_size": 4,
            "learning_rate": 3e-4,
            "warmup_steps": 500,
            "validate_every": 1000,
        },
    },
}

_TABLE = (
    "training.epochs training.warmup_epochs training.batch_size training.learning_rate "
    "training.weight_decay task.window backbone.name"
)
_ALICE: Sources = {
    "paper: Table 8": _TABLE,
    "paper: Table 8, random flip and rotation": "task.flip task.scale",
    "own: how far is not printed": "task.rotate_deg",
    "own: not printed": "training.validate_every",
}
SOURCES: Mapping[str, Sources] = {
    "alice": {
        **_ALICE,
        "paper: ViT-B, as in pretraining": "backbone.image_size backbone.hidden "
        "backbone.inner backbone.layers backbone.heads",
    },
    "alice_swin": {**_ALICE, "code: SwinUNETR": "backbone.feature_size"},
    "alice_nnformer": {
        "paper: Table 8": f"{_TABLE} training.optimizer training.momentum "
        "training.schedule",
        "paper: Table 8, scaling and mirroring": "task.flip task.rotate_deg",
        "paper: nnFormer's own": "backbone.decoder",
        "own: how far is not printed": "task.scale",
        "code: nnFormer's poly ends at 0": "training.min_learning_rate_factor",
        "code: nnFormer's trainer": "task.deep_supervision",
        "own: not printed": "training.validate_every",
    },
    "mixcl": {
        "paper: 3.1": "training.steps training.batch_size training.learning_rate "
        "training.weight_decay task.flip task.quarter_turns task.rotate_deg "
        "task.scale task.intensity",
        "paper: UNETR": "backbone.name backbone.hidden backbone.inner backbone.heads "
        "task.window",
        "own: not printed": "training.warmup_steps training.validate_every",
    },
    "joint": {
        "paper: Downstream Task": "backbone.name training.optimizer "
        "training.learning_rate",
        "own: in an appendix that is not published": "training.steps "
        "training.batch_size training.validate_every",
    },
    "s2dc": {
        "paper: Swin-B and 96^3, as in pretraining": "backbone.name task.window",
        "code": "backbone.feature_size backbone.use_v2",
        "own: not printed": "training.steps training.batch_size "
        "training.learning_rate training.warmup_steps training.validate_every",
    },
}
