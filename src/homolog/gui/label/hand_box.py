"""Save the model, or teach a whole network: buttons, progress, cancel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QLineEdit, QProgressBar, QVBoxLayout, QWidget

from homolog.events import Event, Progress
from homolog.gui import preferences, rows
from homolog.gui.data.store_building import free_name
from homolog.gui.label.handing_on import Pair, model_config, model_name, store_config
from homolog.gui.label.session import LabelSession
from homolog.gui.threads import Helper, in_background

_DOING = {"few_voxels": "Saving the model", "prepare": "Preparing the store"}


class HandBox(QWidget):
    """What a finished labelling becomes.

    Args:
        session: Whose paint and predictions they are.
    """

    def __init__(self, session: LabelSession) -> None:
        super().__init__()
        self._session, self._hub = session, session.hub
        self.helper: Helper | None = None
        self._starting = False
        self._model = ""
        self.name = QLineEdit()
        self.save = rows.button(
            "Save model", "Save what was learnt from your paint as a model that the "
            "tab Segment and homolog predict use", self.save_model,
        )  # fmt: skip
        self.use = rows.button(
            "Segment with it", "Go to Segment with the saved model",
            self._to_segment,
        )  # fmt: skip
        self.use.hide()
        self.tune = rows.button(
            "Fine-tune the whole model...",
            "Prepare the ticked scans with their predictions, your paint kept, as a "
            "store and open Fine-tune on it; correct the predictions first",
            self.fine_tune,
        )  # fmt: skip
        self.bar = rows.named(QProgressBar(), "Progress of saving", "Done so far")
        self.bar.hide()
        self.stop = rows.button("Cancel", "Stop; nothing half-made stays", self.cancel)
        self.stop.hide()
        self.words = rows.sentence("What became of it", lines=3)
        rows.keep_room(self.bar, self.stop, self.use)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(
            rows.labelled("Model name", self.name, "Folder name of the saved model")
        )
        for part in (self.save, self.tune):
            column.addWidget(part)
        working = rows.beside(self.bar, self.stop)
        working.setStretch(1, 0)
        column.addLayout(working)
        for part in (self.words, self.use):
            column.addWidget(part)
        session.trainer.changed.connect(self.refresh)
        session.scans_changed.connect(self.refresh)
        self.refresh()

    def refresh(self) -> None:
        """Propose a name; enable what can be done."""
        taking = self._session.taking_part()
        if taking and not self.name.text():
            stem = f"painted_{taking[0][0].ref.name}"[:40]
            self.name.setText(free_name(self._hub.models, stem))
        missing = bool(self._hub.engine_missing())
        busy = self.helper is not None or self._starting
        able = not busy and not missing and self._session.trainer.last is not None
        self.save.setEnabled(able)
        self.tune.setEnabled(able and not self._session.trainer.busy)
        self.name.setEnabled(not busy)

    def save_model(self) -> None:
        """Learn once more in a worker, score, and write the model."""
        trouble = model_name(self.name.text(), self._hub.models)
        if trouble:
            rows.tell(self.words, f"⚠ {trouble}")
            return
        session, hub = self._session, self._hub
        out = hub.models / self.name.text().strip()
        encoder = session.encoder
        pairs, classes = self._pairs("painted"), list(session.classes)
        config = session.trainer.config
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

    def cancel(self) -> None:
        """Ask the worker to stop."""
        if self.helper is not None:
            self.stop.setEnabled(False)
            rows.tell(self.words, "Stopping ...")
            self.helper.stop()

    def _pairs(self, which: str) -> list[Pair]:
        desks = [desk for _, desk in self._session.taking_part()]
        found = [(desk.layer, getattr(desk, which)) for desk in desks]
        return [Pair(scan, labels) for scan, labels in found if labels is not None]

    def _begin(
        self,
        kind: str,
        gather: Callable[[], dict[str, Any]],
        done: Callable[[dict[str, Any]], None],
    ) -> None:
        self._starting = True
        self.use.hide()
        rows.tell(self.words, "Writing scans and labels ...")
        self.refresh()

        def launch(config: dict[str, Any]) -> None:
            helper = Helper(kind, config, self)
            helper.news.connect(lambda event: self._take(kind, event))
            helper.done.connect(lambda result: self._done(result, done))
            helper.failed.connect(lambda text: self._end(f"⚠ {text}"))
            helper.stopped.connect(lambda: self._end("Stopped."))
            self.helper, self._starting = helper, False
            self.bar.setRange(0, 0)
            self.bar.show()
            self.stop.setEnabled(True)
            self.stop.show()
            rows.tell(self.words, f"{_DOING[kind]} ...")
            helper.start()

        in_background(
            gather, owner=self, done=launch, failed=lambda e: self._end(f"⚠ {e}")
        )

    def _take(self, kind: str, event: Event) -> None:
        if isinstance(event, Progress) and event.total > 0:
            self.bar.setRange(0, event.total)
            self.bar.setValue(event.index)
            rows.tell(self.words, f"{_DOING[kind]}: {event.phase} ...")

    def _done(
        self, result: dict[str, Any], done: Callable[[dict[str, Any]], None]
    ) -> None:
        self._end("")
        if result.get("stopped"):
            rows.tell(self.words, "Stopped.")
        else:
            done(result)

    def _saved(self, result: dict[str, Any]) -> None:
        self._model = str(result["model"])
        rows.tell(
            self.words,
            f"✓ Saved as {Path(self._model).name} in Models. Segment uses it at once.",
        )
        self.use.show()
        self.name.setText("")
        self._hub.changed.emit("models")
        self.refresh()
        rows.bring_into_view(self.use)

    def _prepared(self, result: dict[str, Any]) -> None:
        if not result.get("labelled"):
            reasons = [str(r["reason"]) for r in result.get("rejected", ())]
            why = reasons[0] if reasons else "no label map fits its scan."
            rows.tell(self.words, f"⚠ No scan could be prepared: {why}")
            return
        store, encoder = str(result["store"]), self._session.encoder
        rows.tell(self.words, f"✓ The store {Path(store).name} is ready.")
        self._hub.changed.emit("stores")
        what = {"store": store}
        if encoder is not None:
            what["encoder"] = str(encoder.path)
        self._hub.go.emit("Fine-tune", what)

    def _to_segment(self) -> None:
        """Segment works on the selected layer: that is the scan, not its paint."""
        desk = self._session.desks.get(self._session.front())
        if desk is not None:
            self._hub.viewer.layers.selection.active = desk.layer
        self._hub.go.emit("Segment", {"model": self._model})

    def _end(self, words: str) -> None:
        if self.helper is not None:
            # Later: it still stands on the stack when it calls.
            QTimer.singleShot(0, self.helper.deleteLater)
        self.helper, self._starting = None, False
        self.bar.hide()
        self.stop.hide()
        rows.tell(self.words, words)
        self.refresh()
