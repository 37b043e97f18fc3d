"""Slices of scans as pictures: grey values, labels, similarity, colours, points.

Pictures are (height, width, 3) float32 in 0..1 until they are encoded. Slices are shown
as a radiologist wants them: the patient's right on the left, head or front on top.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from homolog.geometry.affine import Affine, Triple

Picture = NDArray[np.float32]

CT_WINDOW_HU = (-160.0, 240.0)
LINE = 13  # pixels of a line of text
_FINE = 4  # sub-pixels per pixel of rings and lines, so that their edges are smooth

# Dark violet over orange to pale yellow: equal steps look equal, also in grey.
_HEAT = np.array(
    [
        (0.00, 0.00, 0.02), (0.16, 0.04, 0.33), (0.40, 0.09, 0.43), (0.64, 0.17, 0.38),
        (0.86, 0.29, 0.25), (0.97, 0.51, 0.09), (0.98, 0.76, 0.22), (0.99, 1.00, 0.64),
    ],
    np.float32,
)  # fmt: skip


@dataclass(frozen=True)
class Plane:
    """One slice through a canonical volume (axes z, y, x of LPS).

    Attributes:
        axis: 0 axial, 1 coronal, 2 sagittal.
        index: Voxel along that axis.
        factor: Screen pixels per millimetre.
    """

    axis: int
    index: int
    factor: float = 1.0

    @classmethod
    def through(
        cls, mm: NDArray[np.float64], affine: Affine, axis: int, factor: float = 1.0
    ) -> Plane:
        """The slice nearest to a world position."""
        index = round(float(affine.inverse().apply(mm)[axis]))
        return cls(axis, index, factor)

    def cut(self, data: NDArray[Any]) -> NDArray[Any]:
        """The slice of (..., D, H, W), last two axes down and right on the screen."""
        axis = data.ndim - 3 + self.axis
        index = min(max(self.index, 0), data.shape[axis] - 1)
        flat = np.take(data, index, axis=axis)
        return flat if self.axis == 0 else np.flip(flat, axis=-2)

    def zoom(self, spacing_mm: Triple) -> tuple[float, float]:
        """Screen pixels per voxel, down and right."""
        down, right = (a for a in range(3) if a != self.axis)
        return spacing_mm[down] * self.factor, spacing_mm[right] * self.factor

    def place(
        self, mm: NDArray[np.float64], affine: Affine, shape: Sequence[int]
    ) -> tuple[float, float]:
        """Where a world position (3,) falls on the picture: pixels down, right."""
        index = affine.inverse().apply(mm)
        down, right = (a for a in range(3) if a != self.axis)
        row = index[down] if self.axis == 0 else shape[down] - 1 - index[down]
        zoom = self.zoom(affine.spacing_mm)
        return float((row + 0.5) * zoom[0]), float((index[right] + 0.5) * zoom[1])


def enlarge(values: NDArray[Any], zoom: tuple[float, float], order: int = 1) -> Picture:
    """A slice (h, w) on the screen's pixels; pixel centres stay true."""
    shape = [max(1, round(n * z)) for n, z in zip(values.shape, zoom, strict=True)]
    index = [
        (np.arange(n) + 0.5) * old / n - 0.5
        for n, old in zip(shape, values.shape, strict=True)
    ]
    grid = np.meshgrid(*index, indexing="ij")
    result: Picture = ndimage.map_coordinates(
        np.asarray(values, np.float32), grid, order=order, mode="nearest"
    )
    return result


def grey(
    values: NDArray[Any],
    zoom: tuple[float, float],
    window: tuple[float, float] = CT_WINDOW_HU,
) -> Picture:
    """A slice (h, w) in grey between the window's ends."""
    low, high = window
    level = np.clip((enlarge(values, zoom) - low) / (high - low), 0, 1)
    return np.repeat(level[..., None], 3, axis=-1)


