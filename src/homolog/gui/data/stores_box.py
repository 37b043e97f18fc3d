"""The stores that exist, in the Data panel: what is in them, use, delete."""

from __future__ import annotations

from pathlib import Path

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QLabel, QListWidget, QListWidgetItem, QVBoxLayout, QWidget

from homolog.gui import questions, rows
from homolog.gui.desktop import to_trash
from homolog.gui.files.opening import human_bytes
from homolog.gui.hub import Hub
from homolog.gui.learn.store_list import StoreChoice, list_stores
from homolog.gui.threads import in_background

_KEY = Qt.ItemDataRole.UserRole


class StoresBox(QWidget):
    """A list of stores with what can be done with the selected one."""

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self.hub = hub
        self.ask = questions.ask
        title = QLabel("<b>Stores</b>")
        self.list = rows.named(QListWidget(), "Stores", "Prepared scans to train on")
        self.list.setWordWrap(True)
        self.list.setMinimumHeight(90)
        self.list.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.list.currentItemChanged.connect(lambda *_: self._allow())
        title.setBuddy(self.list)
        self.empty = rows.sentence("Stores")
        rows.tell(self.empty, "No store yet. Tick scans above and press Build store.")
        self.pretrain = rows.button(
            "Pretrain", "Learn from this store without labels",
            lambda: self._go("Pretrain"),
        )  # fmt: skip
        self.finetune = rows.button(
            "Fine-tune", "Learn to segment from the labels of this store",
            lambda: self._go("Fine-tune"),
        )  # fmt: skip
        self.delete = rows.button(
            "Delete...", "Move this store to the trash, after a question", self._delete
        )
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        rows.keep_room(self.list, self.pretrain, self.finetune, self.delete)
        column.addWidget(title)
        column.addLayout(rows.one_place(self.empty, self.list))
        column.addLayout(rows.beside(self.pretrain, self.finetune, self.delete))
        self._allow()
        hub.changed.connect(self._changed)

    def refresh(self) -> None:
        """Read the folder of stores anew, on a thread."""
        in_background(
            _stores, self.hub.stores, owner=self, done=self._show, failed=self._lost
        )

    def chosen(self) -> StoreChoice | None:
        """The selected store."""
        item = self.list.currentItem()
        return None if item is None else item.data(_KEY)

    def _show(self, found: list[tuple[StoreChoice, int]]) -> None:
        rows.keep_scrolled(self.list, lambda: self._list(found))
        self.empty.setVisible(not found)
        self.list.setVisible(bool(found))
        self._allow()

    def _list(self, found: list[tuple[StoreChoice, int]]) -> None:
        before = self.chosen()
        self.list.clear()
        for store, size in found:
            sign = "✖" if store.problem else "▣"
            text = f"{sign} {store.title}, {human_bytes(size)}"
            item = QListWidgetItem(text)
            item.setData(_KEY, store)
            item.setToolTip(f"{store.problem or text}\n{store.path}")
            self.list.addItem(item)
            if before is not None and before.path == store.path:
                self.list.setCurrentItem(item)
        if self.list.currentItem() is None and self.list.count():
            self.list.setCurrentRow(0)

    def _allow(self) -> None:
        store = self.chosen()
        usable = store is not None and not store.problem
        self.pretrain.setEnabled(usable)
        teaches = store is not None and bool(store.labelled or store.scan_classes)
        self.finetune.setEnabled(usable and teaches)
        self.delete.setEnabled(store is not None)
        for button in (self.pretrain, self.finetune, self.delete):
            button.setVisible(self.list.count() > 0)

    def _go(self, tab: str) -> None:
        store = self.chosen()
        if store is not None:
            self.hub.go.emit(tab, {"store": str(store.path)})

    def _delete(self) -> None:
        store = self.chosen()
        if store is None:
            return
        question = questions.Question(
            title="Delete store",
            text=f"Move the store {store.name} to the trash?",
            more="The scans it was built from stay; runs that learn from it cannot "
            "go on without it.",
            answers=[("delete", "Move to trash"), ("cancel", "Cancel")],
            default="cancel",
        )
        if self.ask(self, question).key != "delete":
            return
        in_background(
            to_trash, store.path, owner=self, done=lambda _: self._deleted(),
            failed=lambda error: self.hub.say(f"{error}", "warning"),
        )  # fmt: skip

    def _deleted(self) -> None:
        self.hub.changed.emit("stores")

    def _changed(self, what: str) -> None:
        if what == "stores":
            self.refresh()

    def _lost(self, error: Exception) -> None:
        self.hub.say(f"The stores cannot be listed: {error}", "warning")


def _stores(folder: Path) -> list[tuple[StoreChoice, int]]:
    return [(store, _size(store.path)) for store in list_stores(folder)]


def _size(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
