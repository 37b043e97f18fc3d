"""The line of the Data panel in which label values are called by name."""

from __future__ import annotations

from qtpy.QtWidgets import QLineEdit, QVBoxLayout, QWidget

from homolog.gui import rows
from homolog.gui.data.store_building import names_problem

_HINT = (
    "What the values of the label maps are called, such as 1=liver, 2=spleen. Others "
    "are called as a dataset.json or label_names.json beside the maps says"
)


class NamesLine(QWidget):
    """Label names as text, with what is wrong about them below; hidden at first."""

    def __init__(self) -> None:
        super().__init__()
        self.field = QLineEdit()
        self.field.setPlaceholderText("1=liver, 2=spleen")
        self.problem = rows.sentence("Problem with the label names", lines=2)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(rows.labelled("Label names (optional)", self.field, _HINT))
        column.addWidget(self.problem)
        self.field.editingFinished.connect(self._tell)
        self.field.textChanged.connect(self._typed)
        self.hide()

    @property
    def text(self) -> str:
        """The names given; none while the line is not offered."""
        return "" if self.isHidden() else self.field.text().strip()

    def offer(self, there: bool) -> None:
        """Show the line where label maps come into the store."""
        self.setVisible(there)
        self._tell()

    def is_sound(self) -> bool:
        """Whether the names can be meant; what is wrong is told, with the cursor."""
        self._tell()
        if self.problem.text():
            self.field.setFocus()
        return not self.problem.text()

    def _tell(self) -> None:
        trouble = names_problem(self.text)
        rows.tell(self.problem, f"✖ {trouble}" if trouble else "")

    def _typed(self) -> None:
        """A problem told goes with its cause; a new one waits until all is typed."""
        if self.problem.text():
            self._tell()
