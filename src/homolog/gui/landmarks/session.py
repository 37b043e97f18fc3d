"""The pair at work: encoder, scan A in napari's viewer, scan B in the second one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qtpy.QtCore import QObject, QTimer, Signal
from qtpy.QtWidgets import QWidget

from homolog.gui.explore.control import ExploreControl
from homolog.gui.explore.features import FeatureWork
from homolog.gui.explore.scan import Scan, open_scans
from homolog.gui.explore.travel import Travel
from homolog.gui.files import opening
from homolog.gui.files.layer_scan import layer_scan
from homolog.gui.hub import Hub
from homolog.gui.landmarks.control import LandmarksControl
from homolog.gui.landmarks.going_to_b import GoingToB
from homolog.gui.landmarks.mouse import MouseInB
from homolog.gui.landmarks.placing import Placing
from homolog.gui.landmarks.scan_b import ScanB
from homolog.gui.landmarks.searching import Searching
from homolog.gui.landmarks.second_view import SecondView
from homolog.gui.learn.model_choice import ModelChoice
from homolog.gui.threads import in_background
from homolog.tasks._landmark_rules import LandmarksConfig

_LAID_OUT_MS = 120


class Session(QObject):
    """All that happens between the panel and the two viewers.

    Signals:
        scans_changed: Scans came or went, the pair or the encoder is another.
        scan_changed: One scan's state; its key.
        hint_changed: What to tell the user may be another.
        limits_changed: Landmarks are believed by other limits.
        told: A sentence about what was done.
    """

    scans_changed = Signal()
    scan_changed = Signal(str)
    hint_changed = Signal()
    limits_changed = Signal()
    told = Signal(str)

    def __init__(self, hub: Hub, panel: QWidget) -> None:
        super().__init__(panel)
        self.hub, self.viewer, self._panel = hub, hub.viewer, panel
        book = ExploreControl(engine_missing=tuple(hub.engine_missing()))
        self.control = LandmarksControl(book)
        self.is_ended = False
        self.view: SecondView | None = None
        self.scan_b: ScanB | None = None
        self._mouse_b: MouseInB | None = None
        self._layers: dict[str, Any] = {}
        self._own: list[Any] = []
        # A scan of B alone is none of the main viewer's: nobody travels there.
        self._in_a: dict[str, Any] = {}
        self.travel = Travel(hub, book, self._in_a)
        self.work = FeatureWork(hub, book, self)
        self.work.changed.connect(self._scan_changed)
        self.work.ready.connect(self._scan_ready)
        self.searching = Searching(self.control, self._layers.get, self)
        self.searching.preparing.connect(lambda _: self.hint_changed.emit())
        self.placing = Placing(self)
        self.going = GoingToB(self)

    # Scans and encoders

    def choose_encoder(self, encoder: ModelChoice | None) -> None:
        """Search with another encoder; landmarks found before stay as they are."""
        if not self.control.book.choose_encoder(encoder):
            return
        self.work.cancel_all()
        for key, layer in self._layers.items():
            self.work.look(key, layer)
        self.scans_changed.emit()

    def sync(self) -> None:
        """Look at the layers anew: which scans are open."""
        layers, scans = open_scans([*self.viewer.layers, *self._own])
        book = self.control.book
        new, gone = book.set_scans(scans)
        self._layers.clear()
        self._layers.update(layers)
        own_b = self.control.own_b = {str(layer.unique_id) for layer in self._own}
        self._in_a.clear()
        self._in_a.update({k: v for k, v in layers.items() if k not in own_b})
        for key in [*gone, *(scan.key for scan in new)]:
            self.work.forget(key)
        for scan in new:
            self.work.look(scan.key, layers[scan.key])
        self.searching.sides.keep([s.ready for s in book.scans.values()])
        if self.control.settle() or new or gone:
            self.pair_changed()

    def look_again(self) -> None:
        """Features may have been computed elsewhere."""
        for key, scan in self.control.book.scans.items():
            if scan.state in ("none", "failed"):
                scan.state = "looking"
                self.work.look(key, self._layers[key])
        self.scans_changed.emit()

    def layer_of(self, scan: Scan | None) -> Any | None:
        """The layer of a scan."""
        return None if scan is None else self._layers.get(scan.key)

    def choose_a(self, key: str) -> None:
        """Another scan A; it comes to the front."""
        self.control.a = key
        self.control.settle()
        self.pair_changed()
        self.travel.look_at(key)

    def choose_b(self, key: str) -> None:
        """Another scan B."""
        self.control.b = key
        self.pair_changed()

    def set_limits(self, limits: LandmarksConfig) -> None:
        """Believe or refuse all landmarks by other limits; nothing is searched."""
        self.control.set_limits(limits)
        self.placing.table_edited()
        self.placing.chosen_changed.emit()
        self.limits_changed.emit()

    def swap(self) -> None:
        """A and B change places."""
        if not self.control.swap():
            self.hub.say("Scan B is open in the second view only; open it here first.")
            return
        self.pair_changed()
        self.travel.look_at(self.control.a)

    def open_b(
        self, path: Path, name: str = "", take: Callable[[Any], None] | None = None
    ) -> None:
        """Read a file for the second view alone.

        Args:
            path: The file.
            name: Of its layer; from the file if empty.
            take: Called with the layer; ``take_b`` if None.
        """
        self.told.emit(f"Reading {path.name} ...")

        def done(made: Any) -> None:
            from napari.layers import Layer

            if self.is_ended:
                return
            data, attributes, kind = made
            layer = Layer.create(data, attributes, kind)
            if layer_scan(layer) is None:
                self.told.emit(f"{path.name} is no scan; choose another file.")
                return
            self.told.emit("")
            (take or self.take_b)(layer)

        in_background(
            opening.read_layer, path, name, owner=self, done=done,
            failed=lambda error: self.told.emit(opening.why_not(path, error)),
        )  # fmt: skip

    def take_b(self, layer: Any, instead_of: Any | None = None) -> None:
        """A layer of nobody else's becomes scan B.

        Args:
            layer: The layer.
            instead_of: One that was taken before and is closed now.
        """
        if layer_scan(layer) is None or layer.ndim != 3:
            self.hub.say(f"{layer.name} is no scan in three dimensions.", "warning")
            return
        self._own = [own for own in self._own if own is not instead_of]
        self._own.append(layer)
        self.control.b = str(layer.unique_id)
        self.sync()

    def pair_changed(self) -> None:
        """Show the pair as it is chosen now."""
        control = self.control
        layer = self.layer_of(control.scan_b)
        if self.scan_b is not None and self.view is not None:
            if layer is None:
                self.scan_b.clear()
                self.view.tell("B: no scan yet")
            else:
                self.scan_b.show(layer, self._same_window())
                self.view.tell(f"B: {layer.name}")
        self.placing.pair_changed()
        self.scans_changed.emit()
        self.searching.prepare()

    # The second view

    def open_view(self) -> None:
        """Dock the second viewer, or bring it back."""
        if self.is_ended:
            return
        if self.view is not None and self.view.is_open:
            self.view.show()
            return
        self.view = SecondView(self.viewer, self._panel, self._view_closed)
        self.scan_b = ScanB(self.view.model, self.take_b)
        self._mouse_b = MouseInB(self.view.model, self.placing)
        self.pair_changed()
        self.hint_changed.emit()
        QTimer.singleShot(_LAID_OUT_MS, self._same_scale)

    def _same_scale(self) -> None:
        """A millimetre is as long in A as in B."""
        if self.view is None or self.is_ended:
            return
        model = self.view.model
        model.reset_view()
        self.viewer.scene.camera.zoom = model.scene.camera.zoom
        mark = self.control.table.current
        if mark is None:
            self.travel.look_at(self.control.a)
        self.placing.choose(self.control.table.chosen)

    def close_view(self) -> None:
        """Take the second viewer away; nothing is lost."""
        view, self.view = self.view, None
        scan_b, self.scan_b = self.scan_b, None
        mouse, self._mouse_b = self._mouse_b, None
        if mouse is not None:
            mouse.end()
        if scan_b is not None:
            scan_b.end()
        if view is not None:
            view.close()

    def _view_closed(self) -> None:
        """The user closed its dock."""
        self.close_view()
        self.hint_changed.emit()

    # Layers

    def end(self) -> None:
        """The panel or the window goes: threads, workers and the second viewer end."""
        if self.is_ended:
            return
        self.is_ended = True
        self.work.cancel_all()
        # First: what remains is drawn again while layers are removed from it.
        self.close_view()
        self.placing.end()

    def _same_window(self) -> Any | None:
        """A's layer, where its brightness means the same in B (CT numbers)."""
        a, b = self.control.scan_a, self.control.scan_b
        if a is None or b is None or (a.ref.modality, b.ref.modality) != ("CT", "CT"):
            return None
        return self.layer_of(a)

    def _scan_changed(self, key: str) -> None:
        self.scan_changed.emit(key)
        self.hint_changed.emit()

    def _scan_ready(self, key: str) -> None:
        self._scan_changed(key)
        if key in (self.control.a, self.control.b):
            self.searching.prepare()
