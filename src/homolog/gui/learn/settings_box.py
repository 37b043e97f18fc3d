"""The settings behind "More": recipe, network, and the three forms they fill."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QComboBox, QSpinBox, QVBoxLayout, QWidget

from homolog.gui.folds import fold_of
from homolog.gui.learn.forms import Form
from homolog.gui.learn.recipes import (
    network_base,
    recipe_network,
    recipe_steps,
    recipe_values,
)
from homolog.gui.rows import fill, keep_room, labelled, narrow


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
        self._laid: tuple[str, str, str] | None = None
        self.recipe, self.network = narrow(QComboBox()), narrow(QComboBox())
        self.seed = QSpinBox()
        self.seed.setMaximum(2**31 - 1)
        self.own = Form(first=first, more="")
        self.training = Form(hidden=("steps", "minutes"), more="")
        self.layers = Form(hidden=("in_channels",), more="")
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
        """The network that will be trained from random weights."""
        own = recipe_network(self._described, self.recipe_name)
        return str(self.asked_network or own)

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
        if not self.training.rows:
            self.training.set_fields(schema.get("training", ()))
        self._laid = None
        self._recipe_changed()

    def set_device_recipe(self, recipe: str) -> None:
        """What ``auto`` means on the chosen device."""
        if recipe != self._device_recipe:
            self._device_recipe = recipe
            self._recipe_changed()

    def let_choose_network(self, may: bool) -> None:
        """An encoder brings its own network: then there is nothing to choose."""
        for widget in (self.network, self.layers):
            widget.setEnabled(may)
        hint = "The network to train" if may else "The encoder brings its own network"
        self.network.setToolTip(hint)
        self._folds[2].setVisible(may)

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
        key = (str(self._described.get("title")), recipe, network)
        if key != self._laid:
            self._fill_forms(recipe, network)
            self._laid = key
        self.changed.emit()

    def _fill_forms(self, recipe: str, network: str) -> None:
        values = recipe_values(self._described, recipe, network)
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
