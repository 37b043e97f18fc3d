"""Folders of saved work, one per window; those of windows that ended without closing.

``home/sessions/20261120-143200/`` holds label files, ``pins.json``, ``session.json``
and a lock that the operating system frees when the window's process dies. No Qt.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from homolog.errors import UnusableInput
from homolog.gui.files.scan_layer import why_not
from homolog.gui.shared.layers import KEY, LayerData, label_layer, notes_of
from homolog.json_files import Shape, read_object
from homolog.scans.files import read_labels
from homolog.scans.names import names_file
from homolog.scans.paths import is_series_path
from homolog.words import listed
from homolog.writing import FileLock, is_locked, make_folder, write_json

FORMAT = 1
FILE, PINS, LOCK = "session.json", "pins.json", "lock"
KEPT = timedelta(days=14)
_SHAPE: Shape = {
    "format": int, "time?": str, "closed?": str | None, "labels?": list[dict[str, Any]],
    "scans?": list, "landmarks?": list,
}  # fmt: skip


class SavedWork:
    """The saved work of one window; its folder is made with the first file.

    Its methods are called on threads, one at a time but for ``close``.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None
        self._content: dict[str, Any] = {}
        self._closed = ""
        self._writing = threading.Lock()

    @property
    def is_closed(self) -> bool:
        """Whether the window closed regularly."""
        return bool(self._closed)

    def begin(self, root: Path) -> Path:
        """Its folder, made and locked when it is not there yet.

        Args:
            root: ``home/sessions``.

        Raises:
            OSError: It cannot be made.
        """
        if self.folder is None:
            make_folder(root)
            stem, number = f"{datetime.now():%Y%m%d-%H%M%S}", 1
            folder = root / stem
            while True:
                try:
                    folder.mkdir(mode=0o700)
                    break
                except FileExistsError:  # another window of the same second
                    number += 1
                    folder = root / f"{stem}-{number}"
            lock = FileLock(folder / LOCK)
            if not lock.acquire():
                raise OSError(f"{folder} cannot be locked")
            self.folder = folder
            weakref.finalize(self, lock.release)
        return self.folder

    def write(
        self, root: Path, content: Mapping[str, Any], pins: Sequence[Mapping[str, Any]]
    ) -> None:
        """Write what the window holds; label files that are gone from it go.

        Args:
            root: ``home/sessions``.
            content: ``labels`` (a dict per file), ``scans`` (paths), ``landmarks``.
            pins: A dict per pinned place.
        """
        folder = self.begin(root)
        _put_pins(folder, pins)
        with self._writing:
            self._content = {
                "format": FORMAT,
                "time": datetime.now().isoformat(timespec="seconds"),
                "pid": os.getpid(),
                **content,
            }
            self._write()
        wanted = {str(entry["file"]) for entry in content["labels"]}
        for file in folder.glob("*.nii.gz"):
            if file.name not in wanted:
                file.unlink(missing_ok=True)
                names_file(file).unlink(missing_ok=True)

    def close(self) -> None:
        """The window closes regularly: nothing needs to be offered."""
        with self._writing:
            self._closed = datetime.now().isoformat(timespec="seconds")
            if self._content:
                self._write()

    def reopen(self) -> None:
        """The window did not close after all; takes effect with the next ``write``."""
        self._closed = ""

    def _write(self) -> None:
        assert self.folder is not None
        _put(self.folder, {**self._content, "closed": self._closed or None})


