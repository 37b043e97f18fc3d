"""PNG, JPEG, TIFF and BMP: is the file whole?

libjpeg and BMP readers fill what is missing and libtiff complains on the terminal, so
the end of a file is looked for before it is decoded.
"""

from __future__ import annotations

import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.scans.problems import Problem, Unsound

_PNG = b"\x89PNG\r\n\x1a\n"
_DEFLATE = (8, 32946)  # compressions of TIFF


def check_picture(path: Path) -> None:
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


def grey_alpha_size(path: Path) -> tuple[int, int, int] | None:
    """Width, height and bytes per number of a PNG of grey and alpha; None for others.

    SimpleITK refuses these.
    """
    with path.open("rb") as file:
        start = file.read(26)
    if start[:8] != _PNG or start[12:16] != b"IHDR" or len(start) < 26:
        return None
    width, height, bits, kind = struct.unpack_from(">IIBB", start, 16)
    return (width, height, bits // 8) if kind == 4 and bits in (8, 16) else None


def read_grey_alpha(
    path: Path, decode: Callable[[Path], NDArray[Any]]
) -> NDArray[Any] | None:
    """(H, W, 2) grey and alpha of such a PNG; None for other pictures.

    Two bytes of grey and alpha are packed exactly as one grey number of two bytes, and
    two numbers of two bytes as four colours of one: so it is decoded with that header.

    Args:
        path: A picture that check_picture let pass.
        decode: Decodes a picture file.
    """
    size = grey_alpha_size(path)
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
        array = np.asarray(decode(other))
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


def grey_of_colour(array: NDArray[Any], path: Path) -> tuple[NDArray[Any], Problem]:
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
