"""Boxes of a scan as a shapes layer, and back: what was changed in it by hand.

napari shows a flat shape only on its own slice of the plane it lies in. So a box is a
rectangle on every slice that it crosses of the plane that is shown, and in 3D its
edges; ``live_boxes`` changes one for the other as the view turns. Free of Qt and
napari.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from homolog.errors import UnusableInput
from homolog.geometry.affine import Affine, Triple
from homolog.gui.shared.layers import (
    AXIS_LABELS,
    KEY,
    UNITS,
    LayerData,
    SourceGrid,
    is_kind,
    lies_on,
    notes_of,
    shape_of,
    source_grid,
    true_affine,
)
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
# Corners that lie closer than this, in voxels, were not moved.
_MOVED = 1e-2
# Edges are at least so wide, in voxels, and so large a share of a picture.
_WIDTH, _WIDTH_SHARE = 0.8, 0.004
UNNAMED = "box"
Corners = NDArray[np.float64]


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


class Rectangle(NamedTuple):
    """One flat piece of a box.

    Attributes:
        number: Of the box, from 1.
        corners: (4, 3) z, y, x in voxels of the layer.
        first: Whether it carries the name where all are seen at once.
    """

    number: int
    corners: Corners
    first: bool


@dataclass(frozen=True, eq=False)
class ShownBoxes:
    """The boxes of a layer, and the plane that its rectangles lie in.

    Attributes:
        known: Of the scan, the surest first; a box's number is its place, from 1.
        axis: Axis of the layer across which slices are seen (0: z, axial; 1: y; 2: x);
            None: all at once, in 3D.
    """

    known: BoxList
    axis: int | None = 0

    @property
    def grid(self) -> SourceGrid:
        """How the scan's array is turned to be shown."""
        return SourceGrid.of(self.known.affine or Affine.identity(), self.known.shape)

    def rectangles(self) -> list[Rectangle]:
        """What is drawn of the boxes, box by box; at most 4000."""
        grid = self.grid
        found: list[Rectangle] = []
        for number, box in enumerate(self.known.boxes, start=1):
            pieces = _pieces(*edges(box, grid), self.axis)
            if len(found) + len(pieces) > _MOST:
                break
            found += [
                Rectangle(number, corners, not place)
                for place, corners in enumerate(pieces)
            ]
        return found

    def features(self, drawn: Sequence[Rectangle]) -> dict[str, Any]:
        """Of each rectangle: ``label``, ``score``, ``box`` and what stands beside."""
        if not drawn:  # a table must know what will stand in it
            kinds = {"label": object, "score": float, "box": int, "title": object}
            return {name: np.array([], kind) for name, kind in kinds.items()}
        boxes = [self.known.boxes[piece.number - 1] for piece in drawn]
        return {
            "label": [box.label for box in boxes],
            "score": [math.nan if b.score is None else b.score for b in boxes],
            "box": [piece.number for piece in drawn],
            "title": [
                title_of(box) if piece.first or self.axis is not None else ""
                for box, piece in zip(boxes, drawn, strict=True)
            ],
        }

    def colours(self, drawn: Sequence[Rectangle]) -> NDArray[np.float64]:
        """(N, 4), a colour for each class."""
        known = class_colours(self.known)
        return np.array(
            [(*known[self.known.boxes[p.number - 1].label], 1.0) for p in drawn]
        ).reshape(-1, 4)

    @property
    def edge_width(self) -> float:
        """Voxels; pictures of thousands of pixels need more."""
        is_picture = min(self.known.shape) == 1
        return max(_WIDTH, _WIDTH_SHARE * max(self.known.shape) * is_picture)

    def notes(self) -> dict[str, Any]:
        """For ``layer.metadata["homolog"]``."""
        told = {"boxes": self.known.to_dict(), "boxes_axis": self.axis}
        return {**self.grid.to_metadata(), **told}

    def taken(
        self, data: Sequence[Any], features: Mapping[str, Sequence[Any]]
    ) -> ShownBoxes:
        """The boxes after what was done to their rectangles by hand.

        A rectangle that was moved or resized changes its box on all slices; one that
        is gone takes its box with it; a new one is a box of its slice alone, to be
        stretched in another plane. What a person changed has no score any more.

        Args:
            data: Corners of the layer's shapes, (n, 3) or (n, 2) each.
            features: ``label`` and ``box`` of each; what lacks them is new.
        """
        drawn = self.rectangles()
        numbers = _whole(features.get("box"), len(data))
        labels = [_text(v) for v in _column(features.get("label"), len(data))]
        shapes = [_solid(corners) for corners in data]
        rows: dict[int, list[int]] = {}
        for row, number in enumerate(numbers):
            rows.setdefault(number, []).append(row)
        grid, boxes, used = self.grid, [], set[int]()
        for number, box in enumerate(self.known.boxes, start=1):
            pieces = [piece.corners for piece in drawn if piece.number == number]
            own = rows.get(number, [])[: len(pieces)]
            used.update(own)
            if len(own) < len(pieces):
                continue  # deleted
            pairs = [(shapes[i], piece) for i, piece in zip(own, pieces, strict=True)]
            new = self._moved(box, pairs, grid)
            other = next((labels[i] for i in own if labels[i] != box.label), "")
            if other and own:
                new = replace(new, label=other, score=None)
            boxes.append(new)
        for row, corners in enumerate(shapes):
            if row not in used and (ends := self._drawn(corners)) is not None:
                label = labels[row] or self.usual_label
                boxes.append(_on_scan(label, None, *ends, grid))
        return replace(self, known=replace(self.known, boxes=tuple(boxes)))

    def _moved(
        self, box: ScanBox, pairs: Sequence[tuple[Corners, Corners]], grid: SourceGrid
    ) -> ScanBox:
        """A box as the rectangle that was changed has it now."""
        if self.axis is None or not pairs:
            return box
        now, before = (
            np.stack([[c.min(0), c.max(0)] for c in corners])
            for corners in zip(*pairs, strict=True)
        )
        gap = np.abs(now - before)
        gap[..., self.axis] = 0.0
        most = gap.max(axis=(1, 2))
        if most.max() < _MOVED:
            return box
        ends = now[most.argmax()]
        low, high = edges(box, grid)
        ends[:, self.axis] = low[self.axis], high[self.axis]
        ends = self._inside(ends)
        if not (np.ptp(ends, axis=0) > 0).all():
            return box
        return _on_scan(box.label, None, ends[0], ends[1], grid)

    def _drawn(self, corners: Corners) -> tuple[Corners, Corners] | None:
        """Edges of a box that was drawn; None outside of the scan or of no size."""
        ends = np.array([corners.min(0), corners.max(0)])
        if self.axis is not None:
            place = np.round(corners[:, self.axis].mean())
            ends[:, self.axis] = place - 0.5, place + 0.5
        ends = self._inside(ends)
        return (ends[0], ends[1]) if (np.ptp(ends, axis=0) > 0).all() else None

    def _inside(self, ends: Corners) -> Corners:
        top = np.array(self.grid.turned_shape) - 0.5
        if max(self.known.shape) == 1:  # regions of a scan that is not known
            return ends
        return np.clip(ends, -0.5, top)

    @property
    def usual_label(self) -> str:
        """What a box is called that is drawn now."""
        return self.known.boxes[-1].label if self.known.boxes else UNNAMED


