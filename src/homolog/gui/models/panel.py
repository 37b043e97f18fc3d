"""Tab Models: every trained model on disk; import, export, use, delete."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qtpy.QtCore import Qt
from qtpy.QtGui import QCursor
from qtpy.QtWidgets import (
    QAbstractItemView,
    QFileDialog,
    QFormLayout,
    QFrame,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QListWidget,
    QListWidgetItem,
    QMenu,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from homolog.config import ConfigError, parse_assignments
from homolog.exporting.kinds import DEFAULT, KINDS, why_not
from homolog.gui.files.dropping import local_paths
from homolog.gui.models import probing
from homolog.gui.models.probe_box import ProbeBox
from homolog.gui.runs.training_screen import text_label
from homolog.gui.shared import models as control
from homolog.gui.shared import widgets
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.models import NETWORKS, ModelCard, free_name, to_trash, use_menu
from homolog.gui.shared.threads import Helper, in_background
from homolog.model_files.keeping import copy_model, runs_using
from homolog.model_files.library import SHIPPED
from homolog.words import human_bytes, listed

# File dialogs of the tab Models; none of them blocks the window.


_WEIGHTS = "Weights (*.safetensors *.pt *.pth *.bin *.ckpt)"


def export_menu(panel: ModelsPanel, model: ModelCard) -> QMenu:
    """As what a model may be written."""
    menu = QMenu(panel)
    menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
    menu.setToolTipsVisible(True)
    file = menu.addAction("Encoder weights for other programs (.safetensors)...")
    file.triggered.connect(lambda: ask_file(panel, model))
    folder = menu.addAction("Whole model, to use in Homolog elsewhere (folder)...")
    folder.triggered.connect(lambda: ask_folder(panel, model))
    menu.addSeparator()
    for name, kind in KINDS.items():
        if name != DEFAULT:
            other = menu.addAction(f"{kind.title} (folder)...")
            if reason := why_not(model.card, name):
                other.setEnabled(False)
                other.setToolTip(f"Not for this model: {reason}.")
            other.triggered.connect(
                lambda _checked=False, name=name: ask_folder(panel, model, name)
            )
    return menu


def ask_file(panel: ModelsPanel, model: ModelCard) -> None:
    """Where to write the encoder's weights."""
    name = f"{model.name.replace('/', '-')}.safetensors"
    dialog = QFileDialog(panel, "Export encoder weights", name, "*.safetensors")
    dialog.setAcceptMode(QFileDialog.AcceptMode.AcceptSave)
    dialog.setDefaultSuffix("safetensors")
    # nothing is replaced: an existing file is refused with a sentence
    dialog.setOption(QFileDialog.Option.DontConfirmOverwrite)
    dialog.fileSelected.connect(lambda path: panel.export_weights(model, Path(path)))
    _open(dialog)


def ask_folder(panel: ModelsPanel, model: ModelCard, kind: str = "") -> None:
    """Into which folder to write the model; it gets a folder of its own there.

    Args:
        panel: Whose dialog it is.
        model: The model.
        kind: What is written, of ``KINDS``; empty copies the model folder.
    """
    dialog = QFileDialog(panel, "Export the model into this folder")
    dialog.setFileMode(QFileDialog.FileMode.Directory)
    name = model.name.replace("/", "-") + (f"-{kind}" if kind else "")

    def write(path: str) -> None:
        out = Path(path) / free_name(Path(path), name)
        if kind:
            panel.export_as(model, out, kind)
        else:
            panel.export_folder(model, out)

    dialog.fileSelected.connect(write)
    _open(dialog)


def ask_import(panel: ModelsPanel, kind: str) -> None:
    """Which ``file`` or ``folder`` to import."""
    dialog = QFileDialog(panel, "Import a model")
    if kind == "folder":
        dialog.setFileMode(QFileDialog.FileMode.Directory)
    else:
        dialog.setNameFilters([_WEIGHTS, "All files (*)"])
    dialog.fileSelected.connect(lambda path: panel.take_in(Path(path)))
    _open(dialog)


def _open(dialog: QFileDialog) -> None:
    dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
    dialog.open()


# What is asked about a weight file of another project that does not tell it itself.
_BY_FILE = "as the file tells"


