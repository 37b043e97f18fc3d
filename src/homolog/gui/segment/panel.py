"""Segment: a model, the selected layer or a batch of files, and what came out.

A classifier is used here too: it tells what a whole scan shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qtpy.QtWidgets import (
    QApplication,
    QComboBox,
    QDoubleSpinBox,
    QLineEdit,
    QVBoxLayout,
    QWidget,
)

from homolog.data.label_naming import names_beside
from homolog.data.scan_header import scan_stem
from homolog.data.volume import MODALITIES
from homolog.gui import engine, keys, preferences
from homolog.gui.files.layers import LayerData
from homolog.gui.files.opening import add_to, read_layer
from homolog.gui.folds import fold_of
from homolog.gui.hub import Hub
from homolog.gui.learn import kept_values
from homolog.gui.learn.command_line import predict_command
from homolog.gui.learn.device_box import DeviceBox
from homolog.gui.learn.model_choice import ModelChoice, list_models
from homolog.gui.rows import (
    EmptyState,
    button,
    fill,
    labelled,
    narrow,
    sentence,
    tell,
)
from homolog.gui.segment.batch import BatchItem
from homolog.gui.segment.batch_box import BatchBox
from homolog.gui.segment.chances_box import ChancesBox
from homolog.gui.segment.classes_box import ClassesBox
from homolog.gui.segment.compare_box import CompareBox
from homolog.gui.segment.control import predict_config, result_layer
from homolog.gui.segment.scan_box import ScanBox, Tool
from homolog.gui.threads import in_background

_NO_OVERLAP = -0.05  # the spin box says "the model's"


class SegmentPanel(QWidget):
    """Use a fine-tuned model; see segment_control for what happens to files."""

    title = "Segment"

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self.hub = hub
        self.models: list[ModelChoice] = []
        self.extra: list[Path] = []
        self.kept = kept_values.read(preferences.home(), self.title)
        self.model = narrow(QComboBox())
        self.facts = sentence("What the model finds", lines=4)
        self.no_model = EmptyState(
            "No model yet. Fine-tune one on labelled scans, or import one.",
            button("Fine-tune...", "Go to Fine-tune",
                   lambda: hub.go.emit("Fine-tune", {})),
            button("Import...", "Go to Models, where models are imported",
                   lambda: hub.go.emit("Models", {})),
        )  # fmt: skip
        self.scan = ScanBox(hub)
        self.batch = BatchBox(hub)
        self.batch.set_out(
            Path(str(self.kept.get("out") or preferences.home() / "predictions"))
        )
        self.all = button(
            "Segment all", "Segment every scan of the list into the folder",
            self.segment_batch,
        )  # fmt: skip
        self.copy = button(
            "Copy as command", "Copy the command line that does this",
            self.copy_command,
        )  # fmt: skip
        self.chances = ChancesBox(hub)
        self._last_model: ModelChoice | None = None
        self.classes = ClassesBox(hub)
        self.compare = CompareBox(hub, self.classes)
        self.device = DeviceBox(hub, "segment")
        self.device.choose(str(self.kept.get("device") or self.device.device))
        self._advice: Any = None
        self.modality = narrow(QComboBox())
        kinds = [("As their files say", ""), *((m, m) for m in MODALITIES)]
        fill(self.modality, kinds, self.kept.get("modality"))
        self.flips = QLineEdit(str(self.kept.get("flips") or ""))
        self.overlap = QDoubleSpinBox()
        self.overlap.setRange(_NO_OVERLAP, 0.9)
        self.overlap.setSingleStep(0.05)
        self.overlap.setSpecialValueText("the model's")
        self.overlap.setValue(float(self.kept.get("overlap", _NO_OVERLAP)))
        self.trouble = sentence("Why nothing can be segmented", lines=1)
        self.setAcceptDrops(True)
        self._lay_out()
        self._connect()
        self.show_models()

    def shown(self) -> None:
        """The tab came to front: read the models anew."""
        self.device.want()
        self.read_models()
        self.classes.read_layers()

    def visit(self, what: Mapping[str, Any]) -> None:
        """Another panel sends the user here, perhaps with a model or scans."""
        if what.get("model"):
            path = Path(str(what["model"])).resolve()
            self.kept["model"] = str(path)
            if path not in self.extra:
                self.extra.append(path)
            self.read_models()
        if what.get("paths"):
            self.batch.add([Path(str(p)) for p in what["paths"]])

    def dragEnterEvent(self, event: Any) -> None:  # noqa: D102 - Qt's name
        self.batch.dragEnterEvent(event)

    def dropEvent(self, event: Any) -> None:
        """Files dropped anywhere on the tab join the batch."""
        self.batch.dropEvent(event)

    def keep(self) -> None:
        """Keep what is chosen for the next session."""
        self.kept = {
            "model": self.model.currentData() or self.kept.get("model", ""),
            "device": self.device.device,
            "flips": self.flips.text(),
            "modality": self.modality.currentData(),
            "overlap": self.overlap.value(),
            "out": str(self.batch.out or ""),
        }
        kept_values.write(preferences.home(), self.title, self.kept)

    def read_models(self) -> None:
        """List models in the background."""
        in_background(
            list_models, self.hub.runs, self.hub.models, list(self.extra), owner=self,
            done=self._got_models,
            failed=lambda error: self.hub.say(f"Models: {error}", "warning"),
        )  # fmt: skip

    def show_models(self) -> None:
        """Fill the list of models."""
        entries = [(m.title, str(m.path)) for m in self.models]
        fill(self.model, entries, self.kept.get("model"))
        self.no_model.setVisible(not self.models)
        for part in (self._model_rows, self.scan, self._more, self.batch):
            part.setVisible(bool(self.models))
        self._model_chosen()

    @property
    def chosen(self) -> ModelChoice | None:
        """The chosen model."""
        path = self.model.currentData()
        return next((m for m in self.models if str(m.path) == path), None)

    def segment_batch(self) -> None:
        """Segment the scans of the list."""
        model, options = self.chosen, self._options()
        if model is None or self.scan.busy or self.batch.busy:
            return

        def config(scans: Sequence[Path], out: Path) -> Mapping[str, Any]:
            return predict_config(model.path, scans, out, **options)

        done_word = "classified" if model.classifies else "segmented"
        self.batch.begin(config, model.label_names, done_word)

    def copy_command(self) -> None:
        """The command line that segments the scans of the list."""
        model, out = self.chosen, self.batch.out
        scans = [item.scan for item in self.batch.batch.items]
        if model is None or out is None or not scans:
            return
        config = predict_config(model.path, scans, out, **self._options())
        QApplication.clipboard().setText(predict_command(config))
        tell(self.batch.words, "The command was copied.")

    def load(self, item: BatchItem) -> None:
        """Show a batch result: the scan and its labels, or what was told of it."""
        if item.told:
            in_background(
                read_layer, item.scan, owner=self,
                done=lambda made: self._show_told(item, made),
                failed=lambda error: self.hub.say(f"{item.name}: {error}", "warning"),
            )  # fmt: skip
        elif item.result is not None:
            in_background(
                _scan_and_labels, item, owner=self, done=self._show_pair,
                failed=lambda error: self.hub.say(f"{item.name}: {error}", "warning"),
            )  # fmt: skip

    def _lay_out(self) -> None:
        column = QVBoxLayout(self)
        column.addWidget(self.no_model)
        self._model_rows, rows = _group()
        rows.addLayout(labelled("Model", self.model, "The model that labels the scan"))
        rows.addWidget(self.facts)
        rows.addWidget(self.trouble)
        column.addWidget(self._model_rows)
        column.addWidget(self.scan)
        inside, rows = _group()
        hint = "Where to compute, with free memory"
        rows.addLayout(labelled("Device", self.device, hint))
        hint = "Take every scan for this kind, whatever its file says"
        rows.addLayout(labelled("Kind of scan", self.modality, hint))
        self._voxels_only, more = _group()
        rows.addWidget(self._voxels_only)
        hint = "Average over mirrored scans: axes out of z, y, x; slower by 2 each"
        more.addLayout(labelled("Mirrored along (axes)", self.flips, hint))
        hint = "Shared part of neighbouring windows, 0 to 0.9; more is slower"
        more.addLayout(labelled("Overlap of windows (share)", self.overlap, hint))
        self._more = fold_of("More")
        self._more.addWidget(inside)
        column.addWidget(self._more)
        column.addWidget(self.batch)
        self.batch.layout().addWidget(self.all)
        self.batch.layout().addWidget(self.copy)
        column.addWidget(self.classes)
        column.addWidget(self.compare)
        column.addWidget(self.chances)  # it comes by itself: below all that is pressed
        column.addStretch(1)

    def _connect(self) -> None:
        self.hub.changed.connect(self._news)
        self.hub.closing.connect(self.keep)
        self.model.currentIndexChanged.connect(lambda: self._model_chosen())
        self.modality.currentIndexChanged.connect(lambda: self._refresh())
        self.flips.textChanged.connect(lambda: self._refresh())
        self.overlap.valueChanged.connect(lambda: self._refresh())
        self.device.changed.connect(self._refresh)
        self.scan.changed.connect(self._refresh)
        self.scan.segmented.connect(self.classes.adopt)
        self.scan.classified.connect(
            lambda layer, told: self.chances.show_answer(layer.name, told, layer)
        )
        self.batch.changed.connect(self._refresh)
        self.batch.load.connect(self.load)
        keys.add(
            self.hub, "Shift-R", "segment the selected layer", self.scan.start.click,
            while_shown=self,
        )  # fmt: skip

    def _news(self, what: str) -> None:
        if what in ("runs", "models") and self.isVisible():
            self.read_models()

    def _got_models(self, models: list[ModelChoice]) -> None:
        self.models = models
        self.show_models()

    def _model_chosen(self) -> None:
        model = self.chosen
        tell(self.facts, model.facts if model is not None else "")
        if model is not None:
            self.kept["model"] = str(model.path)
            found = model.classes or tuple(model.label_names.values())
            self.facts.setToolTip("Finds " + ", ".join(found))
            self._other_model(model)
        self._refresh()

    def _other_model(self, model: ModelChoice) -> None:
        """What another model told does not stand beside this one."""
        verb = "Classify" if model.classifies else "Segment"
        self.all.setText(f"{verb} all")
        self._voxels_only.setVisible(not model.classifies)
        before, self._last_model = self._last_model, model
        if before is not None and before.path != model.path:
            self.chances.forget()
            if before.classifies or model.classifies:
                self.batch.another_model()

    def _refresh(self) -> None:
        """Tell both boxes what they would work with."""
        model, trouble = self.chosen, self._trouble()
        advice = (model, self._options()["modality"])
        if advice != self._advice:
            self._advice = advice
            self.batch.advise(*advice)
        tell(self.trouble, f"⚠ {trouble}" if trouble else "")
        waiting = "A batch is being segmented." if self.batch.busy else ""
        self.scan.set_tool(Tool(model, self._options(), trouble or waiting))
        self.copy.setEnabled(model is not None and bool(self.batch.batch.items))
        able = model is not None and not trouble and not self.batch.busy
        self.all.setEnabled(able and not self.scan.busy and bool(self.batch.batch.open))

    def _trouble(self) -> str:
        if self.hub.engine_missing():
            return (
                "The training engine is not installed in this Python. Install it "
                f"with: {engine.install_command()}"
            )
        if set(self.flips.text().lower()) - set("zyx, "):
            return "Mirrored along takes the letters z, y and x only."
        return ""

    def _options(self) -> dict[str, Any]:
        overlap = self.overlap.value()
        letters = [a for a in "zyx" if a in self.flips.text().lower()]
        return {
            "device": self.device.device,
            "flips": "".join(letters),
            "overlap": None if overlap < 0 else round(overlap, 3),
            "modality": self.modality.currentData() or None,
        }

    def _show_told(self, item: BatchItem, made: LayerData) -> None:
        for other in self.hub.viewer.layers:
            other.visible = False
        layer = add_to(self.hub.viewer, made)[0]
        self.hub.viewer.layers.selection.active = layer
        self.chances.show_answer(item.name, item.told, layer)

    def _show_pair(self, made: tuple[LayerData, LayerData]) -> None:
        for other in self.hub.viewer.layers:
            other.visible = False  # another patient in the same place
        scan = add_to(self.hub.viewer, made[0])[0]
        labels = add_to(self.hub.viewer, made[1])[0]
        labels.opacity = 0.5
        self.classes.adopt(labels)
        self.hub.viewer.layers.selection.active = scan


def _group() -> tuple[QWidget, QVBoxLayout]:
    box = QWidget()
    rows = QVBoxLayout(box)
    rows.setContentsMargins(0, 0, 0, 0)
    return box, rows


def _scan_and_labels(item: BatchItem) -> tuple[LayerData, LayerData]:
    """A scan and its labels as layers; read on a thread."""
    assert item.result is not None
    names = names_beside(item.result)
    labels = result_layer(item.result, names, f"{scan_stem(item.result)} labels")
    return read_layer(item.scan), labels
