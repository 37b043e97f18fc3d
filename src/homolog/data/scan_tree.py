"""Everything that claims to be a scan below a folder: files, DICOM series, datasets."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from homolog.data.dicom_file import looks_like_dicom
from homolog.data.layouts import is_dataset
from homolog.data.scan_header import is_known_suffix, is_special, scan_suffix

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
        dicom_folders: Folders with DICOM files lying directly in them.
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
