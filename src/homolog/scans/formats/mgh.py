"""FreeSurfer volumes (``.mgz``, ``.mgh``), read by nibabel.

nibabel reads no further than the voxels, so that a gzip checksum goes unverified: the
stream is unpacked by our own reader first.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.scans.formats import ScanHeader
from homolog.scans.formats.stated import Stated
from homolog.scans.nifti import FAR_MM, lps_from_ras, read_start, stream
from homolog.scans.problems import Problem, Unsound, check_room

_HEADER = 284  # bytes before the voxels
_USED = 90  # bytes of them that mean something


def header(path: Path) -> ScanHeader:
    """The header of a scan; raises as ``stated``."""
    return stated(path).header(path)


def stated(path: Path) -> Stated:
    """What a FreeSurfer volume is.

    Raises:
        Unsound: ``empty, corrupt, truncated, unreadable, spacing, affine``.
    """
    fields = _fields(path)
    sizes = [int(n) for n in fields["dims"]]
    if min(sizes) < 1:
        raise Unsound("empty", f"size {sizes} holds no voxels.", path)
    problems = []
    if not int(fields["goodRASFlag"]):
        text = "the header has no orientation; FreeSurfer's default taken."
        problems.append(Problem("orientation_unknown", text, False))
    delta = np.asarray(fields["delta"], float)
    if not (np.isfinite(delta).all() and (delta > 0).all()):
        raise Unsound("spacing", f"voxel size must be positive, got {delta}.", path)
    ras = np.asarray(fields.get_affine(), float)[:3]
    if not np.abs(ras).max() < FAR_MM or abs(np.linalg.det(ras[:, :3])) < 1e-12:
        text = "its voxels have no place that can be told in numbers."
        raise Unsound("affine", text, path)
    x, y, z, frames = sizes
    kind = fields.get_data_dtype().newbyteorder("=").name
    return Stated(
        (z, y, x), lps_from_ras(ras), kind, "mgh", frames=frames,
        problems=tuple(problems),
    )  # fmt: skip


def values(header: ScanHeader) -> tuple[NDArray[Any], list[Problem]]:
    """(D, H, W) values of a volume of one frame; no remarks.

    Raises:
        Unsound: As ``stated``, or ``too_large`` for the free memory.
    """
    path, kind = header.path, _fields(header.path).get_data_dtype()
    wanted = int(np.prod(header.shape)) * kind.itemsize
    check_room(2 * wanted, path)
    found = bytearray()
    for piece in stream(path):  # to its end, for the checksum
        found += piece[: max(0, _HEADER + wanted - len(found))]
    if len(found) < _HEADER + wanted:
        have = max(0, len(found) - _HEADER)
        text = f"{wanted} bytes of voxels expected, {have} found."
        raise Unsound("truncated", text, path)
    voxels = np.frombuffer(memoryview(found)[_HEADER:], kind).reshape(header.shape)
    return voxels.astype(kind.newbyteorder("=")), []


def _fields(path: Path) -> Any:
    from nibabel.freesurfer.mghformat import MGHHeader

    start = read_start(path, _HEADER)
    if len(start) < _USED:
        text = f"an MGH header has {_HEADER} bytes, found {len(start)}."
        raise Unsound("truncated", text, path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = MGHHeader.from_fileobj(io.BytesIO(start.ljust(_HEADER, b"\0")))
            header.get_data_dtype()
    except Exception as error:  # noqa: BLE001 - nibabel's own kinds of them
        text = f"no header of a FreeSurfer volume ({error})."
        raise Unsound("unreadable", text, path) from None
    if int(header["version"]) != 1:
        raise Unsound("unreadable", "no header of a FreeSurfer volume.", path)
    return header
