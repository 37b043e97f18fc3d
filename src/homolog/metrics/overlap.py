"""Overlap and surface distance of two label maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.geometry.affine import Triple


def dice_per_label(
    predicted: NDArray[Any], truth: NDArray[Any], labels: Sequence[int]
) -> dict[int, float]:
    """Dice of each label, 0..1.

    Equal to MONAI's ``compute_dice`` on the one-hot maps, without making them.

    Args:
        predicted: (D, H, W) integers.
        truth: (D, H, W) integers; negative voxels are unlabelled and left out of both.
        labels: Which labels, non-negative.

    Returns:
        Label -> Dice; NaN where both maps lack the label, 0 where one of them does.

    Raises:
        ValueError: The shapes differ.

    Paper: Alice metrics.
    """
    if predicted.shape != truth.shape:
        raise ValueError(
            "both label maps must have one shape, "
            f"got {predicted.shape} and {truth.shape}."
        )
    known = truth >= 0
    predicted, truth = predicted[known], truth[known]
    in_predicted = _count(predicted, labels)
    in_truth = _count(truth, labels)
    in_both = _count(truth[predicted == truth], labels)
    scores = {}
    for label in labels:
        total = in_predicted[label] + in_truth[label]
        scores[label] = 2.0 * in_both[label] / total if total else float("nan")
    return scores


def _count(values: NDArray[Any], labels: Sequence[int]) -> dict[int, int]:
    """Voxels per label; labels not asked for are dropped."""
    found, counts = np.unique(values, return_counts=True)
    table = dict(zip(found.tolist(), counts.tolist(), strict=True))
    return {label: int(table.get(label, 0)) for label in labels}


# Distances between the surfaces of two label maps: NSD and HD95, over MONAI.


@dataclass(frozen=True)
class SurfaceScore:
    """How far two surfaces of one label lie apart.

    Attributes:
        nsd: Share of both surfaces within the tolerance of the other, 0..1.
        hd95_mm: The larger of the two directed 95th percentile distances, mm.
    """

    nsd: float
    hd95_mm: float


def surface_per_label(
    predicted: NDArray[Any],
    truth: NDArray[Any],
    labels: Sequence[int],
    *,
    spacing_mm: Triple,
    tolerance_mm: float = 1.0,
) -> dict[int, SurfaceScore]:
    """NSD and HD95 of each label.

    Surfaces are the labelled voxels with an unlabelled neighbour (6-neighbourhood), as
    MONAI's ``compute_surface_dice`` and ``compute_hausdorff_distance`` take them.

    Args:
        predicted: (D, H, W) integers.
        truth: (D, H, W) integers; negative voxels are unlabelled and count as
            background in both.
        labels: Which labels, positive.
        spacing_mm: Voxel size (z, y, x).
        tolerance_mm: Distance that still counts as agreement.

    Returns:
        Label -> score. Both maps lack the label: NaN, NaN. One lacks it: NSD 0 and the
        diagonal of the grid in mm, the largest distance there is, so that means over
        cases stay finite and a lost organ is not forgiven.

    Raises:
        ValueError: The shapes differ.

    Paper: Alice metrics.
    """
    from scipy.ndimage import find_objects

    if predicted.shape != truth.shape:
        raise ValueError(
            "both label maps must have one shape, "
            f"got {predicted.shape} and {truth.shape}."
        )
    known = truth >= 0
    maps = [np.where(known, m, 0).astype(np.int32) for m in (predicted, truth)]
    highest = max(labels, default=0)
    boxes = [find_objects(m, max_label=highest) for m in maps]
    diagonal = float(np.linalg.norm(np.multiply(truth.shape, spacing_mm)))
    scores = {}
    for label in labels:
        own = [b[label - 1] for b in boxes]
        if own[0] is None and own[1] is None:
            scores[label] = SurfaceScore(float("nan"), float("nan"))
        elif own[0] is None or own[1] is None:
            scores[label] = SurfaceScore(0.0, diagonal)
        else:
            box = tuple(
                slice(min(a.start, b.start), max(a.stop, b.stop))
                for a, b in zip(own[0], own[1], strict=True)
            )
            masks = [m[box] == label for m in maps]
            scores[label] = _score(masks[0], masks[1], spacing_mm, tolerance_mm)
    return scores


def _score(
    predicted: NDArray[np.bool_],
    truth: NDArray[np.bool_],
    spacing_mm: Triple,
    tolerance_mm: float,
) -> SurfaceScore:
    """Both scores of two masks that are not empty, from one pair of queries."""
    import torch
    from monai.metrics.utils import get_edge_surface_distance

    _, distances, _ = get_edge_surface_distance(
        torch.from_numpy(predicted),
        torch.from_numpy(truth),
        spacing=spacing_mm,
        symmetric=True,
    )
    there, back = (d.numpy() for d in distances)
    within = (there <= tolerance_mm).sum() + (back <= tolerance_mm).sum()
    return SurfaceScore(
        nsd=float(within / (len(there) + len(back))),
        hd95_mm=float(max(np.percentile(there, 95), np.percentile(back, 95))),
    )
