"""The Label tab at work: which scans are open, and what is painted on them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from qtpy.QtCore import QObject, Signal

from homolog.gui.autosave.saver import autosave_of
from homolog.gui.label import layers as own
from homolog.gui.label.learning import (
    ClassList,
    Counted,
    History,
    Labels,
    Packed,
    Side,
    next_place,
    recipe_of,
)
from homolog.gui.label.training import Trainer
from homolog.gui.label.words import next_line
from homolog.gui.shared.choices import ModelChoice
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.layers import true_affine
from homolog.gui.shared.model_row import FeatureWork
from homolog.gui.shared.scan_layers import (
    ExploreLayers,
    Mark,
    Travel,
    mark_size,
    point_of,
    shown_of,
    slice_axis,
    slice_steps,
)
from homolog.gui.shared.scans import ExploreControl, Scan, open_scans
from homolog.gui.shared.threads import in_background, soon
from homolog.scans.volume import Volume
from homolog.words import listed

# The viewer as a round of learning sees it: scans to learn from, the slice shown.


@dataclass
class Desk:
    """What lies on one scan.

    Attributes:
        layer: The scan's.
        painted: Layer of the paint; None until it is made.
        predicted: Layer of the prediction; None until there is one.
        takes_part: Whether the model learns from it and predicts it.
        voxels: Painted ones.
        side: Free of layers, for threads; None where it must be made anew.
    """

    layer: Any
    painted: Any | None = None
    predicted: Any | None = None
    takes_part: bool = True
    voxels: int = 0
    side: Side | None = None


class LabelScene:
    """What the trainer asks (see ``training.Scene``), and shows.

    Args:
        viewer: napari's.
        book: Scans, their features and the encoder.
        desks: Scan key -> what lies on it; looked at when needed.
        classes: Of the paint.
    """

    def __init__(
        self,
        viewer: Any,
        book: ExploreControl,
        desks: Mapping[str, Desk],
        classes: ClassList,
    ) -> None:
        self._viewer, self._book = viewer, book
        self._desks, self._classes = desks, classes

    def taking_part(self) -> list[tuple[Scan, Desk]]:
        """Scans with a paint layer that are ticked."""
        return [
            (self._book.scans[key], desk)
            for key, desk in self._desks.items()
            if desk.takes_part and desk.painted is not None
        ]

    def front(self) -> str:
        """Key of the scan that is worked on.

        That of the selected layer, else the topmost visible one that takes part.
        """
        active = self._viewer.layers.selection.active
        for key, desk in self._desks.items():
            layers = (desk.painted, desk.layer, desk.predicted)
            if active is not None and active in layers:
                return key
        order = [k for k, d in self._desks.items() if d.layer.visible and d.takes_part]
        return order[-1] if order else next(iter(self._desks), "")

    def sides(self) -> list[Side]:
        """Those whose features are there, with a layer to show the prediction."""
        found = [self.side(scan.key) for scan, _ in self.taking_part()]
        return [side for side in found if side is not None]

    def side(self, key: str) -> Side | None:
        """A scan for threads; None where paint or features are missing."""
        desk, scan, encoder = (
            self._desks[key],
            self._book.scans[key],
            self._book.encoder,
        )
        if desk.painted is None or (encoder is not None and scan.ready is None):
            return None
        if desk.predicted is None:
            desk.predicted = own.add_predicted(self._viewer, desk.layer, desk.painted)
            own.show_classes(desk.predicted, list(self._classes))
        arrays = (desk.painted.data, desk.predicted.data)
        side = desk.side
        if side is None or side.paint is not arrays[0] or side.shown is not arrays[1]:
            volume = Volume(
                np.asarray(desk.layer.data)[None], true_affine(desk.layer),
                scan.ref.name, scan.ref.modality,
            )  # fmt: skip
            ready = scan.ready if encoder is not None else None
            features = None if ready is None else ready.features
            desk.side = Side(key, volume, features, recipe_of(encoder), *arrays)
        return desk.side

    def in_front(self) -> tuple[str, int, int] | None:
        """Scan, axis and number of the displayed slice; None in 3D."""
        axis, key = slice_axis(self._viewer), self.front()
        if axis is None or key not in self._desks:
            return None
        layer = self._desks[key].layer
        place = self._book.scans[key].grid.inverse().apply(point_of(self._viewer))
        index = int(np.clip(np.rint(place[axis]), 0, layer.data.shape[axis] - 1))
        return key, axis, index

    def show_slice(self, key: str, axis: int, index: int, labels: Labels) -> None:
        """Draw one slice of a prediction."""
        desk = self._desks.get(key)
        if desk is None or desk.predicted is None:
            return
        cut: list[Any] = [slice(None)] * 3
        cut[axis] = index
        desk.predicted.data[tuple(cut)] = labels
        own.redraw(desk.predicted)

    def redraw(self) -> None:
        """Show the predictions' arrays as they are now."""
        for desk in self._desks.values():
            if desk.predicted is not None:
                own.redraw(desk.predicted)


