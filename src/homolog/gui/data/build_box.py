"""The part of the Data panel that builds a store, in a worker of its own."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import (
    QFrame,
    QLabel,
    QLineEdit,
    QPlainTextEdit,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from homolog import writing
from homolog.config import ConfigError
from homolog.errors import UnusableInput
from homolog.events import Event, Note, Progress
from homolog.gui.data.control import known_words
from homolog.gui.learn.forms import Form
from homolog.gui.shared import widgets
from homolog.gui.shared.hub import Hub
from homolog.index.subjects import SubjectPattern
from homolog.jobs import prepare
from homolog.label_names import read_names
from homolog.machine import fields_of
from homolog.words import counted, duration, human_bytes, listed

# Building a store from the window: what to ask the worker, what to tell meanwhile.

# Settings of the job under "More", and what they are called.
MORE = {
    "subjects": "Patients by name", "axes": "Axes", "modality": "Modality",
    "window_hu": "CT window (HU)", "like": "As the scans of a model",
    "channels": "Several images of a case",
    "straighten": "Straighten slices", "fill_nan": "Fill NaN",
    "keep_identifiers": "Keep patients' names",
}  # fmt: skip


def build_config(
    sources: Sequence[Path],
    stores: Path,
    name: str,
    *,
    labels: str = "",
    spacing: str = "auto",
    own_spacing: str = "",
    names: str = "",
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The config of a ``prepare`` job.

    Args:
        sources: Scans and folders.
        stores: Folder of the stores.
        name: Of the new store.
        labels: Folder of label maps, may be empty.
        spacing: ``auto``, ``native`` or ``own``.
        own_spacing: ``1.5`` or ``3, 1, 1`` (z, y, x) in mm, for ``own``.
        names: What label values are called, ``1=liver, 2=spleen``; may be empty.
        settings: Further ones of the job (``MORE``), where they are not the defaults.

    Raises:
        UnusableInput: Something is missing or cannot be meant; the sentence says what.
    """
    if not sources:
        raise UnusableInput("Open or add scans first; there is nothing to build from.")
    name = name.strip()
    if not name or not re.fullmatch(r"[\w][\w .+-]*", name):
        raise UnusableInput(
            "Give the store a name of letters, digits, spaces, - and _ only."
        )
    out = stores / name
    # What a stopped build left has cases and no list of them yet: it goes on.
    unfinished = (out / "cases").is_dir() and not (out / "store.json").exists()
    if out.exists() and not unfinished:
        raise UnusableInput(f"A store {name!r} is there already; choose another name.")
    folders: list[str] = []
    if labels.strip():
        folder = Path(labels.strip()).expanduser().absolute()
        if not folder.exists():
            raise UnusableInput(f"There is no label folder {folder}.")
        folders.append(str(folder))
    wanted: Any = spacing
    if spacing == "own":
        wanted = parse_spacing(own_spacing)
    asked = dict(settings or {})
    for trouble in (names_problem(names), subjects_problem(asked.get("subjects", ""))):
        if trouble:
            raise UnusableInput(trouble)
    return {
        "sources": [str(p.absolute()) for p in sources], "out": str(out.absolute()),
        "labels": folders, "spacing": wanted, "modality": None, "window_hu": None,
        "names": names, "seed": 0, **asked,
    }  # fmt: skip


def parse_spacing(text: str) -> list[float]:
    """One number or three (z, y, x), in mm.

    Raises:
        UnusableInput: Neither.
    """
    try:
        numbers = [float(t) for t in re.split(r"[,;x\s]+", text.strip()) if t]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3 or not all(0.01 <= n <= 100 for n in numbers):
        raise UnusableInput(
            "Give the voxel size in mm as one number (1.5) or as three, z, y, x "
            "(3, 1, 1), each from 0.01 to 100."
        )
    return numbers


def names_problem(text: str) -> str:
    """Why label names cannot be meant; empty when they can."""
    return _refusal(read_names, text)


