"""How the paint is learnt from: the learner, and whether the place counts."""

from __future__ import annotations

from dataclasses import replace

from qtpy.QtWidgets import QCheckBox, QComboBox, QVBoxLayout, QWidget

from homolog.gui import rows
from homolog.gui.label.session import LabelSession
from homolog.gui.learn.forms import fold_of

_LEARNERS = [
    ("Smooth borders (logistic regression)", "logistic"),
    ("Like the nearest paint (k neighbours)", "knn"),
]


class SettingsBox(QWidget):
    """Two settings in a fold; a change predicts anew.

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
        fold = fold_of("More")
        fold.addWidget(inside)
        whole = QVBoxLayout(self)
        whole.setContentsMargins(0, 0, 0, 0)
        whole.addWidget(fold)
        self.learner.activated.connect(lambda _: self._changed())
        self.place.clicked.connect(lambda _: self._changed())

    def _changed(self) -> None:
        trainer = self._session.trainer
        trainer.config = replace(
            trainer.config,
            head=str(self.learner.currentData()),
            position=self.place.isChecked(),
        )
        self._session.begin_again()
