"""The voxels of NRRD and MetaImage files, with every length and checksum verified.

Read here and not by SimpleITK because that passes a gzip stream whose checksum is wrong
and takes whatever file a header names; text_headers said beforehand what must come.
"""

from __future__ import annotations

import bz2
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from homolog.data.free_memory import check_room
from homolog.data.problems import Unsound
from homolog.data.text_headers import VoxelPlan

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
