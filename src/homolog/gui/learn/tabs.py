"""The two tabs that train: pretraining and fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qtpy.QtCore import QEvent, Qt, Signal
from qtpy.QtWidgets import (
    QAbstractItemView,
    QCheckBox,
    QListWidget,
    QListWidgetItem,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from homolog.gui.learn.control import (
    FinetuneWish,
    PretrainWish,
    how_they_fit,
    labels_counted,
    task_for,
    teaching_problem,
    what_is_learnt,
)
from homolog.gui.learn.panel import LearnPanel
from homolog.gui.shared.choices import SCRATCH, StoreChoice, begin_with
from homolog.gui.shared.widgets import (
    Choice,
    EmptyState,
    beside,
    button,
    fill,
    fold_of,
    keep_room,
    labelled,
    lay_out_again,
    named,
    one_place,
    sentence,
    tell,
)
from homolog.model_files.library import SHIPPED

# Settings of a task that people look for first.
_FIRST = (
    "carry", "carry_to", "decoder", "labels", "slices", "slice_pooling",
    "weight_slices", "encoder_factor", "head_first", "layer_decay", "window", "flip",
    "validate_cases",
)  # fmt: skip


_PATH = Qt.ItemDataRole.UserRole
_ROWS_SHOWN = 3


class StoreTicks(QListWidget):
    """Stores with ticks, which keep the order they were ticked in.

    Signals:
        ticked: The user ticked a store, or took a tick away.
    """

    ticked = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._stores: dict[str, StoreChoice] = {}
        self._chosen: list[str] = []
        self.setSelectionMode(QAbstractItemView.SelectionMode.NoSelection)
        self.setTextElideMode(Qt.TextElideMode.ElideRight)  # the name stands first
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.itemChanged.connect(self._changed)
        self._fit()

    @property
    def stores(self) -> list[StoreChoice]:
        """All that are listed, in their order."""
        return list(self._stores.values())

    @property
    def chosen(self) -> list[StoreChoice]:
        """The stores with a tick, the one ticked first in front."""
        return [self._stores[path] for path in self._chosen]

    def show_stores(
        self,
        stores: Sequence[StoreChoice],
        chosen: Sequence[str],
        trouble: Callable[[StoreChoice], str],
    ) -> None:
        """Fill the list, without a signal.

        Args:
            stores: In the order to list them.
            chosen: Paths of those that get a tick, in their order; others are left out.
            trouble: Asked for what a store lacks; empty where it lacks nothing.
        """
        self._stores = {str(store.path): store for store in stores}
        self._chosen = [p for p in dict.fromkeys(chosen) if p in self._stores]
        self.blockSignals(True)
        self.clear()
        for path, store in self._stores.items():
            self.addItem(_item(store, path in self._chosen, trouble(store)))
        self.blockSignals(False)

    def changeEvent(self, event: Any) -> None:  # noqa: D102 - Qt's name
        super().changeEvent(event)
        if event.type() in (QEvent.Type.FontChange, QEvent.Type.StyleChange):
            self._fit()

    def _fit(self) -> None:
        """As high as a few rows, however many there are: what is below stays."""
        height = self.fontMetrics().height() + 4
        self.setFixedHeight(_ROWS_SHOWN * height + 2 * self.frameWidth() + 4)

    def tick(self, path: str, on: bool = True) -> None:
        """Do what the user does: tick a store, or take its tick away."""
        state = Qt.CheckState.Checked if on else Qt.CheckState.Unchecked
        for row in range(self.count()):
            if self.item(row).data(_PATH) == path:
                self.item(row).setCheckState(state)

    def _changed(self, item: QListWidgetItem) -> None:
        path = str(item.data(_PATH))
        on = item.checkState() == Qt.CheckState.Checked
        if on == (path in self._chosen):
            return
        if on:
            self._chosen.append(path)
        else:
            self._chosen.remove(path)
        self.ticked.emit()


def _item(store: StoreChoice, ticked: bool, trouble: str) -> QListWidgetItem:
    item = QListWidgetItem(f"⚠ {store.title}" if trouble else store.title)
    item.setData(_PATH, str(store.path))
    item.setToolTip(trouble or f"{store.title}\n{store.path}")
    item.setFlags(Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsUserCheckable)
    state = Qt.CheckState.Checked if ticked else Qt.CheckState.Unchecked
    item.setCheckState(state)
    return item


class LabelsUsed(QWidget):
    """How many of the labelled scans are learnt from: a share, or so many patients.

    Signals:
        changed: Another number or unit.
    """

    changed = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.percent, self.count = QSpinBox(), QSpinBox()
        self.percent.setRange(1, 100)
        self.percent.setSuffix(" %")
        self.count.setRange(1, 9999)
        self.unit = Choice()
        self.unit.addItem("of the patients")
        self.unit.addItem("patients")
        hint = "What is counted: a share of the labelled patients, or their number"
        named(self.unit, "Share or number of patients", hint)
        hint = "How many labelled patients are learnt from; the same ones for one seed"
        named(self.count, "Labelled patients used", hint)
        column = labelled(
            "Labelled patients used", self.percent, hint, self.count, self.unit
        )
        column.setContentsMargins(0, 0, 0, 0)
        self.setLayout(column)
        for number in (self.percent, self.count):
            number.valueChanged.connect(lambda _: self.changed.emit())
        self.unit.currentIndexChanged.connect(lambda _: self._turn())
        self.restore({})

    @property
    def share(self) -> float:
        """Of the labelled patients, 0..1; 1 where their number is given."""
        return 1.0 if self.patients else self.percent.value() / 100.0

    @property
    def patients(self) -> int:
        """So many patients; 0 where a share is given."""
        return self.count.value() if self.unit.currentIndex() else 0

    def kept(self) -> dict[str, Any]:
        """What ``restore`` takes."""
        return {"share": self.percent.value(), "patients": self.patients}

    def restore(self, kept: Mapping[str, Any]) -> None:
        """What was kept; everything where nothing was."""
        self.percent.setValue(int(kept.get("share") or 100))
        patients = int(kept.get("patients") or 0)
        self.count.setValue(patients or 1)
        self.unit.setCurrentIndex(1 if patients else 0)
        self._turn()

    def _turn(self) -> None:
        self.percent.setVisible(not self.patients)
        self.count.setVisible(bool(self.patients))
        self.changed.emit()


class FinetunePanel(LearnPanel):
    """Task, labelled stores, encoder, share of labels, length, device."""

    title = "Fine-tune"
    kind = "finetune"
    group = "tasks"
    what = "Task"
    first = _FIRST
    _sent = False  # stores came with the user: their task is to be chosen
    no_store_words = (
        "No store yet. Fine-tuning needs a store with labelled scans: build one from "
        "scans and their label maps."
    )

    def data_rows(self, column: QVBoxLayout) -> None:
        """Stores with their classes, encoder, share of the labelled scans."""
        self.list = StoreTicks()
        self.list.ticked.connect(self._ticked)
        self.classes = sentence("Classes to learn")
        self.fold = fold_of("Classes")
        self.fold.addWidget(self.classes)
        self.fit = sentence("How the stores fit together", lines=2)
        keep_room(self.fold)
        self._data = QWidget()
        inside = QVBoxLayout(self._data)
        inside.setContentsMargins(0, 0, 0, 0)
        hint = "Tick the stores whose labelled scans are learnt from, by one model"
        inside.addLayout(labelled("Learn from", self.list, hint))
        inside.addWidget(self.fit)
        inside.addWidget(self.fold)
        inside.addLayout(
            beside(
                button("Add store...", "Choose a store that lies elsewhere",
                       self.choose_store),
                button("Build...", "Go to Data, where scans become a store",
                       lambda: self.hub.go.emit("Data", {})),
            )
        )  # fmt: skip
        keep_room(self._data)
        column.addLayout(one_place(self.no_store, self._data))
        self.encoder = Choice()
        self.encoder.currentIndexChanged.connect(lambda: self._encoder_chosen())
        hint = "Pretrained weights to start from, or random ones"
        column.addLayout(labelled("Encoder", self.encoder, hint))
        self.no_encoder = EmptyState(
            "No encoder yet. Pretraining needs no labels; without it, training starts "
            "from random weights.",
            button("Pretrain...", "Go to Pretrain", self._to_pretrain),
            button("Import...", "Go to Models, where encoders are imported",
                   lambda: self.hub.go.emit("Models", {})),
        )  # fmt: skip
        self.no_encoder.hide()  # until the encoders are known
        column.addWidget(self.no_encoder)
        self.used = LabelsUsed()
        self.used.changed.connect(self.something_changed)
        column.addWidget(self.used)
        self.counted = sentence("Labelled scans counted", lines=3)
        column.addWidget(self.counted)

    def visit(self, what: Mapping[str, Any]) -> None:
        """See LearnPanel; stores bring the task that they teach."""
        self._sent = bool(what.get("stores") or what.get("store"))
        super().visit(what)

    def show_stores(self) -> None:
        """Fill the list, labelled ones first; what was ticked stays ticked."""
        self._data.setVisible(bool(self.stores))
        ordered = sorted(
            self.stores,
            key=lambda s: (not s.teachable, not s.class_teachable, not s.boxed),
        )
        known = {str(store.path) for store in ordered}
        wanted = self.kept.get("stores") or [s.path for s in self.list.chosen]
        kept = [str(path) for path in wanted if str(path) in known]
        if not kept and ordered:
            kept = [str(ordered[0].path)]
        self.list.show_stores(ordered, kept, self._lacks)
        if self._sent and self.entry.count() and self.list.chosen:
            self._sent = False
            task = task_for(self.list.chosen, str(self.entry.currentData()))
            self.entry.setCurrentIndex(self.entry.findData(task))
        self._show_classes()

    def shown(self) -> None:
        """See LearnPanel; what was hidden while one looked gives its room up."""
        keep_room(self.no_encoder, keep=self.no_encoder.isVisibleTo(self))
        super().shown()

    def show_encoders(self) -> None:
        """Fill the list of encoders."""
        kept = self.kept.get("encoder") or self.encoder.currentData()
        usual = begin_with([e for e in self.encoders if e.where != SHIPPED])
        kept = kept or (SCRATCH if usual is None else str(usual.path))
        entries = [(e.title, str(e.path)) for e in self.encoders]
        entries.append(("From scratch (random weights)", SCRATCH))
        fill(self.encoder, entries, kept)
        if self.no_encoder.isVisible():
            keep_room(self.no_encoder)  # who looks at it sees nothing jump up
        self.no_encoder.setVisible(self.encoders_read and not self.encoders)
        self._tell_encoder()

    def wish(self) -> FinetuneWish | None:
        """See LearnPanel."""
        task = self.entry.currentData()
        if not task:
            return None
        encoder = self._chosen_encoder()
        settings = self.settings
        backbone: dict[str, Any] = {}
        if encoder is None:
            backbone = settings.layers.values()
            if settings.asked_network:
                backbone["name"] = settings.asked_network
        return FinetuneWish(
            task=str(task),
            stores=tuple(self.list.chosen),
            encoder=encoder,
            recipe=settings.recipe_name,
            backbone=backbone,
            task_config=settings.own.values(),
            training=settings.training.values(),
            fraction=self.used.share,
            patients=self.used.patients,
            length=self.length.length,
            recipe_steps=settings.steps,
            device=self.device.device,
            seed=settings.seed.value(),
        )

    def choices(self) -> dict[str, Any]:
        """See LearnPanel."""
        return {
            "stores": [str(store.path) for store in self.list.chosen],
            "encoder": self.encoder.currentData() or "",
            **self.used.kept(),
        }

    def restore(self, kept: Mapping[str, Any]) -> None:
        """See LearnPanel."""
        self.used.restore(kept)

    def reset(self) -> None:
        """See LearnPanel."""
        super().reset()
        self.used.restore({})

    def _entry_changed(self) -> None:
        super()._entry_changed()
        chosen = [str(store.path) for store in self.list.chosen]
        self.list.show_stores(self.list.stores, chosen, self._lacks)
        self._show_classes()

    def _ticked(self) -> None:
        self.kept["stores"] = [str(store.path) for store in self.list.chosen]
        self._show_classes()
        self.something_changed()

    def _lacks(self, store: StoreChoice) -> str:
        return teaching_problem(str(self.entry.currentData()), [store])

    def _show_classes(self) -> None:
        task, stores = str(self.entry.currentData()), self.list.chosen
        title, lines = what_is_learnt(task, stores)
        self.fold.setVisible(bool(title))
        self.fold.setText(title)
        tell(self.classes, lines)
        lay_out_again(self.fold)
        tell(self.fit, how_they_fit(task, stores))

    def _encoder_chosen(self) -> None:
        self.kept["encoder"] = self.encoder.currentData()
        self._tell_encoder()
        self.something_changed()

    def _tell_encoder(self) -> None:
        encoder = self._chosen_encoder()
        network = "" if encoder is None else encoder.backbone
        self.settings.let_choose_network(encoder is None, network)
        facts = "Random weights" if encoder is None else encoder.facts
        self.encoder.setToolTip(facts)

    def _chosen_encoder(self) -> Any:
        path = self.encoder.currentData()
        return next((e for e in self.encoders if str(e.path) == path), None)

    def _to_pretrain(self) -> None:
        stores = [str(store.path) for store in self.list.chosen]
        self.hub.go.emit("Pretrain", {"stores": stores})

    def something_changed(self) -> None:
        """See LearnPanel."""
        super().something_changed()
        most = int(self.settings.own.value_of("validate_cases") or 0)
        task, used = str(self.entry.currentData()), self.used
        told = labels_counted(task, self.list.chosen, used.share, most, used.patients)
        tell(self.counted, told)


# Pretrain: learn an encoder from scans without labels.


_SHARING: tuple[tuple[str, tuple[str, float] | None], ...] = (
    ("As the method does", None),
    ("By number of scans", ("store", 1.0)),
    ("Stores evenly", ("store", 0.0)),
    ("Modalities evenly", ("modality", 0.0)),
    ("Modalities, rare ones more often", ("modality", 0.5)),
)


class PretrainPanel(LearnPanel):
    """Method, stores, length, device; the rest under More."""

    title = "Pretrain"
    kind = "pretrain"
    group = "methods"
    what = "Method"
    no_store_words = (
        "No store yet. Pretraining needs scans that were prepared once; it needs no "
        "labels."
    )

    def data_rows(self, column: QVBoxLayout) -> None:
        """Stores, with ticks: several can be learnt from at once."""
        self.list = StoreTicks()
        self.list.ticked.connect(self._ticked)
        self._data = QWidget()
        inside = QVBoxLayout(self._data)
        inside.setContentsMargins(0, 0, 0, 0)
        hint = "Tick the stores to learn from"
        inside.addLayout(labelled("Learn from", self.list, hint))
        inside.addWidget(
            button("Add store...", "Choose a store that lies elsewhere",
                   self.choose_store)
        )  # fmt: skip
        keep_room(self._data)
        column.addLayout(one_place(self.no_store, self._data))

    def more_rows(self, column: QVBoxLayout) -> None:
        """Starting weights, whose crops are seen, whether test scans stay unseen."""
        self.encoder = Choice()
        column.addLayout(
            labelled("Start from", self.encoder, "Weights to start from; mostly random")
        )
        self.encoder.currentIndexChanged.connect(lambda: self._encoder_chosen())
        self.sharing = Choice()
        for words, _ in _SHARING:
            self.sharing.addItem(words)
        self.sharing.currentIndexChanged.connect(lambda: self.something_changed())
        column.addLayout(
            labelled(
                "Crops shared out", self.sharing,
                "Between whom, where several stores or modalities are learnt from; "
                "where modalities take turns, nothing changes",
            )
        )  # fmt: skip
        self.without_test = QCheckBox("Leave test scans out")
        self.without_test.setChecked(True)
        named(
            self.without_test, "Leave test scans out",
            "Scans kept for the final test are never looked at",
        )  # fmt: skip
        self.without_test.toggled.connect(lambda _: self.something_changed())
        column.addWidget(self.without_test)
        self.show_encoders()

    def show_stores(self) -> None:
        """Fill the list; what was ticked stays ticked."""
        self._data.setVisible(bool(self.stores))
        usable = {str(s.path): s for s in self.stores if not s.problem}
        ticked = [str(p) for p in self.kept.get("stores") or () if str(p) in usable]
        if not ticked and usable:
            ticked = [max(usable, key=lambda path: _age(usable[path].path))]
        self.list.show_stores(self.stores, ticked, lambda store: store.problem)
        self.kept["stores"] = [str(s.path) for s in self.list.chosen]

    def show_encoders(self) -> None:
        """Fill the starting weights."""
        entries: list[tuple[str, Any]] = [("Random weights", "")]
        entries += [(e.title, str(e.path)) for e in self.encoders]
        kept = self.kept.get("encoder") or self.encoder.currentData() or ""
        fill(self.encoder, entries, kept)

    def wish(self) -> PretrainWish | None:
        """See LearnPanel."""
        method = self.entry.currentData()
        if not method:
            return None
        encoder = self._chosen_encoder()
        settings = self.settings
        return PretrainWish(
            method=str(method),
            stores=tuple(self.list.chosen),
            recipe=settings.asked_recipe,
            backbone=settings.asked_network if encoder is None else None,
            settings={
                "method": settings.own.values(),
                "backbone": settings.layers.values() if encoder is None else {},
                "training": settings.training.values(),
            },
            length=self.length.length,
            recipe_steps=settings.steps,
            encoder=encoder,
            device=self.device.device,
            seed=settings.seed.value(),
            without_test=self.without_test.isChecked(),
            sharing=_SHARING[max(self.sharing.currentIndex(), 0)][1],
        )

    def choices(self) -> dict[str, Any]:
        """See LearnPanel."""
        return {
            "stores": [str(s.path) for s in self.list.chosen],
            "encoder": self.encoder.currentData() or "",
            "without_test": self.without_test.isChecked(),
            "sharing": self.sharing.currentText(),
        }

    def restore(self, kept: Mapping[str, Any]) -> None:
        """See LearnPanel."""
        self.without_test.setChecked(bool(kept.get("without_test", True)))
        kept_as = self.sharing.findText(str(kept.get("sharing") or ""))
        self.sharing.setCurrentIndex(max(kept_as, 0))

    def reset(self) -> None:
        """See LearnPanel."""
        super().reset()
        self.encoder.setCurrentIndex(0)
        self.sharing.setCurrentIndex(0)
        self.without_test.setChecked(True)

    def _ticked(self) -> None:
        self.kept["stores"] = [str(s.path) for s in self.list.chosen]
        self.something_changed()

    def _encoder_chosen(self) -> None:
        self.kept["encoder"] = self.encoder.currentData() or ""
        encoder = self._chosen_encoder()
        network = "" if encoder is None else encoder.backbone
        self.settings.let_choose_network(encoder is None, network)
        self.something_changed()

    def _chosen_encoder(self) -> Any:
        path = self.encoder.currentData()
        return next((e for e in self.encoders if str(e.path) == path), None)


def _age(path: Path) -> float:
    try:
        return (path / "store.json").stat().st_mtime
    except OSError:
        return 0.0
