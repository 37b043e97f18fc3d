"""Where a scan, and the cells of its feature map, show the body. numpy and scipy."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from homolog.data.foreground import inside, spread_sample
from homolog.data.volume import FeatureMap, Volume
from homolog.geometry.affine import Index
from homolog.tasks._matching import grid_shape

Mask: TypeAlias = NDArray[np.bool_]

# The body is found on a thinned grid of about this voxel size.
_STEP_MM = 4.0
# Parts smaller than this share of the largest one are table, tubes or noise.
_PART = 0.02


@dataclass(frozen=True, eq=False)
class Body:
    """Where a scan shows the body, lungs and bowel gas included.

    Attributes:
        mask: (d, h, w) on a thinned grid: every ``steps``-th voxel of the scan.
        steps: Voxels of the scan (z, y, x) from one to the next.
    """

    mask: NDArray[np.bool_]
    steps: Index

    def at(self, voxels: NDArray[np.floating] | NDArray[np.integer]) -> Mask:
        """Whether places (N, 3), in voxels of the scan, lie in it: (N,)."""
        near = np.rint(voxels / np.array(self.steps)).astype(np.int64)
        near = np.clip(near, 0, np.array(self.mask.shape) - 1)
        return np.asarray(self.mask[tuple(near.T)])

    def block(self, start: Index, stop: Index) -> Mask:
        """The same for all voxels from ``start`` to before ``stop``: (d, h, w)."""
        near = [
            np.minimum(np.rint(np.arange(a, b) / s).astype(np.int64), n - 1)
            for a, b, s, n in zip(start, stop, self.steps, self.mask.shape, strict=True)
        ]
        return np.asarray(self.mask[np.ix_(*near)])


def find_body(scan: Volume) -> Body:
    """The body on a grid of about 4 mm.

    What is darker than the body but enclosed by it in a slice counts as body; small
    separate parts do not.

    Args:
        scan: A scan as stored in its file.
    """
    from scipy import ndimage

    z, y, x = (max(1, round(_STEP_MM / s)) for s in scan.affine.spacing_mm)
    data = scan.data[0, ::z, ::y, ::x]
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
    return Body(mask, (z, y, x))


def body_of(
    scan: Volume, features: FeatureMap, body: Body | None = None
) -> NDArray[np.bool_]:
    """Cells (d, h, w) whose centre lies in the body, see ``find_body``.

    Args:
        scan: A scan as stored in its file.
        features: Its features; only their grid is looked at.
        body: Of the scan, where it is known already.
    """
    shape = grid_shape(features)
    index = np.indices(shape).reshape(3, -1).T
    voxel = scan.affine.inverse().apply(features.affine.apply(index))
    known = ((voxel > -1) & (voxel < np.array(scan.shape))).all(axis=1)
    inside = (body or find_body(scan)).at(voxel)
    result: Mask = (inside & known).reshape(shape)
    return result


def in_mask(
    mask: NDArray[np.bool_], features: FeatureMap, mm: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Whether the cells (d, h, w) nearest to positions (N, 3) are in a mask."""
    index = np.rint(features.affine.inverse().apply(mm)).astype(np.int64)
    index = np.clip(index, 0, np.array(mask.shape) - 1)
    found: NDArray[np.bool_] = mask[tuple(index.T)]
    return found
