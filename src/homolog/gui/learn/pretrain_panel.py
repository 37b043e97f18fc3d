"""Pretrain: learn an encoder from scans without labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qtpy.QtWidgets import QCheckBox, QComboBox, QVBoxLayout, QWidget

from homolog.gui.learn.control import PretrainWish
from homolog.gui.learn.panel import LearnPanel
from homolog.gui.learn.store_ticks import StoreTicks
from homolog.gui.rows import button, fill, keep_room, labelled, named, narrow, one_place

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
        self.encoder = narrow(QComboBox())
        column.addLayout(
            labelled("Start from", self.encoder, "Weights to start from; mostly random")
        )
        self.encoder.currentIndexChanged.connect(lambda: self._encoder_chosen())
        self.sharing = narrow(QComboBox())
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
        self.settings.let_choose_network(self._chosen_encoder() is None)
        self.something_changed()

    def _chosen_encoder(self) -> Any:
        path = self.encoder.currentData()
        return next((e for e in self.encoders if str(e.path) == path), None)


def _age(path: Path) -> float:
    try:
        return (path / "store.json").stat().st_mtime
    except OSError:
        return 0.0
