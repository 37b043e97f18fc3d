"""The values of DICOM slices: files decoded whole, frames of a file one by one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.scans import decoder
from homolog.scans.dicom.kinds import DicomFile
from homolog.scans.dicom.stacks import Series


def slice_information(series: Series) -> tuple[str, int]:
    """Number type and channels of a series, from the header of its first slice.

    Raises:
        Unsound: It cannot be read.
    """
    first = series.files[0]
    if first.frame is None:
        information = decoder.information(first.path)
        return information["dtype"], information["channels"]
    return read_slice(first).dtype.name, first.whole("samples", 1)


def read_slice(slice_: DicomFile) -> NDArray[Any]:
    """One slice, or all frames of a film, as (frames, H, W), rescaled.

    Raises:
        Unsound: It cannot be decoded.
    """
    if slice_.frame is None:
        array = decoder.pixels(slice_.path)
        return array.reshape(-1, *array.shape[-2:])
    return _frames([slice_])[0]


def read_slices(slices: Sequence[DicomFile]) -> NDArray[Any]:
    """(D, H, W) values of slices in order.

    Raises:
        Unsound: One of them cannot be decoded.
    """
    found: list[NDArray[Any]] = []
    for whole, run in groupby(
        slices, lambda s: s.path if s.frame is not None else None
    ):
        if whole is None:
            arrays = decoder.pixels_of([s.path for s in run])
            found += [a.reshape(-1, *a.shape[-2:]) for a in arrays]
        else:
            found += _frames(list(run))
    return joined_slices(found)


def _frames(slices: Sequence[DicomFile]) -> list[NDArray[Any]]:
    """Frames of one file, each (1, H, W), rescaled as it says itself."""
    path, numbers = Path(slices[0].path), [s.frame or 0 for s in slices]
    stored = decoder.frames(path, numbers)
    return [
        rescaled(one[None], _number(s, "slope", 1.0), _number(s, "intercept", 0.0))
        for s, one in zip(slices, stored, strict=True)
    ]


def _number(slice_: DicomFile, name: str, default: float) -> float:
    told = slice_.numbers(name, 1)
    return told[0] if told else default


def rescaled(values: NDArray[Any], slope: float, intercept: float) -> NDArray[Any]:
    """Stored numbers as real ones; whole numbers stay whole where they can."""
    if slope == 1 and intercept == 0:
        return values
    if values.dtype.kind == "f" or slope != int(slope) or intercept != int(intercept):
        return np.asarray((values * np.float64(slope) + intercept).astype(np.float32))
    return values.astype(np.int32) * np.int32(slope) + np.int32(intercept)


def joined_slices(slices: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """(D, H, W) values of slices (frames, H, W), each with its own rescale slope.

    PET series change slope from slice to slice, so slices whose types differ, or that
    are not whole numbers, become float32.
    """
    kinds = {s.dtype for s in slices}
    kind = kinds.pop() if len(kinds) == 1 else np.dtype(np.float32)
    if kind.kind == "f":
        kind = np.dtype(np.float32)
    return np.concatenate([s.astype(kind, copy=False) for s in slices])
