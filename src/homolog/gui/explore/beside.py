"""Another patient beside the one that is asked: at its match, with its similarity."""

from __future__ import annotations

import contextlib
from typing import Any

from qtpy.QtCore import QObject, Signal
from qtpy.QtWidgets import QCheckBox, QVBoxLayout, QWidget

from homolog.geometry.affine import Triple
from homolog.gui.beside.scan_b import ScanB
from homolog.gui.beside.second_view import SecondView
from homolog.gui.explore.explorer import Explorer
from homolog.gui.explore.pin_colours import PinColours, colour_attributes
from homolog.gui.shared import widgets
from homolog.gui.shared.feature_slices import Answer
from homolog.gui.shared.layers import grid_attributes
from homolog.gui.shared.scan_layers import (
    mark_size,
    match_marks,
    pin_marks,
    shown_of,
)
from homolog.gui.shared.scans import Scan
from homolog.gui.shared.threads import soon

FOUND_IN_B = "Found in B"


class Beside(QObject):
    """A second viewer with one of the open scans, which is out of sight in napari's.

    It goes to the match of the chosen pin and, where wanted, of what is under the
    mouse. With the first pin it opens by itself, but not under a pointer that is over
    the panel, which may have to give room; once closed, only when asked for.

    Signals:
        changed: Another scan is beside, or none.
        told: Where the match was found, or "".

    Args:
        explorer: Asks and answers.
        colours: Of several pins.
        panel: The view is docked on its left.
    """

    changed = Signal()
    told = Signal(str)

    def __init__(self, explorer: Explorer, colours: PinColours, panel: QWidget) -> None:
        super().__init__(explorer)
        self._explorer, self._colours, self._panel = explorer, colours, panel
        self.key = ""
        self.follow = False
        self.view: SecondView | None = None
        self.scan_b: ScanB | None = None
        self._heat: Any | None = None
        self._rgb: Any | None = None
        self._hidden: Any | None = None
        self._declined = self._ended = False
        self._at: tuple[Any, ...] = ()
        explorer.beside = self
        explorer.pins_changed.connect(self._pinned)
        explorer.pinned_in_view.connect(self._open_with_pin)
        explorer.scans_changed.connect(self._scans_changed)
        explorer.scan_changed.connect(self._scan_changed)
        explorer.drawing.drawn.connect(self.redraw)
        explorer.drawing.found.connect(self._found)
        colours.drawn.connect(self._coloured)

    # What is beside

    def scan(self) -> Scan | None:
        """The scan beside; None where there is none."""
        return self._explorer.control.scans.get(self.key)

    def front(self) -> str:
        """Key of the topmost scan that napari's viewer shows; empty for none."""
        layers = {k: self._explorer.layer_of(k) for k in self._explorer.control.scans}
        order = [
            k
            for k, x in layers.items()
            if k != self.key and x is not None and x.visible
        ]
        return order[-1] if order else ""

    def choose(self, key: str) -> None:
        """Show a scan beside; "" for none."""
        self._declined = not key
        if key == self.key and (self.view is not None) == bool(key):
            return
        if not key:
            self.close()
            self.changed.emit()
            return
        self._reveal()
        self.key = key
        self._open()
        self._show()
        self.changed.emit()

    def goes(self, key: str, mm: Triple | None) -> bool:
        """Whether a scan is the one beside; its place is shown then.

        Args:
            key: Of the scan.
            mm: True mm; None: the user wants it in front, so both change places.
        """
        scan = self.scan()
        if self.view is None or scan is None or key != self.key:
            return False
        if mm is None:
            before = self.front()
            self.choose(before)
            return False
        if self.scan_b is not None:
            self.scan_b.go(shown_of(scan.to_true, mm), mark_size([scan]), scan)
        return True

    # The second view

    def _open(self) -> None:
        if self._ended:
            return
        if self.view is not None and self.view.is_open:
            self.view.show()
            return
        hub = self._explorer.hub
        self.view = SecondView(hub.viewer, self._panel, self._view_closed)
        self.view.sized = self._same_scale
        hub.view_opened.emit(self.view.model)
        self.scan_b = ScanB(self.view.model, self._foreign, FOUND_IN_B)

    def close(self) -> None:
        """Take the second viewer away; its scan comes back to napari's."""
        view, self.view = self.view, None
        scan_b, self.scan_b = self.scan_b, None
        self._heat = self._rgb = None
        self.key, self._at = "", ()
        if scan_b is not None:
            scan_b.end()
        if view is not None:
            self._explorer.hub.view_closed.emit(view.model)
            view.close()
        self._reveal()
        self.told.emit("")

    def step_aside(self) -> None:
        """Another tab is shown: out of sight, nothing is lost."""
        if self.view is not None:
            self.view.hide()

    def come_back(self) -> None:
        """The tab is shown again."""
        if self.view is not None:
            self.view.show()

    def end(self) -> None:
        """The panel or the window goes."""
        if not self._ended:
            self._ended = True
            self.close()

    def _view_closed(self) -> None:
        """The user closed its dock."""
        self._declined = True
        self.close()
        self.changed.emit()

    def _foreign(self, layer: Any) -> None:
        """A file dropped on the second view: it is opened for all."""
        model = None if self.view is None else self.view.model

        def move() -> None:
            if model is not None:
                with contextlib.suppress(ValueError):
                    model.layers.remove(layer)
            self._explorer.viewer.add_layer(layer)

        soon(self, move)  # once napari has finished with its list

    def _show(self) -> None:
        """The scan, its similarity and its points."""
        explorer, scan = self._explorer, self.scan()
        layer = explorer.layer_of(self.key)
        if self.scan_b is None or self.view is None or scan is None or layer is None:
            return
        self._drop()
        if not self.front():  # something must stay to be asked
            other = next((k for k in explorer.control.scans if k != self.key), "")
            if other:
                explorer.travel.look_at(other)
        if layer.visible:
            layer.visible = False
            self._hidden = layer
        self.scan_b.show(layer, self._same_window(scan))
        self.view.tell(f"B: {layer.name}")
        self._add_heat()
        self._coloured(self.key)
        self._at = ()
        self._pinned()
        self.view.fill_anew()

    def _same_window(self, scan: Scan) -> Any | None:
        """The front scan's layer, where its brightness means the same (CT numbers)."""
        front = self._explorer.control.scans.get(self.front())
        if front is None or (front.ref.modality, scan.ref.modality) != ("CT", "CT"):
            return None
        return self._explorer.layer_of(front.key)

    def _same_scale(self) -> None:
        """A millimetre is as long on both sides; each shows what it showed."""
        front = self._explorer.layer_of(self.front())
        own = None if self.scan_b is None else self.scan_b.layer
        if self.view is None or self._ended or front is None or own is None:
            return
        if self.view.fill(front, own):
            self._at = ()
            self._pinned()

    def _reveal(self) -> None:
        """What was hidden for our sake is shown again, where it hides nobody."""
        layer, self._hidden = self._hidden, None
        layers = self._explorer.viewer.layers
        if layer is None or layer not in layers:
            return
        others = [self._explorer.layer_of(k) for k in self._explorer.control.scans]
        seen = [x for x in others if x is not None and x is not layer and x.visible]
        if all(layers.index(layer) < layers.index(x) for x in seen):
            layer.visible = True

    # Similarity beside

    def _add_heat(self) -> None:
        scan, source = self.scan(), self._explorer.layer_of(self.key)
        if self.view is None or scan is None or scan.ready is None or source is None:
            return
        attributes = grid_attributes(source, scan.ready.features.affine)
        attributes["name"] = f"{source.name} similarity"
        self._heat = self.view.model.add_image(
            scan.ready.buffer.data, **attributes, colormap="inferno",
            blending="additive", opacity=0.7, interpolation2d="linear",
            contrast_limits=(min(self._explorer.control.low, 0.999), 1.0),
            visible=not self._colours.on,
        )  # fmt: skip

    def _drop(self) -> None:
        model = None if self.view is None else self.view.model
        for layer in (self._heat, self._rgb):
            if model is not None and layer is not None and layer in model.layers:
                model.layers.remove(layer)
        self._heat = self._rgb = None

    def redraw(self) -> None:
        """Other similarities are shown, or lit."""
        if self._heat is None or not self._heat.visible:
            return
        low = min(self._explorer.control.low, 0.999)
        if tuple(self._heat.contrast_limits) != (low, 1.0):
            self._heat.contrast_limits = (low, 1.0)
        self._heat.refresh(extent=False, thumbnail=False)

    def _coloured(self, key: str) -> None:
        """Pins' colours came, changed or went."""
        if self._heat is not None:
            self._heat.visible = not self._colours.on
        rgb, scan = self._colours.rgb.get(self.key), self.scan()
        if self.view is None or scan is None or scan.ready is None:
            return
        if key not in ("", self.key):
            return
        if self._rgb is not None:
            if rgb is None or not self._colours.on:
                self.view.model.layers.remove(self._rgb)
                self._rgb = None
            else:
                self._rgb.data = rgb
        elif rgb is not None and self._colours.on:
            source = self._explorer.layer_of(self.key)
            attributes = colour_attributes(source, scan.ready.features.affine)
            self._rgb = self.view.model.add_image(rgb, **attributes)
        if self._heat is not None and not self._colours.on:
            self.redraw()

    # Going to the match

    def _pinned(self) -> None:
        """Pins are others: go to the match, draw points."""
        control = self._explorer.control
        pin, scan = control.pins.current, self.scan()
        if self.scan_b is None or scan is None:
            return
        if pin is not None and pin.scan_key == self.key:
            self._at = ()
        marks = [*pin_marks(control, [self.key]), *match_marks(control, [self.key])]
        marks = marks if self._explorer.show_points else []
        self.scan_b.mark(marks, mark_size([scan]), scan.grid.spacing_mm)
        answer = None if pin is None else pin.answers.get(self.key)
        if pin is None or answer is None or pin.scan_key == self.key:
            return
        at = (pin.number, self.key, answer.mm)
        if at != self._at:
            self._at = at
            self.scan_b.go(shown_of(scan.to_true, answer.mm), mark_size([scan]), scan)
            self.told.emit(_words(pin.name, answer))

    def _open_with_pin(self) -> None:
        """The first pin in a scan brings another one, unless that was declined."""
        control = self._explorer.control
        pin = control.pins.current
        if pin is None or self.view is not None or self._declined or self._ended:
            return
        keys = [s.key for s, _ in control.ready() if s.key != pin.scan_key]
        if keys and self._panel.isVisible():
            self.choose(keys[0])

    def _found(self, key: str, answer: Answer) -> None:
        """What is shown was answered; under the mouse, B follows where wanted."""
        query, scan = self._explorer.control.query, self.scan()
        if key != self.key or scan is None or self.scan_b is None:
            return
        if query is None or query.pin is not None or not self.follow:
            return
        self._at = ()
        place = shown_of(scan.to_true, answer.mm)
        self.scan_b.look(place, mark_size([scan]), scan)
        self.told.emit(_words("the mouse", answer))

    def _scans_changed(self) -> None:
        control = self._explorer.control
        if self.key and self.key not in control.scans:
            self.close()
        elif self.view is not None and self._heat is not None:
            scan = self.scan()
            if scan is None or scan.ready is None:
                self._drop()
        self.changed.emit()

    def _scan_changed(self, key: str) -> None:
        scan = self.scan()
        if key == self.key and self._heat is None and scan is not None and scan.ready:
            self._add_heat()


