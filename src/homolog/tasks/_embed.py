"""Dense features of a whole scan: windows slid over it, blended on the feature grid.

Windows start at multiples of the stride, so the cells of all windows coincide and are
averaged as they are; nothing is interpolated but the coarser of several joined maps,
and nothing is ever blown up to voxels.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import lcm
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from homolog.data.preprocess import Intensities
from homolog.errors import UnusableInput
from homolog.events import Job, Progress, Request
from homolog.geometry.affine import Index
from homolog.methods._base import Embedder
from homolog.tasks._blending import Blend
from homolog.tasks._windows import WindowGrid, gaussian_weight, legal_window
from homolog.training.precision import autocast

# Distinct constant windows whose features are kept (air, padding).
_CONSTANTS_KEPT = 4


class Voxels(Protocol):
    """What slices like a (C, D, H, W) int16 array, in memory or in a store."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, D, H, W)."""

    def __getitem__(self, key: Any) -> Any:
        """Basic slicing."""


@dataclass(frozen=True, eq=False)
class Scan:
    """A prepared scan as the embedder reads it.

    Attributes:
        data: (C, D, H, W) int16.
        scale: Value units per step.
        offset: Value of a stored 0.
        intensity: How values are normalised.
        name: For messages.
    """

    data: Voxels
    scale: float
    offset: float
    intensity: Intensities
    name: str = "scan"

    @property
    def shape(self) -> Index:
        """(D, H, W)."""
        d, h, w = self.data.shape[1:]
        return d, h, w

    @property
    def outside(self) -> float:
        """What a network sees beyond the scan: the normalised darkest value."""
        return (self.intensity.low - self.intensity.centre) / self.intensity.spread

    def window(self, start: Index, size: Index) -> NDArray[np.float32]:
        """(C, *size) normalised values; beyond the scan ``outside``."""
        inner = tuple(
            slice(s, min(s + n, end))
            for s, n, end in zip(start, size, self.shape, strict=True)
        )
        stored = np.asarray(self.data[(slice(None), *inner)])
        values = stored.astype(np.float32)
        values *= np.float32(self.scale)
        values += np.float32(self.offset)
        block = self.intensity.normalise(values)
        if block.shape[1:] == size:
            return block
        whole = np.full((block.shape[0], *size), self.outside, np.float32)
        whole[(slice(None), *(slice(0, n) for n in block.shape[1:]))] = block
        return whole


@dataclass(frozen=True)
class Sliding:
    """How the windows slide.

    Attributes:
        window: Voxels (D, H, W) of a window, a multiple of ``unit``.
        shape: The scan's size.
        unit: Every window start and size is a multiple of it (z, y, x).
        starts: First voxel of each window, sorted along ``axis`` first.
        axis: Along which finished rows are handed out.
    """

    window: Index
    shape: Index
    unit: Index
    starts: tuple[Index, ...]
    axis: int

    def cells(self, stride: Index) -> WindowGrid:
        """The same windows counted in cells of a stride."""
        window = _divide(self.window, stride)
        starts = tuple(_divide(s, stride) for s in self.starts)
        last = [max(s[a] for s in starts) + window[a] for a in range(3)]
        return WindowGrid(
            window, (last[0], last[1], last[2]), (0, 0, 0), self.axis, starts
        )


