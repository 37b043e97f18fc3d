"""Which cells of a feature map lie in the body. numpy and scipy only."""

from __future__ import annotations

from math import ceil

import numpy as np
from numpy.typing import NDArray

from homolog.data.foreground import inside, spread_sample
from homolog.data.volume import FeatureMap, Volume
from homolog.tasks._matching import grid_shape

# The body is found on a thinned grid of about this voxel size.
_STEP_MM = 4.0
# Parts smaller than this share of the largest one are table, tubes or noise.
_PART = 0.02


def body_of(scan: Volume, features: FeatureMap) -> NDArray[np.bool_]:
    """Cells (d, h, w) whose centre lies in the body, lungs and bowel gas included.

    What is darker than the body but enclosed by it in a slice counts as body; small
    separate parts do not.

    Args:
        scan: A scan as stored in its file.
        features: Its features; only their grid is looked at.
    """
    from scipy import ndimage

    steps = [max(1, round(_STEP_MM / s)) for s in scan.affine.spacing_mm]
    data = scan.data[0, :: steps[0], :: steps[1], :: steps[2]]
    values = data.astype(np.float32)
    mask = inside(values, spread_sample(scan.data), scan.modality == "CT")
    labels, count = ndimage.label(mask)
    if count > 1:
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        mask = (sizes >= ceil(_PART * sizes.max()))[labels]
    axis = scan.affine.closest_axes()[0][0]  # slices are axial ones
    for plane in range(mask.shape[axis]):
        at = tuple(plane if a == axis else slice(None) for a in range(3))
        mask[at] = ndimage.binary_fill_holes(mask[at])
    shape = grid_shape(features)
    index = np.indices(shape).reshape(3, -1).T
    voxel = scan.affine.inverse().apply(features.affine.apply(index))
    near = np.rint(voxel / steps).astype(np.int64)
    known = ((voxel > -1) & (voxel < np.array(scan.shape))).all(axis=1)
    near = np.clip(near, 0, np.array(mask.shape) - 1)
    result: NDArray[np.bool_] = (mask[tuple(near.T)] & known).reshape(shape)
    return result


def in_mask(
    mask: NDArray[np.bool_], features: FeatureMap, mm: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Whether the cells (d, h, w) nearest to positions (N, 3) are in a mask."""
    index = np.rint(features.affine.inverse().apply(mm)).astype(np.int64)
    index = np.clip(index, 0, np.array(mask.shape) - 1)
    found: NDArray[np.bool_] = mask[tuple(index.T)]
    return found
