"""What the Pretrain and the Fine-tune panel share: lists, length, device, start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qtpy.QtCore import QTimer, Signal
from qtpy.QtWidgets import (
    QDoubleSpinBox,
    QHBoxLayout,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from homolog.config import merge
from homolog.gui.learn.control import LONG_FACTOR, QUICK_MINUTES, Length, Wish
from homolog.gui.learn.forms import Form
from homolog.gui.learn.guide import METHODS, TASKS, guide_to
from homolog.gui.learn.start_box import StartBox
from homolog.gui.shared import choices, preferences
from homolog.gui.shared.choices import (
    ModelChoice,
    StoreChoice,
    list_encoders,
    list_stores,
)
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.threads import in_background, soon
from homolog.gui.shared.widgets import (
    Choice,
    DeviceBox,
    EmptyState,
    Sentence,
    ask_folder,
    button,
    fill,
    fold_of,
    keep_room,
    labelled,
    named,
    one_place,
    sentence,
    tell,
)

# How long to train: three presets, or one's own number of steps or minutes.


class LengthBox(QWidget):
    """A combo box with the presets and, for one's own, a number.

    Signals:
        changed: Another length was chosen.
    """

    changed = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.choice = Choice()
        named(
            self.choice,
            "Length",
            "How long to train; stopped at any time, what was learnt is kept",
        )
        self.number = QDoubleSpinBox()
        named(self.number, "Number of steps", "How many steps to train")
        self.number.setDecimals(0)
        self.number.setMinimumWidth(90)
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self.choice, 1)
        row.addWidget(self.number)
        self._numbers = {"steps": 1000.0, "minutes": 30.0}
        self.set_recipe_steps(1000)
        self.choice.currentIndexChanged.connect(lambda: self._choose())
        self.number.valueChanged.connect(self._note)
        self._choose()

    @property
    def length(self) -> Length:
        """What is chosen."""
        return Length(str(self.choice.currentData()), float(self.number.value()))

    def choose(self, preset: str, number: float) -> None:
        """Choose a length."""
        if preset in self._numbers and number > 0:
            self._numbers[preset] = number
        self.choice.setCurrentIndex(max(0, self.choice.findData(preset)))
        self._choose()

    def set_recipe_steps(self, steps: int) -> None:
        """Tell the steps of the recipe in the entries."""
        chosen = self.choice.currentData() or "standard"
        entries = [
            (f"Quick look: {QUICK_MINUTES} min", "quick"),
            (f"Standard: {steps:,} steps", "standard"),
            (f"Long: {steps * LONG_FACTOR:,} steps", "long"),
            ("Own steps", "steps"),
            ("Own minutes", "minutes"),
        ]
        fill(self.choice, entries, chosen)

    def _choose(self) -> None:
        preset = str(self.choice.currentData())
        own = preset in self._numbers
        self.number.setVisible(own)
        if own:
            number = self._numbers[preset]
            self.number.blockSignals(True)
            self.number.setRange(1, 10_000_000 if preset == "steps" else 100_000)
            self.number.setSuffix(" steps" if preset == "steps" else " min")
            self.number.setValue(number)
            self.number.blockSignals(False)
            named(self.number, f"Number of {preset}", f"How many {preset} to train")
        self.changed.emit()

    def _note(self, number: float) -> None:
        self._numbers[str(self.choice.currentData())] = float(number)
        self.changed.emit()


# What a recipe says, read from the engine's description; no Qt here.


_STEPS = 1000  # of TrainingConfig, where a recipe says nothing


def recipe_for(recipe: str, device: str, best: str) -> str:
    """``auto`` decided as the engine decides it: by whether a GPU computes.

    Args:
        recipe: As chosen.
        device: As chosen; ``auto`` takes the best.
        best: The best device here.
    """
    if recipe != "auto":
        return recipe
    return "gpu" if (best if device == "auto" else device).startswith("cuda") else "cpu"


def recipe_values(
    described: Mapping[str, Any],
    recipe: str,
    network: str = "",
    *,
    pretrained: bool = False,
) -> dict[str, Any]:
    """Tables of a recipe: ``method`` or ``task``, ``backbone``, ``training``.

    Args:
        described: A method or task of the engine's description.
        recipe: Name of one of its recipes; an unknown one says nothing.
        network: Whose special settings are merged in, where the recipe has such.
        pretrained: Whether those for weights that came pretrained are, too.
    """
    found = dict(described.get("recipes", {}).get(recipe) or {})
    special, kept = found.pop("with", {}), found.pop("pretrained", {})
    return merge(found, special.get(network) or {}, kept if pretrained else {})


def recipe_steps(described: Mapping[str, Any], recipe: str, network: str = "") -> int:
    """Steps that a recipe asks for."""
    training = recipe_values(described, recipe, network).get("training") or {}
    return int(training.get("steps", _STEPS))


def recipe_network(described: Mapping[str, Any], recipe: str) -> str:
    """The network of a recipe; empty when it names none."""
    backbone = recipe_values(described, recipe).get("backbone") or {}
    return str(backbone.get("name", ""))


def network_base(
    described: Mapping[str, Any], recipe: str, network: str, small: Mapping[str, Any]
) -> dict[str, Any]:
    """Settings a network starts from.

    Args:
        described: A method or task of the engine's description.
        recipe: Name of the recipe.
        network: The one that will be trained.
        small: Its settings for a small machine.
    """
    if network == recipe_network(described, recipe):
        backbone = dict(recipe_values(described, recipe).get("backbone") or {})
        backbone.pop("name", None)
        return backbone
    return dict(small) if recipe == "cpu" else {}


def about_text(doc: str, paper: str) -> str:
    """The opening of a description, and who published it where, for a few lines.

    Args:
        doc: Description, paragraphs.
        paper: Citation ``authors, title, where``, or empty.
    """
    opening = " ".join(doc.strip().split("\n\n")[0].split())
    parts = [part.strip() for part in paper.split(",") if part.strip()]
    if not parts:
        return opening
    short = parts[0] if len(parts) == 1 else f"{parts[0]}, {parts[-1]}"
    return f"{opening} ({short})"


# Between two forms that are made: what the user does meanwhile comes first.
_BETWEEN_MS = 40

# The settings behind "More": recipe, network, and the three forms they fill.


class SettingsBox(QWidget):
    """Recipe, network, seed and forms; values differ from the recipe's only.

    Signals:
        changed: Any of them changed.

    Attributes:
        own: Form of the method or task; the panel may show it elsewhere.
    """

    changed = Signal()

    def __init__(
        self, what: str, first: tuple[str, ...] = (), parent: QWidget | None = None
    ) -> None:
        """Make the box, empty until ``set_entry``.

        Args:
            what: ``method`` or ``task``.
            first: Settings of it that stand above the fold "More settings".
            parent: Of the widget.
        """
        super().__init__(parent)
        self._schema: Mapping[str, Any] = {}
        self._described: Mapping[str, Any] = {}
        self._device_recipe = "cpu"
        self._laid: tuple[str, str, str, bool] | None = None
        self._brought: str | None = None  # the network of an encoder
        self.recipe, self.network = Choice(), Choice()
        self.seed = QSpinBox()
        self.seed.setMaximum(2**31 - 1)
        self.own = Form(first=first, more="", late=True)
        self.training = Form(hidden=("steps", "minutes"), more="", late=True)
        self.layers = Form(hidden=("in_channels",), more="", late=True)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        recipe_hint = "Where the settings start from; automatic goes by the device"
        column.addLayout(labelled("Recipe", self.recipe, recipe_hint))
        column.addLayout(labelled("Network", self.network, "The network to train"))
        self._folds = []
        for text, form in (
            (f"Settings of the {what}", self.own),
            ("Settings of the training", self.training),
            ("Settings of the network", self.layers),
        ):
            fold = fold_of(text)
            fold.addWidget(form)
            column.addWidget(fold)
            self._folds.append(fold)
        keep_room(self._folds[2])
        seed_hint = "Seed of everything random: the same seed gives the same run"
        column.addLayout(labelled("Seed", self.seed, seed_hint))
        self.recipe.currentIndexChanged.connect(lambda: self._recipe_changed())
        self.network.currentIndexChanged.connect(lambda: self._recipe_changed())
        self.seed.valueChanged.connect(lambda: self.changed.emit())
        for form in (self.own, self.training, self.layers):
            form.changed.connect(self.changed)

    def showEvent(self, event: Any) -> None:
        """Whoever unfolds this will see the forms: made one by one, no click waits."""
        super().showEvent(event)
        soon(self, self._build_one)

    def _build_one(self) -> None:
        for form in (self.own, self.training, self.layers):
            if form.has_fields and not form.is_built:
                form.build()
                soon(self, self._build_one, _BETWEEN_MS)
                return

    @property
    def recipe_name(self) -> str:
        """The recipe that the engine will take."""
        chosen = str(self.recipe.currentData() or "auto")
        return self._device_recipe if chosen == "auto" else chosen

    @property
    def asked_recipe(self) -> str:
        """The recipe as chosen, ``auto`` included."""
        return str(self.recipe.currentData() or "auto")

    @property
    def asked_network(self) -> str | None:
        """Another network than the recipe's, or None."""
        return self.network.currentData()  # type: ignore[no-any-return]

    @property
    def network_name(self) -> str:
        """The network that will be trained."""
        own = recipe_network(self._described, self.recipe_name)
        return str(self._brought or self.asked_network or own)

    @property
    def steps(self) -> int:
        """Steps of the recipe."""
        return recipe_steps(self._described, self.recipe_name, self.network_name)

    def set_entry(
        self, schema: Mapping[str, Any], described: Mapping[str, Any]
    ) -> None:
        """Another method or task.

        Args:
            schema: The engine's description.
            described: The method or task in it.
        """
        self._schema, self._described = schema, described
        chosen = self.recipe.currentData()
        names = [("Automatic (by the device)", "auto")]
        names += [(n, n) for n in described.get("recipes", {})]
        fill(self.recipe, names, chosen)
        networks = schema.get("backbones", {})
        allowed = described.get("backbones") or list(networks)
        titles: list[tuple[str, Any]] = [("The recipe's network", None)]
        titles += [
            (str(networks[n].get("title") or n), n) for n in allowed if n in networks
        ]
        fill(self.network, titles, self.network.currentData())
        if not self.training.has_fields:
            self.training.set_fields(schema.get("training", ()))
        self._laid = None
        self._recipe_changed()

    def set_device_recipe(self, recipe: str) -> None:
        """What ``auto`` means on the chosen device."""
        if recipe != self._device_recipe:
            self._device_recipe = recipe
            self._recipe_changed()

    def let_choose_network(self, may: bool, brought: str = "") -> None:
        """An encoder brings its own network: then there is nothing to choose.

        Args:
            may: Whether there is no encoder.
            brought: The encoder's network; the recipe's settings for it, and those for
                weights that came pretrained, are shown.
        """
        for widget in (self.network, self.layers):
            widget.setEnabled(may)
        hint = "The network to train" if may else "The encoder brings its own network"
        self.network.setToolTip(hint)
        self._folds[2].setVisible(may)
        self._brought = None if may else brought
        if self._laid is not None:
            self._recipe_changed()

    def problem(self) -> str:
        """The first setting that cannot be meant; empty when all can."""
        layers = self.layers.problem() if self.layers.isEnabled() else ""
        return self.own.problem() or self.training.problem() or layers

    def kept(self) -> dict[str, Any]:
        """What to keep between sessions."""
        return {
            "recipe": self.recipe.currentData(),
            "network": self.network.currentData(),
            "seed": self.seed.value(),
            "own": self.own.values(),
            "training": self.training.values(),
            "layers": self.layers.values(),
        }

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Put kept choices in."""
        for combo, key in ((self.recipe, "recipe"), (self.network, "network")):
            combo.setCurrentIndex(max(0, combo.findData(kept.get(key))))
        self.seed.setValue(int(kept.get("seed") or 0))
        self.own.show_values(kept.get("own") or {})
        self.training.show_values(kept.get("training") or {})
        self.layers.show_values(kept.get("layers") or {})

    def reset(self) -> None:
        """Back to the recipe and to what a new user sees."""
        self.recipe.setCurrentIndex(0)
        self.network.setCurrentIndex(0)
        self.seed.setValue(0)
        for form in (self.own, self.training, self.layers):
            form.reset()

    def _recipe_changed(self) -> None:
        recipe, network = self.recipe_name, self.network_name
        title = str(self._described.get("title"))
        key = (title, recipe, network, self._brought is not None)
        if key != self._laid:
            self._fill_forms(recipe, network)
            self._laid = key
        self.changed.emit()

    def _fill_forms(self, recipe: str, network: str) -> None:
        values = recipe_values(
            self._described, recipe, network, pretrained=self._brought is not None
        )
        own_values = values.get("method") or values.get("task")
        if self._laid is None:
            self.own.set_fields(self._described.get("fields", ()), own_values)
        else:
            self.own.set_recipe(own_values)
        self.training.set_recipe(values.get("training"))
        described = self._schema.get("backbones", {}).get(network, {})
        small = described.get("small") or {}
        base = network_base(self._described, recipe, network, small)
        self.layers.set_fields(described.get("fields", ()), base)
        own = recipe_network(self._described, recipe)
        title = self._schema.get("backbones", {}).get(own, {}).get("title") or own
        self.network.setItemText(0, f"The recipe's: {title}")


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
        self.kept = choices.read(preferences.home(), self.title)
        self._restoring = True
        self._shown: Mapping[str, Any] | None = None
        self.entry = Choice()
        guides = METHODS if self.group == "methods" else TASKS
        texts = [guide.text for guide in guides.values()]
        self.about = sentence("What it is best for", 4, texts)
        self.waiting = named(  # stands in its place until it is known
            Sentence(4, texts), "State of the engine", "The engine is asked once"
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
        choices.write(preferences.home(), self.title, self.kept)

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
        if schema is self._shown:  # it is told at every visit of any tab
            return
        self._shown = schema
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
        guide = guide_to(self.group, str(self.entry.currentData()))
        tell(self.about, guide or about_text(doc, paper))
        told = "\n\n".join(part for part in (guide, paper, doc) if part)
        self.about.setToolTip(told or "What it is best for")
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
