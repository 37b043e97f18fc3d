"""What a set of scans looks like, and the voxel size that follows, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from homolog.data.card import Card
from homolog.data.learnt_spacing import AGREE
from homolog.data.preprocess import MAX_VOXELS, Preprocessing, plan_grid
from homolog.geometry.affine import Affine, Index, Triple
from homolog.geometry.places import lengths_text

# One axis this much coarser than the others is a stack of thick slices.
_ANISOTROPY = 3.0
_AXES = ("z", "y", "x")


@dataclass(frozen=True)
class Fingerprint:
    """Sizes and spacings of a set of scans.

    Attributes:
        spacing_mm: Voxel size chosen (z, y, x); None keeps each scan's own.
        sentences: Why, for people.
        numbers: What was measured, JSON types.
    """

    spacing_mm: Triple | None
    sentences: tuple[str, ...]
    numbers: Mapping[str, Any] = field(default_factory=dict)


def fingerprint(
    grids: Sequence[tuple[Affine, Index]], spacing: Triple | str = "auto"
) -> Fingerprint:
    """Measure the grids of all cases and choose the voxel size of the store.

    Median voxel size per axis; where one axis is more than three times coarser (thick
    slices), its 10th percentile, so that few scans lose detail. Scans that agree within
    5% are not resampled at all.

    Args:
        grids: Affine and shape of each scan, in its own axis order.
        spacing: A voxel size (z, y, x) in mm, ``native``, or ``auto``.

    Source: Isensee et al., Nature Methods 2021, supplementary note 2 (target spacing).
    Differs from the paper: no resampling where all scans agree; single slices keep
    their pixels.
    """
    turned = [_canonical(affine, shape) for affine, shape in grids]
    solid = [(s, n) for s, n in turned if min(n) > 1]
    numbers: dict[str, Any] = {
        "cases": len(turned),
        "single_slices": len(turned) - len(solid),
    }
    if solid:
        sizes = np.array([n for _, n in solid], dtype=float)
        spacings = np.array([s for s, _ in solid])
        numbers["size_median"] = np.median(sizes, axis=0).tolist()
        numbers["spacing_median_mm"] = np.median(spacings, axis=0).tolist()
        numbers["spacing_min_mm"] = spacings.min(axis=0).tolist()
        numbers["spacing_max_mm"] = spacings.max(axis=0).tolist()
    if isinstance(spacing, tuple):
        chosen: Triple | None = spacing
        sentences = [f"Voxel size {lengths_text(spacing)}, as asked."]
    elif spacing == "native":
        chosen, sentences = None, ["Each scan keeps its own voxel size, as asked."]
    elif not solid:
        chosen = None
        sentences = ["All images are single slices: each keeps its own pixels."]
    else:
        chosen, sentences = _choose(spacings, sizes)
    if chosen is not None and len(solid) < len(turned):
        sentences.append(
            f"{len(turned) - len(solid)} single slices keep their own pixels."
        )
    sentences += _sizes(grids, chosen, numbers)
    return Fingerprint(chosen, tuple(sentences), numbers)


def _choose(spacings: np.ndarray, sizes: np.ndarray) -> tuple[Triple | None, list[str]]:
    """Target voxel size of (N, 3) spacings in mm and sizes, and why."""
    median = np.median(spacings, axis=0)
    if (np.abs(spacings / median - 1.0) <= AGREE).all():
        return None, [
            f"All scans have a voxel size of {lengths_text(median)} (within 5%): "
            "nothing is resampled."
        ]
    target = median.copy()
    reasons = [
        "Voxel sizes differ "
        f"({lengths_text(spacings.min(axis=0))} to "
        f"{lengths_text(spacings.max(axis=0))}): "
        f"the median per axis is {lengths_text(median)}."
    ]
    coarse = int(target.argmax())
    others = [axis for axis in range(3) if axis != coarse]
    typical = np.median(sizes, axis=0)
    is_thick = target[coarse] > _ANISOTROPY * target[others].max()
    is_short = typical[coarse] * _ANISOTROPY < typical[others].min()
    if is_thick and is_short:
        tenth = float(np.percentile(spacings[:, coarse], 10))
        target[coarse] = max(tenth, float(target[others].max()))
        reasons.append(
            f"Slices are thick along {_AXES[coarse]}: its 10th percentile, "
            f"{target[coarse]:.4g} mm, keeps the detail of the finer scans."
        )
    z, y, x = (float(f"{value:.4g}") for value in target)
    return (z, y, x), [*reasons, f"Voxel size {lengths_text((z, y, x))} was chosen."]


def _sizes(
    grids: Sequence[tuple[Affine, Index]],
    spacing: Triple | None,
    numbers: dict[str, Any],
) -> list[str]:
    """Typical and largest prepared size; a sentence when scans will be too large."""
    recipe = Preprocessing(spacing_mm=spacing)
    shapes = []
    for affine, shape in grids:
        axes, flips = affine.closest_axes()
        turned = tuple(shape[a] for a in axes)
        canonical = affine.reorient(axes, flips, shape)
        grid = plan_grid(canonical, (turned[0], turned[1], turned[2]), recipe)
        shapes.append(grid.shape)
    if not shapes:
        return []
    largest = max(shapes, key=prod)
    numbers["prepared_size_median"] = np.median(np.array(shapes), axis=0).tolist()
    numbers["prepared_size_largest"] = list(largest)
    too_large = sum(prod(shape) > MAX_VOXELS for shape in shapes)
    if not too_large:
        return []
    return [
        f"{too_large} scans would have more than {MAX_VOXELS:,} voxels (the largest "
        f"{lengths_text(largest, 'voxels')}) and are left out; a coarser --spacing "
        "takes them in."
    ]


def intensities_by_modality(cards: Sequence[Card]) -> dict[str, dict[str, float]]:
    """Range and typical normalisation of the prepared cases of each modality."""
    result: dict[str, dict[str, float]] = {}
    for modality in sorted({card.modality for card in cards}):
        members = [card for card in cards if card.modality == modality]
        result[modality] = {
            "cases": len(members),
            "low_min": min(c.low for c in members),
            "low_median": float(np.median([c.low for c in members])),
            "high_median": float(np.median([c.high for c in members])),
            "high_max": max(c.high for c in members),
            "centre_median": float(np.median([c.centre for c in members])),
            "spread_median": float(np.median([c.spread for c in members])),
        }
    return result


def _canonical(affine: Affine, shape: Index) -> tuple[Triple, Index]:
    """Spacing and size along z, y, x of the body."""
    axes, _ = affine.closest_axes()
    spacing = affine.spacing_mm
    z, y, x = axes
    return (spacing[z], spacing[y], spacing[x]), (shape[z], shape[y], shape[x])
