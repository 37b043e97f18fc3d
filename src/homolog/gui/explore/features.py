"""Features of open scans: looked for on disk, computed by a worker, one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qtpy.QtCore import QObject, Signal

from homolog.data.feature_files import open_features
from homolog.events import Event, Note, Progress
from homolog.geometry.affine import Affine
from homolog.gui import preferences
from homolog.gui.explore.control import ExploreControl
from homolog.gui.explore.feature_lookup import look_for
from homolog.gui.explore.scan import Ready
from homolog.gui.files.layer_scan import scan_file
from homolog.gui.hub import Hub
from homolog.gui.learn.model_choice import ModelChoice
from homolog.gui.threads import Helper, in_background


class FeatureWork(QObject):
    """Brings scans of the control from "looking" to "ready" or to a clear sentence.

    Signals:
        changed: A scan's state or progress; its key.
        ready: A scan's features can be asked now; its key.
    """

    changed = Signal(str)
    ready = Signal(str)

    def __init__(self, hub: Hub, control: ExploreControl, parent: QObject) -> None:
        super().__init__(parent)
        self._hub, self._control = hub, control
        self._layers: dict[str, Any] = {}
        self._queue: list[str] = []
        self._helper: Helper | None = None
        self._at = ""

    def look(self, key: str, layer: Any) -> None:
        """Find features of a scan made before; reads the file in the background."""
        choice, scan = self._control.encoder, self._control.scans.get(key)
        self._layers[key] = layer
        if choice is None or scan is None:
            return

        def done(found: Ready | None) -> None:
            if not self._is_now(choice, key):
                return
            self._control.found(key, found)
            (self.ready if found is not None else self.changed).emit(key)

        def failed(error: Exception) -> None:
            if self._is_now(choice, key):
                self._control.failed([key], str(error))
                self.changed.emit(key)

        in_background(
            _look, layer, self._hub.scratch, choice, self._hub.features, scan.to_true,
            owner=self, done=done, failed=failed,
        )  # fmt: skip

    def compute(self, keys: list[str]) -> None:
        """Compute features of scans, one after another."""
        for key in keys:
            scan = self._control.scans.get(key)
            if scan is None or scan.state in ("ready", "computing", "waiting"):
                continue
            scan.state, scan.words, scan.share = "waiting", "", 0.0
            self._queue.append(key)
            self.changed.emit(key)
        self._next()

    def cancel(self, key: str) -> None:
        """Compute this scan no more."""
        if key in self._queue:
            self._queue.remove(key)
            self._control.failed([key], "")
            self.changed.emit(key)
        elif key == self._at and self._helper is not None:
            self._helper.stop()

    def forget(self, key: str) -> None:
        """A scan was closed: compute it no more and let its layer go."""
        self.cancel(key)
        self._layers.pop(key, None)

    def cancel_all(self) -> None:
        """Another encoder, or the end: nothing more of this one."""
        self._queue.clear()
        if self._helper is not None:
            self._helper.stop()

    @property
    def busy(self) -> bool:
        """Whether a worker computes."""
        return self._helper is not None

    def _next(self) -> None:
        if self._helper is not None or not self._queue:
            return
        key = self._queue.pop(0)
        scan, choice = self._control.scans.get(key), self._control.encoder
        layer = self._layers.get(key)
        if scan is None or choice is None or layer is None:
            self._next()
            return
        scan.state, scan.share, scan.remaining_s = "computing", 0.0, 0.0
        self._at = key
        self.changed.emit(key)

        def failed(error: Exception) -> None:
            self._ended(choice, key, str(error))

        in_background(
            scan_file, layer, self._hub.scratch, owner=self,
            done=lambda path: self._embed(choice, key, path), failed=failed,
        )  # fmt: skip

    def _embed(self, choice: ModelChoice, key: str, path: Path) -> None:
        if not self._is_now(choice, key):
            self._ended(choice, key, "")
            return
        config = {
            "encoder": str(choice.path),
            "scans": [str(path)],
            "folder": str(self._hub.features),
            "strides": None,
            "window": None,
            "overlap": 0.5,
            "device": str(preferences.get("compute", "device", "auto")),
        }
        helper = Helper("embed", config, self)
        self._helper = helper
        helper.news.connect(lambda event: self._tell(key, event))
        helper.done.connect(lambda result: self._computed(choice, key, result))
        helper.failed.connect(lambda text: self._ended(choice, key, text))
        helper.stopped.connect(lambda: self._ended(choice, key, ""))
        helper.start()

    def _tell(self, key: str, event: Event) -> None:
        scan = self._control.scans.get(key)
        if isinstance(event, Note) and event.level == "warning":
            self._hub.say(event.text, "warning")
        if scan is None or not isinstance(event, Progress) or not event.total:
            return
        scan.share = min(event.index / event.total, 1.0)
        scan.remaining_s = event.remaining_s
        self.changed.emit(key)

    def _computed(self, choice: ModelChoice, key: str, result: dict[str, Any]) -> None:
        entries = result.get("features") or []
        scan = self._control.scans.get(key)
        if result.get("stopped") or not entries:
            self._ended(choice, key, "")
            return
        if scan is None or not self._is_now(choice, key):
            self._ended(choice, key, "")
            return

        def done(found: Ready) -> None:
            if self._is_now(choice, key):
                self._control.found(key, found)
                self.ready.emit(key)
            self._hub.changed.emit("features")
            self._ended(choice, key, "")

        in_background(
            _open, Path(entries[0]["card"]), scan.to_true, owner=self, done=done,
            failed=lambda error: self._ended(choice, key, str(error)),
        )  # fmt: skip

    def _ended(self, choice: ModelChoice, key: str, sentence: str) -> None:
        """One scan less to do; a sentence where something went wrong."""
        if self._helper is not None:
            self._helper.deleteLater()
        self._helper, self._at = None, ""
        if self._is_now(choice, key):
            self._control.failed([key], sentence)
            self.changed.emit(key)
        self._next()

    def _is_now(self, choice: ModelChoice, key: str) -> bool:
        """Whether the answer still belongs to an open scan and the chosen encoder."""
        now = self._control.encoder
        return (
            key in self._control.scans and now is not None and now.path == choice.path
        )


def _look(
    layer: Any, scratch: Path, choice: ModelChoice, folder: Path, to_true: Affine
) -> Ready | None:
    _, _, features = look_for(scan_file(layer, scratch), choice, folder)
    return None if features is None else Ready.of(features, to_true)


def _open(card: Path, to_true: Affine) -> Ready:
    return Ready.of(open_features(card), to_true)
