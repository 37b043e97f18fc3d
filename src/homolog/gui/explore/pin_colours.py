"""Up to three pins at once: a similarity map each, a colour each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QObject, Signal

from homolog.gui.explore.contrast import Labelled, contrast_line
from homolog.gui.explore.explorer import Explorer
from homolog.gui.shared.feature_slices import Map, Pin
from homolog.gui.shared.layers import (
    grid_attributes,
    label_names,
    labels_on,
)
from homolog.gui.shared.scan_layers import selection_kept
from homolog.gui.shared.scans import Latest, Scan
from homolog.gui.shared.threads import in_background
from homolog.words import listed

MOST = 3


def coloured(
    wholes: Sequence[Map], colours: Sequence[str], low: float, high: float
) -> NDArray[np.uint8]:
    """Similarity maps (d, h, w) as light of one colour each, added: (d, h, w, 3).

    Args:
        wholes: Of one scan, in -1..1.
        colours: ``#rrggbb`` of each.
        low: Where light begins; it is full at 1.
        high: Above it is none.
    """
    total = np.zeros((*wholes[0].shape, 3), np.float32)
    for whole, colour in zip(wholes, colours, strict=True):
        light = np.clip((whole - low) / max(1.0 - low, 1e-3), 0, 1)
        light[whole > high] = 0
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        total += light[..., None] * np.array(rgb, np.float32)
    return np.clip(np.rint(total), 0, 255).astype(np.uint8)


class PinColours(QObject):
    """One colour layer a scan, in napari's viewer and beside it.

    Signals:
        told: Which pins are shown, or why none is.
        drawn: Other colours; a scan's key.

    Args:
        explorer: Whose pins they are.
    """

    told = Signal(str)
    drawn = Signal(str)

    def __init__(self, explorer: Explorer) -> None:
        super().__init__(explorer)
        self._explorer = explorer
        self.on = False
        self.rgb: dict[str, NDArray[np.uint8]] = {}
        self._layers: dict[str, tuple[Any, Any, Any]] = {}
        self._latest = Latest()
        explorer.pins_changed.connect(self.refresh)
        explorer.scans_changed.connect(self.refresh)
        explorer.range_changed.connect(self.refresh)

    def set_on(self, on: bool) -> None:
        """Pins as colours, or the one similarity map."""
        self.on = on
        self._explorer.layers.show_all_heat(not on)
        if on:
            self.refresh()
            return
        self._latest.next()
        for key in list(self._layers):
            self._drop(key)
        self.rgb.clear()
        self.drawn.emit("")
        self._explorer.drawing.draw()
        self.told.emit("")

    def shown(self) -> list[Pin]:
        """The first ticked pins that this encoder knows, three at most."""
        control = self._explorer.control
        ticked = [p for p in control.pins if p.visible]
        return [p for p in ticked if control.query_of_pin(p) is not None][:MOST]

    def refresh(self) -> None:
        """Pins, answers or the lit range are others."""
        if not self.on:
            return
        control, pins = self._explorer.control, self.shown()
        self._tell(pins)
        outdated = self._latest.next()
        for key in [k for k in self._layers if k not in control.scans or not pins]:
            self._drop(key)
        for pin in pins:
            if any(_whole(pin, scan) is None for scan, _ in control.ready()):
                self._explorer.drawing.answer_pin(pin)
        for scan, _ in control.ready():
            wholes = [_whole(pin, scan) for pin in pins]
            there = [(w, p.colour) for w, p in zip(wholes, pins, strict=True)
                     if w is not None]  # fmt: skip
            if there:
                self._draw(scan, there, outdated)

    def end(self) -> None:
        """The panel goes."""
        self.on = False
        self._latest.next()
        for key in list(self._layers):
            self._drop(key)

    def _draw(self, scan: Scan, there: list[tuple[Map, str]], outdated: Any) -> None:
        control = self._explorer.control

        def done(rgb: NDArray[np.uint8]) -> None:
            if not outdated() and scan.key in control.scans:
                self._show(scan, rgb)

        in_background(
            coloured, [w for w, _ in there], [c for _, c in there], control.low,
            control.high, owner=self, done=done,
            failed=lambda error: self.told.emit(f"⚠ {error}"),
        )  # fmt: skip

    def _show(self, scan: Scan, rgb: NDArray[np.uint8]) -> None:
        self.rgb[scan.key] = rgb
        known = self._layers.get(scan.key)
        if known is not None and known[0] in self._explorer.viewer.layers:
            known[0].data = rgb
        else:
            self._add(scan, rgb)
        self.drawn.emit(scan.key)

    def _add(self, scan: Scan, rgb: NDArray[np.uint8]) -> None:
        source, ready = self._explorer.layer_of(scan.key), scan.ready
        if source is None or ready is None:
            return
        viewer = self._explorer.viewer
        with selection_kept(viewer):
            layer = viewer.add_image(
                rgb, **colour_attributes(source, ready.features.affine),
                visible=source.visible,
            )  # fmt: skip
            viewer.layers.move(
                viewer.layers.index(layer), viewer.layers.index(source) + 1
            )

        def follow() -> None:
            layer.visible = source.visible

        source.events.visible.connect(follow)
        self._layers[scan.key] = (layer, source, follow)

    def _drop(self, key: str) -> None:
        layer, source, follow = self._layers.pop(key)
        self.rgb.pop(key, None)
        source.events.visible.disconnect(follow)
        viewer = self._explorer.viewer
        if layer in viewer.layers:
            with selection_kept(viewer):
                viewer.layers.remove(layer)
        self.drawn.emit(key)

    def _tell(self, pins: Sequence[Pin]) -> None:
        if not pins:
            self.told.emit("No pin to colour by: Shift+click on a scan pins a place.")
            return
        ticked = [p for p in self._explorer.control.pins if p.visible]
        more = len(ticked) - len(pins)
        hint = f" {MOST} at a time: untick one to see another." if more > 0 else ""
        names = listed([p.name for p in pins])
        self.told.emit(f"A colour each: {names}; where two are alike, both add.{hint}")


def colour_attributes(source: Any, affine: Any) -> dict[str, Any]:
    """How the colours of a scan are shown, in any viewer."""
    attributes = grid_attributes(source, affine)
    attributes["name"] = f"{source.name} pins"
    return {
        **attributes, "rgb": True, "blending": "additive", "opacity": 0.7,
        "interpolation2d": "linear",
    }  # fmt: skip


def _whole(pin: Pin, scan: Scan) -> Map | None:
    answer = pin.answers.get(scan.key)
    return None if answer is None else answer.whole


# The organ under the chosen pin, told from the rest: a sentence, made on a thread.


class Contrast(QObject):
    """Asks anew when another pin is chosen or answered.

    Signals:
        told: The sentence; empty where no labels lie on the pinned scan.

    Args:
        explorer: Whose pins they are.
    """

    told = Signal(str)

    def __init__(self, explorer: Explorer) -> None:
        super().__init__(explorer)
        self._explorer = explorer
        self._latest = Latest()
        self._asked: Any = None
        explorer.pins_changed.connect(self.refresh)

    def refresh(self) -> None:
        """Of the chosen pin."""
        control = self._explorer.control
        pin = control.pins.current
        found = [] if pin is None else self._labelled(pin)
        asked = [(pin.number, one.scan.key, id(one.whole), id(one.labels))
                 for one in found] if pin is not None else []  # fmt: skip
        if asked == self._asked:
            return
        self._asked = asked
        outdated = self._latest.next()
        if pin is None or not found or found[0].scan.key != pin.scan_key:
            self.told.emit("")
            return

        def done(line: str) -> None:
            if not outdated():
                self.told.emit(line)

        in_background(
            contrast_line, found[0], found[1:], pin.mm, owner=self, done=done,
            failed=lambda error: self.told.emit(f"⚠ {error}"),
        )  # fmt: skip

    def _labelled(self, pin: Pin) -> list[Labelled]:
        """Scans with labels and an answer, that with the pin first."""
        explorer = self._explorer
        ready = explorer.control.ready()
        found = []
        for scan, state in sorted(ready, key=lambda one: one[0].key != pin.scan_key):
            layer, whole = explorer.layer_of(scan.key), _whole(pin, scan)
            on = [] if layer is None else labels_on(layer, explorer.viewer.layers)
            if whole is not None and on and layer is not None:
                found.append(
                    Labelled(
                        scan, state, whole, np.asarray(layer.data), on[-1].data,
                        label_names(on[-1]),
                    )
                )  # fmt: skip
        return found
