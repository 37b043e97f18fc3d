"""Weighted sums of overlapping windows, kept for one moving slab, and their argmax."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from homolog.errors import JobError
from homolog.geometry.affine import Index
from homolog.tasks._windows import WindowGrid

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
            for c in range(self.channels):
                sums[c].addcmul_(piece[c].to(sums.device, sums.dtype), w)

    def finished(self, stop: int) -> Iterator[tuple[int, Tensor]]:
        """Hand out the rows before ``stop`` not handed out yet, then clear them.

        Yields:
            ``(row, sums (channels + 1, n))`` with the row's n voxels in the order of
            the two other axes; the last channel is the sum of weights. Valid until the
            next one is asked for.
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
    if torch.isnan(values).any():
        raise JobError(
            "the network gave values that are not numbers; its weights or the scan's "
            "intensities are unsound."
        )
