"""From a stroke to a prediction: waits, fits, shows the slice, then the volumes.

One round at a time counts: a new stroke makes the running one outdated, which it
notices between two slabs. Everything slow is on threads (``learning``).
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from qtpy.QtCore import QObject, QTimer, Signal

from homolog.gui.label.learning import (
    ClassList,
    Counted,
    Fitted,
    Labels,
    Packed,
    Side,
    count,
    fit,
    slice_of,
    volumes_of,
)
from homolog.gui.shared.scans import Latest
from homolog.gui.shared.threads import in_background
from homolog.tasks.few_voxels.config import FewConfig
from homolog.tasks.few_voxels.learn import warm_up

WAIT_MS = 800


class Scene(Protocol):
    """What a round asks of the viewer."""

    def sides(self) -> list[Side]:
        """Scans that take part and can be learnt from now."""

    def in_front(self) -> tuple[str, int, int] | None:
        """Scan, axis and number of the displayed slice; None in 3D."""

    def show_slice(self, key: str, axis: int, index: int, labels: Labels) -> None:
        """Draw one slice of a prediction."""


@dataclass
class Timing:
    """Seconds since the last stroke, the waiting among them, or since a press."""

    stroke: float = 0.0
    is_asked: bool = False
    slice_s: float | None = None
    volume_s: float | None = None

    def words(self) -> str:
        """As ``Slice 0.9 s, volume 1.8 s after the last stroke``; may be empty."""
        parts = []
        if self.slice_s is not None:
            parts.append(f"slice {self.slice_s:.1f} s")
        if self.volume_s is not None:
            parts.append(f"volume {self.volume_s:.1f} s")
        if not parts:
            return ""
        if self.is_asked:
            text = f"{', '.join(parts)} after you asked."
            return text[0].upper() + text[1:]
        text = f"{', '.join(parts)} after the last stroke"
        return f"{text[0].upper()}{text[1:]} ({WAIT_MS / 1000:g} s of it waiting)."


class Trainer(QObject):
    """Rounds of learning.

    Signals:
        counted: The paint was counted (Counted).
        fitted: A head is there (Fitted).
        predicted: The volumes are shown (scan key -> Packed).
        scored: How well left-out strokes are told (FewScore).
        changed: State, timing or problem are others.

    Args:
        scene: See there.
        classes: Of the paint.
        parent: Owner.
    """

    counted = Signal(object)
    fitted = Signal(object)
    predicted = Signal(object)
    scored = Signal(object)
    changed = Signal()

    def __init__(self, scene: Scene, classes: ClassList, parent: QObject) -> None:
        super().__init__(parent)
        self._scene, self._classes = scene, classes
        self.auto = True
        self.config = FewConfig()
        self.state, self.problem = "", ""
        self.timing = Timing()
        self.last: Fitted | None = None
        self._latest, self._slices = Latest(), Latest()
        self._outdated: Callable[[], bool] = lambda: True
        self._seen: int | None = None
        self._ended = False
        self._wait, self._doubt = QTimer(self), QTimer(self)
        for timer, function in ((self._wait, self._go), (self._doubt, self._look)):
            timer.setSingleShot(True)
            timer.setInterval(WAIT_MS)
            timer.timeout.connect(function)

    def warm(self) -> None:
        """Load the learner now, so that the first stroke does not wait for it."""
        in_background(warm_up, owner=self, failed=lambda _: None)

    def touched(self, event: Any = None) -> None:
        """A stroke: what runs is outdated, and the waiting begins anew."""
        if self._ended:
            return
        self._latest.next()
        self._slices.next()
        self.timing = Timing(time.monotonic())
        if self.state not in ("", "waiting"):
            self._tell("waiting")
        self._wait.start()

    def doubted(self, event: Any = None) -> None:
        """The paint may have changed: undo says no more than another slice does."""
        if not self._ended and not self._wait.isActive():
            self._doubt.start()

    def now(self) -> None:
        """Train at once, asked for."""
        self._wait.stop()
        self._latest.next()
        if not self.timing.stroke or self.timing.volume_s is not None:
            self.timing = Timing(time.monotonic(), is_asked=True)
        self._round(asked=True)

    def sliced(self) -> None:
        """Another slice is displayed: show it before the volume is ready."""
        if self.state == "predicting" and self.last is not None:
            self._ask_slice(self.last, self._outdated)

    def end(self) -> None:
        """Nothing more is begun or shown."""
        self._ended = True
        self._latest.next()
        self._slices.next()
        self._wait.stop()
        self._doubt.stop()

    @property
    def busy(self) -> bool:
        """Whether a round runs."""
        return self.state in ("fitting", "predicting")

    def _go(self) -> None:
        self._round(asked=False)

    def _look(self) -> None:
        """Whether the paint is another than was learnt from."""
        sides = self._scene.sides()
        if self.busy or not sides:
            return

        def done(seen: int) -> None:
            if self._seen is not None and seen != self._seen:
                self.touched()

        arrays = [s.paint for s in sides]
        in_background(_checksum, arrays, owner=self, done=done, failed=lambda _: None)

    def _round(self, asked: bool) -> None:
        sides = self._scene.sides()
        if self._ended or not sides:
            self._tell("")
            return
        outdated = self._outdated = self._latest.next()
        self.problem = ""
        if self.auto or asked:
            self._tell("fitting")

        def done(answer: tuple[Counted, int]) -> None:
            if outdated():
                return
            found, self._seen = answer
            self._classes.counts = dict(found.values)
            self._classes.name_all(found.values)
            self.counted.emit(found)
            if self.auto or asked:
                self._fit(sides, found, outdated)

        in_background(
            _counted, sides, owner=self, done=done,
            failed=lambda error: self._failed(error, outdated),
        )  # fmt: skip

    def _fit(
        self, sides: list[Side], found: Counted, outdated: Callable[[], bool]
    ) -> None:
        painted = self._classes.painted(list(found.values))
        if len(painted) < 2:
            only = f"Only {painted[0].name!r} is painted" if painted else ""
            self._tell(
                "", f"{only}: paint a second class, such as background." if only else ""
            )
            return

        def done(fitted: Fitted | None) -> None:
            if fitted is None or outdated():
                return
            fitted.known = tuple(self._classes)
            self.last = fitted
            self._tell("predicting")
            self.fitted.emit(fitted)
            if not self._ask_slice(fitted, outdated):
                self._volumes(fitted, outdated)

        in_background(
            fit, sides, found, painted, self.config, outdated,
            owner=self, done=done, failed=lambda error: self._failed(error, outdated),
        )  # fmt: skip

    def _ask_slice(self, fitted: Fitted, outdated: Callable[[], bool]) -> bool:
        """Predict the displayed slice; the first of a round is followed by volumes."""
        where = self._scene.in_front()
        if where is None or fitted.place_of(where[0]) is None:
            return False
        newer = self._slices.next()
        first = self.timing.slice_s is None

        def stale() -> bool:
            return outdated() or (newer() and not first)

        def done(labels: Labels | None) -> None:
            if outdated():
                return
            if labels is not None and self.state == "predicting":
                self._scene.show_slice(*where, labels)
            if first:
                self.timing.slice_s = time.monotonic() - self.timing.stroke
                self.changed.emit()
                self._volumes(fitted, outdated)

        in_background(
            slice_of, fitted, *where, stale, owner=self, done=done,
            failed=lambda error: self._failed(error, outdated),
        )  # fmt: skip
        return first

    def _volumes(self, fitted: Fitted, outdated: Callable[[], bool]) -> None:
        where = self._scene.in_front()
        front = fitted.sides[0].key if where is None else where[0]

        def done(found: dict[str, Packed] | None) -> None:
            if found is None or outdated():
                return
            self.timing.volume_s = time.monotonic() - self.timing.stroke
            self._tell("")
            self.predicted.emit(found)
            self._score(fitted, outdated)

        in_background(
            volumes_of, fitted, front, outdated, owner=self, done=done,
            failed=lambda error: self._failed(error, outdated),
        )  # fmt: skip

    def _score(self, fitted: Fitted, outdated: Callable[[], bool]) -> None:
        def done(score: Any) -> None:
            if not outdated():
                self.scored.emit(score)

        in_background(fitted.learnt.score, owner=self, done=done, failed=lambda _: None)

    def _failed(self, error: Exception, outdated: Callable[[], bool]) -> None:
        if not outdated():
            self._tell("", str(error) or type(error).__name__)

    def _tell(self, state: str, problem: str = "") -> None:
        self.state, self.problem = state, problem
        self.changed.emit()


def _counted(sides: Sequence[Side]) -> tuple[Counted, int]:
    found = count(sides)
    return found, _checksum([labels.data for labels in found.labels])


def _checksum(arrays: Sequence[Any]) -> int:
    total = 0
    for array in arrays:
        total = zlib.crc32(np.ascontiguousarray(array).data.cast("B"), total)
    return total
