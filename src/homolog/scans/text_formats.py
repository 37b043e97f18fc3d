"""NRRD and MetaImage: headers and voxels, from their own bytes.

SimpleITK fills a missing voxel size with 1 mm, passes a gzip stream with a wrong
checksum, formats whatever pattern a header gives as a file name, and ends the process
at a header of 2000 axes. So every field that decides on memory, files or places is read
and judged here, and so are the voxels; SimpleITK only gives their place.
"""

from __future__ import annotations

import bz2
import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from homolog.scans.problems import SHEAR_LIMIT, Problem, Unsound, check_room, shear_text
from homolog.words import times

_LONGEST = 1 << 20
_LONGEST_LINE = 4000  # what MetaIO has room for
_MOST_AXES = {"NRRD": 16, "MetaImage": 5}
_MOST_VOXELS = 1 << 62
_MOST_FILES = 1 << 16
_NEAR = 1e-9  # below this a length is none
_META_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2",
    "MET_INT": "i4", "MET_UINT": "u4", "MET_LONG": "i4", "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}  # fmt: skip
_NRRD_WORDS = {
    "i1": "signed char|int8|int8_t",
    "u1": "uchar|unsigned char|uint8|uint8_t",
    "i2": "short|short int|signed short|signed short int|int16|int16_t",
    "u2": "ushort|unsigned short|unsigned short int|uint16|uint16_t",
    "i4": "int|signed int|int32|int32_t",
    "u4": "uint|unsigned int|uint32|uint32_t",
    "i8": "longlong|long long|long long int|signed long long|signed long long int|"
    "int64|int64_t",
    "u8": "ulonglong|unsigned long long|unsigned long long int|uint64|uint64_t",
    "f4": "float",
    "f8": "double",
}
_NRRD_TYPES = {w: t for t, words in _NRRD_WORDS.items() for w in words.split("|")}
_NRRD_ENCODINGS = {
    "raw": "raw", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2",
    "text": "text", "txt": "text", "ascii": "text", "hex": "hex",
}  # fmt: skip
# Axes along which voxels lie; any other kind holds the numbers of one voxel.
_SPACES = ("domain", "space", "???", "none")
_PLACES = (*_SPACES, "time")


@dataclass(frozen=True)
class TextHeader:
    """Fields of a text header.

    Attributes:
        path: The header's file.
        format: ``"NRRD"`` or ``"MetaImage"``.
        fields: Key in lower case -> value.
        data_at: Byte in ``path`` where attached data start; None when detached.
        listed: Data files named in lines of their own after the header.
        pairs: What the writer added to an NRRD, key in lower case -> value.
    """

    path: Path
    format: str
    fields: dict[str, str]
    data_at: int | None
    listed: tuple[str, ...] = ()
    pairs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class VoxelPlan:
    """Where the voxels of a text header lie, and as what.

    Attributes:
        path: The header's file, for sentences.
        sizes: Length of each axis, fastest first, as stored.
        channels: Numbers per voxel; their axes are among ``sizes``.
        dtype: Number type as stored, with its byte order.
        encoding: ``raw, gzip, bzip2, text`` or ``hex``.
        files: Files with the voxels; each holds the same share of them.
        start: Byte in each file where the data start; -1: raw data at its very end.
        lines: Lines to pass over there.
        skip: Bytes to pass over after them; of what unpacks where the data are packed.
    """

    path: Path
    sizes: tuple[int, ...]
    channels: int
    dtype: np.dtype[Any]
    encoding: str
    files: tuple[Path, ...]
    start: int = 0
    lines: int = 0
    skip: int = 0

    @property
    def count(self) -> int:
        """Numbers in all files."""
        return math.prod(self.sizes)

    @property
    def nbytes(self) -> int:
        """Bytes of all numbers."""
        return self.count * self.dtype.itemsize


def read_text_header(path: Path) -> TextHeader:
    """Fields of an NRRD or MetaImage file, by its suffix.

    Raises:
        Unsound: ``empty, unreadable, truncated``.
    """
    is_nrrd = path.suffix.lower() in (".nrrd", ".nhdr")
    return read_nrrd_text(path) if is_nrrd else read_meta_text(path)