def _words(what: str, answer: Answer) -> str:
    doubt = "." if answer.is_clear else ": ⚠ unsure"
    return (
        f"{answer.scan} is at its match of {what}: similarity {answer.similarity:.2f}, "
        f"margin {answer.margin:.2f}{doubt}"
    )


class BesideBox(QWidget):
    """Which scan is beside, whether it follows, and several pins as colours.

    Args:
        beside: The view.
        colours: Of several pins.
        explorer: Knows the scans.
    """

    def __init__(self, beside: Beside, colours: PinColours, explorer: Explorer) -> None:
        super().__init__()
        self._beside, self._explorer = beside, explorer
        self.choice = widgets.Choice()
        self.follow = QCheckBox("It follows the mouse to the match")
        widgets.named(
            self.follow, "The scan beside follows the mouse",
            "While the mouse rests on a place, or the wheel turns slices under it, the "
            "scan beside goes to where that place was found in it",
        )  # fmt: skip
        self.words = widgets.sentence("Match in the scan beside", lines=2)
        self.choice.activated.connect(
            lambda _: beside.choose(str(self.choice.currentData()))
        )
        self.follow.clicked.connect(self._set_follow)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addLayout(
            widgets.labelled(
                "Beside", self.choice,
                "Another scan in a view of its own, at its match of the pinned place, "
                "with its similarity map; nobody is hidden under another",
            )
        )  # fmt: skip
        column.addWidget(self.follow)
        column.addWidget(self.words)
        beside.changed.connect(self.refresh)
        beside.told.connect(lambda text: widgets.tell(self.words, text))
        self.refresh()

    def refresh(self) -> None:
        """The scans there are; shown where there are two."""
        scans = self._explorer.control.scans
        entries = [("no other scan", ""), *((s.ref.name, k) for k, s in scans.items())]
        widgets.fill(self.choice, entries, self._beside.key)
        self.follow.setEnabled(self._beside.view is not None)
        self.setVisible(len(scans) > 1)

    def _set_follow(self, on: bool) -> None:
        self._beside.follow = on
        if on and not self._explorer.control.hover:
            self._explorer.control.hover = True
            self._explorer.pins_told()
