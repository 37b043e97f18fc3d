"""How the paint is learnt from: learner, place, and what lies outside the body."""

from __future__ import annotations

from dataclasses import replace

from qtpy.QtWidgets import QCheckBox, QComboBox, QVBoxLayout, QWidget

from homolog.gui import rows
from homolog.gui.folds import fold_of
from homolog.gui.label.session import LabelSession

_LEARNERS = [
    ("Smooth borders (logistic regression)", "logistic"),
    ("Like the nearest paint (k neighbours)", "knn"),
]


class SettingsBox(QWidget):
    """Three settings in a fold; a change predicts anew.

    Args:
        session: Whose trainer they are for.
    """

    def __init__(self, session: LabelSession) -> None:
        super().__init__()
        self._session = session
        config = session.trainer.config
        self.learner = rows.narrow(QComboBox())
        rows.fill(self.learner, _LEARNERS, config.head)
        self.place = QCheckBox("Use the place in the body")
        rows.named(
            self.place, "Use the place in the body",
            "Left and right organs of one brightness are told apart by place. Untick "
            "it where scans show different parts of the body",
        )  # fmt: skip
        self.place.setChecked(config.position)
        self.body = QCheckBox("Label nothing outside the body")
        rows.named(
            self.body, "Label nothing outside the body",
            "Air and table stay free. Has no effect once something is painted out "
            "there. Untick it where the body is not told rightly",
        )  # fmt: skip
        self.body.setChecked(config.body_only)
        inside = QWidget()
        column = QVBoxLayout(inside)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(
            rows.labelled(
                "Learner", self.learner,
                "Logistic regression is quick; neighbours follow odd shapes, slower",
            )
        )  # fmt: skip
        column.addWidget(self.place)
        column.addWidget(self.body)
        fold = fold_of("More")
        fold.addWidget(inside)
        whole = QVBoxLayout(self)
        whole.setContentsMargins(0, 0, 0, 0)
        whole.addWidget(fold)
        self.learner.activated.connect(lambda _: self._changed())
        for box in (self.place, self.body):
            box.clicked.connect(lambda _: self._changed())

    def _changed(self) -> None:
        trainer = self._session.trainer
        trainer.config = replace(
            trainer.config,
            head=str(self.learner.currentData()),
            position=self.place.isChecked(),
            body_only=self.body.isChecked(),
        )
        self._session.begin_again()
