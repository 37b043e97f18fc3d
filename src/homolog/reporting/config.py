"""What a report looks at: the settings alone, light to import."""

from __future__ import annotations

from dataclasses import dataclass

from homolog.config import option


@dataclass(frozen=True)
class ReportConfig:
    """How much of everything."""

    organs: bool = option(
        True,
        "t-SNE, PCA, silhouettes and similarities of the voxels of labelled organs",
    )
    probe: bool = option(True, "a linear probe and nearest neighbours")
    robustness: bool = option(
        True,
        "of a model that labels or classifies: answers on scans bent in brightness, "
        "turned and scaled",
    )
    course: bool = option(True, "the training's course, and how soon it was good")
    split: str = option(
        "test",
        "cases that are looked at; of all of them where the split has fewer than two "
        "labelled patients",
        choices=("train", "val", "test", "all"),
    )
    most: int = option(10, "patients that are looked at, at most; 0: all", minimum=0)
    voxels: int = option(
        40, "voxels of each label and case whose features are compared", minimum=2
    )
    draws: int = option(
        10, "disturbances of each kind and case, for robustness", minimum=1
    )
    seed: int = option(0, "Seed of everything random.", minimum=0)