@dataclass(frozen=True)
class Left:
    """Saved work of a window that ended without closing.

    Attributes:
        folder: Where it lies.
        time: Of the last save.
        labels: An entry per label file.
        pins: An entry per pinned place.
        scans: Paths that were open.
        landmarks: An entry per pair of scans (``landmarks.keeping``).
    """

    folder: Path
    time: datetime
    labels: tuple[dict[str, Any], ...]
    pins: tuple[dict[str, Any], ...]
    scans: tuple[str, ...]
    landmarks: tuple[dict[str, Any], ...] = ()

    def sentence(self, now: datetime | None = None) -> str:
        """What is offered."""
        held = (
            (self.labels, "labels"), (self.pins, "pins"), (self.landmarks, "landmarks"),
        )  # fmt: skip
        words = [word for entries, word in held if entries]
        what = listed(words).capitalize() or "Labels"
        today = (now or datetime.now()).date() == self.time.date()
        when = f"{self.time:%H:%M}" if today else f"{self.time:%d %b %Y, %H:%M}"
        return f"{what} of {when} were saved before napari ended."


def left_behind(root: Path) -> list[Left]:
    """Work that can be restored, newest first; broken folders are passed over."""
    found = []
    for folder in _folders(root):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            content = _get(folder)
            if content["closed"] or is_locked(folder / LOCK):
                continue
            labels = tuple(x for x in content["labels"] if _is_there(folder, x))
            left = Left(
                folder, datetime.fromisoformat(content["time"]), labels,
                tuple(_pins(folder)), tuple(map(str, content["scans"])),
                tuple(content.get("landmarks", ())),
            )  # fmt: skip
            if left.labels or left.pins or left.landmarks:
                found.append(left)
    return sorted(found, key=lambda left: left.time, reverse=True)


def tidy(root: Path, now: datetime | None = None) -> None:
    """Remove work of windows that were closed, and old work that the user put off.

    Only folders that hold a session.json of ours and belong to no living window go.
    """
    now = now or datetime.now()
    for folder in _folders(root):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            content = _get(folder)
            old = now - datetime.fromisoformat(content["time"]) > KEPT
            if not (content["closed"] or (old and content.get("put_off"))):
                continue
            lock = FileLock(folder / LOCK)
            if lock.acquire():
                lock.release()  # Windows removes no open file
                shutil.rmtree(folder)


def put_off(left: Left) -> None:
    """The user has seen the offer and answered "Not now"."""
    _put(left.folder, {**_get(left.folder), "put_off": True})


def claim(left: Left) -> FileLock | None:
    """Take saved work for restoring; None when another window has it."""
    lock = FileLock(left.folder / LOCK)
    return lock if lock.acquire() else None


def settle(
    left: Left,
    labels: Sequence[Mapping[str, Any]],
    pins: Sequence[Mapping[str, Any]],
    landmarks: Sequence[Mapping[str, Any]] = (),
) -> None:
    """After restoring: only what could not be restored is offered again.

    Args:
        left: The saved work.
        labels: Entries that were not restored.
        pins: Likewise.
        landmarks: Likewise.
    """
    _put_pins(left.folder, pins)
    content = {
        **_get(left.folder), "labels": list(labels), "landmarks": list(landmarks),
    }  # fmt: skip
    if not labels and not pins and not landmarks:
        content["closed"] = datetime.now().isoformat(timespec="seconds")
    _put(left.folder, content)


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return [p for p in sorted(root.iterdir()) if (p / FILE).is_file()]


def _is_there(folder: Path, entry: Mapping[str, Any]) -> bool:
    name = str(entry["file"])
    return Path(name).name == name and (folder / name).is_file()


def _pins(folder: Path) -> list[dict[str, Any]]:
    if not (folder / PINS).is_file():
        return []
    return list(read_object(folder / PINS, {"pins": list[dict[str, Any]]})["pins"])


def _get(folder: Path) -> dict[str, Any]:
    content = read_object(folder / FILE, _SHAPE)
    if content["format"] != FORMAT:
        raise UnusableInput(f"{folder}: a session of another format.")
    return content


def _put(folder: Path, content: Mapping[str, Any]) -> None:
    write_json(folder / FILE, content)


def _put_pins(folder: Path, pins: Sequence[Mapping[str, Any]]) -> None:
    write_json(folder / PINS, {"format": FORMAT, "pins": list(pins)}, indent=None)


