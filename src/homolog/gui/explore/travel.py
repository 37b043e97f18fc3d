"""Going from place to place: slices, camera, and which scan lies in front."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from homolog.geometry.affine import Triple
from homolog.gui.explore.control import ExploreControl
from homolog.gui.explore.layers import go_to, shown_of
from homolog.gui.hub import Hub


class Travel:
    """Shows scans and places of them.

    Args:
        hub: Of the window.
        control: Knows scans and pins.
        layers: Scan key -> its layer; looked at when needed.
    """

    def __init__(
        self, hub: Hub, control: ExploreControl, layers: Mapping[str, Any]
    ) -> None:
        self._hub, self._control, self._layers = hub, control, layers
        self._stop = 0

    def look_at(self, key: str, mm: Triple | None = None) -> None:
        """Bring a scan to the front, and a place of it to the middle of the canvas.

        Args:
            key: Of the scan.
            mm: True mm; None: the middle of the scan.
        """
        scan, layer = self._control.scans.get(key), self._layers.get(key)
        if scan is None or layer is None:
            self._hub.say("This scan is closed; open it again to go there.")
            return
        place = self._hub.viewer.layers.index
        for other, covering in self._layers.items():
            over = other != key and place(covering) > place(layer)
            if over and covering.visible:
                covering.visible = False
        if not layer.visible:  # napari redraws even if it is set to the same
            layer.visible = True
        selection = self._hub.viewer.layers.selection
        if selection.active is None or selection.active in self._layers.values():
            selection.active = layer
        if mm is None:
            shown = scan.grid.apply((np.array(scan.ref.shape) - 1) / 2)
        else:
            shown = shown_of(scan.to_true, mm)
        go_to(self._hub.viewer, shown)

    def go_on(self) -> None:
        """From one place of the chosen pin to the next: matches, then itself."""
        pin = self._control.pins.current
        if pin is None:
            self._hub.say("Pin a place first: Shift+click on a scan.")
            return
        stops = [(pin.scan_key, pin.mm)]
        stops += [(k, a.mm) for k, a in pin.answers.items() if k != pin.scan_key]
        stops = [stop for stop in stops if stop[0] in self._control.scans]
        if stops:
            self._stop = (self._stop + 1) % len(stops)
            self.look_at(*stops[self._stop])
