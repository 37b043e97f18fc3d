"""What the Label tab does on threads: fit, a slice, the volumes, the next click. No Qt.

Everything runs on the layer's own grid, so that a result is what the layer shows.
"""

from __future__ import annotations

import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from homolog.config import from_dict
from homolog.errors import UnusableInput
from homolog.events import Request
from homolog.geometry.affine import Affine
from homolog.gui.shared.choices import ModelChoice
from homolog.scans.volume import FeatureMap, LabelMap, Volume
from homolog.store.preprocess import Preprocessing
from homolog.tasks.few_voxels.config import FewConfig
from homolog.tasks.few_voxels.learn import Learnt, NextClick, learn, next_click
from homolog.tasks.few_voxels.predict import Uncertainty, predict_slice, predict_volume
from homolog.tasks.few_voxels.scan import FewClass, FewScan, few_classes, few_scan

# The classes of the paint: names, colours, keys, and which one is background. No Qt.
#
# Structures count from 1 up; the background has the highest number there is, so that
# classes can be added without renumbering, and predictions hold 1, 2, 3.


BACKGROUND = 255
# Letters that neither napari nor another tab takes with Shift, near the left hand.
KEYS = "QWEDZXCBK"
_MOST = 200


class ClassList:
    """What the values of all painted layers of a window mean.

    Attributes:
        current: Value that is painted with.
        counts: Value -> painted voxels of all scans that take part.
    """

    def __init__(self) -> None:
        self._classes: list[FewClass] = []
        self.counts: dict[int, int] = {}
        self._put("structure 1", 1)
        self._put("background", BACKGROUND, background=True)
        self.current = 1

    def __iter__(self) -> Iterator[FewClass]:
        return iter(self._classes)

    def __len__(self) -> int:
        return len(self._classes)

    def get(self, value: int) -> FewClass | None:
        """The class of a value."""
        return next((c for c in self._classes if c.value == value), None)

    @property
    def names(self) -> dict[int, str]:
        """Value -> name."""
        return {c.value: c.name for c in self._classes}

    @property
    def background(self) -> int | None:
        """Value of the background; None where no class is."""
        return next((c.value for c in self._classes if c.background), None)

    def key_of(self, place: int) -> str:
        """Letter that chooses the class in a row, with Shift; empty for none."""
        return KEYS[place] if place < len(KEYS) else ""

    def add(self) -> FewClass | None:
        """A new structure, chosen at once; None when there are too many."""
        taken = {c.value for c in self._classes}
        free = next((v for v in range(1, _MOST) if v not in taken), None)
        if free is None:
            return None
        self._put(f"structure {free}", free)
        self.current = free
        return self.get(free)

    def remove(self, value: int) -> str:
        """Take an unpainted class away; why not, or empty when it is gone."""
        known = self.get(value)
        if known is None:
            return ""
        if self.counts.get(value):
            return (
                f"{known.name!r} has {self.counts[value]} painted voxels. Erase them "
                "first (napari's eraser), then remove the class."
            )
        if len(self._classes) == 1:
            return "The last class stays."
        self._classes.remove(known)
        if self.current == value:
            self.current = self._classes[0].value
        return ""

    def rename(self, value: int, name: str) -> str:
        """Give a class another name; why not, or empty when it has it."""
        name = name.strip()
        if not name:
            return "A class needs a name."
        if any(c.name == name and c.value != value for c in self._classes):
            return f"There is a class {name!r} already; names must differ."
        self._change(value, name=name)
        return ""

    def recolour(self, value: int, colour: str) -> None:
        """Give a class another colour, ``#rrggbb``."""
        self._change(value, colour=colour)

    def set_background(self, value: int | None) -> None:
        """One class, or none, means none of the others."""
        self._classes = [replace(c, background=c.value == value) for c in self._classes]

    def adopt(
        self, names: Mapping[int, str], colours: Mapping[int, str] | None = None
    ) -> None:
        """Take the classes of a layer that was painted before.

        Args:
            names: Value -> name.
            colours: Value -> ``#rrggbb``, where known.
        """
        if not names:
            return
        if not any(self.counts.values()):
            self._classes = []
        for value, name in sorted(names.items()):
            if self.get(value) is not None:
                continue
            is_ground = name.strip().lower() == "background"
            self._put(
                name, value, (colours or {}).get(value),
                background=is_ground and self.background is None,
            )  # fmt: skip
        if self.get(self.current) is None:
            self.current = self._classes[0].value

    def name_all(self, values: Iterable[int]) -> bool:
        """A class for every painted value that has none; whether one was made."""
        new = [v for v in values if self.get(v) is None]
        for value in new:
            self._put(f"structure {value}", value)
        return bool(new)

    def painted(self, values: Sequence[int]) -> tuple[FewClass, ...]:
        """The classes of these values."""
        return tuple(c for c in self._classes if c.value in set(values))

    def _put(
        self, name: str, value: int, colour: str | None = None, background: bool = False
    ) -> None:
        taken = {c.name for c in self._classes}
        name = name if name not in taken else f"{name} ({value})"
        # asked with every value below, so that a class keeps its colour for good
        below = list(range(1, value + 1)) if value < BACKGROUND else [value]
        ground = value if background else None
        made = few_classes(
            below, {value: name}, {value: colour} if colour else None, ground
        )[-1]
        self._classes.append(made)
        self._classes.sort(key=lambda c: c.value)

    def _change(self, value: int, **what: str) -> None:
        self._classes = [
            replace(c, **what) if c.value == value else c  # type: ignore[arg-type]
            for c in self._classes
        ]