def title_of(box: ScanBox) -> str:
    """``liver 0.93``; of a box that a person drew its class alone."""
    return box.label if box.score is None else f"{box.label} {box.score:.2f}"


def class_colours(boxes: BoxList) -> dict[str, tuple[float, float, float]]:
    """A colour of each class."""
    names = sorted({box.label for box in boxes.boxes})
    colours = colours_of(dict(enumerate(names, start=1)))
    return {name: colours[i] for i, name in enumerate(names, start=1)}


def edges(box: ScanBox, grid: SourceGrid) -> tuple[Triple, Triple]:
    """Lowest and highest edge (z, y, x) of a box in voxels of the layer."""
    turned = grid.turned.inverse() @ grid.affine
    ends = turned.apply(np.array([box.low, box.high]) - 0.5)
    (z0, y0, x0), (z1, y1, x1) = ends.min(0).tolist(), ends.max(0).tolist()
    return (z0, y0, x0), (z1, y1, x1)


def _on_scan(
    label: str, score: float | None, low: Any, high: Any, grid: SourceGrid
) -> ScanBox:
    """Inverse of ``edges``."""
    back = grid.affine.inverse() @ grid.turned
    ends = back.apply(np.array([low, high], float)) + 0.5
    (z0, y0, x0), (z1, y1, x1) = ends.min(0).tolist(), ends.max(0).tolist()
    return ScanBox(label, score, (z0, y0, x0), (z1, y1, x1))


def _pieces(low: Triple, high: Triple, axis: int | None) -> list[Corners]:
    """A rectangle on each slice that is crossed; in 3D four faces, all twelve edges."""
    if axis is None:
        ends = [(0, low[0]), (0, high[0]), (1, low[1]), (1, high[1])]
        return [_rectangle(low, high, across, place) for across, place in ends]
    first = math.ceil(low[axis] - 1e-6)
    top = high[axis] + 1e-6 if high[axis] > first else first
    last = math.floor(top)
    if last < first or high[axis] < first:  # between two slices
        first = last = round((low[axis] + high[axis]) / 2)
    return [
        _rectangle(low, high, axis, float(place)) for place in range(first, last + 1)
    ]


def _rectangle(low: Triple, high: Triple, axis: int, place: float) -> Corners:
    one, other = (i for i in range(3) if i != axis)
    corners = np.empty((4, 3))
    corners[:, axis] = place
    corners[:, one] = low[one], low[one], high[one], high[one]
    corners[:, other] = low[other], high[other], high[other], low[other]
    return corners


