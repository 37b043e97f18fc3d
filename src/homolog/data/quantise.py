"""Any values as int16 with a scale and an offset, exactly where that is possible."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.data.foreground import spread_sample
from homolog.data.resample import Regrid, resample

# Values that are not whole numbers get this many levels over their usual range, finer
# than the 12 bits of a scanner; the rest of int16 is room for outliers.
_LEVELS = 8192
_INT16 = np.iinfo(np.int16)


def to_int16(
    data: NDArray[Any], grid: Regrid
) -> tuple[NDArray[np.int16], float, float, str]:
    """(stored, scale, offset, note) of values on the new grid.

    Whole numbers that fit are kept exactly (with an offset if need be); after an
    interpolation they are rounded to whole numbers where their range is wide. Anything
    else gets 8192 levels over its usual range.
    """
    values = np.ascontiguousarray(data)
    whole = _is_whole(values)
    if not grid.is_identity:
        values = resample(values, grid)
    if values.dtype.itemsize <= 2 and values.dtype.kind in "bi":
        return values.astype(np.int16, copy=False), 1.0, 0.0, ""
    least, most = float(values.min()), float(values.max())
    usual = [float(p) for p in np.percentile(spread_sample(values), (0.05, 99.95))]
    exact = grid.is_identity or usual[1] - usual[0] >= 1024
    if whole and exact and round(most) - round(least) <= 65535:
        fits = least >= _INT16.min and most <= _INT16.max
        offset = 0.0 if fits else float(round(least) - _INT16.min)
        return _quantise(values, 1.0, offset), 1.0, offset, ""
    low, high = usual if usual[1] > usual[0] else (least, most)
    if not high > low:
        return np.zeros(values.shape, np.int16), 1.0, low, ""
    scale, offset = (high - low) / _LEVELS, (low + high) / 2
    ends = ((least - offset) / scale, (most - offset) / scale)
    note = ""
    if ends[0] < _INT16.min or ends[1] > _INT16.max:
        note = (
            f"values {least:g}..{most:g} were clipped to "
            f"{max(least, offset + scale * _INT16.min):g}.."
            f"{min(most, offset + scale * _INT16.max):g} "
            f"(usual range {low:g}..{high:g})"
        )
    return _quantise(values, scale, offset), scale, offset, note


def _is_whole(values: NDArray[Any]) -> bool:
    """Whether all values are whole numbers; stops at the first part that is not."""
    if values.dtype.kind in "biu":
        return True
    flat = values.reshape(-1)
    parts = range(0, flat.size, 1 << 20)
    return all(
        bool(np.array_equal(part, np.rint(part)))
        for part in (flat[i : i + (1 << 20)] for i in parts)
    )


def _quantise(values: NDArray[Any], scale: float, offset: float) -> NDArray[np.int16]:
    """Round((value - offset) / scale) as int16, plane by plane to save memory."""
    stored = np.empty(values.shape, np.int16)
    for channel in range(values.shape[0]):
        for z in range(values.shape[1]):
            plane = values[channel, z].astype(np.float64)
            plane = np.rint((plane - offset) / scale)
            stored[channel, z] = np.clip(plane, _INT16.min, _INT16.max)
    return stored
