"""A slice of a validation case: true outlines on the left, predicted ones beside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.data.card import Card
from homolog.drawing.pictures import (
    CT_WINDOW_HU,
    as_bytes,
    beside,
    colours_of,
    grey,
    with_labels,
)
from homolog.feed import CaseRef

_SIDE_PIXELS = 320
_WHITE = (1.0, 1.0, 1.0)
_TINT = 0.15


@dataclass(frozen=True, eq=False)
class _Slice:
    """What is kept of a case until it is drawn: one slice, (H, W) each."""

    card: Card
    values: NDArray[np.float32]
    predicted: NDArray[Any]
    truth: NDArray[Any]


class LabelPreview:
    """Remembers a slice of the first case a validation looks at, and draws it.

    Args:
        names: Label value -> name; decides the colours.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        self.colours = colours_of(names)
        self._case: str | None = None
        self._slice: _Slice | None = None

    def look(
        self,
        case: CaseRef,
        image: NDArray[np.int16],
        predicted: NDArray[Any],
        truth: NDArray[Any],
    ) -> None:
        """Called by a task's validation for each case.

        Args:
            case: Of the store.
            image: (C, D, H, W) as stored.
            predicted: (D, H, W) label values.
            truth: (D, H, W) label values.
        """
        self._case = self._case or case.card.id
        if case.card.id != self._case:
            return
        labelled = np.flatnonzero((truth > 0).any(axis=(1, 2)))
        index = int(labelled[len(labelled) // 2]) if len(labelled) else len(truth) // 2
        values = np.asarray(image[0, index], np.float32)
        self._slice = _Slice(
            case.card,
            values * case.card.scale + case.card.offset,
            predicted[index].copy(),
            truth[index].copy(),
        )

    def draw(
        self, done: int, left_s: float, most_s: float
    ) -> tuple[NDArray[np.uint8], str] | None:
        """The picture after ``done`` steps; None before a validation."""
        if self._slice is None:
            return None
        card = self._slice.card
        _, y_mm, x_mm = card.spacing_mm
        height, width = self._slice.values.shape
        factor = _SIDE_PIXELS / max(height * y_mm, width * x_mm)
        zoom = y_mm * factor, x_mm * factor
        window = CT_WINDOW_HU if card.modality == "CT" else (card.low, card.high)
        scan = grey(self._slice.values, zoom, window)
        white = dict.fromkeys(self.colours, _WHITE)
        truth = with_labels(scan, self._slice.truth, zoom, self.colours, _TINT)
        found = with_labels(scan, self._slice.truth, zoom, white, 0.0)
        found = with_labels(found, self._slice.predicted, zoom, self.colours, _TINT)
        title = (
            f"{card.id} after {done} steps: true labels on the left, predicted ones "
            "on the right (true outline in white)"
        )
        return as_bytes(beside([truth, found])), title