def with_labels(
    picture: Picture,
    labels: NDArray[Any],
    zoom: tuple[float, float],
    colours: Mapping[int, Triple],
    opacity: float = 0.45,
) -> Picture:
    """Label areas (h, w) laid over a picture, their borders drawn fully.

    Each label's area is enlarged by itself, so that borders are smooth, not steps.
    """
    best = enlarge(labels == 0, zoom)
    shown = np.zeros(best.shape, np.int32)
    for value in np.unique(labels):
        if value == 0:
            continue
        share = enlarge(labels == value, zoom)
        shown = np.where(share > best, int(value), shown)
        best = np.maximum(share, best)
    edge = ndimage.grey_dilation(shown, (3, 3)) != ndimage.grey_erosion(shown, (3, 3))
    result = picture.copy()
    for value, colour in colours.items():
        area = shown == value
        strength = np.where(edge, 0.95, opacity)[area][:, None]
        result[area] = (1 - strength) * result[area] + strength * np.array(colour)
    return result


def with_heat(
    picture: Picture,
    values: NDArray[Any],
    zoom: tuple[float, float],
    low: float,
    high: float,
    opacity: float = 0.85,
) -> Picture:
    """A map (h, w) laid over a picture: nothing at ``low``, glowing at ``high``."""
    level = np.clip((enlarge(values, zoom) - low) / max(high - low, 1e-9), 0, 1)
    colour = heat_colours(level)
    strength = (opacity * level**0.7)[..., None]
    result: Picture = (1 - strength) * picture + strength * colour
    return result


def heat_colours(level: NDArray[Any]) -> Picture:
    """Levels 0..1 as colours (..., 3)."""
    place = np.clip(np.asarray(level, np.float32), 0, 1) * (len(_HEAT) - 1)
    low = np.minimum(place.astype(np.int64), len(_HEAT) - 2)
    share = (place - low)[..., None]
    mixed: Picture = (1 - share) * _HEAT[low] + share * _HEAT[low + 1]
    return mixed


def coloured(values: NDArray[Any], zoom: tuple[float, float]) -> Picture:
    """Three channels (3, h, w) in 0..1 as a picture."""
    return np.stack([np.clip(enlarge(c, zoom), 0, 1) for c in values], -1)


def with_ring(
    picture: Picture,
    place: tuple[float, float],
    colour: Triple = (0.2, 1.0, 0.4),
    radius: float = 6.0,
    thickness: float = 1.6,
) -> Picture:
    """A ring around a point (pixels down, right), dark rimmed to be seen anywhere."""
    wide = _covered(picture, lambda d: _ring(d, place, radius, 2 * thickness + 1))
    ring = _covered(picture, lambda d: _ring(d, place, radius, thickness))
    return _inked(_inked(picture, 0.7 * wide, (0, 0, 0)), ring, colour)


def with_line(
    picture: Picture,
    start: tuple[float, float],
    stop: tuple[float, float],
    colour: Triple,
    thickness: float = 1.6,
) -> Picture:
    """A straight line between two points (pixels down, right)."""
    ends = [_FINE * v for v in (start[1], start[0], stop[1], stop[0])]
    width = round(_FINE * thickness)
    ink = _covered(picture, lambda d: d.line(ends, fill=255, width=width))
    return _inked(picture, ink, colour)