def subjects_problem(text: str) -> str:
    """Why a pattern of patients in names cannot be meant; empty when it can."""
    told = _refusal(SubjectPattern, text) if text else ""
    return told.replace("Subjects", MORE["subjects"], 1)


def _refusal(read: Callable[[str], Any], text: str) -> str:
    try:
        read(text)
    except ConfigError as error:
        sentence = str(error)
        return sentence[0].upper() + sentence[1:]
    return ""


def more_fields() -> list[dict[str, Any]]:
    """What few stores need: settings of ``prepare`` beside those asked for above."""
    known = {field["name"]: field for field in fields_of(prepare.Config)}
    return [
        {**known[name], "title": title, "of_recipe": False, "advanced": False}
        for name, title in MORE.items()
    ]


def free_name(stores: Path, base: str = "scans") -> str:
    """A store name that is not taken."""
    base = re.sub(r"[^\w.+-]+", "_", base).strip("._") or "scans"
    return writing.free_name(base, lambda name: (stores / name).exists())


class Pace:
    """Rate and remaining time of counted work, by the clock."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._phase = clock, ""
        self._start, self._first = 0.0, 0

    def line(self, phase: str, index: int, total: int, remaining_s: float) -> str:
        """``Preparing 3 of 12, 2.1 scans/s, about 10 s left``."""
        now = self._clock()
        if phase != self._phase:
            self._phase, self._start, self._first = phase, now, index
        verb = {"look": "Looking for scans", "inspect": "Checking scan"}.get(
            phase, "Preparing scan"
        )
        if total <= 0:
            return f"{verb} ..."
        line = f"{verb} {min(index + 1, total)} of {total}"
        done, spent = index - self._first, now - self._start
        if done > 0 and spent > 0:
            rate = done / spent
            line += f", {rate:.1f}/s" if rate >= 1 else f", {1 / rate:.1f} s each"
            left = remaining_s or (total - index) / rate
            line += f", about {duration(left)} left"
        return line


def result_line(result: Mapping[str, Any]) -> str:
    """What was built, of how many patients, in a few sentences."""
    rejected = len(result.get("rejected", ()))
    kinds = ("labelled", "classed", "boxed", "channels")
    told = known_words(*(int(result.get(kind) or 0) for kind in kinds))
    line = f"{counted(result['cases'], 'scan')} prepared, {told}"
    if rejected:
        line += f", {rejected} left out"
    size = result.get("bytes")
    line += f" ({human_bytes(size)})." if size else "."
    whose = str(result.get("whose") or "").replace(
        "--subjects", f"'{MORE['subjects']}'"
    )
    return " ".join(t for t in (line, whose, *result.get("explanation", ())) if t)


def rejected_text(result: Mapping[str, Any], notes: Sequence[str] = ()) -> str:
    """One line per scan that was left out, then the job's remarks."""
    lines = [f"{r['path']}: {r['reason']}" for r in result.get("rejected", ())]
    return "\n".join([*lines, *notes])


def fold_words(result: Mapping[str, Any], notes: Sequence[str] = ()) -> str:
    """What can be unfolded: ``Show 9 left out and 3 remarks``; "" for nothing."""
    out, said = len(result.get("rejected", ())), len(notes)
    parts = [f"{out} left out"] if out else []
    parts += [counted(said, "remark")] if said else []
    return f"Show {listed(parts)}" if parts else ""


# The line of the Data panel in which label values are called by name.


_HINT = (
    "What the values of the label maps are called, such as 1=liver, 2=spleen. Others "
    "are called as a dataset.json or label_names.json beside the maps says"
)


