"""Compare the labels shown with a reference: Dice, NSD and HD95 per class."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from qtpy.QtWidgets import QComboBox, QVBoxLayout, QWidget

from homolog.gui.files.layer_geometry import shape_of
from homolog.gui.files.writer import label_names, save_layer
from homolog.gui.hub import Hub
from homolog.gui.rows import (
    ask_files,
    button,
    fill,
    labelled,
    narrow,
    sentence,
    tell,
)
from homolog.gui.segment.class_table import grids_differ, mean_sentence, scores_by_name
from homolog.gui.segment.classes_box import ClassesBox
from homolog.gui.threads import Helper, in_background

_ASK, _OWN_FILE = "ask", "file"
_KINDS = "Label maps (*.nii.gz *.nii *.nrrd *.mha *.mhd);;All files (*)"


class CompareBox(QWidget):
    """A reference (layer or file) and the button that scores against it."""

    def __init__(
        self, hub: Hub, classes: ClassesBox, parent: QWidget | None = None
    ) -> None:
        super().__init__(parent)
        self._hub, self._classes = hub, classes
        self._file: Path | None = None
        self._helper: Helper | None = None
        self._of = ""
        self.reference = narrow(QComboBox())
        self.reference.activated.connect(lambda _: self._chosen())
        self.compare = button(
            "Compare", "Dice, NSD (1 mm) and HD95 of each class", self.begin
        )
        self.words = sentence("Result of the comparison", lines=3)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        hint = "Labels layer or file that is taken as true"
        column.addLayout(labelled("Reference labels", self.reference, hint))
        column.addWidget(self.compare)
        column.addWidget(self.words)
        classes.chosen.connect(self.read_layers)
        self.read_layers()

    def read_layers(self) -> None:
        """Fill the list of references: all other Labels layers, and a file."""
        own = self._classes.layer
        key = self._classes.choice.currentData()
        others = [x for x in self._classes.label_layers() if str(x.unique_id) != key]
        entries = [(x.name, str(x.unique_id)) for x in others]
        if self._file is not None:
            entries.append((self._file.name, _OWN_FILE))
        entries.append(("File...", _ASK))
        kept = self.reference.currentData()
        fill(self.reference, entries, None if kept == _ASK else kept)
        self.setVisible(own is not None)
        self.compare.setEnabled(own is not None and self._helper is None)
        if key != self._of:
            tell(self.words, "")

    def choose_file(self, path: Path) -> None:
        """Take a file as reference."""
        self._file = path
        self.read_layers()
        self.reference.setCurrentIndex(self.reference.findData(_OWN_FILE))

    def begin(self) -> None:
        """Write layers to files, then score them in a worker."""
        layer, key = self._classes.layer, self.reference.currentData()
        if layer is None or self._helper is not None:
            return
        own_file = self._file if key == _OWN_FILE else None
        reference: Any = own_file or self._classes.layer_of(key)
        if reference is None:
            self._ask_file()
            return
        if own_file is None:
            names = (layer.name, reference.name)
            trouble = grids_differ(shape_of(layer), shape_of(reference), *names)
            if trouble:
                tell(self.words, f"⚠ {trouble}")
                return
        if self._hub.engine_missing():
            tell(self.words, "⚠ Comparing needs the training engine; it is missing.")
            return
        self._of = str(layer.unique_id)
        self.compare.setEnabled(False)
        tell(self.words, "Comparing...")
        in_background(
            _as_files, layer, reference, list(self._hub.viewer.layers),
            self._hub.scratch, owner=self,
            done=lambda files: self._score(label_names(layer), files),
            failed=lambda error: self._ended(f"⚠ Not compared: {error}"),
        )  # fmt: skip

    def _score(self, names: dict[int, str], files: tuple[Path, Path]) -> None:
        pair = {"prediction": str(files[0]), "reference": str(files[1])}
        config = {"pairs": [pair], "names": {str(v): n for v, n in names.items()}}
        self._helper = Helper("score", config, self)
        self._helper.done.connect(self._scored)
        self._helper.failed.connect(lambda text: self._ended(f"⚠ Not compared: {text}"))
        self._helper.stopped.connect(lambda: self._ended(""))
        self._helper.start()

    def _scored(self, result: dict[str, Any]) -> None:
        if self._classes.choice.currentData() == self._of:
            self._classes.show_scores(scores_by_name(result))
        self._ended(mean_sentence(result))

    def _ended(self, words: str) -> None:
        if self._helper is not None:
            self._helper.deleteLater()
        self._helper = None
        self.compare.setEnabled(self._classes.layer is not None)
        tell(self.words, words)

    def _chosen(self) -> None:
        if self.reference.currentData() == _ASK:
            self._ask_file()

    def _ask_file(self) -> None:
        ask_files(
            self, "Choose reference labels", _KINDS,
            lambda paths: self.choose_file(paths[0]),
        )  # fmt: skip


def _as_files(
    layer: Any, reference: Any, layers: list[Any], scratch: Path
) -> tuple[Path, Path]:
    """Both label maps as files; layers are written with the geometry of their scan."""
    folder = Path(tempfile.mkdtemp(prefix="compare-", dir=scratch))
    own = save_layer(layer, folder / "labels.nii", layers)[0]
    if isinstance(reference, Path):
        return own, reference
    return own, save_layer(reference, folder / "reference.nii", layers)[0]
