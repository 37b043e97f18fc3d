"""One stored array: int16 in one chunked, compressed, memory-mapped file of blosc2.

Blosc2 keeps more than arrays in a file of this kind: expressions and functions that it
computes, hence runs, when such a file is opened; references to other files; codecs that
are loaded from elsewhere. So the bytes are checked before the library sees them, and
only what ``write_array`` writes passes: one int16 array in one contiguous frame, no
metadata but its shape, packed by zstd. Each chunk is compared with its checksum once
per process, before it is first unpacked.

Layout (integers of the frame big-endian, of chunks little-endian): header, chunks, a
packed table of where each chunk starts, trailer.
"""

from __future__ import annotations

import errno
import itertools
import math
import operator
import os
import shutil
import stat
import struct
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from homolog.errors import JobError, UnusableInput
from homolog.writing import flush

_MAGIC = b"\x9e\xa8b2frame\x00\xd2"
_HEADER = 87  # bytes before the list of metalayers
_MOST_HEADER = 4096
_CHUNK_HEADER = 32
# What is kept: nothing of variable length, which is where programs would lie.
_TRAILER = bytes.fromhex("940193cd0006de0000dc0000ce00000023d800") + bytes(16)
_FILTERS = {0, 1, 35}  # none, shuffle, byte delta
_ZSTD, _ZSTD_FORMAT, _ITEM = 5, 4, 2
_COPIED = 2  # flag of a chunk whose values are not packed
_PLAIN, _ZEROS, _VALUE = 0, 1, 3  # kinds of chunk; others hold no data of ours
_ZERO_OFFSET = 0x81 << 56
# Decompressed whole, so bounded; those of write_array have 2 MiB.
_MOST_CHUNK_BYTES = 1 << 25
_MOST_CHUNKS = 1 << 22
_MOST_VOXELS = 1 << 36


class Damage(JobError):
    """A stored file that is not what was written.

    Attributes:
        where: Which file, and which part of it, for people.
        path: The file.
    """

    def __init__(self, path: Path, where: str) -> None:
        self.path, self.where = path, where
        store = path.parents[2] if path.parent.parent.name == "cases" else path.parent
        super().__init__(
            f"{path} is damaged: {where}; mend it with: homolog doctor {store} "
            "--repair, or run prepare again."
        )