class ImportForm(QFrame):
    """File, name, network and its settings; folded away until a file is offered.

    Args:
        hub: Its schema names the networks.
        take: Called with (file, name, network, settings).
    """

    def __init__(
        self, hub: Hub, take: Callable[[Path, str, str, dict[str, Any]], None]
    ) -> None:
        super().__init__()
        self._hub, self._take = hub, take
        self._source = Path()
        self.setFrameShape(QFrame.Shape.StyledPanel)
        self.setAccessibleName("Import a weight file")
        self._build()
        self._fill(list(NETWORKS))
        hub.schema_ready.connect(
            lambda schema: self._fill(list(schema.get("backbones") or NETWORKS))
        )
        self.setVisible(False)

    def offer(self, source: Path, name: str, why: str) -> None:
        """Ask about this file; ``why`` it could not be taken without."""
        self._source = source
        self.about.setText(why)
        self.name.setText(name)
        self._tell("")
        self.setVisible(True)
        self.network.setFocus()
        self._hub.want_schema()

    def accept(self) -> None:
        """Check what was typed and hand it on."""
        words = self.settings.text().replace(",", " ").split()
        try:
            settings = parse_assignments(words)
        except ConfigError as error:
            self._tell(f"⚠ {error}")
            return
        name = self.name.text().strip()
        if not name or (self._hub.models / name).exists():
            self._tell("⚠ Choose a name that is not taken.")
            return
        self._tell("")
        chosen = self.network.currentText() if self.network.currentIndex() else ""
        self._take(self._source, name, chosen, settings)

    def _tell(self, text: str) -> None:
        widgets.tell(self.trouble, text)

    def _fill(self, networks: list[str]) -> None:
        chosen = self.network.currentText()
        self.network.clear()
        self.network.addItems([_BY_FILE, *networks])
        if chosen in networks:
            self.network.setCurrentText(chosen)

    def _build(self) -> None:
        self.about = text_label("About the file")
        self.name = QLineEdit()
        self.name.setAccessibleName("Name of the imported model")
        self.name.setToolTip("Name of its folder among your models")
        self.network = widgets.Choice()
        self.network.setAccessibleName("Network of the file")
        self.network.setToolTip("The kind of network whose weights it holds")
        self.settings = QLineEdit()
        self.settings.setPlaceholderText("as the file tells, e.g. heads=6")
        self.settings.setAccessibleName("Settings of the network")
        self.settings.setToolTip("Settings that win over the file's, NAME=VALUE")
        self.trouble = widgets.sentence("What is wrong", lines=2)
        form = QFormLayout()
        form.setRowWrapPolicy(QFormLayout.RowWrapPolicy.WrapLongRows)
        form.addRow("Name", self.name)
        form.addRow("Network", self.network)
        form.addRow("Settings", self.settings)
        self.go = QPushButton("Import")
        self.go.setAccessibleName("Import the file")
        self.go.setToolTip("Match the weights and save them as a model")
        self.go.clicked.connect(self.accept)
        cancel = QPushButton("Cancel")
        cancel.setAccessibleName("Cancel the import")
        cancel.setToolTip("Import nothing")
        cancel.clicked.connect(lambda: self.setVisible(False))
        row = QHBoxLayout()
        row.addWidget(self.go)
        row.addWidget(cancel)
        column = QVBoxLayout(self)
        column.addWidget(self.about)
        column.addLayout(form)
        column.addWidget(self.trouble)
        column.addLayout(row)


_LIST_PX = 190
_TICKED = Qt.CheckState.Checked
_BUTTONS = {
    "use": ("Use for...", "Explore, fine-tune or segment with this model"),
    "export": ("Export...", "Write it as a file or folder for other programs"),
    "delete": ("Delete...", "Move the model to the trash, after a question"),
}


