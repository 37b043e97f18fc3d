"""How long to train: three presets, or one's own number of steps or minutes."""

from __future__ import annotations

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QComboBox, QDoubleSpinBox, QHBoxLayout, QWidget

from homolog.gui.learn.control import LONG_FACTOR, QUICK_MINUTES, Length
from homolog.gui.rows import fill, named, narrow


class LengthBox(QWidget):
    """A combo box with the presets and, for one's own, a number.

    Signals:
        changed: Another length was chosen.
    """

    changed = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.choice = narrow(QComboBox())
        named(
            self.choice,
            "Length",
            "How long to train; stopped at any time, what was learnt is kept",
        )
        self.number = QDoubleSpinBox()
        named(self.number, "Number of steps", "How many steps to train")
        self.number.setDecimals(0)
        self.number.setMinimumWidth(90)
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self.choice, 1)
        row.addWidget(self.number)
        self._numbers = {"steps": 1000.0, "minutes": 30.0}
        self.set_recipe_steps(1000)
        self.choice.currentIndexChanged.connect(lambda: self._choose())
        self.number.valueChanged.connect(self._note)
        self._choose()

    @property
    def length(self) -> Length:
        """What is chosen."""
        return Length(str(self.choice.currentData()), float(self.number.value()))

    def choose(self, preset: str, number: float) -> None:
        """Choose a length."""
        if preset in self._numbers and number > 0:
            self._numbers[preset] = number
        self.choice.setCurrentIndex(max(0, self.choice.findData(preset)))
        self._choose()

    def set_recipe_steps(self, steps: int) -> None:
        """Tell the steps of the recipe in the entries."""
        chosen = self.choice.currentData() or "standard"
        entries = [
            (f"Quick look: {QUICK_MINUTES} min", "quick"),
            (f"Standard: {steps:,} steps", "standard"),
            (f"Long: {steps * LONG_FACTOR:,} steps", "long"),
            ("Own steps", "steps"),
            ("Own minutes", "minutes"),
        ]
        fill(self.choice, entries, chosen)

    def _choose(self) -> None:
        preset = str(self.choice.currentData())
        own = preset in self._numbers
        self.number.setVisible(own)
        if own:
            number = self._numbers[preset]
            self.number.blockSignals(True)
            self.number.setRange(1, 10_000_000 if preset == "steps" else 100_000)
            self.number.setSuffix(" steps" if preset == "steps" else " min")
            self.number.setValue(number)
            self.number.blockSignals(False)
            named(self.number, f"Number of {preset}", f"How many {preset} to train")
        self.changed.emit()

    def _note(self, number: float) -> None:
        self._numbers[str(self.choice.currentData())] = float(number)
        self.changed.emit()
