"""The Landmarks tab: a place of one scan found in another. Widgets only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar

from qtpy.QtCore import QEvent, Qt, Signal
from qtpy.QtGui import QColor, QHideEvent, QShowEvent
from qtpy.QtWidgets import (
    QAbstractItemView,
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from homolog.geometry.affine import Triple
from homolog.geometry.places import place_text
from homolog.gui.landmarks.cohort import patch
from homolog.gui.landmarks.cohort_box import CohortBox, OwnColour, pixmap_of
from homolog.gui.landmarks.control import (
    COLOURS,
    HINTS,
    MARKS,
    SEARCHING,
    WORDS,
    number_text,
    read_marks,
    write_marks,
)
from homolog.gui.landmarks.control import place_text as cell_text
from homolog.gui.landmarks.pair import LandmarkPair
from homolog.gui.shared import keys, widgets
from homolog.gui.shared.choices import ModelChoice
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.model_row import FeatureRow, HintRow, ModelRow, end_with
from homolog.gui.shared.scan_layers import slice_axis
from homolog.gui.shared.scans import Scan
from homolog.gui.shared.threads import in_background
from homolog.gui.shared.widgets import fold_of
from homolog.landmarks.config import LandmarksConfig
from homolog.scans.points import Landmark
from homolog.words import listed

# The table of landmarks: rename, accept, choose, delete, next uncertain.


TITLES = (
    "", "Name", "Sim.", "Margin", "Cycle\nmm", "A x, y, z mm", "B x, y, z mm", "Why",
)  # fmt: skip
_TIPS = (
    "Ticked: accepted. Number and symbol as in both views",
    "Double-click or F2 to change it",
    "Similarity of both places, -1 to 1",
    "How far the similarity is above the best place further than 20 mm away",
    "Distance between the place in A and where its match leads back to",
    "Place in scan A: x, y, z in mm, LPS",
    "Place in scan B: x, y, z in mm, LPS",
    "Why it is refused or worth a look",
)
NAME = 1
_ROWS_SHOWN = 4
# Columns are made as wide as these many rows need: hundreds would take long.
_ROWS_MEASURED = 30
_ROOM_PX = 8
_PLAIN = Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable


class TableBox(QWidget):
    """Landmarks of the chosen pair.

    Args:
        pair: Asked and told.
    """

    def __init__(self, pair: LandmarkPair) -> None:
        super().__init__()
        self._pair = pair
        self._filling = False
        self._shown: list[tuple[Landmark, str]] = []
        self.title = QLabel("&Landmarks")
        self.table = _empty_table()
        self.table.setItemDelegateForColumn(0, OwnColour(self.table))
        self.table.itemSelectionChanged.connect(self._choose)
        self.table.itemChanged.connect(self._change)
        self.title.setBuddy(self.table)
        self.next = widgets.button(
            "Next uncertain", "Go to the next landmark worth a look (Shift+N)",
            pair.placing.next_uncertain,
        )  # fmt: skip
        self.delete = widgets.button(
            "Delete", "Forget the chosen landmark", self._delete
        )
        self.again = widgets.button(
            "Search again", "Search all landmarks anew; those set by hand stay",
            pair.placing.search_again,
        )  # fmt: skip
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        for widget in (self.title, self.table):
            column.addWidget(widget)
        column.addLayout(widgets.beside(self.next, self.again, self.delete))
        pair.placing.table_changed.connect(self.refresh)
        self.refresh()

    def refresh(self) -> None:
        """Show the landmarks as they are."""
        landmarks = self._pair.control.table
        self.setVisible(len(landmarks) > 0)
        if self.table.state() == QAbstractItemView.State.EditingState:
            return  # a name is being typed
        self._filling = True
        self.table.setRowCount(len(landmarks))
        del self._shown[len(landmarks) :]
        for row, mark in enumerate(landmarks):
            self._refresh_row(row, mark)
            if mark.id == landmarks.chosen and self.table.currentRow() != row:
                self.table.setCurrentCell(row, NAME)
        if landmarks.chosen is None:
            self.table.clearSelection()
        self._fit()
        self._filling = False
        here = landmarks.current is not None
        self.delete.setEnabled(here)
        self.next.setEnabled(bool(landmarks.uncertain()))
        count = len(landmarks.uncertain())
        self.title.setText(
            f"&Landmarks: {len(landmarks)}" + (f", {count} uncertain" if count else "")
        )

    def changeEvent(self, event: QEvent) -> None:
        """Rows grow with the font."""
        super().changeEvent(event)
        if event.type() in (QEvent.Type.FontChange, QEvent.Type.StyleChange):
            self._fit()

    def _refresh_row(self, row: int, mark: Landmark) -> None:
        """Fill a row, if it does not show that already."""
        table = self._pair.control.table
        new = (mark, f"{table.trust(mark)} {mark.id in table.outliers}")
        if row == len(self._shown):
            self._shown.append(new)
        elif self._shown[row] == new:
            return
        self._shown[row] = new
        self._fill(row, mark)

    def _fill(self, row: int, mark: Landmark) -> None:
        table = self._pair.control.table
        trust = table.trust(mark)
        why = mark.reason
        if mark.id in table.outliers:
            why = f"{why}; outlier of the fit" if why else "outlier of the fit"
        if not why:
            why = "" if trust == "sure" else WORDS[trust]
        texts = (
            f"{MARKS[trust]} {mark.id}", mark.name, number_text(mark.similarity),
            number_text(mark.margin, 3), number_text(mark.cycle_mm, 1),
            cell_text(mark.a_mm), cell_text(mark.b_mm), why,
        )  # fmt: skip
        tip = f"{mark.name}: {WORDS[trust]}"
        tip += f"; {why}" if why and why != WORDS[trust] else ""
        for column, text in enumerate(texts):
            item = QTableWidgetItem(text)
            item.setToolTip(tip)
            item.setFlags(_PLAIN)
            if column == 0:
                item.setForeground(QColor(COLOURS[trust]))
                item.setData(Qt.ItemDataRole.UserRole, mark.id)
                if mark.b_mm is not None:
                    item.setFlags(_PLAIN | Qt.ItemFlag.ItemIsUserCheckable)
                item.setCheckState(
                    Qt.CheckState.Checked if mark.accepted else Qt.CheckState.Unchecked
                )
            elif column == NAME:
                item.setFlags(_PLAIN | Qt.ItemFlag.ItemIsEditable)
            self.table.setItem(row, column, item)

    def _fit(self) -> None:
        """As high as a few rows, however many there are: what is below stays."""
        vertical = self.table.verticalHeader()
        one = self.table.fontMetrics().height() + _ROOM_PX
        if vertical is not None and vertical.defaultSectionSize() != one:
            vertical.setMinimumSectionSize(one)
            vertical.setDefaultSectionSize(one)
        height = _ROWS_SHOWN * one
        header = self.table.horizontalHeader()
        bar = self.table.horizontalScrollBar()
        extra = 2 * self.table.frameWidth() + 2
        for part in (header, bar):
            extra += part.sizeHint().height() if part is not None else 0
        self.table.setFixedHeight(height + extra)

    def _choose(self) -> None:
        number = self._number(self.table.currentRow())
        landmarks = self._pair.control.table
        if not self._filling and number is not None and number != landmarks.chosen:
            self._pair.placing.choose(number)

    def _change(self, item: QTableWidgetItem) -> None:
        number = self._number(item.row())
        landmarks = self._pair.control.table
        if self._filling or landmarks.get(number) is None or number is None:
            return
        if item.column() == NAME:
            landmarks.rename(number, item.text())
        elif item.column() == 0:
            landmarks.accept(number, item.checkState() == Qt.CheckState.Checked)
        self._pair.placing.table_edited()
        if number == landmarks.chosen:
            self._pair.placing.chosen_changed.emit()

    def _delete(self) -> None:
        number = self._pair.control.table.chosen
        if number is not None:
            self._pair.placing.delete(number)

    def _number(self, row: int) -> int | None:
        item = self.table.item(row, 0) if row >= 0 else None
        return None if item is None else int(item.data(Qt.ItemDataRole.UserRole))


def _empty_table() -> QTableWidget:
    table = QTableWidget(0, len(TITLES))
    widgets.named(
        table, "Landmarks",
        "Select a row: both views go there. More columns to the right",
    )  # fmt: skip
    table.setHorizontalHeaderLabels(TITLES)
    for column, tip in enumerate(_TIPS):
        item = table.horizontalHeaderItem(column)
        if item is not None:
            item.setToolTip(tip)
    header, vertical = table.horizontalHeader(), table.verticalHeader()
    assert header is not None
    assert vertical is not None
    vertical.hide()
    header.setSectionResizeMode(header.ResizeMode.ResizeToContents)
    header.setResizeContentsPrecision(_ROWS_MEASURED)
    header.setStretchLastSection(True)
    table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
    table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
    table.setEditTriggers(
        QAbstractItemView.EditTrigger.DoubleClicked
        | QAbstractItemView.EditTrigger.EditKeyPressed
    )
    table.setTabKeyNavigation(False)
    table.setWordWrap(False)
    table.setHorizontalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
    return table


# The chosen landmark: what both places look like, side by side, and its figures.


_SIDE = 128


class DetailBox(QWidget):
    """Inset pictures of A and B at one scale, and a line of text.

    Args:
        pair: Asked.
    """

    def __init__(self, pair: LandmarkPair) -> None:
        super().__init__()
        self._pair = pair
        self.pictures = {}
        grid = QGridLayout()
        grid.setContentsMargins(0, 0, 0, 0)
        for column, letter in enumerate("AB"):
            title = QLabel(letter)
            title.setAlignment(Qt.AlignmentFlag.AlignCenter)
            label = QLabel()
            label.setFixedSize(_SIDE, _SIDE)
            label.setAlignment(Qt.AlignmentFlag.AlignCenter)
            label.setWordWrap(True)
            grid.addWidget(title, 0, column, Qt.AlignmentFlag.AlignCenter)
            grid.addWidget(label, 1, column, Qt.AlignmentFlag.AlignCenter)
            self.pictures[letter] = label
        self.words = widgets.sentence("Figures of the chosen landmark", lines=5)
        column_ = QVBoxLayout(self)
        column_.setContentsMargins(0, 0, 0, 0)
        column_.addLayout(grid)
        column_.addWidget(self.words)
        pair.placing.chosen_changed.connect(self.refresh)
        self.refresh()

    def refresh(self) -> None:
        """Show the chosen landmark, or nothing."""
        control = self._pair.control
        mark = control.table.current
        self.setVisible(mark is not None)
        if mark is None:
            return
        a, b = control.scan_a, control.scan_b
        self._draw("A", a, control.shown_in_a(mark), _where(mark.a_mm))
        there = control.shown_in_b(mark)
        trust = control.table.trust(mark)
        searching = trust == "searching"
        self._draw("B", b, there, _where(mark.b_mm), searching=searching)
        text = f"{MARKS[trust]} {mark.id} {mark.name}: {WORDS[trust]}"
        text += f"; {mark.reason}." if mark.reason and not searching else "."
        if mark.b_mm is not None:
            text += (
                f" Similarity {number_text(mark.similarity)}, "
                f"margin {number_text(mark.margin, 3)}, "
                f"cycle error {number_text(mark.cycle_mm, 1)} mm."
            )
            text += f" A at {place_text(mark.a_mm)}; B at {place_text(mark.b_mm)}."
        widgets.tell(self.words, text)

    def _draw(
        self,
        letter: str,
        scan: Scan | None,
        shown: Any,
        place: str,
        *,
        searching: bool = False,
    ) -> None:
        label = self.pictures[letter]
        layer = self._pair.layer_of(scan)
        widgets.named(
            label, f"Picture of the place in {letter}",
            f"80 mm around the place in {letter}: {place}",
        )  # fmt: skip
        if scan is None or layer is None or shown is None:
            label.setText("searching ..." if searching else "not found")
            return
        model = self._pair.scan_b.model if self._pair.scan_b else None
        seen = self._pair.viewer if letter == "A" else model
        axis = slice_axis(seen) if seen is not None else 0
        low, high = layer.contrast_limits
        if letter == "B" and self._pair.scan_b and self._pair.scan_b.layer:
            low, high = self._pair.scan_b.layer.contrast_limits
        limits = (float(low), float(high))
        picture = patch(layer.data, scan.grid, shown, limits, axis=axis or 0)
        label.setPixmap(pixmap_of(picture, _SIDE))


def _where(mm: Triple | None) -> str:
    return "not found" if mm is None else place_text(mm)


# Import and export of landmarks, and the fit of a map to them.


_KINDS = "Landmarks (*.csv *.tsv *.json *.mrk.json *.fcsv)"


class FilesBox(QWidget):
    """Buttons for files; reading and writing happen on a thread.

    Signals:
        told: A sentence about what was done.

    Args:
        pair: Whose landmarks.
    """

    told = Signal(str)

    def __init__(self, pair: LandmarkPair) -> None:
        super().__init__()
        self._pair = pair
        self.bring = widgets.button(
            "Import...",
            "Points of scan A (.csv, .json) or Slicer's .mrk.json; they are searched "
            "in B. A table of landmarks comes back as it was",
            self._ask_import,
        )
        self.export = widgets.button(
            "Export...",
            "Save the landmarks as .csv, .json or Slicer's .mrk.json; no file is "
            "replaced",
            self._ask_export,
        )
        self.axes = QComboBox()
        self.axes.addItem("LPS", "LPS")
        self.axes.addItem("RAS", "RAS")
        widgets.named(
            self.axes, "Coordinates of exported files",
            "LPS as in DICOM and ITK, RAS as in NIfTI; the file states it",
        )  # fmt: skip
        label = QLabel("in")
        label.setBuddy(self.axes)
        line = QHBoxLayout(self)
        line.setContentsMargins(0, 0, 0, 0)
        line.addWidget(self.bring, 1)
        line.addWidget(self.export, 1)
        line.addWidget(label)
        line.addWidget(self.axes)
        pair.placing.table_changed.connect(self._enable)
        pair.scans_changed.connect(self._enable)
        self._enable()

    def import_from(self, path: Path) -> None:
        """Add the landmarks of a file; points without a place in B are searched."""
        pair = self._pair
        layer = pair.control.scan_a
        affine = None if layer is None else layer.to_true @ layer.grid

        def done(marks: list[Landmark]) -> None:
            table = pair.control.table
            added = table.restore(marks)
            told = f"{len(added)} landmarks from {path.name} (kept in LPS mm)"
            wanted = [
                m for m, was in zip(added, marks, strict=True)
                if m.b_mm is None and was.reason == SEARCHING
            ]  # fmt: skip
            if wanted and pair.control.is_ready:
                told += f"; {len(wanted)} are searched in B"
                pair.searching.search(wanted)
            self.told.emit(told + ".")
            pair.placing.choose(added[0].id if added else table.chosen)

        in_background(
            read_marks, path, affine, owner=self, done=done, failed=self._not_done
        )

    def export_to(self, path: Path) -> None:
        """Write the landmarks; a name that is taken gets ``_v2``."""
        control = self._pair.control
        scan, axes = control.scan_b, str(self.axes.currentData())
        affine = None if scan is None else scan.to_true @ scan.grid
        marks = list(control.table)

        def done(files: list[Path]) -> None:
            names = listed(files)
            self.told.emit(f"Saved {len(marks)} landmarks in {names} ({axes}, mm).")

        in_background(
            write_marks, marks, path, axes, affine,
            owner=self, done=done, failed=self._not_done,
        )  # fmt: skip

    def _not_done(self, error: Exception) -> None:
        self._pair.hub.say(f"That did not work: {error}", "error")

    def _ask_import(self) -> None:
        def take(files: list[Path]) -> None:
            for file in files:
                self.import_from(file)

        widgets.ask_files(self, "Import landmarks", _KINDS, take)

    def _ask_export(self) -> None:
        kinds = "Table (*.csv);;JSON (*.json);;3D Slicer (*.mrk.json)"
        widgets.ask_new_file(
            self, "Export landmarks", "landmarks.csv", kinds, self.export_to
        )

    def _enable(self) -> None:
        control = self._pair.control
        self.bring.setEnabled(control.scan_a is not None)
        self.export.setEnabled(len(control.table) > 0)


class FitBox(QWidget):
    """Which map of A to B the accepted landmarks agree on.

    Args:
        pair: Whose landmarks.
    """

    def __init__(self, pair: LandmarkPair) -> None:
        super().__init__()
        self._pair = pair
        self.rigid = widgets.button(
            "Fit rigid", "Turn and shift A onto B by the accepted landmarks",
            lambda: self._fit("rigid"),
        )  # fmt: skip
        self.affine = widgets.button(
            "Fit affine", "Any linear map of A onto B; needs more landmarks than rigid",
            lambda: self._fit("affine"),
        )  # fmt: skip
        self.words = widgets.sentence("Result of the fit", lines=3)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(widgets.beside(self.rigid, self.affine))
        column.addWidget(self.words)
        self._fitted: Any = None
        pair.placing.table_changed.connect(self._refresh)
        self._refresh()

    def _fit(self, kind: str) -> None:
        control = self._pair.control
        text = control.fit(kind)
        self._fitted = _places(control.table.pairs())
        widgets.tell(self.words, text)
        self._pair.placing.table_edited()

    def _refresh(self) -> None:
        """A fit of other landmarks is told no more."""
        control = self._pair.control
        self.setVisible(len(control.table) > 0)
        if self._fitted is not None and self._fitted != _places(control.table.pairs()):
            self._fitted = None
            control.table.outliers.clear()
            widgets.tell(self.words, "Landmarks changed since the fit; fit again.")


def _places(marks: list[Landmark]) -> list[Any]:
    return [(m.id, m.a_mm, m.b_mm) for m in marks]


# Limits by which a match is believed, folded away; they judge without searching.


# Name in the configuration, label, digits, step.
_ROWS = (
    ("least_similarity", "Least &similarity", 2, 0.05),
    ("least_margin", "Least &margin", 3, 0.005),
    ("largest_cycle_mm", "Largest &cycle (mm)", 1, 1.0),
    ("largest_stray_mm", "Farthest from the &rest (mm)", 0, 5.0),
)
_TITLE = "Limits"
# A cycle without a limit: no scan is that long.
_MOST = 9999.0


class LimitsBox(QWidget):
    """Numbers and a way back to their defaults.

    Args:
        pair: Whose landmarks are judged.
    """

    def __init__(self, pair: LandmarkPair) -> None:
        super().__init__()
        self._pair = pair
        self.numbers: dict[str, QDoubleSpinBox] = {}
        inside = QWidget()
        grid = QGridLayout(inside)
        grid.setContentsMargins(0, 2, 0, 2)
        known = {f.name: f for f in fields(LandmarksConfig)}
        for line, (name, text, digits, step) in enumerate(_ROWS):
            facts, number = known[name].metadata, QDoubleSpinBox()
            number.setDecimals(digits)
            number.setSingleStep(step)
            most = facts["max"]
            number.setRange(facts["min"], _MOST if most is None else most)
            number.setKeyboardTracking(False)  # judged once the number is complete
            words = str(facts["help"])
            hint = f"{words[:1].upper()}{words[1:]}. Default {known[name].default:g}"
            widgets.named(number, text.replace("&", ""), hint)
            label = QLabel(text)
            label.setBuddy(number)
            label.setToolTip(hint)
            grid.addWidget(label, line, 0)
            grid.addWidget(number, line, 1)
            self.numbers[name] = number
        self.reset = widgets.button(
            "Reset limits", "Back to the defaults",
            lambda: self._pair.set_limits(LandmarksConfig()),
        )  # fmt: skip
        self.words = widgets.sentence("What the limits accept", lines=2)
        column = QVBoxLayout()
        column.setContentsMargins(0, 0, 0, 0)
        box = QWidget()
        box.setLayout(column)
        column.addWidget(inside)
        column.addWidget(self.words)
        column.addWidget(self.reset)
        self.fold = fold_of(_TITLE)
        self.fold.addWidget(box)
        whole = QVBoxLayout(self)
        whole.setContentsMargins(0, 0, 0, 0)
        whole.addWidget(self.fold)
        self._show()
        for number in self.numbers.values():
            number.valueChanged.connect(self._changed)
        pair.limits_changed.connect(self._show)
        pair.placing.table_changed.connect(self._tell)
        self._tell()

    def _changed(self) -> None:
        values = {name: number.value() for name, number in self.numbers.items()}
        self._pair.set_limits(replace(self._pair.control.limits, **values))

    def _show(self) -> None:
        """The limits as they are, without telling them back."""
        limits = self._pair.control.limits
        for name, number in self.numbers.items():
            number.blockSignals(True)
            number.setValue(getattr(limits, name))
            number.blockSignals(False)
        is_default = limits == LandmarksConfig()
        self.reset.setEnabled(not is_default)
        # A closed fold must not hide that matches are judged in an unusual way.
        self.fold.setText(_TITLE if is_default else f"{_TITLE} (changed)")
        self._tell()

    def _tell(self) -> None:
        marks = list(self._pair.control.table)
        accepted = sum(m.accepted and m.b_mm is not None for m in marks)
        text = f"{accepted} of {len(marks)} landmarks accepted; " if marks else ""
        widgets.tell(self.words, f"{text}what was set by hand stays.")


# One side of the pair: which scan, how far its features are, and what can be done.


class SideRow(FeatureRow):
    """Shows a scan of the pair and emits what was chosen or pressed.

    Signals:
        chosen: Key of a scan.

    Args:
        letter: ``A`` or ``B``.
        extra: More buttons behind the list.
    """

    chosen = Signal(str)

    def __init__(self, letter: str, *extra: QPushButton) -> None:
        super().__init__()
        self._letter = letter
        self.scan = widgets.Choice()
        where = "in napari's viewer" if letter == "A" else "in the second view"
        widgets.named(self.scan, f"Scan {letter}", f"The scan {where}")
        self.scan.activated.connect(
            lambda index: self.chosen.emit(str(self.scan.itemData(index)))
        )
        label = QLabel(f"Scan &{letter}")
        label.setBuddy(self.scan)
        first = QHBoxLayout()
        first.addWidget(label)
        first.addWidget(self.scan, 1)
        for button in extra:
            first.addWidget(button)
        self.column.insertLayout(0, first)
        self.show_scan(None, can_compute=False)

    @property
    def key(self) -> str:
        """Of the chosen scan; "" for none."""
        return str(self.scan.currentData() or "")

    def show_choices(self, scans: Sequence[Scan], key: str) -> None:
        """List the scans that can be chosen."""
        entries: list[tuple[str, Any]] = [(s.ref.name, s.key) for s in scans]
        widgets.fill(self.scan, entries, key)
        self.scan.setEnabled(bool(entries))

    def show_scan(self, scan: Scan | None, *, can_compute: bool) -> None:
        """Show the state of the chosen scan.

        Args:
            scan: The scan; None for none.
            can_compute: Whether there is an encoder and the engine is installed.
        """
        name = f"scan {self._letter}"
        if scan is not None:
            name = f"{name}, {scan.ref.name}"
        self.show_features(scan, can_compute=can_compute, name=name)


PREPARING = "Getting both scans ready for searching; a few seconds ..."
_SCANS = (
    "Scans (*.nii *.nii.gz *.mha *.mhd *.nrrd *.nhdr *.dcm *.hdr *.img);;All files (*)"
)


class LandmarksPanel(QWidget):
    """Scan A and B, their landmarks, and what can be done with these."""

    title: ClassVar[str] = "Landmarks"

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self.hub = hub
        self.pair = LandmarkPair(hub, self)
        self.models = ModelRow(
            hub, "Pretrained or fine-tuned: its features tell what is the same place"
        )
        self.hint = HintRow(hub, (*HINTS, PREPARING))
        self.swap = widgets.button("⇅", "A and B change places", self.pair.swap)
        self.swap.setAccessibleName("Swap A and B")
        self.file = widgets.button("File...", "Open a file as scan B", self._ask_file)
        self.file.setAccessibleName("Open a file as scan B")
        for button in (self.swap, self.file):
            button.setMaximumWidth(
                button.fontMetrics().horizontalAdvance("File...") + 24
            )
        self.a, self.b = SideRow("A", self.swap), SideRow("B", self.file)
        self._make_tools()
        self.table = TableBox(self.pair)
        self.limits = LimitsBox(self.pair)
        self.detail = DetailBox(self.pair)
        self.fit = FitBox(self.pair)
        self.files = FilesBox(self.pair)
        self.cohort = CohortBox(self.pair)
        self.said = widgets.sentence("What was done", lines=2)
        # What comes and goes keeps its room, and what grows stands last.
        widgets.keep_room(self.second, self.detail)
        column = QVBoxLayout(self)
        for part in (self.models, self.hint, self.a, self.b):
            column.addWidget(part)
        column.addLayout(widgets.beside(self.pick, self.second))
        column.addLayout(widgets.beside(self.follow, self.points))
        for part in (self.limits, self.files, self.said):
            column.addWidget(part)
        for part in (self.table, self.fit, self.detail, self.cohort):
            column.addWidget(part)
        column.addStretch(1)
        self._connect()
        self.shown()

    # What the dock calls

    def visit(self, what: dict[str, Any]) -> None:
        """Another tab sends the user here: ``{"encoder": path}``."""
        self.models.want(what)
        self.shown()

    def shown(self) -> None:
        """Read the models and the viewer's scans anew."""
        self.models.read()
        self.cohort.read_stores()
        self.pair.sync()

    def tear_down(self) -> None:
        """The dock goes: the second viewer goes with it."""
        self.cohort.stop()
        self.pair.end()

    def showEvent(self, event: QShowEvent) -> None:
        """Listen to the viewer while the tab is in front."""
        super().showEvent(event)
        self.pair.placing.listening.begin()
        self.pair.sync()
        if self.pair.view is not None:
            self.pair.open_view()
        self._refresh_hint()

    def hideEvent(self, event: QHideEvent) -> None:
        """Another tab: the mouse belongs to it, and the second view steps aside."""
        super().hideEvent(event)
        self.pick.setChecked(False)
        self.pair.placing.left()
        self.pair.placing.listening.end()
        if self.pair.view is not None and not event.spontaneous():
            self.pair.view.hide()

    # Parts

    def _make_tools(self) -> None:
        placing = self.pair.placing
        self.pick = widgets.button(
            "Pick in A", "While on, a click in scan A picks a place; dragging still "
            "moves the picture. Shift+click always picks", lambda: None,
        )  # fmt: skip
        self.pick.setCheckable(True)
        self.pick.toggled.connect(self._set_pick)
        self.second = widgets.button(
            "Show scan B", "Dock the second view beside the first",
            self.pair.open_view,
        )  # fmt: skip
        self.follow = QCheckBox("B follows mouse")
        widgets.named(
            self.follow, "B follows the mouse of A",
            "B shows the slice where the place under the mouse is found; the status "
            "bar tells how similar it is",
        )  # fmt: skip
        self.follow.toggled.connect(self._set_follow)
        self.points = QCheckBox("Show points")
        self.points.setChecked(True)
        widgets.named(
            self.points, "Show landmarks as points",
            "● sure, ◆ unsure, ✚ refused, ■ set by hand; equal numbers belong together",
        )  # fmt: skip
        self.points.clicked.connect(self._set_points)
        placing.table_changed.connect(
            lambda: self.points.setChecked(placing.show_points)
        )

    def _connect(self) -> None:
        pair = self.pair
        self.models.chosen.connect(self._chosen)
        self.hint.compute.connect(self._compute_both)
        self.hint.file.connect(self._ask_file)
        pair.scans_changed.connect(self._refresh)
        pair.scan_changed.connect(lambda _: self._refresh_sides())
        pair.hint_changed.connect(self._refresh_hint)
        for told in (pair.told, self.files.told, self.cohort.told):
            told.connect(lambda text: widgets.tell(self.said, text))
        self.hub.changed.connect(self._heard)
        for row, choose in ((self.a, pair.choose_a), (self.b, pair.choose_b)):
            row.chosen.connect(choose)
            row.compute.connect(lambda row=row: pair.work.compute([row.key]))
            row.cancel.connect(lambda row=row: pair.work.cancel(row.key))
        placing = pair.placing
        for key, words, function in (
            ("Shift-M", "find the place under the mouse in scan B", placing.pick_here),
            ("Shift-N", "go to the next uncertain landmark", placing.next_uncertain),
            ("Shift-G", "go to the chosen landmark in both views", self._go),
            ("Escape", "stop picking; choose no landmark", self._forget),
        ):
            keys.add(self.hub, key, words, function, while_shown=self)

        end_with(self, pair.end)
        self.hub.closing.connect(pair.end)

    # What the user does

    def _compute_both(self) -> None:
        self.pair.work.compute(self.pair.control.to_compute())

    def _ask_file(self) -> None:
        widgets.ask_files(
            self, "Scan B", _SCANS, lambda files: self.pair.open_b(files[0])
        )

    def _set_pick(self, on: bool) -> None:
        self.pair.placing.picking = on
        if on:
            self.pair.open_view()

    def _set_follow(self, on: bool) -> None:
        self.pair.control.follow = on
        if on:
            self.pair.open_view()
        else:
            self.pair.placing.listening.set_words("")

    def _set_points(self, on: bool) -> None:
        self.pair.placing.show_points = on
        self.pair.placing.refresh_marks()

    def _go(self) -> None:
        self.pair.placing.choose(self.pair.control.table.chosen)

    def _forget(self) -> None:
        self.pick.setChecked(False)
        self.pair.placing.choose(None)

    # What is shown

    def _refresh(self) -> None:
        control = self.pair.control
        self.a.show_choices(control.a_choices(), control.a)
        self.b.show_choices(control.b_choices(), control.b)
        self._refresh_sides()
        self._refresh_hint()

    def _refresh_sides(self) -> None:
        control = self.pair.control
        able = control.book.encoder is not None and not control.book.engine_missing
        self.a.show_scan(control.scan_a, can_compute=able)
        self.b.show_scan(control.scan_b, can_compute=able)
        self.swap.setEnabled(bool(control.b) and control.b not in control.own_b)

    def _refresh_hint(self) -> None:
        control, pair = self.pair.control, self.pair
        hint = control.hint(self.hub.viewer.dims.ndisplay)
        preparing = control.is_ready and pair.searching.is_preparing
        self.hint.show_hint(hint, PREPARING if preparing else "")
        for widget in (self.pick, self.follow):
            widget.setEnabled(control.is_ready)
        self.second.setVisible(pair.view is None)
        self.second.setEnabled(control.scan_b is not None)

    # Models

    def _heard(self, what: str) -> None:
        if what in ("runs", "models"):
            self.shown()
        elif what == "features" and not self.pair.work.busy:
            self.pair.look_again()

    def _chosen(self, model: ModelChoice | None) -> None:
        self.pair.choose_encoder(model)
        self._refresh()
