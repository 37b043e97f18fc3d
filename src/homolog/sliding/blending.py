"""Weighted sums of overlapping windows, kept for one moving slab, and their argmax."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from homolog.errors import JobError
from homolog.geometry.affine import Index

# Where a sliding window stands, how much each of its voxels counts.


# Standard deviation of the Gaussian as a share of the window's side, and the smallest
# weight: MONAI's values, so that both blend alike.
SIGMA = 0.125
SMALLEST_WEIGHT = 1e-3


@dataclass(frozen=True)
class WindowGrid:
    """The windows that cover one volume.

    Attributes:
        window: Voxels (D, H, W) of each window.
        padded: Shape of the volume after padding it up to the window.
        before: Voxels padded in front of each axis.
        axis: The axis along which finished slabs are handed out.
        starts: First voxel of each window, sorted along ``axis`` first.
    """

    window: Index
    padded: Index
    before: Index
    axis: int
    starts: tuple[Index, ...]

    def rows_done(self, index: int) -> int:
        """Rows along ``axis`` that no window from ``index`` on touches any more."""
        if index >= len(self.starts):
            return self.padded[self.axis]
        return self.starts[index][self.axis]


def legal_window(
    shape: Index, window: Index, divisor: Index, smallest: Index = (1, 1, 1)
) -> Index:
    """The window shrunk to a smaller volume, each side still a multiple of ``divisor``.

    Args:
        shape: The volume's size (D, H, W).
        window: The window the network was trained with.
        divisor: What every side must be a multiple of; (1, 1, 1) allows any.
        smallest: No side becomes shorter than this.
    """
    d, h, w = (
        min(side, -(-max(n, least) // m) * m)
        for n, side, m, least in zip(shape, window, divisor, smallest, strict=True)
    )
    return d, h, w


# A window may be this much longer than in training along each axis: beyond that the
# statistics of instance norms are others than those learnt with.
MOST_GROWTH = 1.5


def follow_scan(shape: Index, window: Index, divisor: Index) -> Index:
    """The window with each side that of the scan, where it is not much longer.

    Args:
        shape: The scan's size (D, H, W).
        window: As ``legal_window`` gave it.
        divisor: What every longer side must be a multiple of.

    Returns:
        A side longer than the scan, or too short for it by more than half, stays.
    """
    d, h, w = (
        whole if side < n and (whole := -(-n // m) * m) <= MOST_GROWTH * side else side
        for n, side, m in zip(shape, window, divisor, strict=True)
    )
    return d, h, w


def slices_at_once(depth: int, plane: Index, voxels: int) -> int:
    """Depth of the windows of a slice-wise network: a volume in equal parts.

    Args:
        depth: Slices of the volume.
        plane: A window (., H, W).
        voxels: No window has more, as far as one slice allows.
    """
    most = max(voxels // (plane[1] * plane[2]), 1)
    parts = -(-depth // most)
    return -(-depth // parts)


def place_windows(
    shape: Index,
    window: Index,
    overlap: float | tuple[float, float, float],
    *,
    front: bool = False,
) -> WindowGrid:
    """Windows at regular steps; the last of each axis is moved in to end at the border.

    Args:
        shape: The volume's size (D, H, W); smaller sides are padded evenly.
        window: Window size.
        overlap: Shared part of neighbouring windows, 0 <= overlap < 1; of all axes or
            of each.
        front: An odd voxel of padding goes before the scan, not behind it.

    Raises:
        ValueError: ``overlap`` outside 0..1.
    """
    shared = overlap if isinstance(overlap, tuple) else (overlap,) * 3
    if not all(0.0 <= part < 1.0 for part in shared):
        raise ValueError(f"overlap must be at least 0 and below 1, got {overlap}.")
    padded = _index(max(n, side) for n, side in zip(shape, window, strict=True))
    odd = int(front)
    before = _index((p - n + odd) // 2 for p, n in zip(padded, shape, strict=True))
    per_axis = [
        _starts(n, side, part)
        for n, side, part in zip(padded, window, shared, strict=True)
    ]
    # Sums are only kept for one window's depth along this axis, so take the axis where
    # that is the smallest share of the volume.
    axis = min(range(3), key=lambda a: (window[a] / padded[a], a))
    order = [axis, *(a for a in range(3) if a != axis)]
    starts = []
    for place in itertools.product(*(per_axis[a] for a in order)):
        start = [0, 0, 0]
        for a, n in zip(order, place, strict=True):
            start[a] = n
        starts.append(_index(start))
    return WindowGrid(window, padded, before, axis, tuple(starts))


def _starts(length: int, side: int, overlap: float) -> list[int]:
    step = max(int(side * (1.0 - overlap)), 1)
    count = -(-(length - side) // step) + 1
    return [min(i * step, length - side) for i in range(count)]


def _index(values: Iterable[int]) -> Index:
    d, h, w = values
    return d, h, w


def gaussian_weight(
    window: Index, device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Weight of each voxel of a window, (D, H, W), in 1e-3..1; the middle counts most.

    Source: nnU-Net, Isensee et al., Nature Methods 2021; values as MONAI's
        ``compute_importance_map``.
    """
    weight = torch.ones((1, 1, 1))
    for axis, side in enumerate(window):
        place = torch.arange(side, dtype=torch.float32) - (side - 1) / 2.0
        bell = torch.exp(place**2 / (-2.0 * (SIGMA * side) ** 2))
        shape = [1, 1, 1]
        shape[axis] = side
        weight = weight * bell.view(shape)
    weight = weight.clamp_min(max(float(weight.min()), SMALLEST_WEIGHT)).to(dtype)
    if device.type == "cuda":
        return weight.pin_memory().to(device, non_blocking=True)
    return weight.to(device)


