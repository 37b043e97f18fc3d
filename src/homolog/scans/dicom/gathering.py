"""Where DICOM files lie together: a folder, a disc's DICOMDIR, a zipped folder, a file.

Their headers are read once for as long as the files do not change, many at a time where
there are many, and the scans found among them are remembered.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
import threading
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.scans.dicom.header import read_dicom_file
from homolog.scans.dicom.kinds import DicomFile
from homolog.scans.dicom.stacks import Series, find_series
from homolog.scans.paths import (
    claims_dicom,
    is_slice,
    is_straight,
    may_be_dicom,
    series_path,
    split_series,
)
from homolog.scans.problems import Unsound, problem_of
from homolog.words import human_bytes

ReadSlice = Callable[[DicomFile], NDArray[Any]]
# So many files are remembered, in folders looked at last.
_REMEMBERED = 30_000
# A disc's index of more entries is not believed.
_ENTRIES_MOST = 200_000
# A packed file that grows by more, and is larger than that, is a trap.
_GROWTH_MOST, _SMALL_FILE = 300, 1 << 26
# So many files are read at once, where there are more than a few.
_AT_ONCE, _FEW = 8, 32


def is_index(path: Path) -> bool:
    """Whether a file is the index of a disc, by its name and mark."""
    return path.stem.upper() == "DICOMDIR" and is_slice(path)


@dataclass(frozen=True)
class _Found:
    """What lies in one place, as long as its files do not change."""

    signature: tuple[tuple[str, int, int], ...]
    series: list[Series]
    others: list[DicomFile]


_known: OrderedDict[Path, _Found] = OrderedDict()
_lock = threading.RLock()


def series_of(
    place: Path, read_slice: ReadSlice
) -> tuple[list[Series], list[DicomFile]]:
    """The series in one place, the best first; its other DICOM objects.

    Args:
        place: Folder (files directly in it), DICOMDIR, zip, or one DICOM file.
        read_slice: Decodes one slice; used where two may be copies.
    """
    paths = _paths(place)
    signature = tuple(_state(p) for p in paths)
    key = place.absolute()
    with _lock:
        known = _known.get(key)
        if known is not None and known.signature == signature:
            _known.move_to_end(key)
            return list(known.series), list(known.others)
    images, others = _sorted_out(paths)
    series = find_series(images, lambda a, b: _same(a, b, read_slice))
    with _lock:
        _known[key] = _Found(signature, series, others)
        while len(_known) > 1 and (
            sum(len(f.signature) for f in _known.values()) > _REMEMBERED
        ):
            _known.popitem(last=False)
    return list(series), list(others)


def forget() -> None:
    """Read headers anew from now on."""
    with _lock:
        _known.clear()


def _state(path: Path) -> tuple[str, int, int]:
    try:
        status = path.stat()
    except OSError:
        return str(path), -1, -1
    return str(path), status.st_size, status.st_mtime_ns


def _paths(place: Path) -> list[Path]:
    """The files of a place."""
    if place.is_dir():
        return sorted(p for p in place.iterdir() if not p.name.startswith("."))
    if is_index(place):
        return _indexed(place)
    if place.suffix.lower() == ".zip":
        folder = _unpacked(place)
        return sorted(folder.iterdir())
    return [place]


def _sorted_out(paths: Sequence[Path]) -> tuple[list[DicomFile], list[DicomFile]]:
    """Images (or damaged ones) and other DICOM objects among files.

    Several are read at once: where files lie on a share, waiting for each is most of
    the time.
    """
    if len(paths) < _FEW:
        found = [_one(path) for path in paths]
    else:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            found = list(pool.map(_one, paths))
    files = [file for file in found if file is not None]
    images = [file for file in files if not file.other_object]
    return images, [file for file in files if file.other_object]


def _one(path: Path) -> DicomFile | None:
    """A file's tags; None where it is no DICOM file."""
    try:
        if not path.is_file() or not path.stat().st_size:
            return None
        return read_dicom_file(path)
    except Unsound:
        return None
    except Exception as error:  # noqa: BLE001 - the other files are read
        return DicomFile(path, damage=problem_of(error)) if claims_dicom(path) else None


