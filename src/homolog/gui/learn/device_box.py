"""Where to compute: the devices of this machine with their free memory."""

from __future__ import annotations

from typing import Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import (
    QComboBox,
    QHBoxLayout,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from homolog.gui import engine, preferences
from homolog.gui.hub import Hub
from homolog.gui.learn.estimate_words import no_gpu_hint
from homolog.gui.rows import sentence, tell
from homolog.gui.threads import in_background


class DeviceBox(QWidget):
    """A choice of devices; asks the engine in the background when first shown.

    Signals:
        changed: Another device was chosen, or the list arrived.
    """

    changed = Signal()

    def __init__(self, hub: Hub, kind: str, parent: QWidget | None = None) -> None:
        """Make the box.

        Args:
            hub: Of the window.
            kind: ``pretrain``, ``finetune`` or ``segment``; chooses the hint.
            parent: Of the widget.
        """
        super().__init__(parent)
        self._hub, self._kind = hub, kind
        self._asked = False
        self.best = "cpu"
        self.known = False
        self.choice = QComboBox()
        self.choice.setAccessibleName("Device")
        self.choice.setToolTip("Where to compute. Automatic takes the best device.")
        self.choice.setMinimumContentsLength(8)
        self.choice.setSizeAdjustPolicy(
            QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon
        )
        self.choice.addItem("Automatic", "auto")
        self._keep_preferred()
        self.again = QToolButton()
        self.again.setText("Look again")
        self.again.setAccessibleName("Look for devices again")
        self.again.setToolTip("Ask again which devices there are and what is free")
        self.again.clicked.connect(self.ask)
        self.hint = sentence("Note on the device", lines=3 if kind == "pretrain" else 2)
        row = QHBoxLayout()
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self.choice, 1)
        row.addWidget(self.again)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(row)
        column.addWidget(self.hint)
        self.choice.currentIndexChanged.connect(lambda: self.changed.emit())

    @property
    def device(self) -> str:
        """``auto``, ``cpu`` or ``cuda:i``."""
        return str(self.choice.currentData() or "auto")

    @property
    def on_cpu(self) -> bool:
        """Whether the CPU will compute, as far as is known."""
        chosen = self.device
        return (self.best if chosen == "auto" else chosen) == "cpu"

    def choose(self, device: str) -> None:
        """Choose a device; one that is not here is passed over."""
        place = self.choice.findData(device)
        if place >= 0:
            self.choice.setCurrentIndex(place)

    def want(self) -> None:
        """Ask once."""
        if not self._asked and not self._hub.engine_missing():
            self.ask()

    def ask(self) -> None:
        """Ask the engine what can compute; the list is filled when it answers."""
        self._asked = True
        self.again.setEnabled(False)
        in_background(
            engine.ask, "devices", owner=self, done=self._got, failed=self._failed
        )

    def tell_estimate(self, total_s: float) -> None:
        """After a dry run: say what having no GPU means."""
        if self.known and self.best == "cpu":
            self._say(no_gpu_hint(total_s, self._kind))

    def _got(self, answer: dict[str, Any]) -> None:
        self.again.setEnabled(True)
        before = self.device
        self.known, self.best = True, str(answer.get("best", "cpu"))
        titles = {d["name"]: d["title"] for d in answer.get("devices", ())}
        self.choice.blockSignals(True)
        self.choice.clear()
        best = titles.get(self.best, self.best)
        self.choice.addItem(f"Automatic: {best}", "auto")
        for name, title in titles.items():
            self.choice.addItem(title, name)
        self.choose(before)
        self.choice.blockSignals(False)
        self.choice.setToolTip(
            "Where to compute. Here: " + "; ".join(titles.values()) + "."
        )
        if self.best == "cpu" and self._kind == "pretrain":
            self._say(no_gpu_hint(None, self._kind))
        else:
            self.hint.hide()
        self.changed.emit()

    def _failed(self, error: Exception) -> None:
        self.again.setEnabled(True)
        self._say(f"The devices could not be listed: {error}")

    def _say(self, text: str) -> None:
        tell(self.hint, text)

    def _keep_preferred(self) -> None:
        """The device of the settings page, even before the list is known."""
        device = str(preferences.get("compute", "device", "auto") or "auto")
        if device != "auto":
            self.choice.addItem(device, device)
            self.choose(device)
