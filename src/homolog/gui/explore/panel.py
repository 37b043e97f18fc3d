"""The Explore tab: where else does it look like here? Widgets only."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, ClassVar

from qtpy.QtCore import Qt
from qtpy.QtGui import QHideEvent, QShowEvent
from qtpy.QtWidgets import (
    QApplication,
    QComboBox,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from homolog.gui import engine, keys, rows
from homolog.gui.explore.control import HINTS
from homolog.gui.explore.pins_box import PinsBox
from homolog.gui.explore.products import Products
from homolog.gui.explore.rows import ScanRow
from homolog.gui.explore.session import Explorer
from homolog.gui.explore.tools import MouseBox, RangeBox
from homolog.gui.hub import Hub
from homolog.gui.learn.model_choice import (
    ModelChoice,
    list_embedders,
)
from homolog.gui.threads import in_background

# What a hint's button says and where it leads.
_ACTIONS = {
    "pretrain": "Pretrain...", "data": "Open scans...", "install": "Copy the command",
    "compute": "Compute features",
}  # fmt: skip


class ExplorePanel(QWidget):
    """Similarity under the mouse, pinned places, matches in other scans."""

    title: ClassVar[str] = "Explore"

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self.hub = hub
        self._wanted: Path | None = None
        self.explorer = Explorer(hub, self)
        self.products = Products(self.explorer)
        self._rows: dict[str, ScanRow] = {}
        self._make_model()
        self._make_hint()
        self.rows = QVBoxLayout()
        self.rows.setSpacing(2)
        self.pins = PinsBox(self.explorer)
        self.mouse = MouseBox(self.explorer)
        self.tools = RangeBox(self.explorer, self.products)
        self.said = rows.Sentence(2)
        rows.named(self.said, "What was done", "What was done")
        # What comes and goes keeps its room, and what grows stands last.
        rows.keep_room(self.act, self.bring, self.mouse, self.tools)
        column = QVBoxLayout(self)
        for part in (
            self._model_row, self._hint_box, self.rows, self.mouse, self.tools,
            self.said, self.pins,
        ):  # fmt: skip
            if isinstance(part, QWidget):
                column.addWidget(part)
            else:
                column.addLayout(part)
        column.addStretch(1)
        self._connect()
        self.shown()

    # What the dock calls

    def visit(self, what: dict[str, Any]) -> None:
        """Another tab sends the user here: ``{"encoder": path}``."""
        if what.get("encoder"):
            self._wanted = Path(str(what["encoder"]))
        self.shown()

    def shown(self) -> None:
        """Read the models and the viewer's scans anew."""
        hub, wanted = self.hub, self._wanted
        in_background(
            list_embedders, hub.runs, hub.models, wanted,
            owner=self, done=self._list, failed=self._not_listed,
        )  # fmt: skip
        self.explorer.sync()

    def showEvent(self, event: QShowEvent) -> None:
        """Listen to the viewer while the tab is in front."""
        super().showEvent(event)
        self.explorer.listening.begin()
        self.explorer.sync()
        self._refresh_hint()

    def hideEvent(self, event: QHideEvent) -> None:
        """Another tab: the mouse belongs to it; heat and points stay."""
        super().hideEvent(event)
        self.explorer.left()
        self.explorer.listening.end()

    # Parts

    def _make_model(self) -> None:
        self.model = QComboBox()
        self.model.setMinimumContentsLength(12)
        self.model.setSizeAdjustPolicy(
            QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon
        )
        self.model.setAccessibleName("Model")
        self.model.setToolTip(
            "Pretrained or fine-tuned: its features tell what looks alike"
        )
        self.model.activated.connect(self._choose)
        label = QLabel("&Model")
        label.setBuddy(self.model)
        self._model_row = QHBoxLayout()
        self._model_row.addWidget(label)
        self._model_row.addWidget(self.model, 1)

    def _make_hint(self) -> None:
        self._hint_box = QWidget()
        self.hint = rows.Sentence(1, HINTS)
        rows.named(self.hint, "Hint", "What to do next")
        self.act = QPushButton()
        self.act.clicked.connect(self._do)
        self.bring = QPushButton("Import...")
        self.bring.setAccessibleName("Import a model")
        self.bring.setToolTip(
            "Import a model folder or a weight file in the Models tab"
        )
        self.bring.clicked.connect(lambda: self.hub.go.emit("Models", {}))
        buttons = QHBoxLayout()
        buttons.addWidget(self.act)
        buttons.addWidget(self.bring)
        buttons.addStretch(1)
        column = QVBoxLayout(self._hint_box)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.hint)
        column.addLayout(buttons)

    def _connect(self) -> None:
        explorer = self.explorer
        explorer.scans_changed.connect(self._refresh)
        explorer.scan_changed.connect(self._refresh_row)
        explorer.hint_changed.connect(self._refresh_hint)
        self.products.told.connect(self.said.setText)
        self.pins.told.connect(self.said.setText)
        self.hub.changed.connect(self._heard)
        for key, words, function in (
            ("Shift-F", "find similar here and pin it", explorer.pin_here),
            ("Shift-H", "show or hide the similarity maps", explorer.toggle_heat),
            ("Shift-G", "go to the best match of the pinned place", explorer.go_on),
            ("Shift-N", "go to the next match", explorer.go_on),
            ("Escape", "forget what was asked; pinned places stay", self._forget),
        ):
            keys.add(self.hub, key, words, function, while_shown=self)
        # Plain Python, so that it works while Qt takes the widgets down.
        listening, layers = explorer.listening, explorer.layers

        def gone(*_: object) -> None:
            with contextlib.suppress(AttributeError, RuntimeError):  # viewer gone first
                listening.end()
                layers.close()

        self.destroyed.connect(gone)
        self.hub.closing.connect(explorer.end)

    def _forget(self) -> None:
        """Nothing is lit any more until the mouse asks again."""
        self.explorer.control.query = None
        self.explorer.drawing.clear()
        self.explorer.show_pin(None)

    # What is shown

    def _refresh(self) -> None:
        scans = self.explorer.control.scans
        for key in [k for k in self._rows if k not in scans]:
            row = self._rows.pop(key)
            self.rows.removeWidget(row)
            row.deleteLater()
        for key in scans:
            if key not in self._rows:
                self._rows[key] = self._new_row(key)
            self._refresh_row(key)
        self._refresh_hint()

    def _new_row(self, key: str) -> ScanRow:
        row, explorer = ScanRow(self), self.explorer
        row.heat_wanted.connect(lambda shown: explorer.show_heat(key, shown))
        row.compute.connect(lambda: explorer.work.compute([key]))
        row.cancel.connect(lambda: explorer.work.cancel(key))
        row.look_at.connect(lambda: explorer.look_at(key))
        self.rows.addWidget(row)
        return row

    def _refresh_row(self, key: str) -> None:
        control = self.explorer.control
        scan, row = control.scans.get(key), self._rows.get(key)
        if scan is not None and row is not None:
            able = control.encoder is not None and not control.engine_missing
            row.show_scan(scan, can_compute=able)

    def _refresh_hint(self) -> None:
        explorer, control = self.explorer, self.explorer.control
        hint = control.hint(self.hub.viewer.dims.ndisplay, explorer.over)
        text = hint.text
        if hint.action == "install":
            text = f"{text}\n{engine.install_command()}"
        self.hint.setText(text)
        self.act.setVisible(bool(hint.action))
        self.act.setText(_ACTIONS.get(hint.action, ""))
        self.act.setAccessibleName(_ACTIONS.get(hint.action, ""))
        self.act.setToolTip(hint.text)
        self.bring.setVisible(hint.action == "pretrain")
        some = bool(control.ready())
        for box in (self.mouse, self.tools):
            box.setVisible(some)
        if some:
            self.tools.refresh()

    def _do(self) -> None:
        control = self.explorer.control
        action = control.hint(self.hub.viewer.dims.ndisplay, self.explorer.over).action
        if action == "pretrain":
            self.hub.go.emit("Pretrain", {})
        elif action == "data":
            self.hub.go.emit("Data", {})
        elif action == "install":
            clipboard = QApplication.clipboard()
            if clipboard is not None:
                clipboard.setText(engine.install_command())
        elif action == "compute":
            self.explorer.work.compute(list(control.scans))

    # What the user does

    def _choose(self, index: int) -> None:
        self._wanted = None
        self.explorer.choose(self.model.itemData(index))

    # Models

    def _heard(self, what: str) -> None:
        if what in ("runs", "models"):
            self.shown()
        elif what == "features" and not self.explorer.work.busy:
            self.explorer.look_again()

    def _list(self, choices: list[ModelChoice]) -> None:
        now, control = self.explorer.control.encoder, self.explorer.control
        control.encoders = choices
        wanted = self._wanted or (None if now is None else now.path)
        self._wanted = None
        self.model.clear()
        chosen = 0
        for index, choice in enumerate(choices):
            self.model.addItem(choice.title, choice)
            self.model.setItemData(index, choice.facts, Qt.ItemDataRole.ToolTipRole)
            if wanted is not None and choice.path.resolve() == wanted.resolve():
                chosen = index
        self.model.setEnabled(bool(choices))
        self.model.setCurrentIndex(chosen if choices else -1)
        self.explorer.choose(choices[chosen] if choices else None)
        self._refresh()

    def _not_listed(self, error: Exception) -> None:
        self.hub.say(f"The models could not be listed: {error}", "error")
