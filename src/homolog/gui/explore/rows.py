"""One open scan in the Explore panel: its features, its heat, and what can be done."""

from __future__ import annotations

from qtpy.QtCore import Signal
from qtpy.QtWidgets import (
    QCheckBox,
    QHBoxLayout,
    QProgressBar,
    QPushButton,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from homolog.gui import rows
from homolog.gui.explore.scan import Scan

# State -> (sign, what the button does, its text); the sign is never the only cue.
_SIGNS = {
    "looking": "…", "none": "○", "waiting": "…", "computing": "…", "ready": "✓",
    "failed": "⚠",
}  # fmt: skip
_BUTTONS = {
    "none": ("compute", "Compute features"),
    "failed": ("compute", "Try again"),
    "waiting": ("cancel", "Cancel"),
    "computing": ("cancel", "Cancel"),
}


class ScanRow(QWidget):
    """A row that shows what it is told and emits what was pressed.

    Signals:
        heat_wanted: The box was ticked or cleared.
        compute: Features are wanted.
        cancel: No longer.
        look_at: Bring this scan to the front.
    """

    heat_wanted = Signal(bool)
    compute = Signal()
    cancel = Signal()
    look_at = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._doing = ""
        self.heat = QCheckBox()
        self.heat.setToolTip("Show the similarity map over this scan")
        self.heat.setSizePolicy(
            QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred
        )
        self.heat.clicked.connect(self.heat_wanted.emit)
        self.front = QPushButton("Show")
        self.front.setToolTip(
            "Bring this scan to the front and to its middle; scans that lie over it "
            "are hidden"
        )
        self.front.clicked.connect(lambda: self.look_at.emit())
        self.state = rows.Sentence(2)
        self.button = rows.OneOf("Compute features", "Try again", "Cancel")
        self.button.clicked.connect(self._press)
        self.bar = QProgressBar()
        self.bar.setRange(0, 100)
        self.bar.setTextVisible(False)
        self.bar.setMaximumHeight(6)
        rows.keep_room(self.bar)
        first, second = QHBoxLayout(), QHBoxLayout()
        first.addWidget(self.heat, 1)
        first.addWidget(self.front)
        second.addWidget(self.state, 1)
        second.addWidget(self.button)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 2, 0, 4)
        column.setSpacing(2)
        column.addLayout(first)
        column.addLayout(second)
        column.addWidget(self.bar)

    def show_scan(self, scan: Scan, *, can_compute: bool) -> None:
        """Show a scan's state.

        Args:
            scan: The scan.
            can_compute: Whether there is an encoder and the engine is installed.
        """
        name = scan.ref.name
        self.heat.setText(name)
        self.heat.setAccessibleName(f"Similarity map over {name}")
        self.heat.setToolTip(f"Show the similarity map over {name}")
        self.heat.setEnabled(scan.state == "ready")
        self.heat.setChecked(scan.state == "ready" and scan.shown)
        self.front.setAccessibleName(f"Show {name}")
        self.state.setText(f"{_SIGNS[scan.state]} {scan.line()}")
        self.state.setAccessibleName(f"Features of {name}: {scan.line()}")
        self.state.setToolTip(scan.line())
        doing, text = _BUTTONS.get(scan.state, ("", ""))
        self._doing = doing
        self.button.setVisible(bool(doing))
        self.button.setText(text)
        self.button.setAccessibleName(f"{text}, {name}")
        self.button.setToolTip(
            "Computed once by a worker and kept; you can go on working"
            if doing == "compute"
            else "Compute no more; what was kept before stays"
        )
        self.button.setEnabled(doing != "compute" or can_compute)
        self.bar.setVisible(scan.state in ("computing", "waiting"))
        self.bar.setAccessibleName(f"Progress of {name}")
        self.bar.setToolTip(scan.line())
        self.bar.setValue(round(scan.share * 100))

    def _press(self) -> None:
        if self._doing == "compute":
            self.compute.emit()
        elif self._doing == "cancel":
            self.button.setEnabled(False)
            self.state.setText("… stopping")
            self.cancel.emit()
