"""One side of the pair: which scan, how far its features are, and what can be done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import (
    QComboBox,
    QHBoxLayout,
    QLabel,
    QProgressBar,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from homolog.gui import rows
from homolog.gui.explore.scan import Scan

_SIGNS = {
    "looking": "…", "none": "○", "waiting": "…", "computing": "…", "ready": "✓",
    "failed": "⚠",
}  # fmt: skip


class SideRow(QWidget):
    """Shows what it is told and emits what was chosen or pressed.

    Signals:
        chosen: Key of a scan.
        compute: Features are wanted.
        cancel: No longer.

    Args:
        letter: ``A`` or ``B``.
        extra: More buttons behind the list.
    """

    chosen = Signal(str)
    compute = Signal()
    cancel = Signal()

    def __init__(self, letter: str, *extra: QPushButton) -> None:
        super().__init__()
        self._letter, self._doing = letter, ""
        self.scan = rows.narrow(QComboBox())
        where = "in napari's viewer" if letter == "A" else "in the second view"
        rows.named(self.scan, f"Scan {letter}", f"The scan {where}")
        self.scan.activated.connect(self._choose)
        label = QLabel(f"Scan &{letter}")
        label.setBuddy(self.scan)
        self.state = rows.Sentence(2)
        self.button = rows.OneOf("Compute features", "Try again", "Cancel")
        self.button.clicked.connect(self._press)
        self.bar = QProgressBar()
        self.bar.setRange(0, 100)
        self.bar.setTextVisible(False)
        self.bar.setMaximumHeight(6)
        rows.keep_room(self.bar)
        first, second = QHBoxLayout(), QHBoxLayout()
        first.addWidget(label)
        first.addWidget(self.scan, 1)
        for button in extra:
            first.addWidget(button)
        second.addWidget(self.state, 1)
        second.addWidget(self.button)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(2)
        column.addLayout(first)
        column.addLayout(second)
        column.addWidget(self.bar)
        self.show_scan(None, can_compute=False)

    def show_choices(self, scans: Sequence[Scan], key: str) -> None:
        """List the scans that can be chosen."""
        entries: list[tuple[str, Any]] = [(s.ref.name, s.key) for s in scans]
        rows.fill(self.scan, entries, key)
        self.scan.setEnabled(bool(entries))

    def show_scan(self, scan: Scan | None, *, can_compute: bool) -> None:
        """Show the state of the chosen scan.

        Args:
            scan: The scan; None for none.
            can_compute: Whether there is an encoder and the engine is installed.
        """
        state = "" if scan is None else scan.state
        line = "" if scan is None else scan.line()
        named = "no scan" if scan is None else scan.ref.name
        self.state.setText(f"{_SIGNS[state]} {line}" if state else "")
        rows.named(self.state, f"Features of scan {self._letter}: {line}", line)
        self.state.setVisible(bool(state))
        able = {"none": "compute", "failed": "compute"}
        self._doing = able.get(
            state, "cancel" if state in ("waiting", "computing") else ""
        )
        self.button.setVisible(bool(self._doing))
        text = "Cancel" if self._doing == "cancel" else "Compute features"
        self.button.setText("Try again" if state == "failed" else text)
        hint = "Computed once by a worker and kept; you can go on working"
        if self._doing == "cancel":
            hint = "Compute no more; what was kept before stays"
        rows.named(self.button, f"{self.button.text()}, {named}", hint)
        self.button.setEnabled(self._doing != "compute" or can_compute)
        self.bar.setVisible(self._doing == "cancel")
        rows.named(self.bar, f"Progress of {named}", line or "Progress")
        self.bar.setValue(round(scan.share * 100) if scan is not None else 0)

    def _choose(self, index: int) -> None:
        self.chosen.emit(str(self.scan.itemData(index)))

    def _press(self) -> None:
        if self._doing == "compute":
            self.compute.emit()
        elif self._doing == "cancel":
            self.button.setEnabled(False)
            self.state.setText("… stopping")
            self.cancel.emit()
