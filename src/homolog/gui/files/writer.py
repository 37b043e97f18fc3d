"""Layers to files: the source's exact grid and affine, whatever was shown.

Flips and permutation of the closest-canonical array are undone, a tilted scan is saved
tilted, and each file is read back before it counts as saved.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from homolog.errors import JobError, UnusableInput
from homolog.gui.files.boxes import boxes_drawn_on, boxes_of_layer
from homolog.gui.shared.layers import (
    COLOURS,
    KEY,
    is_kind,
    label_names,
    layer_scan,
    layer_volume,
    lie_together,
    notes_of,
    shape_of,
    source_grid,
)
from homolog.gui.shared.notices import notify
from homolog.label_names import Colour
from homolog.scans.boxes import JSON_SUFFIX, write_box_json, write_regions
from homolog.scans.dicom.export import SUFFIX as DICOM_SUFFIX
from homolog.scans.dicom.export import write_segmentation
from homolog.scans.files import read_header, read_labels
from homolog.scans.formats.slicer import SUFFIX as SEGMENTS_SUFFIX
from homolog.scans.names import names_file, write_names
from homolog.scans.paths import scan_stem, scan_suffix
from homolog.scans.points import SUFFIX
from homolog.scans.volume import LabelMap, Volume
from homolog.scans.write import (
    WRITE_SUFFIXES,
    holds_names,
    write_labels,
    write_volume,
)
from homolog.writing import free_name

# Endings of two parts, which belong together.
_DOUBLE = (DICOM_SUFFIX, SEGMENTS_SUFFIX)
BOX_SUFFIXES = (JSON_SUFFIX, SUFFIX)
# Corners may lie this share of a voxel off after rounding to a header's float32.
_AFFINE_TOLERANCE = 1e-3


def write_image(path: str, data: Any, attributes: dict[str, Any]) -> list[str]:
    """npe2 writer of one image layer."""
    return _write(path, [(data, attributes, "image")])


def write_labels_layer(path: str, data: Any, attributes: dict[str, Any]) -> list[str]:
    """npe2 writer of one labels layer; its names go into a JSON file beside it."""
    return _write(path, [(data, attributes, "labels")])


def write_layers(path: str, layers: Sequence[tuple[Any, ...]]) -> list[str]:
    """npe2 writer of several image and labels layers: a file each.

    ``PATH.nii.gz`` becomes ``PATH_LAYERNAME.nii.gz``; a path without a suffix becomes a
    folder of ``.nii.gz`` files.
    """
    target = Path(path)
    suffix = scan_suffix(target)
    if suffix in WRITE_SUFFIXES:
        stem, folder = f"{scan_stem(target)}_", target.parent
    else:
        suffix, stem, folder = ".nii.gz", "", target
    written: list[str] = []
    for data, attributes, kind in layers:
        name = _clean(str(attributes.get("name", kind)))
        written += _write(
            str(folder / f"{stem}{name}{suffix}"), [(data, attributes, kind)]
        )
    return written


def write_boxes(path: str, data: Any, attributes: dict[str, Any]) -> list[str]:
    """npe2 writer of one shapes layer: its boxes, corrected as they are.

    ``.boxes.json`` can be learnt from (column ``boxes`` of a manifest), ``.mrk.json``
    opens in 3D Slicer.
    """
    from napari import current_viewer
    from napari.layers import Layer

    viewer = current_viewer()
    layer = Layer.create(data, attributes, "shapes")
    others = list(viewer.layers) if viewer is not None else []
    file = save_boxes(layer, Path(path), others)
    if file.name != Path(path).name:
        text = f"{Path(path).name} was there already; saved as {file.name}."
        notify(text, "info")
    return [str(file)]


def save_boxes(layer: Any, path: Path, others: Sequence[Any] = ()) -> Path:
    """Save the boxes of a shapes layer; what lies at the path is never replaced.

    Args:
        layer: Of boxes that were opened or found, or any that was drawn on a scan.
        path: Its ending, ``.boxes.json`` or ``.mrk.json``, chooses the format.
        others: Layers open beside it: the topmost scan seen is what was drawn on.

    Returns:
        The file written (``NAME_v2`` where the name was taken).

    Raises:
        UnusableInput: Another ending, no scan to place the shapes on, or no
            millimetres for 3D Slicer.
    """
    ending = next((e for e in BOX_SUFFIXES if path.name.lower().endswith(e)), None)
    if ending is None:
        known = ", ".join(BOX_SUFFIXES)
        raise UnusableInput(f"{path.name}: the name must end in one of {known}.")
    boxes = boxes_of_layer(layer)
    if boxes is None:
        scans = [o for o in others if layer_scan(o) is not None]
        scans = [o for o in scans if getattr(o, "visible", True)] or scans
        if not scans:
            text = f"{layer.name}: open the scan that its boxes were drawn on."
            raise UnusableInput(text)
        boxes = boxes_drawn_on(layer, scans[-1])
    stem = path.name[: -len(ending)]
    name = free_name(stem, lambda n: path.with_name(f"{n}{ending}").exists())
    target = path.with_name(f"{name}{ending}")
    (write_box_json if ending == JSON_SUFFIX else write_regions)(boxes, target)
    return target


def save_layer(layer: Any, path: Path, others: Sequence[Any] = ()) -> list[Path]:
    """Save an image or labels layer; what lies at the path is never replaced.

    Args:
        layer: A napari layer of two or three dimensions.
        path: Its suffix chooses the format; of labels also ``.seg.nrrd`` (3D Slicer)
            and ``.seg.dcm`` (DICOM), with names and colours in the file.
        others: Layers open beside it; a labels layer without our metadata takes the
            geometry of the one whose grid it equals.

    Returns:
        The files written: the layer's (``_v2`` where the name was taken), and of a
        labels layer with named values the names' file.

    Raises:
        UnusableInput: Suffix, number type or number of dimensions that cannot be saved,
            or a DICOM segmentation of what is no DICOM series.
        JobError: The file does not read back as it was meant.
    """
    data = layer.data
    if getattr(layer, "multiscale", False):
        raise UnusableInput(f"{layer.name}: a layer of several scales is not saved.")
    if getattr(layer, "rgb", False) or len(data.shape) not in (2, 3):
        text = f"{layer.name}: only grey images and labels of 2 or 3 dimensions are"
        raise UnusableInput(f"{text} saved, not shape {tuple(data.shape)}.")
    is_labels = is_kind(layer, "Labels")
    known = (*WRITE_SUFFIXES, *((DICOM_SUFFIX,) if is_labels else ()))
    if not path.name.lower().endswith(known):
        text = f"{path.name}: the name must end in one of {', '.join(known)}."
        raise UnusableInput(text)
    volume = _placed(layer, others)
    path = free_path(path)
    if is_labels:
        return _save_labels(layer, volume, path)
    write_volume(volume, path)
    _check_place(path, volume)
    return [path]


def _save_labels(layer: Any, volume: Volume, path: Path) -> list[Path]:
    """A labels layer as the file that the path's ending asks for."""
    data, names = volume.data[0].astype(_whole(volume)), label_names(layer)
    labels = LabelMap(data, volume.affine, names, meta=volume.meta)
    colours: dict[int, Colour] = {}
    as_dicom = path.name.lower().endswith(DICOM_SUFFIX)
    if as_dicom or holds_names(path):
        present = [int(v) for v in np.unique(data) if v > 0]
        colours = label_colours(layer, sorted({*present, *names}))
    if as_dicom:
        write_segmentation(labels, path, _source_slices(layer), colours)
        return [path]
    write_labels(labels, path, colours)
    _check_place(path, volume)
    if holds_names(path):
        return [path]
    if not np.array_equal(np.unique(read_labels(path).data), np.unique(data)):
        raise JobError(f"{path}: the labels do not read back as they were.")
    if not names:
        return [path]
    write_names(path, names)
    return [path, names_file(path)]


