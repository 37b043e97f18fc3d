"""Weighted sums of overlapping windows on a GPU, their argmax and means.

As ``blending`` has them, but the host never waits: rows are handed over by the slab,
answers stay on the device until the scan is done, and whether all values were numbers
is asked then, once.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from homolog.geometry.affine import Index
from homolog.sliding import blending
from homolog.sliding.blending import (
    LinearHead,
    WindowGrid,
    label_dtype,
    refuse_no_numbers,
)

# Values that are looked at together: enough to keep a GPU busy, 256 MB as float32.
VALUES_AT_ONCE = 64_000_000


class SlabBlend:
    """Sums of weighted windows, only for the rows that windows still change.

    The first row of the buffer is the first that is not finished; when rows are, the
    others move up. So a window is never cut in two, and added by one kernel (and one
    for the weights, where they count).

    Args:
        channels: Channels of the windows.
        grid: Where the windows stand.
        device: Where the sums are kept.
        dtype: float32, or float64 for float64 networks.
        weighted: Sum the weights, too; a largest value does not need them.
    """

    def __init__(
        self,
        channels: int,
        grid: WindowGrid,
        device: torch.device,
        dtype: torch.dtype,
        *,
        weighted: bool,
    ) -> None:
        self.grid, self.weighted = grid, weighted
        self.depth = grid.window[grid.axis]
        rest = [n for a, n in enumerate(grid.padded) if a != grid.axis]
        self._sums = blending.allocate((channels + 1, self.depth, *rest), device, dtype)
        self._done = 0

    def add(self, start: Index, values: Tensor, weight: Tensor) -> None:
        """Add one window, all earlier rows being handed out.

        Args:
            start: Its first voxel.
            values: (channels, *window), any float type; read only.
            weight: (*window) on the sums' device.
        """
        place = [slice(s, s + n) for s, n in zip(start, self.grid.window, strict=True)]
        place[self.grid.axis] = slice(0, self.depth)
        as_volume = self._sums.movedim(1, self.grid.axis + 1)
        sums = as_volume[(slice(None), *place)]
        if self.weighted:
            sums[-1].add_(weight)
        sums[:-1].addcmul_(values.to(sums.device), weight)

    def finished(self, stop: int) -> Iterator[tuple[int, Tensor]]:
        """Hand out the rows before ``stop`` not handed out yet, then forget them.

        Yields:
            ``(first row, sums (channels + 1, rows * n))``, at most once; rows one
            after another, each with its n voxels in the order of the two other axes;
            the last channel is the sum of weights. Valid until the next one is taken.
        """
        count = stop - self._done
        if count <= 0:
            return
        yield self._done, self._sums[:, :count].flatten(1)
        self._done = stop
        kept = self.depth - count
        for first in range(0, kept, count):
            # what is read lies behind what is written
            last = min(first + count, kept)
            self._sums[:, first:last] = self._sums[:, first + count : last + count]
        self._sums[:, kept:].zero_()


class SlabLabels:
    """As ``blending.Labels``, on the device.

    Args:
        grid: Where the windows stand.
        classes: Number of classes K; sets the integer type.
        several_passes: Keep the best value too, so that later class blocks can compete.
        device: Where they lie.
    """

    def __init__(
        self,
        grid: WindowGrid,
        classes: int,
        several_passes: bool,
        device: torch.device,
    ) -> None:
        self.grid = grid
        rest = [n for a, n in enumerate(grid.padded) if a != grid.axis]
        length = grid.padded[grid.axis]
        self._rest, self._row = rest, rest[0] * rest[1]
        size = length * self._row
        self._labels = torch.zeros(size, dtype=label_dtype(classes), device=device)
        self._odd = torch.zeros((), dtype=torch.bool, device=device)
        self._best = (
            torch.full((size,), -torch.inf, dtype=torch.float32, device=device)
            if several_passes
            else None
        )

    def write(self, row: int, values: Tensor, first_class: int = 0) -> None:
        """Classify rows.

        Args:
            row: The first one.
            values: (K_block, rows * n) logits, any positive scale per voxel.
            first_class: Class of the first channel; earlier blocks win ties.
        """
        for place, part in self._parts(row, values, len(values)):
            best, label = part.max(0)
            self._judge(best)
            own = self._labels[place]
            if self._best is None:
                own.copy_(label)
                continue
            before = self._best[place]
            better = best > before
            own.copy_(torch.where(better, label + first_class, own))
            before.copy_(torch.where(better, best, before))

    def write_features(self, row: int, sums: Tensor, head: LinearHead) -> None:
        """Apply the head to rows of blended features and classify them.

        Args:
            row: The first one.
            sums: (F + 1, rows * n), see ``blending.Labels.write_features``.
            head: The linear head.
        """
        matrix = torch.cat([head.weight, head.bias], dim=1).T
        for place, part in self._parts(row, sums, head.classes):
            best, label = (part.T @ matrix).max(1)
            self._judge(best)
            self._labels[place] = label

    def _parts(
        self, row: int, values: Tensor, each: int
    ) -> Iterator[tuple[slice, Tensor]]:
        """Pieces of columns, and where their voxels lie."""
        step = max(VALUES_AT_ONCE // each, 1)
        for start in range(0, values.shape[1], step):
            part = values[:, start : start + step]
            first = row * self._row + start
            yield slice(first, first + part.shape[1]), part

    def _judge(self, best: Tensor) -> None:
        """NaN counts as the largest."""
        self._odd |= torch.isnan(best).any()

    def volume(self, shape: Index) -> Tensor:
        """(D, H, W) labels on the host, without the padding.

        Raises:
            JobError: A value was no number.
        """
        whole = self._labels.to("cpu")
        refuse_no_numbers(bool(self._odd))
        return _inner(whole[None], self.grid, self._rest, shape)[0]


class SlabValues:
    """As ``blending.Values``, on the device.

    Args:
        grid: Where the windows stand.
        channels: Of the network's output.
        device: Where they lie.
    """

    def __init__(self, grid: WindowGrid, channels: int, device: torch.device) -> None:
        self.grid = grid
        rest = [n for a, n in enumerate(grid.padded) if a != grid.axis]
        self._rest, self._row = rest, rest[0] * rest[1]
        size = channels, grid.padded[grid.axis] * self._row
        self._values = torch.zeros(size, device=device)
        self._odd = torch.zeros((), dtype=torch.bool, device=device)

    def write(self, row: int, sums: Tensor) -> None:
        """Take rows.

        Args:
            row: The first one.
            sums: (K + 1, rows * n) weighted values and, last, the sum of weights.
        """
        first = row * self._row
        own = self._values[:, first : first + sums.shape[1]]
        own.copy_(sums[:-1] / sums[-1])
        self._odd |= torch.isnan(own).any()

    def volume(self, shape: Index) -> Tensor:
        """(K, D, H, W) float32 on the host, without the padding.

        Raises:
            JobError: A value was no number.
        """
        whole = self._values.to("cpu")
        refuse_no_numbers(bool(self._odd))
        return _inner(whole, self.grid, self._rest, shape)


def _inner(flat: Tensor, grid: WindowGrid, rest: list[int], shape: Index) -> Tensor:
    """(K, rows * n) -> (K, D, H, W) without the padding."""
    whole = flat.view(len(flat), -1, *rest).movedim(1, grid.axis + 1)
    inner = (slice(b, b + n) for b, n in zip(grid.before, shape, strict=True))
    return whole[(slice(None), *inner)].contiguous()
