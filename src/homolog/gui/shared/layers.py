"""Layers as scans: what the engine is given for a layer, and layers that lie on it.

Free of napari and Qt: a layer is anything with data, scale, translate and metadata.

The world that layers are shown in is LPS mm (z, y, x), as in ``FeatureMap.affine``, as
long as the scan is not tilted; ``shown_to_true`` maps between the two where it is.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from homolog.geometry.affine import Affine, Index, Triple
from homolog.scans.paths import is_series_path, scan_stem
from homolog.scans.volume import (
    LabelMap,
    ValueStats,
    Volume,
    closest_canonical,
    guess_modality,
    modality_of_name,
    reorder_axes,
    restore_axes,
)
from homolog.scans.write import write_volume

# Where a layer's voxels truly lie: between the shown world and the patient's.
#
# A scan's array is turned to run closest to z, y, x of LPS and shown with scale and
# translate only. Where the scan is tilted, the world shown is "straight": turned about
# the scan's centre. Free of napari and Qt; layers are only looked at.


# What tells our entry in ``layer.metadata``.
KEY = "homolog"
# There: label value -> colour, also of those that are hidden.
COLOURS = "homolog_colours"
_TILT_TOLD_DEGREES = 0.05
_MM_PER = {
    "millimeter": 1.0, "millimetre": 1.0, "mm": 1.0, "pixel": 1.0, "": 1.0,
    "micrometer": 1e-3, "micron": 1e-3, "um": 1e-3, "µm": 1e-3, "nanometer": 1e-6,
    "nm": 1e-6, "centimeter": 10.0, "cm": 10.0, "meter": 1e3, "m": 1e3,
}  # fmt: skip


@dataclass(frozen=True)
class SourceGrid:
    """The grid of the file a layer came from, and how its array was turned.

    Attributes:
        affine: Voxel of the file's own array -> true mm, LPS.
        shape: Shape of the file's own array (D, H, W).
        axes: Axis i of the layer is axis ``axes[i]`` of the file.
        flips: Whether axis i of the layer runs backwards.
    """

    affine: Affine
    shape: Index
    axes: tuple[int, ...]
    flips: tuple[bool, ...]

    @classmethod
    def of(cls, affine: Affine, shape: Index) -> SourceGrid:
        """The grid of an array that is shown closest-canonical."""
        axes, flips = affine.closest_axes()
        return cls(affine, shape, axes, flips)

    @property
    def turned(self) -> Affine:
        """Voxel of the layer -> true mm."""
        return self.affine.reorient(self.axes, self.flips, self.shape)

    @property
    def turned_shape(self) -> Index:
        """Shape of the layer (D, H, W)."""
        d, h, w = (self.shape[a] for a in self.axes)
        return d, h, w

    @property
    def shown(self) -> Affine:
        """Voxel of the layer -> shown mm; scale and translate only."""
        turned = self.turned
        spacing = turned.spacing_mm
        if turned.is_axis_aligned:
            return Affine.of(spacing, turned.origin_mm)
        centre = (np.array(self.turned_shape) - 1) / 2
        return Affine.of(spacing, tuple(turned.apply(centre) - centre * spacing))

    @property
    def shown_to_true(self) -> Affine:
        """Shown world mm -> true world mm; the identity unless the scan is tilted."""
        return _snapped(self.turned @ self.shown.inverse())

    @property
    def tilt_degrees(self) -> float:
        """Largest angle between an array axis and its world axis; 0 when negligible."""
        cosine = min(float(np.abs(self.affine.direction).max(axis=0).min()), 1.0)
        degrees = math.degrees(math.acos(cosine))
        return degrees if degrees >= _TILT_TOLD_DEGREES else 0.0

    def to_metadata(self) -> dict[str, Any]:
        """Plain JSON types for ``layer.metadata["homolog"]``."""
        return {
            "affine": self.affine.to_list(),
            "shape": tuple(int(n) for n in self.shape),
            "axes": tuple(int(a) for a in self.axes),
            "flips": tuple(bool(f) for f in self.flips),
        }


def is_kind(layer: Any, name: str) -> bool:
    """Whether a layer is an ``Image``, ``Labels`` ...; by name, without napari.

    ``__class__``, not ``type``: napari hands plugins layers in a proxy.
    """
    return any(kind.__name__ == name for kind in layer.__class__.__mro__)


def itself(thing: Any) -> Any:
    """What napari hands plugins in a proxy, without it: a proxy is soon gone."""
    return getattr(thing, "__wrapped__", thing)


def notes_of(layer: Any) -> Mapping[str, Any]:
    """Our entry in a layer's metadata; empty where there is none."""
    metadata = getattr(layer, "metadata", None)
    found = metadata.get(KEY) if isinstance(metadata, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def source_grid(layer: Any) -> SourceGrid | None:
    """The grid that a layer's metadata tell of; None without, or with broken ones."""
    notes = notes_of(layer)
    try:
        d, h, w = (int(n) for n in notes["shape"])
        axes = tuple(int(a) for a in notes["axes"])
        flips = tuple(bool(f) for f in notes["flips"])
        if sorted(axes) != [0, 1, 2] or len(flips) != 3:
            return None
        return SourceGrid(Affine(notes["affine"]), (d, h, w), axes, flips)
    except (KeyError, TypeError, ValueError):
        return None


def shape_of(layer: Any) -> Index:
    """Shape (D, H, W) of a layer of two or three dimensions; D is 1 for two."""
    d, h, w = (1, *layer.data.shape)[-3:]
    return int(d), int(h), int(w)


def shown_affine(layer: Any) -> Affine:
    """Voxel (z, y, x) of a layer -> shown world, mm, as the layer lies now."""
    ndim = len(layer.data.shape)
    k = min(ndim, 3)
    matrix = np.eye(4)
    matrix[3 - k : 3, 3 - k : 3] = np.diag(np.asarray(layer.scale, np.float64)[-k:])
    matrix[3 - k : 3, 3] = np.asarray(layer.translate, np.float64)[-k:]
    if _is_turned_by_user(layer):
        zero = np.zeros(ndim)
        origin = np.asarray(layer.data_to_world(zero), np.float64)
        for axis in range(ndim - k, ndim):
            step = zero.copy()
            step[axis] = 1.0
            column = np.asarray(layer.data_to_world(step), np.float64) - origin
            matrix[3 - k : 3, axis - ndim + 3] = column[-k:]
        matrix[3 - k : 3, 3] = origin[-k:]
    return Affine.scale(_mm_per_unit(layer)) @ Affine(matrix)


def true_affine(layer: Any) -> Affine:
    """Voxel (z, y, x) of a layer -> true world, mm, LPS."""
    grid = source_grid(layer)
    if grid is None:
        return shown_affine(layer)
    if lies_on(layer, grid):
        return grid.turned
    return grid.shown_to_true @ shown_affine(layer)


def lies_on(layer: Any, grid: SourceGrid) -> bool:
    """Whether a layer still has that grid: not cropped, coarsened or moved."""
    return shape_of(layer) == grid.turned_shape and np.allclose(
        shown_affine(layer).matrix, grid.shown.matrix, rtol=1e-6, atol=1e-4
    )


def tilt_note(grid: SourceGrid) -> str:
    """What to tell about a tilted scan, "" when it is not."""
    degrees = grid.tilt_degrees
    if degrees == 0.0:
        return ""
    said = f"{degrees:.0f}" if degrees >= 1 else f"{degrees:.1f}"
    plural = "" if said == "1" else "s"
    return f"tilted {said} degree{plural}: shown straight, saved tilted"


def _is_turned_by_user(layer: Any) -> bool:
    """Whether more than scale and translate places the layer."""
    if not hasattr(layer, "data_to_world"):
        return False
    rotate = np.asarray(getattr(layer, "rotate", 0.0))
    off = rotate.ndim == 2 and not np.allclose(rotate, np.eye(len(rotate)))
    shear = np.asarray(getattr(layer, "shear", 0.0))
    extra = getattr(getattr(layer, "affine", None), "affine_matrix", None)
    moved = extra is not None and not np.allclose(extra, np.eye(len(extra)))
    return bool(off or (shear.size and np.abs(shear).max() > 1e-9) or moved)


def _mm_per_unit(layer: Any) -> tuple[float, float, float]:
    units = [str(u) for u in (getattr(layer, "units", None) or ())][-3:]
    z, y, x = ([1.0] * 3 + [_MM_PER.get(u, 1.0) for u in units])[-3:]
    return z, y, x


def _snapped(affine: Affine) -> Affine:
    """The identity where only rounding keeps it from being it."""
    near = np.allclose(affine.matrix[:3, :3], np.eye(3), rtol=0, atol=1e-9)
    if near and np.allclose(affine.matrix[:3, 3], 0.0, rtol=0, atol=1e-6):
        return Affine.identity()
    return affine


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
        modality: One of homolog.scans.volume.MODALITIES.
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
    if grid is not None:
        data = restore_axes(data, grid.axes, grid.flips)
    return Volume(data, file_grid(layer)[0], name, modality, meta)


def file_grid(layer: Any) -> tuple[Affine, Index]:
    """Affine and shape of the file that ``scan_file`` gives, without writing one."""
    grid, shape = source_grid(layer), shape_of(layer)
    if grid is None:
        return true_affine(layer), shape
    if lies_on(layer, grid):
        return grid.affine, grid.shape
    back_axes = tuple(int(a) for a in np.argsort(grid.axes))
    back_flips = tuple(grid.flips[a] for a in back_axes)
    d, h, w = (shape[a] for a in back_axes)
    return true_affine(layer).reorient(back_axes, back_flips, shape), (d, h, w)


def lie_together(one: Any, other: Any) -> bool:
    """Whether two layers have the same grid at the same place, as they are shown."""
    return shape_of(one) == shape_of(other) and np.allclose(
        shown_affine(one).matrix, shown_affine(other).matrix, rtol=1e-5, atol=1e-3
    )


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


def open_modalities(viewer: Any) -> set[str]:
    """Modalities of a viewer's scans, where their files told them."""
    layers = () if viewer is None else viewer.layers
    return {str(told) for layer in layers if (told := notes_of(layer).get("modality"))}


def _derived_notes(layer: Any) -> dict[str, Any]:
    notes: Mapping[str, Any] = notes_of(layer)
    kept = {k: v for k, v in notes.items() if k not in ("sample", "stamp", "note")}
    return {**kept, "derived": True}


def _units(layer: Any, ndim: int) -> tuple[str, ...]:
    """Our layers are in mm; one laid over another's layer has that one's units."""
    own = tuple(str(u) for u in (getattr(layer, "units", None) or ()))
    return own if len(own) == ndim and source_grid(layer) is None else UNITS[-ndim:]


# Volumes and label maps as napari layers: closest-canonical arrays, scale + translate.
#
# napari 0.9 draws permuted affines wrongly (or not at all) and oblique ones without
# their rotation, so layers never carry them: the array is turned to run closest to z,
# y, x of LPS; the true affine and the turn travel in ``metadata["homolog"]``, to be
# inverted on saving.


LayerData: TypeAlias = tuple[Any, dict[str, Any], str]

# The window a radiologist opens an abdomen with; whole-range HU shows grey on grey.
CT_WINDOW_HU = (-160.0, 240.0)


def volume_layer(volume: Volume) -> LayerData:
    """A scan as an image layer; several channels become one layer per channel.

    Args:
        volume: As read from the file, any axis order.

    Returns:
        ``(data, attributes, "image")``: data (D, H, W), or (C, D, H, W) with
        ``channel_axis`` 0.
    """
    turned = closest_canonical(volume)
    single = turned.data.shape[0] == 1
    data = turned.data[0] if single else turned.data
    attributes = {
        **_geometry(volume.meta, volume, data),
        "name": volume.name,
        "colormap": "gray",
        "contrast_limits": contrast_limits(volume),
    }
    attributes["metadata"][KEY]["modality"] = volume.modality
    if not single:
        told = volume.meta.get("channels") or [{}] * len(data)
        attributes["metadata"][KEY]["images"] = len(data)
        attributes["channel_axis"] = 0
        attributes["name"] = [
            f"{volume.name} {one.get('name') or i}" for i, one in enumerate(told)
        ]
        attributes["contrast_limits"] = [
            contrast_limits(
                replace(
                    volume, data=volume.data[i : i + 1],
                    modality=one.get("modality") or volume.modality,
                )
            )
            for i, one in enumerate(told)
        ]  # fmt: skip
        attributes["colormap"] = ["gray"] * len(data)
    return data, attributes, "image"


def label_layer(labels: LabelMap) -> LayerData:
    """A label map as a labels layer on its own canonical grid."""
    grid = SourceGrid.of(labels.affine, labels.shape)
    data = reorder_axes(labels.data, grid.axes, grid.flips)
    data = data.astype(np.int32, copy=False)
    attributes = {**_geometry(labels.meta, labels, data), "name": labels.name}
    attributes["metadata"]["label_names"] = dict(labels.names)
    attributes["metadata"][KEY]["label_names"] = dict(labels.names)
    if labels.names:
        attributes["features"] = label_features(labels.names)
    return data, attributes, "labels"


def label_features(names: Mapping[int, str]) -> dict[str, list[Any]]:
    """The layer features by which napari shows a label's name under the cursor."""
    values = sorted(names)
    return {
        "index": [0, *(v for v in values if v)],
        "label": ["background", *(names[v] for v in values if v)],
    }


def contrast_limits(volume: Volume) -> tuple[float, float]:
    """What to show at first: the soft-tissue window for CT, robust range otherwise."""
    values = sample(volume.data, 200_000)
    values = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if not values.size:
        return 0.0, 1.0
    # Some headers say CT of what is none; a window in HU would show white on white.
    if volume.modality == "CT" and values.min() < -50:
        return CT_WINDOW_HU
    low, high = (float(v) for v in np.percentile(values, (0.5, 99.5)))
    if high <= low:
        low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low, low + 1.0)


