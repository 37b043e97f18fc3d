"""Window attention with a relative position bias, through torch's own attention."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from homolog.geometry.affine import Index

# Shifted windows: how a volume is cut for attention, and who may look at whom.


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


def plan_windows(size: Index, window: Index, shift: Index) -> WindowPlan:
    """Cut a map as MONAI's SwinTransformer cuts it.

    While a network is traced sizes are tensors; the plan is made for their numbers.
    """
    d, h, w = size
    return _plan((int(d), int(h), int(w)), window, shift)


@functools.lru_cache(maxsize=256)
def _plan(size: Index, window: Index, shift: Index) -> WindowPlan:
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


# Scores recomputed at a time in the backward pass: 4 MB of float32, about a core's
# share of the cache, where the whole score matrix of a 64^3 map takes hundreds.
_CHUNK_SCORES = 2**20


class WindowAttention(nn.Module):
    """Multi-head attention inside windows.

    Keys and values are those of MONAI's WindowAttention (1.6.1). A window smaller than
    the one configured takes the first n rows and columns of the position index, as
    there: not the offsets one would draw, but those that published weights were trained
    with.

    Source: Liu et al., Swin Transformer, ICCV 2021, Eq. 4.

    Args:
        dim: Channels.
        heads: Attention heads; must divide ``dim``.
        window: Cells per window (z, y, x).
    """

    relative_position_index: Tensor

    def __init__(self, dim: int, heads: int, window: Index) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        offsets = (2 * window[0] - 1) * (2 * window[1] - 1) * (2 * window[2] - 1)
        self.relative_position_bias_table = nn.Parameter(torch.empty(offsets, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", _position_index(window))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, windows: Tensor, plan: WindowPlan, seen: Tensor | None = None
    ) -> Tensor:
        """(windows, B, n, E) -> the same shape.

        Args:
            windows: Cells of each window, sorted as ``plan.groups`` says.
            plan: How the map was cut.
            seen: Cells that are attended to instead of their own, cut alike.
        """
        count, batch, n, e = windows.shape
        if seen is None:
            qkv = self.qkv(windows)
        else:
            asked = functional.linear(windows, self.qkv.weight[:e], self.qkv.bias[:e])
            told = functional.linear(seen, self.qkv.weight[e:], self.qkv.bias[e:])
            qkv = torch.cat([asked, told], dim=-1)
        qkv = qkv.view(count * batch, n, 3, self.heads, e // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (windows * B, heads, n, e / heads)
        bias = self._bias(n)
        # split, not sliced: backward joins the parts instead of adding padded ones
        sizes = [(stop - first) * batch for _, first, stop in plan.groups]
        parts = zip(*(torch.split(t, sizes) for t in (q, k, v)), strict=True)
        mixed = []
        for (kind, _, _), (asks, keys, told) in zip(plan.groups, parts, strict=True):
            mask = bias
            if kind:
                mask = bias + seam_mask(
                    plan.window, plan.shift, kind, bias.device, bias.dtype
                )
            mixed.append(attend(asks, keys, told, mask, self.scale))
        joined = torch.cat(mixed) if len(mixed) > 1 else mixed[0]
        merged = joined.transpose(1, 2).reshape(count, batch, n, e)
        result: Tensor = self.proj(merged)
        return result

    def _bias(self, n: int) -> Tensor:
        """Relative position bias, (heads, n, n)."""
        index = self.relative_position_index[:n, :n].reshape(-1)
        table = self.relative_position_bias_table
        return functional.embedding(index, table).t().reshape(self.heads, n, n)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """softmax(q k^T * scale + bias) v by scaled_dot_product_attention.

    On a CPU torch's fast kernel has no gradient for the bias, and its fallback keeps
    every score in memory. There the forward pass takes the fast kernel, and the
    backward pass recomputes the scores a few windows at a time, in the cache and in
    float32 whatever the autocast.

    Args:
        q: Queries, (N, heads, n, e).
        k: Keys, (N, heads, n, e).
        v: Values, (N, heads, n, e).
        bias: Added to the scores of every window, (heads, n, n).
        scale: Factor on the products.

    Returns:
        (N, heads, n, e).
    """
    if q.device.type == "cpu" and torch.is_grad_enabled():
        mixed = _RecomputedAttention.apply(q, k, v, bias, scale)  # type: ignore[no-untyped-call]
        return cast("Tensor", mixed)
    return _fast(q, k, v, bias, scale)


def _fast(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    # autocast would round the bias to bfloat16; the CPU kernel takes it as it is
    with torch.autocast(q.device.type, enabled=False):
        if q.device.type != "cpu":
            return _on_gpu(q, k, v, bias, scale)
        return functional.scaled_dot_product_attention(
            q, k, v, attn_mask=bias.unsqueeze(0), scale=scale
        )


# The memory-efficient kernel of CUDA reads rows of 16 bytes: channels of a head, and
# rows of the bias, in steps of eight. Anything else falls back to a kernel that keeps
# all scores (15 GiB instead of 4 for a training step of Swin).
_ALIGNMENT = 8


def _on_gpu(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Attention with its arguments as the memory-efficient kernel takes them."""
    channels = q.shape[-1]
    lacking = -channels % _ALIGNMENT
    if lacking:  # zeros change no score, and what they mix is cut off
        q, k, v = (functional.pad(t, (0, lacking)) for t in (q, k, v))
    mixed = functional.scaled_dot_product_attention(
        q, k, v, attn_mask=aligned(bias.to(q.dtype)).unsqueeze(0), scale=scale
    )
    return mixed[..., :channels] if lacking else mixed


