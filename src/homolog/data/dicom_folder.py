"""A folder of DICOM files as scans: which series it holds, its header, its slices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.data.dicom_file import DicomFile, looks_like_dicom, read_dicom_file
from homolog.data.dicom_series import Series, find_series
from homolog.data.problems import Problem, Unsound, problem_of
from homolog.data.scan_header import ScanHeader, series_path, split_series
from homolog.data.values import modality_of_dicom
from homolog.geometry.affine import Affine

# Numbers that anonymisers leave instead of a person's.
_NOBODY = {"", "0", "anon", "anonymous", "anonymized", "anonymised", "unknown", "none"}

ReadSlice = Callable[[Path], NDArray[Any]]


def dicom_files(folder: Path) -> tuple[list[DicomFile], list[DicomFile]]:
    """Images (or damaged ones) and other DICOM objects lying directly in a folder."""
    images: list[DicomFile] = []
    others: list[DicomFile] = []
    for path in sorted(folder.iterdir()):
        try:
            if path.name.startswith(".") or not path.is_file():
                continue
            if not path.stat().st_size or not looks_like_dicom(path):
                continue
            file = read_dicom_file(path)
        except Exception as error:  # noqa: BLE001 - the other files are read
            if not claims_dicom(path):
                continue
            file = DicomFile(path, damage=problem_of(error))
        (others if file.other_object else images).append(file)
    return images, others


def claims_dicom(path: Path) -> bool:
    """Whether a file that cannot be opened would have been a slice, by its name."""
    return path.suffix.lower() in ("", ".dcm", ".dicom", ".ima")


def open_series(path: Path, read_slice: ReadSlice) -> tuple[Series, list[Series]]:
    """The series a path stands for, and the others beside it.

    Args:
        path: One DICOM file, a folder (its best series), or a series_path.
        read_slice: Decodes one file; used where two slices may be copies.

    Raises:
        Unsound: ``not_an_image``, ``missing``, ``empty`` or ``unreadable``.
    """
    folder, key = split_series(path)
    if folder.is_dir():
        images, others = dicom_files(folder)
    else:
        file = read_dicom_file(folder)
        images, others = ([], [file]) if file.other_object else ([file], [])
    if not images and others:
        text = f"holds {others[0].other_object}, not a scan."
        raise Unsound("not_an_image", text, path)
    if not images:
        raise Unsound(
            "unreadable", "no DICOM images lie directly in this folder.", path
        )
    found = find_series(images, lambda a, b: _same(a, b, read_slice))
    chosen = next((s for s in found if not key or s.key == key), None)
    if chosen is None:
        known = ", ".join(s.key for s in found)
        raise Unsound("missing", f"no series {key} here; there are: {known}.", folder)
    return chosen, [s for s in found if s is not chosen]


def series_of(
    folder: Path, read_slice: ReadSlice
) -> tuple[list[Series], list[DicomFile]]:
    """The series lying directly in a folder, the best first; other DICOM objects."""
    images, others = dicom_files(folder)
    return find_series(images, lambda a, b: _same(a, b, read_slice)), others


def scans_in(folder: Path, read_slice: ReadSlice) -> tuple[list[Path], list[DicomFile]]:
    """A path for each scan among a folder's DICOM files, and the other objects there.

    A scan of one file (an X-ray) goes by that file; the only scan of a folder by the
    folder; otherwise each by its series_path.
    """
    found, others = series_of(folder, read_slice)
    paths = []
    for series in found:
        alone = len(found) == 1
        if len(series.files) == 1 and not series.copies:
            paths.append(series.files[0].path)
        else:
            paths.append(folder if alone else series_path(folder, series.key))
    return sorted(paths), others


def series_header(
    path: Path,
    series: Series,
    others: list[Series],
    measure: Callable[[Path], tuple[str, int]],
) -> ScanHeader:
    """The header of one series.

    Args:
        path: The path asked for.
        series: What open_series chose.
        others: The series beside it; named in a remark when the path left the choice.
        measure: Number type and channels of one file as its decoder sees them.
    """
    first = series.files[0]
    problems = list(series.problems)
    affine = series.affine or Affine.identity()
    dtype, channels = "int16", first.whole("samples", 1)
    if not any(p.fatal for p in problems):  # what is refused is not decoded
        try:
            dtype, channels = measure(first.path)
        except Exception as error:  # noqa: BLE001 - this series' fault only
            problems.append(problem_of(error))
        if channels > 1:
            problems.append(Problem("colour", "true colour, not one number per pixel."))
    if first.text("photometric") == "MONOCHROME1":
        text = "MONOCHROME1: bright and dark are swapped."
        problems.append(Problem("inverted", text, False))
    if others and path.is_dir():
        rest = "; ".join(s.title for s in others[:4])
        text = f"{len(others) + 1} series here: {series.title} taken, left: {rest}."
        problems.append(Problem("mixed_series", text, False))
    patient = first.text("patient")
    named = patient if patient.lower().rstrip("0123456789_ ") not in _NOBODY else ""
    if patient.isdigit() and patient.strip("0"):
        named = patient
    meta: dict[str, Any] = {
        "subject": named,
        "series": series.key,
        "files": tuple(str(f.path) for f in series.files),
        "description": first.text("description"),
    }
    if series.affine is None:
        meta["placed"] = False
    return ScanHeader(
        path, series.shape, channels, 1, affine, dtype,
        modality_of_dicom(first.text("modality")), "dicom", meta, tuple(problems),
    )  # fmt: skip


def joined_slices(slices: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """(D, H, W) values of slices (frames, H, W), each with its own rescale slope.

    PET series change slope from slice to slice, so slices whose types differ, or that
    are not whole numbers, become float32.
    """
    kinds = {s.dtype for s in slices}
    kind = kinds.pop() if len(kinds) == 1 else np.dtype(np.float32)
    if kind.kind == "f":
        kind = np.dtype(np.float32)
    return np.concatenate([s.astype(kind, copy=False) for s in slices])


def _same(a: Path, b: Path, read_slice: ReadSlice) -> bool:
    try:
        return bool(np.array_equal(read_slice(a), read_slice(b)))
    except Exception:  # noqa: BLE001 - not decoded, so not known to be a copy
        return False
