"""What features are worth, in figures: same-organ maps and landmarks found again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from homolog.data.volume import FeatureMap, LabelMap, Points
from homolog.metrics.landmarks import landmark_errors
from homolog.metrics.separation import same_organ_auc, similarity_contrast
from homolog.tasks._matching import cosine_maps, match_points, query_at
from homolog.tasks._regrid import on_grid


@dataclass(frozen=True)
class OrganScore:
    """How well one point's similarity map tells its organ from the rest.

    Attributes:
        organ: Its name.
        auc: Area under the ROC curve over all voxels of the label map, air included.
        auc_labelled: The same over voxels that carry any label: organ against organs.
        contrast: Mean similarity inside less outside, in standard deviations.
    """

    organ: str
    auc: float
    auc_labelled: float
    contrast: float


def deepest_point(labels: LabelMap, value: int) -> NDArray[np.float64]:
    """World mm (3,) of the voxel farthest from the border of a label.

    Raises:
        ValueError: The map lacks the label.
    """
    mask = labels.data == value
    if not mask.any():
        name = labels.names.get(value, str(value))
        raise ValueError(f"label {name!r} does not occur in {labels.name!r}.")
    padded = np.pad(mask, 1)  # the scan's border is a border too
    depth = ndimage.distance_transform_edt(padded, sampling=labels.affine.spacing_mm)
    deepest = np.argwhere(depth >= depth.max() - 1e-6)
    # Of several equally deep ones the one in their middle.
    apart = np.linalg.norm(deepest - deepest.mean(axis=0), axis=1)
    return labels.affine.apply(deepest[int(apart.argmin())] - 1)


def organ_score(
    source: FeatureMap,
    point_mm: NDArray[np.float64],
    target: FeatureMap,
    labels: LabelMap,
    value: int,
) -> OrganScore:
    """Similarity of a point to all of another (or the same) scan, against its labels.

    Args:
        source: Features of the scan that holds the point.
        point_mm: (3,) world mm.
        target: Features of the scan that is searched.
        labels: Labels of the searched scan on any grid of their own: similarity is
            read at the label map's voxels, by the affines.
        value: The organ's label.
    """
    cells = cosine_maps(target, query_at(source, point_mm[None]))[0]
    similarity = on_grid(cells, target.affine, labels.shape, labels.affine)
    organ, known = labels.data == value, labels.data > 0
    return OrganScore(
        labels.names.get(value, str(value)),
        same_organ_auc(similarity, organ),
        same_organ_auc(similarity[known], organ[known]),
        similarity_contrast(similarity, organ),
    )


def landmarks_found(
    source: FeatureMap,
    target: FeatureMap,
    source_points: Points,
    target_points: Points,
) -> tuple[tuple[str, ...], NDArray[np.float64], NDArray[np.float64]]:
    """Landmarks of one scan searched in another, where both have them.

    Returns:
        Names, found positions (N, 3) in world mm, and their errors (N,) in mm.
    """
    there = dict(zip(target_points.names, target_points.mm, strict=True))
    names = tuple(n for n in source_points.names if n in there)
    if not names:
        return (), np.zeros((0, 3)), np.zeros(0)
    here = dict(zip(source_points.names, source_points.mm, strict=True))
    matches = match_points(source, target, np.array([here[n] for n in names]))
    found = np.array([m.mm for m in matches])
    return names, found, landmark_errors(found, np.array([there[n] for n in names]))


def mean_of(values: Sequence[float]) -> float:
    """Mean of the numbers that are there; NaN if none is."""
    known = [v for v in values if v == v]
    return float(np.mean(known)) if known else float("nan")