def with_rectangle(
    picture: Picture,
    box: tuple[float, float, float, float],
    zoom: tuple[float, float],
    colour: Triple,
    words: str = "",
) -> Picture:
    """A box drawn on a slice, dark rimmed, with a few words at its upper left corner.

    Args:
        picture: The slice, enlarged.
        box: Edges top, left, bottom, right in voxels; voxel i reaches from i to i + 1.
        zoom: Pixels per voxel, down and right.
        colour: Of the edges and the words.
        words: Such as a score.
    """
    top, left, bottom, right = (
        edge * zoom[place % 2] for place, edge in enumerate(box)
    )

    def drawn(thickness: float) -> NDArray[np.float32]:
        half = thickness / 2
        ends = [
            _FINE * v for v in (left - half, top - half, right + half, bottom + half)
        ]
        width = round(_FINE * thickness)
        return _covered(picture, lambda d: d.rectangle(ends, outline=255, width=width))

    result = _inked(_inked(picture, 0.6 * drawn(3.2), (0, 0, 0)), drawn(1.6), colour)
    if words:
        line = words_on_black(words, result.shape[1], colour)
        used = np.flatnonzero(line.any((0, 2)))
        line = line[:, : int(used[-1]) + 2] if len(used) else line[:, :0]
        y = min(max(0, round(top) - LINE), max(0, result.shape[0] - LINE))
        x = min(max(0, round(left)), max(0, result.shape[1] - line.shape[1]))
        room = result[y : y + LINE, x : x + line.shape[1]]
        room[:] = line[: room.shape[0], : room.shape[1]]
    return result


def _ring(
    drawn: ImageDraw.ImageDraw,
    place: tuple[float, float],
    radius: float,
    thickness: float,
) -> None:
    outer = radius + thickness / 2
    y, x = place
    box = [_FINE * v for v in (x - outer, y - outer, x + outer, y + outer)]
    drawn.ellipse(box, outline=255, width=round(_FINE * thickness))


def _covered(
    picture: Picture, draw: Callable[[ImageDraw.ImageDraw], None]
) -> NDArray[np.float32]:
    """Share (h, w) of each pixel that a drawing covers, in 0..1.

    Args:
        picture: Of the wanted size.
        draw: Draws in 255 on a canvas _FINE times as large.
    """
    height, width = picture.shape[:2]
    canvas = Image.new("L", (_FINE * width, _FINE * height))
    draw(ImageDraw.Draw(canvas))
    share = np.array(canvas.reduce(_FINE), np.float32)
    share /= 255
    return share


def _inked(picture: Picture, ink: NDArray[Any], colour: Triple) -> Picture:
    """Colour laid on by a share (h, w) in 0..1."""
    share = np.asarray(ink, np.float32)[..., None]
    result: Picture = (1 - share) * picture + share * np.array(colour, np.float32)
    return result


def beside(pictures: Sequence[Picture], gap: int = 8) -> Picture:
    """Pictures in a row on black, centred."""
    height = max(p.shape[0] for p in pictures)
    width = sum(p.shape[1] for p in pictures) + gap * (len(pictures) - 1)
    result = np.zeros((height, width, 3), np.float32)
    left = 0
    for picture in pictures:
        top = (height - picture.shape[0]) // 2
        result[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
        left += picture.shape[1] + gap
    return result


def as_bytes(picture: Picture) -> NDArray[np.uint8]:
    """Picture in 0..1 -> uint8."""
    result: NDArray[np.uint8] = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    return result


def words_on_black(words: str, width: int, colour: Triple = (1.0, 1.0, 1.0)) -> Picture:
    """A line of text, (LINE, width, 3); what does not fit is cut off."""
    strip = Image.new("L", (width, LINE))
    ImageDraw.Draw(strip).text((0, 0), words, fill=255, font=_font())
    ink = np.array(strip, np.float32)[..., None]
    ink /= 255
    line: Picture = ink * np.array(colour, np.float32)
    return line


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font."""
    return ImageFont.load_default(LINE - 3)


def png_bytes(rgb: NDArray[np.uint8]) -> bytes:
    """Encode a picture (height, width, 3) uint8."""
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise ValueError(
            f"a picture must be (h, w, 3) uint8, got {rgb.shape} {rgb.dtype}."
        )
    encoded = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rgb)).save(encoded, "PNG", optimize=True)
    return encoded.getvalue()


def data_address(rgb: NDArray[np.uint8]) -> str:
    """The picture as a ``data:`` address, to stand inside an HTML page."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(rgb)).decode()