def open_series(path: Path, read_slice: ReadSlice) -> tuple[Series, list[Series]]:
    """The series a path stands for, and the others beside it.

    Args:
        path: One DICOM file, folder, zip or DICOMDIR (its best series), or a
            series_path.
        read_slice: Decodes one slice; used where two may be copies.

    Raises:
        Unsound: ``not_an_image``, ``missing``, ``empty`` or ``unreadable``.
    """
    folder, key = split_series(path)
    if folder.is_file() and not is_index(folder) and folder.suffix.lower() != ".zip":
        read_dicom_file(folder)  # raises where it is none
    found, others = series_of(folder, read_slice)
    if not found and others:
        text = f"holds {others[0].other_object}, not a scan."
        raise Unsound("not_an_image", text, path)
    if not found:
        raise Unsound(
            "unreadable", "no DICOM images lie directly in this folder.", path
        )
    chosen = next((s for s in found if not key or s.key == key), None)
    if chosen is None:
        known = ", ".join(s.key for s in found)
        raise Unsound("missing", f"no series {key} here; there are: {known}.", folder)
    others_ = [s for s in found if s is not chosen]
    return chosen.straightened() if is_straight(path) else chosen, others_


def scans_in(
    folder: Path, read_slice: ReadSlice, *, straighten: bool = False
) -> tuple[list[Path], list[DicomFile]]:
    """A path for each scan among a folder's DICOM files, and the other objects there.

    A scan of one file (an X-ray) goes by that file; the only scan of a folder by the
    folder; otherwise each by its series_path.

    Args:
        folder: As ``series_of``.
        read_slice: As ``series_of``.
        straighten: Scans that only lean, or are uneven, go by the path that resamples.
    """
    found, others = series_of(folder, read_slice)
    return sorted(_paths_of(folder, found, straighten)), others


def place_of_series(
    folder: Path, series: Series, found: Sequence[Series], straighten: bool
) -> Path:
    """The path that one of the series of a place goes by in ``scans_in``."""
    number = next(i for i, one in enumerate(found) if one.key == series.key)
    return _paths_of(folder, found, straighten)[number]


def _paths_of(folder: Path, found: Sequence[Series], straighten: bool) -> list[Path]:
    shared = Counter(path for one in found for path in one.paths)
    alone = len(found) == 1
    return [
        path_of(folder, one, alone=alone, straighten=straighten, shared=shared)
        for one in found
    ]


def path_of(
    folder: Path,
    series: Series,
    *,
    alone: bool,
    straighten: bool = False,
    shared: Mapping[Path, int] | None = None,
) -> Path:
    """The path one series of a place goes by; see ``scans_in``.

    Args:
        folder: The place.
        series: One of its series.
        alone: Whether it is the only one.
        straighten: As ``scans_in``.
        shared: File -> how many series have slices in it.
    """
    if straighten and series.mendable:
        return series_path(folder, series.key, straight=True)
    first = series.paths[0]
    single = len(series.paths) == 1 and not series.copies
    # what is wrong with it shows only beside the others
    beside = "~" in series.key and any(p.code == "localiser" for p in series.problems)
    single &= not beside and not series.part
    if single and folder.is_dir() and (shared is None or shared.get(first, 1) == 1):
        return first
    return folder if alone else series_path(folder, series.key)


def _same(a: DicomFile, b: DicomFile, read_slice: ReadSlice) -> bool:
    try:
        return bool(np.array_equal(read_slice(a), read_slice(b)))
    except Exception:  # noqa: BLE001 - not decoded, so not known to be a copy
        return False


# ---- discs ---------------------------------------------------------------------------


