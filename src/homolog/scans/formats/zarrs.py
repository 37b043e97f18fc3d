"""Zarr folders: OME-Zarr images of one channel and one time, and plain arrays.

Of an image pyramid the finest level is read. The format does not say where left and
right are: z, y, x are taken as they stand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.errors import UnusableInput
from homolog.geometry.affine import Affine, Index
from homolog.scans.formats import ScanHeader
from homolog.scans.formats.stated import Stated, mm_of
from homolog.scans.problems import Problem, Unsound, check_room

_ABSENT = (
    'zarr files need the package zarr: python -m pip install "napari-homolog[zarr]".'
)
_SPACE = "zyx"


def header(path: Path) -> ScanHeader:
    """The header of a scan; raises as ``stated``."""
    return stated(path).header(path)


def stated(path: Path) -> Stated:
    """What the image of a zarr folder is.

    Raises:
        Unsound: ``unreadable, unsupported, empty``, with the reason.
    """
    array, axes, level = _opened(path)
    sizes = dict(zip(axes, array.shape, strict=True))
    if min(array.shape, default=0) < 1 or np.dtype(array.dtype).kind not in "biufc":
        text = f"an array of {array.shape} {array.dtype} is no scan."
        raise Unsound("empty" if 0 in array.shape else "unreadable", text, path)
    shape = _shape(sizes)
    affine, problems = _affine(axes, level)
    others = [axis for axis in axes if axis not in _SPACE and axis not in "tc"]
    if any(sizes[axis] > 1 for axis in others):
        text = f"axes {', '.join(axes)} are not those of a volume (t, c, z, y, x)."
        raise Unsound("unsupported", text, path)
    return Stated(
        shape, affine, np.dtype(array.dtype).name, "zarr",
        channels=sizes.get("c", 1), frames=sizes.get("t", 1), problems=problems,
    )  # fmt: skip


def values(header: ScanHeader) -> tuple[NDArray[Any], list[Problem]]:
    """(D, H, W) values of an image of one channel and one time; no remarks.

    Raises:
        Unsound: As ``stated``, ``too_large``, or ``corrupt``.
    """
    path = header.path
    array, axes, _ = _opened(path)
    check_room(math.prod(array.shape) * np.dtype(array.dtype).itemsize, path)
    planes = list(pieces(path))
    sizes = dict(zip(axes, array.shape, strict=True))
    return np.concatenate(planes).reshape(_shape(sizes)), []


def pieces(path: Path) -> Iterator[NDArray[Any]]:
    """The same in flat pieces, a row of chunks at a time."""
    array, axes, _ = _opened(path)
    first = next((i for i, n in enumerate(array.shape) if n > 1), 0)
    step = max(1, int(array.chunks[first]))
    if [a for a in axes if a in _SPACE] != [a for a in _SPACE if a in axes]:
        step = array.shape[first]  # axes in another order are turned as a whole
    for start in range(0, array.shape[first], step):
        part: list[Any] = [slice(None)] * len(axes)
        part[first] = slice(start, start + step)
        try:
            values = np.asarray(array[tuple(part)])
        except Exception as error:  # noqa: BLE001 - codecs raise what they like
            text = f"its chunks do not decode ({type(error).__name__}: {error})."
            raise Unsound("corrupt", text, path) from None
        order = [i for i, a in enumerate(axes) if a not in _SPACE]
        order += [axes.index(a) for a in _SPACE if a in axes]
        yield values.transpose(order).ravel()


def _shape(sizes: Mapping[str, int]) -> Index:
    z, y, x = (sizes.get(axis, 1) for axis in _SPACE)
    return z, y, x


def _opened(path: Path) -> tuple[Any, list[str], dict[str, Any]]:
    """The finest array, its axes, and what is known of their sizes."""
    try:
        import zarr
    except ImportError:
        raise Unsound("unsupported", _ABSENT, path) from None
    try:
        node = zarr.open(str(path), mode="r")
        if isinstance(node, zarr.Array):
            return node, _axes_of(node, path), {}
        scales = _multiscales(node)
        if scales is None:
            raise Unsound("unreadable", _no_image(path), path)
        level = scales["datasets"][0]
        array = node[level["path"]]
        axes = [
            str(axis["name"] if isinstance(axis, Mapping) else axis).lower()
            for axis in scales.get("axes", "tczyx"[-array.ndim :])
        ]
        if len(axes) != array.ndim or not {"y", "x"} <= set(axes):
            text = f"its axes are {axes}, its array has {array.ndim}."
            raise Unsound("unreadable", text, path)
    except Unsound:
        raise
    except Exception as error:  # noqa: BLE001 - a folder of others, damaged or not
        text = f"cannot be read as zarr ({type(error).__name__}: {error})."
        raise Unsound("unreadable", text, path) from None
    return array, axes, {**scales, "level": level}


def _axes_of(array: Any, path: Path) -> list[str]:
    if not 2 <= array.ndim <= 3:
        text = f"an array of {array.ndim} axes without names (OME-Zarr has them)."
        raise Unsound("unsupported", text, path)
    return list(_SPACE[-array.ndim :])


def _multiscales(group: Any) -> dict[str, Any] | None:
    told = dict(group.attrs)
    told = told.get("ome", told)
    scales = told.get("multiscales")
    if isinstance(scales, list) and scales and scales[0].get("datasets"):
        return dict(scales[0])
    return None


def _no_image(path: Path) -> str:
    inside = sorted(p.name for p in path.iterdir() if p.is_dir())[:4]
    return f"a zarr group without an image (multiscales); in it: {', '.join(inside)}."


def _affine(
    axes: list[str], told: Mapping[str, Any]
) -> tuple[Affine, tuple[Problem, ...]]:
    """Voxel -> mm, and remarks."""
    units = [
        str(axis.get("unit") or "") if isinstance(axis, Mapping) else ""
        for axis in told.get("axes", [""] * len(axes))
    ]
    scale, shift = np.ones(len(axes)), np.zeros(len(axes))
    level = told.get("level", {})
    known = False
    for one in [
        *level.get("coordinateTransformations", ()),
        *told.get("coordinateTransformations", ()),
    ]:
        if one.get("type") == "scale":
            factors = np.asarray(one["scale"], float)
            scale, shift, known = scale * factors, shift * factors, True
        elif one.get("type") == "translation":
            shift = shift + np.asarray(one["translation"], float)
    mm = {a: mm_of(unit) for a, unit in zip(axes, units, strict=True) if a in _SPACE}
    if not known or None in mm.values():
        text = "no voxel size in millimetres in this zarr: lengths are in voxels."
        return Affine.identity(), (Problem("spacing_unknown", text, False),)
    sizes, origin = [], []
    for axis in _SPACE:
        i = axes.index(axis) if axis in axes else axes.index("x")
        factor = float(mm[axes[i]] or 1.0)
        sizes.append(float(scale[i]) * factor)
        origin.append(float(shift[i]) * factor if axis in axes else 0.0)
    if not all(math.isfinite(s) and s > 0 for s in sizes):
        raise UnusableInput(f"voxel sizes must be positive, got {sizes}.")
    return Affine.of(sizes, origin), ()
