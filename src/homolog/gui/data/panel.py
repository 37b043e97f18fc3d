"""The Data tab: open scans and folders, see whether they are sound, build a store."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from qtpy.QtCore import QRect, QSize, Qt, QTimer, Signal
from qtpy.QtGui import QBrush, QColor
from qtpy.QtWidgets import (
    QAbstractItemView,
    QCheckBox,
    QHeaderView,
    QLabel,
    QListWidget,
    QListWidgetItem,
    QStyledItemDelegate,
    QTreeWidget,
    QTreeWidgetItem,
    QVBoxLayout,
    QWidget,
)

from homolog.gui.data.build_box import BuildBox
from homolog.gui.data.control import (
    BAD,
    DOUBT,
    Badge,
    Row,
    checked_row,
    gather,
    layer_key,
    layer_row,
    name_for,
    pairs_of,
    rows_of,
    runs_of_store,
    sources_to_build,
    use_words,
    with_checked,
)
from homolog.gui.files.choosing import ScanOpener
from homolog.gui.files.dropping import DropsScans
from homolog.gui.files.offer_bar import OfferBar
from homolog.gui.files.reader import phantom_patient
from homolog.gui.shared import widgets
from homolog.gui.shared.choices import StoreChoice, list_stores
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.layers import is_kind
from homolog.gui.shared.models import to_trash
from homolog.gui.shared.threads import in_background
from homolog.gui.shared.widgets import keep_scrolled
from homolog.words import human_bytes, listed
from homolog.writing import folder_bytes

# The list of scans in the Data panel: name, facts and badge of each.


# Rows of one folder that are shown one by one.
_MOST_SHOWN = 300
_COLOURS = {BAD: "#ff8a80", DOUBT: "#ffd166"}
_KEY = Qt.ItemDataRole.UserRole
# Room of the tick, and between two rows.
_TICK_PX, _GAP_PX = 30, 8


class DataList(QTreeWidget):
    """Scans and folders; ticked ones go into a store.

    Signals:
        asked: A scan was double-clicked, or Enter pressed on it (Row).
        ticked: Which rows are ticked changed.
    """

    asked = Signal(object)
    ticked = Signal()

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self.rows: dict[str, Row] = {}
        self._left_out: set[str] = set()
        self.setColumnCount(1)
        self.setHeaderHidden(True)
        self.header().setSectionResizeMode(QHeaderView.ResizeMode.Stretch)
        self.setWordWrap(True)
        self.setUniformRowHeights(False)
        self.setTextElideMode(Qt.TextElideMode.ElideNone)
        self.setItemDelegate(_Wrapping(self))
        self.setIndentation(14)
        self.setMinimumHeight(170)
        self.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        self.setVerticalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setAccessibleName("Scans")
        self.setToolTip(
            "Ticked scans and folders go into a store; double-click a scan to show it"
        )
        self.itemActivated.connect(self._ask)
        self.itemChanged.connect(self._tick)
        self.itemExpanded.connect(self._fill)

    def show_rows(self, rows: Iterable[Row]) -> None:
        """Show rows; what was open, selected, not ticked or looked at stays so."""
        keep_scrolled(self, lambda: self._show(rows))

    def _show(self, rows: Iterable[Row]) -> None:
        opened = {k for k, item in self._tops() if item.isExpanded()}
        chosen = {row.key for row in self.chosen()}
        self.blockSignals(True)
        self.clear()
        self.rows = {row.key: row for row in rows}
        for row in self.rows.values():
            item = self._item(row)
            state = Qt.CheckState.Checked
            if row.key in self._left_out or row.badge.level == BAD:
                state = Qt.CheckState.Unchecked
            item.setCheckState(0, state)
            self.addTopLevelItem(item)
            if row.scans:
                policy = QTreeWidgetItem.ChildIndicatorPolicy.ShowIndicator
                item.setChildIndicatorPolicy(policy)
            if row.key in opened:
                self._fill(item)
                item.setExpanded(True)
            item.setSelected(row.key in chosen)
        self.blockSignals(False)
        self.ticked.emit()

    def ticked_rows(self) -> list[Row]:
        """Rows that go into a store."""
        checked = Qt.CheckState.Checked
        return [
            self.rows[k] for k, item in self._tops() if item.checkState(0) == checked
        ]

    def chosen(self) -> list[Row]:
        """Selected rows, scans of a folder too."""
        found = [item.data(0, _KEY) for item in self.selectedItems()]
        return [row for row in found if isinstance(row, Row)]

    def _fill(self, item: QTreeWidgetItem) -> None:
        """The scans of a folder become items when it is first unfolded."""
        row = item.data(0, _KEY)
        if item.childCount() or not isinstance(row, Row):
            return
        blocked = self.blockSignals(True)
        item.addChildren([self._item(scan) for scan in row.scans[:_MOST_SHOWN]])
        if len(row.scans) > _MOST_SHOWN:
            more = QTreeWidgetItem([f"and {len(row.scans) - _MOST_SHOWN} more"])
            item.addChild(more)
        self.blockSignals(blocked)

    def resizeEvent(self, event: Any) -> None:  # noqa: D102 - Qt's name
        super().resizeEvent(event)
        self.scheduleDelayedItemsLayout()

    def _item(self, row: Row) -> QTreeWidgetItem:
        item = QTreeWidgetItem([row.text])
        item.setData(0, _KEY, row)
        item.setToolTip(0, f"{row.text}\n{row.path or 'not a file'}")
        if row.badge.level in _COLOURS:
            item.setForeground(0, QBrush(QColor(_COLOURS[row.badge.level])))
        return item

    def _tops(self) -> list[tuple[str, QTreeWidgetItem]]:
        items = [self.topLevelItem(i) for i in range(self.topLevelItemCount())]
        return [(item.data(0, _KEY).key, item) for item in items]

    def _ask(self, item: QTreeWidgetItem) -> None:
        row = item.data(0, _KEY)
        if isinstance(row, Row) and not row.scans:
            self.asked.emit(row)

    def _tick(self, item: QTreeWidgetItem) -> None:
        row = item.data(0, _KEY)
        if not isinstance(row, Row) or item.parent() is not None:
            return
        if item.checkState(0) == Qt.CheckState.Checked:
            self._left_out.discard(row.key)
        else:
            self._left_out.add(row.key)
        self.ticked.emit()


class _Wrapping(QStyledItemDelegate):
    """Rows as high as their wrapped text; Qt itself asks without a width."""

    def __init__(self, tree: DataList) -> None:
        super().__init__(tree)
        self._tree = tree

    def sizeHint(self, option: Any, index: Any) -> QSize:
        depth = 2 if index.parent().isValid() else 1
        room = self._tree.viewport().width() - depth * self._tree.indentation()
        room = max(80, room - _TICK_PX)
        wrap = int(Qt.TextFlag.TextWordWrap.value)
        text = index.data() or ""
        rect = option.fontMetrics.boundingRect(QRect(0, 0, room, 10_000), wrap, text)
        return QSize(room, rect.height() + _GAP_PX)


# The stores that exist, in the Data panel: what is in them, use, delete.


class StoresBox(QWidget):
    """A list of stores with what can be done with the selected one."""

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self.hub = hub
        self.ask = widgets.ask
        title = QLabel("<b>Stores</b>")
        self.list = widgets.named(QListWidget(), "Stores", "Prepared scans to train on")
        self.list.setWordWrap(True)
        self.list.setMinimumHeight(90)
        self.list.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.list.currentItemChanged.connect(lambda *_: self._allow())
        title.setBuddy(self.list)
        self.empty = widgets.sentence("Stores")
        widgets.tell(
            self.empty, "No store yet. Tick scans above and press Build store."
        )
        self.pretrain = widgets.button(
            "Pretrain", "Learn from this store without labels",
            lambda: self._go("Pretrain"),
        )  # fmt: skip
        self.finetune = widgets.button(
            "Fine-tune", "Learn from the labels, classes or boxes of this store",
            lambda: self._go("Fine-tune"),
        )  # fmt: skip
        self.delete = widgets.button(
            "Delete...", "Move this store to the trash, after a question", self._delete
        )
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        widgets.keep_room(self.list, self.pretrain, self.finetune, self.delete)
        self.list.hide()
        column.addWidget(title)
        column.addLayout(widgets.one_place(self.empty, self.list))
        column.addLayout(widgets.beside(self.pretrain, self.finetune, self.delete))
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
        widgets.keep_scrolled(self.list, lambda: self._list(found))
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
        teaches = store is not None and bool(
            store.labelled or store.scan_classes or store.boxed or store.channels
        )
        self.finetune.setEnabled(usable and teaches)
        self.delete.setEnabled(store is not None)
        for button in (self.pretrain, self.finetune, self.delete):
            button.setVisible(self.list.count() > 0)

    def _go(self, tab: str) -> None:
        store = self.chosen()
        if store is not None:
            self.hub.go.emit(tab, {"store": str(store.path)})

    def _delete(self) -> None:
        """Ask, naming the runs that use it; a running one keeps it."""
        store = self.chosen()
        if store is None:
            return
        in_background(
            runs_of_store, store.path, self.hub.runs, owner=self,
            done=lambda users: self._ask_to_delete(store, users), failed=self._refused,
        )  # fmt: skip

    def _ask_to_delete(self, store: StoreChoice, users: list[tuple[str, bool]]) -> None:
        working = [name for name, alive in users if alive]
        if working:
            self.hub.say(
                f"{store.name} is being learnt from by {listed(working, most=5)}; "
                "stop that first.", "warning",
            )  # fmt: skip
            return
        question = widgets.Question(
            title="Delete store",
            text=f"Move the store {store.name} to the trash?",
            more=use_words([name for name, _ in users]),
            answers=[("delete", "Move to trash"), ("cancel", "Cancel")],
            default="cancel",
        )
        if self.ask(self, question).key != "delete":
            return
        in_background(
            to_trash, store.path, owner=self,
            done=lambda where: self._deleted(store, where), failed=self._refused,
        )  # fmt: skip

    def _deleted(self, store: StoreChoice, where: str) -> None:
        self.hub.say(f"{store.name} is {where}.")
        self.hub.changed.emit("stores")

    def _refused(self, error: Exception) -> None:
        self.hub.say(f"The store was not deleted: {error}", "warning")

    def _changed(self, what: str) -> None:
        if what == "stores":
            self.refresh()

    def _lost(self, error: Exception) -> None:
        self.hub.say(f"The stores cannot be listed: {error}", "warning")


def _stores(folder: Path) -> list[tuple[StoreChoice, int]]:
    return [(store, folder_bytes(store.path)) for store in list_stores(folder)]


_EMPTY = "Drop a NIfTI, MHA, NRRD file or a DICOM folder here."


class DataPanel(DropsScans, QWidget):
    """Scans and stores of one window."""

    title = "Data"

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self.hub = hub
        self.added: dict[str, list[Row]] = {}
        self._looking = 0
        self._read: dict[Path, Badge] = {}
        self._to_check: list[Row] = []
        self._to_check_in_all = 0
        self.opener = ScanOpener(hub, self)
        self.opener.working.connect(self._say_working)
        self.opener.failed.connect(self._say_failed)
        self.opener.crowded.connect(lambda path: self.add([path]))
        self._later = QTimer(self)
        self._later.setSingleShot(True)
        self._later.setInterval(200)
        self._later.timeout.connect(self.refresh)
        self._make()
        self._arrange()
        self.setAcceptDrops(True)
        hub.viewer.layers.events.inserted.connect(self._layers_changed)
        hub.viewer.layers.events.removed.connect(self._layers_changed)
        self.refresh()
        self.stores.refresh()

    def visit(self, what: dict[str, Any]) -> None:
        """``{"paths": [...]}`` opens them; ``{"ask": "files"}`` asks for files.

        ``{"list": [...]}`` lists them without opening.
        """
        if what.get("list"):
            self.add([Path(p) for p in what["list"]])
        if what.get("paths"):
            self.take([Path(p) for p in what["paths"]])
        if what.get("ask") == "files":
            self.ask_files()

    def shown(self) -> None:
        """The tab came to the front: read the lists anew."""
        self.refresh()
        self.stores.refresh()
        self.offer.refresh()

    def tear_down(self) -> None:
        """Let go of the viewer."""
        events = self.hub.viewer.layers.events
        for event in (events.inserted, events.removed):
            event.disconnect(self._layers_changed)

    def list_them(self, paths: list[Path]) -> None:
        """The list is here."""
        self.add(paths)

    def add(self, paths: list[Path]) -> None:
        """List files and folders without opening them."""
        for path in paths:
            path = path.absolute()
            self._looking += 1
            self._say_working(f"Looking at {path.name} ...")
            in_background(
                rows_of, path, owner=self, done=self._added(path), failed=self._lost
            )

    def refresh(self) -> None:
        """Show what is open and what was added."""
        found_rows = map(layer_row, self.hub.viewer.layers)
        listed = [self._as_read(r) for r in found_rows if r is not None]
        opened = {r.path for r in listed if r.path is not None}
        for found in self.added.values():
            listed += [r for r in found if r.path not in opened]
        labels = [x for x in self.hub.viewer.layers if is_kind(x, "Labels")]
        self.use_labels.setVisible(bool(labels))
        self.list.show_rows(listed)
        has_rows = bool(listed)
        self.empty.setVisible(not has_rows)
        tools = (self.check_button, self.show_button, self.remove_button)
        for widget in (self.list, *tools):
            widget.setVisible(has_rows)

    def ask_folder(self) -> None:
        """Let the user choose a folder to list."""
        widgets.ask_folder(self, "Add a folder of scans", lambda p: self.add([p]))

    def check_all_values(self) -> None:
        """Read every value of the selected (or all listed) scans, on threads."""
        wanted = self.list.chosen() or list(self.list.rows.values())
        scans = [s for row in wanted for s in row.scans or (row,)]
        busy = bool(self._to_check)
        self._to_check += [s for s in scans if s.path is not None and not s.badge.deep]
        self._to_check_in_all = len(self._to_check)
        if not busy:
            self._check_next()

    def _check_next(self) -> None:
        """One scan at a time: several threads at once would starve the window."""
        if not self._to_check:
            self._say_working("")
            self.refresh()
            return
        scan = self._to_check[0]
        done = self._to_check_in_all - len(self._to_check)
        self._say_working(f"Reading {done + 1} of {self._to_check_in_all}: {scan.name}")
        in_background(
            checked_row, scan, owner=self, done=self._checked, failed=self._not_checked
        )

    def _not_checked(self, error: Exception) -> None:
        self.hub.say(f"{self._to_check[0].name} cannot be checked: {error}", "warning")
        del self._to_check[:1]
        self._check_next()

    def _added(self, path: Path) -> Callable[[list[Row]], None]:
        def done(found: list[Row]) -> None:
            self.added[str(path)] = found
            self._looked()
            self.refresh()

        return done

    def _checked(self, new: Row) -> None:
        for key, found in self.added.items():
            self.added[key] = [with_checked(row, new) for row in found]
        if new.is_layer and new.path is not None:
            self._read[new.path] = new.badge
        del self._to_check[:1]
        if not self._later.isActive():
            self._later.start()
        self._check_next()

    def _as_read(self, row: Row) -> Row:
        """A layer's row with the badge of its file, where all values were read."""
        badge = self._read.get(row.path) if row.path is not None else None
        return row if badge is None else replace(row, badge=badge)

    def _looked(self) -> None:
        self._looking = max(0, self._looking - 1)
        if not self._looking:
            self._say_working("")

    def _lost(self, error: Exception) -> None:
        self._looked()
        self.hub.say(f"That cannot be looked at: {error}", "warning")

    def _remove(self) -> None:
        """Take the selected rows off the list; layers leave the viewer."""
        keys = {row.key for row in self.list.chosen()}
        for layer in list(self.hub.viewer.layers):
            if layer_key(layer) in keys:
                self.hub.viewer.layers.remove(layer)
        for key, found in list(self.added.items()):
            kept = [row for row in found if row.key not in keys]
            if kept:
                self.added[key] = kept
            else:
                del self.added[key]
        self.refresh()

    def _show_chosen(self) -> None:
        for row in self.list.chosen():
            self._show_row(row)

    def _show_row(self, row: Row) -> None:
        if row.is_layer:
            for layer in self.hub.viewer.layers:
                if layer_key(layer) == row.key:
                    self.hub.viewer.layers.selection.active = layer
        elif row.path is not None:
            self.opener.open([row.path])

    def _load_sample(self) -> None:
        self.opener.make(phantom_patient, "a phantom")

    def _gather(self) -> tuple[Callable[[], list[Path]], list[Path]]:
        ticked = self.list.ticked_rows()
        layers = {layer_key(x): x for x in self.hub.viewer.layers}
        ticked_keys = {r.key for r in ticked}
        unsaved = [layers[r.key] for r in ticked if r.path is None and r.key in layers]
        pairs = []
        if self._takes_layers():
            every = pairs_of(self.hub.viewer.layers)
            pairs = [(s, x) for s, x in every if layer_key(s) in ticked_keys]
        scratch = Path(tempfile.mkdtemp(prefix="store-", dir=self.hub.scratch))
        folders = [scratch / "labels"] if pairs else []
        paths = sources_to_build(ticked)
        return (lambda: gather(paths, unsaved, pairs, scratch)), folders

    def _layers_changed(self, _: Any = None) -> None:
        self._later.start()

    def _say_working(self, text: str) -> None:
        widgets.tell(self.status, text)

    def _say_failed(self, path: object, sentence: str) -> None:
        before = self.trouble.text()
        text = f"✖ {sentence}"
        widgets.tell(self.trouble, f"{before}\n{text}" if before else text)

    def _make(self) -> None:
        self.offer = OfferBar()
        self.open_button = widgets.button(
            "Open...", "Open scans or pictures", self.ask_files
        )
        self.add_folder = widgets.button(
            "Add folder...", "List the scans of a folder without opening them",
            self.ask_folder,
        )  # fmt: skip
        self.empty = widgets.EmptyState(_EMPTY)
        self.sample = widgets.button(
            "Sample", "Load a sample volume: a CT-like phantom with labels, made on "
            "the spot", self._load_sample,
        )  # fmt: skip
        self.sample.setAccessibleName("Load sample volume")
        self.status = widgets.sentence("What is being done", lines=1)
        self.trouble = widgets.sentence("What could not be opened", lines=2)
        self.list = DataList(self)
        self.check_button = widgets.button(
            "Check values", "Read every value of the selected scans: damage, NaN",
            self.check_all_values,
        )  # fmt: skip
        self.show_button = widgets.button(
            "Show", "Open the selected scans in the viewer", self._show_chosen
        )
        self.remove_button = widgets.button(
            "Remove", "Take the selected scans off the list; files stay", self._remove
        )
        self.use_labels = widgets.named(
            QCheckBox("Use the visible label layers"), "Use the visible label layers",
            "Labels drawn or opened on a ticked scan go into the store with it",
        )  # fmt: skip
        self.build = BuildBox(self.hub, self._gather)
        self.stores = StoresBox(self.hub)
        self.list.asked.connect(self._show_row)
        self.list.ticked.connect(self._count_ticked)
        self.use_labels.toggled.connect(lambda _: self._count_ticked())

    def _count_ticked(self) -> None:
        ticked = self.list.ticked_rows()
        has_labels = self._takes_layers() or any(row.labelled for row in ticked)
        self.build.refresh(len(ticked), name_for(ticked), has_labels=has_labels)

    def _takes_layers(self) -> bool:
        return bool(self.use_labels.isVisibleTo(self) and self.use_labels.isChecked())

    def _arrange(self) -> None:
        column = QVBoxLayout(self)
        column.setContentsMargins(4, 4, 4, 4)
        column.addWidget(self.offer)
        first = (self.open_button, self.add_folder, self.sample)
        column.addLayout(widgets.beside(*first))
        # What comes and goes keeps its room: no button moves under the pointer.
        widgets.keep_room(self.list, self.check_button, self.show_button)
        widgets.keep_room(self.remove_button, self.use_labels)
        column.addLayout(widgets.one_place(self.empty, self.list), 1)
        column.addLayout(
            widgets.beside(self.check_button, self.show_button, self.remove_button)
        )
        below = (self.status, self.trouble, self.use_labels, self.build, self.stores)
        for widget in below:
            column.addWidget(widget)
        column.addStretch(0)
