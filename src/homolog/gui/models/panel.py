"""Tab Models: every trained model on disk; import, export, use, delete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qtpy.QtCore import Qt
from qtpy.QtGui import QCursor
from qtpy.QtWidgets import (
    QAbstractItemView,
    QGridLayout,
    QLabel,
    QLineEdit,
    QListWidget,
    QListWidgetItem,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from homolog.gui import questions, rows
from homolog.gui.desktop import to_trash, use_menu
from homolog.gui.hub import Hub
from homolog.gui.models import control
from homolog.gui.models.control import ModelCard
from homolog.gui.models.dialogs import ask_import, export_menu
from homolog.gui.models.import_form import ImportForm
from homolog.gui.runs.training_parts import text_label
from homolog.gui.runs.words import size_words
from homolog.gui.threads import Helper, in_background

_LIST_PX = 190
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
        self.ask = questions.ask
        self.models: list[ModelCard] = []
        self.shown_models: list[ModelCard] = []
        self.helper: Helper | None = None
        self._reading = False
        self._wanted: Path | None = None
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

    def take_in(self, path: Path) -> None:
        """Import: our own folders at once, foreign files after a question inline."""
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
                control.copy_model, path, out, owner=self,
                done=self._imported, failed=self._refused,
            )  # fmt: skip
            return
        self.form.offer(path, control.free_name(self.hub.models, path.stem))

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

    def export_folder(self, model: ModelCard, out: Path) -> None:
        """Copy the whole model, verified."""
        self._say(f"Copying {model.name} ...")
        in_background(
            control.copy_model, model.folder, out, owner=self,
            done=lambda path: self._say(f"Saved {path}"), failed=self._refused,
        )  # fmt: skip

    def import_foreign(self, source: Path, name: str, network: str,
                       settings: dict[str, Any]) -> None:  # fmt: skip
        """Turn a foreign weight file into one of our models, in a worker process."""
        config = control.import_config(
            source, self.hub.models / name, network, settings
        )
        self._work(config, f"Importing {source.name} ...")

    def dragEnterEvent(self, event: Any) -> None:  # noqa: D102 - Qt's name
        if any(control.is_model(path) for path in _paths(event)):
            event.acceptProposedAction()

    def dropEvent(self, event: Any) -> None:  # noqa: D102 - Qt's name
        event.acceptProposedAction()
        for path in _paths(event):
            self.take_in(path)

    def _work(self, config: dict[str, Any], words: str) -> None:
        if self.hub.engine_missing():
            self._say("⚠ This needs the training engine; see the note at the top.")
            return
        if self.helper is not None and self.helper.running:
            self._say("⚠ Another import or export is still under way.")
            return
        self._say(words)
        self.helper = Helper("models", config, self)
        self.helper.done.connect(self._worked)
        self.helper.failed.connect(lambda text: self._refused(RuntimeError(text)))
        self.helper.start()

    def _worked(self, result: dict[str, Any]) -> None:
        if file := result.get("file"):
            self._say(f"Saved {file}, and its card beside it.")
        else:
            self.form.setVisible(False)
            self._imported(Path(str(result.get("model", ""))))

    def _imported(self, path: Path) -> None:
        self._say(f"Imported as {path.name}.")
        self._wanted = path.resolve()
        self.hub.changed.emit("models")

    def _refused(self, error: Exception) -> None:
        self._say(f"⚠ {error}")

    def _delete(self, model: ModelCard) -> None:
        question = questions.Question(
            "Delete a model",
            f"Move the model of {model.name} to the trash?",
            f"{size_words(model.size)}. "
            + ("The run itself, its curves and checkpoints stay."
               if model.source == "run" else "The file it was imported from stays."),
            (("delete", "Move to trash"), ("keep", "Keep it")),
            "keep",
        )  # fmt: skip
        if self.ask(self, question).key != "delete":
            return
        roots = (self.hub.runs, self.hub.models)

        def delete() -> None:
            control.check_deletable(model, roots)
            to_trash(model.folder)

        def deleted(_: object) -> None:
            self._say(f"The model of {model.name} is in the trash.")
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
        for widget in (self.search, self.list, self._card, self.buttons_box):
            widget.setVisible(has)

    def _search(self) -> None:
        chosen = self.chosen()
        wanted = self._wanted or (chosen.path if chosen else None)
        self.shown_models = control.matching(self.models, self.search.text())
        self.list.blockSignals(True)
        rows.keep_scrolled(self.list, self._fill)
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
            self.list.addItem(item)

    def _show_card(self) -> None:
        model = self.chosen()
        if model is None:
            self._card.setText("No model has these words." if self.models else "")
        elif model.damaged:
            self._card.setText(f"⚠ {model.damaged}")
        else:
            self._card.setText("\n".join(f"{k}: {text}" for k, text in model.facts))
        for name, button in self.buttons.items():
            sound = model is not None and not model.damaged
            button.setEnabled(sound or (name == "delete" and model is not None))

    def _say(self, text: str) -> None:
        rows.tell(self._news, text)

    def _build(self) -> None:
        self.search = QLineEdit()
        self.search.setPlaceholderText("Search: name, method, label, modality ...")
        self.search.setAccessibleName("Search models")
        self.search.setToolTip("Every word must occur in the card")
        self.search.setClearButtonEnabled(True)
        self.search.textChanged.connect(self._search)
        self.list = QListWidget()
        self.list.setAccessibleName("Models")
        self.list.setToolTip("All models of your runs and imports, the newest first")
        self.list.setMinimumHeight(_LIST_PX)
        self.list.setSpacing(2)
        self.list.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.list.setTextElideMode(Qt.TextElideMode.ElideMiddle)
        self.list.currentRowChanged.connect(lambda _: self._show_card())
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
        self.form = ImportForm(self.hub, self.import_foreign)
        self._news = rows.sentence("What is happening", lines=2)
        column = QVBoxLayout(self)
        column.setContentsMargins(4, 4, 4, 4)
        for widget in (
            self.search, self._empty, self._offer_pretrain, self.list,
            self.buttons_box, take_in, self._news, self.form, self._card,
        ):  # fmt: skip  # the card, of any length, stands last
            column.addWidget(widget)
        column.addStretch()
        for widget in (
            self.search, self._empty, self._offer_pretrain, self.list,
            self.buttons_box, self._card,
        ):  # fmt: skip
            widget.setVisible(False)  # until the folders are read
        self._say("")


def _button(words: str, tip: str, clicked: Any) -> QPushButton:
    button = QPushButton(words)
    button.setAccessibleName(words.rstrip("."))
    button.setToolTip(tip)
    button.clicked.connect(clicked)
    return button


def _paths(event: Any) -> list[Path]:
    return [Path(u.toLocalFile()) for u in event.mimeData().urls() if u.isLocalFile()]
