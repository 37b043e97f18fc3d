"""One open scan in the Label tab: whether it takes part, its paint, its features."""

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
from homolog.gui.label.scene import Desk
from homolog.gui.label.words import count_line

_BUTTONS = {
    "none": "Compute features", "failed": "Try again", "waiting": "Cancel",
    "computing": "Cancel",
}  # fmt: skip


class ScanRow(QWidget):
    """Shows what it is told and emits what was pressed.

    Signals:
        part: The box was ticked or cleared.
        make: A layer to paint on is wanted, or the one there, to be painted on.
        use: The selected layer is to be painted on.
        compute: Features are wanted.
        cancel: No longer.
    """

    part = Signal(bool)
    make = Signal()
    use = Signal()
    compute = Signal()
    cancel = Signal()

    def __init__(self) -> None:
        super().__init__()
        self._doing = ""
        self.tick = QCheckBox()
        # a long file name is cut, not the panel widened
        self.tick.setSizePolicy(
            QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred
        )
        self.tick.clicked.connect(self.part.emit)
        self.paint = QPushButton()
        self.paint.clicked.connect(lambda: self.make.emit())
        self.take = QPushButton()
        self.take.clicked.connect(lambda: self.use.emit())
        self.state = rows.Sentence(2)
        self.features = rows.OneOf("Compute features", "Try again", "Cancel")
        self.features.clicked.connect(self._press)
        self.bar = QProgressBar()
        self.bar.setRange(0, 100)
        self.bar.setTextVisible(False)
        self.bar.setMaximumHeight(6)
        second = QHBoxLayout()
        # What comes and goes keeps its place: a stroke or a model moves no button.
        rows.keep_room(self.bar, self.take)
        second.addWidget(self.state, 1)
        second.addWidget(self.features)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 2, 0, 4)
        column.setSpacing(2)
        column.addWidget(self.tick)
        column.addLayout(second)
        column.addWidget(self.bar)
        column.addLayout(rows.beside(self.paint, self.take))

    def show_scan(
        self, scan: Scan, desk: Desk, *, usable: str, encoder: bool, can_compute: bool
    ) -> None:
        """Show a scan's state.

        Args:
            scan: The scan.
            desk: What lies on it.
            usable: Name of the selected layer, where it can be painted on.
            encoder: Whether features of an encoder are wanted.
            can_compute: Whether the engine is installed.
        """
        name = scan.ref.name
        self.tick.setText(name)
        rows.named(
            self.tick, f"{name} takes part",
            f"Learn from the paint of {name}, and predict it",
        )  # fmt: skip
        self.tick.setChecked(desk.takes_part)
        self.tick.setEnabled(desk.painted is not None)
        painted = "" if desk.painted is None else count_line(desk.voxels)
        told = [t for t in (painted, scan.line() if encoder else "") if t]
        line = "; ".join(told)
        self.state.setText(f"{line[:1].upper()}{line[1:]}")
        rows.named(self.state, f"State of {name}: {line}", line or "Not painted on yet")
        self.state.setVisible(bool(line))
        self._doing = _BUTTONS.get(scan.state, "") if encoder else ""
        self.features.setText(self._doing or "Compute features")
        hint = "Computed once by a worker and kept; you can go on working"
        if self._doing == "Cancel":
            hint = "Compute no more; what was kept before stays"
        rows.named(self.features, f"{self.features.text()}, {name}", hint)
        self.features.setVisible(bool(self._doing))
        self.features.setEnabled(self._doing == "Cancel" or can_compute)
        self.bar.setVisible(self._doing == "Cancel")
        rows.named(self.bar, f"Progress of {name}", scan.line())
        self.bar.setValue(round(scan.share * 100))
        is_new = desk.painted is None
        self.paint.setText("Create label layer" if is_new else "Paint")
        rows.named(
            self.paint, f"{self.paint.text()}, {name}",
            "Paint voxels of this scan: a brush of 3 mm that paints in depth too",
        )  # fmt: skip
        self.take.setText("Use selected layer")
        rows.named(
            self.take, f"Paint on the selected layer, {name}",
            f"Learn from what {usable} holds already, and paint on it",
        )  # fmt: skip
        self.take.setVisible(bool(usable) and is_new)

    def _press(self) -> None:
        if self._doing == "Cancel":
            self.features.setEnabled(False)
            self.state.setText("Stopping ...")
            self.cancel.emit()
        elif self._doing:
            self.compute.emit()
