"""A slice of one scan beside its features in colours: does the network see anatomy?"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from math import ceil, lcm
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from homolog.drawing.pictures import as_bytes, beside, coloured, enlarge, grey
from homolog.features.colours import fit_colours
from homolog.feed.reading import CaseRef
from homolog.geometry.affine import Index
from homolog.methods.base import Embedder, Method
from homolog.store.card import Card
from homolog.store.preprocess import inside, spread_sample
from homolog.training.stepping import autocast
from homolog.training.validation import preview_look

Plane = tuple[int, int]

_MOST_WINDOWS = 64
# Of the time there is; the rest goes into colours and the file.
_SHARE_FOR_WINDOWS = 0.6
_AIR_BRIGHTNESS = 0.2


class SlicePreview:
    """Draws the same slice again and again while the encoder learns.

    Args:
        method: Its embedder is asked anew each time.
        cases: The first validation case is shown, else the middle one.
        device: Where the method is.
        precision: ``bf16`` for autocast, or ``fp32``.
    """

    def __init__(
        self,
        method: Method,
        cases: Sequence[CaseRef],
        device: torch.device,
        precision: str,
    ) -> None:
        held = [case for case in cases if case.card.split == "val"]
        self.case = held[0] if held else cases[len(cases) // 2]
        self.method, self.device, self.precision = method, device, precision
        self.window = _flattened(next(iter(method.views().values())).size, method)
        self._each_s = 0.0  # a window takes

    def __call__(
        self, done: int, left_s: float, most_s: float
    ) -> tuple[NDArray[np.uint8], str] | None:
        """The picture after ``done`` steps; None to wait until there is more time.

        Args:
            done: Steps done.
            left_s: Seconds there are now; the first picture is as large as they allow.
            most_s: What a picture should take at most.
        """
        card = self.case.card
        embedder = self.method.embedder().eval()
        frame = _Frame(card, self.window, embedder)
        if not self._each_s:
            self._measure(frame, embedder)
            grid = self._within(frame.whole, left_s)
        else:
            grid = self._within(frame.whole, most_s)
            if grid[0] * grid[1] * self._each_s > _SHARE_FOR_WINDOWS * left_s:
                return None
        frame.choose(grid)
        values = self._values(frame)
        began = time.monotonic()
        cells = self._cells(frame, embedder, values)
        self._each_s = max((time.monotonic() - began) / len(frame.starts), 1e-6)
        title = f"{card.id}: a slice and its features after {done} steps"
        return _drawn(values[0, frame.row], cells, card, frame.stride), title

    def _measure(self, frame: _Frame, embedder: Embedder) -> None:
        """Seconds a window takes; a network's first pass of a size is its slowest."""
        frame.choose((1, 1))
        values = self._values(frame)
        for _ in range(2):
            began = time.monotonic()
            self._cells(frame, embedder, values)
            self._each_s = max(time.monotonic() - began, 1e-6)

    def _within(self, whole: Plane, seconds: float) -> Plane:
        """How many windows along y and x there is time for, of those that cover all."""
        rows, columns = whole
        most = _SHARE_FOR_WINDOWS * seconds / self._each_s
        while rows * columns > min(max(most, 1), _MOST_WINDOWS):
            if rows >= columns:
                rows -= 1
            else:
                columns -= 1
        return rows, columns

    def _values(self, frame: _Frame) -> NDArray[np.float32]:
        """(C, D, H, W) of the frame in value units; beyond the scan the darkest."""
        card = self.case.card
        shape = tuple(b - a for a, b in frame.box)
        result = np.full((card.channels, *shape), card.low, np.float32)
        known = [
            (max(a, 0), min(b, n))
            for (a, b), n in zip(frame.box, card.shape, strict=True)
        ]
        key = (slice(None), *(slice(a, b) for a, b in known))
        stored = np.asarray(self.case.store.image(card.id)[key], np.float32)
        place = tuple(
            slice(a - first, b - first)
            for (a, b), (first, _) in zip(known, frame.box, strict=True)
        )
        result[(slice(None), *place)] = stored * card.scale + card.offset
        return result

    def _cells(
        self, frame: _Frame, embedder: Embedder, values: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Features (E, h, w) of the frame's slice; windows fade into each other."""
        seen = self.case.card.intensity.normalise(values)
        total: NDArray[np.float32] | None = None
        weight = np.zeros(frame.cells, np.float32)
        for y, x in frame.starts:
            _, height, width = frame.window
            crop = np.ascontiguousarray(seen[:, :, y : y + height, x : x + width])
            found = self._embed(frame, embedder, torch.from_numpy(crop)[None])
            if total is None:
                total = np.zeros((found.shape[0], *frame.cells), np.float32)
            top, left = y // frame.stride[0], x // frame.stride[1]
            part = slice(top, top + found.shape[1]), slice(left, left + found.shape[2])
            fade = np.outer(*(_fading(n) for n in found.shape[1:]))
            total[:, part[0], part[1]] += found * fade
            weight[part] += fade
        assert total is not None
        total /= np.maximum(weight, 1e-6)
        return total

    def _embed(
        self, frame: _Frame, embedder: Embedder, image: torch.Tensor
    ) -> NDArray[np.float32]:
        """(1, C, D, H, W) -> all features joined on the finest grid, (E, h, w)."""
        with autocast(self.device, self.precision):
            maps = embedder(image.to(self.device))
        planes = []
        for name, features in maps.items():
            depth = embedder.stride(name)[0]
            index = min(frame.row // depth, features.shape[2] - 1)
            planes.append(features[:, :, index].float())
        size = max((tuple(p.shape[2:]) for p in planes), key=lambda s: s[0])
        joined = [
            torch.nn.functional.interpolate(p, size, mode="bilinear") for p in planes
        ]
        cells: NDArray[np.float32] = torch.cat(joined, 1)[0].cpu().numpy()
        return cells


class _Frame:
    """Which voxels are shown: windows side by side around the middle of the body.

    Attributes:
        window: Voxels (z, y, x) of a window.
        stride: Voxels (y, x) per cell of the finest feature.
        whole: Windows along y and x that would cover the body.
        box: First voxel and one past the last, per axis; may reach beyond the scan.
        row: The slice shown, counted from the box's first.
        starts: First voxel (y, x) of each window, counted from the box's corner.
        cells: Size (h, w) of the slice in cells.
    """

    def __init__(self, card: Card, window: Index, embedder: Embedder) -> None:
        strides = [embedder.stride(name) for name in embedder.maps]
        self.window = window
        self.stride = min(s[1] for s in strides), min(s[2] for s in strides)
        low, high = card.foreground
        self.middle = [(a + b) // 2 for a, b in zip(low, high, strict=True)]
        # Neighbours share a quarter; all start on a common cell border.
        unit = [lcm(*(s[axis] for s in strides)) for axis in (1, 2)]
        self.step = [
            max(m, n * 3 // 4 // m * m) for n, m in zip(window[1:], unit, strict=True)
        ]
        sizes = [b - a for a, b in zip(low, high, strict=True)][1:]
        rows, columns = (
            1 + max(0, ceil((size - n) / step))
            for size, n, step in zip(sizes, window[1:], self.step, strict=True)
        )
        self.whole: Plane = rows, columns
        self.depth = card.shape[0]
        self.choose(self.whole)

    def choose(self, grid: Plane) -> None:
        """Take so many windows along y and x, centred."""
        sides = [
            (count - 1) * step + n
            for count, step, n in zip(grid, self.step, self.window[1:], strict=True)
        ]
        depth = self.window[0]
        first = min(max(self.middle[0] - depth // 2, 0), max(self.depth - depth, 0))
        self.row = self.middle[0] - first
        corner = [m - side // 2 for m, side in zip(self.middle[1:], sides, strict=True)]
        self.box = (
            (first, first + depth),
            *((a, a + side) for a, side in zip(corner, sides, strict=True)),
        )
        self.starts = list(
            itertools.product(
                *(range(0, n * s, s) for n, s in zip(grid, self.step, strict=True))
            )
        )
        self.cells = ceil(sides[0] / self.stride[0]), ceil(sides[1] / self.stride[1])


def _fading(count: int) -> NDArray[np.float32]:
    """Weights (count,) that fall evenly towards both ends."""
    place = np.arange(count, dtype=np.float32) + 0.5
    weights: NDArray[np.float32] = np.minimum(place, count - place)
    return weights


def _flattened(window: Index, method: Method) -> Index:
    """A third of the crop's depth, where that is legal: a slice needs no more."""
    depth, height, width = window
    divisor = method.encoder().size_divisor[0]
    if method.encoder().spatial_dims == 2:
        return window
    return max(divisor, depth // 3 // divisor * divisor), height, width


def _drawn(
    values: NDArray[np.float32],
    cells: NDArray[np.float32],
    card: Card,
    stride: Plane,
) -> NDArray[np.uint8]:
    """The slice (H, W) in value units, and its features (E, h, w) as colours."""
    body = inside(values, spread_sample(values[None, None]), card.modality == "CT")
    thin = body[stride[0] // 2 :: stride[0], stride[1] // 2 :: stride[1]]
    height, width = cells.shape[1:]
    mask = np.zeros((height, width), np.bool_)
    mask[: thin.shape[0], : thin.shape[1]] = thin[:height, :width]
    flat = cells[:, None]
    colours = fit_colours([flat], [mask[None]]).paint(flat)[:, 0]
    zoom, window = preview_look(card, (values.shape[0], values.shape[1]))
    left = grey(values, zoom, window)
    right: Any = coloured(colours, (zoom[0] * stride[0], zoom[1] * stride[1]))
    right = right[: left.shape[0], : left.shape[1]]
    light = enlarge(body, zoom)[: right.shape[0], : right.shape[1], None]
    right = right * (_AIR_BRIGHTNESS + (1 - _AIR_BRIGHTNESS) * light)
    return as_bytes(beside([left, right]))
