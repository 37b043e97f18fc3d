"""Which points stand for the pins in the viewer; no Qt, no napari."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from homolog.geometry.affine import Triple
from homolog.gui.explore.control import ExploreControl
from homolog.gui.explore.layers import Mark, shown_of
from homolog.gui.explore.pins import Pin
from homolog.gui.explore.scan import Scan


def pin_marks(control: ExploreControl, visible: Collection[str]) -> list[Mark]:
    """The pinned places in scans that are shown.

    Args:
        control: Knows the pins.
        visible: Keys of the scans that are shown.
    """
    marks = []
    for pin in control.pins:
        scan = control.scans.get(pin.scan_key)
        if scan is not None and pin.visible and pin.scan_key in visible:
            place = shown_of(scan.to_true, pin.mm)
            marks.append(Mark(place, _text(pin), pin.symbol, pin.colour))
    return marks


def match_marks(control: ExploreControl, visible: Collection[str]) -> list[Mark]:
    """Where pins were found in other scans that are shown."""
    marks = []
    for pin in control.pins:
        for key, answer in pin.answers.items():
            scan = control.scans.get(key)
            if scan is None or key == pin.scan_key or not pin.visible:
                continue
            if key in visible:
                text = f"{_text(pin)} ({answer.similarity:.2f})"
                place = shown_of(scan.to_true, answer.mm)
                marks.append(Mark(place, text, pin.symbol, pin.colour))
    return marks


def mark_size(scans: Collection[Scan]) -> float:
    """Diameter of points in mm: a thirtieth of the smallest scan's largest side."""
    sides = [float((np.array(s.ref.shape) * s.grid.spacing_mm).max()) for s in scans]
    return min(max(min(sides, default=300.0) / 30, 1.0), 12.0)


def slice_steps(scans: Collection[Scan]) -> Triple:
    """The finest distance of slices (z, y, x) of all scans, mm."""
    if not scans:
        return (1.0, 1.0, 1.0)
    z, y, x = np.min([scan.grid.spacing_mm for scan in scans], axis=0)
    return float(z), float(y), float(x)


def _text(pin: Pin) -> str:
    """Number and name; the name a pin is born with holds the number already."""
    plain = pin.name == f"place {pin.number}"
    return str(pin.number) if plain else f"{pin.number} {pin.name}"
