"""Showing the scan just opened: go to its middle, hide scans that lie elsewhere.

Two patients drawn into each other look like one broken scan, so a scan that shares
little room with the new one is hidden; scans of one examination stay. Without Qt.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.gui.files.layer_geometry import is_kind, shape_of, shown_affine

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
            if scan and shared(layer, other) < _TOGETHER:
                other.visible = False
    low, high = box(layer)
    middle = (low + high) / 2
    viewer.layers.selection.active = layer
    place = list(viewer.dims.point)
    place[-3:] = middle.tolist()
    viewer.dims.point = place
    viewer.fit_to_view(layers=[layer])


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
