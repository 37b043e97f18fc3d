"""Predictions undone, compared with the one before, and where to paint next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from qtpy.QtCore import QObject, Signal

from homolog.gui.explore.layers import ExploreLayers, Mark, shown_of
from homolog.gui.explore.marks import mark_size, slice_steps
from homolog.gui.label.history import History, Packed
from homolog.gui.label.learning import Labels, next_place
from homolog.gui.label.session import LabelSession
from homolog.gui.label.words import next_line
from homolog.gui.threads import in_background

NEXT = "Paint here next"
_COLOUR = "#f0e442"


class Places(QObject):
    """What can be done with a prediction.

    Signals:
        changed: Something can be undone, or no longer; another round is shown.
        told: A sentence about what was done.

    Args:
        session: Whose predictions they are.
    """

    changed = Signal()
    told = Signal(str)

    def __init__(self, session: LabelSession) -> None:
        super().__init__(session)
        self._session = session
        self.history = History()
        self.is_before = False
        self._marks = ExploreLayers(session.viewer, lambda *_: None)
        session.trainer.predicted.connect(self._predicted)
        session.trainer.changed.connect(self._worked)

    def undo(self) -> None:
        """Back to the prediction before; the paint stays."""
        if self._session.trainer.busy:
            self.told.emit("Wait for the running prediction, then undo.")
            return
        found = self.history.undo()
        if found:
            self.is_before = False
            self._show(found, "The prediction before is back; your paint is unchanged.")

    def show_before(self, on: bool) -> None:
        """Look at the prediction before, or at the newest again."""
        if on == self.is_before or self._session.trainer.busy:
            return
        found = self.history.before() if on else self.history.now()
        if found:
            self.is_before = on
            words = "You see the prediction before the last one." if on else ""
            self._show(found, words)

    def next(self) -> None:
        """Go where one more stroke helps most, and mark it."""
        session = self._session
        fitted = session.trainer.last
        if fitted is None or session.trainer.busy:
            self.told.emit("There is no finished prediction yet; paint two classes.")
            return

        def done(found: Any) -> None:
            if found is None:
                self.told.emit(
                    "No place in the body is uncertain and away from your paint."
                )
            else:
                self._go(*found)

        in_background(
            next_place, fitted, session.front(), owner=self, done=done,
            failed=lambda error: self.told.emit(f"⚠ {error}"),
        )  # fmt: skip

    def unmark(self) -> None:
        """Hide the mark; taking its layer away costs napari a third of a second."""
        for layer in self._session.viewer.layers:
            if layer.name == NEXT and layer.visible:
                layer.visible = False

    def end(self) -> None:
        """The panel goes."""
        self._marks.close()

    def _go(self, key: str, click: Any) -> None:
        session = self._session
        scan, desk = session.book.scans.get(key), session.desks.get(key)
        if scan is None or desk is None:
            return
        shown = shown_of(scan.to_true, click.mm)
        text = " or ".join(click.likely) + "?"
        scans = list(session.book.scans.values())
        size, steps = mark_size(scans), slice_steps(scans)
        self._marks.show_marks(NEXT, [Mark(shown, text, "ring", _COLOUR)], size, steps)
        for layer in session.viewer.layers:
            if layer.name == NEXT:
                layer.visible = True
        session.travel.look_at(key, click.mm)
        if desk.painted is not None:
            session.viewer.layers.selection.active = desk.painted
        self.told.emit(next_line(click.likely, click.uncertainty, scan.ref.name))

    def _predicted(self, found: Mapping[str, Packed]) -> None:
        self.history.push(found)
        self.is_before = False
        self._session.redraw()
        self.changed.emit()

    def _worked(self) -> None:
        if self._session.trainer.state == "fitting":
            self.unmark()
        self.changed.emit()

    def _show(self, found: Mapping[str, Packed], words: str) -> None:
        targets: list[tuple[Packed, Labels]] = []
        for key, packed in found.items():
            desk = self._session.desks.get(key)
            if desk is not None and desk.predicted is not None:
                targets.append((packed, np.asarray(desk.predicted.data)))

        def done(_: object) -> None:
            self._session.redraw()
            self.told.emit(words)
            self.changed.emit()

        in_background(
            _unpack, targets, owner=self, done=done,
            failed=lambda error: self.told.emit(f"⚠ {error}"),
        )  # fmt: skip


def _unpack(targets: list[tuple[Packed, Labels]]) -> None:
    for packed, target in targets:
        packed.into(target)
