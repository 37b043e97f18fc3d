"""DICOM as a format of scans: header, values and names; the scans in one place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from homolog.geometry.affine import Affine
from homolog.scans.dicom.gathering import (
    is_index,
    open_series,
    scans_in,
    series_of,
)
from homolog.scans.dicom.header import read_dicom_file
from homolog.scans.dicom.kinds import DicomFile
from homolog.scans.dicom.labels import (
    DicomLabels,
    image_of_labels,
    read_dicom_labels,
    referenced_series,
)
from homolog.scans.dicom.slices import read_slice, read_slices, slice_information
from homolog.scans.dicom.stacks import Series
from homolog.scans.dicom.straighten import StraightGrid
from homolog.scans.formats import SEGMENTS, ScanHeader
from homolog.scans.paths import (
    is_series_path,
    is_special,
    is_zip,
    kind_of,
    looks_like_dicom,
    series_path,
    split_series,
)
from homolog.scans.problems import Problem, Unsound, problem_of
from homolog.scans.volume import modality_of_dicom
from homolog.words import counted

# What anonymisers leave in place of a patient.
_NOBODY = {"", "0", "anon", "anonymous", "anonymized", "anonymised", "unknown", "none"}


def header(path: Path) -> ScanHeader:
    """The header of a series, or of labels kept as DICOM."""
    one = not is_series_path(path) and looks_like_dicom(path)
    labels = read_dicom_labels(path, read_slice) if one else None
    if labels is None:
        series, others = open_series(path, read_slice)
        return _series_header(path, series, others)
    many = counted(len(labels.names), "class")
    text = f"labels of {many}, kept as DICOM; not a scan."
    problems = (Problem("label_map", text, False), *labels.problems)
    return ScanHeader(
        path, labels.shape, 1, 1, labels.affine, "uint16", "OTHER", "dicom",
        {SEGMENTS: True, "labels": labels}, problems,
    )  # fmt: skip


def _series_header(path: Path, series: Series, others: list[Series]) -> ScanHeader:
    """The header of one series.

    Args:
        path: The requested path.
        series: What open_series chose.
        others: The series beside it; named in a remark when the path left the choice.
    """
    first = series.files[0]
    problems = list(series.problems)
    affine = series.affine or Affine.identity()
    dtype, channels = "int16", first.whole("samples", 1)
    if not any(p.fatal for p in problems):  # what is refused is not decoded
        try:
            dtype, channels = slice_information(series)
        except Exception as error:  # noqa: BLE001 - this series' fault only
            problems.append(problem_of(error))
        if channels > 1:
            problems.append(Problem("colour", "true colour, not one number per pixel."))
    if first.text("photometric") == "MONOCHROME1":
        text = "MONOCHROME1: bright and dark are swapped."
        problems.append(Problem("inverted", text, False))
    if others and not is_series_path(path):
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
        "files": tuple(map(str, series.paths)),
        "slices": series.files,
        "straight": series.straight,
        "description": series.description,
        "part": series.part,
    }
    if series.affine is None or any(p.code == "no_place" for p in problems):
        meta["placed"] = False
    return ScanHeader(
        path, series.shape, channels, 1, affine, dtype,
        modality_of_dicom(first.text("modality")), "dicom", meta, tuple(problems),
    )  # fmt: skip


def values(header: ScanHeader) -> tuple[NDArray[Any], list[Problem]]:
    """(D, H, W) values of a series or of labels, and remarks made on the way.

    Raises:
        Unsound: They cannot be decoded.
    """
    if "labels" in header.meta:
        labels: DicomLabels = header.meta["labels"]
        return labels.values()
    found = read_slices(header.meta["slices"])
    grid: StraightGrid | None = header.meta.get("straight")
    return (found if grid is None else grid.resampled(found)), []


def label_names(path: Path) -> dict[int, str]:
    """What the values of labels kept as DICOM are called; empty for other files."""
    try:
        labels = read_dicom_labels(path, read_slice)
    except (Unsound, OSError):
        return {}
    return {} if labels is None else dict(labels.names)


# ---- the scans of one place ---------------------------------------------------------


def dicom_scans(
    folder: Path, *, straighten: bool = False
) -> tuple[list[Path], list[DicomFile]]:
    """A path for each DICOM scan lying in a folder, and its other DICOM objects.

    Args:
        folder: A folder, or a zip, DICOMDIR or file of several volumes.
        straighten: Scans that lean or are uneven go by a path that resamples them.
    """
    return scans_in(folder, read_slice, straighten=straighten)


def holds_several(path: Path) -> bool:
    """Whether one file holds several DICOM scans: a zip, a DICOMDIR, many volumes."""
    if is_series_path(path) or not path.is_file() or is_special(path):
        return False
    if is_zip(path) or is_index(path):
        return True
    try:
        plain = kind_of(path) != "dicom" or not read_dicom_file(path).frames
        return not plain and len(dicom_scans(path)[0]) > 1
    except (Unsound, OSError):
        return False


def straight_path(path: Path) -> Path:
    """The path by which a DICOM scan is read on a straight and even grid.

    The path itself where it needs none, or is no DICOM.
    """
    try:
        if kind_of(path) != "dicom":
            return path
        series, _ = open_series(path, read_slice)
    except (Unsound, OSError):
        return path
    place = split_series(path)[0]
    return series_path(place, series.key, straight=True) if series.mendable else path


def dicom_series(folder: Path) -> tuple[list[Series], list[DicomFile]]:
    """The series lying directly in a folder, the best first; other DICOM objects."""
    return series_of(folder, read_slice)


def image_of_dicom_labels(path: Path, *, straighten: bool = False) -> Path | None:
    """The path of the DICOM scan that a segmentation or contours were drawn on.

    None where it is not near the file. As in ``dicom_scans``, also for ``straighten``.
    """
    uids = referenced_series(path)
    found = image_of_labels(path, uids, read_slice, straighten=straighten)
    return None if found is None else found[0]
