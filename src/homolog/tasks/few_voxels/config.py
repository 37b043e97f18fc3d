"""How a few painted voxels become a model: the settings, light to import."""

from __future__ import annotations

from dataclasses import dataclass

from homolog.config import option


@dataclass(frozen=True)
class FewConfig:
    """How a few painted voxels become a model."""

    head: str = option(
        "logistic",
        "logistic regression, or the vote of the nearest painted voxels (knn)",
        choices=("logistic", "knn"),
    )
    strength: float = option(
        0.3,
        "how closely logistic regression follows the paint (C); less is smoother",
        minimum=1e-4,
        maximum=1e4,
    )
    neighbours: int = option(5, "painted voxels that vote (knn)", minimum=1)
    position: bool = option(True, "use the place in the body as a feature")
    smoothing_mm: tuple[float, ...] = option(
        (),
        "widths (sigma) of the smoothed intensities; empty: 0, 1 and 2 voxels of the "
        "first scan",
        unit="mm",
        minimum=0.0,
        maximum=50.0,
    )
    body_only: bool = option(
        True,
        "label nothing outside the body; has no effect where organs are painted there",
        flag="--body-only/--outside-body",
    )
    unknown: float = option(
        0.1,
        "share of left-out paint that may be called unknown: a voxel further from the "
        "paint of its class, in feature, grey value and place, gets no class, and none "
        "whose grey values contradict it; 0 gives every voxel a class",
        minimum=0.0,
        maximum=0.5,
        later=True,
    )
    per_class: int = option(
        4000, "painted voxels of a class that are used, at most", minimum=1
    )
    seed: int = option(0, "of the choice among more voxels", minimum=0, advanced=True)
