"""The status line names places as people know them: x, y, z of LPS, in mm.

Free of Qt. napari prints them as arrays are indexed, z first and without names, and of
a tilted scan those of the world it is shown in.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from homolog.geometry.places import place_text
from homolog.gui.shared.layers import shown_to_true

_BRACKET = re.compile(r"\[\s*((?:[-+]?[\d.]+(?:e[-+]?\d+)?[,\s]*){3})\]", re.IGNORECASE)


class StatusLine:
    """Rewrites what napari says of the place under the mouse.

    Args:
        viewer: napari's.
        scan: Tells which scan is looked at; None where none is placed in a body.
    """

    def __init__(self, viewer: Any, scan: Callable[[], Any | None]) -> None:
        self._viewer, self._scan = viewer, scan

    def begin(self) -> None:
        """Follow the status."""
        self._viewer.events.status.connect(self._told)

    def end(self) -> None:
        """Leave it to napari."""
        with contextlib.suppress(Exception):
            self._viewer.events.status.disconnect(self._told)

    def _told(self, event: Any = None) -> None:
        status = self._viewer.status
        text = status.get("coordinates", "") if isinstance(status, dict) else status
        scan = self._scan() if _BRACKET.search(str(text)) else None
        if scan is None:
            return
        new = rewritten(str(text), scan)
        if new != text:
            whole = {**status, "coordinates": new} if isinstance(status, dict) else new
            self._viewer.status = whole


def rewritten(text: str, scan: Any) -> str:
    """``[-5, 20, 30.5]: 7`` as ``x 30.5, y 20.0, z -5.0 mm (LPS): 7``.

    Args:
        text: napari's, with a place of the shown world.
        scan: The layer that is looked at.
    """

    def named(found: re.Match[str]) -> str:
        shown = np.array([float(v) for v in re.split(r"[,\s]+", found[1].strip(", "))])
        return place_text(shown_to_true(scan).apply(shown))

    return _BRACKET.sub(named, text, count=1)
