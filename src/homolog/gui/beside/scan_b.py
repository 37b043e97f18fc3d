"""What the second viewer shows: scan B, its points and its cross. Decides nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.geometry.affine import Triple
from homolog.gui.beside.second_view import Cross, Dots
from homolog.gui.shared.layers import KEY, notes_of
from homolog.gui.shared.scan_layers import Mark, go_to
from homolog.gui.shared.scans import Scan

IN_B = "Landmarks in B"
_LOOK = ("contrast_limits", "colormap", "gamma")


class ScanB:
    """Layers of the second viewer's model.

    Args:
        model: A ``ViewerModel``.
        foreign: Called with a layer that somebody else put there: a dropped file.
        points: Name of its points layer.
    """

    def __init__(
        self, model: Any, foreign: Callable[[Any], None], points: str = IN_B
    ) -> None:
        self.model = model
        self.layer: Any | None = None
        self._foreign = foreign
        self._busy = False
        self._followed: list[tuple[Any, Callable[[], None]]] = []
        self.points = Dots(model, points)
        self.cross = Cross(model)
        model.layers.events.inserted.connect(self._inserted)

    def show(self, source: Any, window_of: Any) -> None:
        """Show a scan.

        Args:
            source: Its layer; one of the model itself, or of the main viewer, which
                then lends its array.
            window_of: Layer whose brightness is followed as well; None: only its own.
        """
        self._unfollow()
        with self._quiet():
            # A cross left in the scan before would stretch the sliders as far as there.
            self.cross.close()
            if self.layer is not None and self.layer in self.model.layers:
                self.model.layers.remove(self.layer)
            if source not in self.model.layers:
                self.model.add_layer(_copy(source))
                self.layer = self.model.layers[-1]
                self._follow(source, _LOOK)
            else:
                self.layer = source
            self.model.layers.move(self.model.layers.index(self.layer), 0)
        if window_of is not None:
            self._follow(window_of, _LOOK[:1])
        self.model.reset_view()
        middle = (np.array(self.layer.data.shape) - 1) / 2
        self.model.dims.set_point(range(3), self.layer.data_to_world(middle))

    def clear(self) -> None:
        """Show nothing."""
        self._unfollow()
        self.cross.hide()
        with self._quiet():
            if self.layer is not None and self.layer in self.model.layers:
                self.model.layers.remove(self.layer)
        self.layer = None

    def mark(self, marks: Sequence[Mark], size_mm: float, step: Triple) -> None:
        """Show points."""
        with self._quiet():
            self.points.show(marks, size_mm, step)

    def go(self, shown_mm: NDArray[np.float64], size_mm: float, scan: Scan) -> None:
        """Show a place, with a cross there."""
        with self._quiet():
            self.cross.show(shown_mm, size_mm, scan.grid.spacing_mm, scan)
        go_to(self.model, shown_mm)

    def look(self, shown_mm: NDArray[np.float64], size_mm: float, scan: Scan) -> None:
        """Show the slice of a place with a cross there; the camera stays."""
        with self._quiet():
            self.cross.show(shown_mm, size_mm, scan.grid.spacing_mm, scan)
        self.model.dims.set_point(range(3), [float(v) for v in shown_mm])

    def end(self) -> None:
        """Let go of the model."""
        self._unfollow()
        with contextlib.suppress(Exception):
            self.model.layers.events.inserted.disconnect(self._inserted)
        self.points.close()
        self.cross.close()

    @contextlib.contextmanager
    def _quiet(self) -> Any:
        busy, self._busy = self._busy, True
        try:
            yield
        finally:
            self._busy = busy

    def _inserted(self, event: Any) -> None:
        if not self._busy and not notes_of(event.value).get("derived"):
            self._foreign(event.value)

    def _follow(self, source: Any, names: Sequence[str]) -> None:
        for name in names:

            def take(event: Any = None, name: str = name) -> None:
                if self.layer is not None:
                    setattr(self.layer, name, getattr(source, name))

            emitter = getattr(source.events, name)
            emitter.connect(take)
            self._followed.append((emitter, take))
            take()

    def _unfollow(self) -> None:
        for emitter, function in self._followed:
            with contextlib.suppress(Exception):
                emitter.disconnect(function)
        self._followed = []


def _copy(source: Any) -> Any:
    """An image layer that shares the other's array."""
    from napari.layers import Image

    return Image(
        source.data,
        name=str(source.name),
        scale=tuple(source.scale),
        translate=tuple(source.translate),
        units=tuple(str(u) for u in source.units),
        axis_labels=tuple(source.axis_labels),
        contrast_limits=tuple(source.contrast_limits),
        interpolation2d=str(source.interpolation2d),
        metadata={KEY: {**notes_of(source), "shown_again": True}},
    )