class ModelsPanel(QWidget):
    """Cards of all models; a model dropped here is imported.

    Args:
        hub: Of the window.
    """

    title = "Models"

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self.hub = hub
        self.ask = widgets.ask
        self.models: list[ModelCard] = []
        self.shown_models: list[ModelCard] = []
        self.helper: Helper | None = None
        self._reading = False
        self._wanted: Path | None = None
        self.ticked: set[Path] = set()
        self.setAcceptDrops(True)
        self._build()
        hub.changed.connect(self._changed)

    def visit(self, what: dict[str, Any]) -> None:
        """``{"model": path}`` shows that card; ``{"import": path}`` takes it in."""
        if path := what.get("model"):
            self._wanted = Path(path).resolve()
            self.search.clear()
            self.read()
        if path := what.get("import"):
            self.take_in(Path(path))

    def shown(self) -> None:
        """The tab came to the front."""
        self.read()
        self.probe.read_stores()

    def read(self) -> None:
        """Read all cards anew, on a thread."""
        if self._reading:
            return
        self._reading = True
        in_background(
            control.find_models, self.hub.runs, self.hub.models, owner=self,
            done=self._take, failed=self._not_read,
        )  # fmt: skip

    def chosen(self) -> ModelCard | None:
        """The selected model."""
        place = self.list.currentRow()
        return self.shown_models[place] if 0 <= place < len(self.shown_models) else None

    def asked(self) -> list[ModelCard]:
        """The models that are probed: the ticked ones, or else the chosen one."""
        return probing.asked_about(self.models, self.ticked, self.chosen())

    def take_in(self, path: Path) -> None:
        """Import: our own folders and files whose names tell their network at once.

        A question inline follows where a file cannot be taken without.
        """
        if not control.is_model(path):
            self._say(
                f"⚠ {path.name} is no model: expected a model folder, a run, or a "
                ".safetensors or .pt file."
            )
            return
        if control.is_ours(path):
            name = path.parent.name if path.name == "model" else path.name
            out = self.hub.models / control.free_name(self.hub.models, name)
            self._say(f"Copying {path.name} ...")
            in_background(
                copy_model, path, out, owner=self,
                done=self._imported, failed=self._refused,
            )  # fmt: skip
            return
        self.import_foreign(path, control.free_name(self.hub.models, path.stem), "", {})

    def act(self, what: str) -> None:
        """Do something with the chosen model."""
        model = self.chosen()
        if model is None:
            return
        if what == "use":
            use_menu(self.hub, model, self).popup(QCursor.pos())
        elif what == "export":
            export_menu(self, model).popup(QCursor.pos())
        else:
            self._delete(model)

    def export_weights(self, model: ModelCard, out: Path) -> None:
        """Write the encoder as one file, in a worker process."""
        self._work(control.export_config(model, out), f"Exporting {model.name} ...")

    def export_as(self, model: ModelCard, out: Path, kind: str) -> None:
        """Write it for other programs, in a worker process."""
        self._work(
            control.export_config(model, out, kind), f"Exporting {model.name} ..."
        )

    def export_folder(self, model: ModelCard, out: Path) -> None:
        """Copy the whole model, verified."""
        self._say(f"Copying {model.name} ...")
        in_background(
            copy_model, model.folder, out, owner=self,
            done=lambda path: self._say(f"Saved {path}"), failed=self._refused,
        )  # fmt: skip

    def import_foreign(self, source: Path, name: str, network: str,
                       settings: dict[str, Any]) -> None:  # fmt: skip
        """Turn a foreign weight file into one of our models, in a worker process."""
        config = control.import_config(
            source, self.hub.models / name, network, settings
        )
        self._work(
            config, f"Importing {source.name} ...",
            failed=lambda text: self._ask_about(source, name, text),
        )  # fmt: skip

    def _ask_about(self, source: Path, name: str, why: str) -> None:
        """Say why a file was not taken, and ask what may be missing."""
        self._say(f"⚠ {source.name} was not imported.")
        self.form.offer(source, name, why)

    def dragEnterEvent(self, event: Any) -> None:  # noqa: D102 - Qt's name
        if any(control.is_model(path) for path in local_paths(event)):
            event.acceptProposedAction()

    def dropEvent(self, event: Any) -> None:  # noqa: D102 - Qt's name
        event.acceptProposedAction()
        for path in local_paths(event):
            self.take_in(path)

    def _work(
        self,
        config: dict[str, Any],
        words: str,
        failed: Callable[[str], None] | None = None,
    ) -> None:
        if self.hub.engine_missing():
            self._say("⚠ This needs the training engine; see the note at the top.")
            return
        if self.helper is not None and self.helper.running:
            self._say("⚠ Another import or export is still under way.")
            return
        self._say(words)
        self.helper = Helper("models", config, self)
        self.helper.done.connect(self._worked)
        self.helper.failed.connect(
            failed or (lambda text: self._refused(RuntimeError(text)))
        )
        self.helper.start()

    def _worked(self, result: dict[str, Any]) -> None:
        if file := result.get("file"):
            single = result.get("kind", DEFAULT) == DEFAULT
            self._say(f"Saved {file}" + (", and its card beside it." if single else ""))
        else:
            self.form.setVisible(False)
            network = (result.get("backbone") or {}).get("name", "")
            self._imported(Path(str(result.get("model", ""))), network)

    def _imported(self, path: Path, network: str = "") -> None:
        told = f", a {network} by its names" if network else ""
        self._say(f"Imported as {path.name}{told}.")
        self._wanted = path.resolve()
        self.hub.changed.emit("models")

    def _refused(self, error: Exception) -> None:
        self._say(f"⚠ {error}")

    def _delete(self, model: ModelCard) -> None:
        in_background(
            runs_using, model.path, [self.hub.runs], owner=self, failed=self._refused,
            done=lambda runs: self._ask_to_delete(model, runs),
        )  # fmt: skip

    def _ask_to_delete(self, model: ModelCard, runs: list[Path]) -> None:
        names = listed((run.name for run in runs), most=5)
        began = f" What began with it keeps its own weights: {names}." if runs else ""
        question = widgets.Question(
            "Delete a model",
            f"Move the model of {model.name} to the trash?",
            f"{human_bytes(model.size)}. "
            + ("The run itself, its curves and checkpoints stay."
               if model.source == "run" else "The file it was imported from stays.")
            + began,
            (("delete", "Move to trash"), ("keep", "Keep it")),
            "keep",
        )  # fmt: skip
        if self.ask(self, question).key != "delete":
            return
        roots = (self.hub.runs, self.hub.models)

        def delete() -> str:
            control.check_deletable(model, roots)
            return to_trash(model.folder)

        def deleted(where: str) -> None:
            self._say(f"The model of {model.name} is {where}.")
            self.hub.changed.emit("models")

        in_background(delete, owner=self, done=deleted, failed=self._refused)

    def _changed(self, what: str) -> None:
        if what in ("models", "runs") and self.isVisible():
            self.read()

    def _not_read(self, error: Exception) -> None:
        self._reading = False
        self._say(f"⚠ The models cannot be read: {error}")

    def _take(self, models: list[ModelCard]) -> None:
        self._reading = False
        self.models = models
        self._search()
        has = bool(models)
        self._empty.setVisible(not has)
        self._offer_pretrain.setVisible(not has)
        for widget in (
            self.search, self.list, self._card, self.buttons_box, self.probe_fold,
        ):  # fmt: skip
            widget.setVisible(has)

    def _search(self) -> None:
        chosen = self.chosen()
        wanted = self._wanted or (chosen.path if chosen else None)
        self.shown_models = control.matching(self.models, self.search.text())
        self.list.blockSignals(True)
        widgets.keep_scrolled(self.list, self._fill)
        place = 0
        for number, model in enumerate(self.shown_models):
            if wanted in (model.path, model.folder):
                place, self._wanted = number, None
        self.list.setCurrentRow(place if self.shown_models else -1)
        self.list.blockSignals(False)
        self._show_card()

    def _fill(self) -> None:
        self.list.clear()
        for model in self.shown_models:
            item = QListWidgetItem(model.lines)
            item.setToolTip(str(model.path))
            if probing.can_be_probed(model):
                on = model.path in self.ticked
                item.setCheckState(_TICKED if on else Qt.CheckState.Unchecked)
            self.list.addItem(item)

    def _tick(self, item: QListWidgetItem) -> None:
        """A model is to be compared, or no more."""
        path = self.shown_models[self.list.row(item)].path
        if item.checkState() == _TICKED:
            self.ticked.add(path)
        else:
            self.ticked.discard(path)
        self.probe.refresh()

    def tick_all(self) -> None:
        """All models that can be are to be compared."""
        self.ticked = {m.path for m in self.models if probing.can_be_probed(m)}
        self._search()

    def _show_card(self) -> None:
        model = self.chosen()
        if model is None:
            self._card.setText("No model has these words." if self.models else "")
        elif model.damaged:
            self._card.setText(f"⚠ {model.damaged}")
        else:
            self._card.setText("\n".join(f"{k}: {text}" for k, text in model.facts))
        self.probe.refresh()
        for name, button in self.buttons.items():
            sound = model is not None and not model.damaged
            may_go = model is not None and model.source != SHIPPED
            button.setEnabled(may_go if name == "delete" else sound)

    def _say(self, text: str) -> None:
        widgets.tell(self._news, text)

    def _build(self) -> None:
        self.search = QLineEdit()
        self.search.setPlaceholderText("Search: name, method, label, modality ...")
        self.search.setAccessibleName("Search models")
        self.search.setToolTip("Every word must occur in the card")
        self.search.setClearButtonEnabled(True)
        self.search.textChanged.connect(self._search)
        self._make_list()
        self._make_probe()
        self._card = text_label("Card of the chosen model")
        self._empty = text_label("No models yet")
        self._empty.setText(
            "No model yet. Pretraining needs no labels; a model made elsewhere can be "
            "imported or dropped here."
        )
        self._offer_pretrain = _button(
            "Pretrain on your scans", "Train a first model",
            lambda: self.hub.go.emit("Pretrain", {}),
        )  # fmt: skip
        self.buttons_box, self.buttons = QWidget(), dict[str, QPushButton]()
        grid = QGridLayout(self.buttons_box)
        grid.setContentsMargins(0, 0, 0, 0)
        for place, (name, (words, tip)) in enumerate(_BUTTONS.items()):
            button = _button(words, tip, lambda _=False, what=name: self.act(what))
            self.buttons[name] = button
            grid.addWidget(button, 0, place)
        self.form = ImportForm(self.hub, self.import_foreign)
        self._news = widgets.sentence("What is happening", lines=2)
        take_in = self._import_row()
        column = QVBoxLayout(self)
        column.setContentsMargins(4, 4, 4, 4)
        for widget in (
            self.search, self._empty, self._offer_pretrain, self.list,
            self.buttons_box, take_in, self._news, self.form, self.probe_fold,
            self._card,
        ):  # fmt: skip  # the card, of any length, stands last
            column.addWidget(widget)
        column.addStretch()
        for widget in (
            self.search, self._empty, self._offer_pretrain, self.list,
            self.buttons_box, self.probe_fold, self._card,
        ):  # fmt: skip
            widget.setVisible(False)  # until the folders are read
        self._say("")

    def _make_list(self) -> None:
        self.list = QListWidget()
        self.list.setAccessibleName("Models")
        self.list.setToolTip(
            "All models of your runs and imports, the newest first; tick those whose "
            "features are to be compared"
        )
        self.list.setMinimumHeight(_LIST_PX)
        self.list.setSpacing(2)
        self.list.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.list.setTextElideMode(Qt.TextElideMode.ElideMiddle)
        self.list.currentRowChanged.connect(lambda _: self._show_card())
        self.list.itemChanged.connect(self._tick)

    def _make_probe(self) -> None:
        self.probe = ProbeBox(self.hub, self.asked)
        self.probe_fold = widgets.fold_of("What does it know?")
        self.probe_fold.addWidget(self.probe)
        self.probe.all_wanted.connect(self.tick_all)
        self.probe.grew.connect(lambda: widgets.lay_out_again(self.probe_fold))

    def _import_row(self) -> QWidget:
        take_in = QWidget()
        row = QGridLayout(take_in)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(QLabel("Import a model:"), 0, 0, 1, 2)
        for place, (kind, words, tip) in enumerate((
            ("file", "File...", "A .safetensors or .pt file, also of other projects"),
            ("folder", "Folder...", "A model folder or a run of Homolog"),
        )):  # fmt: skip
            button = _button(words, tip, lambda _=False, k=kind: ask_import(self, k))
            button.setAccessibleName(f"Import a {kind}")
            row.addWidget(button, 1, place)
        return take_in


def _button(words: str, tip: str, clicked: Any) -> QPushButton:
    button = QPushButton(words)
    button.setAccessibleName(words.rstrip("."))
    button.setToolTip(tip)
    button.clicked.connect(clicked)
    return button
