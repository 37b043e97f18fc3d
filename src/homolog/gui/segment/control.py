"""Files of the Segment panel: scans to find, results to keep and show; no Qt, no torch.

The worker writes into a hidden folder inside the chosen one; each finished file is then
moved to its scan's name, to ``NAME_v2`` where that is taken. Nothing is overwritten.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from homolog.gui.files.writer import free_path
from homolog.gui.segment.batch import Facts
from homolog.gui.shared.layers import (
    KEY,
    LayerData,
    derived_attributes,
    label_features,
    label_layer,
    shape_of,
)
from homolog.scans.dicom import is_series_path
from homolog.scans.files import is_scan_path, read_header, read_labels, scan_stem
from homolog.scans.names import is_label_folder, label_rank, write_names
from homolog.writing import free_name, put_in_place


def find_scans(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Scans named directly or lying in folders, and a sentence for all that is none.

    Label maps lying in a folder (by their names) are left out. Reads names and first
    bytes only.
    """
    found: list[Path] = []
    odd: list[str] = []
    for path in paths:
        if is_series_path(path) or (path.is_file() and is_scan_path(path)):
            found.append(path)
        elif path.is_dir():
            inside = _scans_inside(path)
            found += inside
            if not inside:
                odd.append(f"{path.name} holds no scan.")
        elif path.exists():
            odd.append(f"{path.name} is no scan that can be read here.")
        else:
            odd.append(f"There is no {path}.")
    return list(dict.fromkeys(found)), odd


def read_facts(scans: Iterable[Path]) -> dict[Path, Facts]:
    """Modality and voxel size of scans, from their headers; bad ones are left out."""
    found: dict[Path, Facts] = {}
    for scan in scans:
        with contextlib.suppress(Exception):  # predicting it tells what is wrong
            header = read_header(scan)
            found[scan] = (header.modality, header.affine.spacing_mm)
    return found


def _scans_inside(folder: Path, depth: int = 3) -> list[Path]:
    if is_scan_path(folder):
        return [folder]  # a DICOM folder is one scan
    found: list[Path] = []
    try:
        inside = sorted(folder.iterdir())
    except OSError:
        return []  # not ours to read
    for path in inside:
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if depth > 0 and not is_label_folder(path.name):
                found += _scans_inside(path, depth - 1)
        elif is_scan_path(path) and not _is_half(path) and not _is_label(path):
            found.append(path)
    return found


def _is_label(path: Path) -> bool:
    return label_rank(scan_stem(path)) is not None


def _is_half(path: Path) -> bool:
    """Whether a file is the voxels of a pair whose header stands beside it."""
    return path.suffix.lower() == ".img" and path.with_suffix(".hdr").exists()


def keep_result(part: Path, out: Path, names: Mapping[int, str]) -> Path:
    """Move a finished label map to its own name, with its classes' names beside it.

    Returns:
        Where it lies now: its name, or with ``_v2`` where that was taken.
    """
    target = free_path(out / part.name)
    put_in_place(part, target)
    write_names(target, names)
    return target


def keep_table(part: Path, out: Path) -> Path:
    """Move a finished table; where it lies now, ``NAME_v2.csv`` where it was taken."""
    ending = part.suffix
    stem = free_name(part.stem, lambda name: (out / f"{name}{ending}").exists())
    target = out / f"{stem}{ending}"
    put_in_place(part, target)
    return target


def result_layer(
    path: Path, names: Mapping[int, str], name: str, layer: Any = None
) -> LayerData:
    """A label map file as a Labels layer, on the grid of its scan's layer.

    Args:
        path: Label map.
        names: Label value -> name.
        name: Of the new layer.
        layer: The scan's layer, where it is open.
    """
    labels = read_labels(path, names or None)
    data, attributes, kind = label_layer(labels)
    known = dict(names or labels.names)
    if layer is not None and tuple(data.shape) == shape_of(layer):
        attributes = derived_attributes(layer, name)
        data = data.reshape(layer.data.shape)
    attributes["name"] = name
    attributes["metadata"]["label_names"] = known
    attributes["metadata"][KEY]["label_names"] = known
    if known:
        attributes["features"] = label_features(known)
    return data, attributes, kind


def predict_config(
    model: Path,
    scans: Sequence[Path],
    out: Path,
    *,
    device: str = "auto",
    flips: str = "",
    overlap: float | None = None,
    modality: str | None = None,
) -> dict[str, Any]:
    """Configuration of the ``predict`` job."""
    config: dict[str, Any] = {
        "model": str(model), "scans": [str(s) for s in scans], "out": str(out),
        "flips": flips, "overlap": overlap, "device": device,
    }  # fmt: skip
    return config | ({"modality": modality} if modality else {})
