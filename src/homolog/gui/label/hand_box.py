"""Save the model, or teach a whole network: buttons, progress, cancel."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from qtpy.QtWidgets import QLineEdit, QVBoxLayout

from homolog.errors import UnusableInput
from homolog.events import Event, Progress
from homolog.gui.data.build_box import build_config, free_name
from homolog.gui.files.writer import save_layer
from homolog.gui.label.labelling import Labelling
from homolog.gui.shared import preferences, widgets
from homolog.gui.shared.layers import label_names, scan_file
from homolog.label_names import IGNORE
from homolog.scans.names import write_names
from homolog.scans.paths import scan_stem
from homolog.tasks.few_voxels.config import FewConfig
from homolog.tasks.few_voxels.reach import NAME
from homolog.tasks.few_voxels.scan import FewClass
from homolog.writing import make_folder

# From paint and predictions to files: a model saved, a store prepared. No Qt.
#
# The functions run on threads; what they return is the configuration of a worker's job.


@dataclass(frozen=True)
class Pair:
    """A scan's layer and a labels layer on it."""

    scan: Any
    labels: Any


def model_config(
    pairs: Sequence[Pair],
    classes: Sequence[FewClass],
    config: FewConfig,
    *,
    encoder: Path | None,
    out: Path,
    features: Path,
    device: str,
    scratch: Path,
) -> dict[str, Any]:
    """The config of a ``few_voxels`` job; scans and paint are written where needed.

    Args:
        pairs: Scans with their painted layers; empty ones are left out.
        classes: Of the paint.
        config: As the head was fitted.
        encoder: Run or model folder; None: intensities alone.
        out: The new model's folder.
        features: Where feature maps are kept.
        device: Where an encoder runs.
        scratch: A folder of this window.

    Raises:
        UnusableInput: Nothing is painted.
    """
    used = [p for p in pairs if np.asarray(p.labels.data).any()]
    if not used:
        raise UnusableInput("Paint some voxels first; there is nothing to save.")
    place = _fresh(scratch / "painted")
    scans = [scan_file(p.scan, scratch) for p in used]
    labels = [
        save_layer(p.labels, place / f"{i}_{scan_stem(s)}.nii.gz", [p.scan])[0]
        for i, (p, s) in enumerate(zip(used, scans, strict=True))
    ]
    there = set().union(*(np.unique(np.asarray(p.labels.data)) for p in used))
    ground = next((c.value for c in classes if c.background), None)
    return {
        "scans": [str(p) for p in scans],
        "labels": [str(p) for p in labels],
        "encoder": None if encoder is None else str(encoder),
        "out": str(out),
        "features": str(features),
        "names": {str(c.value): c.name for c in classes},
        "colours": {str(c.value): c.colour for c in classes},
        "background": ground if ground in there else None,
        "device": device,
        "head": config.head,
        "position": config.position,
        "body_only": config.body_only,
        "unknown": config.unknown,
    }


def store_config(pairs: Sequence[Pair], stores: Path, scratch: Path) -> dict[str, Any]:
    """The config of a ``prepare`` job over scans and their predictions.

    Args:
        pairs: Scans with their predicted layers; empty ones are left out.
        stores: Folder of the stores.
        scratch: A folder of this window.

    Raises:
        UnusableInput: No prediction holds anything.
    """
    used = [p for p in pairs if np.asarray(p.labels.data).any()]
    if not used:
        raise UnusableInput("There is no prediction yet; paint two classes first.")
    folder = _fresh(scratch / "labels-to-learn")
    scans = [scan_file(p.scan, scratch) for p in used]
    stems = [scan_stem(s) for s in scans]
    if len(set(stems)) < len(stems):
        raise UnusableInput(
            f"Scans of one store need different file names, got {', '.join(stems)}."
        )
    for pair, scan in zip(used, scans, strict=True):
        target = folder / f"{scan_stem(scan)}.nii.gz"
        save_layer(pair.labels, target, [pair.scan])
        # what is unknown teaches nothing
        names = label_names(pair.labels)
        write_names(target, {v: IGNORE if n == NAME else n for v, n in names.items()})
    name = free_name(stores, f"labelled_{scan_stem(scans[0])}"[:60])
    return build_config(scans, stores, name, labels=str(folder))


def model_name(text: str, models: Path) -> str:
    """Why a model cannot have that name; empty when it can."""
    name = text.strip()
    if not re.fullmatch(r"[\w][\w .+-]*", name):
        return "Give the model a name of letters, digits, spaces, - and _ only."
    if (models / name).exists():
        return f"There is a model {name!r} already; choose another name."
    return ""


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder)
    return folder


_DOING = {"few_voxels": "Saving the model", "prepare": "Preparing the store"}