def read_nrrd_text(path: Path) -> TextHeader:
    """Fields of a ``.nrrd`` or ``.nhdr`` file.

    Raises:
        Unsound: ``empty, unreadable, truncated``.
    """
    start = _start(path)
    if not start.startswith(b"NRRD"):
        raise Unsound("unreadable", "no NRRD mark at its beginning.", path)
    end = re.search(rb"\r?\n\r?\n", start)
    text = start[: end.start()] if end else start
    fields: dict[str, str] = {}
    pairs: dict[str, str] = {}
    listed: list[str] | None = None
    for line in _lines(text)[1:]:
        if listed is not None:
            listed += [line.strip()] if line.strip() else []
            continue
        key, sign, value = line.partition(":")
        if not sign or line.startswith("#"):
            continue
        key = key.strip().lower()
        if value.startswith("="):
            pairs[key] = value[1:].strip()
            continue
        key = _NRRD_SAME.get(key, key)
        _set(fields, key, value.strip(), path)
        if key == "data file" and value.split()[:1] == ["LIST"]:
            listed = []
    missing = [k for k in ("type", "dimension", "sizes", "encoding") if k not in fields]
    if missing:
        raise Unsound("unreadable", f"the NRRD header has no {missing[0]!r}.", path)
    detached = "data file" in fields
    if end is None and not detached:
        raise Unsound("truncated", "the file ends within its NRRD header.", path)
    at = None if detached or end is None else end.end()
    return TextHeader(path, "NRRD", fields, at, tuple(listed or ()), pairs)


_NRRD_SAME = {
    "datafile": "data file", "lineskip": "line skip", "byteskip": "byte skip",
    "axismins": "axis mins", "axismaxs": "axis maxs", "centers": "centerings",
}  # fmt: skip


def read_meta_text(path: Path) -> TextHeader:
    """Fields of an ``.mha`` or ``.mhd`` file.

    Raises:
        Unsound: ``empty, unreadable, truncated``.
    """
    start = _start(path)
    fields: dict[str, str] = {}
    at = 0
    while at < len(start):
        stop = start.find(b"\n", at)
        if stop < 0 and (len(start) == _LONGEST or b"=" not in start[at:]):
            break
        stop = len(start) if stop < 0 else stop  # a last line without an end
        line = _lines(start[at:stop])[0]
        at = min(stop + 1, len(start))
        if not line.strip():
            continue
        if not (found := re.match(r"([^=:]*)[=:](.*)", line)):
            raise Unsound("unreadable", "no MetaImage header at its beginning.", path)
        if len(line) > _LONGEST_LINE:
            text = f"a line of its header has {len(line)} characters."
            raise Unsound("unreadable", text, path)
        key = found[1].strip().lower()
        _set(fields, key, found[2].strip(), path)
        if key == "elementdatafile":
            break
    if "ndims" not in fields or "dimsize" not in fields:
        raise Unsound("unreadable", "no MetaImage header at its beginning.", path)
    if "elementdatafile" not in fields:
        raise Unsound("truncated", "the file ends within its MetaImage header.", path)
    name = fields["elementdatafile"]
    rest = _lines(start[at:]) if _is_list(name) else []
    listed = tuple(line.strip() for line in rest if line.strip())
    local = name.upper() == "LOCAL"
    return TextHeader(path, "MetaImage", fields, at if local else None, listed)


def data_files(path: Path) -> tuple[Path, ...]:
    """The files that hold a header's voxels; none where it cannot be understood."""
    try:
        return plan_voxels(read_text_header(path)).files
    except Unsound:
        return ()


def plan_voxels(header: TextHeader) -> VoxelPlan:
    """Where the voxels are; sizes, types, files and lengths judged.

    Raises:
        Unsound: ``empty, unreadable, unsupported, missing, truncated``.
    """
    plan = _nrrd_plan(header) if header.format == "NRRD" else _meta_plan(header)
    _check_lengths(plan)
    return plan


def geometry_problems(header: TextHeader) -> list[Problem]:
    """Faults of size, spacing and axes that SimpleITK does not report."""
    return _nrrd_problems(header) if header.format == "NRRD" else _meta_problems(header)


