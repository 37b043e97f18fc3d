"""File dialogs of the tab Models; none of them blocks the window."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QFileDialog, QMenu

from homolog.gui.models.control import ModelCard, free_name

if TYPE_CHECKING:
    from homolog.gui.models.panel import ModelsPanel

_WEIGHTS = "Weights (*.safetensors *.pt *.pth *.bin *.ckpt)"


def export_menu(panel: ModelsPanel, model: ModelCard) -> QMenu:
    """As what a model may be written."""
    menu = QMenu(panel)
    menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
    file = menu.addAction("Encoder weights for other programs (.safetensors)...")
    file.triggered.connect(lambda: ask_file(panel, model))
    folder = menu.addAction("Whole model, to use in Homolog elsewhere (folder)...")
    folder.triggered.connect(lambda: ask_folder(panel, model))
    return menu


def ask_file(panel: ModelsPanel, model: ModelCard) -> None:
    """Where to write the encoder's weights."""
    name = f"{model.name.replace('/', '-')}.safetensors"
    dialog = QFileDialog(panel, "Export encoder weights", name, "*.safetensors")
    dialog.setAcceptMode(QFileDialog.AcceptMode.AcceptSave)
    dialog.setDefaultSuffix("safetensors")
    dialog.fileSelected.connect(lambda path: panel.export_weights(model, Path(path)))
    _open(dialog)


def ask_folder(panel: ModelsPanel, model: ModelCard) -> None:
    """Into which folder to copy the whole model; it gets a folder of its own there."""
    dialog = QFileDialog(panel, "Export the model into this folder")
    dialog.setFileMode(QFileDialog.FileMode.Directory)
    name = model.name.replace("/", "-")
    dialog.fileSelected.connect(
        lambda path: panel.export_folder(
            model, Path(path) / free_name(Path(path), name)
        )
    )
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
