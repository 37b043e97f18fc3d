"""What lies below a folder: files that claim to be scans, DICOM series, datasets.

Names and DICOM headers alone; no pixels are read.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from homolog.geometry.affine import Index, Triple
from homolog.index.datasets import is_dataset
from homolog.scans.dicom.format import dicom_series
from homolog.scans.dicom.gathering import path_of
from homolog.scans.dicom.stacks import Series
from homolog.scans.paths import (
    is_known_suffix,
    is_special,
    is_zip,
    looks_like_dicom,
    scan_suffix,
)
from homolog.scans.problems import problem_of
from homolog.scans.volume import modality_of_dicom

_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
# Asked neither for a scan's name nor for DICOM's mark.
_OTHER = {
    ".txt", ".md", ".csv", ".tsv", ".json", ".jsonl", ".yaml", ".yml", ".py", ".ipynb",
    ".npz", ".npy", ".pt", ".pth", ".pkl", ".html", ".xml", ".pdf", ".zip", ".log",
    ".bval", ".bvec", ".raw", ".xlsx", ".h5", ".sh", ".m", ".mat", ".safetensors",
}  # fmt: skip


@dataclass
class Tree:
    """What lies below a folder.

    Attributes:
        files: Files whose name claims a scan, sorted.
        dicom_folders: Folders with DICOM files lying directly in them, and zips that
            hold such files.
        datasets: Folders with a dataset.json; nothing below them is in the others.
    """

    files: list[Path] = field(default_factory=list)
    dicom_folders: list[Path] = field(default_factory=list)
    datasets: list[Path] = field(default_factory=list)


def walk(root: Path, *, datasets: bool = True) -> Tree:
    """Look through a folder; hidden files and folders are passed over.

    So are pipes, devices and sockets, which may never give a byte, and each folder that
    links lead to is looked through once, so that a link to a folder above ends.

    Args:
        root: Where to begin.
        datasets: Leave folders with a dataset.json to their own reader.
    """
    tree = Tree()
    known: set[tuple[int, int]] = set()
    for name, folders, files in os.walk(root, followlinks=True):
        folder = Path(name)
        if not _is_new(folder, known):
            folders.clear()
            continue
        if datasets and is_dataset(folder):
            tree.datasets.append(folder)
            folders.clear()
            continue
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        named = (folder / f for f in sorted(files) if not f.startswith("."))
        paths = [p for p in named if not is_special(p)]
        dicom = {p for p in paths if _is_dicom(p)}
        if dicom:
            tree.dicom_folders.append(folder)
        tree.dicom_folders += [p for p in paths if is_zip(p)]
        claims = [p for p in paths if p not in dicom and is_known_suffix(p)]
        tree.files += _one_per_scan(claims)
    return tree


def _is_new(folder: Path, known: set[tuple[int, int]]) -> bool:
    """Whether a folder, whatever path led to it, was not looked through before."""
    try:
        status = folder.stat()
    except OSError:
        return False
    place = (status.st_dev, status.st_ino)
    if place in known and status.st_ino:
        return False
    known.add(place)
    return True


def _is_dicom(path: Path) -> bool:
    suffix = scan_suffix(path)
    if suffix in _OTHER or (is_known_suffix(path) and suffix not in _DICOM_SUFFIXES):
        return False
    try:
        return looks_like_dicom(path)
    except OSError:
        return False


def _one_per_scan(files: list[Path]) -> list[Path]:
    """Of a header and its data file (.hdr and .img) only the header."""
    names = {f.name.lower() for f in files}
    kept = []
    for file in files:
        name = file.name.lower()
        header = name.replace(".img", ".hdr") if ".img" in name else ""
        if header and {header, header.removesuffix(".gz")} & names:
            continue
        kept.append(file)
    return kept


# How many files, and folders below each other, are searched for DICOM's mark at most.
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
        part: Which volume of its series it is (``echo 4.6 ms``); no person's name.
    """

    path: Path
    modality: str
    description: str
    shape: Index
    spacing_mm: Triple | None
    files: tuple[Path, ...]
    trouble: str = ""
    remarks: tuple[str, ...] = ()
    part: str = ""

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
        root: A folder; folders below it are looked through. Or a zip, the DICOMDIR of a
            disc, or one DICOM file of several volumes.
    """
    found: list[SeriesInfo] = []
    alone = root.is_file()
    for folder in [root] if alone else walk(root, datasets=False).dicom_folders:
        try:
            series, others = dicom_series(folder)
        except Exception as error:  # noqa: BLE001 - the other folders are listed
            found.append(_refused(folder, problem_of(error).text))
            continue
        found += _infos(folder, series)
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
    for one, info in zip(series, _infos(file.parent, series), strict=True):
        if len(one.files) > 1 and any(f.path.name == file.name for f in one.files):
            return info
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


def _infos(folder: Path, series: list[Series]) -> list[SeriesInfo]:
    """What is told of the series of one place."""
    shared = Counter(path for one in series for path in one.paths)
    return [
        _info(path_of(folder, s, alone=len(series) == 1, shared=shared), s)
        for s in series
    ]


def _info(path: Path, series: Series) -> SeriesInfo:
    return SeriesInfo(
        path=path,
        modality=modality_of_dicom(series.files[0].text("modality")),
        description=series.description,
        shape=series.shape,
        spacing_mm=series.affine.spacing_mm if series.affine else None,
        files=series.paths,
        trouble=next((p.text for p in series.problems if p.fatal), ""),
        remarks=tuple(p.text for p in series.problems if not p.fatal),
        part=series.part,
    )
