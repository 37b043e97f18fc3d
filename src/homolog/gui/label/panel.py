"""The Label tab: paint a few voxels, see the whole scan labelled. Widgets only."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, ClassVar

from qtpy.QtCore import QEvent, Qt
from qtpy.QtGui import QShowEvent
from qtpy.QtWidgets import QComboBox, QVBoxLayout, QWidget

from homolog.gui import rows
from homolog.gui.hub import Hub
from homolog.gui.label import layers as own
from homolog.gui.label import words
from homolog.gui.label.classes_box import ClassesBox
from homolog.gui.label.hand_box import HandBox
from homolog.gui.label.places import Places
from homolog.gui.label.result_box import ResultBox
from homolog.gui.label.scan_row import ScanRow
from homolog.gui.label.session import LabelSession
from homolog.gui.label.settings_box import SettingsBox
from homolog.gui.learn.model_choice import (
    ModelChoice,
    list_embedders,
)
from homolog.gui.threads import in_background

_INTENSITY = "Intensity only (works at once)"


class LabelPanel(QWidget):
    """Scans, classes, the prediction, and what becomes of it."""

    title: ClassVar[str] = "Label"

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self.hub = hub
        self._wanted: Path | None = None
        self.session = LabelSession(hub, self)
        self.places = Places(self.session)
        self._rows: dict[str, ScanRow] = {}
        self.model = rows.narrow(QComboBox())
        self.model.addItem(_INTENSITY, None)
        self.model.activated.connect(self._choose)
        self.no_scan = rows.EmptyState(
            words.NO_SCAN,
            rows.button("Open scans...", "Go to Data, where scans are opened",
                        lambda: hub.go.emit("Data", {})),
        )  # fmt: skip
        self.hint = rows.sentence("Hint", texts=words.HINTS)
        self._list = QVBoxLayout()
        self._list.setSpacing(2)
        self.classes = ClassesBox(self.session, self)
        self.result = ResultBox(self.session, self.places, self)
        self.settings = SettingsBox(self.session)
        self.hand = HandBox(self.session)
        column = QVBoxLayout(self)
        column.addLayout(
            rows.labelled(
                "Features", self.model,
                "What tells tissues apart: intensity and place, and a model's features",
            )
        )  # fmt: skip
        column.addWidget(self.hint)
        column.addWidget(self.no_scan)  # in the place of the scans
        column.addLayout(self._list)
        for part in (self.classes, self.result, self.settings, self.hand):
            column.addWidget(part)
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
            list_embedders, hub.runs, hub.models, wanted, owner=self, done=self._got,
            failed=lambda error: hub.say(f"Models: {error}", "warning"),
        )  # fmt: skip
        self.session.sync()

    def tear_down(self) -> None:
        """The dock goes."""
        self.session.end()
        self.places.end()

    def event(self, event: QEvent) -> bool:
        """Be as high as wrapped sentences need: a scroll area would cut them."""
        done = bool(super().event(event))
        if event.type() in (QEvent.Type.LayoutRequest, QEvent.Type.Resize):
            layout = self.layout()
            if layout is not None and layout.hasHeightForWidth():
                high = layout.totalHeightForWidth(self.width())
                if high != self.minimumHeight():
                    self.setMinimumHeight(high)
        return done

    def showEvent(self, event: QShowEvent) -> None:  # noqa: D102 - Qt's name
        super().showEvent(event)
        self.session.sync()
        self._refresh()

    # Parts

    def _connect(self) -> None:
        session, viewer = self.session, self.hub.viewer
        session.scans_changed.connect(self._refresh)
        session.scan_changed.connect(self._scan_changed)
        session.classes_changed.connect(self._refresh_hint)
        session.trainer.changed.connect(self._refresh_hint)
        self.classes.told.connect(self.result.tell)
        self.hub.changed.connect(self._heard)
        viewer.dims.events.ndisplay.connect(self._viewer_changed)
        viewer.layers.selection.events.active.connect(self._viewer_changed)

        def gone(*_: object) -> None:
            with contextlib.suppress(AttributeError, RuntimeError):  # viewer gone first
                session.end()

        self.destroyed.connect(gone)
        self.hub.closing.connect(session.end)

    def _choose(self, index: int) -> None:
        self._wanted = None
        self.session.choose_encoder(self.model.itemData(index))

    def _viewer_changed(self, event: Any = None) -> None:
        with contextlib.suppress(RuntimeError):  # the panel is gone already
            if self.isVisible():
                self._refresh()

    # What is shown

    def _refresh(self) -> None:
        session = self.session
        keys = list(session.desks)
        if keys != list(self._rows):
            for row in self._rows.values():
                self._list.removeWidget(row)
                row.deleteLater()
            self._rows = {key: self._row(key) for key in keys}
        for key in keys:
            self._refresh_row(key)
        self._refresh_hint()

    def _row(self, key: str) -> ScanRow:
        row, session = ScanRow(), self.session
        row.part.connect(lambda on: session.set_part(key, on))
        row.make.connect(lambda: session.make_layer(key))
        row.use.connect(
            lambda: session.use_layer(key, self.hub.viewer.layers.selection.active)
        )
        row.compute.connect(lambda: session.work.compute([key]))
        row.cancel.connect(lambda: session.work.cancel(key))
        self._list.addWidget(row)
        return row

    def _scan_changed(self, key: str) -> None:
        self._refresh_row(key)
        self._refresh_hint()

    def _refresh_row(self, key: str) -> None:
        session, row = self.session, self._rows.get(key)
        scan, desk = session.book.scans.get(key), session.desks.get(key)
        if row is None or scan is None or desk is None:
            return
        active = self.hub.viewer.layers.selection.active
        usable = active.name if own.usable_on(desk.layer, active) else ""
        row.show_scan(
            scan, desk, usable=usable, encoder=session.encoder is not None,
            can_compute=not session.book.engine_missing,
        )  # fmt: skip

    def _refresh_hint(self) -> None:
        session = self.session
        desks = session.desks
        self.no_scan.setVisible(not desks)
        painted = any(desk.painted is not None for desk in desks.values())
        for part in (self.classes, self.result, self.settings, self.hand):
            part.setVisible(painted)
        rows.tell(self.hint, self._hint())

    def _hint(self) -> str:
        session = self.session
        taking = session.taking_part()
        if not session.desks:
            return ""
        states = {scan.state for scan, _ in taking if session.encoder is not None}
        if states & {"none", "failed"}:
            return words.COMPUTE
        if states & {"computing", "waiting"}:
            return words.COMPUTING
        if taking and self.hub.viewer.dims.ndisplay == 3:
            return words.IN_3D
        few = len([n for n in session.classes.counts.values() if n]) < 2
        return words.START if few else words.MORE

    # Models

    def _heard(self, what: str) -> None:
        if what in ("runs", "models") and self.isVisible():
            self.shown()
        elif what == "features" and not self.session.work.busy:
            self.session.look_again()

    def _got(self, choices: list[ModelChoice]) -> None:
        now = self.session.encoder
        wanted = self._wanted or (None if now is None else now.path)
        self._wanted = None
        self.session.book.encoders = choices
        self.model.clear()
        self.model.addItem(_INTENSITY, None)
        chosen = 0
        for index, choice in enumerate(choices, start=1):
            self.model.addItem(choice.title, choice)
            self.model.setItemData(index, choice.facts, Qt.ItemDataRole.ToolTipRole)
            if wanted is not None and choice.path.resolve() == wanted.resolve():
                chosen = index
        self.model.setCurrentIndex(chosen)
        self.session.choose_encoder(self.model.itemData(chosen))
        self._refresh()
