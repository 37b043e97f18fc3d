"""A cross at the chosen place: lines along the axes that leave the place itself free.

No Qt. Works on napari's viewer and on a ``ViewerModel`` alike.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.geometry.affine import Triple
from homolog.gui.explore.layers import selection_kept
from homolog.gui.explore.scan import Scan
from homolog.gui.files.layer_geometry import KEY
from homolog.gui.files.layer_scan import AXIS_LABELS, UNITS

CROSS = "Cross"
_COLOUR = "#f0e442"
_GAP, _REACH, _WIDTH = 1.2, 3.5, 0.25  # in sizes of a mark


class Cross:
    """The cross of one viewer; a deleted one comes back with the next place.

    Args:
        viewer: napari's, or a model.
    """

    def __init__(self, viewer: Any) -> None:
        self._viewer = viewer
        self._layer: Any | None = None
        self._step: Triple | None = None

    def show(
        self, shown_mm: NDArray[np.float64], size_mm: float, step: Triple, scan: Scan
    ) -> None:
        """Put it at a place.

        Args:
            shown_mm: (3,).
            size_mm: Diameter of the marks.
            step: Slice distances (z, y, x); the layer must not change the sliders'.
            scan: Lines end at its border, else sliders would reach beyond it.
        """
        steps = np.array(step)
        lines = within(cross_lines(shown_mm, size_mm, step), scan) / steps
        if self._layer is None or self._layer not in self._viewer.layers:
            with selection_kept(self._viewer):
                self._layer = self._viewer.add_vectors(
                    lines,
                    name=CROSS,
                    edge_color=_COLOUR,
                    vector_style="line",
                    edge_width=_WIDTH * size_mm / float(steps.mean()),
                    scale=step,
                    units=UNITS,
                    axis_labels=AXIS_LABELS,
                    metadata={KEY: {"derived": True, "points": CROSS}},
                )
            self._step = step
            return
        if step != self._step:
            self._step = step
            self._layer.scale = step
        self._layer.data = lines
        if not self._layer.visible:  # napari redraws even if it is set to the same
            self._layer.visible = True

    def hide(self) -> None:
        """Out of sight; removing a layer would cost napari a long while."""
        if self._layer is not None and self._layer.visible:
            self._layer.visible = False

    def close(self) -> None:
        """Take it away."""
        layer, self._layer = self._layer, None
        if layer is not None and layer in self._viewer.layers:
            with selection_kept(self._viewer):
                self._viewer.layers.remove(layer)


def cross_lines(
    shown_mm: NDArray[np.float64], size_mm: float, step: Triple
) -> NDArray[np.float64]:
    """(36, 2, 3): start and vector of lines, mm; four in every plane through a place.

    A viewer's slice may lie up to half a step beside the place, and napari shows a line
    only in the slice nearest to its start: so each is drawn in three planes.
    """
    lines = []
    for hidden in range(3):
        for beside in (-0.45, 0.0, 0.45):
            middle = shown_mm.copy()
            middle[hidden] += beside * step[hidden]
            for axis in (a for a in range(3) if a != hidden):
                for sign in (-1.0, 1.0):
                    along = np.zeros(3)
                    along[axis] = sign * size_mm
                    lines.append((middle + along * _GAP, along * (_REACH - _GAP)))
    return np.array(lines)


def within(lines: NDArray[np.float64], scan: Scan) -> NDArray[np.float64]:
    """Lines (N, 2, 3) cut where a scan ends."""
    low = scan.grid.apply(np.zeros(3))
    high = scan.grid.apply(np.array(scan.ref.shape) - 1.0)
    start = np.clip(lines[:, 0], low, high)
    end = np.clip(lines[:, 0] + lines[:, 1], low, high)
    return np.stack([start, end - start], axis=1)
