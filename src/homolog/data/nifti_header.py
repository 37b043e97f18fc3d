"""NIfTI-1, NIfTI-2 and Analyze headers, read from their own bytes.

Read here and not by SimpleITK because ITK 5 takes a zero spacing for 1 mm, silently
uses another transform than nibabel where a header holds two, and knows no NIfTI-2.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from homolog.data.byte_stream import read_start
from homolog.data.problems import Unsound
from homolog.geometry.affine import Index

# NIfTI number type -> (numpy's name, numbers per voxel).
_TYPES: dict[int, tuple[str, int]] = {
    2: ("u1", 1), 4: ("i2", 1), 8: ("i4", 1), 16: ("f4", 1), 32: ("c8", 1),
    64: ("f8", 1), 128: ("u1", 3), 256: ("i1", 1), 512: ("u2", 1), 768: ("u4", 1),
    1024: ("i8", 1), 1280: ("u8", 1), 1792: ("c16", 1), 2304: ("u1", 4),
}  # fmt: skip
_UNSUPPORTED = {1: "1-bit", 1536: "128-bit float", 2048: "256-bit complex"}
TYPE_CODES = {letter: code for code, (letter, n) in _TYPES.items() if n == 1}


Order: TypeAlias = Literal["<", ">"]


@dataclass(frozen=True, eq=False)
class NiftiHeader:
    """The fields that matter, in file order (x, y, z) and RAS+ as the format has them.

    Attributes:
        data_path: File with the voxels (the ``.img`` of a pair).
        version: 1 or 2; 0 for Analyze 7.5.
        order: ``"<"`` or ``">"``.
        dim: The eight entries of ``dim``, unused ones set to 1.
        type_code: NIfTI number type.
        pixdim: The eight entries of ``pixdim``.
        offset: Byte at which the voxels start in ``data_path``.
        slope: Scale of the stored numbers; 1 when not used.
        inter: Offset of the stored numbers.
        forms: What places the voxels, as plain numbers: ``qform_code, sform_code,
            quatern, qoffset, srow, pixdim, units``. Written back unchanged on saving.
    """

    path: Path
    data_path: Path
    version: int
    order: Order
    dim: tuple[int, ...]
    type_code: int
    pixdim: tuple[float, ...]
    offset: int
    slope: float
    inter: float
    forms: dict[str, Any]

    @property
    def shape(self) -> Index:
        """Spatial size (D, H, W) of the array."""
        return self.dim[3], self.dim[2], self.dim[1]

    @property
    def frames(self) -> int:
        """Length of the fourth axis."""
        return self.dim[4]

    @property
    def channels(self) -> int:
        """Numbers per voxel: colour, or the axes after the fourth."""
        extra = math.prod(self.dim[5:8])
        return extra * _TYPES.get(self.type_code, ("", 1))[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Number type as stored, with its byte order."""
        return np.dtype(_TYPES[self.type_code][0]).newbyteorder(self.order)

    @property
    def data_bytes(self) -> int:
        """Bytes of all voxels."""
        per_voxel = self.dtype.itemsize * _TYPES[self.type_code][1]
        size = per_voxel
        for n in self.dim[1:8]:
            size *= n
        return size

    @property
    def scaled(self) -> bool:
        """Whether values differ from the stored numbers."""
        return self.slope != 1.0 or self.inter != 0.0


def read_nifti_header(path: Path) -> NiftiHeader:
    """Read the header of a ``.nii``, ``.nii.gz``, ``.hdr`` or ``.img`` file.

    Raises:
        Unsound: Codes ``empty, missing, truncated, corrupt, unreadable, unsupported``.
    """
    header_path, data_path = _pair(path)
    start = read_start(header_path, 544)
    if len(start) < 348:
        raise Unsound(
            "truncated", f"a NIfTI header has 348 bytes, found {len(start)}.", path
        )
    orders: tuple[Order, Order] = ("<", ">")
    for order in orders:
        size = struct.unpack_from(order + "i", start)[0]
        if size == 540 and start[4:8] in (b"n+2\0", b"ni2\0"):
            if len(start) < 540:
                raise Unsound("truncated", "the NIfTI-2 header is cut off.", path)
            return _checked(_parse2(path, data_path, order, start))
        if size == 348 and 1 <= struct.unpack_from(order + "h", start, 40)[0] <= 7:
            return _checked(_parse1(path, data_path, order, start))
    raise Unsound(
        "unreadable",
        "no NIfTI header found (its first number is not 348 or 540).",
        path,
    )