def _geometry(
    meta: Mapping[str, Any], scan: Volume | LabelMap, data: Any
) -> dict[str, Any]:
    grid = SourceGrid.of(scan.affine, scan.shape)
    notes: dict[str, Any] = {
        **grid.to_metadata(),
        "source": str(meta.get("source", "")),
        "sample": sample_digest(data),
    }
    for name in ("nifti_forms", "forms_affine", "remarks"):
        if meta.get(name):
            notes[name] = meta[name]
    for name in ("sized", "oriented"):
        if not meta.get(name, True):
            notes[name] = False
    if notes["source"]:
        notes["stamp"] = file_stamp(Path(notes["source"]))
    if note := tilt_note(grid):
        notes["note"] = note
    shown = grid.shown
    return {
        "scale": shown.spacing_mm,
        "translate": shown.origin_mm,
        "units": UNITS,
        "axis_labels": AXIS_LABELS,
        "metadata": {KEY: notes},
    }


# Labels layers: what lies on a scan, and what its values are called.


def labels_on(scan: Any, layers: Iterable[Any]) -> list[Any]:
    """All labels layers that lie on a scan, whoever made them."""
    own = [x for x in layers if is_kind(x, "Labels") and lies_over(x, scan)]
    return [x for x in own if isinstance(x.data, np.ndarray)]


