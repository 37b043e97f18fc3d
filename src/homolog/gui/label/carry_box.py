"""Carry the labels of one open scan to others: choose, wait, correct."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QComboBox, QProgressBar, QVBoxLayout, QWidget

from homolog.events import Event, Progress
from homolog.gui.files.opening import add_to
from homolog.gui.files.writer import save_layer
from homolog.gui.label import layers as own
from homolog.gui.label.labelling import Labelling
from homolog.gui.segment.control import result_layer
from homolog.gui.shared import preferences, widgets
from homolog.gui.shared.layers import (
    LayerData,
    derived_attributes,
    scan_file,
    shape_of,
    volume_layer,
)
from homolog.gui.shared.scan_layers import selection_kept
from homolog.gui.shared.threads import Helper, in_background
from homolog.scans.files import read_scan, scan_stem
from homolog.scans.names import names_beside
from homolog.words import listed
from homolog.writing import make_folder

# From layers to a worker's job, and from its files to layers. No Qt.
#
# The functions run on threads.


@dataclass(frozen=True)
class Wanted:
    """What is to be carried: a labels layer on a scan's layer, to other scans."""

    scan: Any
    labels: Any
    others: tuple[Any, ...]


def carry_config(
    wanted: Wanted, encoder: Path | None, features: Path, device: str, scratch: Path
) -> dict[str, Any]:
    """The config of a ``propagate`` job; layers are written to files where needed."""
    place = scratch / "carried"
    shutil.rmtree(place, ignore_errors=True)
    make_folder(place)
    scan = scan_file(wanted.scan, scratch)
    labels = place / f"{scan_stem(scan)}_labels.nii.gz"
    written = save_layer(wanted.labels, labels, [wanted.scan])[0]
    return {
        "scans": [str(scan_file(other, scratch)) for other in wanted.others],
        "sources": [str(scan)],
        "labels": [str(written)],
        "encoder": None if encoder is None else str(encoder),
        "features": str(features),
        "out": str(place / "results"),
        "device": device,
    }


def label_entries(
    scans: Mapping[str, Any], layers: Sequence[Any]
) -> list[tuple[str, tuple[str, Any]]]:
    """Labels layers and the scan each belongs to: text, (scan key, layer).

    Scans of one grid are told apart by name; where that says nothing, all are offered.
    """
    on = [(layer, key) for key in scans for layer in own.labels_on(scans[key], layers)]
    entries = []
    for layer in layers:
        keys = [key for other, key in on if other is layer]
        named = [k for k in keys if str(layer.name).startswith(str(scans[k].name))]
        if named:
            keys = [max(named, key=lambda k: len(str(scans[k].name)))]
        for key in keys:
            text = layer.name if len(keys) == 1 else f"{layer.name} ({scans[key].name})"
            entries.append((text, (key, layer)))
    return entries


@dataclass(frozen=True)
class Brought:
    """What was carried to one scan, as layers to add."""

    scan: Any
    labels: LayerData
    doubt: LayerData
    confidence: float


def brought(
    rows: Sequence[Mapping[str, Any]], scan_of: Mapping[str, Any]
) -> list[Brought]:
    """Labels and uncertainty of each row of the job's table, least sure first.

    Args:
        rows: Of the result of ``propagate``.
        scan_of: Scan file -> its layer.
    """
    found = []
    for row in rows:
        scan, path = scan_of[row["scan"]], Path(row["result"])
        labels = result_layer(path, names_beside(path), f"{scan.name} carried", scan)
        doubt = _doubt_layer(Path(row["uncertainty"]), scan)
        found.append(Brought(scan, labels, doubt, float(row["confidence"])))
    return found


def _doubt_layer(path: Path, scan: Any) -> LayerData:
    """The uncertainty of carried labels, on the grid of the scan's layer."""
    name = f"{scan.name} uncertainty"
    data, attributes, kind = volume_layer(read_scan(path))
    if tuple(data.shape) == shape_of(scan):
        attributes = derived_attributes(scan, name)
        data = data.reshape(scan.data.shape)
    look = {
        "name": name, "colormap": "magma", "contrast_limits": (0.0, 1.0),
        "blending": "additive", "opacity": 0.6, "visible": False,
    }  # fmt: skip
    return data, {**attributes, **look}, kind