class HandBox(widgets.HelperBox):
    """What a finished labelling becomes.

    Args:
        labelling: Whose paint and predictions they are.
    """

    def __init__(self, labelling: Labelling) -> None:
        super().__init__("saving", "Stop; nothing half-made stays")
        self._labelling, self._hub = labelling, labelling.hub
        self._model = self._doing = ""
        self.name = QLineEdit()
        self.save = widgets.button(
            "Save model", "Save what was learnt from your paint as a model that the "
            "tab Segment and homolog predict use", self.save_model,
        )  # fmt: skip
        self.use = widgets.button(
            "Segment with it", "Go to Segment with the saved model",
            self._to_segment,
        )  # fmt: skip
        self.use.hide()
        self.tune = widgets.button(
            "Fine-tune the whole model...",
            "Prepare the ticked scans with their predictions, your paint kept, as a "
            "store and open Fine-tune on it; correct the predictions first",
            self.fine_tune,
        )  # fmt: skip
        widgets.keep_room(self.use)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(
            widgets.labelled("Model name", self.name, "Folder name of the saved model")
        )
        for part in (self.save, self.tune):
            column.addWidget(part)
        column.addLayout(self.working())
        for part in (self.words, self.use):
            column.addWidget(part)
        labelling.trainer.changed.connect(self.enable)
        labelling.scans_changed.connect(self.enable)
        self.enable()

    def enable(self) -> None:
        """Propose a name; enable what can be done."""
        taking = self._labelling.taking_part()
        if taking and not self.name.text():
            stem = f"painted_{taking[0][0].ref.name}"[:40]
            self.name.setText(free_name(self._hub.models, stem))
        missing = bool(self._hub.engine_missing())
        busy = self.busy
        able = not busy and not missing and self._labelling.trainer.last is not None
        self.save.setEnabled(able)
        self.tune.setEnabled(able and not self._labelling.trainer.busy)
        self.name.setEnabled(not busy)

    def save_model(self) -> None:
        """Learn once more in a worker, score, and write the model."""
        trouble = model_name(self.name.text(), self._hub.models)
        if trouble:
            widgets.tell(self.words, f"⚠ {trouble}")
            return
        labelling, hub = self._labelling, self._hub
        out = hub.models / self.name.text().strip()
        encoder = labelling.encoder
        pairs, classes = self._pairs("painted"), list(labelling.classes)
        config = labelling.trainer.config
        device = str(preferences.get("compute", "device", "auto"))

        def gather() -> dict[str, Any]:
            return model_config(
                pairs, classes, config,
                encoder=None if encoder is None else encoder.path, out=out,
                features=hub.features, device=device, scratch=hub.scratch,
            )  # fmt: skip

        self._begin("few_voxels", gather, self._saved)

    def fine_tune(self) -> None:
        """Prepare a store and open the Fine-tune form on it."""
        pairs, hub = self._pairs("predicted"), self._hub

        def gather() -> dict[str, Any]:
            return store_config(pairs, hub.stores, hub.scratch)

        self._begin("prepare", gather, self._prepared)

    def _pairs(self, which: str) -> list[Pair]:
        desks = [desk for _, desk in self._labelling.taking_part()]
        found = [(desk.layer, getattr(desk, which)) for desk in desks]
        return [Pair(scan, labels) for scan, labels in found if labels is not None]

    def _begin(
        self,
        kind: str,
        gather: Callable[[], dict[str, Any]],
        done: Callable[[dict[str, Any]], None],
    ) -> None:
        def finished(result: dict[str, Any]) -> None:
            self.halt() if result.get("stopped") else done(result)

        self.use.hide()
        self._doing = _DOING[kind]
        self.launch(kind, gather, finished, "Writing scans and labels ...")
        widgets.bring_into_view(self.use, asked=True)  # it has its room there

    def take(self, event: Event) -> None:
        """A sentence beside the bar."""
        super().take(event)
        if isinstance(event, Progress) and event.total > 0:
            widgets.tell(self.words, f"{self._doing}: {event.phase} ...")

    def _saved(self, result: dict[str, Any]) -> None:
        self._model = str(result["model"])
        self.name.setText("")
        name = Path(self._model).name
        self.end(f"✓ Saved as {name} in Models. Segment uses it at once.")
        self.use.show()
        self._hub.changed.emit("models")

    def _prepared(self, result: dict[str, Any]) -> None:
        if not result.get("labelled"):
            reasons = [str(r["reason"]) for r in result.get("rejected", ())]
            why = reasons[0] if reasons else "no label map fits its scan."
            self.fail(f"No scan could be prepared: {why}")
            return
        store, encoder = str(result["store"]), self._labelling.encoder
        self.end(f"✓ The store {Path(store).name} is ready.")
        self._hub.changed.emit("stores")
        what = {"store": store}
        if encoder is not None:
            what["encoder"] = str(encoder.path)
        self._hub.go.emit("Fine-tune", what)

    def _to_segment(self) -> None:
        """Segment works on the selected layer: that is the scan, not its paint."""
        desk = self._labelling.desks.get(self._labelling.front())
        if desk is not None:
            self._hub.viewer.layers.selection.active = desk.layer
        self._hub.go.emit("Segment", {"model": self._model})
