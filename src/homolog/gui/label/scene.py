"""The viewer as a round of learning sees it: scans to learn from, the slice shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from homolog.data.volume import Volume
from homolog.gui.explore.control import ExploreControl
from homolog.gui.explore.layers import point_of, slice_axis
from homolog.gui.explore.scan import Scan
from homolog.gui.files.layer_scan import true_affine
from homolog.gui.label import layers as own
from homolog.gui.label.classes import ClassList
from homolog.gui.label.learning import Labels, Side, recipe_of


@dataclass
class Desk:
    """What lies on one scan.

    Attributes:
        layer: The scan's.
        painted: Layer of the paint; None until it is made.
        predicted: Layer of the prediction; None until there is one.
        takes_part: Whether the model learns from it and predicts it.
        voxels: Painted ones.
        side: Free of layers, for threads; None where it must be made anew.
    """

    layer: Any
    painted: Any | None = None
    predicted: Any | None = None
    takes_part: bool = True
    voxels: int = 0
    side: Side | None = None


class LabelScene:
    """What the trainer asks (see ``training.Scene``), and shows.

    Args:
        viewer: napari's.
        book: Scans, their features and the encoder.
        desks: Scan key -> what lies on it; looked at when needed.
        classes: Of the paint.
    """

    def __init__(
        self,
        viewer: Any,
        book: ExploreControl,
        desks: Mapping[str, Desk],
        classes: ClassList,
    ) -> None:
        self._viewer, self._book = viewer, book
        self._desks, self._classes = desks, classes

    def taking_part(self) -> list[tuple[Scan, Desk]]:
        """Scans with a paint layer that are ticked."""
        return [
            (self._book.scans[key], desk)
            for key, desk in self._desks.items()
            if desk.takes_part and desk.painted is not None
        ]

    def front(self) -> str:
        """Key of the scan that is worked on.

        That of the selected layer, else the topmost visible one that takes part.
        """
        active = self._viewer.layers.selection.active
        for key, desk in self._desks.items():
            layers = (desk.painted, desk.layer, desk.predicted)
            if active is not None and active in layers:
                return key
        order = [k for k, d in self._desks.items() if d.layer.visible and d.takes_part]
        return order[-1] if order else next(iter(self._desks), "")

    def sides(self) -> list[Side]:
        """Those whose features are there, with a layer to show the prediction."""
        found = [self.side(scan.key) for scan, _ in self.taking_part()]
        return [side for side in found if side is not None]

    def side(self, key: str) -> Side | None:
        """A scan for threads; None where paint or features are missing."""
        desk, scan, encoder = (
            self._desks[key],
            self._book.scans[key],
            self._book.encoder,
        )
        if desk.painted is None or (encoder is not None and scan.ready is None):
            return None
        if desk.predicted is None:
            desk.predicted = own.add_predicted(self._viewer, desk.layer, desk.painted)
            own.show_classes(desk.predicted, list(self._classes))
        arrays = (desk.painted.data, desk.predicted.data)
        side = desk.side
        if side is None or side.paint is not arrays[0] or side.shown is not arrays[1]:
            volume = Volume(
                np.asarray(desk.layer.data)[None], true_affine(desk.layer),
                scan.ref.name, scan.ref.modality,
            )  # fmt: skip
            ready = scan.ready if encoder is not None else None
            features = None if ready is None else ready.features
            desk.side = Side(key, volume, features, recipe_of(encoder), *arrays)
        return desk.side

    def in_front(self) -> tuple[str, int, int] | None:
        """Scan, axis and number of the displayed slice; None in 3D."""
        axis, key = slice_axis(self._viewer), self.front()
        if axis is None or key not in self._desks:
            return None
        layer = self._desks[key].layer
        place = self._book.scans[key].grid.inverse().apply(point_of(self._viewer))
        index = int(np.clip(np.rint(place[axis]), 0, layer.data.shape[axis] - 1))
        return key, axis, index

    def show_slice(self, key: str, axis: int, index: int, labels: Labels) -> None:
        """Draw one slice of a prediction."""
        desk = self._desks.get(key)
        if desk is None or desk.predicted is None:
            return
        cut: list[Any] = [slice(None)] * 3
        cut[axis] = index
        desk.predicted.data[tuple(cut)] = labels
        own.redraw(desk.predicted)

    def redraw(self) -> None:
        """Show the predictions' arrays as they are now."""
        for desk in self._desks.values():
            if desk.predicted is not None:
                own.redraw(desk.predicted)
