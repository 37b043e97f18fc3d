"""The bar that offers what was saved before napari ended; no dialog."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qtpy.QtWidgets import QFrame, QLabel, QVBoxLayout

from homolog.gui.autosave import saved_work
from homolog.gui.autosave.saved_work import Left, add_pins, read_saved, scans_to_open
from homolog.gui.autosave.saver import autosave_of
from homolog.gui.files import opening
from homolog.gui.files.choosing import ScanOpener
from homolog.gui.landmarks.control import put_back
from homolog.gui.shared import preferences, widgets
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.layers import LayerData
from homolog.gui.shared.models import to_trash
from homolog.gui.shared.threads import in_background
from homolog.writing import FileLock


class RestoreBar(QFrame):
    """A sentence and three buttons, shown while lost work can be restored.

    Args:
        hub: Of the window.
    """

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self.hub = hub
        self.ask = widgets.ask
        self.offers: list[Left] = []
        self._then: Callable[[], None] | None = None
        self.setFrameShape(QFrame.Shape.StyledPanel)
        widgets.named(
            self, "Offer to restore your work", "Saved before napari ended unexpectedly"
        )
        self.words = widgets.named(
            QLabel(), "What can be restored", "Saved while you worked"
        )
        self.words.setWordWrap(True)
        self.restore = widgets.button(
            "Restore", "Open the scans again, with your labels and pinned places",
            self._restore,
        )  # fmt: skip
        self.not_now = widgets.button(
            "Not now", "Keep it; it is offered again at the next start", self._put_off
        )
        self.delete = widgets.button(
            "Delete...", "Move these saved labels and pins to the trash", self._delete
        )
        self.opener = ScanOpener(hub, self)
        self.opener.working.connect(self._opening)
        column = QVBoxLayout(self)
        column.setContentsMargins(6, 4, 6, 4)
        column.addWidget(self.words)
        column.addLayout(widgets.beside(self.restore, self.not_now, self.delete))
        self.hide()
        sessions_folder = preferences.home() / "sessions"
        # The answer comes when the tab is already seen.
        widgets.keep_room(self, keep=has_entries(sessions_folder))
        in_background(
            _look, sessions_folder,
            owner=self, done=self._offer, failed=lambda _: None,
        )  # fmt: skip

    def _offer(self, found: list[Left]) -> None:
        """Show the newest of what can be restored, or nothing."""
        self.offers = found
        self._allow(True)
        if found:
            self.words.setText(found[0].sentence())
            widgets.keep_room(self)  # answered, it leaves its place empty for now
        self.setVisible(bool(found))

    def give_way(self) -> None:
        """The tab is shown again: a bar without an offer takes no room any more."""
        if self.isHidden():
            widgets.keep_room(self, keep=False)

    def _allow(self, on: bool) -> None:
        for button in (self.restore, self.not_now, self.delete):
            button.setEnabled(on)

    def _put_off(self) -> None:
        for left in self.offers:
            in_background(
                saved_work.put_off, left, owner=self, failed=lambda _: None
            )  # a folder that cannot be written stays offered
        self._offer([])

    def _delete(self) -> None:
        left = self.offers[0]
        question = widgets.Question(
            title="Delete saved work",
            text=left.sentence() + " Move them to the trash?",
            more="They were never saved as files of yours.",
            answers=[("delete", "Move to trash"), ("cancel", "Cancel")],
            default="cancel",
        )
        if self.ask(self, question).key != "delete":
            return
        self._allow(False)
        in_background(
            _trash, left, owner=self, done=lambda _: self._offer(self.offers[1:]),
            failed=self._not_done,
        )  # fmt: skip

    def _restore(self) -> None:
        self._allow(False)
        in_background(
            _claim_and_read, self.offers[0],
            owner=self, done=self._open_scans, failed=self._not_done,
        )  # fmt: skip

    def _not_done(self, error: Exception) -> None:
        self._allow(True)
        self.hub.say(f"{error}", "warning")

    def _open_scans(self, read: _Read) -> None:
        """First the scans, so that labels lie above them."""
        there, gone = scans_to_open(read.left, self.hub.viewer.layers)
        if gone:
            names = ", ".join(path.name for path in gone)
            self.hub.say(f"No longer there, so not opened: {names}.", "warning")
        self._then = lambda: self._add(read)
        if there:
            self.opener.open(there)
        else:
            self._opening("")

    def _opening(self, text: str) -> None:
        if not text and self._then is not None:
            then, self._then = self._then, None
            then()

    def _add(self, read: _Read) -> None:
        """Labels and pins; then what was restored is offered no more."""
        lost, added = list(read.lost), []
        for layer, entry in zip(read.layers, read.entries, strict=True):
            try:
                added += opening.add_to(self.hub.viewer, layer)
            except Exception as error:  # noqa: BLE001 - the others are restored
                lost.append(entry)
                read.why.append(f"{entry['name']} cannot be restored: {error}")
        for sentence in read.why:
            self.hub.say(sentence, "warning")
        waiting = self._add_pins(read.left)
        landmarks = self._add_landmarks(read.left)
        if waiting:
            names = ", ".join(sorted({str(pin["scan"]) for pin in waiting}))
            self.hub.say(
                f"Pins wait for their scan ({names}); they stay saved and are offered "
                "again at the next start.",
                "warning",
            )

        def settle() -> None:
            in_background(
                _settle,
                read,
                lost,
                waiting,
                landmarks,
                owner=self,
                failed=self._not_done,
            )

        autosave_of(self.hub).take_over(added, settle)
        self._offer(self.offers[1:])

    def _add_pins(self, left: Left) -> list[dict[str, Any]]:
        """Put pins back; returns those that wait."""
        if not left.pins:
            return []
        try:
            explorer = autosave_of(self.hub).explorer(make=True)
            if explorer is None:
                return list(left.pins)
            explorer.sync()
            waiting = add_pins(explorer, left.pins)
            explorer.pins_told()
        except Exception as error:  # noqa: BLE001 - a slot never raises
            self.hub.say(f"The pins cannot be restored: {error}", "warning")
            return list(left.pins)
        return waiting

    def _add_landmarks(self, left: Left) -> list[dict[str, Any]]:
        """Put landmarks back; returns those that could not be."""
        if not left.landmarks:
            return []
        try:
            pair = autosave_of(self.hub).landmarks(make=True)
            if pair is None:
                return list(left.landmarks)
            put_back(pair.control, left.landmarks)
            pair.placing.table_edited()
        except Exception as error:  # noqa: BLE001 - a slot never raises
            self.hub.say(f"The landmarks cannot be restored: {error}", "warning")
            return list(left.landmarks)
        return []


class _Read:
    """Saved work as read, held against other windows by its lock."""

    def __init__(self, left: Left, lock: FileLock) -> None:
        self.left, self.lock = left, lock
        weakref.finalize(self, lock.release)
        self.layers: list[LayerData]
        self.layers, self.lost, self.why = read_saved(left)
        self.entries = [e for e in left.labels if e not in self.lost]


def has_entries(folder: Path) -> bool:
    """Whether a folder is there and holds anything."""
    try:
        return next(folder.iterdir(), None) is not None
    except OSError:
        return False


def _look(root: Path) -> list[Left]:
    saved_work.tidy(root)
    return saved_work.left_behind(root)


def _claim_and_read(left: Left) -> _Read:
    lock = saved_work.claim(left)
    if lock is None:
        raise OSError("Another window is restoring this already.")
    try:
        return _Read(left, lock)
    except BaseException:
        lock.release()
        raise


def _settle(
    read: _Read,
    lost: list[dict[str, Any]],
    waiting: list[dict[str, Any]],
    landmarks: list[dict[str, Any]],
) -> None:
    saved_work.settle(read.left, lost, waiting, landmarks)
    read.lock.release()


def _trash(left: Left) -> None:
    lock = saved_work.claim(left)
    if lock is None:
        raise OSError("Another window is restoring this; it was not deleted.")
    lock.release()  # Windows moves no open file
    to_trash(left.folder)
