"""Segment: a model, the selected layer or a batch of files, and what came out.

A classifier is used here too: it tells what a whole scan shows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import (
    QApplication,
    QDoubleSpinBox,
    QGridLayout,
    QLineEdit,
    QVBoxLayout,
    QWidget,
)

from homolog.events import Event, Note, Progress
from homolog.gui.files.boxes import box_layer, boxes_of_file, holds_boxes
from homolog.gui.files.opening import add_to, read_layer
from homolog.gui.files.writer import save_layer
from homolog.gui.segment.batch_box import BatchBox
from homolog.gui.segment.boxes_box import BoxesBox
from homolog.gui.segment.channels import together, wanted_channels
from homolog.gui.segment.channels_box import ChannelsBox
from homolog.gui.segment.classes_box import ChancesBox, ClassesBox
from homolog.gui.segment.control import (
    BatchItem,
    MadeBy,
    grids_differ,
    image_layer,
    mean_sentence,
    predict_config,
    reason_text,
    result_layer,
    scores_by_name,
    short_text,
)
from homolog.gui.segment.export_box import ExportBox
from homolog.gui.shared import choices, engine, keys, preferences
from homolog.gui.shared.choices import (
    ModelChoice,
    begin_with,
    list_models,
    misfit,
    predict_command,
    treated_as,
)
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.layers import (
    LayerData,
    ScanRef,
    derived_attributes,
    label_names,
    layer_scan,
    open_modalities,
    scan_file,
    shape_of,
)
from homolog.gui.shared.threads import Helper, in_background
from homolog.gui.shared.widgets import (
    Choice,
    DeviceBox,
    EmptyState,
    HelperBox,
    Sentence,
    ask_files,
    beside,
    button,
    fill,
    fold_of,
    keep_room,
    labelled,
    named,
    one_place,
    sentence,
    tell,
)
from homolog.runs.jobs import python_text
from homolog.scans.names import names_beside
from homolog.scans.paths import scan_stem
from homolog.scans.volume import MODALITIES
from homolog.words import counted, duration, listed, spacing_text

# Compare the labels shown with a reference: Dice, NSD and HD95 per class.


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
        self.reference = Choice()
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


# Use a model on the selected layer: warning, progress, cancel, and what came out.
#
# A segmentation becomes a new Labels layer; a classification is handed on in words.


@dataclass(frozen=True)
class Tool:
    """What a scan would be segmented with.

    Attributes:
        model: The chosen model; None when there is none.
        options: ``device``, ``flips``, ``overlap``, ``modality`` of the job.
        trouble: Why nothing can be segmented now; empty when it can.
    """

    model: ModelChoice | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    trouble: str = ""


class ScanBox(HelperBox):
    """The selected scan and the button that segments it.

    Signals:
        changed: Work began or ended.
        segmented: A Labels layer was added (the layer).
        searched: A layer of boxes was added (the layer).
        classified: A scan was classified (its layer, what was told of it).
    """

    changed = Signal()
    segmented = Signal(object)
    searched = Signal(object)
    classified = Signal(object, object)

    def __init__(self, hub: Hub) -> None:
        super().__init__("the scan", "Stop after the running window", lines=3)
        self._hub = hub
        self._tool = Tool()
        self._scan: ScanRef | None = None
        self._allowed: tuple[str, str] | None = None
        self._odd: tuple[str, ...] = ()  # scan and model do not go well together
        self.scan = sentence("The scan to segment", lines=2)
        self.channels = ChannelsBox(hub)
        self.warning = named(
            Sentence(3, grows=True), "Scan and model do not go well",
            "Scan and model do not go well",
        )  # fmt: skip
        self.start = button(
            "Segment selected layer", "Label every voxel of the scan", self.begin
        )
        self.go_on = button("Continue", "Segment all the same", self._continue)
        self.leave = button("Cancel", "Do not segment this scan", self._leave)
        rows = QVBoxLayout(self)
        rows.setContentsMargins(0, 0, 0, 0)
        # What comes and goes keeps its room, and nothing takes another one's place:
        # who presses twice does not go on past a warning unread.
        keep_room(self.start, self.go_on, self.leave)
        for widget in (self.scan, self.channels, self.start):
            rows.addWidget(widget)
        rows.addLayout(one_place(self.warning, self.words))
        below = QGridLayout()  # "Cancel" is where "Cancel" was
        for place, parts in enumerate(
            ((self.go_on, self.bar), (self.leave, self.cancel))
        ):
            below.setColumnStretch(place, 1)
            for part in parts:
                below.addWidget(part, 0, place)
        rows.addLayout(below)
        self._show_start()
        self.channels.changed.connect(self._layer_selected)
        hub.viewer.layers.selection.events.active.connect(self._layer_selected)
        self._layer_selected()

    def set_tool(self, tool: Tool) -> None:
        """Another model or other options."""
        self._tool = tool
        if (wanted := wanted_channels(tool.model)) != self.channels.wanted:
            self.channels.want(wanted)
            self._scan = self._selected()
        self._refresh()

    def enable(self) -> None:
        """Tell the panel too."""
        self._refresh()
        self.changed.emit()

    def begin(self) -> None:
        """Segment; warns first, inline, about a scan unlike those the model knows."""
        scan, model = self._scan, self._tool.model
        if scan is None or model is None or self._tool.trouble or self.busy:
            self._refresh()
            return
        kind = self._tool.options.get("modality") or scan.modality
        odd = misfit(model, scan.name, kind, scan.spacing_mm)
        if self.channels.wanted:
            spacing = misfit(model, scan.name, "OTHER", scan.spacing_mm)
            odd = [*self.channels.odd(), *spacing]
        self._odd = tuple(odd)
        if not odd or self._allowed == self._case(model):
            self._segment(self._layers(), scan, model)
            return
        tell(self.words, "")
        tell(self.warning, "\n".join(f"⚠ {text}" for text in odd))
        self.start.hide()
        self.go_on.show()
        self.leave.show()
        self.go_on.setFocus()

    @property
    def files(self) -> list[Path]:
        """The scan's file, where the layer shows one unchanged and alone."""
        scan = None if self.channels.wanted else self._scan
        return [scan.path] if scan is not None and scan.path is not None else []

    def _active(self) -> Any:
        return self._hub.viewer.layers.selection.active

    def _layers(self) -> list[Any]:
        """What is segmented: the selected layer, or one for each channel."""
        return self.channels.layers() if self.channels.wanted else [self._active()]

    def _case(self, model: ModelChoice) -> tuple[str, str]:
        """What the user may allow: a model for these layers."""
        return together([layer.name for layer in self._layers()]), str(model.path)

    def _selected(self) -> ScanRef | None:
        """The scan of the selected layer, or of the first channel of a whole case."""
        if self.channels.wanted:
            first = self.channels.chosen[0]
            return first.ref if first and not self.channels.problem else None
        layer = self._active()
        return layer_scan(layer) if layer is not None else None

    def _layer_selected(self, event: Any = None) -> None:
        before = self._scan
        self._scan = self._selected()
        other = before is None or self._scan is None or before.name != self._scan.name
        if other and not self.busy:
            tell(self.words, "")
        self._refresh()

    def _refresh(self) -> None:
        """Say which scan it would be, and enable what can be done."""
        scan, tool = self._scan, self._tool
        several = [channel.name for channel in self.channels.wanted]
        if several:
            text = f"This model takes {listed(several)} of one person together."
            tell(self.scan, text)
        elif scan is None:
            tell(self.scan, "Select a scan in the layer list, or drop files below.")
        else:
            kind = "modality unknown" if scan.modality == "OTHER" else scan.modality
            tell(self.scan, f"{scan.name}: {kind}, {_size(scan)}")
        self._show_start()
        able = tool.model is not None and not tool.trouble and scan is not None
        self.start.setEnabled(able and not self.busy)
        which = "these layers" if several else "selected layer"
        self.start.setText(f"{self._verb} {which}")
        hint = "Label every voxel of the scan selected in the layer list"
        if tool.model is not None and tool.model.classifies:
            hint = "Tell what the scan selected in the layer list shows"
        elif tool.model is not None and tool.model.detects:
            hint = "Find boxes in the scan selected in the layer list"
        elif tool.model is not None and tool.model.translates:
            hint = f"Make {tool.model.made}: the scan selected in the layer list"
        self.start.setToolTip(tool.trouble or hint)

    @property
    def _verb(self) -> str:
        return _verb(self._tool.model)

    def _continue(self) -> None:
        if self._scan is not None and self._tool.model is not None:
            self._allowed = self._case(self._tool.model)
        self._show_start()
        self.begin()

    def _leave(self) -> None:
        self._show_start()

    def _show_start(self) -> None:
        tell(self.warning, "")
        self.start.show()
        self.go_on.hide()
        self.leave.hide()

    def _segment(self, layers: list[Any], scan: ScanRef, model: ModelChoice) -> None:
        options, layer = dict(self._tool.options), layers[0]
        if not options.get("modality") and len(layers) == 1:
            # the user was warned, and went on
            options["modality"] = treated_as(model, scan.modality)

        def gather() -> Mapping[str, Any]:
            scans, folder = _scans_and_folder(layers, self._hub.scratch)
            return predict_config(model.path, [scans], folder, **options)

        self.launch(
            "predict", gather, lambda result: self._predicted(layer, model, result)
        )

    def take(self, event: Event) -> None:
        """The bar counts windows."""
        if isinstance(event, Progress) and event.phase != "scans" and event.total:
            super().take(event)
            left = event.remaining_s
            tell(self.words, f"{duration(left)} left" if left > 0 else "Working")
        elif isinstance(event, Note) and event.level == "warning":
            self._hub.say(f"{event.text[:1].upper()}{event.text[1:]}", "warning")

    def _predicted(
        self, layer: Any, model: ModelChoice, result: Mapping[str, Any]
    ) -> None:
        if not result.get("predicted"):
            failed = result.get("failed") or [{"reason": "nothing came out"}]
            self.fail(f"Not {_DONE[_verb(model)]}: {reason_text(failed[0]['reason'])}")
            return
        if model.detects:
            self._found(layer, model, result["predicted"][0])
            return
        if model.classifies:
            told = result["predicted"][0]
            self.end(f"✓ {layer.name}: {short_text(told)}. All chances stand below.")
            self.classified.emit(layer, told)
            return
        tell(self.words, "Reading the result...")
        if model.translates:
            in_background(
                partial(image_layer, alike=model.keeps_values),
                Path(result["predicted"][0]["image"]),
                f"{layer.name}: {model.makes} made by {model.name}", layer, owner=self,
                done=self._show_image, failed=lambda error: self.fail(str(error)),
            )  # fmt: skip
            return
        said = (*self._odd, *result["predicted"][0].get("notes", ()))
        in_background(
            result_layer, Path(result["predicted"][0]["labels"]), model.label_names,
            f"{layer.name} {model.name}", layer,
            MadeBy(str(model.path), said), owner=self,
            done=lambda made: self._show_result(layer, made),
            failed=lambda error: self.fail(str(error)),
        )  # fmt: skip

    def _found(self, layer: Any, model: ModelChoice, entry: Mapping[str, Any]) -> None:
        count = len(entry["boxes"])
        if not count:
            least = model.least_score
            of = "" if least is None else f" with a score of {least:.2f} or more"
            self.end(f"✓ {layer.name}: no box was found{of}.")
            return
        tell(self.words, "Reading the result...")
        in_background(
            _boxes_of, Path(entry["files"][0]), f"{layer.name} {model.name}", layer,
            owner=self, done=lambda made: self._show_boxes(made, count),
            failed=lambda error: self.fail(str(error)),
        )  # fmt: skip

    def _show_boxes(self, made: LayerData, count: int) -> None:
        layers = self._hub.viewer.layers
        before = self._active()
        added = add_to(self._hub.viewer, made)[0]
        if before is not None and before in layers:
            layers.selection.active = before
        self.end(f"✓ {added.name} was added: {counted(count, 'box')}, listed below.")
        self.searched.emit(added)

    def _show_image(self, made: LayerData) -> None:
        layers = self._hub.viewer.layers
        before = self._active()
        added = add_to(self._hub.viewer, made)[0]
        if before is not None and before in layers:
            layers.selection.active = before
        self.end(f"✓ {added.name}. A model made this image; it was not acquired.")

    def _show_result(self, scan: Any, made: LayerData) -> None:
        layers = self._hub.viewer.layers
        before = self._active()
        added = add_to(self._hub.viewer, made)[0]
        added.opacity = 0.5
        if before is not None and before in layers:
            layers.selection.active = before
        self.end(f"✓ {added.name} was added; its classes are listed below.")
        self.segmented.emit(added)


