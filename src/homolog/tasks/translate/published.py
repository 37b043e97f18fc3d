"""Recipes of translation as S2DC has it, and where each setting is from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from homolog.recipes import Sources


PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "s2dc": {
        "task": {"window": [96, 96, 96]},
        "backbone": {"name": "swin", "feature_size": 48, "use_v2": True},
        "training": {
            "steps": 20_000,
            "batch_size": 4,
            "learning_rate": 3e-4,
            "warmup_steps": 500,
            "validate_every": 1000,
        },
    },
}

SOURCES: Mapping[str, Sources] = {
    "s2dc": {
        "paper: 4.2, Swin UNETR; 96^3 as in pretraining": "backbone.name task.window",
        "code": "backbone.feature_size backbone.use_v2",
        "own: not printed": "training.steps training.batch_size "
        "training.learning_rate training.warmup_steps training.validate_every",
    },
}