def _source_slices(layer: Any) -> Sequence[Any]:
    """The DICOM files of the series a layer lies on; none where it is no series."""
    source = str(notes_of(layer).get("source") or "")
    if not source:
        return ()
    slices: Sequence[Any] = read_header(source).meta.get("slices", ())
    return slices


def label_colours(layer: Any, values: Iterable[int]) -> dict[int, Colour]:
    """Red, green, blue, 0..1, in which a labels layer shows its values.

    Hidden ones count with the colour that they would have.
    """
    kept = (getattr(layer, "metadata", None) or {}).get(COLOURS, {})
    found = {}
    for value in values:
        told = kept.get(value)
        told = layer.colormap.map(value) if told is None else told
        red, green, blue = (float(c) for c in np.ravel(told)[:3])
        found[value] = (red, green, blue)
    return found


def free_path(path: Path) -> Path:
    """The path, or ``NAME_v2``, ``NAME_v3`` ... where something lies there already."""
    suffix = next((s for s in _DOUBLE if path.name.lower().endswith(s)), "")
    suffix = suffix or scan_suffix(path)
    stem = path.name[: len(path.name) - len(suffix)]

    def called(name: str) -> Path:
        return path if name == stem else path.with_name(f"{name}{suffix}")

    def is_taken(name: str) -> bool:
        return called(name).exists() or names_file(called(name)).exists()

    return called(free_name(stem, is_taken))