class NamesLine(QWidget):
    """Label names as text, with what is wrong about them below; hidden at first."""

    def __init__(self) -> None:
        super().__init__()
        self.field = QLineEdit()
        self.field.setPlaceholderText("1=liver, 2=spleen")
        self.problem = widgets.sentence("Problem with the label names", lines=2)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(widgets.labelled("Label names (optional)", self.field, _HINT))
        column.addWidget(self.problem)
        self.field.editingFinished.connect(self._tell)
        self.field.textChanged.connect(self._typed)
        self.hide()

    @property
    def text(self) -> str:
        """The names given; none while the line is not offered."""
        return "" if self.isHidden() else self.field.text().strip()

    def offer(self, there: bool) -> None:
        """Show the line where label maps come into the store."""
        self.setVisible(there)
        self._tell()

    def is_sound(self) -> bool:
        """Whether the names can be meant; what is wrong is told, with the cursor."""
        self._tell()
        if self.problem.text():
            self.field.setFocus()
        return not self.problem.text()

    def _tell(self) -> None:
        trouble = names_problem(self.text)
        widgets.tell(self.problem, f"✖ {trouble}" if trouble else "")

    def _typed(self) -> None:
        """A problem told goes with its cause; a new one waits until all is typed."""
        if self.problem.text():
            self._tell()


# (text, value) of the voxel sizes offered.
_SPACINGS = (
    ("Automatic", "auto"),
    ("Each scan's own", "native"),
    ("Chosen (mm)", "own"),
)
_NO_SCANS = "Tick at least one scan or folder in the list above."

Gather = Callable[[], tuple[Callable[[], list[Path]], list[Path]]]


