"""Saves what was drawn and pinned every few minutes, and offers it again."""

from __future__ import annotations

import contextlib
import re
import shutil
import time
import weakref
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QObject, QTimer, Signal
from qtpy.QtWidgets import QFrame, QLabel, QVBoxLayout

from homolog.gui.autosave import saved_work
from homolog.gui.autosave.saved_work import (
    Left,
    SavedWork,
    add_pins,
    pins_of,
    read_saved,
    scans_to_open,
)
from homolog.gui.files import opening
from homolog.gui.files.choosing import ScanOpener
from homolog.gui.files.writer import save_layer
from homolog.gui.landmarks.control import kept, put_back
from homolog.gui.shared import preferences, widgets
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.layers import (
    LayerData,
    is_kind,
    label_names,
    notes_of,
    sample,
    shape_of,
    shown_affine,
)
from homolog.gui.shared.models import to_trash
from homolog.gui.shared.threads import in_background
from homolog.writing import FileLock, put_in_place

# A label layer as it is at one moment, copied in slices, and its file. No Qt.


class Labels:
    """What the writer asks of a layer, free of it; named as napari's by intent.

    Args:
        layer: An image or labels layer.
        data: Its copied voxels; None keeps only the shape.
    """

    def __init__(self, layer: Any, data: NDArray[Any] | None = None) -> None:
        ndim = len(layer.data.shape)
        self.data = np.broadcast_to(np.uint8(0), layer.data.shape)
        if data is not None:
            self.data = data
        self.ndim = ndim
        self.name = str(layer.name)
        self.multiscale = bool(getattr(layer, "multiscale", False))
        self.rgb = bool(getattr(layer, "rgb", False))
        for field in ("scale", "translate", "rotate", "shear"):
            setattr(self, field, np.array(getattr(layer, field)))
        self.units = tuple(str(u) for u in layer.units or ())
        self.affine = _Placed(np.array(layer.affine.affine_matrix))
        self.metadata = dict(layer.metadata)
        names = label_names(layer)
        if names:
            self.metadata["label_names"] = names
        # What ``data_to_world`` is at this moment; it is linear.
        zero = np.zeros(ndim)
        self._origin = np.array(layer.data_to_world(zero), np.float64)
        self._steps = np.stack(
            [np.array(layer.data_to_world(e)) - self._origin for e in np.eye(ndim)]
        )

    def data_to_world(self, place: Any) -> NDArray[np.float64]:
        """Voxel index -> world, as napari's layers do."""
        world: NDArray[np.float64] = self._origin + np.asarray(place) @ self._steps
        return world


class _Placed:
    def __init__(self, matrix: NDArray[np.float64]) -> None:
        self.affine_matrix = matrix


class Copying:
    """Copies a layer's voxels a few milliseconds at a time, on the GUI thread.

    Args:
        layer: A labels layer of two or three dimensions.
    """

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self._shape, self._type = tuple(layer.data.shape), layer.data.dtype
        self._copy: NDArray[Any] = np.empty(self._shape, self._type)
        self._next = 0

    def step(self, seconds: float) -> bool:
        """Go on for so long; whether all is copied.

        Raises:
            ValueError: The layer's array has another shape or type by now.
        """
        data = self._layer.data
        if tuple(data.shape) != self._shape or data.dtype != self._type:
            raise ValueError(f"{self._layer.name} changed its shape.")
        until = time.monotonic() + seconds
        while self._next < len(self._copy):
            self._copy[self._next] = np.asarray(data[self._next])
            self._next += 1
            if time.monotonic() > until:
                break
        return self._next >= len(self._copy)

    def taken(self) -> Labels:
        """The layer as it was copied."""
        return Labels(self._layer, self._copy)


def why_not_saved(layer: Any) -> str:
    """Why a labels layer cannot be saved by itself; "" when it can."""
    if getattr(layer, "multiscale", False) or len(layer.data.shape) not in (2, 3):
        return (
            f"{layer.name} is not saved by itself: only label layers of 2 or 3 "
            "dimensions are. Save it with File > Save Selected Layers."
        )
    return ""