# Predictions of the last rounds, packed: undo, and the one before. No Qt.


LEVELS = 10


@dataclass(frozen=True)
class Packed:
    """One scan's labels, a hundredth of their size.

    Attributes:
        shape: Of the array.
        data: Compressed bytes of its uint8 values.
    """

    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def of(cls, labels: NDArray[np.uint8]) -> Packed:
        """Tens of milliseconds, so on a thread."""
        return cls(labels.shape, zlib.compress(np.ascontiguousarray(labels).data, 1))

    def into(self, target: NDArray[np.uint8]) -> None:
        """Write the labels into an array; on a thread.

        Raises:
            ValueError: The array has another shape by now.
        """
        if target.shape != self.shape:
            raise ValueError(f"expected the shape {self.shape}, got {target.shape}.")
        flat = np.frombuffer(zlib.decompress(self.data), np.uint8)
        np.copyto(target, flat.reshape(self.shape))


class History:
    """What was predicted, round by round; a round is every scan's labels by its key."""

    def __init__(self) -> None:
        self._past: deque[dict[str, Packed]] = deque(maxlen=LEVELS)
        self._now: dict[str, Packed] = {}

    @property
    def levels(self) -> int:
        """How many rounds can be undone."""
        return len(self._past)

    def push(self, found: Mapping[str, Packed]) -> None:
        """A new round; scans that took no part keep what they show."""
        if self._now:
            self._past.append(self._now)
        self._now = {**self._now, **found}

    def now(self) -> dict[str, Packed]:
        """What is shown."""
        return dict(self._now)

    def before(self) -> dict[str, Packed]:
        """What was shown before it; empty where there was nothing."""
        return dict(self._past[-1]) if self._past else {}

    def undo(self) -> dict[str, Packed]:
        """Back to the round before; empty where there is none."""
        if not self._past:
            return {}
        self._now = self._past.pop()
        return dict(self._now)

    def forget(self, key: str) -> None:
        """A scan was closed."""
        for found in (*self._past, self._now):
            found.pop(key, None)


Labels = NDArray[np.uint8]


class Side:
    """One scan that takes part, free of its layers.

    Args:
        key: Of the scan.
        volume: Its values on the layer's grid, true affine.
        features: Of the chosen encoder; None: intensities alone.
        recipe: The encoder's preprocessing.
        paint: Array of the painted layer, live.
        shown: Array of the prediction's layer, live; written on a thread.
    """

    def __init__(
        self,
        key: str,
        volume: Volume,
        features: FeatureMap | None,
        recipe: Preprocessing | None,
        paint: NDArray[np.integer],
        shown: Labels,
    ) -> None:
        self.key, self.volume = key, volume
        self.features, self.recipe = features, recipe
        self.paint, self.shown = paint, shown
        self.uncertainty: Uncertainty | None = None
        self.unknown_ml: float | None = None
        self._few: FewScan | None = None
        self._opening = threading.Lock()

    @property
    def affine(self) -> Affine:
        """Voxel of the layer -> true mm."""
        return self.volume.affine

    def open(self) -> FewScan:
        """The scan made ready; its values are read once."""
        with self._opening:
            if self._few is None:
                self._few = few_scan(self.volume, self.features, self.recipe)
            return self._few


@dataclass(frozen=True)
class Counted:
    """Paint as it was at one moment.

    Attributes:
        labels: A copy per scan.
        values: Painted value -> voxels of all scans.
        of_scan: Key of a scan -> its painted voxels.
    """

    labels: tuple[LabelMap, ...]
    values: Mapping[int, int]
    of_scan: Mapping[str, int]