def _size(scan: ScanRef) -> str:
    """Voxel size; of a picture that says none its pixels, not a made-up millimetre."""
    if scan.shape[0] == 1 and set(scan.spacing_mm) == {1.0}:
        return f"{scan.shape[2]} x {scan.shape[1]} pixels of unknown size"
    return spacing_text(scan.spacing_mm)


def _scans_and_folder(layers: Sequence[Any], scratch: Path) -> tuple[str, Path]:
    """The layers as files, named together, and a fresh folder for the result."""
    files = [scan_file(layer, scratch) for layer in layers]
    return together(files), Path(tempfile.mkdtemp(prefix="segment-", dir=scratch))


# What the button says, and what became of a scan.
_DONE = {
    "Segment": "segmented", "Classify": "classified", "Search": "searched",
    "Translate": "translated",
}  # fmt: skip


def _verb(model: ModelChoice | None) -> str:
    if model is not None and model.detects:
        return "Search"
    if model is not None and model.translates:
        return "Translate"
    return "Classify" if model is not None and model.classifies else "Segment"


def _boxes_of(path: Path, name: str, layer: Any) -> LayerData:
    """Boxes found in a layer, where it is shown."""
    boxes = boxes_of_file(path)
    data, attributes, kind = box_layer(boxes, name)
    if len(layer.data.shape) == 2:  # a picture of napari's own reader
        data = [corners[:, 1:] for corners in data]
    on = derived_attributes(layer, name)
    return data, {**attributes, **{k: on[k] for k in _PLACE}}, kind


