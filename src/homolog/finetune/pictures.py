"""A picture of the first case that a validation looks at: what it says, what is true.

A task hands over what it has just seen (``Look``), labels, boxes or images; one slice
of it is kept, and drawn when a picture is due.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from homolog.drawing.pictures import (
    as_bytes,
    beside,
    grey,
    with_labels,
    with_rectangle,
)
from homolog.feed.reading import CaseRef
from homolog.label_names import colours_of
from homolog.training.validation import preview_look

_WHITE = (1.0, 1.0, 1.0)
_TINT = 0.15  # of a label over the scan
# Predicted boxes that are drawn: the surest, so many more than there are true ones.
_MORE, _LEAST = 2, 0.05
_TRUE = (1.0, 1.0, 1.0)
_FOUND = (0.9, 0.62, 0.0)

Picture: TypeAlias = NDArray[np.float32]


class CasePicture:
    """What a validation looks with: ``look(...)`` keeps a slice of its first case.

    Args:
        names: Label value -> name; decides the colours of labels.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        self.colours = colours_of(names)
        self._case: str | None = None
        self._make: Callable[[], tuple[Picture, str]] | None = None

    def look(
        self,
        case: CaseRef,
        image: NDArray[np.int16],
        predicted: NDArray[Any],
        truth: NDArray[Any],
    ) -> None:
        """A case with label maps: true outlines left, predicted ones right.

        Args:
            case: Of the store.
            image: (C, D, H, W) as stored.
            predicted: (D, H, W) label values.
            truth: (D, H, W) label values.
        """
        if not self._is_first(case):
            return
        index = _middle((truth > 0).reshape(len(truth), -1).any(axis=1))
        values = _shown(case, image, index)
        guess, true = predicted[index].copy(), truth[index].copy()

        def make() -> tuple[Picture, str]:
            zoom, scan = _scan(case, values)
            white = dict.fromkeys(self.colours, _WHITE)
            left = with_labels(scan, true, zoom, self.colours, _TINT)
            right = with_labels(scan, true, zoom, white, 0.0)
            right = with_labels(right, guess, zoom, self.colours, _TINT)
            return beside([left, right]), (
                "true labels on the left, predicted ones on the right (true outline in "
                "white)"
            )

        self._make = make

    __call__ = look

    def boxes(
        self,
        case: CaseRef,
        classes: Sequence[Mapping[str, Sequence[Any]]],
    ) -> None:
        """A case with boxes: true ones in white, those found in orange.

        Args:
            case: Of the store.
            classes: Of each class ``truth`` and ``boxes``, rows of edges, low z, y, x,
                then high, in voxels of the stored scan; and ``scores`` of the latter.
        """
        if not self._is_first(case):
            return
        true = np.array([b for c in classes for b in c["truth"]], float).reshape(-1, 6)
        found = [
            row for c in classes for row in zip(c["scores"], c["boxes"], strict=True)
        ]
        ranked = sorted(found, key=lambda row: -row[0])
        told = [row for row in ranked if row[0] >= _LEAST][: len(true) + _MORE]
        depth = case.card.shape[0]
        crossed = np.zeros(depth, bool)
        for box in true if len(true) else [np.array(edges) for _, edges in told]:
            middle = (box[0] + box[3]) / 2
            crossed[min(depth - 1, max(0, int(middle)))] = True
        index = _middle(crossed)
        image = np.asarray(case.store.image(case.card.id)[:, index : index + 1])
        values = _shown(case, image, 0)

        def make() -> tuple[Picture, str]:
            zoom, picture = _scan(case, values)
            for box in true[(true[:, 0] <= index + 0.5) & (true[:, 3] > index + 0.5)]:
                picture = with_rectangle(picture, _flat(box), zoom, _TRUE)
            for score, edges in told:
                box = np.array(edges, float)
                if box[0] <= index + 0.5 < box[3]:
                    picture = with_rectangle(
                        picture, _flat(box), zoom, _FOUND, f"{score:.2f}"
                    )
            return (
                picture,
                "true boxes in white, those found in orange with their score",
            )

        self._make = make

    def images(
        self,
        case: CaseRef,
        given: NDArray[np.float32],
        made: NDArray[np.float32],
        truth: NDArray[np.float32],
    ) -> None:
        """A case with an image that was made: what was given, made, and is true.

        Args:
            case: Of the store.
            given: (D, H, W) the first input, in any unit.
            made: (D, H, W) in the unit of the truth.
            truth: (D, H, W).
        """
        if not self._is_first(case):
            return
        spread = truth.reshape(len(truth), -1).std(axis=1)
        index = int(spread.argmax())
        planes = [np.array(a[index], np.float32) for a in (given, made, truth)]

        def make() -> tuple[Picture, str]:
            first, *others = planes
            zoom, _ = preview_look(case.card, (first.shape[0], first.shape[1]))
            window = _window(planes[2])
            shown = [grey(first, zoom, _window(first))]
            shown += [grey(plane, zoom, window) for plane in others]
            return beside(shown), "input, what was made of it, and the true image"

        self._make = make

    def draw(
        self, done: int, left_s: float, most_s: float
    ) -> tuple[NDArray[np.uint8], str] | None:
        """The picture after ``done`` steps; None before a validation."""
        if self._make is None:
            return None
        picture, words = self._make()
        return as_bytes(picture), f"{self._case} after {done} steps: {words}"

    def _is_first(self, case: CaseRef) -> bool:
        self._case = self._case or case.card.id
        return case.card.id == self._case


def _middle(seen: Any) -> int:
    """The middle one of the slices that show something; of none the middle slice."""
    places = np.flatnonzero(seen)
    return int(places[len(places) // 2]) if len(places) else len(seen) // 2


def _shown(case: CaseRef, image: NDArray[Any], index: int) -> Picture:
    """A slice in units of value."""
    values: Picture = np.asarray(image[0, index], np.float32)
    return values * np.float32(case.card.scale) + np.float32(case.card.offset)


def _scan(case: CaseRef, values: Picture) -> tuple[tuple[float, float], Picture]:
    zoom, window = preview_look(case.card, (values.shape[0], values.shape[1]))
    return zoom, grey(values, zoom, window)


def _flat(box: NDArray[Any]) -> tuple[float, float, float, float]:
    _, y0, x0, _, y1, x1 = (float(v) for v in box)
    return y0, x0, y1, x1


def _window(plane: Picture) -> tuple[float, float]:
    low, high = (float(v) for v in np.percentile(plane, (0.5, 99.5)))
    return (low, high) if high > low else (low, low + 1.0)
