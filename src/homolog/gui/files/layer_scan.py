"""Layers as scans: what the engine is given for a layer, and layers that lie on it.

Free of napari and Qt: a layer is anything with data, scale, translate and metadata.

The world that layers are shown in is LPS mm (z, y, x), as in ``FeatureMap.affine``, as
long as the scan is not tilted; ``shown_to_true`` maps between the two where it is.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.data.scan_header import is_series_path, scan_stem
from homolog.data.scan_io import write_volume
from homolog.data.values import ValueStats, guess_modality, modality_of_name
from homolog.data.volume import Volume, restore_axes
from homolog.geometry.affine import Affine, Index, Triple
from homolog.gui.files.layer_geometry import (
    KEY,
    is_kind,
    lies_on,
    notes_of,
    shape_of,
    shown_affine,
    source_grid,
    true_affine,
)

AXIS_LABELS = ("z", "y", "x")
UNITS = ("mm", "mm", "mm")
# Voxels looked at to tell whether an array is still the one that was read.
_SAMPLES = 20_000


@dataclass(frozen=True)
class ScanRef:
    """An open scan.

    Attributes:
        name: The layer's name.
        path: File, DICOM folder or series the layer shows unchanged; None where it
            was changed or never was a file (see ``scan_file``).
        modality: One of homolog.data.volume.MODALITIES.
        shape: (D, H, W) of the layer.
        spacing_mm: Voxel size (z, y, x) of the layer.
    """

    name: str
    path: Path | None
    modality: str
    shape: Index
    spacing_mm: Triple


def layer_scan(layer: Any) -> ScanRef | None:
    """What scan a layer is; None for labels, points, colour, heat maps and films."""
    if not _is_image(layer) or notes_of(layer).get("derived"):
        return None
    return ScanRef(
        name=str(layer.name),
        path=source_file(layer),
        modality=_modality(layer),
        shape=shape_of(layer),
        spacing_mm=true_affine(layer).spacing_mm,
    )


def source_file(layer: Any) -> Path | None:
    """The file a layer shows unchanged; quick. None where there is none."""
    notes = notes_of(layer)
    source, grid = str(notes.get("source") or ""), source_grid(layer)
    if not source or grid is None or notes.get("derived"):
        return None
    path = Path(source)
    try:
        if file_stamp(path) != tuple(notes.get("stamp", ())):
            return None
    except OSError:
        return None
    untouched = notes.get("sample") == sample_digest(layer.data)
    return path if untouched and lies_on(layer, grid) else None


def scan_file(layer: Any, scratch: Path) -> Path:
    """A file that holds what the layer shows, for a worker to read.

    Quick where the layer is an unchanged file; otherwise it is written (call it on a
    thread where layers may be large).

    Args:
        layer: An image layer that ``layer_scan`` knows.
        scratch: Folder for layers that are no file, e.g. ``hub.scratch``.

    Returns:
        The source, or a ``.nii`` of true geometry in ``scratch``.
    """
    path = source_file(layer)
    if path is not None:
        return path
    volume = layer_volume(layer)
    digest = hashlib.sha256(volume.affine.matrix.tobytes())
    digest.update(sample_digest(layer.data).encode())
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", scan_stem(Path(volume.name))) or "layer"
    path = (
        Path(scratch)
        / f"{stem[:60].strip('._') or 'layer'}-{digest.hexdigest()[:8]}.nii"
    )
    write_volume(volume, path)
    return path


def layer_volume(layer: Any) -> Volume:
    """A layer's values in the axis order and with the affine of its source file.

    Layers of no file, or moved and cropped ones, keep their own order and place.
    """
    data = np.asarray(layer.data)[(np.newaxis,) * (4 - len(layer.data.shape))]
    grid, notes = source_grid(layer), notes_of(layer)
    name, modality = str(layer.name), str(notes.get("modality") or "OTHER")
    meta = {k: notes[k] for k in ("nifti_forms", "forms_affine") if k in notes}
    if grid is None:
        return Volume(data, true_affine(layer), name, modality, meta)
    data = restore_axes(data, grid.axes, grid.flips)
    if lies_on(layer, grid):
        return Volume(data, grid.affine, name, modality, meta)
    back_axes = tuple(int(a) for a in np.argsort(grid.axes))
    back_flips = tuple(grid.flips[a] for a in back_axes)
    affine = true_affine(layer).reorient(back_axes, back_flips, shape_of(layer))
    return Volume(data, affine, name, modality, meta)


def shown_to_true(layer: Any) -> Affine:
    """Shown world mm -> true world mm (LPS); the identity unless the scan is tilted."""
    grid = source_grid(layer)
    return Affine.identity() if grid is None else grid.shown_to_true


def derived_attributes(layer: Any, name: str) -> dict[str, Any]:
    """Attributes of a new layer on the grid of another.

    Args:
        layer: The scan.
        name: Of the new layer.
    """
    ndim = len(layer.data.shape)
    return {
        "name": name,
        "scale": tuple(float(v) for v in layer.scale),
        "translate": tuple(float(v) for v in layer.translate),
        "units": _units(layer, ndim),
        "axis_labels": AXIS_LABELS[-ndim:],
        "metadata": {KEY: _derived_notes(layer)},
    }


def grid_attributes(layer: Any, cell_affine: Affine) -> dict[str, Any]:
    """As derived_attributes for a coarser grid, such as feature cells of the scan.

    Args:
        layer: The scan (three-dimensional).
        cell_affine: Cell (z, y, x) -> true mm; its axes run along the layer's.

    Raises:
        ValueError: The axes of the grid do not run along those of the layer.
    """
    shown = shown_to_true(layer).inverse() @ cell_affine
    scale = np.diag(shown.matrix)[:3]
    off = shown.matrix[:3, :3] - np.diag(scale)
    if not (scale > 0).all() or np.abs(off).max() > 1e-3 * scale.min():
        raise ValueError(f"the grid {cell_affine} does not run along {layer.name!r}.")
    return {
        "name": str(layer.name),
        "scale": tuple(scale.tolist()),
        "translate": tuple(shown.matrix[:3, 3].tolist()),
        "units": UNITS,
        "axis_labels": AXIS_LABELS,
        "metadata": {KEY: _derived_notes(layer)},
    }


def sample_digest(data: Any) -> str:
    """A quick fingerprint of an array: shape, type and evenly spread voxels."""
    digest = hashlib.sha256(f"{tuple(data.shape)}{data.dtype}".encode())
    digest.update(np.ascontiguousarray(sample(data)).tobytes())
    return digest.hexdigest()[:16]


def sample(data: Any, count: int = _SAMPLES) -> NDArray[Any]:
    """Evenly spread values of an array; no copy of the whole, even of flipped views."""
    size = int(np.prod(data.shape))
    if not isinstance(data, np.ndarray):
        data = np.asarray(data)
    flat = np.linspace(0, size - 1, min(size, count)).astype(np.int64)
    values: NDArray[Any] = data[np.unravel_index(flat, data.shape)]
    return values


def file_stamp(path: Path) -> tuple[int, int]:
    """What changes when a file does; of a DICOM series, that of its folder."""
    if is_series_path(path):
        path = path.parent
    status = path.stat()
    return int(status.st_size), int(status.st_mtime_ns)


def _is_image(layer: Any) -> bool:
    if (
        not is_kind(layer, "Image")
        or getattr(layer, "rgb", False)
        or getattr(layer, "multiscale", False)
    ):
        return False
    return len(layer.data.shape) in (2, 3)


def _modality(layer: Any) -> str:
    told = str(notes_of(layer).get("modality") or "")
    if told:
        return told
    stats = ValueStats()
    stats.update(sample(layer.data))
    return guess_modality(stats, modality_of_name(str(layer.name)))


def _derived_notes(layer: Any) -> dict[str, Any]:
    notes: Mapping[str, Any] = notes_of(layer)
    kept = {k: v for k, v in notes.items() if k not in ("sample", "stamp", "note")}
    return {**kept, "derived": True}


def _units(layer: Any, ndim: int) -> tuple[str, ...]:
    """Our layers are in mm; one laid over another's layer has that one's units."""
    own = tuple(str(u) for u in (getattr(layer, "units", None) or ()))
    return own if len(own) == ndim and source_grid(layer) is None else UNITS[-ndim:]


__all__ = [
    "ScanRef", "derived_attributes", "file_stamp", "grid_attributes", "layer_scan",
    "layer_volume", "sample", "sample_digest", "scan_file", "shown_affine",
    "shown_to_true", "source_file", "true_affine",
]  # fmt: skip
