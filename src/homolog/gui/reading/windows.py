"""Window presets: level and width of a CT in HU, percentiles of what has no unit.

Free of Qt. One choice applies to all scans of a kind, in every viewer of the window,
and to those that are opened later.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from homolog.gui.shared.layers import is_kind, itself, notes_of, sample

# Air of a CT lies far below; some headers say CT of what is none.
_BELOW_HU = -50.0
_SAMPLES = 50_000


@dataclass(frozen=True)
class Window:
    """Which values are black and which are white.

    Attributes:
        name: For people.
        low: HU, or a percentile of all voxels.
        high: As ``low``.
        in_hu: Whether the two are HU.
    """

    name: str
    low: float
    high: float
    in_hu: bool = False

    @classmethod
    def hu(cls, name: str, width: float, level: float) -> Window:
        """A window as radiologists name it: width and level in HU."""
        return cls(name, level - width / 2, level + width / 2, in_hu=True)

    @property
    def numbers(self) -> str:
        """``W 400, L 40 HU`` or ``of all voxels``."""
        if not self.in_hu:
            return "of all values"
        return f"W {self.high - self.low:g}, L {(self.low + self.high) / 2:g} HU"

    def limits(self, layer: Any) -> tuple[float, float]:
        """Contrast limits for a layer, in its own values."""
        if self.in_hu:
            return self.low, self.high
        values = sample(layer.data, _SAMPLES)
        values = values[np.isfinite(values)] if values.dtype.kind == "f" else values
        if not values.size:
            return 0.0, 1.0
        low, high = (float(v) for v in np.percentile(values, (self.low, self.high)))
        if high <= low:
            low, high = float(values.min()), float(values.max())
        return (low, high) if high > low else (low, low + 1.0)


_FULL = Window("Full range", 0.0, 100.0)
# Widths and levels in use in radiology; hospitals differ by some ten HU. That of the
# liver is set for the portal venous phase, in which it has 100 HU and more.
CT_WINDOWS = (
    Window.hu("Soft tissue", 400, 40),
    Window.hu("Lung", 1500, -600),
    Window.hu("Bone", 1800, 400),
    Window.hu("Brain", 80, 40),
    Window.hu("Liver", 150, 80),
    Window.hu("Mediastinum", 350, 50),
    _FULL,
)
OTHER_WINDOWS = (
    Window("0.5 to 99.5 %", 0.5, 99.5),
    _FULL,
    Window("1 to 99 %", 1.0, 99.0),
    Window("2 to 98 %", 2.0, 98.0),
    Window("5 to 95 %", 5.0, 95.0),
    Window("10 to 90 %", 10.0, 90.0),
)
HU = "CT"


def kind_of(layer: Any) -> str:
    """``CT`` for values in HU, another modality, "" for what is no scan."""
    if not is_kind(layer, "Image") or getattr(layer, "rgb", False):
        return ""
    if getattr(layer, "multiscale", False):
        return ""
    notes = notes_of(layer)
    if notes.get("derived"):
        return ""
    told = str(notes.get("modality") or "OTHER")
    return "OTHER" if told == HU and not _reaches_air(layer) else told


def windows_for(kind: str) -> tuple[Window, ...]:
    """The presets of a kind, in the order of their keys."""
    return CT_WINDOWS if kind == HU else OTHER_WINDOWS


class Windows:
    """The windows of all scans of some viewers.

    Args:
        viewer: napari's; further ones are added by ``also``.
    """

    def __init__(self, viewer: Any) -> None:
        self._main = viewer
        self._others: weakref.WeakSet[Any] = weakref.WeakSet()
        self._chosen: dict[str, Window] = {}
        self._given: weakref.WeakKeyDictionary[
            Any, tuple[Window, tuple[float, float]]
        ] = weakref.WeakKeyDictionary()

    def also(self, model: Any) -> None:
        """Another viewer whose scans follow; it is held by nothing of ours."""
        self._others.add(model)

    @property
    def kind(self) -> str:
        """The kind of scan that is looked at: active, else topmost shown, else any."""
        active = self._main.layers.selection.active
        if active is not None and (kind := kind_of(active)):
            return kind
        kinds = [(bool(x.visible), kind_of(x)) for x in reversed(self._main.layers)]
        shown = [kind for visible, kind in kinds if kind and visible]
        return next(iter(shown + [kind for _, kind in kinds if kind]), "")

    def current(self) -> Window | None:
        """The preset that scans of the kind looked at are shown with, if it is one."""
        kind = self.kind
        for layer in self._scans(kind):
            now = np.asarray(layer.contrast_limits, np.float64)
            known = [(w, (w.low, w.high)) for w in windows_for(kind) if w.in_hu]
            if (given := self._given.get(itself(layer))) is not None:
                known.append(given)  # percentiles are not counted anew
            near = max(abs(now).max() * 1e-6, 1e-9)
            for window, limits in known:
                if np.allclose(now, limits, rtol=0, atol=near):
                    return window
            return None
        return None

    def show(self, window: Window) -> int:
        """Show all scans of the kind looked at with a window; how many there are."""
        kind = self.kind
        if not kind:
            return 0
        self._chosen[kind] = window
        return sum(self._apply(layer, window) for layer in self._scans(kind))

    def number(self, place: int) -> Window | None:
        """Show the preset with this place (0 is the first); None without a scan."""
        kind = self.kind
        known = windows_for(kind)
        if not kind or place >= len(known):
            return None
        self.show(known[place])
        return known[place]

    def opened(self, layer: Any) -> None:
        """A new scan is shown as its kind was chosen to be shown."""
        window = self._chosen.get(kind_of(layer))
        if window is not None:
            self._apply(layer, window)

    def _scans(self, kind: str) -> Iterator[Any]:
        for viewer in (self._main, *self._others):
            for layer in viewer.layers:
                if kind and kind_of(layer) == kind:
                    yield layer

    def _apply(self, layer: Any, window: Window) -> int:
        low, high = window.limits(layer)
        known_low, known_high = layer.contrast_limits_range
        if low < known_low or high > known_high:
            layer.contrast_limits_range = (min(low, known_low), max(high, known_high))
        if tuple(layer.contrast_limits) != (low, high):
            layer.contrast_limits = (low, high)
        self._given[itself(layer)] = (window, (low, high))
        return 1


def _reaches_air(layer: Any) -> bool:
    notes = notes_of(layer)
    data = itself(layer).data
    key = str(notes.get("sample") or "")
    if key and key in _AIR:
        return _AIR[key]
    found = bool(np.nanmin(sample(data)) < _BELOW_HU)
    if key:
        _AIR[key] = found
        while len(_AIR) > 1000:
            _AIR.pop(next(iter(_AIR)))
    return found


# Fingerprint of a scan's values -> whether they reach that of air.
_AIR: dict[str, bool] = {}
