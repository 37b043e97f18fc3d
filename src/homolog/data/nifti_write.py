"""NIfTI-1 files written byte by byte, so that the affine survives as it was.

ITK derives a spacing, a direction and a quaternion and rounds each; a label map would
no longer load with its image's affine. Here the transforms of a scan that came from
NIfTI are written back unchanged, whichever of the two a reader prefers; any other
affine goes into both, left-handed ones too.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.data.nifti_affine import ras_from_lps
from homolog.data.nifti_header import TYPE_CODES
from homolog.data.problems import SHEAR_LIMIT
from homolog.geometry.affine import Affine

_VECTOR_INTENT = 1007


def build_header(
    data: NDArray[Any], affine: Affine, forms: Mapping[str, Any] | None = None
) -> bytes:
    """The 352 bytes in front of the voxels.

    Args:
        data: (C, D, H, W), a number type of NIfTI.
        affine: Voxel -> mm, z, y, x, LPS.
        forms: Transforms of the scan's own header (NiftiHeader.forms), used instead of
            ``affine`` when given.
    """
    channels, d, h, w = data.shape
    dim = (3, w, h, d, 1, 1, 1, 1) if channels == 1 else (5, w, h, d, 1, channels, 1, 1)
    forms = forms or forms_of(affine)
    pixdim = [*forms["pixdim"], 1.0, 1.0, 1.0, 1.0]
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    header[38] = ord("r")
    struct.pack_into("<8h", header, 40, *dim)
    struct.pack_into("<h", header, 68, _VECTOR_INTENT if channels > 1 else 0)
    code = TYPE_CODES[data.dtype.newbyteorder("=").str[1:]]
    struct.pack_into("<hh", header, 70, code, data.dtype.itemsize * 8)
    struct.pack_into("<8f", header, 76, *pixdim)
    struct.pack_into("<3f", header, 108, 352.0, 1.0, 0.0)
    header[123] = int(forms["units"]) & 0xFF
    struct.pack_into("<hh", header, 252, forms["qform_code"], forms["sform_code"])
    struct.pack_into("<6f", header, 256, *forms["quatern"], *forms["qoffset"])
    struct.pack_into("<12f", header, 280, *forms["srow"])
    header[344:348] = b"n+1\0"
    return bytes(header)


def forms_of(affine: Affine) -> dict[str, Any]:
    """Both NIfTI transforms for an affine; the qform only where axes are orthogonal."""
    ras = ras_from_lps(affine)
    spacing = np.linalg.norm(ras[:, :3], axis=0)
    rotation = ras[:, :3] / spacing
    left_handed = bool(np.linalg.det(rotation) < 0)
    if left_handed:
        rotation = rotation * [1.0, 1.0, -1.0]
    return {
        "qform_code": 1 if affine.shear < SHEAR_LIMIT else 0,
        "sform_code": 1,
        "quatern": list(_quaternion(rotation)),
        "qoffset": ras[:, 3].tolist(),
        "srow": ras.ravel().tolist(),
        "pixdim": [-1.0 if left_handed else 1.0, *spacing.tolist()],
        "units": 2,
    }


def _quaternion(rotation: NDArray[np.float64]) -> tuple[float, float, float]:
    """b, c, d (with a >= 0) of a proper rotation, stable for every angle."""
    r = rotation
    # Eigenvector of the largest eigenvalue of a symmetric matrix made of the entries
    # (Bar-Itzhack 2000): the nearest rotation, no case distinctions.
    k = np.array([
        [r[0,0]+r[1,1]+r[2,2], r[2,1]-r[1,2], r[0,2]-r[2,0], r[1,0]-r[0,1]],
        [r[2,1]-r[1,2], r[0,0]-r[1,1]-r[2,2], r[1,0]+r[0,1], r[0,2]+r[2,0]],
        [r[0,2]-r[2,0], r[1,0]+r[0,1], r[1,1]-r[0,0]-r[2,2], r[2,1]+r[1,2]],
        [r[1,0]-r[0,1], r[0,2]+r[2,0], r[2,1]+r[1,2], r[2,2]-r[0,0]-r[1,1]],
    ])  # fmt: skip
    quaternion = np.linalg.eigh(k)[1][:, -1]
    a, b, c, d = quaternion if quaternion[0] >= 0 else -quaternion
    del a
    return float(b), float(c), float(d)


def write_nifti_bytes(path: Path, header: bytes, data: NDArray[Any], gzip: bool) -> int:
    """Write header and voxels; returns the CRC-32 of the uncompressed bytes.

    Args:
        path: File to create.
        header: What build_header returned.
        data: (C, D, H, W); written C-contiguous, that is x fastest.
        gzip: Compress; the stream carries no time, so equal data give equal bytes.
    """
    engine = zlib.compressobj(4, wbits=31) if gzip else None
    crc = 0
    with path.open("wb") as file:
        pieces = [header]
        pieces += [np.ascontiguousarray(s).tobytes() for s in _slabs(data)]
        for piece in pieces:
            crc = zlib.crc32(piece, crc)
            file.write(engine.compress(piece) if engine else piece)
        if engine:
            file.write(engine.flush())
    return crc


def _slabs(data: NDArray[Any]) -> list[NDArray[Any]]:
    return [data[c, z] for c in range(data.shape[0]) for z in range(data.shape[1])]