def _write(path: str, layers: Sequence[tuple[Any, ...]]) -> list[str]:
    from napari import current_viewer
    from napari.layers import Layer

    viewer = current_viewer()
    others = list(viewer.layers) if viewer is not None else []
    written: list[str] = []
    for data, attributes, kind in layers:
        if attributes.get("multiscale"):
            attributes, data = {**attributes, "multiscale": False}, data[0]
        files = save_layer(Layer.create(data, attributes, kind), Path(path), others)
        if files[0].name != Path(path).name:
            text = f"{Path(path).name} was there already; saved as {files[0].name}."
            notify(text, "info")
        written += [str(f) for f in files]
    return written


def _placed(layer: Any, others: Sequence[Any]) -> Volume:
    """The layer's values on the grid of its file, or of the scan it was drawn on."""
    if source_grid(layer) is None:
        twin = _scan_of_same_grid(layer, others)
        if twin is not None:
            grid = source_grid(twin)
            assert grid is not None
            notes = {**twin.metadata[KEY], "derived": True}
            metadata = {**dict(layer.metadata), KEY: notes}
            return layer_volume(_View(layer, metadata))
    return layer_volume(layer)


class _View:
    """A layer with other metadata; the layer itself stays as it is."""

    def __init__(self, layer: Any, metadata: dict[str, Any]) -> None:
        self._layer, self.metadata = layer, metadata

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


def _scan_of_same_grid(layer: Any, others: Sequence[Any]) -> Any | None:
    """The open layer of ours with this very grid; None when several disagree."""
    found = []
    for other in others:
        grid = source_grid(other)
        if grid is None or getattr(other, "ndim", 0) != 3:
            continue
        if lie_together(other, layer):
            found.append((other, grid.turned))
    if not found:
        return None
    first = found[0][1]
    if any(not first.close_to(place, shape_of(layer)) for _, place in found):
        return None
    return found[0][0]


def _check_place(path: Path, volume: Volume) -> None:
    """Read the header back and compare shape and affine."""
    header = read_header(path)
    if header.shape != volume.shape:
        raise JobError(f"{path}: saved as {header.shape}, expected {volume.shape}.")
    if not header.affine.close_to(volume.affine, volume.shape, _AFFINE_TOLERANCE):
        raise JobError(f"{path}: the place of the voxels does not read back.")


def _whole(volume: Volume) -> Any:
    return np.int64 if volume.data.dtype.kind not in "iub" else volume.data.dtype


def _clean(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._")[:80] or "layer"
