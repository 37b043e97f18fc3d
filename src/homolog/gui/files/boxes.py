"""Boxes of a scan as a shapes layer: one rectangle on every slice that a box crosses.

napari shows a flat shape on its own slice only, so that a box is many rectangles; seen
in 3D they stand upon each other. Free of Qt and napari.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.errors import UnusableInput
from homolog.geometry.affine import Affine
from homolog.gui.shared.layers import AXIS_LABELS, KEY, UNITS, LayerData, SourceGrid
from homolog.label_names import colours_of
from homolog.scans.boxes import (
    JSON_SUFFIX,
    BoxList,
    ScanBox,
    read_box_json,
    read_regions,
)
from homolog.scans.points import SUFFIX

# More rectangles than this make a window slow; the surest boxes come first.
_MOST = 4000


def holds_boxes(path: Path) -> bool:
    """Whether a file is one of boxes: by its name, of Slicer's by what it holds."""
    name = path.name.lower()
    if name.endswith(JSON_SUFFIX):
        return True
    if not name.endswith(SUFFIX):
        return False
    try:
        return bool(read_regions(path))
    except UnusableInput:
        return False


def boxes_of_file(path: Path) -> BoxList:
    """The boxes of a file; of Slicer's regions on the grid told beside it.

    Without a file of ours beside it regions lie on a grid of 1 mm along x, y, z.

    Raises:
        UnusableInput: It holds no boxes.
    """
    if path.name.lower().endswith(JSON_SUFFIX):
        return read_box_json(path)
    regions = read_regions(path)
    name = path.name[: -len(SUFFIX)]
    beside = path.with_name(name + JSON_SUFFIX)
    if beside.is_file():
        told = read_box_json(beside)
        if told.affine is not None:
            boxes = tuple(region.on_grid(told.affine) for region in regions)
            return BoxList(told.scan, told.shape, boxes, told.affine)
    world = Affine.identity()
    boxes = tuple(region.on_grid(world) for region in regions)
    return BoxList(name, (1, 1, 1), boxes, world)


def box_layer(boxes: BoxList, name: str = "") -> LayerData:
    """A shapes layer that lies on the scan as its own layer does.

    Args:
        boxes: Of the scan.
        name: Of the layer; that of the scan and ``boxes`` if empty.
    """
    grid = SourceGrid.of(boxes.affine or Affine.identity(), boxes.shape)
    data: list[NDArray[np.float64]] = []
    labels: list[str] = []
    scores: list[float] = []
    numbers: list[int] = []
    ranked = sorted(
        boxes.boxes, key=lambda box: -(1.0 if box.score is None else box.score)
    )
    for number, box in enumerate(ranked, start=1):
        found = rectangles(box, grid)
        if len(data) + len(found) > _MOST:
            break
        data += found
        labels += [box.label] * len(found)
        scores += [math.nan if box.score is None else box.score] * len(found)
        numbers += [number] * len(found)
    places = {n: i for i, n in enumerate(sorted(set(labels)), start=1)}
    colours = colours_of({i: n for n, i in places.items()})
    shown = grid.shown
    attributes: dict[str, Any] = {
        "name": name or f"{boxes.scan} boxes",
        "scale": shown.spacing_mm,
        "translate": shown.origin_mm,
        "units": UNITS,
        "axis_labels": AXIS_LABELS,
        "metadata": {KEY: {**grid.to_metadata(), "boxes": boxes.to_dict()}},
    }
    if not data:
        return np.zeros((0, 4, 3)), {**attributes, "ndim": 3}, "shapes"
    known = not any(math.isnan(score) for score in scores)
    return data, {
        **attributes,
        "shape_type": "rectangle",
        "features": {"label": labels, "score": scores, "box": numbers},
        "edge_color": np.array([(*colours[places[n]], 1.0) for n in labels]),
        "face_color": np.zeros(4),
        "edge_width": 0.8,
        "text": {
            "string": "{label} {score:.2f}" if known else "{label}",
            "anchor": "upper_left", "size": 10, "color": "white",
        },
    }, "shapes"  # fmt: skip


def rectangles(box: ScanBox, grid: SourceGrid) -> list[NDArray[np.float64]]:
    """Corners (4, 3) on each slice of the layer that a box crosses, in its voxels."""
    turned = grid.turned.inverse() @ grid.affine
    ends = turned.apply(np.array([box.low, box.high]) - 0.5)
    low, high = ends.min(0), ends.max(0)
    first = math.ceil(low[0] - 1e-6)
    last = math.floor(high[0] + 1e-6 if high[0] > first else first)
    if last < first or high[0] < first:  # between two slices
        first = last = round((low[0] + high[0]) / 2)
    (_, y0, x0), (_, y1, x1) = low, high
    return [
        np.array([(z, y0, x0), (z, y0, x1), (z, y1, x1), (z, y1, x0)], float)
        for z in range(first, last + 1)
    ]
