"""Whatever can be opened, scan or boxes, as a layer; and the viewer that gets it.

``read_layer`` is slow where files are and free of napari and Qt: called on a thread by
our own Open button, and directly by the reader that napari calls on a drop.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.gui.files.boxes import box_layer, boxes_of_file, holds_boxes
from homolog.gui.files.scan_layer import read_scan_layer
from homolog.gui.shared.layers import (
    UNITS,
    LayerData,
    is_kind,
    notes_of,
    shape_of,
    shown_affine,
)


def read_layer(path: Path, name: str = "") -> LayerData:
    """One file (DICOM folder, series) as a layer, placed in patient space.

    Args:
        path: What ``homolog.scans.files.read_scan`` takes, or a file of boxes.
        name: Of the layer; from the file if empty.

    Raises:
        UnusableInput: It is no sound scalar scan; the sentence says why.
        OSError: It cannot be read.
        MemoryError: It is too large.
    """
    if holds_boxes(path):
        return box_layer(boxes_of_file(path), name)
    return read_scan_layer(path, name)


# napari imports these when it shows its first image, points and labels: half a second.
_FIRST_LAYERS = (
    "scipy.ndimage", "scipy.special", "pandas", "skimage.exposure", "scipy.optimize",
)  # fmt: skip
# The table of units behind every layer is read with the first one, 130 ms, and is not
# to be used before it is whole.
_making_units = threading.Lock()
_units: list[Any] = []


def warm_up(modules: Iterable[str]) -> None:
    """Import what the first layers need, and these modules; for a thread."""
    for name in _FIRST_LAYERS[:1]:
        with contextlib.suppress(ImportError):  # told where it is needed
            importlib.import_module(name)
    wait_for_units()
    for name in (*_FIRST_LAYERS[1:], *modules):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def wait_for_units() -> None:
    """The table of units is there, made now or by the thread that is at it."""
    if _units:
        return
    with _making_units, contextlib.suppress(Exception):  # napari makes it itself
        pint: Any = importlib.import_module("pint")
        if not _units:
            _units.append(pint.get_application_registry().Unit(UNITS[0]))


# Showing the scan just opened: go to its middle, hide scans that lie elsewhere.
#
# Two patients drawn into each other look like one broken scan, so a scan that shares
# little room with the new one is hidden; scans of one examination stay. Without Qt.


# Scans that share this part of the smaller one's room are seen together.
_TOGETHER = 0.6


def look_at(viewer: Any, layer: Any) -> None:
    """Go to the middle of a new layer; hide open scans that lie elsewhere.

    Args:
        viewer: A napari viewer.
        layer: One of its layers, of three dimensions.
    """
    if not is_kind(layer, "Image") or len(layer.data.shape) != 3:
        return
    if viewer.canvas.grid.enabled:  # the user has chosen to see them side by side
        return
    for other in viewer.layers:
        if other.unique_id != layer.unique_id and len(other.data.shape) == 3:
            scan = is_kind(other, "Image") or is_kind(other, "Labels")
            if scan and not _belong_together(layer, other):
                other.visible = False
    low, high = box(layer)
    middle = (low + high) / 2
    viewer.layers.selection.active = layer
    place = list(viewer.dims.point)
    place[-3:] = middle.tolist()
    viewer.dims.point = place
    viewer.fit_to_view(layers=[layer])


def _belong_together(layer: Any, other: Any) -> bool:
    """Whether a new scan is seen together with what is open.

    Pictures that do not say their size lie nowhere: two of them are two patients,
    though all begin in the same corner. Labels of a picture's own pixels stay with it.
    """
    notes, others = notes_of(layer), notes_of(other)
    if not (notes.get("sized", True) and others.get("sized", True)):
        if is_kind(other, "Labels") and shape_of(other) == shape_of(layer):
            return True
        source = others.get("source")
        return bool(source) and source == notes.get("source")
    return shared(layer, other) >= _TOGETHER


def shared(a: Any, b: Any) -> float:
    """Which part of the smaller layer's box lies in the other's, 0 to 1."""
    (low_a, high_a), (low_b, high_b) = box(a), box(b)
    common = np.clip(np.minimum(high_a, high_b) - np.maximum(low_a, low_b), 0, None)
    smaller = min(np.prod(high_a - low_a), np.prod(high_b - low_b))
    return float(np.prod(common) / smaller) if smaller > 0 else 0.0


def box(layer: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lowest and highest edge (z, y, x) of a layer in the shown world, mm."""
    affine, shape = shown_affine(layer), np.array(shape_of(layer))
    corners = (
        np.array(
            [[z, y, x] for z in (0, 1) for y in (0, 1) for x in (0, 1)],
            dtype=np.float64,
        )
        * shape
        - 0.5
    )
    placed = affine.apply(corners)
    return placed.min(axis=0), placed.max(axis=0)


def add_to(viewer: Any, layer: LayerData) -> list[Any]:
    """Add what read_layer made to a viewer (GUI thread); returns the new layers."""
    from napari.layers import Layer

    wait_for_units()
    data, attributes, kind = layer
    attributes = dict(attributes)
    if kind == "shapes":
        from homolog.gui.files.live_boxes import watch

        watch(viewer)
    if "channel_axis" in attributes:
        added = viewer.add_image(data, **attributes)
        return list(added)
    return [viewer.add_layer(Layer.create(data, attributes, kind))]
