"""NIfTI-1, NIfTI-2 and Analyze: headers, affines and voxels, from their own bytes.

Read here and not by SimpleITK because ITK 5 takes a zero spacing for 1 mm, silently
uses another transform than nibabel where a header holds two, and knows no NIfTI-2; and
because SimpleITK and nifti_clib return half a volume from half a ``.nii.gz`` without a
word. Here a stream must end properly, with its CRC and its length.

Written byte by byte, so that the affine survives as it was: ITK derives a spacing, a
direction and a quaternion and rounds each, and a label map would no longer load with
its image's affine. The transforms of a scan that came from NIfTI are written back
unchanged; any other affine goes into both, left-handed ones too.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from homolog.geometry.affine import Affine, Index
from homolog.scans.problems import SHEAR_LIMIT, Problem, Unsound, check_room
from homolog.words import times

_GZIP = b"\x1f\x8b"
_READ = 1 << 20


def is_gzip(path: Path) -> bool:
    """Whether the file's first bytes are gzip's, whatever its name."""
    with path.open("rb") as file:
        return file.read(2) == _GZIP


def read_start(path: Path, count: int) -> bytes:
    """The first ``count`` (decompressed) bytes, fewer when the file has fewer.

    Raises:
        Unsound: Codes ``empty``, ``corrupt``.
    """
    if path.stat().st_size == 0:
        raise Unsound("empty", "the file has 0 bytes.", path)
    with path.open("rb") as file:
        start = file.read(max(count * 2, 4096))
    if not start.startswith(_GZIP):
        return start[:count]
    try:
        return zlib.decompressobj(wbits=31).decompress(start, count)
    except zlib.error as error:
        raise Unsound(
            "corrupt", f"the gzip data do not decode ({error}).", path
        ) from None


def stream(path: Path) -> Iterator[bytes]:
    """All (decompressed) bytes, piece by piece, at most about 16 MB each.

    Several gzip members in a row (pigz, bgzip) are one stream. Other bytes after the
    last member are ignored, as gzip itself does.

    Raises:
        Unsound: ``truncated`` when the gzip stream has no end, ``corrupt`` when its
            CRC, its length or its code is wrong. Raised where the damage is met.
    """
    with path.open("rb") as file:
        if file.read(2) != _GZIP:
            file.seek(0)
            while piece := file.read(_READ):
                yield piece
            return
        file.seek(0)
        yield from _members(file, path)


def _members(file: BinaryIO, path: Path) -> Iterator[bytes]:
    engine = zlib.decompressobj(wbits=31)
    pending = b""
    while True:
        pending = pending or file.read(_READ)
        if not pending:
            text = "the gzip stream ends before its checksum."
            raise Unsound("truncated", text, path)
        try:
            out = engine.decompress(pending, 16 * _READ)
        except zlib.error as error:
            text = f"the gzip data are damaged ({error})."
            raise Unsound("corrupt", text, path) from None
        pending = engine.unconsumed_tail
        if out:
            yield out
        if engine.eof:
            pending = engine.unused_data + file.read(_READ)
            if not pending.startswith(_GZIP):
                return
            engine = zlib.decompressobj(wbits=31)


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
        sizes = times(header.dim[1 : header.dim[0] + 1])
        raise Unsound("empty", f"size {sizes} holds no voxels.", path)
    if header.type_code not in _TYPES:
        kind = _UNSUPPORTED.get(header.type_code, f"number type {header.type_code}")
        code = "unsupported" if header.type_code in _UNSUPPORTED else "unreadable"
        raise Unsound(code, f"{kind} voxels are not read here.", path)
    return header


# Affines. Where a header's two transforms differ, the sform counts, as in nibabel,
# FSL and SPM.
FAR_MM = 1e12  # beyond this no number of a place is one
# Millimetres per unit of length in xyzt_units; 0 means "not stated", taken as mm.
_UNITS_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}


@np.errstate(all="ignore")
def nifti_affine(header: NiftiHeader) -> tuple[Affine | None, list[Problem]]:
    """Voxel (z, y, x) -> mm (z, y, x), LPS, and what is wrong or remarkable with it."""
    problems = _spacing_problems(header)
    if any(p.fatal for p in problems):
        return None, problems
    unit_mm = _UNITS_MM.get(int(header.forms["units"]) & 7, 1.0)
    if unit_mm != 1.0:
        word = "metres" if unit_mm > 1 else "micrometres"
        problems.append(Problem("units", f"lengths in {word}, converted to mm.", False))
    q = qform(header)
    s = np.array(header.forms["srow"], dtype=np.float64).reshape(3, 4)
    if header.forms["sform_code"] > 0:
        matrix = s
        problems += _disagreement(header, q, s)
    elif q is not None:
        matrix = q
    else:
        # What ITK takes; the standard, nibabel and SPM each differ.
        matrix = np.diag([-1.0, -1.0, 1.0]) @ np.eye(3, 4) * [*_spacing(header), 1.0]
        text = "the header has no orientation (qform and sform codes 0)."
        problems.append(Problem("orientation_unknown", text, False))
    if not np.abs(matrix * unit_mm).max() < FAR_MM:  # NaN too
        text = "its voxels have no place that can be told in numbers."
        return None, [*problems, Problem("affine", text)]
    if abs(np.linalg.det(matrix[:, :3])) < 1e-12:
        text = "the voxel axes in the header are not three independent directions."
        return None, [*problems, Problem("affine", text)]
    return lps_from_ras(matrix * unit_mm), problems


def lps_from_ras(matrix: NDArray[np.float64]) -> Affine:
    """(3, 4) voxel x, y, z -> RAS mm, as an Affine in z, y, x and LPS."""
    lps = np.diag([-1.0, -1.0, 1.0]) @ matrix
    out = np.eye(4)
    out[:3, :3] = lps[::-1, 2::-1]
    out[:3, 3] = lps[::-1, 3]
    return Affine(out)


def ras_from_lps(affine: Affine) -> NDArray[np.float64]:
    """Inverse of lps_from_ras."""
    m = affine.matrix
    xyz = np.column_stack([m[2::-1, 2::-1], m[2::-1, 3]])
    ras: NDArray[np.float64] = np.diag([-1.0, -1.0, 1.0]) @ xyz
    return ras


def _spacing(header: NiftiHeader) -> NDArray[np.float64]:
    """Voxel size x, y, z; axes of a single voxel may lack one and get 1."""
    sizes = np.array(header.pixdim[1:4], dtype=np.float64)
    single = np.array([header.dim[i] == 1 for i in (1, 2, 3)])
    return np.where(single & ~(sizes > 0), 1.0, sizes)


def _spacing_problems(header: NiftiHeader) -> list[Problem]:
    sizes = _spacing(header)
    said = times(header.pixdim[1:4])
    if not np.isfinite(sizes).all() or not (sizes > 0).all():
        return [
            Problem("spacing", f"voxel size must be positive, the header says {said}.")
        ]
    if header.forms["sform_code"] <= 0:
        return []
    srow = np.array(header.forms["srow"], dtype=np.float64).reshape(3, 4)
    lengths = np.linalg.norm(srow[:, :3], axis=0)
    if not np.isfinite(lengths).all() or not (lengths > 0).all():
        text = "the sform gives a voxel axis no length."
        return [Problem("spacing", text)]
    if (np.abs(lengths / sizes - 1.0) > 0.01).any():
        other = times(lengths)
        text = f"contradictory voxel sizes: pixdim says {said}, the sform {other}."
        return [Problem("spacing", text)]
    return []


def _disagreement(
    header: NiftiHeader, q: NDArray[np.float64] | None, s: NDArray[np.float64]
) -> list[Problem]:
    if q is None or not np.isfinite(q).all():
        return []
    last = np.array([n - 1.0 for n in header.dim[1:4]])
    corners = np.stack([np.zeros(3), last])
    gap = corners @ (q - s)[:, :3].T + (q - s)[:, 3]
    if np.abs(gap).max() <= 0.1 * _spacing(header).min():
        return []
    text = "qform and sform place the scan differently; the sform is used."
    return [Problem("forms_disagree", text, False)]


def qform(header: NiftiHeader) -> NDArray[np.float64] | None:
    """(3, 4) voxel x, y, z -> RAS mm from the quaternion; None when its code is 0."""
    if header.forms["qform_code"] <= 0:
        return None
    b, c, d = (float(v) for v in header.forms["quatern"])
    square = b * b + c * c + d * d
    rest = 1.0 - square
    if rest < 1e-7:  # a half turn, up to float rounding: as the standard's own code
        a, scale = 0.0, 1.0 / np.sqrt(square)
        b, c, d = b * scale, c * scale, d * scale
    else:
        a = float(np.sqrt(rest))
    rotation = np.array([
        [a*a + b*b - c*c - d*d, 2*b*c - 2*a*d, 2*b*d + 2*a*c],
        [2*b*c + 2*a*d, a*a + c*c - b*b - d*d, 2*c*d - 2*a*b],
        [2*b*d - 2*a*c, 2*c*d + 2*a*b, a*a + d*d - b*b - c*c],
    ])  # fmt: skip
    rotation[:, 2] *= -1.0 if header.pixdim[0] < 0 else 1.0
    return np.column_stack([rotation * _spacing(header), header.forms["qoffset"]])


# Voxels.
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
    """Values as (channels, frames, D, H, W), scaled where the header states it.

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


# Writing.
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