def box_layer(boxes: BoxList, name: str = "") -> LayerData:
    """A shapes layer that lies on the scan as its own layer does, for axial slices.

    Args:
        boxes: Of the scan.
        name: Of the layer; that of the scan and ``boxes`` if empty.
    """
    ranked = sorted(boxes.boxes, key=lambda b: -(1.0 if b.score is None else b.score))
    shown = ShownBoxes(replace(boxes, boxes=tuple(ranked)))
    drawn, grid = shown.rectangles(), shown.grid.shown
    attributes: dict[str, Any] = {
        "name": name or f"{boxes.scan} boxes",
        "ndim": 3,
        "scale": grid.spacing_mm,
        "translate": grid.origin_mm,
        "units": UNITS,
        "axis_labels": AXIS_LABELS,
        "features": shown.features(drawn),
        "feature_defaults": feature_defaults(shown),
        "edge_width": shown.edge_width,
        "face_color": "transparent",
        "metadata": {KEY: shown.notes()},
    }
    if not drawn:
        return np.zeros((0, 4, 3)), attributes, "shapes"
    return [piece.corners for piece in drawn], {
        **attributes,
        "shape_type": "rectangle",
        "edge_color": shown.colours(drawn),
        "text": TEXT,
    }, "shapes"  # fmt: skip


# Names and scores beside the rectangles.
TEXT = {"string": "{title}", "anchor": "upper_left", "size": 10, "color": "white"}


def feature_defaults(shown: ShownBoxes) -> dict[str, Any]:
    """What a rectangle has that somebody draws: the last class, no score, no box."""
    label = shown.usual_label
    return {"label": label, "score": math.nan, "box": 0, "title": label}


def shown_boxes(layer: Any) -> ShownBoxes | None:
    """The boxes a shapes layer was drawn from; None for another's layer."""
    notes = notes_of(layer)
    if not is_kind(layer, "Shapes") or not isinstance(notes.get("boxes"), Mapping):
        return None
    try:
        told = BoxList.from_dict(notes["boxes"])
        axis = notes.get("boxes_axis", 0)
        return ShownBoxes(told, None if axis is None else int(axis))
    except (KeyError, TypeError, ValueError):
        return None


def boxes_of_layer(layer: Any) -> BoxList | None:
    """The boxes of a shapes layer as they are now; None for another's layer."""
    shown = shown_boxes(layer)
    if shown is None:
        return None
    return shown.taken(list(layer.data), features_of(layer)).known


def boxes_drawn_on(layer: Any, scan: Any) -> BoxList:
    """The shapes of any layer as boxes of a scan that they were drawn on.

    Each is a box of its own, on its slice.

    Args:
        layer: A shapes layer of two or three dimensions.
        scan: The layer of the scan.
    """
    shape = shape_of(scan)
    grid = source_grid(scan)
    if grid is None or not lies_on(scan, grid):
        grid = SourceGrid.of(true_affine(scan), shape)
    told = features_of(layer)
    names = next((told[n] for n in ("label", "class", "name") if n in told), None)
    boxes = []
    for corners, name in zip(layer.data, _column(names, len(layer.data)), strict=True):
        placed = [scan.world_to_data(layer.data_to_world(c)) for c in corners]
        solid = _solid(np.array(placed))
        ends = np.array([solid.min(0), solid.max(0)])
        across = int(np.ptp(ends, axis=0).argmin())
        place = np.round(solid[:, across].mean())
        ends[:, across] = place - 0.5, place + 0.5
        ends = np.clip(ends, -0.5, np.array(shape) - 0.5)
        if (np.ptp(ends, axis=0) > 0).all():
            label = _text(name) or UNNAMED
            boxes.append(_on_scan(label, None, ends[0], ends[1], grid))
    return BoxList(str(scan.name), grid.shape, tuple(boxes), grid.affine)


def features_of(layer: Any) -> dict[str, list[Any]]:
    """The columns of a layer's table."""
    table = layer.features
    return {str(name): list(table[name]) for name in table.columns}


def _solid(corners: Any) -> Corners:
    """(n, 3); what was drawn on a flat layer lies on slice 0."""
    found = np.asarray(corners, np.float64)
    lacking = 3 - found.shape[1]
    if lacking > 0:
        return np.pad(found, ((0, 0), (lacking, 0)))
    return found[:, -3:]


def _column(values: Any, count: int) -> list[Any]:
    found = [] if values is None else list(values)
    return [*found, *[None] * count][:count]


def _whole(values: Any, count: int) -> list[int]:
    found = []
    for value in _column(values, count):
        try:
            found.append(int(value))
        except (TypeError, ValueError):  # none, or not a number
            found.append(0)
    return found


def _text(value: Any) -> str:
    return "" if value is None or value != value else str(value).strip()
