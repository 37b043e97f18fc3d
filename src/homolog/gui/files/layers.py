"""Volumes and label maps as napari layers: closest-canonical arrays, scale + translate.

napari 0.9 draws permuted affines wrongly (or not at all) and oblique ones without their
rotation, so layers never carry them: the array is turned to run closest to z, y, x of
LPS; the true affine and the turn travel in ``metadata["homolog"]``, to be inverted on
saving.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from homolog.data.volume import LabelMap, Volume, closest_canonical, reorder_axes
from homolog.gui.files.layer_geometry import KEY, SourceGrid, tilt_note
from homolog.gui.files.layer_scan import (
    AXIS_LABELS,
    UNITS,
    file_stamp,
    sample,
    sample_digest,
)

LayerData: TypeAlias = tuple[Any, dict[str, Any], str]

__all__ = [
    "AXIS_LABELS", "CT_WINDOW_HU", "UNITS", "LayerData", "contrast_limits",
    "label_layer", "volume_layer",
]  # fmt: skip

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
        attributes["channel_axis"] = 0
        attributes["name"] = [f"{volume.name} {i}" for i in range(len(data))]
        attributes["contrast_limits"] = [attributes["contrast_limits"]] * len(data)
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
