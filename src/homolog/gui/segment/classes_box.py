"""The classes of a Labels layer, and the classes of a whole scan, as tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from qtpy.QtCore import Qt, Signal
from qtpy.QtGui import QColor, QIcon, QPixmap
from qtpy.QtWidgets import (
    QAbstractItemView,
    QApplication,
    QHeaderView,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from homolog.gui.files.writer import save_layer
from homolog.gui.segment.control import (
    FEW,
    METRICS,
    ClassRow,
    best_slices,
    chance_rows,
    class_rows,
    csv_text,
    few_colours,
    score_text,
    short_text,
    shown_colours,
    slice_heading,
    slice_measure,
    slices_sentence,
    table_text,
)
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.layers import COLOURS, label_names
from homolog.gui.shared.scan_layers import go_to
from homolog.gui.shared.threads import in_background
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
from homolog.words import volume_text

_CHANCES_SHOWN = 8
_NOT_A_DIAGNOSIS = "A model's estimate, to be checked on the scan; no diagnosis."


class ChancesBox(QWidget):
    """What a classifier said of one scan; hidden until it did."""

    def __init__(self, hub: Hub, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._hub = hub
        self._layer: Any = None
        self.name, self.told = "", {}  # type: str, Mapping[str, Any]
        self.headline = sentence("What the scan is told to show")
        font = self.headline.font()
        font.setBold(True)
        self.headline.setFont(font)
        self.table = _table("Classes of the scan", "Probability of each class")
        self.table.setHorizontalHeaderLabels(["Class", "Probability"])
        self.caution = sentence("How to take this")
        self.where = sentence("Slices that look positive")
        self.slices = _table(
            "Slices", "Numbers as on the slider; double-click one to go there"
        )
        self.slices.cellActivated.connect(lambda row, _: self._go_to_row(row))
        self.go = button("Go to slice", "Show the selected slice", self.go_to)
        self.copy = button(
            "Copy table", "Copy the table for a spreadsheet", self.copy_table
        )
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        for widget in (self.headline, self.table, self.caution, self.where):
            column.addWidget(widget)
        column.addWidget(self.slices)
        column.addLayout(beside(self.go, self.copy))
        self.hide()

    def show_answer(
        self, name: str, told: Mapping[str, Any], layer: Any = None
    ) -> None:
        """Show what was told of a scan.

        Args:
            name: Of the scan.
            told: Its entry of the ``predict`` job's result.
            layer: The scan's layer, where it is open.
        """
        self.name, self.told, self._layer = name, told, layer
        rows = chance_rows(told)
        tell(self.headline, f"{name}: {short_text(told)}")
        self.table.setRowCount(len(rows))
        for number, row in enumerate(rows):
            prefix = "type: " if row.kind == "type" else ""
            mark = "✓ " if row.told else ""
            _fill_row(self.table, number, f"{mark}{prefix}{row.name}", row.text,
                      bold=row.told)  # fmt: skip
        _fit(self.table, len(rows))
        tell(self.caution, _NOT_A_DIAGNOSIS)
        self._show_slices()
        self.show()
        bring_into_view(self.caution)

    def forget(self) -> None:
        """Another model or scan: what was told no longer stands."""
        self.name, self.told, self._layer = "", {}, None
        self.hide()

    def go_to(self) -> None:
        """Show the selected slice, or the first of the table."""
        self._go_to_row(max(self.slices.currentRow(), 0))

    def copy_table(self) -> None:
        """Put the table on the clipboard."""
        QApplication.clipboard().setText(table_text(self.name, self.told))

    def _show_slices(self) -> None:
        measure, best = slice_measure(self.told), best_slices(self.told)
        tell(self.where, slices_sentence(self.told))
        self.slices.setVisible(bool(best))
        self.go.setVisible(bool(best))
        self.go.setEnabled(self._layer is not None)
        if measure is None or not best:
            return
        self.slices.setHorizontalHeaderLabels(["Slice", slice_heading(measure)])
        self.slices.setRowCount(len(best))
        for row, (number, value) in enumerate(best):
            _fill_row(self.slices, row, str(number), f"{value:.0%}".replace("%", " %"))
        _fit(self.slices, len(best))

    def _go_to_row(self, row: int) -> None:
        layer, best = self._layer, best_slices(self.told)
        layers = self._hub.viewer.layers
        if layer is None or layer not in layers or not row < len(best):
            return
        place = [0.0] * layer.ndim
        place[-3] = float(best[row][0])
        dims = self._hub.viewer.dims
        dims.ndisplay = 2
        dims.order = tuple(range(dims.ndim))  # slices along z
        dims.set_point(dims.ndim - 3, float(layer.data_to_world(place)[-3]))


def _table(name: str, hint: str) -> QTableWidget:
    table = QTableWidget(0, 2)
    named(table, name, hint)
    table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
    table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
    table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
    table.verticalHeader().hide()
    header = table.horizontalHeader()
    header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
    header.setSectionResizeMode(1, QHeaderView.ResizeMode.ResizeToContents)
    return table


def _fill_row(
    table: QTableWidget, row: int, text: str, value: str, *, bold: bool = False
) -> None:
    for column, words in enumerate((text, value)):
        item = QTableWidgetItem(words)
        item.setToolTip(words)
        if column:
            item.setTextAlignment(
                Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
            )
        font = item.font()
        font.setBold(bold)
        item.setFont(font)
        table.setItem(row, column, item)


def _fit(table: QTableWidget, rows: int) -> None:
    """As high as its rows, up to a limit."""
    shown = min(max(rows, 1), _CHANCES_SHOWN)
    height = table.verticalHeader().defaultSectionSize()
    frame = table.horizontalHeader().sizeHint().height() + 2 * table.frameWidth()
    table.setFixedHeight(shown * height + frame + 2)


_VALUE = Qt.ItemDataRole.UserRole
_KINDS = (
    "NIfTI (*.nii.gz *.nii);;3D Slicer segmentation (*.seg.nrrd);;"
    "DICOM segmentation (*.seg.dcm);;NRRD (*.nrrd);;MetaImage (*.mha)"
)
_ROWS_SHOWN = 6  # whatever there is: what stands below stays


class ClassesBox(QWidget):
    """Table of the classes of one Labels layer of the viewer.

    Signals:
        chosen: Another layer is shown, or none, or other layers came or went.
    """

    chosen = Signal()

    def __init__(self, hub: Hub, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._hub = hub
        self._asked = 0
        self._bring = False  # into view, once counted
        self._hidden: dict[str, set[int]] = {}
        self.rows: list[ClassRow] = []
        self.scores: Mapping[int, Mapping[str, float | None]] = {}
        self.choice = Choice()
        self.choice.currentIndexChanged.connect(lambda: self._show_layer())
        self.table = QTableWidget(0, 2)
        named(
            self.table, "Classes",
            "Untick a class to hide it; double-click to go to it",
        )  # fmt: skip
        self.table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.verticalHeader().hide()
        self.table.itemChanged.connect(self._ticked)
        self.table.cellActivated.connect(lambda row, _: self._go_to_row(row))
        self.words = sentence("What became of the labels", lines=2)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        hint = "Labels layer whose classes are listed"
        column.addLayout(labelled("Labels layer", self.choice, hint))
        column.addWidget(self.table)
        self.go = button("Go to class", "Show the middle of the class", self.go_to)
        again = button(
            "Update volumes", "Count again, after painting", self._show_layer
        )
        self.save = button(
            "Save...",
            "Save on the scan's own grid: NIfTI, or with names and colours "
            "for 3D Slicer and as DICOM",
            self.ask_save,
        )
        self.copy = button("Copy as CSV", "Copy the table for a spreadsheet",
                           self.copy_csv)  # fmt: skip
        column.addLayout(beside(self.go, again))
        column.addLayout(beside(self.save, self.copy))
        column.addWidget(self.words)
        layers = hub.viewer.layers
        layers.events.inserted.connect(self._layers_changed)
        layers.events.removed.connect(self._layers_changed)
        self.read_layers()

    @property
    def layer(self) -> Any | None:
        """The chosen Labels layer."""
        return self.layer_of(self.choice.currentData())

    def layer_of(self, key: Any) -> Any | None:
        """The Labels layer with that ``unique_id`` (as text), if it still lives."""
        return next((x for x in self.label_layers() if _key(x) == key), None)

    def label_layers(self) -> list[Any]:
        """All Labels layers of the viewer, newest first."""
        found = [x for x in self._hub.viewer.layers if type(x).__name__ == "Labels"]
        return found[::-1]

    def read_layers(self) -> None:
        """Fill the list of layers."""
        before = self.choice.currentData()
        layers = self.label_layers()
        fill(self.choice, [(x.name, _key(x)) for x in layers], before)
        self.setVisible(bool(layers))
        if self.choice.currentData() != before or not layers:
            self._show_layer()
        else:
            self.chosen.emit()  # other layers came or went

    def adopt(self, layer: Any) -> None:
        """Show a new result: colours for its classes, and its numbers."""
        names = label_names(layer)
        values = [v for v in names if v > 0]
        if 0 < len(values) <= FEW:
            _paint(layer, few_colours(values), set())
        self.read_layers()
        self.choice.blockSignals(True)
        self.choice.setCurrentIndex(self.choice.findData(_key(layer)))
        self.choice.blockSignals(False)
        self._bring = True
        self._show_layer()

    def show_scores(self, scores: Mapping[int, Mapping[str, float | None]]) -> None:
        """Add or remove the columns of a comparison."""
        self.scores = scores
        self._fill_table()

    def go_to(self) -> None:
        """Show the class of the selected row."""
        row = self.table.currentRow()
        if row < 0 and self.rows:
            row = 0
        self._go_to_row(row)

    def ask_save(self) -> None:
        """Let the user name the file."""
        layer = self.layer
        if layer is None:
            return
        name = f"{layer.name.replace(' ', '_')}.nii.gz"
        ask_new_file(self, "Save labels", name, _KINDS, lambda p: self.save_to(p))

    def save_to(self, path: Path) -> None:
        """Save in the background; the file is read back before it counts as saved."""
        layer = self.layer
        if layer is None:
            return
        if not path.suffix:
            path = path.with_name(f"{path.name}.nii.gz")
        tell(self.words, "Saving...")
        in_background(
            save_layer, layer, path, list(self._hub.viewer.layers), owner=self,
            done=lambda files: tell(self.words, f"✓ Saved as {files[0]}"),
            failed=lambda error: tell(self.words, f"⚠ Not saved: {error}"),
        )  # fmt: skip

    def copy_csv(self) -> None:
        """The table on the clipboard."""
        QApplication.clipboard().setText(csv_text(self.rows, self.scores))
        tell(self.words, "The table was copied.")

    def _layers_changed(self, event: Any = None) -> None:
        self.read_layers()

    def _show_layer(self) -> None:
        """Count the classes of the chosen layer in the background."""
        layer = self.layer
        self.scores = {}
        self.chosen.emit()
        if layer is None or getattr(layer, "multiscale", False):
            self.rows = []
            self._fill_table()
            return
        self._asked += 1
        number = self._asked
        in_background(
            class_rows, np.asarray(layer.data), label_names(layer), layer.scale[-3:],
            owner=self, done=lambda rows: self._counted(number, rows),
            failed=lambda error: tell(self.words, f"⚠ Not counted: {error}"),
        )  # fmt: skip

    def _counted(self, number: int, rows: list[ClassRow]) -> None:
        if number != self._asked:
            return  # another layer was chosen meanwhile
        self.rows = rows
        self._fill_table()
        if self._bring:
            bring_into_view(self.save)
            self._bring = False

    def _fill_table(self) -> None:
        table, layer = self.table, self.layer
        titles = ["Class", "Volume (ml)", *(METRICS.values() if self.scores else ())]
        table.blockSignals(True)
        table.setColumnCount(len(titles))
        table.setHorizontalHeaderLabels(titles)
        table.setRowCount(len(self.rows))
        hidden = self._hidden.get(_key(layer), set())
        for number, row in enumerate(self.rows):
            first = QTableWidgetItem(row.name)
            first.setData(_VALUE, row.value)
            first.setFlags(first.flags() | Qt.ItemFlag.ItemIsUserCheckable)
            first.setCheckState(
                Qt.CheckState.Unchecked
                if row.value in hidden
                else Qt.CheckState.Checked
            )
            first.setIcon(_swatch(_colour(layer, row.value)))
            first.setToolTip(f"{row.name} (label {row.value}): {row.voxels:,} voxels")
            table.setItem(number, 0, first)
            volume = volume_text(row.volume_ml).removesuffix(" ml")
            cells = [volume if row.voxels else "absent"]
            own = self.scores.get(row.value, {})
            if self.scores:
                cells += [score_text(metric, own.get(metric)) for metric in METRICS]
            for place, text in enumerate(cells, start=1):
                cell = QTableWidgetItem(text)
                right = Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
                cell.setTextAlignment(right)
                table.setItem(number, place, cell)
        table.blockSignals(False)
        header = table.horizontalHeader()
        mode = QHeaderView.ResizeMode
        header.setSectionResizeMode(mode.ResizeToContents)
        if not self.scores:
            header.setSectionResizeMode(0, mode.Stretch)
        row_height = table.fontMetrics().height() + 8
        table.verticalHeader().setDefaultSectionSize(row_height)
        extra = header.sizeHint().height() + 2 * table.frameWidth() + 2
        bar = table.horizontalScrollBar().sizeHint().height()
        table.setFixedHeight(_ROWS_SHOWN * row_height + extra + bar)
        for part in (self.go, self.copy):
            part.setEnabled(bool(self.rows))

    def _ticked(self, item: Any) -> None:
        layer = self.layer
        if layer is None or item.column() != 0:
            return
        hidden = self._hidden.setdefault(_key(layer), set())
        value = int(item.data(_VALUE))
        if item.checkState() == Qt.CheckState.Checked:
            hidden.discard(value)
        else:
            hidden.add(value)
        colours = {r.value: _kept_colour(layer, r.value) for r in self.rows}
        _paint(layer, colours, hidden)

    def _go_to_row(self, row: int) -> None:
        layer = self.layer
        if layer is None or not 0 <= row < len(self.rows):
            return
        place = self.rows[row].place
        if place is None:
            tell(self.words, f"{self.rows[row].name} does not occur in this scan.")
            return
        tell(self.words, "")
        index = np.asarray(place[-layer.ndim :], float)
        world = np.asarray(layer.data_to_world(index), float)
        go_to(self._hub.viewer, np.concatenate([np.zeros(3 - len(world)), world])[-3:])


def _key(layer: Any) -> str:
    """What tells one layer from another, also in a combo box."""
    return "" if layer is None else str(layer.unique_id)


def _paint(layer: Any, colours: Mapping[int, Any], hidden: set[int]) -> None:
    """Set the colours of a layer; remembers them, since hidden ones turn clear."""
    from napari.utils import DirectLabelColormap

    kept = layer.metadata.setdefault(COLOURS, {})
    kept.update({v: tuple(float(c) for c in colour) for v, colour in colours.items()})
    layer.colormap = DirectLabelColormap(color_dict=shown_colours(kept, hidden))


def _kept_colour(layer: Any, value: int) -> Any:
    kept = layer.metadata.get(COLOURS, {}).get(value)
    return kept if kept is not None else _colour(layer, value)


def _colour(layer: Any, value: int) -> Any:
    if layer is None:
        return (0.5, 0.5, 0.5, 1.0)
    kept = layer.metadata.get(COLOURS, {}).get(value)
    found = kept if kept is not None else layer.get_color(value)
    return (0.5, 0.5, 0.5, 1.0) if found is None else found


def _swatch(colour: Any) -> QIcon:
    picture = QPixmap(12, 12)
    picture.fill(QColor.fromRgbF(*(float(c) for c in colour[:3])))
    return QIcon(picture)
