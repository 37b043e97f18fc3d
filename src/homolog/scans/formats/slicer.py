"""Segmentations of 3D Slicer (``.seg.nrrd``): segments by name, in one or more layers.

Every segment is a value in a layer. Segments that overlap, or that were drawn one after
another, lie in several layers; a label map has one class per voxel, so the layers are
brought together.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.scans.formats import SEGMENTS, ScanHeader
from homolog.scans.problems import Problem, Unsound
from homolog.scans.text_formats import plan_voxels, read_nrrd_text, read_voxels
from homolog.words import listed

_FIELD = re.compile(r"segment(\d+)_(name|labelvalue|layer)$")


@dataclass(frozen=True)
class Segment:
    """One segment.

    Attributes:
        name: For people; "" where it has none.
        layer: Number of its layer, from 0.
        stored: Its value there.
        value: Its value in the label map that all layers become.
    """

    name: str
    layer: int
    stored: int
    value: int


def as_labels(header: ScanHeader, fields: Mapping[str, str]) -> ScanHeader:
    """The header of a segmentation, whose layers become one label map.

    Args:
        header: Of the file as any NRRD; comes back where it is no segmentation.
        fields: As ``segments_in``.
    """
    if not segments_in(fields):
        return header
    rest = tuple(p for p in header.problems if p.code != "vector")
    return replace(header, channels=1, problems=rest, meta={SEGMENTS: True})


def values(header: ScanHeader) -> tuple[NDArray[Any], list[Problem]]:
    """(D, H, W) values of the label map, and what was lost.

    Raises:
        Unsound: The voxels cannot be read.
    """
    text = read_nrrd_text(header.path)
    segments = segments_in(text.pairs)
    whole = read_voxels(plan_voxels(text)).reshape(*header.shape, -1)
    if whole.shape[-1] > 1 or any(s.value != s.stored for s in segments):
        return one_map(whole, segments)
    return whole[..., 0], []


def label_names(path: Path) -> dict[int, str]:
    """Names of the segments by value; empty where it is no such segmentation.

    Where segments lie in several layers, of the values of the one label map.
    """
    return {one.value: one.name for one in segments_of(path) if one.name}


def segments_of(path: Path) -> tuple[Segment, ...]:
    """The segments of a file, by value; none where it is no such segmentation."""
    if path.suffix.lower() not in (".nrrd", ".nhdr"):
        return ()
    try:
        pairs = read_nrrd_text(path).pairs
    except (Unsound, OSError, ValueError):
        return ()
    return segments_in(pairs)


def segments_in(pairs: Mapping[str, str]) -> tuple[Segment, ...]:
    """The segments that a header's own fields name.

    Args:
        pairs: What the writer added to an NRRD, key in lower case -> value.
    """
    fields: dict[int, dict[str, str]] = {}
    for key, text in pairs.items():
        if found := _FIELD.match(key.lower()):
            fields.setdefault(int(found[1]), {})[found[2]] = text.strip()
    found_: list[tuple[str, int, int]] = []
    for _, one in sorted(fields.items()):
        stored = _whole(one.get("labelvalue", "1"))
        layer = _whole(one.get("layer", "0"))
        if stored is not None and layer is not None and stored > 0:
            found_.append((one.get("name", ""), layer, stored))
    values = _values([(layer, stored) for _, layer, stored in found_])
    segments = (
        Segment(name, layer, stored, values[layer, stored])
        for name, layer, stored in found_
    )
    return tuple(sorted(segments, key=lambda one: one.value))


def _whole(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) < 6 else None


def _values(places: Sequence[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """Layer and value there -> value of the label map: the same where no two share it.

    Otherwise they are numbered in the file's order.
    """
    shared = max(Counter(stored for _, stored in set(places)).values(), default=1) > 1
    if not shared:
        return {place: place[1] for place in places}
    return {place: i for i, place in enumerate(dict.fromkeys(places), start=1)}


def one_map(
    layers: NDArray[Any], segments: Sequence[Segment]
) -> tuple[NDArray[np.int16], list[Problem]]:
    """All layers as one label map, and what was lost.

    A voxel of several segments goes to the smallest of them: a tumour within a liver
    stays, whichever was drawn first.

    Args:
        layers: (..., layer) values as stored.
        segments: Of the file.
    """
    sizes = {
        one: int(np.count_nonzero(layers[..., one.layer] == one.stored))
        for one in segments
        if one.layer < layers.shape[-1]
    }
    whole = np.zeros(layers.shape[:-1], np.int16)
    lost: list[str] = []
    for one in sorted(sizes, key=lambda s: sizes[s], reverse=True):
        inside = layers[..., one.layer] == one.stored
        for other in segments:
            shared = int(np.count_nonzero(whole[inside] == other.value))
            if shared and other is not one:
                lost.append(f"{shared} of {other.name!r} to {one.name!r}")
        whole[inside] = one.value
    if not lost:
        return whole, []
    text = (
        f"its segments overlap; a voxel of several went to the smallest of them: "
        f"{listed(lost, most=3)}."
    )
    return whole, [Problem("overlap", text, False)]
