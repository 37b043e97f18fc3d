"""One int16 array in one chunked, compressed, memory-mapped file.

Nothing is handed to blosc2 that its bytes do not show to be a plain array
(``array_frame``), and each chunk is compared with its checksum once per process, before
it is first unpacked.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import threading
from collections import OrderedDict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.data.array_frame import Damage, Frame, read_frame
from homolog.data.atomic import flush
from homolog.errors import JobError, UnusableInput

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
# Before, opening a file could run what it says (expressions, functions, pickles).
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
    """Raise UnusableInput for a blosc2 that may run what a file says."""
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

    Without checksums only what cannot be unpacked is found.
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
    """Blosc2 does not say why; nearly always the disk is full."""
    if shutil.disk_usage(path.parent).free < size:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    return JobError(f"{path} could not be written and read back; check the disk.")
