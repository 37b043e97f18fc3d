"""Which bytes a volume becomes, by suffix; always complete or not there."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.data.byte_stream import stream
from homolog.data.nifti_write import build_header, write_nifti_bytes
from homolog.data.problems import Unsound
from homolog.data.safe_write import write_safely
from homolog.data.scan_header import scan_suffix
from homolog.errors import UnusableInput
from homolog.geometry.affine import Affine

WRITE_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha")


def write_image(
    path: Path,
    data: NDArray[Any],
    affine: Affine,
    meta: Mapping[str, Any],
    *,
    by_itk: Callable[[Path, NDArray[Any], Affine], None],
    read_back: Callable[[Path], NDArray[Any]],
) -> None:
    """Write one image file.

    Args:
        path: Its suffix chooses the format.
        data: (C, D, H, W).
        affine: Voxel -> mm.
        meta: May hold ``nifti_forms`` and ``forms_affine``: the transforms of the file
            the data came from, used as long as ``affine`` is still theirs.
        by_itk: Writes NRRD and MetaImage.
        read_back: Reads those, as (D, H, W) or (D, H, W, C).

    Raises:
        UnusableInput: Suffix or number type that cannot be written.
        JobError: The file does not read back.
    """
    suffix = scan_suffix(path)
    if suffix not in WRITE_SUFFIXES:
        known = ", ".join(WRITE_SUFFIXES)
        raise UnusableInput(f"{path}: can write {known}, not {suffix or 'no suffix'}.")
    if data.dtype.kind not in "iufb" or data.size == 0:
        kind = f"{data.dtype} of shape {data.shape}"
        raise UnusableInput(f"{path}: cannot write {kind}.")
    data = data.astype(_writable(data.dtype), copy=False)
    if suffix in (".nrrd", ".mha"):
        expected = np.moveaxis(data, 0, -1) if data.shape[0] > 1 else data[0]
        nan = data.dtype.kind == "f"
        write_safely(
            path,
            lambda aside: by_itk(aside, data, affine),
            lambda aside: np.array_equal(read_back(aside), expected, equal_nan=nan),
        )
        return
    forms = meta.get("nifti_forms")
    if forms and not _same_place(affine, meta.get("forms_affine")):
        forms = None
    header = build_header(data, affine, forms)
    crcs: list[int] = []
    write_safely(
        path,
        lambda aside: crcs.append(
            write_nifti_bytes(aside, header, data, gzip=suffix == ".nii.gz")
        ),
        lambda aside: _crc(aside) == crcs[-1],
    )


def _writable(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype.kind == "b":
        return np.dtype(np.uint8)
    if dtype.kind == "f":
        return np.dtype(np.float64 if dtype.itemsize >= 8 else np.float32)
    return dtype.newbyteorder("=")


def _same_place(affine: Affine, written: Any) -> bool:
    return written is not None and np.allclose(
        affine.matrix, written, rtol=0, atol=1e-6
    )


def _crc(path: Path) -> int:
    crc = 0
    try:
        for piece in stream(path):
            crc = zlib.crc32(piece, crc)
    except Unsound:
        return -1
    return crc
