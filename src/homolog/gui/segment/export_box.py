"""Hand a result on: a report of the case, and a picture of the view."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from qtpy.QtCore import QUrl
from qtpy.QtGui import QDesktopServices
from qtpy.QtWidgets import QVBoxLayout

from homolog.drawing.pictures import png_bytes
from homolog.gui.files.writer import save_layer
from homolog.gui.segment.classes_box import ClassesBox
from homolog.gui.segment.control import MadeBy
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.layers import layer_scan, lie_together, notes_of, scan_file
from homolog.gui.shared.threads import in_background
from homolog.gui.shared.widgets import (
    HelperBox,
    ask_new_file,
    beside,
    bring_into_view,
    button,
    keep_room,
    tell,
)
from homolog.writing import free_name, write_bytes

_NO_SCAN = "The scan that these labels lie on is not open: open it, then try again."
# Pixels of a saved picture for each of the screen's.
_SHARPER = 2


def scan_of(labels: Any, layers: Iterable[Any]) -> Any | None:
    """The open scan that a labels layer lies on: its own, or one of the same grid."""
    scans = [x for x in layers if layer_scan(x) is not None]
    source = notes_of(labels).get("source")
    own = [x for x in scans if source and notes_of(x).get("source") == source]
    return next((x for x in [*own, *scans] if lie_together(x, labels)), None)


def new_path(path: Path, suffix: str) -> Path:
    """The path with its ending, or ``NAME_v2`` where something lies there already."""
    stem = path.stem if path.suffix.lower() == suffix else path.name
    name = free_name(stem, lambda n: path.with_name(f"{n}{suffix}").exists())
    return path.with_name(f"{name}{suffix}")


def report_config(
    scan: Any, labels: Any, layers: list[Any], out: Path, scratch: Path
) -> dict[str, Any]:
    """What the worker gets for a report; layers that are no files are written.

    Args:
        scan: The scan's layer.
        labels: A labels layer on it.
        layers: All of the viewer.
        out: The page.
        scratch: For files.
    """
    folder = Path(tempfile.mkdtemp(prefix="report-", dir=scratch))
    file = scan_file(scan, scratch)
    told = MadeBy.of(labels)
    low, high = (float(v) for v in scan.contrast_limits)
    return {
        "scan": str(file),
        "labels": str(save_layer(labels, folder / "labels.seg.nrrd", layers)[0]),
        "out": str(out),
        "name": str(scan.name),
        "model": told.model if told.model and Path(told.model).exists() else None,
        "warning": list(told.warnings),
        "window": [low, high],
    }


def write_picture(pixels: Any, path: Path) -> Path:
    """Save (height, width, 3 or 4) uint8 as PNG; where it lies now."""
    path = new_path(path, ".png")
    write_bytes(path, png_bytes(np.asarray(pixels)[..., :3]))
    return path


class ExportBox(HelperBox):
    """A report of the case whose classes are listed, and a figure of the view."""

    def __init__(self, hub: Hub, classes: ClassesBox) -> None:
        super().__init__("the report", "Write no report", lines=2)
        self._hub, self._classes = hub, classes
        self.page: Path | None = None
        self.report = button(
            "Report...", "A page on this case: volumes, slices, model and warnings; "
            "it prints to PDF", self.ask_report,
        )  # fmt: skip
        self.figure = button(
            "Figure...", "Save the view as a picture (PNG)", self.ask_figure
        )
        self.open = button("Open", "Open the report in the browser", self.open_page)
        self.open.setAccessibleName("Open the report")
        keep_room(self.open)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(beside(self.report, self.figure, self.open))
        column.addLayout(self.working())
        column.addWidget(self.words)
        classes.chosen.connect(self.enable)
        self.enable()

    def enable(self) -> None:
        """It comes and goes with the table of classes: nothing moves below it."""
        there = self._classes.layer is not None
        self.setVisible(there)
        self.report.setEnabled(there and not self.busy)
        self.open.setVisible(self.page is not None)

    def ask_report(self) -> None:
        """Let the user name the page."""
        labels = self._classes.layer
        if labels is None:
            return
        scan = scan_of(labels, self._hub.viewer.layers)
        if scan is None:
            tell(self.words, f"⚠ {_NO_SCAN}")
            return
        name = f"{str(scan.name).replace(' ', '_')}_report.html"
        ask_new_file(self, "Save a report", name, "Page (*.html)", self.write_report)

    def write_report(self, path: Path) -> None:
        """Write the page in a worker, then open it."""
        layers = list(self._hub.viewer.layers)
        labels = self._classes.layer
        scan = None if labels is None else scan_of(labels, layers)
        if scan is None:
            tell(self.words, f"⚠ {_NO_SCAN}")
            return
        out = new_path(path, ".html")
        self.page = None
        self.launch(
            "case_report",
            partial(report_config, scan, labels, layers, out, self._hub.scratch),
            self._written,
        )
        bring_into_view(self.words, asked=True)

    def ask_figure(self) -> None:
        """Let the user name the picture."""
        layer = self._hub.viewer.layers.selection.active
        name = "view" if layer is None else str(layer.name).replace(" ", "_")
        ask_new_file(
            self, "Save the view", f"{name}.png", "Pictures (*.png)", self.save_figure
        )

    def save_figure(self, path: Path) -> None:
        """Save what the canvas shows, sharper than the screen."""
        camera = self._hub.viewer.camera
        before = camera.zoom
        try:  # a larger canvas alone would show more, not the same sharper
            camera.zoom = before * _SHARPER
            pixels = self._hub.viewer.screenshot(canvas_only=True, scale=_SHARPER)
        finally:
            camera.zoom = before
        tell(self.words, "Saving...")
        bring_into_view(self.words, asked=True)
        in_background(
            write_picture, pixels, path, owner=self,
            done=lambda file: tell(self.words, f"✓ Saved as {file}"),
            failed=lambda error: tell(self.words, f"⚠ Not saved: {error}"),
        )  # fmt: skip

    def open_page(self) -> None:
        """Show the page in the browser."""
        if self.page is not None and not QDesktopServices.openUrl(
            QUrl.fromLocalFile(str(self.page))
        ):
            self._hub.say(f"No browser was found; the page is {self.page}", "warning")

    def _written(self, result: Mapping[str, Any]) -> None:
        self.page = Path(str(result["html"]))
        self.end(f"✓ Saved as {self.page}")
        self.open_page()