def _indexed(index: Path) -> list[Path]:
    """The files that a disc's index names, below its own folder alone."""
    from pydicom import dcmread

    try:
        records = dcmread(index, stop_before_pixels=True).DirectoryRecordSequence
    except Exception as error:
        text = "the index of the disc (DICOMDIR) cannot be read."
        raise Unsound("corrupt", text, index) from error
    root = index.parent.resolve()
    found: dict[Path, None] = {}
    names = {p.name.upper(): p for p in root.iterdir()}
    for record in list(records)[:_ENTRIES_MOST]:
        parts = record.get("ReferencedFileID") or ()
        parts = [parts] if isinstance(parts, str) else [str(p) for p in parts]
        if not parts or any(p in ("", ".", "..") or "/" in p for p in parts):
            continue
        start = names.get(parts[0].upper(), root / parts[0])
        path = _whatever_case(start, parts[1:])
        if path is not None and path.resolve().is_relative_to(root):
            found[path] = None
    if not found:
        raise Unsound("missing", "no file that this DICOMDIR names is there.", index)
    return list(found)


def _whatever_case(start: Path, parts: Sequence[str]) -> Path | None:
    """A file below, also where a copy of the disc changed the case of names."""
    path = start
    for part in parts:
        other = next(
            (path / p for p in (part, part.lower()) if (path / p).exists()), None
        )
        if other is None:
            return None
        path = other
    return path if path.is_file() else None


# ---- zips ----------------------------------------------------------------------------

_unpacked_zips: dict[tuple[str, int, int], Path] = {}


def _unpacked(packed: Path) -> Path:
    """A temporary folder with the DICOM files of a zip, gone when the process ends.

    Raises:
        Unsound: ``corrupt``, ``too_large`` or ``unreadable``.
    """
    state = _state(packed)
    with _lock:
        folder = _unpacked_zips.get(state)
        if folder is None or not folder.is_dir():
            folder = Path(tempfile.mkdtemp(prefix="homolog-dicom-"))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            try:
                _unpack(packed, folder)
            except Unsound:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            except (OSError, ValueError, RuntimeError, NotImplementedError,
                    zipfile.BadZipFile) as error:  # fmt: skip
                shutil.rmtree(folder, ignore_errors=True)
                said = " ".join(str(error).split())[:200]
                text = f"the zip cannot be unpacked ({said})."
                raise Unsound("corrupt", text, packed) from None
            _unpacked_zips[state] = folder
    return folder


def _unpack(packed: Path, folder: Path) -> None:
    """Its DICOM files, numbered: names inside a zip are nobody's to choose from."""
    with zipfile.ZipFile(packed) as source:
        infos = [i for i in source.infolist() if may_be_dicom(i)]
        need = sum(i.file_size for i in infos)
        free = shutil.disk_usage(folder).free
        if need > free // 2:
            text = f"unpacking it needs {human_bytes(need)}, {human_bytes(free)} are "
            raise Unsound("too_large", f"{text}free.", packed)
        for number, info in enumerate(infos):
            large = info.file_size > _SMALL_FILE
            if large and info.file_size > _GROWTH_MOST * max(info.compress_size, 1):
                text = (
                    f"{info.filename[:80]} in it grows {_GROWTH_MOST} times and more."
                )
                raise Unsound("too_large", text, packed)
            name = f"{number:06d}_{_plain(Path(info.filename).name)}"
            with source.open(info) as inside:
                start = inside.read(132)
                if start[128:] != b"DICM":
                    continue
                with (folder / name).open("wb") as out:
                    out.write(start)
                    left = info.file_size - len(start)
                    while left > 0 and (piece := inside.read(min(left, 1 << 20))):
                        out.write(piece)
                        left -= len(piece)


def _plain(name: str) -> str:
    kept = "".join(c if c.isalnum() or c in "._-" else "_" for c in name)
    return kept[-60:] or "file"