def slide(shape: Index, window: Index, unit: Index, overlap: float) -> Sliding:
    """Windows that cover a scan, all starts aligned to the unit.

    Args:
        shape: The scan's size (D, H, W).
        window: Wanted window, shrunk to small scans and to a multiple of ``unit``.
        unit: Least common multiple of strides and the network's size divisor.
        overlap: Shared part of neighbouring windows, 0 <= overlap < 1.

    Raises:
        ValueError: ``overlap`` outside 0..1.
    """
    if not 0.0 <= overlap < 1.0:
        raise ValueError(f"overlap must be at least 0 and below 1, got {overlap}.")
    wanted = tuple(max(m, n // m * m) for n, m in zip(window, unit, strict=True))
    size = legal_window(shape, (wanted[0], wanted[1], wanted[2]), unit)
    per_axis = []
    for n, side, m in zip(shape, size, unit, strict=True):
        step = max(int(side * (1.0 - overlap)) // m * m, m)
        end = max(-(-(n - side) // m) * m, 0)  # the last window may reach beyond
        per_axis.append(sorted({*range(0, end, step), end}))
    axis = min(range(3), key=lambda a: (size[a] / shape[a], a))
    order = [axis, *(a for a in range(3) if a != axis)]
    starts = []
    for place in itertools.product(*(per_axis[a] for a in order)):
        start = [0, 0, 0]
        for a, n in zip(order, place, strict=True):
            start[a] = n
        starts.append((start[0], start[1], start[2]))
    return Sliding(size, shape, unit, tuple(starts), axis)


def unit_of(embedder: Embedder) -> Index:
    """What window starts and sizes must be multiples of."""
    strides = [embedder.stride(name) for name in embedder.maps]
    divisor = embedder.backbone.size_divisor
    if embedder.backbone.spatial_dims == 2:
        divisor = (1, *divisor[-2:])
    z, y, x = (lcm(divisor[a], *(s[a] for s in strides)) for a in range(3))
    return z, y, x


@torch.inference_mode()
def feature_rows(
    scan: Scan,
    embedder: Embedder,
    sliding: Sliding,
    outputs: Mapping[str, NDArray[np.float16]],
    device: torch.device,
    batch_size: int = 1,
    precision: str = "fp32",
) -> Job[dict[str, int] | None]:
    """Slide the windows and fill one array per feature, row by finished row.

    Args:
        scan: What is embedded.
        embedder: In evaluation mode, on the device.
        sliding: Where the windows stand.
        outputs: Feature name -> (d, h, w, E) array to fill, the grid of its stride.
        device: Where the network runs.
        batch_size: Windows per forward pass.
        precision: ``fp32``, or ``bf16`` or ``fp16`` for autocast; sums are float32.

    Returns:
        Counts: ``windows`` and ``constant`` (of these, windows of one single value,
        whose features were computed once); None when told to stop.
    """
    fill = _Fill(embedder, sliding, outputs, device)
    constants: dict[float, dict[str, Tensor]] = {}
    counts = {"windows": len(sliding.starts), "constant": 0}
    began = time.monotonic()
    for done, batch in _batches(scan, sliding, batch_size):
        with autocast(device, precision):
            maps = _forward(embedder, batch, constants, device, counts)
        first = done - len(batch)
        for i, ((start, _), features) in enumerate(zip(batch, maps, strict=True)):
            fill.write(first + i)  # the sums are a ring: free its rows before adding
            fill.add(start, features)
        left = (time.monotonic() - began) / done * (len(sliding.starts) - done)
        request = yield Progress(
            "embedding", done, len(sliding.starts), scan.name, remaining_s=left
        )
        if request is Request.STOP:
            return None
    fill.write(len(sliding.starts))
    return counts


def _batches(
    scan: Scan, sliding: Sliding, batch_size: int
) -> Iterator[tuple[int, list[tuple[Index, NDArray[np.float32]]]]]:
    """(windows read so far, [(start, (C, *window)), ...])."""
    for first in range(0, len(sliding.starts), batch_size):
        starts = sliding.starts[first : first + batch_size]
        windows = [(s, scan.window(s, sliding.window)) for s in starts]
        yield first + len(starts), windows


def _forward(
    embedder: Embedder,
    batch: list[tuple[Index, NDArray[np.float32]]],
    constants: dict[float, dict[str, Tensor]],
    device: torch.device,
    counts: dict[str, int],
) -> list[dict[str, Tensor]]:
    """Features of each window; windows of one known value are not computed again."""
    found: list[dict[str, Tensor] | None] = []
    todo: list[NDArray[np.float32]] = []
    values: list[float | None] = []
    for _, block in batch:
        value = float(block.flat[0])
        same = bool((block == block.flat[0]).all())
        values.append(value if same else None)
        known = constants.get(value) if same else None
        counts["constant"] += same
        found.append(known)
        if known is None:
            todo.append(block)
    if todo:
        maps = embed_windows(embedder, torch.from_numpy(np.stack(todo)).to(device))
        position = 0
        for i, known in enumerate(found):
            if known is not None:
                continue
            own = {name: values_[position] for name, values_ in maps.items()}
            position += 1
            found[i] = own
            value_i = values[i]
            if value_i is not None and len(constants) < _CONSTANTS_KEPT:
                constants[value_i] = own
    return [f for f in found if f is not None]


def embed_windows(embedder: Embedder, windows: Tensor) -> dict[str, Tensor]:
    """Features of windows (B, C, D, H, W), name -> (B, E, d, h, w) unit norm.

    Raises:
        UnusableInput: The encoder wants another number of channels.
    """
    wanted = int(getattr(embedder.backbone.config, "in_channels", windows.shape[1]))
    if windows.shape[1] != wanted:
        raise UnusableInput(
            f"this encoder takes {wanted} channel(s), the scan has {windows.shape[1]}."
        )
    maps: dict[str, Tensor] = embedder(windows)
    return maps


class _Fill:
    """Blended sums of all features, written to their arrays as rows get finished."""

    def __init__(
        self,
        embedder: Embedder,
        sliding: Sliding,
        outputs: Mapping[str, NDArray[np.float16]],
        device: torch.device,
    ) -> None:
        self.sliding = sliding
        self.outputs = outputs
        self.strides = {name: embedder.stride(name) for name in outputs}
        self.grids = {name: sliding.cells(s) for name, s in self.strides.items()}
        self.weights = {
            name: gaussian_weight(grid.window, device)
            for name, grid in self.grids.items()
        }
        self.blends = {
            name: Blend(outputs[name].shape[-1], grid, device, torch.float32)
            for name, grid in self.grids.items()
        }

    def add(self, start: Index, features: Mapping[str, Tensor]) -> None:
        for name, blend in self.blends.items():
            cell = _divide(start, self.strides[name])
            blend.add(cell, features[name], self.weights[name])

    def write(self, done: int) -> None:
        """Write the rows that windows from ``done`` on cannot change."""
        for name, blend in self.blends.items():
            grid, array = self.grids[name], self.outputs[name]
            axis = grid.axis
            rest = [n for a, n in enumerate(grid.padded) if a != axis]
            for row, sums in blend.finished(grid.rows_done(done)):
                if row >= array.shape[axis]:
                    continue
                # The sum of weights cancels: only a feature's direction counts.
                unit = torch.nn.functional.normalize(sums[:-1], dim=0, eps=1e-12)
                plane = unit.T.reshape(*rest, -1).to("cpu", torch.float16).numpy()
                target = np.moveaxis(array, axis, 0)[row]
                target[:] = plane[: target.shape[0], : target.shape[1]]


def feature_grid(shape: Index, stride: Index) -> Index:
    """Cells (d, h, w) that cover a scan."""
    d, h, w = (-(-n // s) for n, s in zip(shape, stride, strict=True))
    return d, h, w


def _divide(index: Index, stride: Index) -> Index:
    z, y, x = (i // s for i, s in zip(index, stride, strict=True))
    return z, y, x
