"""The chosen landmark: what both places look like, side by side, and its figures."""

from __future__ import annotations

from typing import Any

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QGridLayout, QLabel, QVBoxLayout, QWidget

from homolog.geometry.affine import Triple
from homolog.geometry.places import place_text
from homolog.gui import rows
from homolog.gui.explore.layers import slice_axis
from homolog.gui.explore.scan import Scan
from homolog.gui.landmarks.drawings import pixmap_of
from homolog.gui.landmarks.patches import patch
from homolog.gui.landmarks.session import Session
from homolog.gui.landmarks.table import MARKS, WORDS, number_text

_SIDE = 128


class DetailBox(QWidget):
    """Inset pictures of A and B at one scale, and a line of text.

    Args:
        session: Asked.
    """

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session
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
        self.words = rows.sentence("Figures of the chosen landmark", lines=5)
        column_ = QVBoxLayout(self)
        column_.setContentsMargins(0, 0, 0, 0)
        column_.addLayout(grid)
        column_.addWidget(self.words)
        session.placing.chosen_changed.connect(self.refresh)
        self.refresh()

    def refresh(self) -> None:
        """Show the chosen landmark, or nothing."""
        control = self._session.control
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
        rows.tell(self.words, text)

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
        layer = self._session.layer_of(scan)
        rows.named(
            label, f"Picture of the place in {letter}",
            f"80 mm around the place in {letter}: {place}",
        )  # fmt: skip
        if scan is None or layer is None or shown is None:
            label.setText("searching ..." if searching else "not found")
            return
        model = self._session.scan_b.model if self._session.scan_b else None
        seen = self._session.viewer if letter == "A" else model
        axis = slice_axis(seen) if seen is not None else 0
        low, high = layer.contrast_limits
        if letter == "B" and self._session.scan_b and self._session.scan_b.layer:
            low, high = self._session.scan_b.layer.contrast_limits
        limits = (float(low), float(high))
        picture = patch(layer.data, scan.grid, shown, limits, axis=axis or 0)
        label.setPixmap(pixmap_of(picture, _SIDE))


def _where(mm: Triple | None) -> str:
    return "not found" if mm is None else place_text(mm)
