"""Bytes of a file, gzipped or not, with every checksum and length verified.

SimpleITK and nifti_clib return half a volume from half a ``.nii.gz`` without a word;
here the stream must end properly, with its CRC and its length, or it is an error.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from homolog.data.problems import Unsound

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
