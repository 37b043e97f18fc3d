"""The Data tab: open scans and folders, see whether they are sound, build a store."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QCheckBox, QVBoxLayout, QWidget

from homolog.gui import rows
from homolog.gui.autosave.bar import RestoreBar
from homolog.gui.data.build_box import BuildBox
from homolog.gui.data.control import (
    Badge,
    Row,
    checked_row,
    few,
    layer_key,
    layer_row,
    name_for,
    rows_of,
    sources_to_build,
    with_checked,
)
from homolog.gui.data.offer_bar import OfferBar
from homolog.gui.data.scan_list import DataList
from homolog.gui.data.stores_box import StoresBox
from homolog.gui.files.layer_geometry import is_kind, notes_of
from homolog.gui.files.looking import look_at
from homolog.gui.files.open_labels import gather, pairs_of
from homolog.gui.files.samples import phantom_patient
from homolog.gui.files.scan_opener import ScanOpener
from homolog.gui.hub import Hub
from homolog.gui.threads import in_background

_EMPTY = "Drop a NIfTI, MHA, NRRD file or a DICOM folder here."
_KINDS = (
    "Scans and pictures (*.nii *.nii.gz *.nrrd *.nhdr *.mha *.mhd *.hdr *.img *.dcm "
    "*.dicom *.ima *.png *.jpg *.jpeg *.tif *.tiff *.bmp);;All files (*)"
)


class DataPanel(QWidget):
    """Scans and stores of one window."""

    title = "Data"

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self.hub = hub
        self.added: dict[str, list[Row]] = {}
        self._looking = 0
        self._read: dict[Path, Badge] = {}
        self._newest: str | None = None
        self._to_check: list[Row] = []
        self._to_check_in_all = 0
        self.opener = ScanOpener(hub, self)
        self.opener.working.connect(self._say_working)
        self.opener.failed.connect(self._say_failed)
        self.opener.crowded.connect(lambda path: self.add([path]))
        self._later = QTimer(self)
        self._later.setSingleShot(True)
        self._later.setInterval(200)
        self._later.timeout.connect(self._look_again)
        self._make()
        self._arrange()
        self.setAcceptDrops(True)
        hub.viewer.layers.events.inserted.connect(self._layers_changed)
        hub.viewer.layers.events.removed.connect(self._layers_changed)
        self.refresh()
        self.stores.refresh()

    def visit(self, what: dict[str, Any]) -> None:
        """``{"paths": [...]}`` opens them; ``{"ask": "files"}`` asks for files."""
        if what.get("paths"):
            self.take([Path(p) for p in what["paths"]])
        if what.get("ask") == "files":
            self.ask_files()

    def shown(self) -> None:
        """The tab came to the front: read the lists anew."""
        self.refresh()
        self.stores.refresh()
        self.offer.refresh()
        self.restore.give_way()

    def tear_down(self) -> None:
        """Let go of the viewer."""
        events = self.hub.viewer.layers.events
        for event in (events.inserted, events.removed):
            event.disconnect(self._layers_changed)

    def take(self, paths: list[Path]) -> None:
        """What was dropped or chosen: a few scans open, many are listed."""
        rows.tell(self.trouble, "")
        if few(paths):
            self.opener.open(paths)
        else:
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

    def ask_files(self) -> None:
        """Let the user choose scans or pictures to open."""
        rows.ask_files(self, "Open scans or pictures", _KINDS, self.take)

    def ask_folder(self) -> None:
        """Let the user choose a folder to list."""
        rows.ask_folder(self, "Add a folder of scans", lambda p: self.add([p]))

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

    def dragEnterEvent(self, event: Any) -> None:  # noqa: D102 - Qt's name
        if _local_paths(event):
            event.acceptProposedAction()

    def dropEvent(self, event: Any) -> None:
        """Files and folders dropped on the panel."""
        paths = _local_paths(event)
        if not paths:
            event.ignore()
            return
        event.acceptProposedAction()
        runs = [p for p in paths if (p / "run.json").is_file()]
        if runs:
            self.hub.go.emit("Runs", {"run": str(runs[0])})
            return
        self.take(paths)

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

    def _layers_changed(self, event: Any = None) -> None:
        new = getattr(event, "value", None)
        if getattr(event, "type", "") == "inserted" and notes_of(new).get("source"):
            self._newest = None if notes_of(new).get("derived") else layer_key(new)
        self._later.start()

    def _look_again(self) -> None:
        """Some time after a change: the list anew, and the scan just opened in view."""
        newest, self._newest = self._newest, None
        for layer in self.hub.viewer.layers:
            if layer_key(layer) == newest:
                look_at(self.hub.viewer, layer)
        self.refresh()

    def _say_working(self, text: str) -> None:
        rows.tell(self.status, text)

    def _say_failed(self, path: object, sentence: str) -> None:
        before = self.trouble.text()
        text = f"✖ {sentence}"
        rows.tell(self.trouble, f"{before}\n{text}" if before else text)

    def _make(self) -> None:
        self.restore, self.offer = RestoreBar(self.hub), OfferBar()
        self.open_button = rows.button(
            "Open...", "Open scans or pictures", self.ask_files
        )
        self.add_folder = rows.button(
            "Add folder...", "List the scans of a folder without opening them",
            self.ask_folder,
        )  # fmt: skip
        self.empty = rows.EmptyState(_EMPTY)
        self.sample = rows.button(
            "Sample", "Load a sample volume: a CT-like phantom with labels, made on "
            "the spot", self._load_sample,
        )  # fmt: skip
        self.sample.setAccessibleName("Load sample volume")
        self.status = rows.sentence("What is being done", lines=1)
        self.trouble = rows.sentence("What could not be opened", lines=2)
        self.list = DataList(self)
        self.check_button = rows.button(
            "Check values", "Read every value of the selected scans: damage, NaN",
            self.check_all_values,
        )  # fmt: skip
        self.show_button = rows.button(
            "Show", "Open the selected scans in the viewer", self._show_chosen
        )
        self.remove_button = rows.button(
            "Remove", "Take the selected scans off the list; files stay", self._remove
        )
        self.use_labels = rows.named(
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
        for widget in (self.restore, self.offer):
            column.addWidget(widget)
        first = (self.open_button, self.add_folder, self.sample)
        column.addLayout(rows.beside(*first))
        # What comes and goes keeps its room: no button moves under the pointer.
        rows.keep_room(self.list, self.check_button, self.show_button)
        rows.keep_room(self.remove_button, self.use_labels)
        column.addLayout(rows.one_place(self.empty, self.list), 1)
        column.addLayout(
            rows.beside(self.check_button, self.show_button, self.remove_button)
        )
        below = (self.status, self.trouble, self.use_labels, self.build, self.stores)
        for widget in below:
            column.addWidget(widget)
        column.addStretch(0)


def _local_paths(event: Any) -> list[Path]:
    data = event.mimeData()
    if data is None or not data.hasUrls():
        return []
    return [Path(u.toLocalFile()) for u in data.urls() if u.isLocalFile()]
