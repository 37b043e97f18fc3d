"""What the Pretrain and the Fine-tune panel share: lists, length, device, start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QComboBox, QVBoxLayout, QWidget

from homolog.gui import preferences
from homolog.gui.folds import fold_of
from homolog.gui.hub import Hub
from homolog.gui.learn import kept_values
from homolog.gui.learn.control import Wish
from homolog.gui.learn.device_box import DeviceBox
from homolog.gui.learn.length_box import LengthBox
from homolog.gui.learn.model_choice import ModelChoice, list_encoders
from homolog.gui.learn.recipes import about_text, recipe_for
from homolog.gui.learn.settings_box import SettingsBox
from homolog.gui.learn.start_box import StartBox
from homolog.gui.learn.store_list import StoreChoice, list_stores
from homolog.gui.rows import (
    EmptyState,
    Sentence,
    ask_folder,
    button,
    fill,
    labelled,
    named,
    narrow,
    one_place,
    sentence,
    tell,
)
from homolog.gui.threads import in_background

_KEEP_MS = 800


class LearnPanel(QWidget):
    """Base of both panels; a subclass adds its data rows and builds the wish.

    Attributes:
        title: Of the tab.
        kind: Kind of run.
        group: Where the schema lists what can be learnt: ``methods`` or ``tasks``.
        what: The word for one of them.
        first: Its settings that stand first.
        no_store_words: The empty state's sentence.
    """

    title = ""
    kind = ""
    group = ""
    what = ""
    first: tuple[str, ...] = ()
    no_store_words = ""

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self.hub = hub
        self.stores: list[StoreChoice] = []
        self.other_stores: list[str] = []
        self.encoders: list[ModelChoice] = []
        self.encoders_read = False
        self.other_encoders: list[Path] = []
        self.kept = kept_values.read(preferences.home(), self.title)
        self._restoring = True
        self.entry = narrow(QComboBox())
        self.about = sentence("What it does", lines=4)
        self.waiting = named(
            Sentence(4), "State of the engine", "The engine is asked once"
        )
        self.waiting.setText("Asking the engine what it offers...")
        self.length = LengthBox()
        self.device = DeviceBox(hub, self.kind)
        self.settings = SettingsBox(self.what.lower(), self.first)
        self.box = StartBox(hub, self.wish, lambda: self.settings.problem())
        self.no_store = EmptyState(
            self.no_store_words,
            button("Build a store...", "Go to Data, where scans become a store",
                   lambda: hub.go.emit("Data", {})),
            button("Choose...", "Choose a store that lies elsewhere",
                   self.choose_store),
        )  # fmt: skip
        self.no_store.hide()
        self._keeper = QTimer(self)
        self._keeper.setSingleShot(True)
        self._keeper.setInterval(_KEEP_MS)
        self._keeper.timeout.connect(self.keep)
        self._lay_out()
        self._connect()

    def data_rows(self, column: QVBoxLayout) -> None:
        """Add the rows that say what is learnt from, and ``no_store``."""
        raise NotImplementedError

    def more_rows(self, column: QVBoxLayout) -> None:
        """Add rows to the fold with the other settings."""

    def show_stores(self) -> None:
        """The list of stores is new."""
        raise NotImplementedError

    def show_encoders(self) -> None:
        """The list of encoders is new."""
        raise NotImplementedError

    def wish(self) -> Wish | None:
        """What is chosen; None while the engine has not answered."""
        raise NotImplementedError

    def choices(self) -> dict[str, Any]:
        """More choices to keep between sessions."""
        return {}

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Put kept choices of the subclass in."""

    def reset(self) -> None:
        """Back to the recipe and to what a new user sees."""
        self.settings.reset()
        self.length.choose("standard", 0)
        self.device.choose("auto")

    def shown(self) -> None:
        """The tab came to front: read lists anew."""
        self.hub.want_schema()
        self.device.want()
        self.read_stores()
        self.read_encoders()
        self.box.refresh()

    def visit(self, what: Mapping[str, Any]) -> None:
        """Another panel sends the user here, perhaps with stores or an encoder."""
        given = what.get("stores") or [what.get("store")]
        stores = [Path(str(path)) for path in given if path]
        if stores:
            self.add_stores(stores)
        if what.get("encoder"):
            path = Path(str(what["encoder"])).resolve()
            self.kept["encoder"] = str(path)
            if path not in self.other_encoders:
                self.other_encoders.append(path)
            self.read_encoders()

    def read_stores(self) -> None:
        """List the stores in the background."""
        others = [Path(p) for p in self.other_stores]
        in_background(
            list_stores, self.hub.stores, others, owner=self, done=self._got_stores,
            failed=lambda error: self.hub.say(f"Stores: {error}", "warning"),
        )  # fmt: skip

    def read_encoders(self) -> None:
        """List encoders in the background."""
        in_background(
            list_encoders, self.hub.runs, self.hub.models, list(self.other_encoders),
            owner=self, done=self._got_encoders,
            failed=lambda error: self.hub.say(f"Encoders: {error}", "warning"),
        )  # fmt: skip

    def choose_store(self) -> None:
        """Let the user point at a store outside the stores folder."""
        ask_folder(self, "Choose a store", lambda path: self.add_stores([path]))

    def add_stores(self, paths: Sequence[Path]) -> None:
        """Take stores into the list, and choose them and no others."""
        chosen = []
        for path in paths:
            if path.parent.resolve() == self.hub.stores.resolve():
                path = self.hub.stores / path.name
            elif str(path) not in self.other_stores:
                self.other_stores.append(str(path))
            chosen.append(str(path))
        self.kept["stores"] = chosen
        self.read_stores()

    @property
    def schema(self) -> dict[str, Any]:
        """What the engine offers; empty until it answered."""
        return self.hub.schema or {}

    @property
    def described(self) -> dict[str, Any]:
        """The description of the chosen method or task."""
        found: dict[str, Any] = self.schema.get(self.group, {}).get(
            self.entry.currentData(), {}
        )
        return found

    def keep(self) -> None:
        """Keep what is chosen for the next session."""
        if self.hub.schema is None or self._restoring:
            return
        chosen = self.length.length
        self.kept = {
            **self.kept,
            **self.settings.kept(),
            "entry": self.entry.currentData(),
            "others": self.other_stores,
            "length": [chosen.preset, chosen.number],
            "device": self.device.device,
            **self.choices(),
        }
        kept_values.write(preferences.home(), self.title, self.kept)

    def something_changed(self) -> None:
        """Look again at what can be started, and keep the choices soon."""
        if not self._restoring:
            self.box.refresh()
            self._keeper.start()

    def _lay_out(self) -> None:
        column = QVBoxLayout(self)
        column.addLayout(labelled(self.what, self.entry, f"The {self.what.lower()}"))
        column.addLayout(one_place(self.waiting, self.about))
        self.data_rows(column)
        column.addLayout(
            labelled("Length", self.length, "How long to train; stop when you like")
        )
        column.addLayout(
            labelled("Device", self.device, "Where to compute, with free memory")
        )
        inside = QWidget()
        more = QVBoxLayout(inside)
        more.setContentsMargins(0, 0, 0, 0)
        self.more_rows(more)
        more.addWidget(self.settings)
        more.addWidget(
            button("Reset all", "Back to the recipe and to defaults", self.reset)
        )
        fold = fold_of("More")
        fold.addWidget(inside)
        column.addWidget(fold)
        column.addWidget(self.box)
        column.addStretch(1)

    def _connect(self) -> None:
        hub = self.hub
        hub.schema_ready.connect(self._got_schema)
        hub.schema_failed.connect(self._no_schema)
        hub.changed.connect(self._news)
        hub.closing.connect(self.keep)
        self.entry.currentIndexChanged.connect(lambda: self._entry_changed())
        self.settings.changed.connect(self._settings_changed)
        self.device.changed.connect(self._device_changed)
        self.length.changed.connect(self.something_changed)
        self.box.estimated.connect(self._estimated)
        if hub.schema is not None:
            self._got_schema(hub.schema)
        elif hub.engine_missing():
            self.waiting.hide()

    def _news(self, what: str) -> None:
        if not self.isVisible():
            return  # ``shown`` reads everything anew
        if what == "stores":
            self.read_stores()
        elif what in ("runs", "models"):
            self.read_encoders()

    def _got_schema(self, schema: Mapping[str, Any]) -> None:
        self.waiting.hide()
        self._restoring = True
        entries = [
            (str(d.get("title") or name), name)
            for name, d in schema.get(self.group, {}).items()
            if d.get("learned", True)
        ]
        first = "s2dc" if self.group == "methods" else "segment"
        fill(self.entry, entries, self.kept.get("entry") or first)
        self.other_stores = [str(p) for p in self.kept.get("others") or ()]
        self._entry_changed()
        self._device_changed()
        self.settings.restore(self.kept)
        preset, number = (self.kept.get("length") or ["standard", 0])[:2]
        self.length.choose(str(preset), float(number))
        self.device.choose(str(self.kept.get("device") or self.device.device))
        self.restore(self.kept)
        self._restoring = False
        self.read_stores()
        self.box.refresh()

    def _no_schema(self, reason: str) -> None:
        tell(
            self.waiting,
            "⚠ The engine could not be asked what it offers. Open this tab again to "
            f"ask once more. {reason}",
        )

    def _entry_changed(self) -> None:
        described = self.described
        doc, paper = str(described.get("doc") or ""), str(described.get("paper") or "")
        tell(self.about, about_text(doc, paper))
        told = "\n\n".join(part for part in (paper, doc) if part)
        self.about.setToolTip(told or "What it does")
        self.settings.set_entry(self.schema, described)

    def _device_changed(self) -> None:
        recipe = recipe_for("auto", self.device.device, self.device.best)
        self.settings.set_device_recipe(recipe)
        self.something_changed()

    def _settings_changed(self) -> None:
        self.length.set_recipe_steps(self.settings.steps)
        self.something_changed()

    def _estimated(self, plan: Mapping[str, Any]) -> None:
        self.device.tell_estimate(float(plan.get("total_s") or 0))

    def _got_stores(self, stores: list[StoreChoice]) -> None:
        self.stores = stores
        self.no_store.setVisible(not stores)
        self.show_stores()
        self.something_changed()

    def _got_encoders(self, encoders: list[ModelChoice]) -> None:
        self.encoders, self.encoders_read = encoders, True
        self.show_encoders()
        self.something_changed()
