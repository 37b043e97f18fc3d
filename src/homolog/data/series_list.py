"""The DICOM series below a folder, as a person chooses among them; no pixels read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from homolog.data.dicom_file import looks_like_dicom
from homolog.data.dicom_series import Series
from homolog.data.problems import problem_of
from homolog.data.scan_header import is_known_suffix, scan_suffix, series_path
from homolog.data.scan_io import dicom_series
from homolog.data.scan_tree import walk
from homolog.data.values import modality_of_dicom
from homolog.geometry.affine import Index, Triple

# How many files, and folders below each other, are asked for DICOM's mark at most.
_LOOKED_AT = 400
_DEPTH = 5


@dataclass(frozen=True)
class SeriesInfo:
    """One series.

    Attributes:
        path: What read_scan takes: a file, a folder, or a series_path.
        modality: One of MODALITIES.
        description: What the scanner called it; may hold a person's name.
        shape: (D, H, W); D is the number of slices.
        spacing_mm: Voxel size (z, y, x); None when it cannot be known.
        files: The slices.
        trouble: Why it cannot be used, one sentence; "" when it can.
        remarks: What else should be known: copies left out, swapped brightness.
    """

    path: Path
    modality: str
    description: str
    shape: Index
    spacing_mm: Triple | None
    files: tuple[Path, ...]
    trouble: str = ""
    remarks: tuple[str, ...] = ()

    @property
    def voxels(self) -> int:
        """How much there is to see."""
        d, h, w = self.shape
        return d * h * w


def list_series(root: Path) -> list[SeriesInfo]:
    """All series below a folder, usable ones first, then the largest.

    Objects without a picture (contours, reports) are listed, with what they are, only
    where nothing else lies in their folder.

    Args:
        root: A folder; folders below it are looked through.
    """
    found: list[SeriesInfo] = []
    for folder in walk(root, datasets=False).dicom_folders:
        try:
            series, others = dicom_series(folder)
        except Exception as error:  # noqa: BLE001 - the other folders are listed
            found.append(_refused(folder, problem_of(error).text))
            continue
        found += [_info(folder, one, alone=len(series) == 1) for one in series]
        if not series:
            texts = [f"holds {o.other_object}, not a scan." for o in others]
            pairs = zip(others, texts, strict=True)
            found += [_refused(o.path, text, o.text("modality")) for o, text in pairs]
    return sorted(found, key=lambda s: (bool(s.trouble), -s.voxels, str(s.path)))


def _refused(path: Path, trouble: str, modality: str = "") -> SeriesInfo:
    """What stands in the list for a folder or object that holds no series."""
    kind = modality_of_dicom(modality)
    return SeriesInfo(path, kind, "", (0, 0, 0), None, (path,), trouble)


def series_with(file: Path) -> SeriesInfo | None:
    """The series of its folder that one DICOM file is a slice of, if of several."""
    try:
        series, _ = dicom_series(file.parent)
    except Exception:  # noqa: BLE001 - then the file itself is opened, or refused
        return None
    for one in series:
        if len(one.files) > 1 and any(f.path.name == file.name for f in one.files):
            return _info(file.parent, one, alone=len(series) == 1)
    return None


def holds_dicom(root: Path) -> bool:
    """Whether a folder, or one below it, holds DICOM files; quick, so not certain."""
    pending, looked = [(root, 0)], 0
    while pending:
        folder, depth = pending.pop(0)
        try:
            entries = sorted(folder.iterdir())
        except OSError:
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                if depth < _DEPTH:
                    pending.append((entry, depth + 1))
                continue
            looked += 1
            if looked > _LOOKED_AT:
                return False
            if _may_be_dicom(entry):
                return True
    return False


def _may_be_dicom(path: Path) -> bool:
    suffix = scan_suffix(path)
    if is_known_suffix(path) and suffix not in (".dcm", ".dicom", ".ima"):
        return False
    try:
        return looks_like_dicom(path)
    except OSError:
        return False


def _info(folder: Path, series: Series, *, alone: bool) -> SeriesInfo:
    first = series.files[0]
    path = folder if alone else series_path(folder, series.key)
    if len(series.files) == 1 and not series.copies:
        path = first.path
    return SeriesInfo(
        path=path,
        modality=modality_of_dicom(first.text("modality")),
        description=first.text("description"),
        shape=series.shape,
        spacing_mm=series.affine.spacing_mm if series.affine else None,
        files=tuple(f.path for f in series.files),
        trouble=next((p.text for p in series.problems if p.fatal), ""),
        remarks=tuple(p.text for p in series.problems if not p.fatal),
    )