def lies_over(layer: Any, scan: Any) -> bool:
    """Whether a layer has the voxels of a scan: shape and place."""
    return shape_of(layer) == shape_of(scan) and np.allclose(
        shown_affine(layer).matrix, shown_affine(scan).matrix, rtol=1e-5, atol=1e-3
    )


def label_names(layer: Any) -> dict[int, str]:
    """Label value -> name that a layer's metadata or features tell, sorted."""
    metadata = getattr(layer, "metadata", None) or {}
    notes = metadata.get(KEY)
    told: Any = metadata.get("label_names")
    if not told and isinstance(notes, Mapping):
        told = notes.get("label_names")
    if not isinstance(told, Mapping) or not told:
        told = _named_features(layer)
    names = {int(v): str(n) for v, n in told.items() if str(n).strip()}
    return dict(sorted((v, n) for v, n in names.items() if v > 0))


def _named_features(layer: Any) -> dict[int, str]:
    """Names from the table that napari shows under the cursor."""
    table = getattr(layer, "features", None)
    columns = list(getattr(table, "columns", ()))
    if table is None or "index" not in columns:
        return {}
    text = next((c for c in ("label", "name", "names") if c in columns), None)
    if text is None:
        return {}
    return {int(v): str(n) for v, n in zip(table["index"], table[text], strict=True)}
