"""Pictures: PNG, JPEG, BMP and TIFF, told apart by their content.

libjpeg and BMP readers fill what is missing and libtiff complains on the terminal, so a
file's completeness is checked before it is decoded. Pillow decodes none of them: it
drops half the bits of 16-bit colour and of 16-bit grey with alpha. It reads the EXIF
tag by which cameras say how a picture is to be turned; tifffile the sizes of pixels
that OME and ImageJ write into a TIFF.
"""

from __future__ import annotations

import contextlib
import logging
import struct
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.geometry.affine import Index, Triple
from homolog.scans import decoder
from homolog.scans.formats import ScanHeader
from homolog.scans.formats.stated import Stated, mm_of, sized_affine
from homolog.scans.problems import Problem, Unsound

_PNG = b"\x89PNG\r\n\x1a\n"
_DEFLATE = (8, 32946)  # compressions of TIFF
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Format by its first bytes -> the suffixes that SimpleITK knows it by.
_STARTS = {
    _PNG: (".png",), b"\xff\xd8": (".jpg", ".jpeg"), b"BM": (".bmp",),
    **dict.fromkeys(_TIFF, (".tif", ".tiff")),
}  # fmt: skip
_EXIF_ORIENTATION = 0x0112
# Lengths of a resolution unit in a TIFF, in millimetres.
_RESOLUTION_MM = {2: 25.4, 3: 10.0}


def header(path: Path) -> ScanHeader:
    """The header of a scan; raises as ``stated``."""
    return stated(path).header(path)


def stated(path: Path) -> Stated:
    """What a picture is; checked to be complete.

    Raises:
        Unsound: ``empty, unreadable, truncated, corrupt``.
    """
    _check_picture(path)
    problems: list[Problem] = []
    stack = _stack_of(path)
    if stack is not None:
        affine, more = sized_affine(stack.sizes_mm)
        kind = "image2d" if stack.sizes_mm is None else "tiff"
        return Stated(
            stack.shape, affine, stack.dtype, kind, stack.channels, stack.frames, more
        )
    alpha = _grey_alpha_size(path)
    if alpha is None:
        with _by_content(path) as named:
            told = decoder.information(named)
        x, y, z = (*told["size"], 1, 1)[:3]
        dtype, channels = told["dtype"], told["channels"]
    else:
        x, y, deep = alpha
        z, dtype, channels = 1, f"uint{8 * deep}", 2
    if _is_misnamed(path):
        text = "its content is of another format than its name says; read by content."
        problems.append(Problem("misnamed", text, False))
    if (turn := _turn_of(path)) > 1:
        text = "turned upright, as its EXIF tag says."
        problems.append(Problem("turned", text, False))
        x, y = (y, x) if turn > 4 else (x, y)
    # dots per inch of a screen are no size in a body
    affine, more = sized_affine(None)
    return Stated((z, y, x), affine, dtype, "image2d", channels, 1, (*problems, *more))


def values(header: ScanHeader) -> tuple[NDArray[Any], list[Problem]]:
    """Grey values of a picture, (D, H, W) or (H, W), and remarks made on the way.

    Raises:
        Unsound: ``colour``, or as the decoder.
    """
    path = header.path
    stack = _stack_of(path)
    if stack is not None and stack.channels == stack.frames == 1:
        return _stack_values(path), []
    array = _read_grey_alpha(path)
    if array is None:
        with _by_content(path) as named:
            array = decoder.pixels(named)
    remarks = []
    if header.channels > 1:
        array, remark = _grey_of_colour(array, path)
        remarks.append(remark)
    turn = _turn_of(path)
    if turn > 1:
        array = _upright(array.reshape(array.shape[-2:]), turn)
    return array, remarks


def _upright(array: NDArray[Any], turn: int) -> NDArray[Any]:
    """(H, W) as a viewer shows it; ``turn`` is the number of the EXIF tag."""
    ways = {
        2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.T, 6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].T, 8: lambda a: np.rot90(a, 1),
    }  # fmt: skip
    return np.ascontiguousarray(ways[turn](array))


