"""The same points in many scans, side by side: a sheet of axial slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.data.landmarks import Landmark
from homolog.data.volume import Points, Volume, closest_canonical
from homolog.drawing.letters import HEIGHT, WIDTH, with_words
from homolog.drawing.pictures import (
    CT_WINDOW_HU,
    Picture,
    Plane,
    as_bytes,
    grey,
    with_line,
)
from homolog.geometry.affine import Triple

# Pixels of a tile, of the gap between tiles and of the names on the left.
SIDE, _GAP, _NAMES = 160, 4, 96
_LINE = HEIGHT + 4
_CROSS, _HOLE = 12.0, 4.0  # arms of the cross, and its empty middle
_QUERY: Triple = (0.3, 0.8, 1.0)
_ACCEPTED: Triple = (0.3, 1.0, 0.4)
_REFUSED: Triple = (1.0, 0.4, 0.3)
_UNKNOWN: Triple = (0.6, 0.6, 0.6)


@dataclass(frozen=True, eq=False)
class Tile:
    """A slice with a point in it.

    Attributes:
        picture: (SIDE, SIDE, 3) in 0..1.
        name: Of the point.
        words: What stands below.
        colour: Of cross and words.
    """

    picture: Picture
    name: str
    words: str
    colour: Triple


def tiles_of(volume: Volume, points: Points | Sequence[Landmark]) -> list[Tile]:
    """One tile per point, the axial slice it lies in, a cross where it lies.

    Args:
        volume: Scan A with its Points, or scan B with the Landmarks found in it.
        points: In the order of the rows.
    """
    scan = closest_canonical(volume)
    if isinstance(points, Points):
        return [
            Tile(_picture(scan, mm, _QUERY), name, "", _QUERY)
            for name, mm in zip(points.names, points.mm, strict=True)
        ]
    tiles = []
    for mark in points:
        if mark.b_mm is None:
            empty = np.zeros((SIDE, SIDE, 3), np.float32)
            tiles.append(Tile(empty, mark.name, "not found", _UNKNOWN))
            continue
        colour = _ACCEPTED if mark.accepted else _REFUSED
        words = f"{mark.similarity:.2f} {'' if mark.accepted else 'refused'}"
        picture = _picture(scan, np.array(mark.b_mm), colour)
        tiles.append(Tile(picture, mark.name, words, colour))
    return tiles


def contact_sheet(columns: Sequence[tuple[str, Sequence[Tile]]]) -> NDArray[np.uint8]:
    """Rows are points, columns are scans.

    Args:
        columns: Name of the scan and its tiles, all in the same order of points.

    Returns:
        (h, w, 3) uint8.
    """
    rows = len(columns[0][1]) if columns else 0
    height = _LINE + rows * (SIDE + _LINE + _GAP)
    sheet = np.zeros((height, _NAMES + len(columns) * (SIDE + _GAP), 3), np.float32)
    for column, (name, tiles) in enumerate(columns):
        left = _NAMES + column * (SIDE + _GAP)
        sheet = with_words(sheet, name[: SIDE // WIDTH], (2, left))
        for row, tile in enumerate(tiles):
            top = _LINE + row * (SIDE + _LINE + _GAP)
            sheet[top : top + SIDE, left : left + SIDE] = tile.picture
            sheet = with_words(sheet, tile.words, (top + SIDE + 2, left), tile.colour)
            if column == 0:
                sheet = with_words(sheet, tile.name[: _NAMES // WIDTH - 1], (top, 2))
    return as_bytes(sheet)


def _picture(scan: Volume, mm: NDArray[np.float64], colour: Triple) -> Picture:
    """The axial slice of a canonical scan around a point, in a square."""
    spacing = scan.affine.spacing_mm
    extent = max(scan.shape[1] * spacing[1], scan.shape[2] * spacing[2])
    plane = Plane.through(mm, scan.affine, 0, SIDE / extent)
    values = plane.cut(scan.data[0])
    picture = grey(values, plane.zoom(spacing), _window(scan, values))
    y, x = plane.place(mm, scan.affine, scan.shape)
    for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        start = (y + dy * _HOLE, x + dx * _HOLE)
        stop = (y + dy * _CROSS, x + dx * _CROSS)
        picture = with_line(picture, start, stop, colour)
    square = np.zeros((SIDE, SIDE, 3), np.float32)
    h, w = min(picture.shape[0], SIDE), min(picture.shape[1], SIDE)
    top, left = (SIDE - h) // 2, (SIDE - w) // 2
    square[top : top + h, left : left + w] = picture[:h, :w]
    return square


def _window(scan: Volume, values: NDArray[Any]) -> tuple[float, float]:
    """Soft tissue of a CT; elsewhere nearly all that the slice holds."""
    if scan.modality == "CT":
        return CT_WINDOW_HU
    low, high = (float(v) for v in np.percentile(values, (1, 99)))
    return low, max(high, low + 1e-6)
