"""Carry the labels of one open scan to others: choose, wait, correct."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QVBoxLayout, QWidget

from homolog.events import Event, Progress
from homolog.gui.files.opening import add_to, look_at
from homolog.gui.files.writer import save_layer
from homolog.gui.label import layers as own
from homolog.gui.label.labelling import Labelling
from homolog.gui.segment.control import result_layer
from homolog.gui.shared import preferences, widgets
from homolog.gui.shared.layers import (
    LayerData,
    derived_attributes,
    label_names,
    labels_on,
    scan_file,
    shape_of,
    volume_layer,
)
from homolog.gui.shared.scan_layers import selection_kept
from homolog.gui.shared.threads import in_background
from homolog.scans.files import read_labels, read_scan
from homolog.scans.names import names_beside, write_names
from homolog.scans.paths import scan_stem
from homolog.scans.volume import mapped_labels
from homolog.scans.write import write_labels
from homolog.tasks.few_voxels.reach import NAME
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
    known = label_names(wanted.labels)
    unknown = {v: 0 for v, name in known.items() if name == NAME}
    if unknown and own.is_predicted(wanted.labels):  # nobody knows what it is
        write_labels(mapped_labels(read_labels(written), unknown), Path(written))
        write_names(Path(written), {v: n for v, n in known.items() if v not in unknown})
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
    on = [(layer, key) for key in scans for layer in labels_on(scans[key], layers)]
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
    """What was carried to one scan, as layers to add.

    Attributes:
        scan: Its layer.
        labels: Of the scan.
        doubt: How unsure they are.
        confidence: Of all of them, 0..1.
        middle: A voxel in the fullest slices of the labels.
    """

    scan: Any
    labels: LayerData
    doubt: LayerData
    confidence: float
    middle: tuple[int, ...]


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
        sure, middle = float(row["confidence"]), _fullest(labels[0])
        found.append(Brought(scan, labels, doubt, sure, middle))
    return found


def _fullest(labels: Any) -> tuple[int, ...]:
    """The slice along each axis that has most labelled voxels."""
    there = np.asarray(labels) > 0
    every = range(there.ndim)
    return tuple(
        int(there.sum(axis=tuple(a for a in every if a != axis)).argmax())
        for axis in every
    )


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
_AFTER = "To correct: Use selected layer."


class CarryBox(widgets.HelperBox):
    """Which labels, to which scans, and the progress.

    Args:
        labelling: Whose scans and encoder they are.
    """

    def __init__(self, labelling: Labelling) -> None:
        super().__init__("carrying", "Stop; nothing is added")
        self._labelling, self._hub = labelling, labelling.hub
        self.source = widgets.Choice()
        self.target = widgets.Choice()
        self.start = widgets.button(
            "Carry these labels", "Find the labelled places in the other scans; "
            "nothing is trained. With a model under Features its features are "
            "compared too. How unsure the labels are comes as a hidden layer",
            self.carry,
        )  # fmt: skip
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

    def open(self) -> None:
        """Somebody came for this: unfold it, or say what is missing."""
        self.refresh()
        if self.isHidden():
            self._hub.say(
                "Labels can be carried once two scans are open and one has labels: "
                "paint some, or open a label file beside its scan."
            )
            return
        self.fold.expand(animate=False)
        widgets.bring_into_view(self)

    def carry(self) -> None:
        """Write what is needed and start the worker."""
        wanted = self.wanted
        if wanted is None or self.busy:
            return
        hub, encoder = self._hub, self._labelling.encoder
        device = str(preferences.get("compute", "device", "auto"))
        scan_of: dict[str, Any] = {}

        def gather() -> dict[str, Any]:
            path = None if encoder is None else encoder.path
            config = carry_config(wanted, path, hub.features, device, hub.scratch)
            scan_of.update(zip(config["scans"], wanted.others, strict=True))
            return config

        self.launch(
            "propagate", gather, partial(self._add, scan_of),
            "Writing scans and labels ...",
        )  # fmt: skip

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
        column.addLayout(self.working())
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
        self.enable()

    def enable(self) -> None:
        """What can be chosen and started now."""
        busy = self.busy
        missing = bool(self._hub.engine_missing())
        self.start.setEnabled(not busy and not missing and self.wanted is not None)
        self.source.setEnabled(not busy)
        self.target.setEnabled(not busy)

    def take(self, event: Event) -> None:
        """What is done with which scan; the bar counts scans."""
        if not isinstance(event, Progress) or event.total <= 0:
            return
        if event.phase == "scans":
            super().take(event)
        doing = _DOING.get(event.phase, event.phase)
        item = f" of {event.item}" if event.item else ""
        widgets.tell(self.words, f"{doing}{item} ...")

    def _add(self, scan_of: Mapping[str, Any], result: dict[str, Any]) -> None:
        """Show what was carried; the layer of each scan's file is known."""
        failed = [f"⚠ {f['scan']}: {f['reason']}" for f in result["failed"]]
        if result.get("stopped"):
            failed = ["Stopped.", *failed]
        in_background(
            brought, result["cases"], scan_of, owner=self,
            done=lambda found: self._show(found, failed),
            failed=lambda error: self.fail(str(error)),
        )  # fmt: skip

    def _show(self, found: Sequence[Brought], failed: Sequence[str]) -> None:
        viewer, told = self._hub.viewer, list(failed)
        first: tuple[Brought, Any] | None = None
        with selection_kept(viewer):
            for one in found:
                if one.scan in viewer.layers:  # it may have been closed meanwhile
                    add_to(viewer, one.doubt)
                    labels = add_to(viewer, one.labels)[0]
                    labels.opacity = 0.5
                    first = first or (one, labels)
        if first is not None:
            self._look(*first)
        if found:
            sure = [f"{b.scan.name} ({b.confidence:.0%} sure)" for b in found]
            words = "Labels were carried to" if len(found) == 1 else "Correct first"
            told.insert(0, f"✓ {words}: {listed(sure, most=4)}. {_AFTER}")
        self.end(" ".join(told) or "Nothing was carried.")

    def _look(self, one: Brought, labels: Any) -> None:
        """To the least sure labels: that is what somebody waits for."""
        viewer = self._hub.viewer
        one.scan.visible = True
        look_at(viewer, one.scan)  # what lies elsewhere is hidden
        place = [float(v) for v in labels.data_to_world(one.middle)]
        viewer.dims.set_point(range(viewer.dims.ndim - len(place), viewer.dims.ndim),
                              place)  # fmt: skip
        labels.visible = True
        viewer.layers.selection.active = labels
