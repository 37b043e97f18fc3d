"""Training by itself, what came of it, where to paint next, undo and before."""

from __future__ import annotations

from typing import Any

from qtpy.QtWidgets import QCheckBox, QVBoxLayout, QWidget

from homolog.gui import keys, rows
from homolog.gui.label.learning import Fitted
from homolog.gui.label.places import Places
from homolog.gui.label.session import LabelSession
from homolog.gui.label.words import score_line, state_line, warning_lines


class ResultBox(QWidget):
    """Shows a session's rounds, and acts on the predictions."""

    def __init__(self, session: LabelSession, places: Places, panel: QWidget) -> None:
        """Make the box.

        Args:
            session: Whose rounds are shown.
            places: Acts on the predictions.
            panel: The tab; the keys work while it is in front.
        """
        super().__init__()
        self._session, self._places = session, places
        self._trainer = session.trainer
        self.auto = QCheckBox("Predict after each stroke")
        rows.named(
            self.auto, "Predict after each stroke",
            "0.8 s after the last stroke the model learns anew and predicts: the "
            "visible slice first, then the volume",
        )  # fmt: skip
        self.auto.setChecked(self._trainer.auto)
        self.auto.toggled.connect(self._set_auto)
        self.train = rows.button(
            "Predict now (⇧T)", "Learn from the paint and predict (Shift+T)",
            self._trainer.now,
        )  # fmt: skip
        self.state = rows.sentence("State of the prediction", lines=2)
        self.warnings = rows.sentence("What is wrong with the paint", lines=2)
        self.score = rows.sentence("Left-out score", lines=3)
        self.next = rows.button(
            "Where to click next (⇧N)",
            "Go to the most uncertain place in the body and mark it (Shift+N)",
            places.next,
        )  # fmt: skip
        self.undo = rows.button(
            "Undo prediction", "Bring back the prediction before; the paint stays",
            places.undo,
        )  # fmt: skip
        self.before = rows.button(
            "Show before", "While pressed in, the prediction before the last one is "
            "shown", lambda: places.show_before(self.before.isChecked()),
        )  # fmt: skip
        self.before.setCheckable(True)
        self.told = rows.sentence("What was done", lines=2)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.auto)
        for part in (self.train, self.state, self.next):
            column.addWidget(part)
        column.addLayout(rows.beside(self.undo, self.before))
        for part in (self.told, self.warnings, self.score):
            column.addWidget(part)
        self._trainer.changed.connect(self.refresh)
        self._trainer.fitted.connect(self._fitted)
        self._trainer.scored.connect(self._scored)
        places.changed.connect(self.refresh)
        places.told.connect(self.tell)
        session.scans_changed.connect(self.refresh)
        hub = session.hub
        keys.add(
            hub, "Shift-T", "learn from the paint and predict", self._trainer.now,
            while_shown=panel,
        )  # fmt: skip
        keys.add(
            hub, "Shift-N", "go where paint helps most", places.next, while_shown=panel
        )
        self.refresh()

    def tell(self, text: str) -> None:
        """A sentence about what was done, or nothing."""
        rows.tell(self.told, text)

    def refresh(self) -> None:
        """Show state and timing; enable what can be done."""
        trainer, levels = self._trainer, self._places.history.levels
        line = state_line(trainer.state, trainer.problem, trainer.timing.words())
        rows.tell(self.state, line)
        able = bool(self._session.taking_part())
        self.train.setEnabled(able and not trainer.busy)
        self.next.setEnabled(trainer.last is not None and not trainer.busy)
        self.undo.setEnabled(levels > 0 and not trainer.busy)
        self.undo.setText(
            f"Undo prediction ({levels})" if levels else "Undo prediction"
        )
        self.before.setEnabled(levels > 0 and not trainer.busy)
        self.before.setChecked(self._places.is_before)
        if trainer.state in ("waiting", "fitting"):
            self.tell("")

    def _set_auto(self, on: bool) -> None:
        self._trainer.auto = on
        if on:
            self._session.begin_again()

    def _fitted(self, fitted: Fitted) -> None:
        learnt = fitted.learnt
        ground = any(c.background for c in learnt.head.classes)
        rows.tell(self.warnings, warning_lines(learnt.warnings, has_ground=ground))

    def _scored(self, score: Any) -> None:
        rows.tell(self.score, score_line(score))
