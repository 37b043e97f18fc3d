"""Import and export of landmarks, and the fit of a map to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QComboBox, QHBoxLayout, QLabel, QVBoxLayout, QWidget

from homolog.data.landmarks import Landmark
from homolog.gui import rows
from homolog.gui.landmarks.exchange import read_marks, write_marks
from homolog.gui.landmarks.session import Session
from homolog.gui.landmarks.table import SEARCHING
from homolog.gui.threads import in_background

_KINDS = "Landmarks (*.csv *.json *.mrk.json)"


class FilesBox(QWidget):
    """Buttons for files; reading and writing happen on a thread.

    Signals:
        told: A sentence about what was done.

    Args:
        session: Whose landmarks.
    """

    told = Signal(str)

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session
        self.bring = rows.button(
            "Import...",
            "Points of scan A (.csv, .json) or Slicer's .mrk.json; they are searched "
            "in B. A table of landmarks comes back as it was",
            self._ask_import,
        )
        self.export = rows.button(
            "Export...",
            "Save the landmarks as .csv, .json or Slicer's .mrk.json; no file is "
            "replaced",
            self._ask_export,
        )
        self.axes = QComboBox()
        self.axes.addItem("LPS", "LPS")
        self.axes.addItem("RAS", "RAS")
        rows.named(
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
        session.placing.table_changed.connect(self._enable)
        session.scans_changed.connect(self._enable)
        self._enable()

    def import_from(self, path: Path) -> None:
        """Add the landmarks of a file; points without a place in B are searched."""
        session = self._session
        layer = session.control.scan_a
        affine = None if layer is None else layer.to_true @ layer.grid

        def done(marks: list[Landmark]) -> None:
            table = session.control.table
            added = table.restore(marks)
            told = f"{len(added)} landmarks from {path.name} (kept in LPS mm)"
            wanted = [
                m for m, was in zip(added, marks, strict=True)
                if m.b_mm is None and was.reason == SEARCHING
            ]  # fmt: skip
            if wanted and session.control.is_ready:
                told += f"; {len(wanted)} are searched in B"
                session.searching.search(wanted)
            self.told.emit(told + ".")
            session.placing.choose(added[0].id if added else table.chosen)

        in_background(
            read_marks, path, affine, owner=self, done=done, failed=self._not_done
        )

    def export_to(self, path: Path) -> None:
        """Write the landmarks; a name that is taken gets ``_v2``."""
        control = self._session.control
        scan, axes = control.scan_b, str(self.axes.currentData())
        affine = None if scan is None else scan.to_true @ scan.grid
        marks = list(control.table)

        def done(files: list[Path]) -> None:
            names = " and ".join(str(f) for f in files)
            self.told.emit(f"Saved {len(marks)} landmarks in {names} ({axes}, mm).")

        in_background(
            write_marks, marks, path, axes, affine,
            owner=self, done=done, failed=self._not_done,
        )  # fmt: skip

    def _not_done(self, error: Exception) -> None:
        self._session.hub.say(f"That did not work: {error}", "error")

    def _ask_import(self) -> None:
        def take(files: list[Path]) -> None:
            for file in files:
                self.import_from(file)

        rows.ask_files(self, "Import landmarks", _KINDS, take)

    def _ask_export(self) -> None:
        kinds = "Table (*.csv);;JSON (*.json);;3D Slicer (*.mrk.json)"
        rows.ask_new_file(
            self, "Export landmarks", "landmarks.csv", kinds, self.export_to
        )

    def _enable(self) -> None:
        control = self._session.control
        self.bring.setEnabled(control.scan_a is not None)
        self.export.setEnabled(len(control.table) > 0)


class FitBox(QWidget):
    """Which map of A to B the accepted landmarks agree on.

    Args:
        session: Whose landmarks.
    """

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session
        self.rigid = rows.button(
            "Fit rigid", "Turn and shift A onto B by the accepted landmarks",
            lambda: self._fit("rigid"),
        )  # fmt: skip
        self.affine = rows.button(
            "Fit affine", "Any linear map of A onto B; needs more landmarks than rigid",
            lambda: self._fit("affine"),
        )  # fmt: skip
        self.words = rows.sentence("Result of the fit", lines=3)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(rows.beside(self.rigid, self.affine))
        column.addWidget(self.words)
        self._fitted: Any = None
        session.placing.table_changed.connect(self._refresh)
        self._refresh()

    def _fit(self, kind: str) -> None:
        control = self._session.control
        text = control.fit(kind)
        self._fitted = _places(control.table.pairs())
        rows.tell(self.words, text)
        self._session.placing.table_edited()

    def _refresh(self) -> None:
        """A fit of other landmarks is told no more."""
        control = self._session.control
        self.setVisible(len(control.table) > 0)
        if self._fitted is not None and self._fitted != _places(control.table.pairs()):
            self._fitted = None
            control.table.outliers.clear()
            rows.tell(self.words, "Landmarks changed since the fit; fit again.")


def _places(marks: list[Landmark]) -> list[Any]:
    return [(m.id, m.a_mm, m.b_mm) for m in marks]