_PLACE = ("scale", "translate", "units", "axis_labels")
_NO_OVERLAP = -0.05  # the spin box says "the model's"


class SegmentPanel(QWidget):
    """Use a fine-tuned model; see segment_control for what happens to files."""

    title = "Segment"

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self.hub = hub
        self.models: list[ModelChoice] = []
        self.extra: list[Path] = []
        self._begins = False
        self.kept = choices.read(preferences.home(), self.title)
        self.model = Choice()
        self.facts = sentence("What the model finds", lines=6)
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
        self.copy_python = button(
            "Copy as Python", "Copy a Python program that does this", self.copy_program
        )
        self.chances = ChancesBox(hub)
        self._last_model: ModelChoice | None = None
        self.classes = ClassesBox(hub)
        self.export = ExportBox(hub, self.classes)
        self.boxes = BoxesBox(hub)
        self.compare = CompareBox(hub, self.classes)
        self.device = DeviceBox(hub, "segment")
        self.device.choose(str(self.kept.get("device") or self.device.device))
        self._advice: Any = None
        self._make_options()
        self.trouble = sentence("Why nothing can be segmented", lines=1)
        self.setAcceptDrops(True)
        self._lay_out()
        self._connect()
        self.show_models()

    def _make_options(self) -> None:
        """How a model is used, as it was chosen last."""
        self.modality = Choice()
        kinds = [("As their files say", ""), *((m, m) for m in MODALITIES)]
        fill(self.modality, kinds, self.kept.get("modality"))
        self.flips = QLineEdit(str(self.kept.get("flips") or ""))
        self.overlap = QDoubleSpinBox()
        self.overlap.setRange(_NO_OVERLAP, 0.9)
        self.overlap.setSingleStep(0.05)
        self.overlap.setSpecialValueText("the model's")
        self.overlap.setValue(float(self.kept.get("overlap", _NO_OVERLAP)))

    def shown(self) -> None:
        """The tab came to front: read the models anew."""
        self.device.want()
        self.read_models()
        self.classes.read_layers()

    def visit(self, what: Mapping[str, Any]) -> None:
        """Another panel sends the user here, perhaps with a model or scans.

        ``{"begin": True}``: the selected scan is segmented at once, where there is one
        model alone to do it.
        """
        self._begins = bool(what.get("begin"))  # once the models are listed
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
        choices.write(preferences.home(), self.title, self.kept)

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
        usual = begin_with(self.models, open_modalities(self.hub.viewer))
        first = None if usual is None else str(usual.path)
        fill(self.model, entries, self.kept.get("model") or first)
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

        done = _DONE[_verb(model)]
        self.batch.begin(config, model.label_names, done, str(model.path))

    def copy_command(self) -> None:
        """The command line that does what the tab would do, on the clipboard."""
        if (config := self._asked()) is not None:
            QApplication.clipboard().setText(predict_command(config))
            tell(self.batch.words, "The command was copied.")

    def copy_program(self) -> None:
        """The same in Python."""
        if (config := self._asked()) is not None:
            QApplication.clipboard().setText(python_text("predict", config))
            tell(self.batch.words, "The program was copied.")

    def _asked(self) -> dict[str, Any] | None:
        """What is asked of the model: of the scans of the list, or of the selected."""
        model, out = self.chosen, self.batch.out
        scans = [item.said for item in self.batch.batch.items] or self.scan.files
        if model is None or out is None or not scans:
            return None
        return predict_config(model.path, scans, out, **self._options())

    def load(self, item: BatchItem) -> None:
        """Show a batch result: the scan and its labels, or what was told of it."""
        if item.told:
            in_background(
                read_layer, item.files[0], owner=self,
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
        self.batch.layout().addLayout(beside(self.copy, self.copy_python))
        column.addWidget(self.classes)
        column.addWidget(self.export)
        column.addWidget(self.compare)
        column.addWidget(self.boxes)
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
        self.scan.searched.connect(self.boxes.adopt)
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
        begins, self._begins = self._begins, False
        if begins and len(models) == 1 and self.scan.start.isEnabled():
            self.scan.begin()

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
        self.all.setText(f"{_verb(model)} all")
        self._voxels_only.setVisible(not model.classifies)
        before, self._last_model = self._last_model, model
        if before is not None and before.path != model.path:
            self.chances.forget()
            if _verb(before) != _verb(model) or model.classifies:
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
        for copy in (self.copy, self.copy_python):
            copy.setEnabled(self._asked() is not None)
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

    def _show_pair(self, made: tuple[list[LayerData], LayerData]) -> None:
        for other in self.hub.viewer.layers:
            other.visible = False  # another patient in the same place
        scans = [one for data in made[0] for one in add_to(self.hub.viewer, data)]
        for other in scans[1:]:
            other.visible = False  # further channels of the case
        scan = scans[0]
        labels = add_to(self.hub.viewer, made[1])[0]
        if made[1][2] == "labels":
            labels.opacity = 0.5
            self.classes.adopt(labels)
        elif made[1][2] == "shapes":
            self.boxes.adopt(labels)
        self.hub.viewer.layers.selection.active = scan


def _group() -> tuple[QWidget, QVBoxLayout]:
    box = QWidget()
    rows = QVBoxLayout(box)
    rows.setContentsMargins(0, 0, 0, 0)
    return box, rows


def _scan_and_labels(item: BatchItem) -> tuple[list[LayerData], LayerData]:
    """A scan, or each channel of a case, and its result as layers; for a thread."""
    assert item.result is not None
    scans = [read_layer(file) for file in item.files]
    if holds_boxes(item.result):
        return scans, box_layer(boxes_of_file(item.result))
    if item.made_image:
        return scans, image_layer(item.result, f"{scan_stem(item.result)} made")
    names = names_beside(item.result)
    name = f"{scan_stem(item.result)} labels"
    labels = result_layer(item.result, names, name, made_by=item.made_by)
    return scans, labels
