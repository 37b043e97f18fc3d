"""What the Label tab does on threads: fit, a slice, the volumes, the next click. No Qt.

Everything runs on the layer's own grid, so that a result is what the layer shows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from homolog.config import from_dict
from homolog.data.preprocess import Preprocessing
from homolog.data.volume import FeatureMap, LabelMap, Volume
from homolog.errors import UnusableInput
from homolog.events import Request
from homolog.geometry.affine import Affine
from homolog.gui.label.history import Packed
from homolog.gui.learn.model_choice import ModelChoice
from homolog.tasks._few_advice import NextClick, next_click
from homolog.tasks._few_learn import Learnt, learn
from homolog.tasks._few_predict import predict_slice, predict_volume
from homolog.tasks._few_scan import FewScan, few_scan
from homolog.tasks._few_settings import FewClass, FewConfig
from homolog.tasks._few_uncertain import Uncertainty

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
        found[side.key] = Packed.of(labels)
    return found


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