def aligned(bias: Tensor) -> Tensor:
    """The same (heads, n, m): entries of a row lie together, rows in steps of eight."""
    columns = bias.shape[-1]
    padded = functional.pad(bias, (0, -columns % _ALIGNMENT)).contiguous()
    return padded[..., :columns]


class _RecomputedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, bias)
        ctx.scale = scale
        # torch picks its slow kernel for a bias that wants a gradient, even here
        return _fast(q.detach(), k.detach(), v.detach(), bias.detach(), scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias = ctx.saved_tensors
        wide = torch.promote_types(q.dtype, torch.float32)
        wide_bias = bias.to(wide)
        grads = [torch.empty_like(t) for t in (q, k, v)]
        bias_grad = torch.zeros_like(wide_bias)
        step = max(1, _CHUNK_SCORES // bias.numel())
        with torch.autocast("cpu", enabled=False):
            for first in range(0, q.shape[0], step):
                rows = slice(first, first + step)
                parts = [t[rows].to(wide) for t in (q, k, v, grad)]
                found = _gradients(parts, wide_bias, ctx.scale)
                for whole, part in zip(grads, found, strict=False):
                    whole[rows] = part
                bias_grad += found[3]
        return *grads, bias_grad.to(bias.dtype), None


def _gradients(
    parts: list[Tensor], bias: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of a few windows, by q, k, v (N, heads, n, e) and bias (heads, n, n).

    ``parts`` are q, k, v and the gradient of the result, each (N, heads, n, e).
    Products with a narrow result are taken transposed, (e, n) times (n, n): five times
    faster on a CPU than (n, n) times (n, e) at the 4 to 16 channels of a head.
    """
    q, k, v, grad = parts
    scores = (q * scale) @ k.mT
    scores.add_(bias)
    with torch.enable_grad():
        leaf = scores.requires_grad_()
        weights = leaf.softmax(-1)
    (by_scores,) = torch.autograd.grad(weights, leaf, grad @ v.mT)
    by_v = (grad.mT @ weights.detach()).mT
    by_q = (k.mT @ by_scores.mT).mT * scale
    by_k = (q.mT @ by_scores).mT * scale
    return by_q, by_k, by_v, by_scores.sum(0)


def _position_index(window: Index) -> Tensor:
    """Row of the bias table for each pair of cells, (n, n) int64."""
    axes = [torch.arange(side) for side in window]
    cells = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)  # (3, n)
    apart = cells[:, :, None] - cells[:, None, :]
    z, y, x = (apart[i] + window[i] - 1 for i in range(3))
    return (z * (2 * window[1] - 1) + y) * (2 * window[2] - 1) + x
