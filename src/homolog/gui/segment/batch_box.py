"""Several scans at once: a list to drop files on, and the progress of each."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QAbstractItemView,
    QApplication,
    QListWidget,
    QListWidgetItem,
    QProgressBar,
    QVBoxLayout,
    QWidget,
)
from superqt import QElidingLabel

from homolog.events import Event, Progress, Saved
from homolog.gui.files.dropping import local_paths
from homolog.gui.segment.channels import Wanted, cases_of, wanted_channels
from homolog.gui.segment.control import (
    Batch,
    BatchItem,
    Facts,
    chance_rows,
    find_scans,
    keep_boxes,
    keep_image,
    keep_result,
    keep_table,
    read_facts,
    volumes_in,
)
from homolog.gui.shared.choices import ModelChoice
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.threads import Helper, in_background
from homolog.gui.shared.widgets import (
    ask_files,
    ask_folder,
    beside,
    button,
    keep_room,
    labelled,
    named,
    sentence,
    tell,
)
from homolog.scans.volume import Channel
from homolog.words import counted
from homolog.writing import scratch_folder

# The list of a batch: one line per scan, with what became of it.


_ROWS_SHOWN = 5


class BatchList(QListWidget):
    """Scans of a batch; files dropped on it fall through to the box around it."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        self.setAcceptDrops(False)
        self.viewport().setAcceptDrops(False)
        self.setTextElideMode(Qt.TextElideMode.ElideMiddle)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)

    @property
    def chosen(self) -> list[int]:
        """Numbers of the selected lines."""
        return [index.row() for index in self.selectedIndexes()]

    def show_items(self, items: Sequence[BatchItem]) -> None:
        """The lines anew; the selection stays."""
        chosen = set(self.chosen)
        if self.count() != len(items):
            self.clear()
            for _ in items:
                self.addItem(QListWidgetItem())
            for row in chosen & set(range(len(items))):
                self.item(row).setSelected(True)
        for row, item in enumerate(items):
            self.show_line(row, item)
        height = self.fontMetrics().height() + 4
        self.setFixedHeight(_ROWS_SHOWN * height + 2 * self.frameWidth() + 4)

    def show_line(self, row: int, item: BatchItem) -> None:
        """One line anew."""
        line = self.item(row)
        if line is None:
            return
        line.setText(item.line)
        numbers = [f"{n}: {v:,.2f} ml" for n, v in item.volumes_ml.items() if v > 0]
        if item.told:
            numbers = [f"{r.name}: {r.text}" for r in chance_rows(item.told)]
        files = [f"{c.name or 'channel'}: {c.path}" for c in item.channels]
        where = files or [str(item.scan)]
        told = [*where, item.lacks, item.note, item.words, *numbers]
        line.setToolTip("\n".join(t for t in told if t))


_DROP = "Drop scans, folders or tables here: NIfTI, NRRD, MHA, DICOM, CSV."
_PAUSE = "Wait after the running window; the model stays in memory"
_KINDS = (
    "Scans (*.nii.gz *.nii *.nrrd *.nhdr *.mha *.mhd *.hdr *.dcm);;"
    "Pictures (*.png *.jpg *.jpeg *.tif *.tiff *.bmp);;"
    "Lists of scans (*.csv *.tsv *.json);;All files (*)"
)

# Scans, folder for the results -> configuration of the job.
MakeConfig = Callable[[Sequence[Path], Path], Mapping[str, Any]]


