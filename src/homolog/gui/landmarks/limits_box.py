"""Limits by which a match is believed, folded away; they judge without searching."""

from __future__ import annotations

from dataclasses import fields, replace

from qtpy.QtWidgets import QDoubleSpinBox, QGridLayout, QLabel, QVBoxLayout, QWidget

from homolog.gui import rows
from homolog.gui.folds import fold_of
from homolog.gui.landmarks.session import Session
from homolog.tasks._landmark_rules import LandmarksConfig

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
        session: Whose landmarks are judged.
    """

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session
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
            rows.named(number, text.replace("&", ""), hint)
            label = QLabel(text)
            label.setBuddy(number)
            label.setToolTip(hint)
            grid.addWidget(label, line, 0)
            grid.addWidget(number, line, 1)
            self.numbers[name] = number
        self.reset = rows.button(
            "Reset limits", "Back to the defaults",
            lambda: self._session.set_limits(LandmarksConfig()),
        )  # fmt: skip
        self.words = rows.sentence("What the limits accept", lines=2)
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
        session.limits_changed.connect(self._show)
        session.placing.table_changed.connect(self._tell)
        self._tell()

    def _changed(self) -> None:
        values = {name: number.value() for name, number in self.numbers.items()}
        self._session.set_limits(replace(self._session.control.limits, **values))

    def _show(self) -> None:
        """The limits as they are, without telling them back."""
        limits = self._session.control.limits
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
        marks = list(self._session.control.table)
        accepted = sum(m.accepted and m.b_mm is not None for m in marks)
        text = f"{accepted} of {len(marks)} landmarks accepted; " if marks else ""
        rows.tell(self.words, f"{text}what was set by hand stays.")