def _nrrd_problems(header: TextHeader) -> list[Problem]:
    fields = header.fields
    kinds = fields.get("kinds", "").split()
    directions = fields.get("space directions", "")
    rows = re.findall(r"\(([^)]*)\)", directions)
    vectors = [[_number(v) for v in row.split(",")] for row in rows]
    if vectors:
        if len({len(v) for v in vectors}) > 1 or len(vectors[0]) > 4:
            text = (
                f"the space directions {directions[:80]!r} are no vectors of one size."
            )
            return [Problem("affine", text)]
        axes = np.array(vectors, dtype=np.float64).T
        lengths = _lengths(axes)
    elif "spacings" in fields:
        axes = None
        lengths = np.array([_number(v) for v in fields["spacings"].split()])
        if len(kinds) == len(lengths):  # an axis of colours or times has no spacing
            lengths = lengths[[k.lower() in _SPACES for k in kinds]]
    else:
        return [Problem("spacing", "the header gives no voxel size.")]
    origin = re.findall(r"[^\s(),]+", fields.get("space origin", ""))
    return _geometry_problems(lengths, axes, [_number(v) for v in origin])


def _meta_problems(header: TextHeader) -> list[Problem]:
    fields = header.fields
    n = _axes(header, fields["ndims"])
    said = fields.get("elementspacing", fields.get("elementsize"))
    if said is None:
        return [Problem("spacing", "the header gives no voxel size.")]
    axes = None
    origin: list[float] = []
    for key, count in _META_COUNTS.items():
        if key not in fields:
            continue
        numbers = [_number(v) for v in fields[key].split()]
        if len(numbers) != n**count:
            text = f"{key} must have {n**count} numbers, has {len(numbers)}."
            return [Problem("spacing" if "element" in key else "affine", text)]
        if count == 2:
            axes = np.array(numbers).reshape(n, n).T
        elif "element" not in key:
            origin += numbers
    return _geometry_problems(
        np.array([_number(v) for v in said.split()]), axes, origin
    )


# Fields of one number per axis (1), or per pair of axes (2).
_META_COUNTS = {
    "elementspacing": 1, "elementsize": 1, "offset": 1, "position": 1, "origin": 1,
    "centerofrotation": 1, "transformmatrix": 2, "rotation": 2, "orientation": 2,
}  # fmt: skip


def _nrrd_plan(header: TextHeader) -> VoxelPlan:
    fields, path = header.fields, header.path
    n = _axes(header, fields["dimension"])
    sizes = _sizes(header, fields["sizes"], n)
    for key in ("kinds", "spacings", "thicknesses", "space directions"):
        value = fields.get(key)
        if value is None:
            continue
        found = re.findall(r"\([^)]*\)|\S+" if "space " in key else r"\S+", value)
        if len(found) != n:
            text = f"{key} must have {n} entries, has {len(found)}."
            raise Unsound("unreadable", text, path)
    kinds = [k.lower() for k in fields.get("kinds", "").split()] or ["domain"] * n
    pairs = zip(kinds, sizes, strict=True)
    channels = math.prod(size for kind, size in pairs if kind not in _PLACES)
    word = " ".join(fields["type"].lower().split())
    if word not in _NRRD_TYPES:
        raise Unsound("unreadable", f"number type {word[:40]!r} is not known.", path)
    dtype = np.dtype(_NRRD_TYPES[word])
    said = fields["encoding"].lower()
    if said not in _NRRD_ENCODINGS:
        raise Unsound("unreadable", f"encoding {said[:40]!r} is not known.", path)
    encoding = _NRRD_ENCODINGS[said]
    if dtype.itemsize > 1 and encoding != "text":
        order = {"little": "<", "big": ">"}.get(fields.get("endian", "").lower())
        if order is None:
            text = "the header does not say the byte order (endian: little or big)."
            raise Unsound("unreadable", text, path)
        dtype = dtype.newbyteorder(order)  # type: ignore[arg-type]
    skip = _whole(header, "byte skip", "0", least=-1)
    if skip < 0 and encoding != "raw":
        text = f"byte skip -1 is for raw data, the encoding is {encoding}."
        raise Unsound("unsupported", text, path)
    return VoxelPlan(
        path, sizes, channels, dtype, encoding, _data_files(header, sizes, "data file"),
        start=-1 if skip < 0 else header.data_at or 0,
        lines=_whole(header, "line skip", "0", least=0), skip=max(skip, 0),
    )  # fmt: skip