class BuildBox(widgets.HelperBox):
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
        super().__init__("building", "Stop building; finished scans stay")
        self.hub, self._gather = hub, gather
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
        self._ticked, self._only, self._has_labels = ticked, only, has_labels
        self._offer_names()
        if self._name_is_ours:
            self.name.setText(free_name(self.hub.stores, only or "scans"))
        self.build.setEnabled(ticked > 0 and not self.busy)
        self.build.setToolTip(
            "Check and prepare the ticked scans" if ticked else _NO_SCANS
        )

    def start(self) -> None:
        """Begin to build, or say what is missing."""
        trouble = self.more.problem()
        widgets.tell(self.problem, f"✖ {trouble}" if trouble else "")
        if trouble or not self.label_names.is_sound():
            return
        listing, label_folders = self._gather()
        make = partial(
            build_config, stores=self.hub.stores, name=self.name.text(),
            labels=self.labels.text(), spacing=self.spacing.currentData(),
            own_spacing=self.own.text(), names=self.label_names.text,
            settings=self.more.values(),
        )  # fmt: skip

        def gather() -> dict[str, Any]:
            config = make(listing())
            config["labels"] += [str(p) for p in label_folders]
            return config

        self._pace, self._notes = Pace(), []
        self.launch("prepare", gather, self._finish, "Gathering the scans ...")
        # Who pressed sees the progress, and later the result that has its room there.
        widgets.bring_into_view(self.finetune, asked=True)

    def take(self, event: Event) -> None:
        """Which scan, how many are done, how long it will take; notes are kept."""
        super().take(event)
        if isinstance(event, Progress):
            e = event
            line = self._pace.line(e.phase, e.index, e.total, e.remaining_s)
            widgets.tell(self.words, f"{line}\n{e.item}" if e.item else line)
        elif isinstance(event, Note):
            self._notes.append(event.text)

    def _finish(self, result: dict[str, Any]) -> None:
        self.end("")
        self._result = result
        widgets.tell(
            self.summary, f"✔ {Path(result['store']).name}: {result_line(result)}"
        )
        self.rejected.setPlainText(rejected_text(result, self._notes))
        words = fold_words(result, self._notes)
        self.show_rejected.setText(words)
        self.show_rejected.setChecked(False)
        self.show_rejected.setVisible(bool(words))
        for button in (self.pretrain, self.finetune):
            button.setVisible(True)
        teaches = any(result.get(kind) for kind in ("labelled", "classed", "boxed"))
        teaches = teaches or int(result.get("channels") or 1) > 1
        self.finetune.setEnabled(teaches)
        self._name_is_ours = True
        self.hub.changed.emit("stores")
        self.built.emit(Path(result["store"]))
        self.refresh(self._ticked, self._only, has_labels=self._has_labels)

    def halt(self) -> None:
        """It was stopped."""
        self._name_is_ours = False
        self.end("")
        widgets.tell(self.problem, "Stopped. The same name goes on where it was.")

    def fail(self, text: str) -> None:
        """The problem stands until something changes."""
        self.end("")
        widgets.tell(self.problem, f"✖ {text}")

    def enable(self) -> None:
        """Nothing is changed while a store is built."""
        busy = self.busy
        fields = (
            self.name, self.spacing, self.own, self.labels, self.label_names, self.more
        )  # fmt: skip
        for field in (*fields, self.choose):
            field.setEnabled(not busy)
        self.build.setEnabled(not busy and self._ticked > 0)
        if busy:
            self._hide_result()

    def _hide_result(self) -> None:
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
        self.spacing = widgets.Choice()
        for text, value in _SPACINGS:
            self.spacing.addItem(text, value)
        self.spacing.currentIndexChanged.connect(self._spacing_chosen)
        self.choose = widgets.button(
            "Choose...", "Choose a folder of label maps", self._choose_labels
        )
        self.more = Form(more_fields(), more="More")
        self.build = widgets.button("Build store", _NO_SCANS, self.start)
        self.problem = widgets.sentence("Problem", lines=3)
        self.summary = widgets.sentence("Result", lines=7)
        self.show_rejected = widgets.named(
            QPushButton("Show"),
            "Show what was left out",
            "Scans that were left out, and why",
        )
        self.show_rejected.setCheckable(True)
        self.show_rejected.toggled.connect(self._unfold)
        self.rejected = widgets.named(
            QPlainTextEdit(), "Left out", "One scan per line, with the reason"
        )
        self.rejected.setReadOnly(True)
        self.rejected.setMaximumHeight(140)
        self.copy = widgets.button(
            "Copy list", "Copy the list to the clipboard", self._copy
        )
        self.pretrain = widgets.button(
            "Pretrain on it", "Learn from these scans without labels",
            lambda: self._go("Pretrain"),
        )  # fmt: skip
        self.finetune = widgets.button(
            "Fine-tune on it", "Learn from the labels, classes or boxes of this store",
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
            widgets.labelled("Name", self.name, "Folder name of the new store")
        )
        column.addLayout(self._voxel_size())
        column.addLayout(
            widgets.labelled(
                "Labels folder (optional)", self.labels,
                "Folder of label maps named like their scans, when they lie apart",
            )
        )  # fmt: skip
        column.addWidget(self.choose)
        column.addWidget(self.label_names)
        column.addWidget(self.more)
        column.addWidget(self.build)
        self._arrange_news(column)
        self._ticked = 0
        self._hide_result()
        self.enable()
        self._spacing_chosen()

    def _voxel_size(self) -> QVBoxLayout:
        """The choice, and beside it the size of one's own."""
        hint = "Spacing that all scans are resampled to, in mm"
        widgets.named(
            self.own, "Size in mm (one number, or z, y, x)",
            "Size in mm: one number, or z, y, x; for example 1.5 or 3, 1, 1",
        )  # fmt: skip
        self.own.setPlaceholderText("z, y, x in mm")
        above = widgets.labelled("Voxel size", self.spacing, hint, self.own)
        above.itemAt(1).layout().setStretch(0, 2)
        return above

    def _arrange_news(self, column: QVBoxLayout) -> None:
        """What is being done, and below it what came of it.

        No button of the one stands where a button of the other stood: who presses
        Cancel a moment too late would go to another tab.
        """
        widgets.keep_room(self.pretrain, self.finetune, self.own)
        widgets.keep_room(self.show_rejected, self.label_names)
        column.addLayout(self.working())
        column.addLayout(widgets.one_place(self.words, self.problem, self.summary))
        column.addLayout(widgets.beside(self.pretrain, self.finetune))
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
        widgets.ask_folder(
            self, "Folder of label maps", lambda p: self.labels.setText(str(p))
        )

    def _unfold(self, shown: bool) -> None:
        self.rejected.setVisible(shown)
        self.copy.setVisible(shown)

    def _copy(self) -> None:
        widgets.copy(self.rejected.toPlainText())

    def _go(self, tab: str) -> None:
        self.hub.go.emit(tab, {"store": self._result["store"]})