def _pair(path: Path) -> tuple[Path, Path]:
    name = path.name.lower()
    for mine, other in ((".hdr", ".img"), (".img", ".hdr")):
        for packed in ("", ".gz"):
            if not name.endswith(mine + packed):
                continue
            stem = path.name[: -len(mine + packed)]
            names = [f"{stem}{other}{gz}" for gz in (packed, "", ".gz")]
            partner = next(
                (path.with_name(n) for n in names if path.with_name(n).is_file()), None
            )
            if partner is None:
                if mine == ".hdr" and _is_single(path):
                    return path, path
                raise Unsound(
                    "missing", f"its other half {names[0]} is not there.", path
                )
            return (path, partner) if mine == ".hdr" else (partner, path)
    return path, path


def _is_single(path: Path) -> bool:
    return read_start(path, 348)[344:348] == b"n+1\0"


def _parse1(path: Path, data: Path, order: Order, b: bytes) -> NiftiHeader:
    def get(kind: str, at: int) -> tuple[Any, ...]:
        return struct.unpack_from(order + kind, b, at)

    magic = b[344:348]
    version = 1 if magic in (b"n+1\0", b"ni1\0") else 0
    if version == 0 and data == path:
        raise Unsound(
            "unreadable", "the NIfTI mark n+1 is missing in the header.", path
        )
    pixdim = get("8f", 76)
    offset, slope, inter = get("3f", 108)
    forms = {
        "qform_code": get("h", 252)[0] if version else 0,
        "sform_code": get("h", 254)[0] if version else 0,
        "quatern": list(get("3f", 256)),
        "qoffset": list(get("3f", 268)),
        "srow": list(get("12f", 280)),
        "pixdim": list(pixdim[:4]),
        "units": b[123] if version else 2,
    }
    if version == 0 or (data != path and magic == b"n+1\0"):
        slope, inter = 1.0, 0.0  # Analyze has no agreed scale in these bytes
    return NiftiHeader(
        path, data, version, order, _dims(get("8h", 40)), get("h", 70)[0], pixdim,
        _offset(offset, _least(path, data, 352), b[348:349], path),
        *_scale(slope, inter), forms,
    )  # fmt: skip


def _parse2(path: Path, data: Path, order: Order, b: bytes) -> NiftiHeader:
    def get(kind: str, at: int) -> tuple[Any, ...]:
        return struct.unpack_from(order + kind, b, at)

    pixdim = get("8d", 104)
    forms = {
        "qform_code": get("i", 344)[0],
        "sform_code": get("i", 348)[0],
        "quatern": list(get("3d", 352)),
        "qoffset": list(get("3d", 376)),
        "srow": list(get("12d", 400)),
        "pixdim": list(pixdim[:4]),
        "units": get("i", 500)[0],
    }
    return NiftiHeader(
        path, data, 2, order, _dims(get("8q", 16)), get("h", 12)[0], pixdim,
        _offset(get("q", 168)[0], _least(path, data, 544), b[540:541], path),
        *_scale(*get("2d", 176)), forms,
    )  # fmt: skip


def _least(path: Path, data: Path, header: int) -> int:
    """Where voxels begin at the earliest; those of a pair have a file of their own."""
    return header if _pair(path) == (data, data) else 0


def _offset(said: float, least: int, extended: bytes, path: Path) -> int:
    """The byte at which the voxels start; never one of the header's own.

    Some writers leave 0 in a file of their own, where the voxels follow the header.

    Raises:
        Unsound: No such byte.
    """
    if said == 0 and extended in (b"", b"\0"):
        return least
    if not math.isfinite(said) or not least <= said < 2**63:
        text = f"voxels cannot start at byte {said:g}, the header has {least}."
        raise Unsound("unreadable", text, path)
    return int(said)


def _dims(raw: tuple[int, ...]) -> tuple[int, ...]:
    """Entries beyond ``dim[0]`` mean nothing; inside it they are taken as they are."""
    used = raw[0]
    return (used, *(raw[i] if i <= used else 1 for i in range(1, 8)))


def _scale(slope: float, inter: float) -> tuple[float, float]:
    """A slope of 0, NaN or infinity means "no scaling" (NIfTI standard, nibabel)."""
    if slope == 0 or not np.isfinite(slope) or not np.isfinite(inter):
        return 1.0, 0.0
    return float(slope), float(inter)


def _checked(header: NiftiHeader) -> NiftiHeader:
    path = header.path
    if not 1 <= header.dim[0] <= 7:
        raise Unsound("unreadable", f"dim[0] is {header.dim[0]}, not 1 to 7.", path)
    if any(n < 1 for n in header.dim[1 : header.dim[0] + 1]):
        sizes = "x".join(str(n) for n in header.dim[1 : header.dim[0] + 1])
        raise Unsound("empty", f"size {sizes} holds no voxels.", path)
    if header.type_code not in _TYPES:
        kind = _UNSUPPORTED.get(header.type_code, f"number type {header.type_code}")
        code = "unsupported" if header.type_code in _UNSUPPORTED else "unreadable"
        raise Unsound(code, f"{kind} voxels are not read here.", path)
    return header
