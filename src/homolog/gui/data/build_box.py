"""The part of the Data panel that builds a store, in a worker of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qtpy.QtCore import QTimer, Signal
from qtpy.QtGui import QGuiApplication
from qtpy.QtWidgets import (
    QComboBox,
    QFrame,
    QLabel,
    QLineEdit,
    QPlainTextEdit,
    QProgressBar,
    QPushButton,
    QVBoxLayout,
)

from homolog.errors import UnusableInput
from homolog.events import Note, Progress
from homolog.gui import rows
from homolog.gui.data.names_line import NamesLine
from homolog.gui.data.store_building import (
    Pace,
    build_config,
    fold_words,
    free_name,
    rejected_text,
    result_line,
)
from homolog.gui.hub import Hub
from homolog.gui.threads import Helper, in_background

# (text, value) of the voxel sizes offered.
_SPACINGS = (
    ("Automatic (from the scans)", "auto"),
    ("Each scan's own", "native"),
    ("Chosen (mm)", "own"),
)
_NO_SCANS = "Tick at least one scan or folder in the list above."

Gather = Callable[[], tuple[Callable[[], list[Path]], list[Path]]]


class BuildBox(QFrame):
    """Name, voxel size and labels of a new store; progress; what came out.

    Signals:
        built: Folder of the new store.

    Args:
        hub: Of the window.
        gather: Gives a function that, on a thread, lists the sources (writing layers
            that are no files), and the label folders that come with them.
    """

    built = Signal(object)

    def __init__(self, hub: Hub, gather: Gather) -> None:
        super().__init__()
        self.hub, self._gather = hub, gather
        self.helper: Helper | None = None
        self._pace = Pace()
        self._result: dict[str, Any] = {}
        self._notes: list[str] = []
        self._name_is_ours = True
        self._has_labels = False
        self._make()
        self._arrange()
        self.refresh(0, has_labels=False)

    def refresh(self, ticked: int, only: str = "", *, has_labels: bool) -> None:
        """Say how many sources are ticked; offer a free name.

        Args:
            ticked: How many.
            only: Name of the one ticked folder, after which the store is called.
            has_labels: Whether label maps come with them.
        """
        self._ticked, self._has_labels = ticked, has_labels
        self._offer_names()
        if self._name_is_ours:
            self.name.setText(free_name(self.hub.stores, only or "scans"))
        busy = self.helper is not None
        self.build.setEnabled(ticked > 0 and not busy)
        self.build.setToolTip(
            "Check and prepare the ticked scans" if ticked else _NO_SCANS
        )

    def start(self) -> None:
        """Begin to build, or say what is missing."""
        rows.tell(self.problem, "")
        if not self.label_names.is_sound():
            return
        listing, label_folders = self._gather()
        in_background(
            listing, owner=self, done=self._launch(label_folders), failed=self._fail
        )
        self._busy(True)
        self.status.setText("Gathering the scans ...")

    def cancel(self) -> None:
        """Stop building; what is prepared stays and is not prepared twice."""
        if self.helper is not None:
            self.status.setText("Stopping ...")
            self.stop.setEnabled(False)
            self.helper.stop()

    def _launch(self, label_folders: list[Path]) -> Callable[[list[Path]], None]:
        def launch(sources: list[Path]) -> None:
            try:
                config = build_config(
                    sources, self.hub.stores, self.name.text(),
                    labels=self.labels.text(), spacing=self.spacing.currentData(),
                    own_spacing=self.own.text(), names=self.label_names.text,
                )  # fmt: skip
            except UnusableInput as error:
                self._fail(error)
                return
            config["labels"] += [str(p) for p in label_folders]
            self._pace, self._notes = Pace(), []
            helper = Helper("prepare", config, self)
            helper.news.connect(self._take)
            helper.done.connect(self._finish)
            helper.failed.connect(self._fail)
            helper.stopped.connect(self._stopped)
            self.helper = helper
            self.stop.setEnabled(True)
            self.status.setText("Starting ...")
            helper.start()

        return launch

    def _take(self, event: object) -> None:
        if isinstance(event, Progress):
            e = event
            self.bar.setRange(0, max(e.total, 0))
            self.bar.setValue(e.index)
            line = self._pace.line(e.phase, e.index, e.total, e.remaining_s)
            self.status.setText(f"{line}\n{e.item}" if e.item else line)
        elif isinstance(event, Note):
            self._notes.append(event.text)

    def _finish(self, result: dict[str, Any]) -> None:
        self._done()
        self._result = result
        rows.tell(
            self.summary, f"✔ {Path(result['store']).name}: {result_line(result)}"
        )
        self.rejected.setPlainText(rejected_text(result, self._notes))
        words = fold_words(result, self._notes)
        self.show_rejected.setText(words)
        self.show_rejected.setChecked(False)
        self.show_rejected.setVisible(bool(words))
        for button in (self.pretrain, self.finetune):
            button.setVisible(True)
        self.finetune.setEnabled(bool(result.get("labelled")))
        self._name_is_ours = True
        self.hub.changed.emit("stores")
        self.built.emit(Path(result["store"]))
        self.refresh(self._ticked, has_labels=self._has_labels)

    def _stopped(self) -> None:
        self._name_is_ours = False
        self._done()
        rows.tell(self.problem, "Stopped. The same name goes on where it was.")

    def _fail(self, error: object) -> None:
        self._done()
        rows.tell(self.problem, f"✖ {error}")

    def _done(self) -> None:
        if self.helper is not None:
            # Later: it still stands on the stack when it calls.
            QTimer.singleShot(0, self.helper.deleteLater)
        self.helper = None
        self._busy(False)

    def _busy(self, busy: bool) -> None:
        for widget in (self.bar, self.status, self.stop):
            widget.setVisible(busy)
        self.stop.setEnabled(False)
        self.bar.setRange(0, 0)
        fields = (self.name, self.spacing, self.own, self.labels, self.label_names)
        for field in (*fields, self.choose):
            field.setEnabled(not busy)
        self.build.setEnabled(not busy and self._ticked > 0)
        if busy:
            for widget in (self.summary, self.show_rejected, self.rejected, self.copy):
                widget.setVisible(False)
            for widget in (self.pretrain, self.finetune):
                widget.setVisible(False)

    def _make(self) -> None:
        self.setFrameShape(QFrame.Shape.StyledPanel)
        self.name, self.labels, self.own = QLineEdit(), QLineEdit(), QLineEdit("1.5")
        self.name.textEdited.connect(self._name_typed)
        self.labels.setPlaceholderText("none, or beside the scans")
        self.labels.textChanged.connect(lambda _: self._offer_names())
        self.label_names = NamesLine()
        self.spacing = rows.narrow(QComboBox())
        for text, value in _SPACINGS:
            self.spacing.addItem(text, value)
        self.spacing.currentIndexChanged.connect(self._spacing_chosen)
        self.choose = rows.button(
            "Choose...", "Choose a folder of label maps", self._choose_labels
        )
        self.build = rows.button("Build store", _NO_SCANS, self.start)
        self.bar = rows.named(QProgressBar(), "Progress", "Scans done")
        self.status = rows.sentence("What is being done", lines=3)
        self.stop = rows.button(
            "Cancel", "Stop building; finished scans stay", self.cancel
        )
        self.problem = rows.sentence("Problem", lines=3)
        self.summary = rows.sentence("Result", lines=3)
        self.show_rejected = rows.named(
            QPushButton("Show"),
            "Show what was left out",
            "Scans that were left out, and why",
        )
        self.show_rejected.setCheckable(True)
        self.show_rejected.toggled.connect(self._unfold)
        self.rejected = rows.named(
            QPlainTextEdit(), "Left out", "One scan per line, with the reason"
        )
        self.rejected.setReadOnly(True)
        self.rejected.setMaximumHeight(140)
        self.copy = rows.button(
            "Copy list", "Copy the list to the clipboard", self._copy
        )
        self.pretrain = rows.button(
            "Pretrain on it", "Learn from these scans without labels",
            lambda: self._go("Pretrain"),
        )  # fmt: skip
        self.finetune = rows.button(
            "Fine-tune on it", "Learn to segment from the labels of this store",
            lambda: self._go("Fine-tune"),
        )  # fmt: skip

    def _arrange(self) -> None:
        column = QVBoxLayout(self)
        column.setContentsMargins(6, 6, 6, 6)
        title = QLabel("<b>Build a store</b>")
        title.setWordWrap(True)
        hint = "Scans are checked and prepared once, then trained on again and again."
        title.setToolTip(hint)
        column.addWidget(title)
        column.addLayout(
            rows.labelled("Name", self.name, "Folder name of the new store")
        )
        column.addLayout(self._voxel_size())
        column.addLayout(
            rows.labelled(
                "Labels folder (optional)", self.labels,
                "Folder of label maps named like their scans, when they lie apart",
            )
        )  # fmt: skip
        column.addWidget(self.choose)
        column.addWidget(self.label_names)
        column.addWidget(self.build)
        self._arrange_news(column)
        self._ticked = 0
        self._busy(True)
        self._busy(False)
        self._spacing_chosen()

    def _voxel_size(self) -> QVBoxLayout:
        """The choice, and beside it the size of one's own."""
        hint = "Spacing that all scans are resampled to, in mm"
        above = rows.labelled("Voxel size", self.spacing, hint)
        rows.named(
            self.own, "Size in mm (one number, or z, y, x)",
            "Size in mm: one number, or z, y, x; for example 1.5 or 3, 1, 1",
        )  # fmt: skip
        self.own.setPlaceholderText("z, y, x in mm")
        above.removeWidget(self.spacing)
        line = rows.beside(self.spacing, self.own)
        line.setStretch(0, 2)
        above.addLayout(line)
        return above

    def _arrange_news(self, column: QVBoxLayout) -> None:
        """What is being done, and below it what came of it.

        No button of the one stands where a button of the other stood: who presses
        Cancel a moment too late would go to another tab.
        """
        working = rows.beside(self.bar, self.stop)
        working.setStretch(1, 0)
        rows.keep_room(self.bar, self.stop, self.pretrain, self.finetune, self.own)
        rows.keep_room(self.show_rejected, self.label_names)
        column.addLayout(working)
        column.addLayout(rows.one_place(self.status, self.problem, self.summary))
        column.addLayout(rows.beside(self.pretrain, self.finetune))
        for widget in (self.show_rejected, self.rejected, self.copy):
            column.addWidget(widget)

    def _name_typed(self, text: str) -> None:
        self._name_is_ours = not text.strip()

    def _spacing_chosen(self) -> None:
        self.own.setVisible(self.spacing.currentData() == "own")

    def _offer_names(self) -> None:
        """Where label maps come into the store."""
        self.label_names.offer(self._has_labels or bool(self.labels.text().strip()))

    def _choose_labels(self) -> None:
        rows.ask_folder(
            self, "Folder of label maps", lambda p: self.labels.setText(str(p))
        )

    def _unfold(self, shown: bool) -> None:
        self.rejected.setVisible(shown)
        self.copy.setVisible(shown)

    def _copy(self) -> None:
        clipboard = QGuiApplication.clipboard()
        if clipboard is not None:
            clipboard.setText(self.rejected.toPlainText())

    def _go(self, tab: str) -> None:
        self.hub.go.emit(tab, {"store": self._result["store"]})