def save(
    copy: Labels, others: Sequence[Any], folder: Path, file: str, known: int | None
) -> int:
    """Write a label file, if its voxels are others than those written before.

    Args:
        copy: From ``Copying.taken``.
        others: Layers open beside it (``Labels`` without voxels do); see the writer.
        folder: Exists.
        file: Name in it; replaced at once, never half written.
        known: What this returned last.

    Returns:
        The checksum of the voxels.
    """
    checksum = zlib.crc32(np.ascontiguousarray(copy.data).data.cast("B"))
    if checksum == known and (folder / file).is_file():
        return checksum
    scratch = folder / f"{file}.part"  # of its own: the writer replaces nothing
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        for made in save_layer(copy, scratch / file, others):
            put_in_place(made, folder / made.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return checksum


def file_name(number: int, name: str) -> str:
    """Of a layer's file; the number keeps equal names apart."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_")[:60]
    return f"{number:02d}_{plain or 'labels'}.nii.gz"


def entry_of(layer: Any, file: str, layers: Iterable[Any]) -> dict[str, Any]:
    """What session.json tells of a label layer; plain JSON types. Quick."""
    notes = notes_of(layer)
    return {
        "file": file,
        "name": str(layer.name),
        "ndim": len(layer.data.shape),
        "source": _scan_under(layer, layers),
        "own_file": "" if notes.get("derived") else str(notes.get("source") or ""),
        "label_names": {str(v): n for v, n in label_names(layer).items()},
        "colours": _colours(layer),
        "opacity": float(layer.opacity),
        "visible": bool(layer.visible),
    }


def _scan_under(layer: Any, layers: Iterable[Any]) -> str:
    """Path of the scan that a label layer lies on, "" when none is known."""
    notes = notes_of(layer)
    if notes.get("derived"):
        return str(notes.get("source") or "")
    place = shown_affine(layer).matrix
    for other in layers:
        source = str(notes_of(other).get("source") or "")
        if (
            source
            and is_kind(other, "Image")
            and shape_of(other) == shape_of(layer)
            and np.allclose(shown_affine(other).matrix, place, rtol=1e-5, atol=1e-3)
        ):
            return source
    return ""


def _colours(layer: Any) -> dict[str, list[float]]:
    """Label value (or ``other``) -> red, green, blue, opacity, where they were set."""
    table = getattr(layer.colormap, "color_dict", None)
    if not table:
        return {}
    return {
        "other" if value is None else str(int(value)): [float(c) for c in colour]
        for value, colour in table.items()
    }


# Whether the user changed a label layer since it was saved. No Qt.


# The last two come with undo, but also with every other slice that is shown.
_CHANGES, _DOUBTS = ("data", "paint", "labels_update"), ("set_data",)


class Watched:
    """A labels layer: whether the user changed it, and what of it is saved."""

    def __init__(self, layer: Any, number: int) -> None:
        self.layer, self.number = layer, number
        self.changes = self.saved = 0
        self.doubt = False
        self.file = ""
        self.checksum: int | None = None
        for name, function in self._emitters():
            getattr(layer.events, name).connect(function)

    @property
    def wants(self) -> bool:
        """Whether it may differ from its file; undo only follows a change."""
        return self.changes > self.saved or (bool(self.file) and self.doubt)

    def leave(self) -> None:
        """Hear no more."""
        for name, function in self._emitters():
            with contextlib.suppress(Exception):
                getattr(self.layer.events, name).disconnect(function)

    def changed(self, event: Any = None) -> None:
        """Its voxels changed."""
        self.changes += 1

    def doubted(self, event: Any = None) -> None:
        """Its voxels may have changed."""
        self.doubt = True

    def _emitters(self) -> list[tuple[str, Callable[..., None]]]:
        return [(n, self.changed) for n in _CHANGES] + [
            (n, self.doubted) for n in _DOUBTS
        ]


def has_values(layer: Any) -> bool:
    """Whether a layer is not empty, by some of its voxels."""
    data = layer.data
    return isinstance(data, np.ndarray) and bool(sample(data).any())


def is_labels(layer: Any) -> bool:
    """Whether a layer can be drawn on."""
    return is_kind(layer, "Labels")


def is_scan(layer: Any) -> bool:
    """Whether a layer is a scan as opened from its file."""
    notes = notes_of(layer)
    return is_kind(layer, "Image") and bool(
        notes.get("source") and not notes.get("derived")
    )


_SLICE_S, _PAUSE_MS = 0.004, 4
_MINUTE_MS = 60_000


class Autosaver(QObject):
    """Of one window; begins with ``start``.

    Signals:
        saved: A round ended well; the number of label layers that were looked at.
    """

    saved = Signal(int)

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub)
        self.work = SavedWork()
        self._hub = hub
        self._panel: Callable[[bool], Any] = lambda make: None
        # The landmark panel, as ``start``'s ``panel`` is Explore's.
        self.landmark_panel: Callable[[bool], Any] = lambda make: None
        # Layers whose paint is offered again even after a regular close.
        self.kept_at_close: Callable[[], list[Any]] = list
        self._is_open: Callable[[], bool] = lambda: True
        self._on = self._busy = self._again = False
        self._watched: dict[str, Watched] = {}
        self._count = self._looked = 0
        self._queue: list[Watched] = []
        self._now: tuple[Watched, Copying, int] | None = None
        self._written: Any = None
        self._told: set[str] = set()
        self._after: list[Callable[[], None]] = []
        self._due: list[Callable[[], None]] = []
        self._timer = QTimer(self)
        self._timer.timeout.connect(self.tick)
        self._slices = QTimer(self)
        self._slices.setInterval(_PAUSE_MS)
        self._slices.timeout.connect(self._copy_on)

    def start(self, panel: Callable[[bool], Any], is_open: Callable[[], bool]) -> None:
        """Watch the viewer's label layers.

        Args:
            panel: The Explore panel; None where it is not there and the argument, to
                make it, is False.
            is_open: Whether the window is still there.
        """
        if self._on or self._hub.viewer is None:
            return
        self._on, self._panel, self._is_open = True, panel, is_open
        layers = self._hub.viewer.layers
        for layer in filter(is_labels, layers):
            # What was drawn before we came is not known.
            self._watch(layer, drawn=not notes_of(layer))
        layers.events.inserted.connect(self._inserted)
        layers.events.removed.connect(self._removed)
        self._hub.closing.connect(self.close)
        self._timer.start(max(1, _minutes()) * _MINUTE_MS)

    def end(self) -> None:
        """The panel goes: watch no more, and count that as closed."""
        if not self._on:
            return
        self._on = False
        self._timer.stop()
        self._slices.stop()
        events = self._hub.viewer.layers.events
        for emitter, function in (
            (events.inserted, self._inserted), (events.removed, self._removed),
        ):  # fmt: skip
            with contextlib.suppress(Exception):
                emitter.disconnect(function)
        for watched in self._watched.values():
            watched.leave()
        self.close()

    def close(self) -> None:
        """The window closes regularly; unsaved paint of ``kept_at_close`` is kept."""
        try:
            if not self._kept():
                self.work.close()
        except OSError as error:
            self._tell(error)

    def _kept(self) -> bool:
        """Save paint in one go, since the window ends; whether there is some."""
        own = {str(layer.unique_id) for layer in self.kept_at_close()}
        held = [w for key, w in self._watched.items() if key in own]
        held = [w for w in held if has_values(w.layer)]
        if not held or self.work.is_closed or _minutes() <= 0:
            return False
        scans = [Labels(x) for x in self._hub.viewer.layers if is_scan(x)]
        for watched in held:
            copy = Labels(watched.layer, np.asarray(watched.layer.data))
            file = watched.file or file_name(watched.number, copy.name)
            watched.checksum = _save(
                self.work, _root(), copy, scans, file, watched.checksum
            )
            watched.file = file
        self.work.write(_root(), *self._content())
        return True

    def explorer(self, make: bool = False) -> Any:
        """Explore's state, or None while its tab was never shown.

        Args:
            make: Make the panel where there is none.
        """
        return getattr(self._panel(make), "explorer", None)

    def landmarks(self, make: bool = False) -> Any:
        """The pair of the tab Landmarks, or None while its tab was never shown."""
        return getattr(self.landmark_panel(make), "pair", None)

    def take_over(self, layers: list[Any], done: Callable[[], None]) -> None:
        """Count layers as drawn by hand; ``done`` once they are saved."""
        if not self._on or _minutes() <= 0:
            return  # it is offered again
        for layer in layers:
            watched = self._watched.get(str(layer.unique_id))
            if watched is not None:
                watched.changed()
        self._after.append(done)
        self.tick()

    def tick(self) -> None:
        """Save what changed; returns at once."""
        minutes = _minutes()
        self._timer.setInterval(max(1, minutes) * _MINUTE_MS)
        if minutes <= 0 or not self._on:
            return
        if self._busy:
            self._again = bool(self._after)
            return
        if self.work.is_closed:
            if not self._is_open():
                return
            self.work.reopen()
            self._written = None
        self._busy, self._looked = True, 0
        self._due, self._after = self._after, []
        self._queue = [w for w in self._watched.values() if w.wants]
        self._next()

    def _next(self) -> None:
        while self._queue:
            watched = self._queue.pop()
            reason = why_not_saved(watched.layer)
            if reason:
                self._tell(reason)
                watched.saved = watched.changes
                continue
            try:
                copying = Copying(watched.layer)
            except Exception as error:  # noqa: BLE001 - too large for the memory left
                self._due = []
                self._tell(error)
                continue
            watched.doubt = False
            self._now = (watched, copying, watched.changes)
            self._slices.start()
            return
        self._write()

    def _copy_on(self) -> None:
        if self._now is None:
            self._slices.stop()
            return
        watched, copying, changes = self._now
        try:
            if not copying.step(_SLICE_S):
                return
            copy = copying.taken()
            others = [Labels(x) for x in self._hub.viewer.layers if is_scan(x)]
        except Exception as error:  # noqa: BLE001 - the layer went or was replaced
            self._slices.stop()
            self._now = None
            self._not_saved(error)
            return
        self._slices.stop()
        self._now = None
        file = watched.file or file_name(watched.number, copy.name)

        def done(checksum: int) -> None:
            watched.file, watched.checksum = file, checksum
            watched.saved = changes
            self._looked += 1
            self._write()  # each layer counts at once

        in_background(
            _save, self.work, _root(), copy, others, file, watched.checksum,
            owner=self, done=done, failed=self._not_saved,
        )  # fmt: skip

    def _not_saved(self, error: Exception) -> None:
        """One layer; the others are saved all the same."""
        self._due = []
        self._tell(error)
        self._next()

    def _write(self) -> None:
        """The list of files, pins and open scans, where it is another than before."""
        try:
            whole = content, pins = self._content()
        except Exception as error:  # noqa: BLE001 - a timer's slot never raises
            self._failed(error)
            return
        there = content["labels"] or pins or content.get("landmarks")
        is_empty = not (there or self.work.folder)
        if whole == self._written or is_empty:
            self._finish()
            return

        def done(_: object) -> None:
            self._written = whole
            self._finish()

        in_background(
            self.work.write, _root(), content, pins,
            owner=self, done=done, failed=self._failed,
        )  # fmt: skip

    def _content(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """What session.json tells, and the pins."""
        layers = list(self._hub.viewer.layers)
        labels = [
            entry_of(w.layer, w.file, layers) for w in self._watched.values() if w.file
        ]
        explorer, marks = self.explorer(), self.landmarks()
        scans = [str(notes_of(x)["source"]) for x in layers if is_scan(x)]
        content: dict[str, Any] = {
            "labels": labels, "scans": list(dict.fromkeys(scans)),
        }  # fmt: skip
        landmarks = [] if marks is None else kept(marks.control)
        if landmarks:
            content["landmarks"] = landmarks
        return content, [] if explorer is None else pins_of(explorer)

    def _finish(self) -> None:
        if self._queue:
            self._next()
            return
        due, self._due = self._due, []
        self._busy = False
        for function in due:
            function()
        self.saved.emit(self._looked)
        if self._again:
            self._again = False
            self.tick()

    def _failed(self, error: Exception) -> None:
        """Told once per cause; what is not saved is tried again at the next tick."""
        self._slices.stop()
        self._now = None
        self._queue, self._due = [], []
        self._busy = False
        self._tell(error)

    def _tell(self, problem: Exception | str) -> None:
        text = str(problem)
        if isinstance(problem, Exception):
            text = (
                f"Your labels cannot be saved by themselves: {text or problem!r} "
                "Save them with File > Save Selected Layers."
            )
        if text not in self._told:
            self._told.add(text)
            self._hub.say(text, "warning")

    def _watch(self, layer: Any, drawn: bool) -> None:
        self._count += 1
        watched = Watched(layer, self._count)
        self._watched[str(layer.unique_id)] = watched
        if drawn:
            watched.changed()

    def _inserted(self, event: Any) -> None:
        if is_labels(event.value):
            # Such as the copy of a drawn one; predictions have notes of ours.
            drawn = not notes_of(event.value) and has_values(event.value)
            self._watch(event.value, drawn)

    def _removed(self, event: Any) -> None:
        watched = self._watched.pop(str(event.value.unique_id), None)
        if watched is not None:
            watched.leave()


def autosave_of(hub: Hub) -> Autosaver:
    """The autosave of a window, made when first asked for."""
    found: Autosaver | None = getattr(hub, "_homolog_autosave", None)
    if found is None:
        found = Autosaver(hub)
        hub._homolog_autosave = found
    return found


def _save(
    work: SavedWork, root: Path, copy: Labels, others: list[Any], file: str,
    known: int | None,
) -> int:  # fmt: skip
    return save(copy, others, work.begin(root), file, known)


def _root() -> Path:
    return preferences.home() / "sessions"


def _minutes() -> int:
    return int(preferences.get("session", "autosave_minutes", 2))


# The bar that offers what was saved before napari ended; no dialog.


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