# Logits held while a row is classified: few enough for a processor's cache.
VALUES_AT_ONCE = 1_000_000


@dataclass(frozen=True)
class LinearHead:
    """A 1 x 1 x 1 (or, of slices, 1 x 1) convolution as matrices.

    Because it is linear, ``head(blend(features))`` equals ``blend(head(features))``.

    Attributes:
        weight: (K, F).
        bias: (K, 1).
    """

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, head: object) -> LinearHead | None:
        """The matrices of a module that is one convolution of kernel 1, else None."""
        if not isinstance(head, nn.Module):
            return None
        leaves = [m for m in head.modules() if not list(m.children())]
        if len(leaves) != 1 or not isinstance(leaves[0], nn.Conv3d | nn.Conv2d):
            return None
        conv = leaves[0]
        plain = (
            {*conv.kernel_size, *conv.stride} == {1}
            and (conv.padding in ("same", "valid") or not any(conv.padding))
            and conv.groups == 1
        )
        if not plain:
            return None
        weight = conv.weight.detach().flatten(1)
        bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias
        return cls(weight, bias.detach()[:, None])

    @property
    def classes(self) -> int:
        """Number of outputs K."""
        return self.weight.shape[0]

    @property
    def features(self) -> int:
        """Number of inputs F."""
        return self.weight.shape[1]

    def to(self, device: torch.device, dtype: torch.dtype) -> LinearHead:
        """The same on another device."""
        return LinearHead(self.weight.to(device, dtype), self.bias.to(device, dtype))