@dataclass(frozen=True)
class Frame:
    """Where the parts of a stored array lie in its file.

    Attributes:
        shape: Size of each axis.
        chunks: Size of a chunk along each axis.
        header: Bytes before the first chunk.
        places: First byte and length of each chunk, in C order; (0, 0) for one of
            zeros that takes no bytes.
        tail: First byte after the chunks.
        size: Bytes of the file.
    """

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    header: int
    places: tuple[tuple[int, int], ...]
    tail: int
    size: int

    @property
    def grid(self) -> tuple[int, ...]:
        """Chunks along each axis."""
        return tuple(-(-n // c) for n, c in zip(self.shape, self.chunks, strict=True))

    def touched(self, key: object) -> Iterator[int]:
        """Numbers of the chunks that an index needs; all where it is an unusual one."""
        parts = list(key) if isinstance(key, tuple) else [key]
        at = next((i for i, part in enumerate(parts) if part is Ellipsis), None)
        if at is not None:
            parts[at : at + 1] = [slice(None)] * (len(self.shape) - len(parts) + 1)
        if len(parts) > len(self.shape) or not all(map(_is_plain, parts)):
            parts = []
        parts += [slice(None)] * (len(self.shape) - len(parts))
        spans = [
            _span(part, n, c)
            for part, n, c in zip(parts, self.shape, self.chunks, strict=True)
        ]
        for place in itertools.product(*spans):
            number = 0
            for index, count in zip(place, self.grid, strict=True):
                number = number * count + index
            yield number

    def name(self, number: int) -> str:
        """A chunk in words: its number and the voxels it holds."""
        place, rest = [], number
        for count in reversed(self.grid):
            place.append(rest % count)
            rest //= count
        spans = [
            f"{axis} {i * c}..{min((i + 1) * c, n) - 1}"
            for axis, i, c, n in zip(
                "xyz", place, self.chunks[::-1], self.shape[::-1], strict=False
            )
        ]
        held = ", ".join(reversed(spans))
        return f"chunk {number + 1} of {len(self.places)} (voxels {held})"

    def checksums(self, path: Path) -> str:
        """CRC-32 of all but the chunks, then of each chunk, as hexadecimal digits."""
        with path.open("rb") as file:
            sums = [self._own_sum(file)]
            sums += [_sum(file, start, length) for start, length in self.places]
        return "".join(f"{value:08x}" for value in sums)

    def check_own(self, path: Path, checksums: str) -> None:
        """Raise Damage where the bytes beside the chunks are not those written."""
        if len(checksums) != 8 * (len(self.places) + 1):
            raise Damage(path, "it has another number of chunks than its card says")
        with path.open("rb") as file:
            if self._own_sum(file) != int(checksums[:8], 16):
                raise Damage(path, "its header or index does not match its checksum")

    def check_chunk(self, file: BinaryIO, number: int, checksums: str) -> bool:
        """Whether the bytes of a chunk are those that were written."""
        start, length = self.places[number]
        wanted = int(checksums[8 * number + 8 : 8 * number + 16], 16)
        return _sum(file, start, length) == wanted

    def _own_sum(self, file: BinaryIO) -> int:
        first = _sum(file, 0, self.header)
        return _sum(file, self.tail, self.size - self.tail, first)


def _is_plain(part: object) -> bool:
    """Whether part of an index is a slice or a whole number."""
    whole = hasattr(part, "__index__") and not isinstance(part, bool)
    return isinstance(part, slice) or (whole and not getattr(part, "ndim", 0))


def _span(part: Any, size: int, chunk: int) -> range:
    """Chunks along one axis."""
    if isinstance(part, slice):
        wanted = range(*part.indices(size))
        if not wanted:
            return range(0)
        low, high = min(wanted[0], wanted[-1]), max(wanted[0], wanted[-1])
        return range(low // chunk, high // chunk + 1)
    index = operator.index(part)
    index += size if index < 0 else 0
    return range(index // chunk, index // chunk + 1) if 0 <= index < size else range(0)


def _sum(file: BinaryIO, start: int, length: int, before: int = 0) -> int:
    file.seek(start)
    return zlib.crc32(file.read(length), before)


def read_frame(path: Path, shape: tuple[int, ...]) -> Frame:
    """Judge a stored array by its bytes; nothing of it is decompressed but an index.

    Args:
        path: A regular file of a store.
        shape: Of the array, as on the card.

    Raises:
        Damage: It is not a plain int16 array of that shape as ``write_array`` writes
            it, whether broken or made to do something else.
    """
    try:
        with path.open("rb") as file:
            return _Judge(path, file, shape).frame()
    except (struct.error, IndexError, ValueError, ArithmeticError) as error:
        raise Damage(path, f"it is no stored array ({error})") from error


class _Judge:
    """Reads a frame from front to back and refuses what is not plain."""

    def __init__(self, path: Path, file: BinaryIO, shape: tuple[int, ...]) -> None:
        self.path, self.file, self.shape = path, file, shape
        self.size = file.seek(0, 2)

    def frame(self) -> Frame:
        """The whole of it."""
        head = self.read(0, min(_MOST_HEADER, self.size))
        self.need(head.startswith(_MAGIC), "it is no stored array")
        header, length = struct.unpack(">i", head[11:15])[0], _u64(head, 16)
        self.need(length == self.size, f"it should have {length} bytes")
        self.need(_HEADER < header <= len(head), "its header has an impossible size")
        self.need(head[26] == 0, "it is not one contiguous file")
        self.need(head[68] == 0xC2, "it carries more than an array; it was not opened")
        own = head[71:77]
        self.need(
            set(own) <= _FILTERS and head[77] == _ZSTD and head[27] & 15 == _ZSTD,
            "it is packed in a way this program does not write",
        )
        nbytes, cbytes = _u64(head, 30), _u64(head, 39)
        item, _, chunk_bytes = (_u32(head, at) for at in (48, 53, 58))
        self.need(item == _ITEM, "its numbers are not int16")
        chunks, padded = self.layout(head[_HEADER:header])
        self.need(
            chunk_bytes == _ITEM * padded <= _MOST_CHUNK_BYTES,
            "its chunks have an impossible size",
        )
        grid = [-(-n // c) for n, c in zip(self.shape, chunks, strict=True)]
        count = math.prod(grid)
        self.need(
            0 < count <= _MOST_CHUNKS and nbytes == count * chunk_bytes,
            "its size does not follow from its shape",
        )
        tail = header + cbytes
        self.need(
            tail + _CHUNK_HEADER + len(_TRAILER) <= self.size, "its parts do not fit"
        )
        places = tuple(self.places(header, tail, count, chunk_bytes))
        held = sum(length for _, length in places)
        self.need(held == cbytes, "its chunks do not fill it")
        return Frame(self.shape, chunks, header, places, tail, self.size)

    def layout(self, meta: bytes) -> tuple[tuple[int, ...], int]:
        """Chunk shape and voxels of a padded chunk, from the only metalayer."""
        # 93 cd SIZE de COUNT, name (a4 b2nd) and place (d2) of each, dc COUNT c6 SIZE
        self.need(
            meta[:1] == b"\x93" and meta[4:13] == b"\xde\x00\x01\xa4b2nd\xd2"
            and _u32(meta, 13) == _HEADER + 20 and meta[17:21] == b"\xdc\x00\x01\xc6",
            "it carries more than an array; it was not opened",
        )  # fmt: skip
        ndim = len(self.shape)
        content = meta[25:]
        self.need(_u32(meta, 21) == len(content), "its header is not whole")
        self.need(content[0] in (0x96, 0x97) and content[2] == ndim, "other axes")
        sizes, at = [], 3
        for mark, form in ((0xD3, ">q"), (0xD2, ">i"), (0xD2, ">i")):
            self.need(content[at] == 0x90 + ndim, "other axes")
            width, at, row = struct.calcsize(form), at + 1, []
            for _ in range(ndim):
                self.need(content[at] == mark, "its shape is not whole")
                row.append(struct.unpack_from(form, content, at + 1)[0])
                at += 1 + width
            sizes.append(tuple(row))
        shape, chunks, blocks = sizes
        self.need(
            shape == self.shape, f"its shape is {shape}, its card says {self.shape}"
        )
        self.need(
            all(0 < b <= c <= n for b, c, n in zip(blocks, chunks, shape, strict=True))
            and math.prod(shape) <= _MOST_VOXELS,
            "its chunks have an impossible size",
        )
        kind = content[at:]
        named = kind[6:] if kind[1:2] == b"\xdb" else b""
        self.need(not kind or named == b"<i2", "its numbers are not int16")
        padded = math.prod(-(-c // b) * b for b, c in zip(blocks, chunks, strict=True))
        return chunks, padded

    def places(
        self, header: int, tail: int, count: int, chunk_bytes: int
    ) -> Iterator[tuple[int, int]]:
        """First byte and length of each chunk; each one's own header is judged."""
        end = self.size - len(_TRAILER)
        self.need(
            self.read(end, len(_TRAILER)) == _TRAILER,
            "it carries more than an array; it was not opened",
        )
        for offset in self.offsets(tail, end, count):
            if offset == _ZERO_OFFSET:
                yield 0, 0
                continue
            start = header + offset
            self.need(start + _CHUNK_HEADER <= tail, "a chunk lies outside the file")
            length = self.chunk(start, chunk_bytes, tail)
            yield start, length

    def offsets(self, tail: int, end: int, count: int) -> Iterator[int]:
        """The table of chunks; unpacked here, for it is small and bounded."""
        import blosc2

        packed = self.read(tail, end - tail)
        own = packed[:_CHUNK_HEADER]
        nbytes, _, cbytes = struct.unpack("<iii", own[4:16])
        special = own[31] >> 4 & 7
        self.need(
            nbytes == 8 * count and cbytes == len(packed) and own[2] >> 5 < _ZSTD
            and set(own[16:22]) <= _FILTERS and special in (_PLAIN, _ZEROS, _VALUE),
            "its index of chunks is broken",
        )  # fmt: skip
        try:
            table = bytes(blosc2.decompress2(packed))
        except (RuntimeError, ValueError, TypeError, ArithmeticError) as error:
            raise Damage(self.path, "its index of chunks is broken") from error
        self.need(len(table) == nbytes, "its index of chunks is broken")
        return iter(struct.unpack(f"<{count}Q", table))

    def chunk(self, start: int, nbytes: int, tail: int) -> int:
        """Length of a chunk that is packed as ours are."""
        own = self.read(start, _CHUNK_HEADER)
        said, block, length = (_i32(own, at) for at in (4, 8, 12))
        special = own[31] >> 4 & 7
        self.need(
            own[3] == _ITEM and said == nbytes and 0 < block <= nbytes
            and _CHUNK_HEADER <= length <= tail - start,
            "a chunk has an impossible size",
        )  # fmt: skip
        packed = own[2] >> 5 == _ZSTD_FORMAT and own[22] in (0, _ZSTD)
        packed |= bool(own[2] & _COPIED) and length == _CHUNK_HEADER + nbytes
        empty = special in (_ZEROS, _VALUE) and length <= _CHUNK_HEADER + 8
        self.need(
            set(own[16:22]) <= _FILTERS and (empty or (packed and special == _PLAIN)),
            "a chunk is packed in a way this program does not write",
        )
        return length

    def read(self, start: int, length: int) -> bytes:
        """Bytes of the file."""
        self.file.seek(start)
        return self.file.read(length)

    def need(self, is_so: bool, words: str) -> None:
        """Raise Damage unless it is so."""
        if not is_so:
            raise Damage(self.path, words)


def _i32(data: bytes, at: int) -> int:
    """Of a chunk: little-endian."""
    value: int = struct.unpack_from("<i", data, at)[0]
    return value


def _u32(data: bytes, at: int) -> int:
    value: int = struct.unpack_from(">I", data, at)[0]
    return value


def _u64(data: bytes, at: int) -> int:
    value: int = struct.unpack_from(">Q", data, at)[0]
    return value


# Writing and reading.
# Blocks are what a crop decompresses, chunks what a file lists: a 96^3 crop touches
# about twice its own voxels. On a 512 x 512 CT, zstd at level 1 after byte deltas packs
# better (0.33 of raw) than level 5 without them (0.34), and ten times faster.
_BLOCK = (16, 32, 32)
_CHUNK = (64, 128, 128)
_SLICE_BLOCK = (1, 128, 128)
_SLICE_CHUNK = (1, 1024, 1024)
_LEVEL = 1
# Open files per thread.
_HANDLES = 96
# Files whose chunks are remembered as compared with their checksums, per process.
_SEEN = 8192
# What blosc2 raises of a file that does not unpack.
_UNPACKING = (RuntimeError, ValueError, TypeError, ArithmeticError, MemoryError)
# Before, opening a file could run what it holds (expressions, functions, pickles).
_SAFE_BLOSC2 = (4, 14)


class StoredArray:
    """An array on disk which is sliced like numpy's; only touched chunks are read.

    Safe to share between threads: each keeps its own few open files.

    Attributes:
        shape: Size of each axis.
        dtype: int16.
    """

    def __init__(
        self, path: Path, shape: tuple[int, ...], size: int, checksums: str = ""
    ) -> None:
        self.path = path
        self.shape = shape
        self.dtype = np.dtype(np.int16)
        self._size = size
        self._checksums = checksums

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def damage(self) -> str:
        """As ``damage_of``."""
        return damage_of(self.path, self.shape, self._size, self._checksums)

    def __getitem__(self, key: Any) -> NDArray[np.int16]:
        """Part of the array.

        Raises:
            JobError: The file is missing, or not what was written; the part that is
                damaged is named.
        """
        handle, seen = _handle(self.path, self._size, self.shape, self._checksums)
        if seen.left:
            seen.compare(key)
        try:
            values: NDArray[np.int16] = handle[key]
        except (RuntimeError, ArithmeticError) as error:
            raise Damage(self.path, "it does not unpack") from error
        return values

    def __array__(
        self, dtype: Any = None, copy: bool | None = None
    ) -> NDArray[np.int16]:
        if copy is False:
            raise ValueError("a stored array cannot become numpy without a copy.")
        return np.asarray(self[...], dtype=dtype)

    def __repr__(self) -> str:
        return f"StoredArray({self.shape}, int16, {self.path.name})"


class _Seen:
    """Which chunks of a file were compared with their checksums; shared by threads.

    Attributes:
        frame: Where they lie.
        left: How many were not compared yet.
    """

    def __init__(self, path: Path, frame: Frame, checksums: str) -> None:
        self.path, self.frame, self._checksums = path, frame, checksums
        count = len(frame.places) if checksums else 0
        self._done = bytearray(count)
        self.left = count

    def compare(self, key: Any) -> None:
        """Raise Damage where a chunk that an index needs is not what was written."""
        new = [n for n in self.frame.touched(key) if not self._done[n]]
        if not new:
            return
        with self.path.open("rb", buffering=0) as file:
            for number in new:
                if not self.frame.check_chunk(file, number, self._checksums):
                    name = self.frame.name(number)
                    raise Damage(self.path, f"{name} does not match its checksum")
                self._done[number] = 1
        self.left = len(self._done) - sum(self._done)


class _Local(threading.local):
    """The open files of one thread, least recently used first."""

    def __init__(self) -> None:
        self.open: OrderedDict[Path, Any] = OrderedDict()


_LOCAL = _Local()
_known: OrderedDict[Path, tuple[Any, _Seen]] = OrderedDict()
_knowing = threading.Lock()


def _handle(
    path: Path, size: int, shape: tuple[int, ...], checksums: str
) -> tuple[Any, _Seen]:
    """This thread's open file, and what was compared of it; anew when replaced."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise JobError(f"{path} is missing; run prepare again.") from None
    found = _LOCAL.open.get(path)
    mark = (status.st_mtime_ns, status.st_size, shape, checksums)
    if found is not None and found[0] == mark:
        _LOCAL.open.move_to_end(path)
        return found[1], found[2]
    # A shortened file would crash the process when its missing pages are read.
    if status.st_size != size or not stat.S_ISREG(status.st_mode):
        raise Damage(path, f"it must be {size} bytes, is {status.st_size}")
    seen = _seen(path, mark)
    array = _opened(path, shape)
    _LOCAL.open[path] = (mark, array, seen)
    while len(_LOCAL.open) > _HANDLES:
        _LOCAL.open.popitem(last=False)
    return array, seen


def _opened(path: Path, shape: tuple[int, ...]) -> Any:
    """The file by blosc2; its frame was judged before."""
    import blosc2

    check_blosc2()
    try:
        array = blosc2.open(
            str(path), mode="r", mmap_mode="r", dparams=blosc2.DParams(nthreads=1)
        )
    except _UNPACKING as error:
        raise Damage(path, "it cannot be opened") from error
    if type(array) is not blosc2.NDArray or array.shape != shape:
        raise Damage(path, "it is no plain array")
    return array


def _seen(path: Path, mark: tuple[Any, ...]) -> _Seen:
    """What this process compared of a file; its frame is judged the first time."""
    with _knowing:
        known = _known.get(path)
        if known is not None and known[0] == mark:
            _known.move_to_end(path)
            return known[1]
    shape, checksums = mark[2:]
    try:
        frame = read_frame(path, shape)
        if checksums:
            frame.check_own(path, checksums)
    except Damage as damage:
        if known is None or known[0][2:] != mark[2:]:
            raise
        raise JobError(
            f"{path} was prepared anew (or damaged) while it was in use; begin again, "
            "or resume the run."
        ) from damage
    seen = _Seen(path, frame, checksums)
    with _knowing:
        _known[path] = (mark, seen)
        while len(_known) > _SEEN:
            _known.popitem(last=False)
    return seen


@cache
def check_blosc2() -> None:
    """Raise UnusableInput for a blosc2 that may run what a file holds."""
    import blosc2

    found = tuple(int(part) for part in blosc2.__version__.split(".")[:2])
    if found < _SAFE_BLOSC2:
        needed = ".".join(map(str, _SAFE_BLOSC2))
        raise UnusableInput(
            f"reading a store safely needs blosc2 {needed} or newer, this is "
            f'{blosc2.__version__}: pip install -U "blosc2>={needed}"'
        )


def damage_of(path: Path, shape: tuple[int, ...], size: int, checksums: str) -> str:
    """What is wrong with a stored array, read whole; empty where nothing is.

    Without checksums only what cannot be unpacked is noticed.
    """
    try:
        if not path.is_file() or path.stat().st_size != size:
            return "it is missing or has another size"
        frame = read_frame(path, shape)
        if not checksums:
            return _unpacked(path, frame)
        frame.check_own(path, checksums)
        _Seen(path, frame, checksums).compare(...)
    except Damage as damage:
        return damage.where
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    return ""


def _unpacked(path: Path, frame: Frame) -> str:
    """Whether every chunk unpacks, in words where one does not."""
    array = _opened(path, frame.shape)
    for number in range(len(frame.places)):
        try:
            array.schunk.decompress_chunk(number)
        except _UNPACKING:
            return f"{frame.name(number)} does not unpack"
    return ""


def checksums_of(path: Path, shape: tuple[int, ...]) -> str:
    """CRC-32 of a sound array: of its header and index, then of each chunk."""
    return read_frame(path, shape).checksums(path)


def write_array(data: NDArray[np.int16], path: Path) -> None:
    """Write a (..., D, H, W) array in chunks, and make sure that it reads back.

    Its checksums come from ``checksums_of``.

    Raises:
        JobError: It does not.
    """
    import blosc2

    check_blosc2()
    is_slice = data.shape[-3] == 1
    lead = (1,) * (data.ndim - 3)
    chunk, block = (_SLICE_CHUNK, _SLICE_BLOCK) if is_slice else (_CHUNK, _BLOCK)
    chunks = (*lead, *(min(c, n) for c, n in zip(chunk, data.shape[-3:], strict=True)))
    blocks = (*lead, *(min(b, c) for b, c in zip(block, chunks[-3:], strict=True)))
    try:
        blosc2.asarray(
            np.ascontiguousarray(data),
            urlpath=str(path),
            mode="w",
            chunks=chunks,
            blocks=blocks,
            cparams=blosc2.CParams(
                codec=blosc2.Codec.ZSTD, clevel=_LEVEL, nthreads=1,
                filters=[blosc2.Filter.SHUFFLE, blosc2.Filter.BYTEDELTA],
                filters_meta=[0, data.dtype.itemsize],
            ),
        )  # fmt: skip
        with path.open("rb+") as file:
            flush(file)
        stored = blosc2.open(str(path), mode="r", mmap_mode="r")
        intact = all(
            np.array_equal(stored[..., z : z + 64, :, :], data[..., z : z + 64, :, :])
            for z in range(0, data.shape[-3], 64)
        )
    except (RuntimeError, ValueError) as error:
        raise _unwritten(path, data.nbytes) from error
    if not intact:
        raise _unwritten(path, data.nbytes)


def _unwritten(path: Path, size: int) -> OSError | JobError:
    """Blosc2 does not give a reason; nearly always the disk is full."""
    if shutil.disk_usage(path.parent).free < size:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    return JobError(f"{path} could not be written and read back; check the disk.")