@dataclass(eq=False)
class Fitted:
    """One round: what was learnt, and of which scans.

    Attributes:
        sides: That took part.
        labels: Their paint as it was learnt from.
        learnt: The head with its warnings.
        known: The classes of the table, painted or not.
    """

    sides: tuple[Side, ...]
    labels: tuple[LabelMap, ...]
    learnt: Learnt
    known: tuple[FewClass, ...] = field(default_factory=tuple)

    def place_of(self, key: str) -> int | None:
        """Number of a scan among the sides."""
        return next((i for i, s in enumerate(self.sides) if s.key == key), None)


def recipe_of(choice: ModelChoice | None) -> Preprocessing | None:
    """How an encoder's scans were normalised."""
    if choice is None:
        return None
    told = choice.card.get("preprocessing") or {}
    return from_dict(Preprocessing, told, where=str(choice.path))


def count(sides: Sequence[Side]) -> Counted:
    """Copy the paint and count it.

    Raises:
        UnusableInput: Values that are no classes.
    """
    labels, values, of_scan = [], dict[int, int](), dict[str, int]()
    for side in sides:
        data = np.array(side.paint)
        if data.dtype != np.uint8:  # a layer of somebody else's, or restored
            low, high = int(data.min()), int(data.max())
            if low < 0 or high > 255:
                raise UnusableInput(
                    f"what is painted on {side.volume.name} holds the values {low} to "
                    f"{high}; classes are 1 to 255."
                )
            data = data.astype(np.uint8)
        found = np.bincount(data.reshape(-1), minlength=1)
        for value in np.flatnonzero(found[1:]) + 1:
            values[int(value)] = values.get(int(value), 0) + int(found[value])
        of_scan[side.key] = int(found[1:].sum())
        labels.append(LabelMap(data, side.affine, name=side.volume.name))
    return Counted(tuple(labels), values, of_scan)


def fit(
    sides: Sequence[Side],
    counted: Counted,
    classes: Sequence[FewClass],
    config: FewConfig,
    outdated: Callable[[], bool],
) -> Fitted | None:
    """Fit the head to the scans that hold paint; None when outdated.

    Raises:
        UnusableInput: The paint cannot be learnt from; the sentence says why.
    """
    few = []
    for side in sides:
        few.append(side.open())
        if outdated():
            return None
    used = [c for c in classes if counted.values.get(c.value)]
    learnt = learn(few, counted.labels, used, config)
    return None if outdated() else Fitted(tuple(sides), counted.labels, learnt)


def slice_of(
    fitted: Fitted, key: str, axis: int, index: int, outdated: Callable[[], bool]
) -> Labels | None:
    """The labels (h, w) of one slice of a scan; None when outdated or not its scan."""
    place = fitted.place_of(key)
    if place is None or outdated():
        return None
    side = fitted.sides[place]
    values, _ = predict_slice(
        fitted.learnt.head, side.open(), axis, index, fitted.labels[place]
    )
    return None if outdated() else values.astype(np.uint8)


def volumes_of(
    fitted: Fitted, first: str, outdated: Callable[[], bool]
) -> dict[str, Packed] | None:
    """Predict every scan and show it, the one in front first; None when outdated.

    What an outdated round has shown already is shown anew by the next one.
    """
    order = sorted(range(len(fitted.sides)), key=lambda i: fitted.sides[i].key != first)
    found: dict[str, Packed] = {}
    for place in order:
        side = fitted.sides[place]
        job = predict_volume(fitted.learnt.head, side.open(), fitted.labels[place])
        answer: Request | None = None
        while True:
            try:
                job.send(answer) if answer is not None else next(job)
            except StopIteration as end:
                result = end.value
                break
            answer = Request.STOP if outdated() else None
        if result is None or outdated():
            return None
        side.uncertainty = result.uncertainty
        labels = result.labels.data.astype(np.uint8, copy=False)
        np.copyto(side.shown, labels)
        side.unknown_ml = _unknown_ml(fitted, labels, side.affine)
        found[side.key] = Packed.of(labels)
    return found


def _unknown_ml(fitted: Fitted, labels: Labels, affine: Affine) -> float | None:
    """How much of a scan is unlike all paint; None where nothing can be."""
    head = fitted.learnt.head
    if head.reach is None:
        return None
    voxel_ml = float(np.prod(affine.spacing_mm)) / 1000
    return float(np.count_nonzero(labels == head.unknown)) * voxel_ml


def next_place(fitted: Fitted, key: str) -> tuple[str, NextClick] | None:
    """Where one more stroke helps most: in the scan in front, else in another one."""
    order = sorted(range(len(fitted.sides)), key=lambda i: fitted.sides[i].key != key)
    for place in order:
        side = fitted.sides[place]
        if side.uncertainty is None:
            continue
        found = next_click(
            fitted.learnt.head, side.open(), fitted.learnt.paints[place],
            side.uncertainty,
        )  # fmt: skip
        if found is not None:
            return side.key, found
    return None
