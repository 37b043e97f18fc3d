"""Rows of the Segment tab: which open scan is which channel of the model."""

from __future__ import annotations

from typing import Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QComboBox, QGridLayout, QLabel, QVBoxLayout, QWidget

from homolog.gui.segment.channels import (
    OpenScan,
    Wanted,
    channels_problem,
    guessed,
    odd_kinds,
    open_scans_of,
)
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.widgets import Choice, fill, named, sentence, tell

_NONE = "choose a scan"


class ChannelsBox(QWidget):
    """A row for each channel: its name, and the layer that is taken for it.

    What is guessed follows the layer in hand to another patient's scans; what the user
    chose stays until then.

    Signals:
        changed: Another layer is chosen, or layers came and went.

    Attributes:
        rows: A list of layers for each channel.
    """

    changed = Signal()

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self._hub = hub
        self.wanted: tuple[Wanted, ...] = ()
        self.rows: list[QComboBox] = []
        self._scans: list[OpenScan] = []
        self.problem = ""
        self._lay_out()
        layers = hub.viewer.layers
        for event in (layers.events.inserted, layers.events.removed):
            event.connect(self._layers_changed)
        layers.selection.events.active.connect(self._layers_changed)
        self.hide()

    def want(self, wanted: tuple[Wanted, ...]) -> None:
        """These channels are wanted; none hides the rows."""
        if wanted == self.wanted:
            return
        self.wanted = wanted
        for row in self.rows:
            row.setParent(None)
            row.deleteLater()
        while (item := self._grid.takeAt(0)) is not None:
            if (widget := item.widget()) is not None:
                widget.setParent(None)
                widget.deleteLater()
        self.rows = []
        for place, channel in enumerate(wanted):
            row = Choice()
            hint = f"The open scan that is {channel.name} of the case"
            named(row, channel.name, hint)
            label = QLabel(channel.name)
            label.setBuddy(row)
            label.setToolTip(hint)
            row.activated.connect(lambda _: self._picked())
            self._grid.addWidget(label, place, 0)
            self._grid.addWidget(row, place, 1)
            self.rows.append(row)
        self.setVisible(bool(wanted))
        self.read_layers()

    @property
    def chosen(self) -> list[OpenScan | None]:
        """The scan of each channel."""
        known = {scan.key: scan for scan in self._scans}
        return [known.get(row.currentData()) for row in self.rows]

    def layers(self) -> list[Any]:
        """The chosen layers, in the order of the channels.

        Raises:
            LookupError: One of them is not chosen.
        """
        known = {str(layer.unique_id): layer for layer in self._hub.viewer.layers}
        return [known[str(row.currentData())] for row in self.rows]

    def odd(self) -> list[str]:
        """Sentences on chosen scans of another kind than was learnt from."""
        found = [scan for scan in self.chosen if scan is not None]
        if len(found) < len(self.wanted):
            return []
        return odd_kinds(self.wanted, found)

    def read_layers(self) -> None:
        """List the open scans anew; what was chosen stays, the rest is guessed."""
        if not self.wanted:
            return
        masks = any(channel.is_mask for channel in self.wanted)
        self._scans = open_scans_of(list(self._hub.viewer.layers), with_labels=masks)
        keys = {scan.key for scan in self._scans}
        kept = [str(row.currentData() or "") for row in self.rows]
        kept = [key if key in keys else "" for key in kept]
        active = self._hub.viewer.layers.selection.active
        in_hand = "" if active is None else str(active.unique_id)
        if in_hand not in keys:
            in_hand = next((key for key in kept if key), "")
        if not all(kept) or self._is_elsewhere(in_hand, kept):
            guess = guessed(self.wanted, self._scans, in_hand)
            stays = not self._is_elsewhere(in_hand, kept)
            kept = [
                old if old and stays else new
                for old, new in zip(kept, guess, strict=True)
            ]
            kept = ["" if key in kept[:i] else key for i, key in enumerate(kept)]
        entries = [(_NONE, ""), *((s.ref.name, s.key) for s in self._scans)]
        for row, key in zip(self.rows, kept, strict=True):
            fill(row, entries, key)
        self._look()

    def _is_elsewhere(self, in_hand: str, kept: list[str]) -> bool:
        """Whether the layer in hand is of another case than those chosen."""
        known = {scan.key: scan for scan in self._scans}
        found = [known[key] for key in kept if key]
        if not in_hand or not found or in_hand in kept:
            return False
        here = known[in_hand].place
        there = found[0].place
        return here.shape != there.shape or not here.affine.close_to(
            there.affine, here.shape
        )

    def _picked(self) -> None:
        self._look()

    def _look(self) -> None:
        self.problem = channels_problem(self.wanted, self.chosen)
        tell(self.words, f"⚠ {self.problem}" if self.problem else "")
        self.changed.emit()

    def _layers_changed(self, event: Any = None) -> None:
        self.read_layers()

    def _lay_out(self) -> None:
        self._grid = QGridLayout()
        self._grid.setColumnStretch(1, 1)
        self.words = sentence("Why these scans are no case of the model", lines=2)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(self._grid)
        column.addWidget(self.words)
