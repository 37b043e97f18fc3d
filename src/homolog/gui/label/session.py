"""The Label tab at work: which scans are open, and what is painted on them."""

from __future__ import annotations

import contextlib
from typing import Any

from qtpy.QtCore import QObject, QTimer, Signal

from homolog.gui.autosave.saver import autosave_of
from homolog.gui.explore.control import ExploreControl
from homolog.gui.explore.features import FeatureWork
from homolog.gui.explore.scan import Scan, open_scans
from homolog.gui.explore.travel import Travel
from homolog.gui.hub import Hub
from homolog.gui.label import layers as own
from homolog.gui.label.classes import ClassList
from homolog.gui.label.learning import Counted
from homolog.gui.label.scene import Desk, LabelScene
from homolog.gui.label.training import Trainer
from homolog.gui.learn.model_choice import ModelChoice
from homolog.gui.threads import in_background


class LabelSession(QObject):
    """All that happens between the panel and the viewer.

    Signals:
        scans_changed: Scans or paint layers came or went, or the encoder is another.
        scan_changed: One scan's features or count; its key.
        classes_changed: The table of classes is another.
    """

    scans_changed = Signal()
    scan_changed = Signal(str)
    classes_changed = Signal()

    def __init__(self, hub: Hub, parent: QObject) -> None:
        super().__init__(parent)
        self.hub, self.viewer = hub, hub.viewer
        self.book = ExploreControl(engine_missing=tuple(hub.engine_missing()))
        self.classes = ClassList()
        self.desks: dict[str, Desk] = {}
        self._layers: dict[str, Any] = {}
        self.travel = Travel(hub, self.book, self._layers)
        self.work = FeatureWork(hub, self.book, self)
        self.work.changed.connect(self.scan_changed)
        self.work.ready.connect(self._features_ready)
        self.scene = LabelScene(self.viewer, self.book, self.desks, self.classes)
        self.trainer = Trainer(self.scene, self.classes, self)
        self.trainer.counted.connect(self._counted)
        self._ended = self._due = self._colouring = False
        events = self.viewer.layers.events
        for emitter in (events.inserted, events.removed):
            emitter.connect(self._layers_changed)
        self.viewer.dims.events.point.connect(self._sliced)
        autosave_of(hub).kept_at_close = self._painted

    @property
    def encoder(self) -> ModelChoice | None:
        """Whose features are used; None: intensities alone."""
        return self.book.encoder

    def choose_encoder(self, encoder: ModelChoice | None) -> None:
        """Learn from other features; the paint stays, the prediction is made anew."""
        if not self.book.choose_encoder(encoder):
            return
        self.work.cancel_all()
        for key, desk in self.desks.items():
            desk.side = None
            self.work.look(key, desk.layer)
        self.scans_changed.emit()
        self.begin_again()

    def sync(self) -> None:
        """Look at the layers anew."""
        if self._ended:
            return
        layers, scans = open_scans(self.viewer.layers)
        new, gone = self.book.set_scans(scans)
        self._layers.clear()
        self._layers.update(layers)
        for key in gone:
            self.work.forget(key)
            self._leave(self.desks.pop(key, None))
        for scan in new:
            self.work.forget(scan.key)
            self._leave(self.desks.pop(scan.key, None))
            self.desks[scan.key] = Desk(layers[scan.key])
            self.work.look(scan.key, layers[scan.key])
        found = [self._look_at(desk) for desk in self.desks.values()]
        if new or gone or any(found):
            self.scans_changed.emit()

    def look_again(self) -> None:
        """Features may have been computed elsewhere."""
        for key, scan in self.book.scans.items():
            if scan.state in ("none", "failed"):
                scan.state = "looking"
                self.work.look(key, self.desks[key].layer)
        self.scans_changed.emit()

    def make_layer(self, key: str) -> None:
        """An empty layer to paint a scan on, or the one that is there."""
        desk = self.desks.get(key)
        if desk is None:
            return
        if desk.painted is None:
            own.add_painted(self.viewer, desk.layer)
            self.sync()
        if desk.painted is not None:
            own.ready_brush(self.viewer, desk.painted)
            desk.painted.selected_label = self.classes.current
            self.trainer.warm()
            side = self.scene.side(key)
            if side is not None:  # its values are read before the first stroke ends
                in_background(side.open, owner=self, failed=lambda _: None)
        self.scans_changed.emit()

    def use_layer(self, key: str, layer: Any) -> None:
        """Paint on a layer that is there already; its values become classes."""
        own.take(layer)
        self.sync()
        self.make_layer(key)
        self.trainer.now()

    def set_part(self, key: str, takes_part: bool) -> None:
        """Learn from a scan and predict it, or leave it alone."""
        self.desks[key].takes_part = takes_part
        self.begin_again()

    def choose_class(self, value: int) -> None:
        """Paint with another class."""
        if self.classes.get(value) is None:
            return
        self.classes.current = value
        for desk in self.desks.values():
            if desk.painted is not None and desk.painted.selected_label != value:
                desk.painted.selected_label = value
        self.classes_changed.emit()

    def recolour(self) -> None:
        """Names, colours or the background are others."""
        self._colouring = True  # napari tells of its selected label meanwhile
        for desk in self.desks.values():
            for layer in (desk.painted, desk.predicted):
                if layer is not None:
                    own.show_classes(layer, list(self.classes))
        self._colouring = False
        self.choose_class(self.classes.current)

    def front(self) -> str:
        """Key of the scan that is worked on; see ``LabelScene``."""
        return self.scene.front()

    def taking_part(self) -> list[tuple[Scan, Desk]]:
        """Scans with a paint layer that are ticked."""
        return self.scene.taking_part()

    def redraw(self) -> None:
        """Show the predictions' arrays as they are now."""
        self.scene.redraw()

    def end(self) -> None:
        """The panel or the window goes; layers stay, nothing listens any more."""
        if self._ended:
            return
        self._ended = True
        self.trainer.end()
        self.work.cancel_all()
        events = self.viewer.layers.events
        for emitter, function in (
            (events.inserted, self._layers_changed),
            (events.removed, self._layers_changed),
            (self.viewer.dims.events.point, self._sliced),
        ):
            with contextlib.suppress(Exception):
                emitter.disconnect(function)
        for desk in self.desks.values():
            self._leave(desk)

    def _painted(self) -> list[Any]:
        return [d.painted for d in self.desks.values() if d.painted is not None]

    def _look_at(self, desk: Desk) -> bool:
        """Whether paint or prediction came or went."""
        there = self.viewer.layers
        before = (desk.painted, desk.predicted)
        if desk.predicted is not None and desk.predicted not in there:
            desk.predicted = desk.side = None
        if desk.painted is None or desk.painted not in there:
            self._unhear(desk.painted)
            desk.painted, desk.side = own.painted_on(desk.layer, there), None
            if desk.painted is not None:
                self._hear(desk.painted)
        return before != (desk.painted, desk.predicted)

    def _hear(self, layer: Any) -> None:
        from homolog.gui.files.writer import label_names

        self.classes.adopt(label_names(layer), own.colours_of(layer))
        own.show_classes(layer, list(self.classes))
        layer.selected_label = self.classes.current
        for emitter, function in self._emitters(layer):
            emitter.connect(function)
        self.classes_changed.emit()

    def _unhear(self, layer: Any) -> None:
        if layer is not None:
            for emitter, function in self._emitters(layer):
                with contextlib.suppress(Exception):
                    emitter.disconnect(function)

    def _emitters(self, layer: Any) -> list[tuple[Any, Any]]:
        events = layer.events
        return [
            (events.paint, self.trainer.touched),
            (events.labels_update, self.trainer.touched),
            (events.data, self.trainer.touched),
            (events.set_data, self.trainer.doubted),
            (events.selected_label, self._selected),
        ]

    def _leave(self, desk: Desk | None) -> None:
        if desk is not None:
            self._unhear(desk.painted)

    def _selected(self, event: Any) -> None:
        """Classes are chosen by napari's own keys and its colour box, too."""
        value = int(event.source.selected_label)
        if self._colouring:
            return
        if value != self.classes.current and self.classes.get(value) is not None:
            self.choose_class(value)

    def _counted(self, found: Counted) -> None:
        for key, desk in self.desks.items():
            desk.voxels = found.of_scan.get(key, desk.voxels)
            self.scan_changed.emit(key)
        known = [set(x.metadata.get("label_names", {})) for x in self._painted()]
        if any(values != set(self.classes.names) for values in known):
            self.recolour()  # values that had no class have one now
        else:
            self.classes_changed.emit()

    def _features_ready(self, key: str) -> None:
        self.desks[key].side = None
        self.scan_changed.emit(key)
        self.begin_again()

    def begin_again(self) -> None:
        """Another question is asked of the same paint."""
        if any(desk.voxels for desk in self.desks.values()):
            self.trainer.touched()

    def _layers_changed(self, event: Any = None) -> None:
        """Once, after napari has finished with its list."""
        if not self._due and not self._ended:
            self._due = True
            QTimer.singleShot(0, self._sync_soon)

    def _sync_soon(self) -> None:
        self._due = False
        self.sync()

    def _sliced(self, event: Any = None) -> None:
        self.trainer.sliced()