class Blend:
    """Sums of weighted windows, only for the rows that windows still change.

    The buffer is a ring of one window's depth along ``grid.axis``: row r of the volume
    lies at r modulo the depth. Memory does not grow with that axis' length. Its last
    channel sums the weights themselves.

    Args:
        channels: Channels of the windows.
        grid: Where the windows stand.
        device: Where the sums are kept.
        dtype: float32, or float64 for float64 networks.
    """

    def __init__(
        self, channels: int, grid: WindowGrid, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.grid = grid
        self.channels = channels
        self.depth = grid.window[grid.axis]
        rest = [n for a, n in enumerate(grid.padded) if a != grid.axis]
        self._sums = allocate((channels + 1, self.depth, *rest), device, dtype)
        self._done = 0

    @staticmethod
    def bytes_needed(channels: int, grid: WindowGrid, dtype: torch.dtype) -> int:
        """Memory the sums take."""
        rest = [n for a, n in enumerate(grid.padded) if a != grid.axis]
        values = (channels + 1) * grid.window[grid.axis] * rest[0] * rest[1]
        return values * torch.finfo(dtype).bits // 8

    def add(self, start: Index, values: Tensor, weight: Tensor) -> None:
        """Add one window.

        Args:
            start: Its first voxel.
            values: (channels, *window), any float type; read only.
            weight: (*window) on the sums' device.
        """
        values = values.to(self._sums.device)
        first = start[self.grid.axis] % self.depth
        for rows, part in (
            (slice(first, self.depth), slice(0, self.depth - first)),
            (slice(0, first), slice(self.depth - first, self.depth)),
        ):
            if part.start == part.stop:
                continue
            here = [slice(None)] * 3
            here[self.grid.axis] = part
            w = weight[tuple(here)]
            sums = self._there(start, rows)
            sums[-1] += w
            piece = values[(slice(None), *here)]
            if sums.device.type != "cpu":  # one kernel, which widens as it adds
                sums[:-1].addcmul_(piece, w)
                continue
            for c in range(self.channels):
                sums[c].addcmul_(piece[c].to(sums.dtype), w)

    def finished(self, stop: int) -> Iterator[tuple[int, Tensor]]:
        """Hand out the rows before ``stop`` not handed out yet, then clear them.

        Yields:
            ``(row, sums (channels + 1, n))`` with the row's n voxels in the order of
            the two other axes; the last channel is the sum of weights. Valid until the
            next one is taken.
        """
        for row in range(self._done, stop):
            sums = self._sums[:, row % self.depth]
            yield row, sums.flatten(1)
            sums.zero_()
            self._done = row + 1

    def _there(self, start: Index, rows: slice) -> Tensor:
        """The window's part of the buffer whose ring rows are ``rows``."""
        place = [slice(s, s + n) for s, n in zip(start, self.grid.window, strict=True)]
        place[self.grid.axis] = rows
        as_volume = self._sums.movedim(1, self.grid.axis + 1)
        return as_volume[(slice(None), *place)]


def allocate(
    shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Zeros; the one place where large sums are allocated."""
    return torch.zeros(shape, device=device, dtype=dtype)


class Labels:
    """The label map being filled, row by row.

    Args:
        grid: Where the windows stand.
        classes: Number of classes K; sets the integer type.
        several_passes: Keep the best value too, so that later class blocks can compete.
    """

    def __init__(self, grid: WindowGrid, classes: int, several_passes: bool) -> None:
        self.grid = grid
        self.dtype = label_dtype(classes)
        rest = [n for a, n in enumerate(grid.padded) if a != grid.axis]
        shape = (grid.padded[grid.axis], rest[0] * rest[1])
        self._rest = rest
        self._labels = torch.zeros(shape, dtype=self.dtype)
        self._best = (
            torch.full(shape, -torch.inf, dtype=torch.float32)
            if several_passes
            else None
        )

    def write(self, row: int, values: Tensor, first_class: int = 0) -> None:
        """Classify one row.

        Args:
            row: Row along the grid's axis.
            values: (K_block, n) logits, any positive scale per voxel.
            first_class: Class of the first channel; earlier blocks win ties.
        """
        best, label = running_argmax(values)
        label = (label + first_class).to("cpu", self.dtype)
        if self._best is None:
            self._labels[row] = label
            return
        best = best.to("cpu", torch.float32)
        better = best > self._best[row]
        self._labels[row] = torch.where(better, label, self._labels[row])
        self._best[row] = torch.where(better, best, self._best[row])

    def write_features(self, row: int, sums: Tensor, head: LinearHead) -> None:
        """Apply the head to a row of blended features and classify it, in pieces.

        Args:
            row: Row along the grid's axis.
            sums: (F + 1, n) weighted features and, last, the sum of weights. The
                head's answer for the mean, times that positive sum, has its argmax.
            head: The linear head.
        """
        matrix = torch.cat([head.weight, head.bias], dim=1).T
        step = max(VALUES_AT_ONCE // head.classes, 1)
        for start in range(0, sums.shape[1], step):
            part = slice(start, start + step)
            label = argmax_last(sums[:, part].T @ matrix)
            self._labels[row, part] = label.to("cpu", self.dtype)

    def volume(self, shape: Index) -> Tensor:
        """(D, H, W) labels without the padding."""
        axis, before = self.grid.axis, self.grid.before
        whole = self._labels.view(-1, *self._rest).movedim(0, axis)
        inner = tuple(slice(b, b + n) for b, n in zip(before, shape, strict=True))
        return whole[inner].contiguous()


class Values:
    """The mean values being filled, row by row.

    Args:
        grid: Where the windows stand.
        channels: Of the network's output.
    """

    def __init__(self, grid: WindowGrid, channels: int) -> None:
        self.grid = grid
        rest = [n for a, n in enumerate(grid.padded) if a != grid.axis]
        self._rest, length = rest, grid.padded[grid.axis]
        self._values = torch.zeros((channels, length, rest[0] * rest[1]))

    def write(self, row: int, sums: Tensor) -> None:
        """Take one row.

        Args:
            row: Row along the grid's axis.
            sums: (K + 1, n) weighted values and, last, the sum of weights.

        Raises:
            JobError: A value is no number.
        """
        values = sums[:-1] / sums[-1]
        _check_numbers(values)
        self._values[:, row] = values.to("cpu", torch.float32)

    def volume(self, shape: Index) -> Tensor:
        """(K, D, H, W) float32 without the padding."""
        axis, before = self.grid.axis, self.grid.before
        channels = len(self._values)
        whole = self._values.view(channels, -1, *self._rest).movedim(1, axis + 1)
        inner = tuple(slice(b, b + n) for b, n in zip(before, shape, strict=True))
        return whole[(slice(None), *inner)].contiguous()


def label_dtype(classes: int) -> torch.dtype:
    """The smallest integer type that holds the class indices."""
    return torch.uint8 if classes <= 256 else torch.int32


def argmax_last(values: Tensor) -> Tensor:
    """Index of the largest value along the last axis; the first index wins ties.

    On the CPU by numpy, which is several times as fast as torch there.

    Args:
        values: (n, K).

    Returns:
        (n,) int64.

    Raises:
        JobError: A value is NaN.
    """
    if values.device.type == "cpu":
        index = torch.from_numpy(values.numpy().argmax(axis=1))
    else:
        index = values.argmax(1)
    # NaN counts as the largest, here and there.
    _check_numbers(values.gather(1, index[:, None]))
    return index


def running_argmax(values: Tensor) -> tuple[Tensor, Tensor]:
    """Largest value and its index along the first axis; the first index wins ties.

    On the CPU one pass per class: torch's argmax over a leading axis of 105 takes more
    than twice as long there.

    Args:
        values: (K, n).

    Returns:
        ``(best (n,), index (n,) int)``.

    Raises:
        JobError: A value is NaN.
    """
    if values.device.type != "cpu":
        best, index = values.max(0)
    else:
        best = values[0].clone()
        index = torch.zeros(best.shape, dtype=torch.int16)
        larger = torch.empty(best.shape, dtype=torch.bool)
        for k in range(1, len(values)):
            torch.gt(values[k], best, out=larger)
            index.masked_fill_(larger, k)
            torch.maximum(best, values[k], out=best)
    _check_numbers(best)
    return best, index


def _check_numbers(values: Tensor) -> None:
    refuse_no_numbers(bool(torch.isnan(values).any()))


def refuse_no_numbers(odd: bool) -> None:
    """Where a network's values are NaN.

    Raises:
        JobError: They are.
    """
    if odd:
        raise JobError(
            "the network gave values that are not numbers; its weights or the scan's "
            "intensities are unsound."
        )
