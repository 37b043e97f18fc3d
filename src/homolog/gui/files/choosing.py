"""Widgets that open scans: a file dialog, and which series of a DICOM folder."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from napari.qt import get_current_stylesheet
from qtpy.QtCore import QObject, Qt, QTimer, Signal
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

from homolog.gui.files import opening
from homolog.gui.files.scan_layer import notes_to_tell, why_not
from homolog.gui.files.sources import Source, series_name, sources_of
from homolog.gui.shared import preferences
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.layers import LayerData, notes_of
from homolog.gui.shared.notices import tell_once
from homolog.gui.shared.threads import in_background
from homolog.index.tree import SeriesInfo
from homolog.words import lengths_text

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


# Opening scans without freezing the window: read on a thread, added when ready.


class ScanOpener(QObject):
    """Opens files and DICOM folders one after the other.

    Signals:
        working: What is being read, "" when all is done.
        opened: Path and the new layer.
        failed: Path and one sentence.
        crowded: A folder of more scans than anybody opens at once.
    """

    working = Signal(str)
    opened = Signal(object, object)
    failed = Signal(object, str)
    crowded = Signal(object)

    def __init__(self, hub: Hub, parent: QObject) -> None:
        super().__init__(parent)
        self.hub = hub
        self._waiting: deque[tuple[Path, str]] = deque()
        self._busy = False

    def open(self, paths: Iterable[str | Path]) -> None:
        """Open files (pictures too) and DICOM folders; returns at once."""
        found = [Path(p).absolute() for p in paths]
        if found:
            self.working.emit(f"Looking at {_said(found)} ...")
            in_background(
                sources_of, found, owner=self, done=self._take, failed=self._lost
            )

    def make(self, function: Callable[[], list[LayerData]], what: str) -> None:
        """Add layers that a function makes on a thread, such as sample data."""
        self.working.emit(f"Making {what} ...")

        def done(layers: list[LayerData]) -> None:
            for layer in layers:
                self._add(Path(what), layer)

        in_background(function, owner=self, done=done, failed=self._lost)

    def _take(self, sources: list[Source]) -> None:
        for source in sources:
            if source.crowd:
                self.crowded.emit(source.path)
            elif source.trouble:
                self._fail(source.path, source.trouble)
            elif len(source.series) > 1:
                chosen = ask(list(source.series), self._window())
                if chosen is not None:
                    self._waiting.append(
                        (chosen.path, series_name(chosen, source.path))
                    )
            else:
                if source.warning:
                    self.hub.say(source.warning)
                self._waiting.append((source.path, source.name))
        self._next()

    def _next(self) -> None:
        if self._busy:
            return
        if not self._waiting:
            self.working.emit("")
            return
        path, name = self._waiting.popleft()
        self._busy = True
        self.working.emit(f"Reading {name or path.name} ...")

        def done(layer: LayerData) -> None:
            self._add(path, layer)

        def failed(error: Exception) -> None:
            self._busy = False
            self._fail(path, why_not(path, error))
            self._next()

        in_background(
            opening.read_layer, path, name, owner=self, done=done, failed=failed
        )

    def _add(self, path: Path, layer: LayerData) -> None:
        self._busy = False
        try:
            for new in opening.add_to(self.hub.viewer, layer):
                self.opened.emit(path, new)
        except Exception as error:  # noqa: BLE001 - the other files still open
            self._fail(path, why_not(path, error))
        else:
            for sentence in notes_to_tell(layer):
                tell_once(sentence)
        self._next()

    def _window(self) -> Any:
        """The widget that questions stand above."""
        parent = self.parent()
        return parent.window() if hasattr(parent, "window") else None

    def _fail(self, path: Path, sentence: str) -> None:
        self.hub.say(sentence, "warning")
        self.failed.emit(path, sentence)

    def _lost(self, error: Exception) -> None:
        self.hub.say(f"The files cannot be looked at: {error}", "warning")
        self.working.emit("")


class NewScans(QObject):
    """Brings a scan into view that was just opened, by whatever way.

    Args:
        hub: Of the window.
        parent: Owns it.
    """

    def __init__(self, hub: Hub, parent: QObject) -> None:
        super().__init__(parent)
        self._hub, self._newest = hub, ""
        self._later = QTimer(self)  # its labels and other channels follow at once
        self._later.setSingleShot(True)
        self._later.setInterval(_SETTLE_MS)
        self._later.timeout.connect(self._look)
        if hub.viewer is not None:
            hub.viewer.layers.events.inserted.connect(self._inserted)

    def end(self) -> None:
        """Let go of the viewer."""
        if self._hub.viewer is not None:
            self._hub.viewer.layers.events.inserted.disconnect(self._inserted)

    def _inserted(self, event: Any) -> None:
        notes = notes_of(event.value)
        if notes.get("source"):
            self._newest = "" if notes.get("derived") else str(event.value.unique_id)
            self._later.start()

    def _look(self) -> None:
        for layer in self._hub.viewer.layers:
            if str(layer.unique_id) == self._newest:
                opening.look_at(self._hub.viewer, layer)
        self._newest = ""


_SETTLE_MS = 200


def _said(paths: list[Path]) -> str:
    return paths[0].name if len(paths) == 1 else f"{len(paths)} files"
