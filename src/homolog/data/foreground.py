"""Which part of a scan is body: a box for drawing places, values for statistics."""

from __future__ import annotations

from math import ceil, gcd, prod
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from homolog.geometry.affine import Index

Box: TypeAlias = tuple[Index, Index]  # first voxel, one past the last (z, y, x)

BODY_HU = -500.0
# Statistics look at no more voxels than this, evenly spread.
_SAMPLE = 400_000
# The box is found on a thinned grid of at most this many voxels per axis.
_COARSE = 112
# Parts smaller than this share of the largest one are table, tubes or noise.
_PART = 0.1
# An exact value shared by this many voxels is padding or a mask's outside.
_PADDING = 0.15
# Without padding, values under this share of the range are air.
_AIR = 0.08


def spread_sample(data: NDArray[Any]) -> NDArray[np.float32]:
    """Evenly spread voxels, at most about 400 000, the same ones every time.

    Args:
        data: (C, D, H, W).
    """
    flat = data.reshape(-1)
    step = ceil(flat.size / _SAMPLE)
    # A step coprime to the row length visits all columns.
    while step > 1 and gcd(step, data.shape[-1] * data.shape[-2]) > 1:
        step += 1
    return np.asarray(flat[::step], dtype=np.float32)


def inside(
    values: NDArray[Any], sample: NDArray[np.float32], is_ct: bool
) -> NDArray[np.bool_]:
    """True where a value belongs to the body rather than to air or padding.

    CT knows its unit: above -500 HU. Elsewhere a value that many voxels share exactly
    (padding, skull stripping) is outside, and so is what is nearly as dark as air.

    Args:
        values: Any shape, in value units.
        sample: (N,) evenly spread values of the same scan.
        is_ct: Whether values are HU.
    """
    if is_ct:
        return np.asarray(values > BODY_HU)
    found, counts = np.unique(sample, return_counts=True)
    top = int(counts.argmax())
    padding = float(found[top]) if counts[top] > _PADDING * sample.size else None
    rest = sample if padding is None else sample[sample != padding]
    if rest.size == 0:
        return np.ones(values.shape, dtype=bool)
    low, high = np.percentile(rest, (0.1, 99.5))
    if padding is not None and padding > low:
        # Normalised scans: the outside lies in the middle of the values.
        return np.asarray(values != np.float32(padding))
    floor = low if padding is None else padding
    return np.asarray(values > floor + _AIR * (high - floor))


def foreground_box(
    data: NDArray[Any],
    sample: NDArray[np.float32],
    is_ct: bool,
    *,
    scale: float = 1.0,
    offset: float = 0.0,
) -> Box:
    """Box around the large connected parts of the body; else the whole scan.

    Args:
        data: (C, D, H, W); the first channel decides.
        sample: As for ``inside``, in value units.
        is_ct: Whether values are HU.
        scale: Value units per step of ``data``.
        offset: Value of a 0 in ``data``.
    """
    from scipy import ndimage

    shape: Index = (data.shape[1], data.shape[2], data.shape[3])
    steps = [max(1, ceil(n / _COARSE)) for n in shape]
    thin = data[0, :: steps[0], :: steps[1], :: steps[2]]
    values = thin * np.float32(scale) + np.float32(offset)
    mask = inside(values, sample, is_ct)
    whole: Box = ((0, 0, 0), shape)
    if mask.mean() > 0.95:
        return whole
    cross = ndimage.generate_binary_structure(2, 1)[None]
    opened = ndimage.binary_opening(mask, cross)  # parts the body from its table
    labels, count = ndimage.label(opened if opened.any() else mask)
    if count == 0:
        return whole
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    kept = (sizes >= _PART * sizes.max())[labels] & (labels > 0)
    start, stop = [0, 0, 0], list(shape)
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        hits = np.flatnonzero(kept.any(axis=others))
        # The opening and the thinning each eat up to a step at the border.
        start[axis] = max(0, (int(hits[0]) - 1) * steps[axis])
        stop[axis] = min(shape[axis], (int(hits[-1]) + 2) * steps[axis])
    box: Box = ((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
    size = [b - a for a, b in zip(*box, strict=True)]
    return box if prod(size) > 0.005 * prod(shape) else whole