def _meta_plan(header: TextHeader) -> VoxelPlan:
    fields, path = header.fields, header.path
    n = _axes(header, fields["ndims"])
    sizes = _sizes(header, fields["dimsize"], n)
    channels = _whole(header, "elementnumberofchannels", "1", least=1)
    word = fields.get("elementtype", "").upper()
    if word not in _META_TYPES:
        text = f"number type {word[:40] or 'none'!r} is not read here."
        raise Unsound("unreadable", text, path)
    last = [v for k, v in fields.items() if k.endswith("byteordermsb")][-1:]
    dtype = np.dtype(_META_TYPES[word]).newbyteorder(">" if _yes(*last) else "<")
    start = _whole(header, "headersize", "0", least=-1)
    packed = _yes(fields.get("compresseddata", ""))
    if start and (header.data_at is not None or packed):
        if start > 0 or packed:
            text = f"HeaderSize {start} is for raw data in a file of their own."
            raise Unsound("unsupported", text, path)
        start = 0  # the voxels end the file either way
    if math.prod(sizes) * channels > _MOST_VOXELS:
        raise Unsound("unreadable", _huge(sizes), path)
    text_coded = fields.get("binarydata", "true").lower()[:1] in ("f", "0")
    encoding = "gzip" if packed else "text" if text_coded else "raw"
    numbers = (channels, *sizes) if channels > 1 else sizes
    return VoxelPlan(
        path, numbers, channels, dtype, encoding,
        _data_files(header, sizes, "elementdatafile"), (header.data_at or 0) + start,
    )  # fmt: skip


def _axes(header: TextHeader, said: str) -> int:
    most = _MOST_AXES[header.format]
    if not re.fullmatch(r"\d{1,4}", said) or not 1 <= int(said) <= most:
        text = f"the number of axes must be 1 to {most}, the header says {said[:40]!r}."
        raise Unsound("unreadable", text, header.path)
    return int(said)


def _sizes(header: TextHeader, said: str, n: int) -> tuple[int, ...]:
    words = said.split()
    if len(words) != n or not all(re.fullmatch(r"[-+]?\d{1,19}", w) for w in words):
        text = f"sizes must be {n} whole numbers, the header says {said[:80]!r}."
        raise Unsound("unreadable", text, header.path)
    sizes = tuple(int(w) for w in words)
    if any(size < 1 for size in sizes):
        text = f"size {times(sizes)} holds no voxels."
        raise Unsound("empty", text, header.path)
    if math.prod(sizes) > _MOST_VOXELS:
        raise Unsound("unreadable", _huge(sizes), header.path)
    return sizes


def _huge(sizes: Sequence[int]) -> str:
    return f"size {times(sizes)[:80]} is beyond any memory."


def _whole(header: TextHeader, key: str, default: str, least: int) -> int:
    said = header.fields.get(key, default)
    if not re.fullmatch(r"-?\d{1,18}", said) or int(said) < least:
        text = (
            f"{key} must be a whole number from {least}, the header says {said[:40]!r}."
        )
        raise Unsound("unreadable", text, header.path)
    return int(said)


def _yes(said: str = "") -> bool:
    return said.lower()[:1] in ("t", "1")


def _is_list(name: str) -> bool:
    return name.split()[:1] == ["LIST"]


def _data_files(
    header: TextHeader, sizes: tuple[int, ...], key: str
) -> tuple[Path, ...]:
    """The files that hold the voxels, each there and beside or below its header."""
    if header.data_at is not None:
        return (header.path,)
    said = header.fields[key]
    if _is_list(said):
        names: Sequence[str] = header.listed
        axes = said.split()[1:]
    elif "%" in said:
        names, axes = _pattern(header, said)
    else:
        return (_beside(header.path, said),)
    wanted = _file_count(header, sizes, axes)
    if len(names) != wanted:
        text = f"{wanted} data files are needed, the header names {len(names)}."
        raise Unsound("unreadable", text, header.path)
    return tuple(_beside(header.path, name) for name in names)