def _turn_of(path: Path) -> int:
    """How a JPEG is to be turned by its EXIF tag, 1: not at all."""
    if _start_of(path) != b"\xff\xd8":
        return 1
    from PIL import Image

    try:
        with Image.open(path) as image:
            turn = int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - a damaged tag says nothing
        return 1
    return turn if 1 <= turn <= 8 else 1


def _start_of(path: Path) -> bytes:
    """The mark a file begins with; empty for an unknown one."""
    with path.open("rb") as file:
        start = file.read(8)
    return next((mark for mark in _STARTS if start.startswith(mark)), b"")


def _is_misnamed(path: Path) -> bool:
    known = _STARTS.get(_start_of(path), ())
    return bool(known) and path.suffix.lower() not in known


@contextlib.contextmanager
def _by_content(path: Path) -> Iterator[Path]:
    """The file under a name that fits its content: SimpleITK chooses by name."""
    if not _is_misnamed(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / f"picture{_STARTS[_start_of(path)][0]}"
        other.write_bytes(path.read_bytes())
        yield other


# TIFF of OME and ImageJ: axes and sizes.


class _Stack:
    """Shape, number type and voxel size of a TIFF that states its axes."""

    def __init__(
        self, sizes: dict[str, int], dtype: str, sizes_mm: Triple | None
    ) -> None:
        self.shape: Index = (sizes.get("Z", 1), sizes.get("Y", 1), sizes.get("X", 1))
        self.channels = sizes.get("C", 1) * sizes.get("S", 1)
        self.frames = sizes.get("T", 1)
        self.dtype, self.sizes_mm = dtype, sizes_mm


def _stack_of(path: Path) -> _Stack | None:
    """What OME or ImageJ wrote into a TIFF; None for every other picture."""
    if _start_of(path) not in _TIFF:
        return None
    import tifffile

    with _silent(), contextlib.suppress(Exception), tifffile.TiffFile(path) as file:
        if not (file.is_ome or file.is_imagej):
            return None
        series = file.series[0]
        sizes = dict(zip(series.axes, series.shape, strict=True))
        if set(sizes) - set("TZCYXS") or not {"Y", "X"} <= set(sizes):
            return None
        mm = _ome_mm(file) if file.is_ome else _imagej_mm(file)
        return _Stack(sizes, np.dtype(series.dtype).name, mm)
    return None  # what tifffile cannot read is left to SimpleITK


def _stack_values(path: Path) -> NDArray[Any]:
    """(D, H, W) values of such a TIFF."""
    import tifffile

    try:
        with _silent(), tifffile.TiffFile(path) as file:
            series = file.series[0]
            array = series.asarray()
            order = [a for a in series.axes if a not in "ZYX"]
            order += [a for a in "ZYX" if a in series.axes]
            array = array.transpose([series.axes.index(a) for a in order])
    except Exception as error:  # noqa: BLE001 - codecs raise what they like
        try:
            return decoder.pixels(path)
        except Unsound:
            text = f"its pixels do not decode ({type(error).__name__}: {error})."
            raise Unsound("corrupt", text, path) from None
    sizes = [1] * 3
    for i, axis in enumerate("ZYX"):
        sizes[i] = array.shape[order.index(axis)] if axis in order else 1
    return np.ascontiguousarray(array.reshape(sizes))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Tifffile tells the terminal what it finds odd."""
    log = logging.getLogger("tifffile")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _ome_mm(file: Any) -> Triple | None:
    """Voxel size (z, y, x) of the first image of OME metadata; None: not stated."""
    from xml.etree import ElementTree

    root = ElementTree.fromstring(file.ome_metadata)
    pixels = next((e for e in root.iter() if e.tag.endswith("}Pixels")), None)
    if pixels is None:
        return None
    found: list[float | None] = []
    for axis in "ZYX":
        said = pixels.get(f"PhysicalSize{axis}")
        unit = mm_of(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        found.append(None if said is None or unit is None else float(said) * unit)
    return _triple(*found)


def _imagej_mm(file: Any) -> Triple | None:
    """Voxel size (z, y, x) of ImageJ; None where its unit is none of length."""
    told = file.imagej_metadata or {}
    unit = mm_of(str(told.get("unit", "")).replace("\\u00B5", "µ"))
    page = file.pages[0]
    tags = [page.tags.get(name) for name in ("YResolution", "XResolution")]
    if unit is None or None in tags:
        return None
    each = [
        tag.value[1] / tag.value[0] * unit if tag.value[0] else None for tag in tags
    ]
    z = told.get("spacing")
    return _triple(None if z is None else abs(float(z)) * unit, *each)


def _triple(z: float | None, y: float | None, x: float | None) -> Triple | None:
    """All three, where y and x are known; slices as far apart as pixels if not told."""
    if y is None or x is None or not (0 < y < 1e6 and 0 < x < 1e6):
        return None
    return (z if z is not None and 0 < z < 1e6 else x), y, x


def _check_picture(path: Path) -> None:
    """Raise where the picture is cut off, damaged or something else.

    Raises:
        Unsound: Codes ``empty, unreadable, truncated, corrupt``.
    """
    data = path.read_bytes()
    if not data:
        raise Unsound("empty", "the file has 0 bytes.", path)
    if data.startswith(_PNG):
        _check_png(data, path)
    elif data.startswith(b"\xff\xd8"):
        _check_jpeg(data, path)
    elif data[:4] in (b"II*\0", b"MM\0*"):
        _check_tiff(data, path)
    elif data.startswith(b"BM"):
        if len(data) < 14 or struct.unpack_from("<I", data, 2)[0] > len(data):
            raise Unsound("truncated", "the BMP ends before its data do.", path)
    elif data[:4] not in (b"II+\0", b"MM\0+"):
        kind = path.suffix.lower().lstrip(".").upper()
        raise Unsound("unreadable", f"its first bytes are not those of a {kind}.", path)


def _check_png(data: bytes, path: Path) -> None:
    at = 8
    while at + 12 <= len(data):
        length = struct.unpack_from(">I", data, at)[0]
        kind = data[at + 4 : at + 8]
        stop = at + 8 + length
        if stop + 4 > len(data):
            break
        crc = struct.unpack_from(">I", data, stop)[0]
        if zlib.crc32(data[at + 4 : stop]) != crc:
            text = f"checksum of the PNG part {kind.decode('latin-1')} is wrong."
            raise Unsound("corrupt", text, path)
        if kind == b"IEND":
            return
        at = stop + 4
    raise Unsound("truncated", "the PNG ends before its end mark.", path)


def _check_jpeg(data: bytes, path: Path) -> None:
    # Thumbnails have end marks too, so only one after the last scan counts; padding
    # after it is common and harmless.
    scan, end = data.rfind(b"\xff\xda"), data.rfind(b"\xff\xd9")
    if scan < 0 or end < scan:
        raise Unsound("truncated", "the JPEG ends before its end mark.", path)


def _check_tiff(data: bytes, path: Path) -> None:
    order = "<" if data.startswith(b"II") else ">"
    if len(data) < 8:
        raise Unsound("truncated", "the TIFF ends before its directory.", path)
    at, seen = struct.unpack_from(order + "I", data, 4)[0], set()
    while at:
        if at in seen or at + 2 > len(data):
            raise Unsound("truncated", "the TIFF ends before its directory.", path)
        seen.add(at)
        count = struct.unpack_from(order + "H", data, at)[0]
        if at + 6 + count * 12 > len(data):
            raise Unsound("truncated", "the TIFF ends within its directory.", path)
        entries = {}
        for i in range(count):
            tag, kind, n = struct.unpack_from(order + "HHI", data, at + 2 + i * 12)
            entries[tag] = _tiff_values(data, order, kind, n, at + 10 + i * 12, path)
        for starts, sizes in ((273, 279), (324, 325)):
            pairs = list(
                zip(entries.get(starts, ()), entries.get(sizes, ()), strict=False)
            )
            if any(start + size > len(data) for start, size in pairs):
                raise Unsound("truncated", "the TIFF ends before its pixels do.", path)
            if (entries.get(259) or (1,))[0] in _DEFLATE:
                _check_deflate(data, pairs, path)
        at = struct.unpack_from(order + "I", data, at + 2 + count * 12)[0]


def _check_deflate(data: bytes, pairs: list[tuple[int, int]], path: Path) -> None:
    """Verify the checksum of each part, which libtiff does not look at."""
    if sum(size for _, size in pairs) > 2 * len(data):
        raise Unsound("corrupt", "the parts of the TIFF are larger than it.", path)
    for start, size in pairs:
        engine, part = zlib.decompressobj(), data[start : start + size]
        try:
            while part and not engine.eof:
                engine.decompress(part, 1 << 24)
                part = engine.unconsumed_tail
        except zlib.error as error:
            text = f"the compressed pixels are damaged ({error})."
            raise Unsound("corrupt", text, path) from None
        if not engine.eof:
            raise Unsound("truncated", "the TIFF ends before its pixels do.", path)


def _tiff_values(
    data: bytes, order: str, kind: int, count: int, at: int, path: Path
) -> tuple[int, ...]:
    width = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
    size = width.get(kind, 1) * count
    start = at if size <= 4 else struct.unpack_from(order + "I", data, at)[0]
    if start + size > len(data):
        raise Unsound("truncated", "the TIFF ends within its directory.", path)
    letter = {3: "H", 4: "I"}.get(kind)
    return struct.unpack_from(f"{order}{count}{letter}", data, start) if letter else ()


def _grey_alpha_size(path: Path) -> tuple[int, int, int] | None:
    """Width, height and bytes per number of a PNG of grey and alpha; None for others.

    SimpleITK refuses these.
    """
    with path.open("rb") as file:
        start = file.read(26)
    if start[:8] != _PNG or start[12:16] != b"IHDR" or len(start) < 26:
        return None
    width, height, bits, kind = struct.unpack_from(">IIBB", start, 16)
    return (width, height, bits // 8) if kind == 4 and bits in (8, 16) else None


def _read_grey_alpha(path: Path) -> NDArray[Any] | None:
    """(H, W, 2) grey and alpha of such a PNG; None for other pictures.

    Two bytes of grey and alpha are packed exactly as one grey number of two bytes, and
    two numbers of two bytes as four colours of one: so it is decoded with that header.
    """
    size = _grey_alpha_size(path)
    if size is None:
        return None
    width, height, deep = size
    kind = (16, 0) if deep == 1 else (8, 6)
    data = path.read_bytes()
    head = struct.pack(">II", width, height) + bytes(kind) + data[26:29]
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "grey.png"
        parts = [p for p in _png_parts(data) if p[0] in (b"IDAT", b"IEND")]
        packed = (_png_part(k, part) for k, part in [(b"IHDR", head), *parts])
        other.write_bytes(_PNG + b"".join(packed))
        array = decoder.pixels(other)
    if deep == 1:
        array = array.reshape(height, width)
        return np.stack([array >> 8, array & 255], -1).astype(np.uint8)
    wide = array.reshape(height, width, 2, 2).astype(np.uint16)
    joined: NDArray[Any] = wide[..., 0] << 8 | wide[..., 1]
    return joined


def _png_parts(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and content of each part of a PNG."""
    at = 8
    while at + 12 <= len(data):
        length = struct.unpack_from(">I", data, at)[0]
        yield data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        at += length + 12


def _png_part(kind: bytes, content: bytes) -> bytes:
    crc = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def _grey_of_colour(array: NDArray[Any], path: Path) -> tuple[NDArray[Any], Problem]:
    """Equal colour channels as one; an opaque alpha channel is dropped.

    Args:
        array: (..., 2 to 4), grey + alpha, colour or colour + alpha.
        path: Names the picture in errors.

    Raises:
        Unsound: ``colour``.
    """
    colours = array[..., :3] if array.shape[-1] > 2 else array[..., :1]
    alpha = array[..., 3:] if array.shape[-1] > 2 else array[..., 1:]
    if alpha.size and (alpha != alpha.flat[0]).any():
        raise Unsound("colour", "partly transparent, not one number per pixel.", path)
    if (colours != colours[..., :1]).any():
        raise Unsound("colour", "true colour, not one number per pixel.", path)
    text = "colour file with equal channels, read as grey."
    if array.shape[-1] == 2:
        text = "grey with an opaque alpha channel, read as grey."
    return colours[..., 0], Problem("grey_as_colour", text, False)