_DOING = {
    "scans": "Carrying labels", "embedding": "Computing features",
    "matching": "Comparing the scans", "voting": "Drawing the labels",
}  # fmt: skip
_AFTER = "To correct: select the layer, then Use selected layer."


class CarryBox(QWidget):
    """Which labels, to which scans, and the progress.

    Args:
        labelling: Whose scans and encoder they are.
    """

    def __init__(self, labelling: Labelling) -> None:
        super().__init__()
        self._labelling, self._hub = labelling, labelling.hub
        self.helper: Helper | None = None
        self._starting = False
        self._scan_of: dict[str, Any] = {}
        self.source = widgets.narrow(QComboBox())
        self.target = widgets.narrow(QComboBox())
        self.start = widgets.button(
            "Carry these labels", "Find the labelled places in the other scans; "
            "nothing is trained. With a model under Features its features are "
            "compared too. How unsure the labels are comes as a hidden layer",
            self.carry,
        )  # fmt: skip
        self.bar = widgets.named(QProgressBar(), "Progress of carrying", "Done so far")
        self.stop = widgets.button("Cancel", "Stop; nothing is added", self.cancel)
        self.bar.hide()
        self.stop.hide()
        self.words = widgets.sentence("What was carried", lines=3)
        widgets.keep_room(self.bar, self.stop)
        self._lay_out()
        self.source.activated.connect(lambda _: self._fill_targets())
        self._later = QTimer(self)  # many layers may come at once
        self._later.setSingleShot(True)
        self._later.timeout.connect(self.refresh)
        events = labelling.viewer.layers.events
        for emitter in (events.inserted, events.removed):
            emitter.connect(self._heard)
        labelling.scans_changed.connect(self.refresh)
        self.refresh()

    def refresh(self) -> None:
        """The labels and scans that are there; shown where there are two scans."""
        desks = self._labelling.desks
        chosen = self.source.currentData()
        scans = {key: desk.layer for key, desk in desks.items()}
        entries = label_entries(scans, list(self._hub.viewer.layers))
        widgets.fill(self.source, entries, chosen)
        self._fill_targets()
        self.setVisible(len(desks) > 1 and bool(entries))

    def carry(self) -> None:
        """Write what is needed and start the worker."""
        wanted = self.wanted
        if wanted is None or self.helper is not None or self._starting:
            return
        hub, encoder = self._hub, self._labelling.encoder
        device = str(preferences.get("compute", "device", "auto"))
        self._starting = True
        widgets.tell(self.words, "Writing scans and labels ...")
        self._enable()

        def gather() -> dict[str, Any]:
            path = None if encoder is None else encoder.path
            return carry_config(wanted, path, hub.features, device, hub.scratch)

        in_background(
            gather, owner=self, done=partial(self._launch, wanted),
            failed=lambda error: self._end(f"⚠ {error}"),
        )  # fmt: skip

    def cancel(self) -> None:
        """Ask the worker to stop."""
        if self.helper is not None:
            self.stop.setEnabled(False)
            widgets.tell(self.words, "Stopping ...")
            self.helper.stop()

    @property
    def wanted(self) -> Wanted | None:
        """What is chosen; None where something is missing."""
        desks, chosen = self._labelling.desks, self.source.currentData()
        if chosen is None or chosen[0] not in desks:
            return None
        key, layer = chosen
        target = self.target.currentData()
        others = [k for k in desks if k != key and target in (None, k)]
        if not others:
            return None
        layers = tuple(desks[k].layer for k in others)
        return Wanted(desks[key].layer, layer, layers)

    def _lay_out(self) -> None:
        inside = QWidget()
        column = QVBoxLayout(inside)
        column.setContentsMargins(0, 0, 0, 0)
        hint = "Labels of an open scan: your paint, a prediction, or a file"
        column.addLayout(widgets.labelled("Labels", self.source, hint))
        hint = "Scans that get them, each as a new layer to correct"
        column.addLayout(widgets.labelled("To", self.target, hint))
        column.addWidget(self.start)
        working = widgets.beside(self.bar, self.stop)
        working.setStretch(1, 0)
        column.addLayout(working)
        column.addWidget(self.words)
        self.fold = widgets.fold_of("Carry these labels to...")
        self.fold.addWidget(inside)
        whole = QVBoxLayout(self)
        whole.setContentsMargins(0, 0, 0, 0)
        whole.addWidget(self.fold)

    def _heard(self, event: Any = None) -> None:
        with contextlib.suppress(RuntimeError):  # the panel is gone already
            self._later.start(0)

    def _fill_targets(self) -> None:
        desks, chosen = self._labelling.desks, self.source.currentData()
        own_key = None if chosen is None else chosen[0]
        rest = [(d.layer.name, k) for k, d in desks.items() if k != own_key]
        every = [("All other open scans", None)] if len(rest) > 1 else []
        widgets.fill(self.target, [*every, *rest], self.target.currentData())
        self._enable()

    def _enable(self) -> None:
        busy = self.helper is not None or self._starting
        missing = bool(self._hub.engine_missing())
        self.start.setEnabled(not busy and not missing and self.wanted is not None)
        self.source.setEnabled(not busy)
        self.target.setEnabled(not busy)

    def _launch(self, wanted: Wanted, config: dict[str, Any]) -> None:
        self._scan_of = dict(zip(config["scans"], wanted.others, strict=True))
        helper = Helper("propagate", config, self)
        helper.news.connect(self._take)
        helper.done.connect(self._done)
        helper.failed.connect(lambda text: self._end(f"⚠ {text}"))
        helper.stopped.connect(lambda: self._end("Stopped."))
        self.helper, self._starting = helper, False
        self.bar.setRange(0, 0)
        self.bar.show()
        self.stop.setEnabled(True)
        self.stop.show()
        widgets.tell(self.words, "Starting the worker ...")
        helper.start()

    def _take(self, event: Event) -> None:
        if not isinstance(event, Progress) or event.total <= 0:
            return
        if event.phase == "scans":
            self.bar.setRange(0, event.total)
            self.bar.setValue(event.index)
        doing = _DOING.get(event.phase, event.phase)
        item = f" of {event.item}" if event.item else ""
        widgets.tell(self.words, f"{doing}{item} ...")

    def _done(self, result: dict[str, Any]) -> None:
        failed = [f"⚠ {f['scan']}: {f['reason']}" for f in result["failed"]]
        if result.get("stopped"):
            failed = ["Stopped.", *failed]
        in_background(
            brought, result["cases"], self._scan_of, owner=self,
            done=lambda found: self._show(found, failed),
            failed=lambda error: self._end(f"⚠ {error}"),
        )  # fmt: skip

    def _show(self, found: Sequence[Brought], failed: Sequence[str]) -> None:
        viewer, told = self._hub.viewer, list(failed)
        with selection_kept(viewer):
            for one in found:
                if one.scan in viewer.layers:  # it may have been closed meanwhile
                    add_to(viewer, one.doubt)
                    add_to(viewer, one.labels)[0].opacity = 0.5
        if found:
            sure = [f"{b.scan.name} ({b.confidence:.0%} sure)" for b in found]
            first = "Labels were carried to" if len(found) == 1 else "Correct first"
            told.insert(0, f"✓ {first}: {listed(sure, most=4)}. {_AFTER}")
        self._end(" ".join(told) or "Nothing was carried.")

    def _end(self, words: str) -> None:
        if self.helper is not None:
            # Later: it still stands on the stack when it calls.
            QTimer.singleShot(0, self.helper.deleteLater)
        self.helper, self._starting = None, False
        self.bar.hide()
        self.stop.hide()
        widgets.tell(self.words, words)
        self._enable()
