"""The voxels of a NIfTI file, from their raw bits and with their length checked."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.data.byte_stream import is_gzip, stream
from homolog.data.free_memory import check_room
from homolog.data.nifti_header import NiftiHeader
from homolog.data.problems import Unsound

# Deflate cannot shrink more than this; a header asking for more is damaged, and
# nothing is allocated for it.
_MOST_COMPRESSION = 1100
# So much may follow the voxels within a gzip stream before that is called a fault:
# nothing unpacks without end for a scan of a few voxels.
_MOST_AFTER = 1 << 26


def iter_nifti(header: NiftiHeader) -> Iterator[NDArray[Any]]:
    """Stored numbers in file order (x fastest), flat pieces, native byte order.

    The whole file is read to its end, so that a gzip checksum is verified.

    Raises:
        Unsound: ``truncated`` or ``corrupt``, at the latest with the last piece.
    """
    check_length(header)
    skip, wanted = header.offset, header.data_bytes
    itemsize = header.dtype.itemsize
    rest = b""
    beyond = header.offset + header.data_bytes + _MOST_AFTER
    for piece in stream(header.data_path):
        beyond -= len(piece)
        if beyond < 0:
            if not is_gzip(header.data_path):
                break  # nothing to verify at its end
            text = "the gzip data go on far behind the voxels of the header."
            raise Unsound("corrupt", text, header.path)
        if skip >= len(piece) or wanted == 0:
            skip = max(0, skip - len(piece))
            continue  # to the end, for the checksum
        block = (
            memoryview(piece)[skip:] if not rest else memoryview(rest + piece)[skip:]
        )
        skip = 0
        block = block[:wanted]
        whole = len(block) // itemsize * itemsize
        rest = bytes(block[whole:])
        if whole:
            wanted -= whole
            yield _native(np.frombuffer(block[:whole], dtype=header.dtype))
    if wanted:
        have = header.data_bytes - wanted
        raise Unsound(
            "truncated",
            f"{header.data_bytes} bytes of voxels expected, {have} found.",
            header.path,
        )


def read_nifti(header: NiftiHeader) -> NDArray[Any]:
    """Values as (channels, frames, D, H, W), scaled where the header says so.

    Scaled values are float32. NaN stays NaN.

    Raises:
        Unsound: ``truncated``, ``corrupt``, or ``too_large`` for the free memory.
    """
    check_length(header)
    scaling = 12 if header.scaled else 0  # float64 on the way to float32
    each = header.dtype.itemsize
    check_room(header.data_bytes // each * (each + scaling), header.path)
    out = np.empty(
        header.data_bytes // header.dtype.itemsize, header.dtype.newbyteorder("=")
    )
    at = 0
    for piece in iter_nifti(header):
        out[at : at + piece.size] = piece
        at += piece.size
    per_voxel = header.channels // math.prod(header.dim[5:8])
    values = scale_values(header, out)
    grid = values.reshape(-1, header.frames, *header.shape, per_voxel)
    return np.moveaxis(grid, -1, 0).reshape(-1, header.frames, *header.shape)


def scale_values(header: NiftiHeader, stored: NDArray[Any]) -> NDArray[Any]:
    """``stored * slope + inter`` as float32 (complex64), or the stored numbers."""
    if not header.scaled:
        return stored
    wide = np.complex128 if stored.dtype.kind == "c" else np.float64
    with np.errstate(over="ignore", invalid="ignore"):
        values = stored.astype(wide) * header.slope + header.inter
        return values.astype(np.complex64 if wide is np.complex128 else np.float32)


def check_length(header: NiftiHeader) -> None:
    """Raise ``truncated`` where the file's size alone shows that voxels are missing."""
    size = header.data_path.stat().st_size
    if size == 0:
        raise Unsound("empty", "the file has 0 bytes.", header.data_path)
    expected = header.offset + header.data_bytes
    limit = size * _MOST_COMPRESSION if is_gzip(header.data_path) else size
    if expected > limit:
        raise Unsound(
            "truncated",
            f"{expected} bytes expected, the file has {size}.",
            header.data_path,
        )


def _native(values: NDArray[Any]) -> NDArray[Any]:
    return values.astype(values.dtype.newbyteorder("="), copy=False)
