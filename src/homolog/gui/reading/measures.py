"""Distances, angles and regions drawn on a scan, with their figures beside them."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
from qtpy.QtCore import QObject, Qt
from qtpy.QtWidgets import (
    QAbstractItemView,
    QDialog,
    QLabel,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from homolog.geometry.affine import Affine
from homolog.gui.reading.measuring import Values, number, told_of, values_of_labels
from homolog.gui.reading.windows import HU, kind_of
from homolog.gui.shared import widgets
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.layers import (
    KEY,
    derived_attributes,
    is_kind,
    itself,
    notes_of,
    true_affine,
)
from homolog.gui.shared.scan_layers import selection_kept
from homolog.gui.shared.threads import in_background, soon

_COLOUR = "#f0e442"  # seen on black, grey and white
NAME = "measures"
# What napari calls the tool, and what to do with it.
TOOLS = {
    "Distance": ("add_line", "Drag from one place to the other."),
    "Angle": (
        "add_polyline",
        "Click three places, the corner second; double-click the last one.",
    ),
    "Circle or ellipse": (
        "add_ellipse", "Drag over the region; with Shift it becomes a circle.",
    ),
    "Outline": ("add_polygon", "Click around the region; double-click the last place."),
}  # fmt: skip


class Measures(QObject):
    """The layers of measures, one for each scan that was measured in.

    Args:
        hub: Of the window.
        parent: A widget of ours.
    """

    def __init__(self, hub: Hub, parent: QWidget) -> None:
        super().__init__(parent)
        self._hub, self._panel = hub, parent
        self._layers: dict[Any, Any] = {}
        self._back: Any = None
        self._telling = False

    def begin(self, tool: str) -> None:
        """Draw one measure on the scan that is looked at.

        Args:
            tool: One of TOOLS.
        """
        scan = self.scan()
        if scan is None:
            self._hub.say("Open a scan first, then measure in it.")
            return
        viewer = self._hub.viewer
        if viewer.dims.ndisplay != 2:
            viewer.dims.ndisplay = 2
        if self._back is None:
            self._back = viewer.layers.selection.active
        layer = self._layer(scan)
        layer.visible = True
        viewer.layers.selection.active = layer
        mode, hint = TOOLS[tool]
        layer.mode = mode
        self._hub.say(hint)

    def forget(self) -> None:
        """Take all measures away."""
        viewer = self._hub.viewer
        for layer in list(self._layers.values()):
            self._let_go(layer)
            if layer in viewer.layers:
                with selection_kept(viewer):
                    viewer.layers.remove(layer)
        self._layers.clear()

    def end(self) -> None:
        """Let go of the layers; they stay as they are."""
        for layer in self._layers.values():
            self._let_go(layer)
        self._layers.clear()

    @property
    def some(self) -> bool:
        """Whether anything was measured."""
        return any(len(layer.data) for layer in self._layers.values())

    def scan(self) -> Any | None:
        """The scan that is measured: active, else the topmost that is shown."""
        viewer = self._hub.viewer
        active = viewer.layers.selection.active
        if active is not None and _is_scan(active):
            return itself(active)
        for scan, layer in self._layers.items():
            if active is not None and itself(active) is layer:
                return scan
        for layer in reversed(viewer.layers):
            if layer.visible and _is_scan(layer):
                return itself(layer)
        return None

    def label_values(self) -> None:
        """Values of the scan under each label, in a window of its own."""
        scan, labels = self.scan(), self._labels()
        if scan is None or labels is None:
            self._hub.say("Show a scan and a label layer, then ask for its values.")
            return
        if not _same_grid(scan, labels):
            self._hub.say(
                f"{labels.name} does not lie on the voxels of {scan.name}; open the "
                "scan it was made for."
            )
            return
        names = {
            int(k): str(v) for k, v in notes_of(labels).get("label_names", {}).items()
        }
        size = _size(scan)
        voxel_ml = abs(float(np.linalg.det(size.matrix[:3, :3]))) / 1000 if size else 0
        unit = _unit(scan)
        title = f"{labels.name} over {scan.name}"

        def show(found: list[tuple[int, str, Values]]) -> None:
            LabelValues(title, found, voxel_ml, unit, self._panel.window()).show()

        in_background(
            values_of_labels, np.asarray(scan.data), np.asarray(labels.data), names,
            owner=self, done=show,
            failed=lambda error: self._hub.say(f"No values: {error}", "error"),
        )  # fmt: skip

    def _labels(self) -> Any | None:
        viewer = self._hub.viewer
        active = viewer.layers.selection.active
        if active is not None and is_kind(active, "Labels"):
            return itself(active)
        for layer in reversed(viewer.layers):
            if layer.visible and is_kind(layer, "Labels"):
                return itself(layer)
        return None

    def _layer(self, scan: Any) -> Any:
        layer = self._layers.get(scan)
        viewer = self._hub.viewer
        if layer is not None and layer in viewer.layers:
            return layer
        attributes = derived_attributes(scan, f"{scan.name} {NAME}")
        attributes["metadata"][KEY]["points"] = NAME
        in_plane = float(np.median(np.asarray(scan.scale, np.float64)))
        made = viewer.add_shapes(
            ndim=3,
            edge_color=_COLOUR,
            face_color="transparent",
            edge_width=1.0 / in_plane,
            opacity=1.0,
            features={"told": np.empty(0, "<U80")},
            text={
                "string": "{told}", "color": _COLOUR, "size": 11,
                "anchor": "upper_left",
            },
            **attributes,
        )  # fmt: skip
        layer = self._layers[scan] = itself(made)
        layer.events.data.connect(self._drawn)
        return layer

    def _let_go(self, layer: Any) -> None:
        with contextlib.suppress(Exception):
            layer.events.data.disconnect(self._drawn)

    def _drawn(self, event: Any) -> None:
        if self._telling:
            return
        action = str(event.action).rpartition(".")[2].lower()
        layer = itself(event.source)
        if action == "added":
            soon(self, lambda: self._tell(layer, finished=True))
        elif action in ("changed", "removed"):
            soon(self, lambda: self._tell(layer, finished=False))

    def _tell(self, layer: Any, *, finished: bool) -> None:
        """Write the figures beside the shapes, after what napari is doing now."""
        scan = next((s for s, made in self._layers.items() if made is layer), None)
        viewer = self._hub.viewer
        if scan is None or layer not in viewer.layers:
            return
        affine, unit, data = _size(scan), _unit(scan), np.asarray(scan.data)
        told = [
            told_of(affine, data, str(kind), np.asarray(points, np.float64), unit)
            for kind, points in zip(layer.shape_type, layer.data, strict=True)
        ]
        self._telling = True
        try:
            layer.features = {"told": told}
            layer.feature_defaults = {"told": ""}
            layer.text.refresh(layer.features)
            layer.refresh()
        finally:
            self._telling = False
        if finished:
            layer.mode = "pan_zoom"
            layer.selected_data = set()
            back, self._back = self._back, None
            if back is not None and back in viewer.layers:
                viewer.layers.selection.active = back


class LabelValues(QDialog):
    """A table of the values under each label.

    Args:
        title: Of the window.
        found: From ``values_of_labels``.
        voxel_ml: Volume of a voxel; 0 where it is not known: voxels are counted.
        unit: Of the values, "" for none.
        parent: Main window.
    """

    TITLES = ("Label", "Mean", "SD", "Min", "Max")

    def __init__(
        self,
        title: str,
        found: list[tuple[int, str, Values]],
        voxel_ml: float,
        unit: str,
        parent: QWidget | None,
    ) -> None:
        super().__init__(parent)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setWindowTitle(title)
        self.setAccessibleName(title)
        self.rows = [
            (
                name, number(v.mean), number(v.sd), number(v.low), number(v.high),
                number(v.count * (voxel_ml or 1)),
            )
            for _, name, v in found
        ]  # fmt: skip
        self.titles = (*self.TITLES, "Volume, ml" if voxel_ml else "Voxels")
        told = f"Values in {unit}." if unit else "Values as they are in the file."
        head = QLabel(told if found else "The label layer is empty.")
        self.table = QTableWidget(len(self.rows), len(self.titles))
        widgets.named(self.table, title, "Values of the scan under each label")
        self.table.setHorizontalHeaderLabels(self.titles)
        self.table.verticalHeader().hide()
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        for row, texts in enumerate(self.rows):
            for column, text in enumerate(texts):
                item = QTableWidgetItem(text)
                if column:
                    item.setTextAlignment(
                        Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
                    )
                self.table.setItem(row, column, item)
        self.table.resizeColumnsToContents()
        copy = widgets.button(
            "Copy", "Copy the table, to be pasted elsewhere", self.copy
        )
        column_ = QVBoxLayout(self)
        column_.addWidget(head)
        column_.addWidget(self.table)
        column_.addWidget(copy)
        wide = self.table.horizontalHeader().length() + 60
        self.resize(min(max(wide, 420), 900), 360)

    def copy(self) -> None:
        """The table as text, columns apart by tabs."""
        widgets.copy("\n".join("\t".join(row) for row in (self.titles, *self.rows)))


def _is_scan(layer: Any) -> bool:
    return bool(kind_of(layer)) and layer.ndim == 3


def _size(scan: Any) -> Affine | None:
    """Voxel -> true mm; None where nobody knows how large a voxel is."""
    return None if notes_of(scan).get("sized") is False else true_affine(scan)


def _unit(scan: Any) -> str:
    return "HU" if kind_of(scan) == HU else ""


def _same_grid(scan: Any, labels: Any) -> bool:
    return tuple(scan.data.shape) == tuple(labels.data.shape) and np.allclose(
        true_affine(scan).matrix, true_affine(labels).matrix, rtol=1e-4, atol=1e-2
    )
