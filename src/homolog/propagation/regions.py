"""Regions of a scan that are found in it by themselves, to carry instead of labels.

A network that learns to find the same regions in every scan learns where it is in the
body before it has seen one label. An experiment: what it gave is in docs/measured.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk

from homolog.errors import UnusableInput
from homolog.scans.volume import LabelMap, Volume
from homolog.store.card import Card

# Borders follow what is larger than this, not noise.
_SMOOTH_MM = 3.0
# Of grey values from 0 to 1: 1 makes boxes, 0 follows every edge.
_COMPACTNESS = 0.2
_ROUNDS = 10


def atlas_of(cards: Sequence[Card]) -> Card:
    """The scan whose number of voxels is the median, of equal ones the first."""
    ordered = sorted(cards, key=lambda card: (int(np.prod(card.shape)), card.id))
    return ordered[len(ordered) // 2]


def regions_of(volume: Volume, count: int) -> LabelMap:
    """Regions of about equal size whose borders follow edges; the largest is 0.

    Args:
        volume: Its first channel is divided, air and all.
        count: About so many; it depends on the shape how many there are.

    Returns:
        On the scan's grid (D, H, W), 0 to fewer than 2 ``count``, called
        ``region 1`` and so on.

    Raises:
        UnusableInput: The scan is too small, or has one value everywhere.

    Source: Achanta et al., SLIC Superpixels Compared to State-of-the-art Superpixel
    Methods, TPAMI 2012, as in SimpleITK.
    """
    data = np.asarray(volume.data, np.float32)
    grey = data[0] if data.ndim == 4 else data
    spacing = np.array(volume.affine.spacing_mm)
    image = sitk.GetImageFromArray(grey)
    image.SetSpacing([float(s) for s in spacing[::-1]])
    if min(grey.shape) >= 4:  # the filter needs as many
        image = sitk.SmoothingRecursiveGaussian(image, _SMOOTH_MM)
    smooth = sitk.GetArrayViewFromImage(image)
    low, high = np.percentile(smooth, (1, 99))
    if not high > low:
        raise UnusableInput(f"{volume.name} has one value everywhere: no regions.")
    flat = np.clip((smooth - low) / (high - low), 0, 1).astype(np.float32)
    long = spacing * grey.shape
    deep = [size > 1 for size in grey.shape]
    side = (np.prod(long[deep]) / count) ** (1 / sum(deep))
    parts = np.clip(np.round(long / side), 1, grey.shape)
    cells = [int(n // k) for n, k in zip(grey.shape, parts, strict=True)]
    slic = sitk.SLICImageFilter()
    slic.SetNumberOfThreads(1)  # sums in one order: the same regions everywhere
    slic.SetSuperGridSize(cells[::-1])
    slic.SetSpatialProximityWeight(_COMPACTNESS)
    slic.SetMaximumNumberOfIterations(_ROUNDS)
    found = sitk.GetArrayFromImage(slic.Execute(sitk.GetImageFromArray(flat)))
    _, numbers, voxels = np.unique(found, return_inverse=True, return_counts=True)
    if len(voxels) < 2:
        raise UnusableInput(
            f"{volume.name} ({' x '.join(map(str, grey.shape))} voxels) is too small "
            f"for {count} regions."
        )
    # by size, the largest first
    place = np.empty(len(voxels), np.int32)
    place[np.argsort(-voxels, kind="stable")] = np.arange(len(voxels))
    labels = place[numbers].reshape(grey.shape)
    names = {value: f"region {value}" for value in range(1, len(voxels))}
    return LabelMap(labels, volume.affine, names, volume.name, volume.meta)