_SEEN_MS = 40


class Labelling(QObject):
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
            # Another layer: not before the click is seen to be done.
            soon(self, lambda: self._get_ready(key), _SEEN_MS)
        self.scans_changed.emit()

    def _get_ready(self, key: str) -> None:
        """A scan's values are read before the first stroke ends."""
        side = None if self._ended or key not in self.desks else self.scene.side(key)
        if side is not None:
            in_background(side.open, owner=self, failed=lambda _: None)

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
        from homolog.gui.shared.layers import label_names

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
            soon(self, self._sync_soon)

    def _sync_soon(self) -> None:
        self._due = False
        self.sync()

    def _sliced(self, event: Any = None) -> None:
        self.trainer.sliced()


# Predictions undone, compared with the one before, and where to paint next.


NEXT = "Paint here next"
_COLOUR = "#f0e442"


class Places(QObject):
    """What can be done with a prediction.

    Signals:
        changed: Something can be undone, or no longer; another round is shown.
        told: A sentence about what was done.

    Args:
        labelling: Whose predictions they are.
    """

    changed = Signal()
    told = Signal(str)

    def __init__(self, labelling: Labelling) -> None:
        super().__init__(labelling)
        self._labelling = labelling
        self.history = History()
        self.is_before = False
        self._marks = ExploreLayers(labelling.viewer, lambda *_: None)
        labelling.trainer.predicted.connect(self._predicted)
        labelling.trainer.changed.connect(self._worked)

    def undo(self) -> None:
        """Back to the prediction before; the paint stays."""
        if self._labelling.trainer.busy:
            self.told.emit("Wait for the running prediction, then undo.")
            return
        found = self.history.undo()
        if found:
            self.is_before = False
            self._show(found, "The prediction before is back; your paint is unchanged.")

    def show_before(self, on: bool) -> None:
        """Look at the prediction before, or at the newest again."""
        if on == self.is_before or self._labelling.trainer.busy:
            return
        found = self.history.before() if on else self.history.now()
        if found:
            self.is_before = on
            words = "You see the prediction before the last one." if on else ""
            self._show(found, words)

    def next(self) -> None:
        """Go where one more stroke helps most, and mark it."""
        labelling = self._labelling
        fitted = labelling.trainer.last
        if fitted is None or labelling.trainer.busy:
            self.told.emit("There is no finished prediction yet; paint two classes.")
            return

        def done(found: Any) -> None:
            if found is None:
                self.told.emit(
                    "No place in the body is uncertain and away from your paint."
                )
            else:
                self._go(*found)

        in_background(
            next_place, fitted, labelling.front(), owner=self, done=done,
            failed=lambda error: self.told.emit(f"⚠ {error}"),
        )  # fmt: skip

    def unmark(self) -> None:
        """Hide the mark; taking its layer away costs napari a third of a second."""
        for layer in self._labelling.viewer.layers:
            if layer.name == NEXT and layer.visible:
                layer.visible = False

    def end(self) -> None:
        """The panel goes."""
        self._marks.close()

    def _go(self, key: str, click: Any) -> None:
        labelling = self._labelling
        scan, desk = labelling.book.scans.get(key), labelling.desks.get(key)
        if scan is None or desk is None:
            return
        shown = shown_of(scan.to_true, click.mm)
        text = "unknown" if click.unknown else listed(click.likely, "or") + "?"
        scans = list(labelling.book.scans.values())
        size, steps = mark_size(scans), slice_steps(scans)
        self._marks.show_marks(NEXT, [Mark(shown, text, "ring", _COLOUR)], size, steps)
        for layer in labelling.viewer.layers:
            if layer.name == NEXT:
                layer.visible = True
        labelling.travel.look_at(key, click.mm)
        if desk.painted is not None:
            labelling.viewer.layers.selection.active = desk.painted
        line = next_line(
            click.likely, click.uncertainty, scan.ref.name, unknown=click.unknown
        )
        self.told.emit(line)

    def _predicted(self, found: Mapping[str, Packed]) -> None:
        self.history.push(found)
        self.is_before = False
        self._labelling.redraw()
        self.changed.emit()

    def _worked(self) -> None:
        if self._labelling.trainer.state == "fitting":
            self.unmark()
        self.changed.emit()

    def _show(self, found: Mapping[str, Packed], words: str) -> None:
        targets: list[tuple[Packed, Labels]] = []
        for key, packed in found.items():
            desk = self._labelling.desks.get(key)
            if desk is not None and desk.predicted is not None:
                targets.append((packed, np.asarray(desk.predicted.data)))

        def done(_: object) -> None:
            self._labelling.redraw()
            self.told.emit(words)
            self.changed.emit()

        in_background(
            _unpack, targets, owner=self, done=done,
            failed=lambda error: self.told.emit(f"⚠ {error}"),
        )  # fmt: skip


def _unpack(targets: list[tuple[Packed, Labels]]) -> None:
    for packed, target in targets:
        packed.into(target)
