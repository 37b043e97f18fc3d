"""The two toolboxes of the Explore panel: under the mouse, and what is lit."""

from __future__ import annotations

from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QCheckBox,
    QLabel,
    QPushButton,
    QVBoxLayout,
    QWidget,
)
from superqt import QLabeledDoubleRangeSlider

from homolog.gui import rows
from homolog.gui.explore.products import Products
from homolog.gui.explore.session import Explorer


class MouseBox(QWidget):
    """Whether heat follows the mouse, what is under it, and the button that pins it."""

    def __init__(self, explorer: Explorer, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._explorer = explorer
        self.follow = QCheckBox("Similarity under the mouse")
        self.follow.setChecked(True)
        self.follow.setAccessibleName("Similarity under the mouse")
        self.follow.setToolTip("Off: the pinned map stays while the mouse moves")
        self.follow.toggled.connect(self._set_follow)
        # It changes with the mouse, beside buttons that must not.
        self.value = rows.Sentence(2)
        rows.named(
            self.value, "Similarity under the mouse, value",
            "Similarity under the mouse, value",
        )  # fmt: skip
        self.points = QCheckBox("Show points")
        self.points.setChecked(True)
        self.points.setAccessibleName("Show points")
        self.points.setToolTip("Show pinned places and their matches as points")
        self.points.clicked.connect(self._set_points)
        self.pin = QPushButton("Pin here (Shift+F)")
        self.pin.setAccessibleName("Pin here")
        self.pin.setToolTip(
            "Keep the place the mouse was at last; Shift+click does it on the scan"
        )
        self.pin.clicked.connect(lambda: self._explorer.pin_here())
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        for widget in (self.follow, self.value, self.pin, self.points):
            column.addWidget(widget)
        explorer.told.connect(self.value.setText)
        explorer.pins_changed.connect(self._show_points)

    def _set_follow(self, on: bool) -> None:
        self._explorer.control.hover = on

    def _set_points(self, on: bool) -> None:
        self._explorer.show_points = on
        self._explorer.refresh_marks()

    def _show_points(self) -> None:
        self.points.setChecked(self._explorer.show_points)


class RangeBox(QWidget):
    """Which similarities are lit, and what can be made of them."""

    def __init__(
        self, explorer: Explorer, products: Products, parent: QWidget | None = None
    ) -> None:
        super().__init__(parent)
        self._explorer = explorer
        self.range = QLabeledDoubleRangeSlider(Qt.Orientation.Horizontal)
        self.range.setRange(-1.0, 1.0)
        self.range.setSingleStep(0.01)
        self.range.setDecimals(2)
        self.range.setAccessibleName("Lit similarity, from and to")
        self.range.setToolTip(
            "Similarities in this range are lit; labels are made of what is lit"
        )
        self.range.valueChanged.connect(self._set_range)
        label = QLabel("&Lit similarity (cosine, -1 to 1)")
        label.setBuddy(self.range)
        self.labels = QPushButton("Make labels from this")
        self.labels.setAccessibleName("Make labels from this")
        self.labels.setToolTip(
            "A label layer of what is lit, on each shown scan's own grid"
        )
        self.labels.clicked.connect(products.make_labels)
        self.colours = QPushButton("Colour by features")
        self.colours.setAccessibleName("Colour by features")
        self.colours.setToolTip(
            "The three main directions of the features as red, green and blue, for all "
            "scans that have features together"
        )
        self.colours.clicked.connect(products.colour)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        for widget in (label, self.range, self.labels, self.colours):
            column.addWidget(widget)
        products.busy.connect(lambda busy: self.colours.setEnabled(not busy))

    def refresh(self) -> None:
        """Show the range of the control."""
        control = self._explorer.control
        if tuple(self.range.value()) != (control.low, control.high):
            self.range.blockSignals(True)
            self.range.setValue((control.low, control.high))
            self.range.blockSignals(False)

    def _set_range(self, values: tuple[float, ...]) -> None:
        self._explorer.set_range(float(values[0]), float(values[-1]))
