"""The Landmarks tab: a place of one scan found in another. Widgets only."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, ClassVar

from qtpy.QtCore import Qt
from qtpy.QtGui import QHideEvent, QShowEvent
from qtpy.QtWidgets import (
    QApplication,
    QCheckBox,
    QComboBox,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from homolog.gui import engine, keys, rows
from homolog.gui.hub import Hub
from homolog.gui.landmarks.cohort_box import CohortBox
from homolog.gui.landmarks.control import HINTS
from homolog.gui.landmarks.detail_box import DetailBox
from homolog.gui.landmarks.files_box import FilesBox, FitBox
from homolog.gui.landmarks.limits_box import LimitsBox
from homolog.gui.landmarks.session import Session
from homolog.gui.landmarks.side_row import SideRow
from homolog.gui.landmarks.table_box import TableBox
from homolog.gui.learn.model_choice import (
    ModelChoice,
    list_embedders,
)
from homolog.gui.threads import in_background

_ACTIONS = {
    "pretrain": "Pretrain...", "data": "Open scans...", "install": "Copy the command",
    "compute": "Compute features", "file": "Choose a file as B...",
}  # fmt: skip
PREPARING = "Getting both scans ready for searching; a few seconds ..."
_SCANS = (
    "Scans (*.nii *.nii.gz *.mha *.mhd *.nrrd *.nhdr *.dcm *.hdr *.img);;All files (*)"
)


class LandmarksPanel(QWidget):
    """Scan A and B, their landmarks, and what can be done with these."""

    title: ClassVar[str] = "Landmarks"

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self.hub = hub
        self._wanted: Path | None = None
        self.session = Session(hub, self)
        self._make_model()
        self._make_hint()
        self.swap = rows.button("⇅", "A and B change places", self.session.swap)
        self.swap.setAccessibleName("Swap A and B")
        self.file = rows.button("File...", "Open a file as scan B", self._ask_file)
        self.file.setAccessibleName("Open a file as scan B")
        for button in (self.swap, self.file):
            button.setMaximumWidth(
                button.fontMetrics().horizontalAdvance("File...") + 24
            )
        self.a, self.b = SideRow("A", self.swap), SideRow("B", self.file)
        self._make_tools()
        self.table = TableBox(self.session)
        self.limits = LimitsBox(self.session)
        self.detail = DetailBox(self.session)
        self.fit = FitBox(self.session)
        self.files = FilesBox(self.session)
        self.cohort = CohortBox(self.session)
        self.said = rows.sentence("What was done", lines=2)
        # What comes and goes keeps its room, and what grows stands last.
        rows.keep_room(self.act, self.bring, self.second, self.detail)
        column = QVBoxLayout(self)
        column.addLayout(self._model_row)
        for part in (self._hint_box, self.a, self.b):
            column.addWidget(part)
        column.addLayout(rows.beside(self.pick, self.second))
        column.addLayout(rows.beside(self.follow, self.points))
        for part in (self.limits, self.files, self.said):
            column.addWidget(part)
        for part in (self.table, self.fit, self.detail, self.cohort):
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
            list_embedders, hub.runs, hub.models, wanted,
            owner=self, done=self._list, failed=self._not_listed,
        )  # fmt: skip
        self.cohort.read_stores()
        self.session.sync()

    def tear_down(self) -> None:
        """The dock goes: the second viewer goes with it."""
        self.cohort.stop()
        self.session.end()

    def showEvent(self, event: QShowEvent) -> None:
        """Listen to the viewer while the tab is in front."""
        super().showEvent(event)
        self.session.placing.listening.begin()
        self.session.sync()
        if self.session.view is not None:
            self.session.open_view()
        self._refresh_hint()

    def hideEvent(self, event: QHideEvent) -> None:
        """Another tab: the mouse belongs to it, and the second view steps aside."""
        super().hideEvent(event)
        self.pick.setChecked(False)
        self.session.placing.left()
        self.session.placing.listening.end()
        if self.session.view is not None and not event.spontaneous():
            self.session.view.hide()

    # Parts

    def _make_model(self) -> None:
        self.model = rows.narrow(QComboBox())
        rows.named(
            self.model, "Model",
            "Pretrained or fine-tuned: its features tell what is the same place",
        )  # fmt: skip
        self.model.activated.connect(self._choose)
        label = QLabel("&Model")
        label.setBuddy(self.model)
        self._model_row = QHBoxLayout()
        self._model_row.addWidget(label)
        self._model_row.addWidget(self.model, 1)

    def _make_hint(self) -> None:
        self._hint_box = QWidget()
        self.hint = rows.sentence("Hint", texts=(*HINTS, PREPARING))
        self.act = QPushButton()
        self.act.clicked.connect(self._do)
        self.bring = rows.button(
            "Import...", "Import a model folder or a weight file in the Models tab",
            lambda: self.hub.go.emit("Models", {}),
        )  # fmt: skip
        self.bring.setAccessibleName("Import a model")
        column = QVBoxLayout(self._hint_box)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.hint)
        column.addLayout(rows.beside(self.act, self.bring))

    def _make_tools(self) -> None:
        placing = self.session.placing
        self.pick = rows.button(
            "Pick in A", "While on, a click in scan A picks a place; dragging still "
            "moves the picture. Shift+click always picks", lambda: None,
        )  # fmt: skip
        self.pick.setCheckable(True)
        self.pick.toggled.connect(self._set_pick)
        self.second = rows.button(
            "Show scan B", "Dock the second view beside the first",
            self.session.open_view,
        )  # fmt: skip
        self.follow = QCheckBox("B follows mouse")
        rows.named(
            self.follow, "B follows the mouse of A",
            "B shows the slice where the place under the mouse is found; the status "
            "bar tells how similar it is",
        )  # fmt: skip
        self.follow.toggled.connect(self._set_follow)
        self.points = QCheckBox("Show points")
        self.points.setChecked(True)
        rows.named(
            self.points, "Show landmarks as points",
            "● sure, ◆ unsure, ✚ refused, ■ set by hand; equal numbers belong together",
        )  # fmt: skip
        self.points.clicked.connect(self._set_points)
        placing.table_changed.connect(
            lambda: self.points.setChecked(placing.show_points)
        )

    def _connect(self) -> None:
        session = self.session
        session.scans_changed.connect(self._refresh)
        session.scan_changed.connect(lambda _: self._refresh_sides())
        session.hint_changed.connect(self._refresh_hint)
        for told in (session.told, self.files.told, self.cohort.told):
            told.connect(lambda text: rows.tell(self.said, text))
        self.hub.changed.connect(self._heard)
        for row, choose in ((self.a, session.choose_a), (self.b, session.choose_b)):
            row.chosen.connect(choose)
            row.compute.connect(lambda row=row: self._compute(row))
            row.cancel.connect(lambda row=row: session.work.cancel(_key(row)))
        placing = session.placing
        for key, words, function in (
            ("Shift-M", "find the place under the mouse in scan B", placing.pick_here),
            ("Shift-N", "go to the next uncertain landmark", placing.next_uncertain),
            ("Shift-G", "go to the chosen landmark in both views", self._go),
            ("Escape", "stop picking; choose no landmark", self._forget),
        ):
            keys.add(self.hub, key, words, function, while_shown=self)

        def gone(*_: object) -> None:
            with contextlib.suppress(AttributeError, RuntimeError):  # viewer gone first
                session.end()

        self.destroyed.connect(gone)
        self.hub.closing.connect(session.end)

    # What the user does

    def _choose(self, index: int) -> None:
        self._wanted = None
        self.session.choose_encoder(self.model.itemData(index))

    def _compute(self, row: SideRow) -> None:
        self.session.work.compute([_key(row)])

    def _ask_file(self) -> None:
        rows.ask_files(
            self, "Scan B", _SCANS, lambda files: self.session.open_b(files[0])
        )

    def _set_pick(self, on: bool) -> None:
        self.session.placing.picking = on
        if on:
            self.session.open_view()

    def _set_follow(self, on: bool) -> None:
        self.session.control.follow = on
        if on:
            self.session.open_view()
        else:
            self.session.placing.listening.set_words("")

    def _set_points(self, on: bool) -> None:
        self.session.placing.show_points = on
        self.session.placing.refresh_marks()

    def _go(self) -> None:
        self.session.placing.choose(self.session.control.table.chosen)

    def _forget(self) -> None:
        self.pick.setChecked(False)
        self.session.placing.choose(None)

    def _do(self) -> None:
        control = self.session.control
        action = control.hint(self.hub.viewer.dims.ndisplay).action
        if action == "pretrain":
            self.hub.go.emit("Pretrain", {})
        elif action == "data":
            self.hub.go.emit("Data", {})
        elif action == "file":
            self._ask_file()
        elif action == "install":
            clipboard = QApplication.clipboard()
            if clipboard is not None:
                clipboard.setText(engine.install_command())
        elif action == "compute":
            self.session.work.compute(control.to_compute())

    # What is shown

    def _refresh(self) -> None:
        control = self.session.control
        self.a.show_choices(control.a_choices(), control.a)
        self.b.show_choices(control.b_choices(), control.b)
        self._refresh_sides()
        self._refresh_hint()

    def _refresh_sides(self) -> None:
        control = self.session.control
        able = control.book.encoder is not None and not control.book.engine_missing
        self.a.show_scan(control.scan_a, can_compute=able)
        self.b.show_scan(control.scan_b, can_compute=able)
        self.swap.setEnabled(bool(control.b) and control.b not in control.own_b)

    def _refresh_hint(self) -> None:
        control, session = self.session.control, self.session
        hint = control.hint(self.hub.viewer.dims.ndisplay)
        text = hint.text
        if hint.action == "install":
            text = f"{text}\n{engine.install_command()}"
        elif control.is_ready and session.searching.is_preparing:
            text = PREPARING
        rows.tell(self.hint, text)
        self.act.setText(_ACTIONS.get(hint.action, ""))
        rows.named(self.act, _ACTIONS.get(hint.action, "Do it").rstrip("."), text)
        self.act.setVisible(hint.action in _ACTIONS)
        self.bring.setVisible(hint.action == "pretrain")
        for widget in (self.pick, self.follow):
            widget.setEnabled(control.is_ready)
        self.second.setVisible(session.view is None)
        self.second.setEnabled(control.scan_b is not None)

    # Models

    def _heard(self, what: str) -> None:
        if what in ("runs", "models"):
            self.shown()
        elif what == "features" and not self.session.work.busy:
            self.session.look_again()

    def _list(self, choices: list[ModelChoice]) -> None:
        book = self.session.control.book
        now, book.encoders = book.encoder, choices
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
        self.session.choose_encoder(choices[chosen] if choices else None)
        self._refresh()

    def _not_listed(self, error: Exception) -> None:
        self.hub.say(f"The models could not be listed: {error}", "error")


def _key(row: SideRow) -> str:
    return str(row.scan.currentData() or "")
