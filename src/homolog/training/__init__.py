"""Learning: one loop for every method and task."""

from __future__ import annotations

from homolog.training.config import (
    BatchSource,
    Trainable,
    TrainingConfig,
    TrainingResult,
)
from homolog.training.loop import train
from homolog.training.validation import Validate

__all__ = [
    "BatchSource",
    "Trainable",
    "TrainingConfig",
    "TrainingResult",
    "Validate",
    "train",
]
