"""The boxes of a layer as a table: what each holds, how sure, how large, where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QAbstractItemView,
    QApplication,
    QHeaderView,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from homolog.gui.files.boxes import boxes_of_layer, edges, shown_boxes
from homolog.gui.files.live_boxes import in_hand, up_to_date
from homolog.gui.files.writer import save_boxes
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.scan_layers import go_to
from homolog.gui.shared.threads import in_background, soon
from homolog.gui.shared.widgets import (
    Choice,
    ask_new_file,
    beside,
    bring_into_view,
    button,
    fill,
    labelled,
    named,
    sentence,
    tell,
)
from homolog.scans.boxes import COLUMNS, BoxList, ScanBox
from homolog.words import as_csv

_HEAD = ("Class", "Score", "Size (mm, x y z)")
_ROWS_SHOWN = 6
_KINDS = "Boxes (*.boxes.json);;3D Slicer regions (*.mrk.json)"
_HOW = (
    "Drag a box's edges with napari's select tool, in any plane; Delete takes a box "
    "away. A class is changed in its cell."
)


class BoxesBox(QWidget):
    """Boxes that were found or opened; hidden while there are none."""

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self._hub = hub
        self._watched: Any = None
        self._due = self._filling = self._bring = False
        self._boxes: BoxList | None = None
        self.choice = Choice()
        self.choice.currentIndexChanged.connect(lambda _: self._watch())
        self.table = QTableWidget(0, len(_HEAD))
        named(self.table, "Boxes", "Double-click a score or size to go to the box")
        self.table.setHorizontalHeaderLabels(list(_HEAD))
        self.table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.table.setTabKeyNavigation(False)
        self.table.verticalHeader().setVisible(False)
        header = self.table.horizontalHeader()
        header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        self.table.cellActivated.connect(
            lambda row, column: self._activated(row) if column else None
        )  # the first column is typed in
        self.table.itemChanged.connect(self._renamed)
        self.go = button("Go to box", "Show the middle of the selected box", self.go_to)
        self.save = button(
            "Save...", "Save the boxes as they are now; they can be learnt from",
            self.ask_save,
        )  # fmt: skip
        self.copy = button("Copy table", "Copy all boxes for a spreadsheet", self.copy_)
        self.words = sentence("State of the boxes", lines=3)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        hint = "Layer whose boxes are listed"
        column.addLayout(labelled("Boxes of", self.choice, hint))
        column.addWidget(self.table)
        column.addLayout(beside(self.go, self.save, self.copy))
        column.addWidget(self.words)
        tell(self.words, _HOW)
        for event in ("inserted", "removed"):
            getattr(hub.viewer.layers.events, event).connect(self._layers_changed)
        self.read_layers()

    @property
    def layer(self) -> Any | None:
        """The chosen layer, if it still lives."""
        key = self.choice.currentData()
        return next((x for x in self._layers() if str(x.unique_id) == key), None)

    def read_layers(self) -> None:
        """Fill the list of layers, the newest first."""
        layers = self._layers()
        before = self.choice.currentData()
        fill(self.choice, [(x.name, str(x.unique_id)) for x in layers], before)
        self.setVisible(bool(layers))
        self._watch()

    def adopt(self, layer: Any) -> None:
        """List the boxes of a new result."""
        self.read_layers()
        self.choice.setCurrentIndex(self.choice.findData(str(layer.unique_id)))
        tell(self.words, _HOW)
        self._bring = True
        self._soon()

    def go_to(self) -> None:
        """Show the middle of the selected box, or of the first."""
        self._activated(max(self.table.currentRow(), 0))

    def ask_save(self) -> None:
        """Let the user name the file."""
        if self.layer is None:
            return
        name = f"{self.layer.name.replace(' ', '_')}.boxes.json"
        ask_new_file(self, "Save boxes", name, _KINDS, self.save_to)

    def save_to(self, path: Path) -> None:
        """Save what the layer holds now."""
        layer = self.layer
        if layer is None:
            return
        if not path.name.lower().endswith(".json"):
            path = path.with_name(f"{path.name}.boxes.json")
        in_background(
            save_boxes, layer, path, list(self._hub.viewer.layers), owner=self,
            done=lambda file: tell(self.words, f"✓ Saved as {file}"),
            failed=lambda error: tell(self.words, f"⚠ Not saved: {error}"),
        )  # fmt: skip

    def copy_(self) -> None:
        """The table on the clipboard."""
        if self._boxes is not None:
            rows = [[row.get(c, "") for c in COLUMNS] for row in self._boxes.rows()]
            QApplication.clipboard().setText(as_csv(COLUMNS, rows, "\t"))
            tell(self.words, "The table was copied.")

    def _layers(self) -> list[Any]:
        layers = list(self._hub.viewer.layers)[::-1]
        return [layer for layer in layers if shown_boxes(layer) is not None]

    def _layers_changed(self, event: Any = None) -> None:
        self.read_layers()

    def _watch(self) -> None:
        layer = self.layer
        if layer is not self._watched:
            if self._watched is not None:
                self._watched.events.data.disconnect(self._changed)
                self._watched.events.features.disconnect(self._changed)
            self._watched = layer
            if layer is not None:
                layer.events.data.connect(self._changed)
                layer.events.features.connect(self._changed)
        self._soon()

    def _changed(self, event: Any = None) -> None:
        self._soon()

    def _soon(self) -> None:
        if not self._due:
            self._due = True
            soon(self, self._show)

    def _show(self) -> None:
        """Write the table anew."""
        self._due = False
        layer = self.layer
        if layer is None:
            self._boxes = None
            return
        if in_hand(layer):
            self._soon()
            return
        up_to_date(layer)
        self._boxes = boxes_of_layer(layer)
        boxes = () if self._boxes is None else self._boxes.boxes
        self._filling = True
        self.table.setRowCount(len(boxes))
        for row, box in enumerate(boxes):
            self._fill_row(row, box)
        self._filling = False
        metrics = self.table.fontMetrics()
        height = metrics.height() + 8
        self.table.verticalHeader().setDefaultSectionSize(height)
        extra = self.table.horizontalHeader().sizeHint().height() + 6
        self.table.setFixedHeight(_ROWS_SHOWN * height + extra)
        for part in (self.go, self.copy):
            part.setEnabled(bool(boxes))
        if self._bring:
            bring_into_view(self.words)
            self._bring = False

    def _fill_row(self, row: int, box: ScanBox) -> None:
        assert self._boxes is not None
        score = "" if box.score is None else f"{box.score:.2f}"
        for column, text in enumerate((box.label, score, self._size(box))):
            item = self.table.item(row, column)
            if item is None:
                item = QTableWidgetItem()
                self.table.setItem(row, column, item)
            item.setText(text)
            if column:
                item.setFlags(item.flags() & ~Qt.ItemFlag.ItemIsEditable)
        tip = f"{box.label}: drawn or corrected by hand" if not score else box.label
        self.table.item(row, 0).setToolTip(tip)

    def _size(self, box: ScanBox) -> str:
        assert self._boxes is not None
        if self._boxes.affine is None:
            sides = np.array(box.high) - np.array(box.low)
            return " x ".join(f"{v:.0f}" for v in sides[::-1][:2]) + " px"
        return " x ".join(f"{mm:.0f}" for mm in box.size_mm(self._boxes.affine)[::-1])

    def _activated(self, row: int) -> None:
        layer, boxes = self.layer, self._boxes
        if layer is None or boxes is None or not 0 <= row < len(boxes.boxes):
            return
        shown = shown_boxes(layer)
        assert shown is not None
        low, high = edges(boxes.boxes[row], shown.grid)
        middle = (np.array(low) + np.array(high)) / 2
        world = np.asarray(layer.data_to_world(middle[-layer.ndim :]), float)
        place = np.concatenate([np.zeros(3 - min(3, len(world))), world])[-3:]
        go_to(self._hub.viewer, place)

    def _renamed(self, item: QTableWidgetItem) -> None:
        layer = self.layer
        if self._filling or layer is None or item.column():
            return
        text = item.text().strip()
        table = layer.features.copy()
        if text and len(table):
            table.loc[table["box"] == item.row() + 1, "label"] = text
            layer.features = table
        self._soon()
