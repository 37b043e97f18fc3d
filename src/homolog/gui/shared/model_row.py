"""A model, a store, what to do next, and each open scan's features: rows of tabs.

Explore, Landmarks and Label show the same model list, hint and state of a scan's
features, and compute features by the same worker; this is all of it, written once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from qtpy.QtCore import QObject, Qt, Signal
from qtpy.QtWidgets import (
    QHBoxLayout,
    QLabel,
    QProgressBar,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from homolog.events import Event, Note, Progress
from homolog.features.files import open_features
from homolog.geometry.affine import Affine
from homolog.gui.shared import engine, preferences, widgets
from homolog.gui.shared.choices import (
    ModelChoice,
    StoreChoice,
    begin_with,
    list_embedders,
    list_stores,
)
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.layers import open_modalities, scan_file
from homolog.gui.shared.scans import ExploreControl, Hint, Ready, Scan, look_for
from homolog.gui.shared.threads import Helper, in_background
from homolog.model_files.library import SHIPPED


class ModelRow(QWidget):
    """The models whose features can be used: listed in the background, one chosen.

    Signals:
        chosen: Another model, or the same one of a new list (ModelChoice or None).

    Attributes:
        model: The list.
    """

    chosen = Signal(object)

    def __init__(
        self,
        hub: Hub,
        hint: str,
        *,
        title: str = "",
        no_model: str = "",
        shipped_first: bool = False,
    ) -> None:
        """Make the row.

        Args:
            hub: Of the window; it knows where models lie.
            hint: Tooltip of the list.
            title: Above the list; "" for "Model" beside it.
            no_model: Entry for doing without a model; "" where one is needed.
            shipped_first: Where one can do without: begin with a model of the package
                all the same if one is made for the open scans.
        """
        super().__init__()
        self._hub, self._no_model = hub, no_model
        self._shipped_first, self._asked = shipped_first, False
        self._wanted: Path | None = None
        self._now: ModelChoice | None = None
        self._by_default = False
        self.model = widgets.Choice()
        self.model.activated.connect(self._choose)
        if no_model:
            self.model.addItem(no_model, None)
        if title:
            self.setLayout(widgets.labelled(title, self.model, hint))
        else:
            widgets.named(self.model, "Model", hint)
            label = QLabel("&Model")
            label.setBuddy(self.model)
            row = QHBoxLayout(self)
            row.addWidget(label)
            row.addWidget(self.model, 1)
        self.layout().setContentsMargins(0, 0, 0, 0)

    def want(self, what: dict[str, Any]) -> None:
        """Choose the model of a visit (``{"encoder": path}``) when it is listed."""
        if what.get("encoder"):
            self._wanted, self._by_default = Path(str(what["encoder"])), False
            self._asked = True

    def read(self) -> None:
        """List the models anew."""
        in_background(
            list_embedders, self._hub.runs, self._hub.models, self._wanted,
            owner=self, done=self._fill, failed=self._not_listed,
        )  # fmt: skip

    def _fill(self, choices: list[ModelChoice]) -> None:
        wanted = self._wanted or (None if self._now is None else self._now.path)
        self._wanted = None
        first = 1 if self._no_model else 0
        self.model.clear()
        if self._no_model:
            self.model.addItem(self._no_model, None)
        chosen, usual = 0, None
        if not self._asked and (wanted is None or self._by_default):
            usual = self._usual(choices)
            wanted = None if self._no_model else wanted
        if usual is not None and (wanted is None or usual.where == SHIPPED):
            wanted, self._by_default = usual.path, True
        for index, choice in enumerate(choices, start=first):
            self.model.addItem(choice.title, choice)
            self.model.setItemData(index, choice.facts, Qt.ItemDataRole.ToolTipRole)
            if wanted is not None and choice.path.resolve() == wanted.resolve():
                chosen = index
        self.model.setEnabled(self.model.count() > 0)
        self.model.setCurrentIndex(chosen if self.model.count() else -1)
        self._emit()

    def _usual(self, choices: list[ModelChoice]) -> ModelChoice | None:
        """What to take where nobody chose."""
        kinds = open_modalities(self._hub.viewer)
        if not self._no_model:
            return begin_with(choices, kinds)
        made = [m for m in choices if m.where == SHIPPED]
        fits = [m for m in made if kinds and kinds <= set(m.modalities)]
        return begin_with(fits, kinds) if self._shipped_first else None

    @property
    def by_default(self) -> bool:
        """Whether the model was chosen by nobody."""
        return self._by_default and self._now is not None

    def _choose(self, _: int) -> None:
        self._wanted, self._by_default, self._asked = None, False, True
        self._emit()

    def _emit(self) -> None:
        self._now = self.model.currentData()
        self.chosen.emit(self._now)

    def _not_listed(self, error: Exception) -> None:
        self._hub.say(f"The models could not be listed: {error}", "error")


_OTHER = "other"


class StoreList(widgets.Choice):
    """The stores of the home folder, and any other: listed in the background.

    Signals:
        chosen: The user chose: Path, or None for the first entry.
        listed: The list is new.
        told: A sentence on what cannot be used.

    Args:
        hub: Of the window; it knows where stores lie.
        words: Text of a store's entry; "" leaves it out.
        first: Entry before the stores, which stands for none of them; "" for no such.
    """

    chosen = Signal(object)
    listed = Signal()
    told = Signal(str)

    def __init__(
        self, hub: Hub, words: Callable[[StoreChoice], str], *, first: str = ""
    ) -> None:
        super().__init__()
        self._hub, self._entry, self._first = hub, words, first
        self._others: list[Path] = []
        self._wanted = ""
        self.activated.connect(self._pick)
        if first:
            self._fill([])

    @property
    def store(self) -> Path | None:
        """The chosen one."""
        data = self.currentData()
        return None if data in (None, "", _OTHER) else Path(str(data))

    def read(self) -> None:
        """List the stores anew."""
        in_background(
            list_stores, self._hub.stores, list(self._others), owner=self,
            done=self._fill, failed=lambda error: self.told.emit(f"Stores: {error}"),
        )  # fmt: skip

    def choose(self, path: Path) -> None:
        """Take a store into the list, wherever it lies, and choose it."""
        self.add([path])
        self.want(path)
        self.read()

    def want(self, path: Path) -> None:
        """Choose a store at the next reading, where it is in the list then."""
        self._wanted = str(path.absolute())

    def add(self, paths: Iterable[Path]) -> None:
        """Take stores into the list, from the next reading on."""
        for path in (p.absolute() for p in paths):
            if path not in self._others and path.parent != self._hub.stores:
                self._others.append(path)

    def _fill(self, stores: list[StoreChoice]) -> None:
        entries: list[tuple[str, str]] = [(self._first, "")] if self._first else []
        for store in stores:
            if not store.problem:
                words = self._entry(store)
                entries += [(words, str(store.path.absolute()))] if words else []
            elif store.path in self._others:
                self._others.remove(store.path)
                self.told.emit(store.problem)
        entries = entries or [("no store with labels yet", "")]
        widgets.fill(self, [*entries, ("another store...", _OTHER)], self._wanted)
        for index, (words, path) in enumerate(entries):
            self.setItemData(index, path or words, Qt.ItemDataRole.ToolTipRole)
        if self.findData(self._wanted) < 0 and Path(self._wanted) in self._others:
            return  # it was asked for since this reading began; the next one has it
        self._wanted = str(self.currentData() or "")
        self.listed.emit()

    def _pick(self, index: int) -> None:
        if self.itemData(index) == _OTHER:
            self.setCurrentIndex(max(0, self.findData(self._wanted)))
            widgets.ask_folder(self, "Choose a store", self._picked)
        else:
            self._wanted = str(self.itemData(index) or "")
            self.chosen.emit(self.store)

    def _picked(self, path: Path) -> None:
        self.choose(path)
        self.chosen.emit(path.absolute())


# What a hint's button says and where it leads.
_ACTIONS = {
    "pretrain": "Pretrain...", "data": "Open scans...", "install": "Copy the command",
    "compute": "Compute all {}", "file": "Choose a file as B...",
}  # fmt: skip
_TABS = {"pretrain": "Pretrain", "data": "Data"}


class HintRow(QWidget):
    """What to do next, and the button that does it or leads there.

    Without the engine, the hint is the command that installs it, and is copied.

    Signals:
        compute: Features are wanted.
        file: A file is to be chosen.

    Attributes:
        hint: The sentence.
        act: Does what it says.
        bring: Leads to the import of a model.
    """

    compute = Signal()
    file = Signal()

    def __init__(self, hub: Hub, texts: Iterable[str]) -> None:
        """Make the row.

        Args:
            hub: Of the window.
            texts: All that may be said: room is kept for the longest.
        """
        super().__init__()
        self._hub, self._action = hub, ""
        self.hint = widgets.sentence("Hint", texts=texts)
        self.act = QPushButton()
        self.act.clicked.connect(self._do)
        self.bring = widgets.button(
            "Import...", "Import a model folder or a weight file in the Models tab",
            lambda: hub.go.emit("Models", {}),
        )  # fmt: skip
        self.bring.setAccessibleName("Import a model")
        widgets.keep_room(self.act, self.bring)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.hint)
        column.addLayout(widgets.beside(self.act, self.bring))

    def show_hint(self, hint: Hint, text: str = "") -> None:
        """Show a hint and its button.

        Args:
            hint: What to do.
            text: Shown in place of the hint's own; "" for that.
        """
        self._action = hint.action
        text = text or hint.text
        if hint.action == "install":
            text = f"{hint.text}\n{engine.install_command()}"
        widgets.tell(self.hint, text)
        words = _ACTIONS.get(hint.action, "")
        if hint.action == "compute":  # the row of a single scan has that button
            words = words.format(hint.scans) if hint.scans > 1 else ""
        self.act.setText(words)
        widgets.named(self.act, words.rstrip(".") or "Do it", text)
        self.act.setVisible(bool(words))
        self.bring.setVisible(hint.action == "pretrain")

    def _do(self) -> None:
        if self._action in _TABS:
            self._hub.go.emit(_TABS[self._action], {})
        elif self._action == "install":
            widgets.copy(engine.install_command())
        elif self._action == "compute":
            self.compute.emit()
        elif self._action == "file":
            self.file.emit()


# State -> (sign, what the button says); the sign is never the only cue.
_SIGNS = {
    "looking": "…", "none": "○", "waiting": "…", "computing": "…", "ready": "✓",
    "failed": "⚠",
}  # fmt: skip
_COMPUTE, _AGAIN, _CANCEL = "Compute features", "Try again", "Cancel"
_BUTTONS = {
    "none": _COMPUTE, "failed": _AGAIN, "waiting": _CANCEL, "computing": _CANCEL,
}  # fmt: skip


class FeatureRow(QWidget):
    """How far a scan's features are, and the button that computes or cancels them.

    Signals:
        compute: Features are wanted.
        cancel: No longer.

    Attributes:
        state: The sentence.
        button: Computes, tries again or cancels.
        bar: Progress; it keeps its room.
        column: Of these; a tab adds rows of its own.
    """

    compute = Signal()
    cancel = Signal()

    def __init__(self) -> None:
        super().__init__()
        self._doing = ""
        self.state = widgets.Sentence(2)
        self.button = widgets.OneOf(_COMPUTE, _AGAIN, _CANCEL)
        self.button.clicked.connect(self._press)
        self.bar = QProgressBar()
        self.bar.setRange(0, 100)
        self.bar.setTextVisible(False)
        self.bar.setMaximumHeight(6)
        widgets.keep_room(self.bar)
        row = QHBoxLayout()
        row.addWidget(self.state, 1)
        row.addWidget(self.button)
        self.column = QVBoxLayout(self)
        self.column.setContentsMargins(0, 0, 0, 0)
        self.column.setSpacing(2)
        self.column.addLayout(row)
        self.column.addWidget(self.bar)

    def show_features(
        self,
        scan: Scan | None,
        *,
        can_compute: bool,
        name: str = "",
        words: str | None = None,
    ) -> None:
        """Show the state of a scan's features.

        Args:
            scan: The scan; None where there is none, or no features are wanted.
            can_compute: Whether there is a model and the engine is installed.
            name: Of the scan for screen readers; "" for its own.
            words: Shown in place of the state; "" hides it.
        """
        name = name or (scan.ref.name if scan is not None else "no scan")
        line = "" if scan is None else scan.line()
        if words is None:
            words = "" if scan is None else f"{_SIGNS[scan.state]} {line}"
        self.state.setText(words)
        self.state.setVisible(bool(words))
        widgets.named(self.state, f"Features of {name}: {line}", line or words)
        self._doing = "" if scan is None else _BUTTONS.get(scan.state, "")
        cancels = self._doing == _CANCEL
        self.button.setVisible(bool(self._doing))
        self.button.setText(self._doing or _COMPUTE)
        hint = "Computed once by a worker and kept; you can go on working"
        if cancels:
            hint = "Compute no more; what was kept before stays"
        widgets.named(self.button, f"{self.button.text()}, {name}", hint)
        self.button.setEnabled(cancels or can_compute)
        self.bar.setVisible(cancels)
        widgets.named(self.bar, f"Progress of {name}", line or "Progress")
        self.bar.setValue(0 if scan is None else round(scan.share * 100))

    def _press(self) -> None:
        if self._doing == _CANCEL:
            self.button.setEnabled(False)
            self.state.setText("… stopping")
            self.cancel.emit()
        elif self._doing:
            self.compute.emit()


class _End(QObject):
    """Ends what serves a panel when the panel goes.

    A child of the panel with a method for a slot, and no closure: such a closure and
    the panel's wrapper are a cycle, and where the garbage collector had cleared it, Qt
    called a function without its variables (a segmentation fault).
    """

    def __init__(self, panel: QWidget, end: Callable[[], Any]) -> None:
        super().__init__(panel)
        self._end = end
        panel.destroyed.connect(self._gone)

    def _gone(self, _: Any = None) -> None:
        with contextlib.suppress(AttributeError, RuntimeError):  # the viewer went first
            self._end()


def end_with(panel: QWidget, end: Callable[[], Any]) -> None:
    """Call ``end`` when Qt takes a panel down, by whatever way."""
    _End(panel, end)


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
