"""The network's output for every window of a scan, in order, in batches that fit."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from homolog.data.free_memory import free_bytes
from homolog.geometry.affine import Index
from homolog.tasks._windows import WindowGrid
from homolog.training.precision import autocast
from homolog.training.stepping import is_out_of_memory

Network = nn.Module | Callable[[Tensor], Tensor]
# A window that must be predicted, or the constant value (per channel) it consists of.
_Window = Tensor | tuple[float, ...]
CONSTANTS_KEPT = 2


@dataclass(frozen=True)
class SlidingConfig:
    """How a network is slid over a scan.

    Attributes:
        window: Window it was trained with (D, H, W).
        divisor: Every window side is a multiple of this when the scan is smaller.
        smallest: No window side becomes shorter than this then.
        overlap: Shared part of neighbouring windows.
        slicewise: The network sees each slice of a window by itself: windows do not
            overlap along z, and all slices of a window count alike.
        batch: Windows per forward pass, at most.
        flips: Axes (0 z, 1 y, 2 x); predictions of all their mirrorings are averaged.
        skip_constant: Reuse one prediction for all windows of one constant value.
        fill: Value of the image outside the scan, before ``normalise``.
        budget_bytes: Memory for the sums of overlapping windows; None: 650 MB on the
            host, a third of what is free on a GPU.
        precision: ``fp32``, or ``bf16`` or ``fp16`` for autocast.
        follow: Where the scan is not much larger than the window, the window follows
            it, each side a multiple of this, as far as memory allows; None: it stays.
        room_bytes: Memory for the network's maps of such a window; None: half of what
            is free.
    """

    window: Index
    divisor: Index = (1, 1, 1)
    smallest: Index = (1, 1, 1)
    overlap: float = 0.5
    slicewise: bool = False
    batch: int = 2
    flips: tuple[int, ...] = ()
    skip_constant: bool = True
    fill: float = 0.0
    budget_bytes: int | None = None
    precision: str = "fp32"
    follow: Index | None = None
    room_bytes: int | None = None


class WindowPredictor:
    """Windows of one scan through one network.

    Args:
        network: (B, C, D, H, W) -> (B, K, D, H, W) logits, in evaluation mode; with
            ``features(image)`` where features are asked for.
        image: (C, *grid.padded) on the host, any real type.
        grid: Where the windows stand.
        config: Batch, flips, precision.
        device: Where the network lies.
        normalise: Raw windows on the device -> network input.

    Attributes:
        batch: Windows per forward pass; halved when memory runs out.
        constant: Windows answered from a constant's output in the last round.
    """

    def __init__(
        self,
        network: Network,
        image: Tensor,
        grid: WindowGrid,
        config: SlidingConfig,
        device: torch.device,
        normalise: Callable[[Tensor], Tensor],
    ) -> None:
        self.network, self.image, self.grid = network, image, grid
        self.config, self.device, self.normalise = config, device, normalise
        self.batch = max(config.batch, 1)
        self.constant = 0
        self._features = False
        self._channels = slice(None)
        self._of_constants: dict[tuple[float, ...], Tensor] = {}

    def outputs(
        self, *, features: bool, channels: slice = slice(None)
    ) -> Iterator[tuple[int, Tensor]]:
        """Each window's number and output (channels, *window), in the grid's order.

        Args:
            features: Ask the network for features instead of logits.
            channels: Which of the logits; all features are handed out.
        """
        self._features, self._channels = features, channels
        self._of_constants.clear()
        self.constant = 0
        waiting: list[tuple[int, _Window]] = []
        pending = 0
        for index, start in enumerate(self.grid.starts):
            place = tuple(
                slice(s, s + n) for s, n in zip(start, self.grid.window, strict=True)
            )
            window = self.image[(slice(None), *place)]
            value = constant_value(window) if self.config.skip_constant else None
            waiting.append((index, window if value is None else value))
            self.constant += value is not None
            pending += value is None
            if pending >= self.batch:
                yield from self._flush(waiting)
                waiting, pending = [], 0
        yield from self._flush(waiting)

    def _flush(
        self, waiting: Sequence[tuple[int, _Window]]
    ) -> Iterator[tuple[int, Tensor]]:
        outputs = self._predict([w for _, w in waiting if isinstance(w, Tensor)])
        for index, window in waiting:
            if isinstance(window, Tensor):
                yield index, next(outputs)
            else:
                yield index, self._constant_output(window)

    def _constant_output(self, value: tuple[float, ...]) -> Tensor:
        """The output for a window of one value per channel, predicted once."""
        if value not in self._of_constants:
            if len(self._of_constants) >= CONSTANTS_KEPT:
                self._of_constants.pop(next(iter(self._of_constants)))
            window = self.image.new_empty((len(value), *self.grid.window))
            for channel, number in zip(window, value, strict=True):
                channel.fill_(number)
            (output,) = self._predict([window])
            self._of_constants[value] = output.clone()
        return self._of_constants[value]

    def _predict(self, windows: Sequence[Tensor]) -> Iterator[Tensor]:
        """Outputs of windows; the batch is halved until it fits in memory."""
        first = 0
        while first < len(windows):
            chunk = windows[first : first + self.batch]
            output = None
            try:
                output = self._forward(torch.stack(list(chunk)))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or self.batch == 1:
                    raise
            # The error holds the failed pass's tensors: free them after it is gone.
            if output is None:
                self.batch //= 2
                free_memory(self.device)
                continue
            yield from output
            first += len(chunk)

    @torch.no_grad()
    def _forward(self, windows: Tensor) -> Tensor:
        """One batch through the network, averaged over mirrorings."""
        image = self.normalise(windows.to(self.device))
        mirrorings = [
            [axis + 2 for axis in axes]
            for n in range(len(self.config.flips) + 1)
            for axes in itertools.combinations(self.config.flips, n)
        ]
        if len(mirrorings) == 1:
            return self._output(image)
        total = self._output(image).float()
        for axes in mirrorings[1:]:
            total = total + self._output(image.flip(axes)).flip(axes)
        return total / len(mirrorings)

    def _output(self, image: Tensor) -> Tensor:
        with autocast(self.device, self.config.precision):
            if self._features:
                features: Tensor = self.network.features(image)  # type: ignore[union-attr,operator]
                return features
            logits: Tensor = self.network(image)
        return logits[:, self._channels]


def constant_value(window: Tensor) -> tuple[float, ...] | None:
    """The value per channel of a window (C, D, H, W) whose channels are constant."""
    values = []
    for channel in window:
        low, high = torch.aminmax(channel)
        if not bool(low == high):
            return None
        values.append(low.item())
    return tuple(values)


# Network -> bytes of all its maps per voxel of a window.
_MAP_BYTES: WeakKeyDictionary[nn.Module, float] = WeakKeyDictionary()
# What a network computes between its layers (sums, joined maps) is not seen there.
_UNSEEN = 1.5
_UNKNOWN_ROOM = 1_000_000_000


def map_bytes(
    network: nn.Module, channels: int, window: Index, device: torch.device
) -> float:
    """Memory that all maps of a network take together, per voxel of a window.

    More than is ever held at once: most maps are freed before the last are made.

    Args:
        network: In evaluation mode, on the device.
        channels: Of the image.
        window: A small legal one (D, H, W), through which the maps are measured.
        device: Where the network lies.
    """
    if network not in _MAP_BYTES:
        total = 0

        def count(part: nn.Module, given: Any, made: Any) -> None:
            nonlocal total
            if isinstance(made, Tensor):
                total += made.numel() * max(made.element_size(), 4)

        dtype = next((p.dtype for p in network.parameters()), torch.float32)
        leaves = [m for m in network.modules() if not list(m.children())]
        hooks = [leaf.register_forward_hook(count) for leaf in leaves]
        try:
            with torch.no_grad():
                network(torch.zeros((1, channels, *window), dtype=dtype, device=device))
        finally:
            for hook in hooks:
                hook.remove()
        _MAP_BYTES[network] = _UNSEEN * total / prod(window)
    return _MAP_BYTES[network]


def room_for_maps(device: torch.device) -> int:
    """Half of the memory that is free where a network runs; 1 GB where unknown."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (int(free) + max(kept, 0)) // 2
    return free_bytes() // 2 or _UNKNOWN_ROOM


def free_memory(device: torch.device) -> None:
    """Give a GPU's cached blocks back."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
