"""A label layer as it is at one moment, copied in slices, and its file. No Qt."""

from __future__ import annotations

import os
import re
import shutil
import time
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.gui.files.layer_geometry import (
    is_kind,
    notes_of,
    shape_of,
    shown_affine,
)
from homolog.gui.files.writer import label_names, save_layer


class Labels:
    """What the writer asks of a layer, free of it; named as napari's by intent.

    Args:
        layer: An image or labels layer.
        data: Its copied voxels; None keeps only the shape.
    """

    def __init__(self, layer: Any, data: NDArray[Any] | None = None) -> None:
        ndim = len(layer.data.shape)
        self.data = np.broadcast_to(np.uint8(0), layer.data.shape)
        if data is not None:
            self.data = data
        self.ndim = ndim
        self.name = str(layer.name)
        self.multiscale = bool(getattr(layer, "multiscale", False))
        self.rgb = bool(getattr(layer, "rgb", False))
        for field in ("scale", "translate", "rotate", "shear"):
            setattr(self, field, np.array(getattr(layer, field)))
        self.units = tuple(str(u) for u in layer.units or ())
        self.affine = _Placed(np.array(layer.affine.affine_matrix))
        self.metadata = dict(layer.metadata)
        names = label_names(layer)
        if names:
            self.metadata["label_names"] = names
        # What ``data_to_world`` is at this moment; it is linear.
        zero = np.zeros(ndim)
        self._origin = np.array(layer.data_to_world(zero), np.float64)
        self._steps = np.stack(
            [np.array(layer.data_to_world(e)) - self._origin for e in np.eye(ndim)]
        )

    def data_to_world(self, place: Any) -> NDArray[np.float64]:
        """Voxel index -> world, as napari's layers do."""
        world: NDArray[np.float64] = self._origin + np.asarray(place) @ self._steps
        return world


class _Placed:
    def __init__(self, matrix: NDArray[np.float64]) -> None:
        self.affine_matrix = matrix


class Copying:
    """Copies a layer's voxels a few milliseconds at a time, on the GUI thread.

    Args:
        layer: A labels layer of two or three dimensions.
    """

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self._shape, self._type = tuple(layer.data.shape), layer.data.dtype
        self._copy: NDArray[Any] = np.empty(self._shape, self._type)
        self._next = 0

    def step(self, seconds: float) -> bool:
        """Go on for so long; whether all is copied.

        Raises:
            ValueError: The layer's array has another shape or type by now.
        """
        data = self._layer.data
        if tuple(data.shape) != self._shape or data.dtype != self._type:
            raise ValueError(f"{self._layer.name} changed its shape.")
        until = time.monotonic() + seconds
        while self._next < len(self._copy):
            self._copy[self._next] = np.asarray(data[self._next])
            self._next += 1
            if time.monotonic() > until:
                break
        return self._next >= len(self._copy)

    def taken(self) -> Labels:
        """The layer as it was copied."""
        return Labels(self._layer, self._copy)


def why_not_saved(layer: Any) -> str:
    """Why a labels layer cannot be saved by itself; "" when it can."""
    if getattr(layer, "multiscale", False) or len(layer.data.shape) not in (2, 3):
        return (
            f"{layer.name} is not saved by itself: only label layers of 2 or 3 "
            "dimensions are. Save it with File > Save Selected Layers."
        )
    return ""


def save(
    copy: Labels, others: Sequence[Any], folder: Path, file: str, known: int | None
) -> int:
    """Write a label file, if its voxels are others than those written before.

    Args:
        copy: From ``Copying.taken``.
        others: Layers open beside it (``Labels`` without voxels do); see the writer.
        folder: Exists.
        file: Name in it; replaced at once, never half written.
        known: What this returned last.

    Returns:
        The checksum of the voxels.
    """
    checksum = zlib.crc32(np.ascontiguousarray(copy.data).data.cast("B"))
    if checksum == known and (folder / file).is_file():
        return checksum
    scratch = folder / f"{file}.part"  # of its own: the writer replaces nothing
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        for made in save_layer(copy, scratch / file, others):
            os.replace(made, folder / made.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return checksum


def file_name(number: int, name: str) -> str:
    """Of a layer's file; the number keeps equal names apart."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_")[:60]
    return f"{number:02d}_{plain or 'labels'}.nii.gz"


def entry_of(layer: Any, file: str, layers: Iterable[Any]) -> dict[str, Any]:
    """What session.json tells of a label layer; plain JSON types. Quick."""
    notes = notes_of(layer)
    return {
        "file": file,
        "name": str(layer.name),
        "ndim": len(layer.data.shape),
        "source": _scan_under(layer, layers),
        "own_file": "" if notes.get("derived") else str(notes.get("source") or ""),
        "label_names": {str(v): n for v, n in label_names(layer).items()},
        "colours": _colours(layer),
        "opacity": float(layer.opacity),
        "visible": bool(layer.visible),
    }


def _scan_under(layer: Any, layers: Iterable[Any]) -> str:
    """Path of the scan that a label layer lies on, "" when none is known."""
    notes = notes_of(layer)
    if notes.get("derived"):
        return str(notes.get("source") or "")
    place = shown_affine(layer).matrix
    for other in layers:
        source = str(notes_of(other).get("source") or "")
        if (
            source
            and is_kind(other, "Image")
            and shape_of(other) == shape_of(layer)
            and np.allclose(shown_affine(other).matrix, place, rtol=1e-5, atol=1e-3)
        ):
            return source
    return ""


def _colours(layer: Any) -> dict[str, list[float]]:
    """Label value (or ``other``) -> red, green, blue, opacity, where they were set."""
    table = getattr(layer.colormap, "color_dict", None)
    if not table:
        return {}
    return {
        "other" if value is None else str(int(value)): [float(c) for c in colour]
        for value, colour in table.items()
    }
