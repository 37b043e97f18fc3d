"""What the Explore panel knows and decides; no Qt, no napari.

A scan is known by a key. Its features are looked for, computed or ready; where they
are ready, a place of it can be asked what it looks like (a query), and every scan with
features answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from homolog.errors import UnusableInput
from homolog.gui.explore.feature_slices import Cut, cut_of
from homolog.gui.explore.pins import Pin, Pins
from homolog.gui.explore.scan import (
    Query,
    Ready,
    Scan,
    is_same,
    starting_threshold,
)
from homolog.gui.learn.model_choice import ModelChoice
from homolog.tasks._matching import query_at

INSTALL = "The training engine is not installed in this Python."
NO_MODEL = "No model yet. Pretraining needs no labels."
NO_SCAN = "No scan is open. Drop a NIfTI, MHA or NRRD file or a DICOM folder here."
NO_FEATURES = "Features are computed once per scan and kept. Press Compute features."
IN_3D = "Similarity under the mouse needs the 2D view: press Ctrl+Y or the 2D button."
OUTSIDE = "Move the mouse over a scan that has features."
READY = "Move the mouse over the scan. Shift+click or Shift+F pins the place."
COMPUTING = "Features are being computed; you can go on working."
LOOKING = "Looking for features computed before ..."
# All that may be told, the command that installs apart: room is kept for the longest.
HINTS = (NO_MODEL, NO_SCAN, NO_FEATURES, IN_3D, OUTSIDE, READY, COMPUTING, LOOKING)


@dataclass(frozen=True)
class Hint:
    """A sentence instead of silence.

    Attributes:
        text: What to do.
        action: ``pretrain``, ``data``, ``install``, ``compute`` or "" for none.
    """

    text: str
    action: str = ""


@dataclass
class ExploreControl:
    """All state of the panel."""

    encoder: ModelChoice | None = None
    encoders: list[ModelChoice] = field(default_factory=list)
    scans: dict[str, Scan] = field(default_factory=dict)
    pins: Pins = field(default_factory=Pins)
    query: Query | None = None
    hover: bool = True
    low: float = 0.0
    high: float = 1.0
    engine_missing: tuple[str, ...] = ()

    def hint(self, ndisplay: int = 2, over: bool | None = None) -> Hint:
        """What to tell now.

        Args:
            ndisplay: Dimensions on screen.
            over: Whether the cursor is over a scan with features; None: unknown.
        """
        if self.encoder is None:
            if self.engine_missing:
                return Hint(INSTALL, "install")
            return Hint(NO_MODEL, "pretrain")
        if not self.scans:
            return Hint(NO_SCAN, "data")
        states = {scan.state for scan in self.scans.values()}
        if "ready" not in states:
            if states & {"computing", "waiting"}:
                return Hint(COMPUTING)
            if "looking" in states:
                return Hint(LOOKING)
            if self.engine_missing:
                return Hint(INSTALL, "install")
            return Hint(NO_FEATURES, "compute")
        if ndisplay == 3:
            return Hint(IN_3D)
        return Hint(OUTSIDE if over is False else READY)

    def set_scans(self, scans: Iterable[Scan]) -> tuple[list[Scan], list[str]]:
        """The scans that are open now, in the order of the layers.

        Returns:
            Those that are new, and keys of those that are gone. A changed file or place
            makes a scan new.
        """
        order, new = {}, []
        for scan in scans:
            known = self.scans.get(scan.key)
            if known is not None and is_same(known, scan):
                known.ref = scan.ref
                order[scan.key] = known
            else:
                order[scan.key] = scan
                new.append(scan)
        gone = [key for key in self.scans if key not in order]
        self.scans = order
        for key in [*gone, *(scan.key for scan in new)]:
            self.pins.forget_answers(key)
        if self.query is not None and self.query.scan_key in gone:
            if self.query.pin is None:
                self.query = None
        return new, gone

    def choose_encoder(self, encoder: ModelChoice | None) -> bool:
        """Another encoder: nothing is ready any more. Whether it is another one."""
        if _path(encoder) == _path(self.encoder):
            self.encoder = encoder
            return False
        self.encoder = encoder
        self.query = None
        self.pins.forget_answers()
        for scan in self.scans.values():
            scan.state, scan.ready, scan.words = "looking", None, ""
        return True

    def found(self, key: str, ready: Ready | None) -> Scan | None:
        """Features were looked for, or computed. None when the scan is gone."""
        scan = self.scans.get(key)
        if scan is None:
            return None
        if ready is None:
            scan.state = "none" if scan.state == "looking" else scan.state
            return scan
        if scan.ready is not None:
            return scan  # its heat layer shows what was found first
        first = not any(s.state == "ready" for s in self.scans.values())
        scan.state, scan.ready, scan.words = "ready", ready, ""
        if first:
            self.low = round(starting_threshold(ready.usual), 2)
            self.high = 1.0
        if self.encoder is not None:
            self.pins.requery(self._query_of, str(self.encoder.path))
        return scan

    def failed(self, keys: Iterable[str], sentence: str) -> None:
        """Computing ended without features."""
        for key in keys:
            scan = self.scans.get(key)
            if scan is not None and scan.state != "ready":
                scan.state = "failed" if sentence else "none"
                scan.words = sentence

    def ready(self) -> list[tuple[Scan, Ready]]:
        """Scans that answer."""
        return [(s, s.ready) for s in self.scans.values() if s.ready is not None]

    def under(
        self, shown_mm: NDArray[np.float64], order: Sequence[str], active: str | None
    ) -> Scan | None:
        """Which scan a shown position means.

        Args:
            shown_mm: (3,).
            order: Keys of visible scans, topmost first.
            active: Key of the selected scan; it is meant where it has features.
        """
        first = [active] if active in order else []
        for key in [*first, *order]:
            scan = self.scans.get(str(key))
            if scan is not None and scan.ready is not None and scan.holds(shown_mm):
                return scan
        return None

    def ask(self, scan: Scan, shown_mm: NDArray[np.float64]) -> Query | None:
        """The query at a shown position of a scan; None where no cell is."""
        if scan.ready is None:
            return None
        mm = scan.to_true.apply(shown_mm)
        try:
            vector = query_at(scan.ready.features, mm[None])[0]
        except UnusableInput:
            return None
        self.query = Query(vector, scan.key, mm)
        return self.query

    def pin(self, query: Query, name: str = "") -> Pin:
        """Keep a query."""
        scan = self.scans[query.scan_key]
        z, y, x = (float(v) for v in query.mm)
        pin = self.pins.add(
            scan.key, scan.ref.name, (z, y, x), query.vector, _path(self.encoder), name
        )
        self.query = self.query_of_pin(pin)
        return pin

    def query_of_pin(self, pin: Pin | None) -> Query | None:
        """A pin's query, where it belongs to the encoder chosen now."""
        if pin is None or pin.encoder != _path(self.encoder):
            return None
        return Query(pin.query, pin.scan_key, np.array(pin.mm), pin.number)

    def cut(self, scan: Scan, axis: int, place_mm: float) -> Cut | None:
        """Where the displayed slice cuts a scan's cells."""
        if scan.ready is None:
            return None
        return cut_of(scan.ready.shown, scan.ready.shape, axis, place_mm)

    def readout(self, shown_mm: NDArray[np.float64], scan: Scan) -> str:
        """What is told of the place under the cursor, beside the chosen pin.

        Of the place itself nothing is told: it is like itself.
        """
        pin = self.pins.current
        if scan.ready is None or self.query is None:
            return ""
        if self.query.pin is None:
            if self.query_of_pin(pin) is None or pin is None:
                return "lit: what looks like the place under the mouse"
            value: float | None = float(self.query.vector @ pin.query)
        else:
            cell = scan.ready.shown.inverse().apply(shown_mm)
            value = scan.ready.buffer.value_at(cell)
        if value is None or pin is None:
            return ""
        return f"similarity {value:.2f} to '{pin.name}'"

    def _query_of(self, pin: Pin) -> NDArray[np.float32] | None:
        scan = self.scans.get(pin.scan_key)
        if scan is None or scan.ready is None:
            return None
        try:
            vector: NDArray[np.float32] = query_at(
                scan.ready.features, np.array([pin.mm])
            )[0]
        except UnusableInput:
            return None
        return vector


class Latest:
    """The latest request wins: what was asked before knows that it is outdated."""

    def __init__(self) -> None:
        self._count = 0

    def next(self) -> Callable[[], bool]:
        """A new request; the function tells whether a newer one was made."""
        self._count += 1
        mine = self._count
        return lambda: mine != self._count


def _path(encoder: ModelChoice | None) -> str:
    return "" if encoder is None else str(encoder.path)
