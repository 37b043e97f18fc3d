"""Shifted windows: how a volume is cut for attention, and who may look at whom."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from homolog.geometry.affine import Index

# What MONAI adds where attention must not look; kept for equal numbers.
_FORBIDDEN = -100.0


@dataclass(frozen=True)
class WindowPlan:
    """The cut of one map size into windows.

    Attributes:
        size: Cells of the map (D, H, W).
        window: Cells per window; a side not larger than the window is one window.
        shift: Cells the map is rolled by before cutting; 0 along such sides.
        grid: Windows along each axis; the map is padded at its far ends to fill them.
        order: Windows sorted so that those with one mask lie together, or None when
            nothing is shifted.
        groups: (kind, first, stop) of each run in that order. A kind is a bit per axis
            (z 4, y 2, x 1): does the window hold the seam of the roll along it?
    """

    size: Index
    window: Index
    shift: Index
    grid: Index
    order: tuple[int, ...] | None
    groups: tuple[tuple[int, int, int], ...]

    @property
    def padding(self) -> Index:
        """Cells added at the far end of each axis."""
        d, h, w = (
            g * n - s for g, n, s in zip(self.grid, self.window, self.size, strict=True)
        )
        return d, h, w


@functools.lru_cache(maxsize=256)
def plan_windows(size: Index, window: Index, shift: Index) -> WindowPlan:
    """Cut a map as MONAI's SwinTransformer cuts it."""
    fits = [n <= m for n, m in zip(size, window, strict=True)]
    used = tuple(n if f else m for n, m, f in zip(size, window, fits, strict=True))
    moved = tuple(0 if f else s for s, f in zip(shift, fits, strict=True))
    grid = tuple(-(-n // m) for n, m in zip(size, used, strict=True))
    count = grid[0] * grid[1] * grid[2]
    order: tuple[int, ...] | None = None
    groups = [(0, 0, count)]
    if any(moved):
        kinds = [
            sum(
                bit
                for bit, i, g, s in zip((4, 2, 1), place, grid, moved, strict=True)
                if s and i == g - 1
            )
            for place in itertools.product(*(range(g) for g in grid))
        ]
        order = tuple(sorted(range(count), key=kinds.__getitem__))
        groups, first = [], 0
        for kind in sorted(set(kinds)):
            stop = first + kinds.count(kind)
            groups.append((kind, first, stop))
            first = stop
    d, h, w = used
    sd, sh, sw = moved
    gd, gh, gw = grid
    return WindowPlan(size, (d, h, w), (sd, sh, sw), (gd, gh, gw), order, tuple(groups))


@functools.lru_cache(maxsize=64)
def seam_mask(
    window: Index, shift: Index, kind: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Additive mask of one kind of window, (n, n): 0 or -100; cached.

    Cells of a window that the roll brought from opposite ends of the map do not see one
    another. Only a window at the far end of an axis holds a seam, so eight masks serve
    any number of windows (MONAI builds one per window and anew in every forward).
    """
    # a tensor made under inference_mode could not be used in training later
    with torch.inference_mode(False), torch.no_grad():
        region = torch.zeros(window, device=device, dtype=torch.int64)
        for axis, bit in enumerate((4, 2, 1)):
            if kind & bit:
                beyond = torch.zeros(window[axis], device=device, dtype=torch.int64)
                beyond[window[axis] - shift[axis] :] = bit
                view = [1, 1, 1]
                view[axis] = -1
                region = region + beyond.view(view)
        flat = region.flatten()
        apart = flat[:, None] != flat[None, :]
        return apart.to(dtype) * _FORBIDDEN


@functools.lru_cache(maxsize=64)
def _orders(order: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """The sorting permutation of windows and its inverse."""
    with torch.inference_mode(False), torch.no_grad():
        forth = torch.tensor(order, device=device)
        return forth, torch.argsort(forth)


def cut(maps: Tensor, plan: WindowPlan) -> Tensor:
    """(B, D, H, W, E) -> (windows, B, n, E), sorted as the plan's groups."""
    pad_d, pad_h, pad_w = plan.padding
    if pad_d or pad_h or pad_w:
        maps = functional.pad(maps, (0, 0, 0, pad_w, 0, pad_h, 0, pad_d))
    if any(plan.shift):
        maps = torch.roll(maps, [-s for s in plan.shift], (1, 2, 3))
    b, e = maps.shape[0], maps.shape[-1]
    (gd, gh, gw), (d, h, w) = plan.grid, plan.window
    parts = maps.view(b, gd, d, gh, h, gw, w, e).permute(1, 3, 5, 0, 2, 4, 6, 7)
    windows = parts.reshape(gd * gh * gw, b, d * h * w, e)
    if plan.order is not None:
        windows = windows.index_select(0, _orders(plan.order, maps.device)[0])
    return windows


def join(windows: Tensor, plan: WindowPlan) -> Tensor:
    """(windows, B, n, E) -> (B, D, H, W, E): undoes :func:`cut`."""
    if plan.order is not None:
        windows = windows.index_select(0, _orders(plan.order, windows.device)[1])
    b, e = windows.shape[1], windows.shape[-1]
    (gd, gh, gw), (d, h, w) = plan.grid, plan.window
    parts = windows.view(gd, gh, gw, b, d, h, w, e).permute(3, 0, 4, 1, 5, 2, 6, 7)
    maps = parts.reshape(b, gd * d, gh * h, gw * w, e)
    if any(plan.shift):
        maps = torch.roll(maps, list(plan.shift), (1, 2, 3))
    depth, height, width = plan.size
    if any(plan.padding):
        maps = maps[:, :depth, :height, :width].contiguous()
    return maps