def _file_count(header: TextHeader, sizes: tuple[int, ...], axes: list[str]) -> int:
    """Files needed where each holds the first axes, all but the last by default."""
    said = axes[0].upper().removesuffix("D") if axes else str(max(1, len(sizes) - 1))
    if not re.fullmatch(r"\d{1,2}", said) or not 1 <= int(said) <= len(sizes):
        text = f"data files of {said[:20]!r} axes do not fit {len(sizes)} axes."
        raise Unsound("unreadable", text, header.path)
    wanted = math.prod(sizes[int(said) :])
    if wanted > _MOST_FILES:
        text = f"{wanted} data files are more than {_MOST_FILES}."
        raise Unsound("unreadable", text, header.path)
    return wanted


def _pattern(header: TextHeader, said: str) -> tuple[list[str], list[str]]:
    """``slice%03d.raw 1 20 1`` as names, and what follows the three numbers."""
    words = said.split()
    name, numbers, axes = words[0], words[1:4], words[4:]
    place = re.fullmatch(r"([^%]*)%(0?)(\d{0,2})[diu]([^%]*)", name)
    whole = len(numbers) == 3 and all(re.fullmatch(r"-?\d{1,9}", w) for w in numbers)
    if place is None or not whole or len(axes) > 1 or int(numbers[2]) == 0:
        text = (
            "a pattern of data files must be like slice%03d.raw 1 20 1, the header "
            f"says {said[:80]!r}."
        )
        raise Unsound("unreadable", text, header.path)
    first, last, step = (int(w) for w in numbers)
    counted = range(first, last + (1 if step > 0 else -1), step)
    if len(counted) > _MOST_FILES:
        text = f"{len(counted)} data files are more than {_MOST_FILES}."
        raise Unsound("unreadable", text, header.path)
    form = f"{place[2]}{place[3]}d"
    return [f"{place[1]}{i:{form}}{place[4]}" for i in counted], axes


def _beside(header: Path, name: str) -> Path:
    """A data file; one elsewhere on the machine is none of a scan's business.

    Both files may be links: the data must really lie in or below the header's folder.
    """
    if not name or "\0" in name:
        raise Unsound("unreadable", "the header names no data file.", header)
    path = header.parent / name
    try:
        real = path.resolve()
        homes = (header.parent.resolve(), header.resolve().parent)
    except (OSError, RuntimeError, ValueError):
        text = f"its data file {name[:200]!r} cannot be reached."
        raise Unsound("missing", text, header) from None
    if not any(real.is_relative_to(home) for home in homes):
        text = f"its data file {name[:200]!r} does not lie beside or below its header."
        raise Unsound("unreadable", text, header)
    if not real.is_file():
        text = f"its data file {name[:200]!r} is not there."
        raise Unsound("missing", text, header)
    return real


def _check_lengths(plan: VoxelPlan) -> None:
    """What the lengths of the files alone show."""
    share = plan.count // len(plan.files)
    for file in plan.files:
        unpacked = 0 if plan.encoding in ("gzip", "bzip2") else plan.skip
        have = file.stat().st_size - max(plan.start, 0) - unpacked
        least = share * plan.dtype.itemsize
        if plan.encoding == "gzip":
            least = least // MOST_DEFLATE
        elif plan.encoding == "bzip2":
            least = 14
        elif plan.encoding == "text":
            least = 2 * share - 1
        elif plan.encoding == "hex":
            least = 2 * least
        if have < least:
            text = f"{least} bytes of voxels expected, {max(have, 0)} found."
            raise Unsound("truncated", text, plan.path)


# Deflate cannot shrink more than this; a header asking for more is damaged.
MOST_DEFLATE = 1100


