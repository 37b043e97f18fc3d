"""What must be told about a weight file of another project before it is imported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qtpy.QtWidgets import (
    QComboBox,
    QFormLayout,
    QFrame,
    QHBoxLayout,
    QLineEdit,
    QPushButton,
    QVBoxLayout,
)

from homolog.config import ConfigError, parse_assignments
from homolog.gui import rows
from homolog.gui.hub import Hub
from homolog.gui.models.control import NETWORKS
from homolog.gui.runs.training_parts import text_label


class ImportForm(QFrame):
    """File, name, network and its settings; folded away until a file is offered.

    Args:
        hub: Its schema names the networks.
        take: Called with (file, name, network, settings).
    """

    def __init__(
        self, hub: Hub, take: Callable[[Path, str, str, dict[str, Any]], None]
    ) -> None:
        super().__init__()
        self._hub, self._take = hub, take
        self._source = Path()
        self.setFrameShape(QFrame.Shape.StyledPanel)
        self.setAccessibleName("Import a weight file")
        self._build()
        self._fill(list(NETWORKS))
        hub.schema_ready.connect(
            lambda schema: self._fill(list(schema.get("backbones") or NETWORKS))
        )
        self.setVisible(False)

    def offer(self, source: Path, name: str) -> None:
        """Ask about this file."""
        self._source = source
        self.about.setText(
            f"{source.name} does not say which network it holds. Nothing in it is "
            "run; its weights are matched by name."
        )
        self.name.setText(name)
        self._tell("")
        self.setVisible(True)
        self.network.setFocus()
        self._hub.want_schema()

    def accept(self) -> None:
        """Check what was typed and hand it on."""
        words = self.settings.text().replace(",", " ").split()
        try:
            settings = parse_assignments(words)
        except ConfigError as error:
            self._tell(f"⚠ {error}")
            return
        name = self.name.text().strip()
        if not name or (self._hub.models / name).exists():
            self._tell("⚠ Choose a name that is not taken.")
            return
        self._tell("")
        self._take(self._source, name, self.network.currentText(), settings)

    def _tell(self, text: str) -> None:
        rows.tell(self.trouble, text)

    def _fill(self, networks: list[str]) -> None:
        chosen = self.network.currentText()
        self.network.clear()
        self.network.addItems(networks)
        if chosen in networks:
            self.network.setCurrentText(chosen)

    def _build(self) -> None:
        self.about = text_label("About the file")
        self.name = QLineEdit()
        self.name.setAccessibleName("Name of the imported model")
        self.name.setToolTip("Name of its folder among your models")
        self.network = QComboBox()
        self.network.setAccessibleName("Network of the file")
        self.network.setToolTip("The kind of network whose weights it holds")
        self.settings = QLineEdit()
        self.settings.setPlaceholderText("e.g. feature_size=48")
        self.settings.setAccessibleName("Settings of the network")
        self.settings.setToolTip("Sizes that differ from the defaults, NAME=VALUE")
        self.trouble = rows.sentence("What is wrong", lines=2)
        form = QFormLayout()
        form.setRowWrapPolicy(QFormLayout.RowWrapPolicy.WrapLongRows)
        form.addRow("Name", self.name)
        form.addRow("Network", self.network)
        form.addRow("Settings", self.settings)
        self.go = QPushButton("Import")
        self.go.setAccessibleName("Import the file")
        self.go.setToolTip("Match the weights and save them as a model")
        self.go.clicked.connect(self.accept)
        cancel = QPushButton("Cancel")
        cancel.setAccessibleName("Cancel the import")
        cancel.setToolTip("Import nothing")
        cancel.clicked.connect(lambda: self.setVisible(False))
        row = QHBoxLayout()
        row.addWidget(self.go)
        row.addWidget(cancel)
        column = QVBoxLayout(self)
        column.addWidget(self.about)
        column.addLayout(form)
        column.addWidget(self.trouble)
        column.addLayout(row)
