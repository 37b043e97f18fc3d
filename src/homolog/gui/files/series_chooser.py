"""Which series of a DICOM folder to open: a short question, names of people hidden."""

from __future__ import annotations

from typing import Any

from napari.qt import get_current_stylesheet
from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QAbstractItemView,
    QApplication,
    QCheckBox,
    QDialog,
    QDialogButtonBox,
    QHeaderView,
    QLabel,
    QMainWindow,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from homolog.data.series_list import SeriesInfo
from homolog.geometry.places import lengths_text
from homolog.gui import preferences

COLUMNS = (
    "Modality",
    "Description",
    "Slices",
    "Size (pixels)",
    "Spacing",
    "Remark",
)
HIDDEN = "(hidden)"


def ask(series: list[SeriesInfo], parent: QWidget | None = None) -> SeriesInfo | None:
    """Ask which series to open; None when the user wants none.

    Args:
        series: From ``list_series``, the best first.
        parent: The question stands above it; the main window if None.
    """
    dialog = SeriesChooser(series, parent or _main_window())
    accepted = dialog.exec()
    chosen = dialog.chosen() if accepted else None
    dialog.deleteLater()
    return chosen


def _main_window() -> QWidget | None:
    windows = QApplication.topLevelWidgets()
    shown = [w for w in windows if isinstance(w, QMainWindow) and w.isVisible()]
    return shown[0] if shown else None


class SeriesChooser(QDialog):
    """A table of series; the largest is chosen at first."""

    def __init__(self, series: list[SeriesInfo], parent: Any = None) -> None:
        super().__init__(parent)
        self.series = series
        self.setWindowTitle("Choose a series")
        if parent is None:
            self.setStyleSheet(get_current_stylesheet())
        layout = QVBoxLayout(self)
        count = len(series)
        usable = sum(not s.trouble for s in series)
        text = (
            f"{count} series in this folder, {usable} of them usable. Open which one?"
        )
        label = QLabel(text, self)
        self.table = self._table()
        label.setBuddy(self.table)
        hide = bool(preferences.get("viewing", "hide_patient_text", True))
        self.show_text = QCheckBox("Show descriptions (may name a person)", self)
        self.show_text.setToolTip(
            "Texts typed at the scanner; they may hold a person's name or number"
        )
        self.show_text.setAccessibleName("Show descriptions")
        self.show_text.setChecked(not hide)
        self.show_text.toggled.connect(self._fill_descriptions)
        self.buttons = QDialogButtonBox(
            QDialogButtonBox.StandardButton.Open
            | QDialogButtonBox.StandardButton.Cancel,
            self,
        )
        self.buttons.accepted.connect(self.accept)
        self.buttons.rejected.connect(self.reject)
        for widget in (label, self.table, self.show_text, self.buttons):
            layout.addWidget(widget)
        self._fill_descriptions()
        self.table.itemSelectionChanged.connect(self._allow)
        self.table.selectRow(0)
        self.resize(720, 320)

    def chosen(self) -> SeriesInfo | None:
        """The series of the selected row."""
        row = self.table.currentRow()
        return self.series[row] if 0 <= row < len(self.series) else None

    def _table(self) -> QTableWidget:
        table = QTableWidget(len(self.series), len(COLUMNS), self)
        table.setHorizontalHeaderLabels(list(COLUMNS))
        table.setAccessibleName("Series")
        table.setToolTip("Double-click opens a series")
        table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        table.verticalHeader().setVisible(False)
        header = table.horizontalHeader()
        header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        header.setStretchLastSection(True)
        for row, one in enumerate(self.series):
            for column, text in enumerate(row_texts(one)):
                item = QTableWidgetItem(text)
                if one.trouble:
                    item.setFlags(item.flags() & ~Qt.ItemFlag.ItemIsEnabled)
                item.setToolTip(text)
                table.setItem(row, column, item)
        table.cellDoubleClicked.connect(self._open_row)
        return table

    def _open_row(self, row: int, _: int) -> None:
        if not self.series[row].trouble:
            self.accept()

    def _fill_descriptions(self) -> None:
        for row, one in enumerate(self.series):
            text = one.description if self.show_text.isChecked() else HIDDEN
            self.table.item(row, 1).setText(text)
            self.table.item(row, 1).setToolTip(text)

    def _allow(self) -> None:
        one = self.chosen()
        button = self.buttons.button(QDialogButtonBox.StandardButton.Open)
        button.setEnabled(one is not None and not one.trouble)


def row_texts(series: SeriesInfo) -> tuple[str, ...]:
    """Texts of one row, the description hidden."""
    d, h, w = series.shape
    spacing = "unknown"
    if series.spacing_mm is not None:
        spacing = lengths_text(series.spacing_mm)
    remark = f"\N{HEAVY MULTIPLICATION X} {series.trouble}" if series.trouble else ""
    if not remark and series.remarks:
        remark = f"\N{WARNING SIGN} {series.remarks[0]}"
    return series.modality, HIDDEN, str(d), f"{w} x {h}", spacing, remark