class BatchBox(QWidget):
    """Scans to segment into a folder, one after the other.

    Signals:
        changed: Scans came or went, or work began or ended.
        load: The user wants to see a result (BatchItem).
    """

    changed = Signal()
    load = Signal(object)

    def __init__(self, hub: Hub, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._hub = hub
        self.batch = Batch()
        self.out: Path | None = None
        self._facts: dict[Path, Facts] = {}
        self._advice: tuple[ModelChoice | None, str | None] = (None, None)
        self._names: dict[int, str] = {}
        self._wanted: tuple[Wanted, ...] = ()
        self._config: MakeConfig | None = None
        self._helper: Helper | None = None
        self._part: Path | None = None
        self._moving = 0
        self._wants_stop = False
        self._kept: list[str] = []
        self.setAcceptDrops(True)
        self.list = BatchList()
        self.list.itemDoubleClicked.connect(lambda _: self.load_selected())
        self.bar = QProgressBar()
        named(self.bar, "Scans done", "Scans done so far")
        self.bar.hide()
        self.pause = button("Pause", _PAUSE, self.pause_or_go_on)
        self.cancel = button(
            "Cancel", "Stop after the running window; finished scans stay", self.stop
        )
        self._paused = False
        for part in (self.pause, self.cancel):
            part.hide()
        self.words = sentence("State of the batch", lines=3)
        self.folder = QElidingLabel()
        self.folder.setElideMode(Qt.TextElideMode.ElideMiddle)
        self._lay_out()
        self.show_list()

    @property
    def busy(self) -> bool:
        """Whether scans are being segmented."""
        return self._helper is not None or self._moving > 0

    def set_out(self, folder: Path) -> None:
        """Where the results go."""
        self.out = folder
        self.folder.setText(str(folder))
        named(self.folder, "Folder of the results", str(folder))

    def add(self, paths: Sequence[Path]) -> None:
        """Add files and folders; folders are searched in the background."""
        in_background(
            find_scans, list(paths), owner=self, done=self._found,
            failed=lambda error: tell(self.words, f"⚠ {error}"),
        )  # fmt: skip

    def advise(self, model: ModelChoice | None, modality: str | None) -> None:
        """Tell which scans are unlike those the chosen model learnt from.

        A model of several channels takes the files of a case together.
        """
        self._advice = (model, modality)
        if (wanted := wanted_channels(model)) != self._wanted and not self.busy:
            self._wanted = wanted
            self._arrange()
        self.batch.advise(model, self._facts, modality)
        self.show_list()

    def _arrange(self) -> None:
        """Bring the files of each case together, as the model takes them."""
        wanted = self._wanted

        def arranged(cases: dict[Path, tuple[Channel, ...]]) -> None:
            if self.busy or wanted != self._wanted:
                return
            if set(self.batch.files) != set(files):  # others came meanwhile
                self._arrange()
                return
            self.batch.arrange(cases, wanted)
            self.batch.advise(self._advice[0], self._facts, self._advice[1])
            self.show_list()
            self.changed.emit()

        files = self.batch.files
        if not wanted:
            arranged(cases_of(files, wanted))
            return
        in_background(
            cases_of, files, wanted, owner=self, done=arranged,
            failed=lambda error: tell(self.words, f"⚠ {error}"),
        )  # fmt: skip

    def begin(
        self,
        config: MakeConfig,
        names: Mapping[int, str],
        done_word: str = "segmented",
        model: str = "",
    ) -> None:
        """Segment or classify what is not done yet.

        Args:
            config: Makes the job's configuration.
            names: Label value -> name, written beside each result.
            done_word: What became of a scan that is done.
            model: The run or model folder.
        """
        if self.busy or self.out is None or not self.batch.open:
            return
        self.batch.done_word, self.batch.model, self._kept = done_word, model, []
        self._config, self._names = config, dict(names)
        self._wants_stop = False
        self.batch.restart()
        self._moving += 1
        in_background(
            scratch_folder, self.out, owner=self, done=self._ready,
            failed=lambda error: self._cannot_write(error),
        )  # fmt: skip
        tell(self.words, "Starting the worker...")
        self.bar.setRange(0, len(self.batch.items))
        self.bar.show()
        self._say_paused(False)
        for part in (self.pause, self.cancel):
            part.setEnabled(True)
            part.show()
        self.show_list()
        self.changed.emit()

    def another_model(self) -> None:
        """Another kind of answer is wanted: all scans wait again; files stay."""
        if not self.busy:
            self.batch.begin_anew()
            tell(self.words, "")
            self.show_list()

    def stop(self) -> None:
        """Cancel: finished scans stay."""
        self._wants_stop = True
        self.cancel.setEnabled(False)
        self.pause.setEnabled(False)
        tell(self.words, "Cancelling...")
        if self._helper is not None:
            self._helper.stop()

    def pause_or_go_on(self) -> None:
        """Let the worker wait between two windows, or go on."""
        if self._helper is None or self._wants_stop:
            return
        if self._paused:
            self._helper.go_on()
        else:
            self._helper.pause()
        self._say_paused(not self._paused)

    def _say_paused(self, paused: bool) -> None:
        self._paused = paused
        self.pause.setText("Go on" if paused else "Pause")
        self.pause.setToolTip("Go on where it waits" if paused else _PAUSE)
        if paused:
            tell(self.words, "Paused: the model stays in memory.")

    def copy_table(self) -> None:
        """The list with its volumes on the clipboard."""
        QApplication.clipboard().setText(self.batch.table)
        tell(self.words, "The table was copied.")

    def load_selected(self) -> None:
        """Ask for the selected result to be shown."""
        items = [self.batch.items[row] for row in self.list.chosen]
        items = [item for item in items if item.result or item.told]
        if not items:
            tell(self.words, "Select a scan that is done to load its result.")
        for item in items:
            self.load.emit(item)

    def remove_selected(self) -> None:
        """Take the selected scans out of the list; files stay.

        Without a selection all go; of a running batch only what is selected, and the
        batch goes on without it.
        """
        chosen = self.list.chosen
        if self.busy and not chosen:
            tell(self.words, "Select the scans to take out; Cancel ends them all.")
            return
        undone = self.batch.remove(chosen or range(len(self.batch.items)))
        if self._helper is not None:
            self._helper.leave_out(undone)
        if self.busy:
            self.bar.setRange(0, max(1, len(self.batch.items)))
            self.list.clearSelection()  # else a second press takes the next one
        out = f"{counted(len(chosen), 'scan')} taken out; the others go on."
        tell(self.words, out if self.busy else "")
        self.show_list()
        self.changed.emit()

    def show_list(self) -> None:
        """The lines anew; the selection stays."""
        items = self.batch.items
        self.list.show_items(items)
        self.hint.setVisible(not items)
        self.load_button.setEnabled(any(i.result or i.told for i in items))
        self.remove_button.setEnabled(bool(items))
        self.table_button.setEnabled(any(i.volumes_ml or i.told for i in items))
        self.bar.setValue(sum(item.state in ("done", "failed") for item in items))

    def dragEnterEvent(self, event: Any) -> None:
        """Files are welcome."""
        if local_paths(event):
            event.acceptProposedAction()

    def dropEvent(self, event: Any) -> None:
        """Files and folders join the list."""
        self.add(local_paths(event))
        event.acceptProposedAction()

    def _lay_out(self) -> None:
        self.hint = sentence("Where to drop scans", texts=[_DROP])
        tell(self.hint, _DROP)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        hint = "Scans to segment; drop files or folders here, double-click a result"
        column.addLayout(labelled("Several scans", self.list, hint))
        column.addWidget(self.hint)
        column.addLayout(
            beside(
                button("Add files...", "Choose scan files", self._ask_files),
                button("Add folder...", "Choose a folder of scans or a DICOM folder",
                       lambda: ask_folder(self, "Add a folder",
                                          lambda p: self.add([p]))),
            )
        )  # fmt: skip
        self.load_button = button(
            "Load result", "Show the selected scan with its labels", self.load_selected
        )
        self.remove_button = button(
            "Remove",
            "Take the selected scans out of this list; a running batch goes on",
            self.remove_selected,
        )
        self.table_button = button(
            "Copy table", "Copy the list with the volumes in ml, or the chances, of "
            "each class for a spreadsheet", self.copy_table,
        )  # fmt: skip
        below = (self.load_button, self.remove_button, self.table_button)
        column.addLayout(beside(*below))
        column.addLayout(labelled("Results go to", self.folder, "Folder of results"))
        column.addWidget(
            button("Change folder...", "Choose where the results go",
                   lambda: ask_folder(self, "Folder of the results", self.set_out))
        )  # fmt: skip
        keep_room(self.bar, self.pause, self.cancel)
        column.addWidget(self.bar)
        column.addLayout(beside(self.pause, self.cancel))
        column.addWidget(self.words)

    def _ask_files(self) -> None:
        ask_files(self, "Add scans", _KINDS, self.add)

    def _found(self, answer: tuple[list[Path], list[str]]) -> None:
        scans, odd = answer
        new = self.batch.add(scans)
        told = [f"⚠ {text}" for text in odd]
        if scans and not new:
            told.append("These scans are in the list already.")
        tell(self.words, "\n".join(told))
        if new and self._wanted:
            self._arrange()
        self.show_list()
        self.changed.emit()
        unread = [p for p in scans if p not in self._facts]
        in_background(
            read_facts, unread, owner=self, done=self._got_facts,
            failed=lambda error: tell(self.words, f"⚠ {error}"),
        )  # fmt: skip

    def _got_facts(self, facts: dict[Path, Facts]) -> None:
        self._facts |= facts
        self.advise(*self._advice)

    def _ready(self, part: Path) -> None:
        self._part = part
        self._moving -= 1
        self._next_round()

    def _cannot_write(self, error: Exception) -> None:
        self._moving -= 1
        self._end(f"⚠ {self.out} cannot be written to: {error}")

    def _next_round(self) -> None:
        scans = [] if self._wants_stop else self.batch.next_round()
        if not scans or self._config is None or self._part is None:
            self._helper = None
            self._end_if_moved()
            return
        helper = Helper("predict", self._config(scans, self._part), self)
        helper.news.connect(self._tell)
        helper.done.connect(self._round_done)
        helper.failed.connect(lambda text: self._round_broken(text))
        helper.stopped.connect(lambda: self._round_broken(""))
        self._helper = helper
        helper.start()

    def _tell(self, event: Event) -> None:
        if isinstance(event, Saved) and event.what == "table":
            self._keep_table(Path(event.path))
            return
        item = self.batch.tell(event)
        if item is None:
            return
        if not self._paused and not self._wants_stop:
            tell(self.words, "")
        self.list.show_line(self.batch.items.index(item), item)
        if isinstance(event, Saved):
            self._move(item, Path(event.path), event.what)
        if isinstance(event, Progress) and event.phase == "scans":
            self.show_list()

    def _move(self, item: BatchItem, part: Path, what: str) -> None:
        assert self.out is not None
        self._moving += 1
        out, names = self.out, self._names
        keep = {"boxes": keep_boxes, "image": keep_image}.get(what)
        in_background(
            lambda: keep(part, out) if keep else keep_result(part, out, names),
            owner=self,
            done=lambda path: self._moved(item, path, ""),
            failed=lambda error: self._moved(item, None, f"not saved: {error}"),
        )  # fmt: skip

    def _keep_table(self, part: Path) -> None:
        """A table of all scans, which comes at the end, and after a stop."""
        assert self.out is not None
        self._moving += 1
        in_background(
            _kept_table, part, self.out, owner=self,
            done=lambda kept: self._table_kept(*kept),
            failed=lambda error: self._table_kept(f"{part.name} not saved: {error}"),
        )  # fmt: skip

    def _table_kept(
        self, words: str, volumes: Mapping[str, Mapping[str, float]] | None = None
    ) -> None:
        self._moving -= 1
        self.batch.take_volumes(volumes or {})
        self._kept.append(words)
        self._end_if_moved()

    def _moved(self, item: BatchItem, path: Path | None, reason: str) -> None:
        self._moving -= 1
        if path is not None:
            self.batch.saved(item, path)
        else:
            item.state, item.words = "failed", reason
        self.show_list()
        self._end_if_moved()

    def _round_done(self, result: dict[str, Any]) -> None:
        self.batch.finish(result)
        self._drop_helper()
        self._next_round()

    def _round_broken(self, reason: str) -> None:
        self.batch.break_off(reason)
        self._drop_helper()
        self._end_if_moved()

    def _drop_helper(self) -> None:
        if self._helper is not None:
            self._helper.deleteLater()
        self._helper = None

    def _end_if_moved(self) -> None:
        if not self.busy and self._part is not None:
            stopped = "Cancelled; " if self._wants_stop else ""
            kept = f" Saved as {', '.join(self._kept)}." if self._kept else ""
            self._end(f"{stopped}{self.batch.summary}.{kept}")

    def _end(self, words: str) -> None:
        if self._part is not None:
            part, self._part = self._part, None
            in_background(shutil.rmtree, part, True, owner=self)
        for working in (self.bar, self.pause, self.cancel):
            working.hide()
        tell(self.words, words)
        self.show_list()
        self.changed.emit()


def _kept_table(part: Path, out: Path) -> tuple[str, dict[str, dict[str, float]]]:
    """A finished table at its place: its name, and the volumes that it tells."""
    path = keep_table(part, out)
    return path.name, volumes_in(path)