# Saved work back to layers and pinned places. No Qt.


def read_saved(left: Left) -> tuple[list[LayerData], list[dict[str, Any]], list[str]]:
    """The label layers of saved work; on a thread.

    Returns:
        Layers to add, entries that could not be read, and a sentence for each.
    """
    layers: list[LayerData] = []
    lost: list[dict[str, Any]] = []
    why: list[str] = []
    for entry in left.labels:
        path = left.folder / str(entry["file"])
        try:
            layers.append(_layer(path, entry))
        except Exception as error:  # noqa: BLE001 - the other layers come back
            lost.append(entry)
            why.append(why_not(path, error))
    return layers, lost, why


def scans_to_open(left: Left, layers: Iterable[Any]) -> tuple[list[Path], list[Path]]:
    """Scans of saved work that are not open: those that still exist, and the others."""
    open_now = {str(notes_of(layer).get("source") or "") for layer in layers}
    wanted = [Path(s) for s in dict.fromkeys(left.scans) if s and s not in open_now]
    there = [p for p in wanted if p.exists() or is_series_path(p)]
    return there, [p for p in wanted if p not in there]


def pins_of(explorer: Any) -> list[dict[str, Any]]:
    """Explore's pinned places as plain JSON types, with what they look like."""
    scans = explorer.control.scans
    found = []
    for pin in explorer.control.pins:
        scan = scans.get(pin.scan_key)
        path = None if scan is None else scan.ref.path
        found.append(
            {
                "name": pin.name,
                "scan": pin.scan,
                "path": "" if path is None else str(path),
                "mm": [float(v) for v in pin.mm],
                "query": [float(v) for v in pin.query],
                "encoder": pin.encoder,
                "visible": bool(pin.visible),
            }
        )
    return found


def add_pins(explorer: Any, pins: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Put pinned places back where their scan is open; returns those that wait.

    A pin of an encoder that is not chosen rests until it is, as all pins do.
    """
    control, waiting = explorer.control, []
    for entry in pins:
        key = _scan_key(control.scans, entry)
        if key is None:
            waiting.append(dict(entry))
            continue
        z, y, x = (float(v) for v in entry["mm"])
        pin = control.pins.add(
            key, str(entry["scan"]), (z, y, x), np.array(entry["query"], np.float32),
            str(entry["encoder"]), str(entry["name"]),
        )  # fmt: skip
        pin.visible = bool(entry["visible"])
    return waiting


def _layer(path: Path, entry: Mapping[str, Any]) -> LayerData:
    names = {int(v): str(n) for v, n in entry["label_names"].items()}
    data, attributes, kind = label_layer(read_labels(path, names))
    if entry["ndim"] == 2 and len(data) == 1:  # drawn on a picture
        data = data[0]
        for field in ("scale", "translate", "units", "axis_labels"):
            attributes[field] = attributes[field][-2:]
    notes = attributes["metadata"][KEY]
    # The saved file will go: the layer is what lies on its scan, no file.
    for gone in ("sample", "stamp"):
        notes.pop(gone, None)
    notes["source"] = str(entry["source"] or entry["own_file"])
    notes["derived"] = True
    attributes.update(
        name=str(entry["name"]), opacity=float(entry["opacity"]),
        visible=bool(entry["visible"]),
    )  # fmt: skip
    if entry["colours"]:
        from napari.utils import DirectLabelColormap

        attributes["colormap"] = DirectLabelColormap(
            color_dict={
                None if value == "other" else int(value): colour
                for value, colour in entry["colours"].items()
            }
        )
    return data, attributes, kind


def _scan_key(scans: Mapping[str, Any], entry: Mapping[str, Any]) -> str | None:
    """Key of the open scan that a pin belongs to: by file, else by name."""
    path = str(entry["path"])
    for key, scan in scans.items():
        known = scan.ref.path
        if str(known or "") == path if path else scan.ref.name == entry["scan"]:
            return key
    return None
