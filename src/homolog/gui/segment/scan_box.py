"""Use a model on the selected layer: warning, progress, cancel, and what came out.

A segmentation becomes a new Labels layer; a classification is handed on in words.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QGridLayout, QProgressBar, QVBoxLayout, QWidget

from homolog.events import Event, Note, Progress
from homolog.geometry.places import spacing_text
from homolog.gui.files.layer_scan import ScanRef, layer_scan, scan_file
from homolog.gui.files.layers import LayerData
from homolog.gui.files.opening import add_to
from homolog.gui.hub import Hub
from homolog.gui.learn.estimate_words import duration_text
from homolog.gui.learn.model_choice import ModelChoice, misfit, treated_as
from homolog.gui.rows import (
    Sentence,
    button,
    keep_room,
    named,
    one_place,
    sentence,
    tell,
)
from homolog.gui.segment.batch import reason_text
from homolog.gui.segment.control import predict_config, result_layer
from homolog.gui.threads import Helper, in_background


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


class ScanBox(QWidget):
    """The selected scan and the button that segments it.

    Signals:
        changed: Work began or ended.
        segmented: A Labels layer was added (the layer).
        classified: A scan was classified (its layer, what was told of it).
    """

    changed = Signal()
    segmented = Signal(object)
    classified = Signal(object, object)

    def __init__(self, hub: Hub, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._hub = hub
        self._helper: Helper | None = None
        self._starting = False
        self._tool = Tool()
        self._scan: ScanRef | None = None
        self._allowed: tuple[str, str] | None = None
        self.scan = sentence("The scan to segment", lines=2)
        self.warning = named(
            Sentence(3, grows=True), "Scan and model do not go well",
            "Scan and model do not go well",
        )  # fmt: skip
        self.start = button(
            "Segment selected layer", "Label every voxel of the scan", self.begin
        )
        self.go_on = button("Continue", "Segment all the same", self._continue)
        self.leave = button("Cancel", "Do not segment this scan", self._leave)
        self.bar = named(QProgressBar(), "Progress of the scan", "Windows done so far")
        self.cancel = button("Cancel", "Stop after the running window", self.stop)
        self.words = sentence("State of the scan", lines=2)
        rows = QVBoxLayout(self)
        rows.setContentsMargins(0, 0, 0, 0)
        # What comes and goes keeps its room, and nothing takes another one's place:
        # who presses twice does not go on past a warning unread.
        keep_room(self.start, self.go_on, self.leave, self.bar, self.cancel)
        for widget in (self.scan, self.start):
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
        self._show_work(False)
        hub.viewer.layers.selection.events.active.connect(self._layer_selected)
        self._layer_selected()

    @property
    def busy(self) -> bool:
        """Whether a scan is being segmented."""
        return self._starting or self._helper is not None

    def set_tool(self, tool: Tool) -> None:
        """Another model or other options."""
        self._tool = tool
        self._refresh()

    def begin(self) -> None:
        """Segment; warns first, inline, about a scan unlike those the model knows."""
        scan, model = self._scan, self._tool.model
        if scan is None or model is None or self._tool.trouble or self.busy:
            self._refresh()
            return
        kind = self._tool.options.get("modality") or scan.modality
        odd = misfit(model, scan.name, kind, scan.spacing_mm)
        if not odd or self._allowed == (scan.name, str(model.path)):
            self._segment(self._active(), scan, model)
            return
        tell(self.words, "")
        tell(self.warning, "\n".join(f"⚠ {text}" for text in odd))
        self.start.hide()
        self.go_on.show()
        self.leave.show()
        self.go_on.setFocus()

    def stop(self) -> None:
        """Stop segmenting."""
        self.cancel.setEnabled(False)
        tell(self.words, "Cancelling...")
        if self._helper is not None:
            self._helper.stop()

    def _active(self) -> Any:
        return self._hub.viewer.layers.selection.active

    def _layer_selected(self, event: Any = None) -> None:
        layer = self._active()
        before = self._scan
        self._scan = layer_scan(layer) if layer is not None else None
        other = before is None or self._scan is None or before.name != self._scan.name
        if other and not self.busy:
            tell(self.words, "")
        self._refresh()

    def _refresh(self) -> None:
        """Say which scan it would be, and enable what can be done."""
        scan, tool = self._scan, self._tool
        if scan is None:
            tell(self.scan, "Select a scan in the layer list, or drop files below.")
        else:
            spacing = spacing_text(scan.spacing_mm)
            kind = "modality unknown" if scan.modality == "OTHER" else scan.modality
            tell(self.scan, f"{scan.name}: {kind}, {spacing}")
        self._show_start()
        able = tool.model is not None and not tool.trouble and scan is not None
        self.start.setEnabled(able and not self.busy)
        self.start.setText(f"{self._verb} selected layer")
        hint = "Label every voxel of the scan selected in the layer list"
        if tool.model is not None and tool.model.classifies:
            hint = "Tell what the scan selected in the layer list shows"
        self.start.setToolTip(tool.trouble or hint)

    @property
    def _verb(self) -> str:
        model = self._tool.model
        return "Classify" if model is not None and model.classifies else "Segment"

    def _continue(self) -> None:
        if self._scan is not None and self._tool.model is not None:
            self._allowed = (self._scan.name, str(self._tool.model.path))
        self._show_start()
        self.begin()

    def _leave(self) -> None:
        self._show_start()

    def _show_start(self) -> None:
        tell(self.warning, "")
        self.start.show()
        self.go_on.hide()
        self.leave.hide()

    def _segment(self, layer: Any, scan: ScanRef, model: ModelChoice) -> None:
        options = dict(self._tool.options)
        if not options.get("modality"):  # the user was warned, and went on
            options["modality"] = treated_as(model, scan.modality)
        self._starting = True
        self.bar.setRange(0, 0)
        self._show_work(True)
        tell(self.words, "Starting the worker...")

        def predict(made: tuple[Path, Path]) -> None:
            config = predict_config(model.path, [made[0]], made[1], **options)
            self._predict(layer, model, config)

        in_background(
            _scan_and_folder, layer, self._hub.scratch, owner=self, done=predict,
            failed=lambda error: self._ended(f"⚠ {error}"),
        )  # fmt: skip
        self.changed.emit()

    def _predict(
        self, layer: Any, model: ModelChoice, config: Mapping[str, Any]
    ) -> None:
        helper = Helper("predict", config, self)
        helper.news.connect(self._tell)
        helper.done.connect(lambda result: self._predicted(layer, model, result))
        helper.failed.connect(lambda text: self._ended(f"⚠ {text}"))
        helper.stopped.connect(lambda: self._ended("Cancelled."))
        self._helper, self._starting = helper, False
        helper.start()

    def _tell(self, event: Event) -> None:
        if isinstance(event, Progress) and event.phase != "scans" and event.total:
            self.bar.setRange(0, event.total)
            self.bar.setValue(event.index)
            left = event.remaining_s
            tell(self.words, f"{duration_text(left)} left" if left > 0 else "Working")
        elif isinstance(event, Note) and event.level == "warning":
            self._hub.say(event.text, "warning")

    def _predicted(
        self, layer: Any, model: ModelChoice, result: Mapping[str, Any]
    ) -> None:
        if not result.get("predicted"):
            failed = result.get("failed") or [{"reason": "nothing came out"}]
            done = "classified" if model.classifies else "segmented"
            self._ended(f"⚠ Not {done}: {reason_text(failed[0]['reason'])}")
            return
        if model.classifies:
            self._ended(f"✓ {layer.name} was classified: see below.")
            self.classified.emit(layer, result["predicted"][0])
            return
        tell(self.words, "Reading the result...")
        in_background(
            result_layer, Path(result["predicted"][0]["labels"]), model.label_names,
            f"{layer.name} {model.name}", layer, owner=self,
            done=lambda made: self._show_result(layer, made),
            failed=lambda error: self._ended(f"⚠ {error}"),
        )  # fmt: skip

    def _show_result(self, scan: Any, made: LayerData) -> None:
        layers = self._hub.viewer.layers
        before = self._active()
        added = add_to(self._hub.viewer, made)[0]
        added.opacity = 0.5
        if before is not None and before in layers:
            layers.selection.active = before
        self._ended(f"✓ {added.name} was added; its classes are listed below.")
        self.segmented.emit(added)

    def _ended(self, words: str) -> None:
        if self._helper is not None:
            self._helper.deleteLater()
        self._helper, self._starting = None, False
        self._show_work(False)
        self._refresh()
        tell(self.words, words)
        self.changed.emit()

    def _show_work(self, works: bool) -> None:
        self.bar.setVisible(works)
        self.cancel.setVisible(works)
        self.cancel.setEnabled(works)
        self.start.setEnabled(not works)


def _scan_and_folder(layer: Any, scratch: Path) -> tuple[Path, Path]:
    """The layer as a file, and a fresh folder for the result."""
    return scan_file(layer, scratch), Path(
        tempfile.mkdtemp(prefix="segment-", dir=scratch)
    )
