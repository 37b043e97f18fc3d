"""3D surfaces of a label layer: one a label, with its name and colour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QObject

from homolog.gui.shared.hub import Hub
from homolog.gui.shared.layers import derived_attributes, is_kind, itself, notes_of
from homolog.gui.shared.scan_layers import selection_kept
from homolog.gui.shared.threads import in_background

# Labels of more than so many voxels are made in half the resolution.
_MANY_VOXELS = 20_000_000
# Taubin, "A signal processing approach to fair surface design", 1995: steps that
# smooth and swell in turn, so that a surface does not shrink.
_STEPS, _SHRINK, _SWELL = 10, 0.5, -0.53
_MOST = 60
# Slices so much thicker than voxels are wide are interpolated, so many times at most.
_THICK, _FINEST = 1.8, 8


@dataclass(frozen=True)
class Surface:
    """The border of one label.

    Attributes:
        value: Of the label.
        vertices: (N, 3) voxels of the layer.
        faces: (M, 3) rows of ``vertices``.
    """

    value: int
    vertices: NDArray[np.float32]
    faces: NDArray[np.int32]


def surfaces_of(
    labels: NDArray[Any], scale: tuple[float, float, float]
) -> list[Surface]:
    """Smooth surfaces of all labels, background left out.

    Args:
        labels: (D, H, W).
        scale: Voxel size (z, y, x), mm: flat voxels are smoothed as far in mm.

    Raises:
        ValueError: There are no labels, or more than can be told apart.
    """
    from scipy.ndimage import find_objects

    values = [int(v) for v in np.unique(labels) if v > 0]
    if not values:
        raise ValueError("the label layer is empty.")
    if len(values) > _MOST:
        raise ValueError(f"{len(values)} labels are too many; {_MOST} at most.")
    small = np.searchsorted(np.array([0, *values]), labels).astype(np.int32)
    small[labels <= 0] = 0
    found = []
    for row, place in enumerate(find_objects(small)):
        if place is not None:
            found.append(_surface(small[place] == row + 1, place, values[row], scale))
    return found


def _surface(
    mask: NDArray[np.bool_],
    place: tuple[slice, ...],
    value: int,
    scale: tuple[float, float, float],
) -> Surface:
    from skimage.measure import marching_cubes

    step = 2 if mask.size > _MANY_VOXELS else 1
    field, level, fine = _field(np.pad(mask, 2 * step), scale)
    vertices, faces, _, _ = marching_cubes(  # type: ignore[no-untyped-call]
        field, level, step_size=step
    )
    vertices = vertices / fine
    vertices = _faired(vertices * scale, faces) / scale
    start = np.array([part.start for part in place]) - 2 * step
    return Surface(value, (vertices + start).astype(np.float32), faces.astype(np.int32))


def _field(
    mask: NDArray[np.bool_], scale: tuple[float, float, float]
) -> tuple[NDArray[np.float32], float, NDArray[np.int64]]:
    """What to draw a surface through, at which level, and how much finer it is.

    Between thick slices the outlines are interpolated by their distance (Raya and
    Udupa, "Shape-based interpolation of multidimensional objects", 1990).
    """
    from scipy.ndimage import distance_transform_edt, gaussian_filter

    fine = np.ones(3, np.int64)
    axis, thin = int(np.argmax(scale)), min(scale)
    if scale[axis] < _THICK * thin:
        smooth = gaussian_filter(mask.astype(np.float32), 0.8 * thin / np.array(scale))
        whole = smooth if smooth.max() > 0.5 else mask.astype(np.float32)
        return whole, 0.5, fine  # as it is where it is thinner than the filter
    reach = scale[axis]
    beside = [size for place, size in enumerate(scale) if place != axis]
    slices = [
        np.clip(
            distance_transform_edt(one, beside) - distance_transform_edt(~one, beside),
            -reach, reach,
        )
        if one.any() else np.full(one.shape, -reach)
        for one in np.moveaxis(mask, axis, 0)
    ]  # fmt: skip
    stack = np.stack(slices).astype(np.float32)
    fine[axis] = min(round(scale[axis] / thin), _FINEST)
    places = np.arange((len(stack) - 1) * fine[axis] + 1) / fine[axis]
    below = np.minimum(places.astype(int), len(stack) - 2)
    share = (places - below).astype(np.float32)[:, None, None]
    between = stack[below] * (1 - share) + stack[below + 1] * share
    smooth = gaussian_filter(between, 0.8)
    whole = smooth if smooth.max() > 0 else between
    return np.moveaxis(whole, 0, axis), 0.0, fine


def _faired(vertices: NDArray[np.float64], faces: NDArray[Any]) -> NDArray[np.float64]:
    """Without the stairs of the slices; the volume stays."""
    from scipy.sparse import csr_matrix, diags

    count = len(vertices)
    a, b = faces.ravel(), np.roll(faces, -1, axis=1).ravel()
    ones = np.ones(2 * a.size, np.float64)
    near = csr_matrix(
        (ones, (np.concatenate([a, b]), np.concatenate([b, a]))), (count, count)
    )
    near.data[:] = 1.0
    degree = np.maximum(np.asarray(near.sum(axis=1)).ravel(), 1.0)
    mean = diags(1.0 / degree) @ near
    for _ in range(_STEPS):
        for factor in (_SHRINK, _SWELL):
            vertices = vertices + factor * (mean @ vertices - vertices)
    return vertices


class Surfaces(QObject):
    """Surfaces in napari's 3D view; in 2D they and what they replace change places.

    Args:
        hub: Of the window.
        parent: A widget of ours.
    """

    def __init__(self, hub: Hub, parent: QObject) -> None:
        super().__init__(parent)
        self._hub = hub
        self._made: dict[Any, list[Any]] = {}
        self._hidden: list[Any] = []
        self.busy = False
        if hub.viewer is not None:
            hub.viewer.dims.events.ndisplay.connect(self._turned, position="last")

    def show(self) -> None:
        """Surfaces of the label layer that is active, else the topmost shown."""
        labels = self._labels()
        if labels is None:
            self._hub.say(
                "Open or make a label layer first; its surface is shown then."
            )
            return
        if self.busy:
            return
        self.busy = True
        self._hub.say(f"The surfaces of {labels.name} are being made.")
        scale = tuple(float(v) for v in np.asarray(labels.scale)[-3:])

        def done(found: list[Surface]) -> None:
            self.busy = False
            self._add(labels, found)

        in_background(
            surfaces_of, np.array(labels.data), scale,
            owner=self, done=done, failed=self._failed,
        )  # fmt: skip

    def end(self) -> None:
        """Follow the viewer no more; surfaces stay."""
        if self._hub.viewer is not None:
            self._hub.viewer.dims.events.ndisplay.disconnect(self._turned)
        self._made.clear()
        self._hidden.clear()

    def _failed(self, error: Exception) -> None:
        self.busy = False
        self._hub.say(f"No surface: {error}", "warning")

    def _labels(self) -> Any | None:
        viewer = self._hub.viewer
        active = viewer.layers.selection.active
        if active is not None and _is_volume(active):
            return itself(active)
        wanted = [x for x in reversed(viewer.layers) if _is_volume(x)]
        shown = [x for x in wanted if x.visible]
        found = next(iter(shown or wanted), None)
        return None if found is None else itself(found)

    def _add(self, labels: Any, found: list[Surface]) -> None:
        viewer = self._hub.viewer
        names: Mapping[Any, Any] = notes_of(labels).get("label_names", {})
        with selection_kept(viewer):
            for old in self._made.pop(labels, []):
                if old in viewer.layers:
                    viewer.layers.remove(old)
            made = self._made[labels] = []
            for surface in found:
                name = str(names.get(surface.value, f"label {surface.value}"))
                attributes = derived_attributes(labels, f"{name} (surface)")
                colour = np.asarray(labels.get_color(surface.value), np.float64)[:3]
                layer = viewer.add_surface(
                    (surface.vertices, surface.faces),
                    vertex_colors=np.tile(
                        np.append(colour, 1.0), (len(surface.vertices), 1)
                    ),
                    shading="smooth",
                    visible=False,
                    **attributes,
                )
                made.append(itself(layer))
        if viewer.dims.ndisplay != 3:
            viewer.dims.ndisplay = 3
        else:
            self._turned()
        viewer.fit_to_view(layers=made, margin=0.2)

    def _turned(self, event: Any = None) -> None:
        """Volumes would lie over the surfaces in 3D, and surfaces over slices in 2D."""
        viewer = self._hub.viewer
        living = [s for made in self._made.values() for s in made if s in viewer.layers]
        if not living:
            return
        if viewer.dims.ndisplay == 3:
            volumes = [
                itself(x) for x in viewer.layers
                if x.visible and (is_kind(x, "Image") or is_kind(x, "Labels"))
            ]  # fmt: skip
            self._hidden += [x for x in volumes if x not in self._hidden]
            for layer in volumes:
                layer.visible = False
            for layer in living:
                layer.visible = True
            return
        for layer in living:
            layer.visible = False
        hidden, self._hidden = self._hidden, []
        for layer in hidden:
            if layer in viewer.layers:
                layer.visible = True


def _is_volume(layer: Any) -> bool:
    return is_kind(layer, "Labels") and layer.ndim == 3