def _geometry_problems(
    lengths: np.ndarray, axes: np.ndarray | None, origin: Sequence[float]
) -> list[Problem]:
    said = times(lengths)
    if (
        not np.isfinite(lengths).all()
        or not (lengths > _NEAR).all()
        or not lengths.size
    ):
        text = f"voxel size must be positive, the header says {said or 'nothing'}."
        return [Problem("spacing", text)]
    if not np.isfinite(np.array(origin)).all():
        text = "the place of the first voxel in the header is no number."
        return [Problem("affine", text)]
    if axes is None:
        return []
    norms = _lengths(axes)
    if (
        not np.isfinite(axes).all()
        or not (norms > _NEAR).all()
        or np.isinf(norms).any()
    ):
        return [Problem("affine", "the voxel axes in the header are not directions.")]
    if axes.shape[0] != axes.shape[1]:
        return []
    unit = axes / norms
    shear = np.abs(unit.T @ unit - np.eye(len(unit))).max()
    if shear > SHEAR_LIMIT:
        return [Problem("sheared", shear_text(float(shear)))]
    return []


def _lengths(axes: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        lengths: np.ndarray = np.linalg.norm(axes, axis=0)
    return lengths


def _set(fields: dict[str, str], key: str, value: str, path: Path) -> None:
    """Keep a field; a field that stands twice could be read in two ways."""
    if key in fields and fields[key] != value and key not in ("comment", "name"):
        raise Unsound("unreadable", f"the header says {key!r} twice.", path)
    fields[key] = value


def _lines(text: bytes) -> list[str]:
    """Lines without their ends; names of files in them are UTF-8 nowadays."""
    try:
        whole = text.decode("utf-8")
    except UnicodeDecodeError:
        whole = text.decode("latin-1")
    return [line.rstrip("\r") for line in whole.split("\n")]


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        start = file.read(_LONGEST)
    if not start:
        raise Unsound("empty", "the file has 0 bytes.", path)
    return start


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


# Voxels, with every length and checksum verified.
_READ = 1 << 20
_PIECE = 1 << 24
_PACKED = ("gzip", "bzip2")
# So much may follow the voxels within a compressed stream before that is called a
# fault: nothing unpacks without end for a scan of a few voxels.
_MOST_AFTER = 1 << 26


def iter_voxels(plan: VoxelPlan) -> Iterator[NDArray[Any]]:
    """Numbers in file order, flat pieces, native byte order.

    Every file is read to the end of its data, so that checksums are verified.

    Raises:
        Unsound: ``truncated`` or ``corrupt``, at the latest with the last piece.
    """
    item = plan.dtype.itemsize
    share = plan.nbytes // len(plan.files)
    for file in plan.files:
        if plan.encoding == "text":
            yield _spelt(plan, file, plan.count // len(plan.files))
            continue
        rest, wanted = b"", share
        skip = plan.skip if plan.encoding in _PACKED else 0
        for piece in _bytes_of(plan, file, share):
            block = memoryview(rest + piece if rest else piece)[skip:]
            skip = max(0, skip - len(piece))
            block = block[:wanted]
            whole = len(block) // item * item
            rest = bytes(block[whole:])
            if whole:
                wanted -= whole
                values = np.frombuffer(block[:whole], dtype=plan.dtype)
                yield values.astype(plan.dtype.newbyteorder("="), copy=False)
        if wanted:
            text = f"{share} bytes of voxels expected, {share - wanted} found."
            raise Unsound("truncated", text, plan.path)


def read_voxels(plan: VoxelPlan) -> NDArray[Any]:
    """All numbers as one flat array.

    Raises:
        Unsound: As iter_voxels, or ``too_large`` for the free memory.
    """
    check_room(plan.nbytes, plan.path)
    out = np.empty(plan.count, plan.dtype.newbyteorder("="))
    at = 0
    for piece in iter_voxels(plan):
        out[at : at + piece.size] = piece
        at += piece.size
    return out


def _bytes_of(plan: VoxelPlan, path: Path, wanted: int) -> Iterator[bytes]:
    """Decoded bytes of one file; of raw data no more than wanted."""
    with path.open("rb") as file:
        if plan.start < 0:
            file.seek(max(0, path.stat().st_size - wanted))
        else:
            _pass_over(plan, file)
        if plan.encoding in _PACKED:
            yield from _unpacked(plan, file, wanted + plan.skip)
        elif plan.encoding == "hex":
            yield _from_hex(plan, file, wanted)
        else:
            while wanted > 0 and (piece := file.read(min(_READ, wanted))):
                wanted -= len(piece)
                yield piece


def _pass_over(plan: VoxelPlan, file: BinaryIO) -> None:
    file.seek(plan.start)
    for _ in range(plan.lines):
        if not file.readline(_PIECE):
            text = f"its data file has no {plan.lines} lines to pass over."
            raise Unsound("truncated", text, plan.path)
    if plan.encoding not in _PACKED:
        file.seek(plan.skip, 1)


def _unpacked(plan: VoxelPlan, file: BinaryIO, wanted: int) -> Iterator[bytes]:
    """Streams one after another, each to its end; stops after enough of them."""
    packed = plan.encoding
    pending, found = file.read(_READ), 0
    while pending:
        engine = _Deflate() if packed == "gzip" else _Bzip2()
        while not engine.ended:
            if not pending and engine.hungry and not (pending := file.read(_READ)):
                text = "the compressed voxels end too early."
                raise Unsound("truncated", text, plan.path)
            try:
                piece = engine.take(pending)
            except (zlib.error, OSError, ValueError) as error:
                text = f"the compressed voxels are damaged ({error})."
                raise Unsound("corrupt", text, plan.path) from None
            pending = b""
            found += len(piece)
            if found > wanted + _MOST_AFTER:
                text = "the compressed data go on far behind the voxels of the header."
                raise Unsound("corrupt", text, plan.path)
            yield piece
        if found >= wanted:
            return
        pending = engine.rest or file.read(_READ)


class _Deflate:
    """A zlib or gzip stream; its checksum is verified at its end."""

    def __init__(self) -> None:
        self._engine = zlib.decompressobj(wbits=47)
        self._full = False

    def take(self, piece: bytes) -> bytes:
        tail = self._engine.unconsumed_tail
        out = self._engine.decompress(tail + piece if tail else piece, _PIECE)
        self._full = len(out) == _PIECE  # more may be waiting inside
        return out

    @property
    def ended(self) -> bool:
        return self._engine.eof

    @property
    def hungry(self) -> bool:
        return not self._engine.unconsumed_tail and not self._full

    @property
    def rest(self) -> bytes:
        return self._engine.unused_data


class _Bzip2:
    """A bzip2 stream; its checksums are verified block by block."""

    def __init__(self) -> None:
        self._engine = bz2.BZ2Decompressor()

    def take(self, piece: bytes) -> bytes:
        return self._engine.decompress(piece, _PIECE)

    @property
    def ended(self) -> bool:
        return self._engine.eof

    @property
    def hungry(self) -> bool:
        return self._engine.needs_input

    @property
    def rest(self) -> bytes:
        return self._engine.unused_data


def _from_hex(plan: VoxelPlan, file: BinaryIO, wanted: int) -> bytes:
    check_room(4 * wanted, plan.path)
    text = file.read(4 * wanted + _READ)
    try:
        return bytes.fromhex("".join(text.decode("ascii").split())[: 2 * wanted])
    except ValueError as error:
        text_ = f"its voxels are no hexadecimal digits ({error})."
        raise Unsound("corrupt", text_, plan.path) from None


def _spelt(plan: VoxelPlan, path: Path, count: int) -> NDArray[Any]:
    """Numbers written as text."""
    check_room(40 * count, plan.path)
    with path.open("rb") as file:
        _pass_over(plan, file)
        words = file.read(32 * count + _READ).replace(b",", b" ").split()[:count]
    if len(words) < count:
        text = f"{count} numbers expected, {len(words)} found."
        raise Unsound("truncated", text, plan.path)
    kind = plan.dtype.newbyteorder("=")
    try:
        if kind.kind == "f":
            return np.array([float(w) for w in words], dtype=np.float64).astype(kind)
        return np.array([int(w) for w in words], dtype=kind)
    except (ValueError, OverflowError) as error:
        text = f"a voxel is no {kind.name} number ({error})."
        raise Unsound("corrupt", text, plan.path) from None
