"""One source of scans, whatever it is, as candidates."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

from homolog.data.case_source import Candidate, Found, Rejected
from homolog.data.inspect import Inspection
from homolog.data.label_pairs import pair_labels
from homolog.data.layouts import is_dataset, read_dataset
from homolog.data.manifest import MANIFEST_SUFFIXES, read_manifest
from homolog.data.problems import problem_of
from homolog.data.scan_header import (
    is_series_path,
    real_path,
    refuse_special,
    scan_stem,
)
from homolog.data.scan_io import dicom_scans
from homolog.data.scan_tree import walk
from homolog.data.subjects import guess_subjects
from homolog.errors import UnusableInput


def find_cases(
    source: Path, labels: Collection[Path], peek: Callable[[Path], Inspection]
) -> Found:
    """Candidates of one source.

    Args:
        source: Folder, dataset, manifest, scan file, or series of a DICOM folder.
        labels: Label files given separately; never taken for scans.
        peek: Inspects a file once.

    Raises:
        UnusableInput: There is no such file or folder, or its manifest is unreadable.
    """
    if not source.exists() and not is_series_path(source):
        raise UnusableInput(f"{source}: no such file or folder.")
    refuse_special(source)
    if source.is_dir():
        return _folder(source, labels, peek)
    if source.suffix.lower() in MANIFEST_SUFFIXES:
        if source.name == "dataset.json" and is_dataset(source.parent):
            return read_dataset(source.parent)
        return read_manifest(source)
    name = source.name if is_series_path(source) else scan_stem(source)
    return Found([Candidate(source, name, source.parent)])


def _folder(
    root: Path, labels: Collection[Path], peek: Callable[[Path], Inspection]
) -> Found:
    found = Found()
    tree = walk(root)
    for folder in tree.datasets:
        try:
            one = read_dataset(folder)
        except Exception as error:
            if folder == root:
                raise
            found.rejected.append(rejected_for(folder / "dataset.json", error))
            continue
        if folder != root:  # names stay relative to the source
            below = folder.relative_to(root)
            one.candidates = [
                replace(c, name=str(below / c.name), root=root) for c in one.candidates
            ]
        found.candidates += one.candidates
        found.rejected += one.rejected
        found.notes += one.notes
    images: list[Path] = []
    for folder in tree.dicom_folders:
        images += _dicom(folder, found)
    given = {real_path(p) for p in labels}
    files = [f for f in tree.files if real_path(f) not in given]
    pairs = pair_labels(files, root, peek)
    found.notes += pairs.notes
    images += pairs.images
    subjects = guess_subjects(images, root)
    for image in sorted(images):
        found.candidates.append(
            Candidate(
                image=image,
                name=_name(image, root),
                root=root,
                label=pairs.labels.get(image),
                folder_subject=subjects.get(image, ""),
            )
        )
    if not found.candidates and not found.rejected:
        raise UnusableInput(f"{root}: no scans in this folder.")
    return found


def rejected_for(path: Path, error: Exception) -> Rejected:
    """What went wrong with one file or folder, for ``rejected.json``."""
    problem = problem_of(error)
    return Rejected(str(path), problem.text, problem.code)


def _dicom(folder: Path, found: Found) -> list[Path]:
    try:
        paths, others = dicom_scans(folder)
    except Exception as error:  # noqa: BLE001 - the other folders are read
        found.rejected.append(rejected_for(folder, error))
        return []
    for other in others:
        kind = other.other_object
        if "DICOMDIR" in kind:
            continue
        text = f"holds {kind}, not a scan."
        found.rejected.append(Rejected(str(other.path), text, "not_an_image"))
    return paths


def _name(image: Path, root: Path) -> str:
    """The relative path without a suffix; the source's own name for the source."""
    if image == root:
        return root.name
    return str(image.relative_to(root).with_name(scan_stem(image)))
