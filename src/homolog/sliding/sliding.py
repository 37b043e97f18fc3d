"""A network slid over a whole scan: labels whose memory does not grow with classes."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from homolog.errors import JobError
from homolog.events import Job, Note, Progress, Request
from homolog.geometry.affine import Index
from homolog.memory import free_bytes
from homolog.sliding.blending import (
    Blend,
    Labels,
    LinearHead,
    Values,
    WindowGrid,
    follow_scan,
    gaussian_weight,
    legal_window,
    place_windows,
)
from homolog.training.stepping import autocast, is_out_of_memory
from homolog.words import times

# The network's output for every window of a scan, in order, in batches that fit.


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
        fill: Value of the image outside the scan, before ``normalise``; one of all
            channels or one of each.
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
    fill: float | tuple[float, ...] = 0.0
    budget_bytes: int | None = None
    precision: str = "fp32"
    follow: Index | None = None
    room_bytes: int | None = None


class WindowPredictor:
    """Windows of one scan through one network.

    Args:
        network: (B, C, D, H, W) -> (B, K, D, H, W) logits, in evaluation mode; with
            ``features(image)`` where features are wanted.
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


# A foreign network cut before its last 1 x 1 x 1 convolution, without touching it.


class SplitNetwork:
    """A network whose last layer is one 1 x 1 x 1 convolution, as features and head.

    Args:
        network: (B, C, D, H, W) -> (B, K, D, H, W).
        head: That last layer, a part of ``network``.
    """

    def __init__(self, network: nn.Module, head: nn.Module) -> None:
        self.network = network
        self.head = head

    def features(self, image: Tensor) -> Tensor:
        """What the last layer is given, (B, F, D, H, W); it is not run itself."""
        handle = self.head.register_forward_pre_hook(_stop)
        try:
            self.network(image)
        except _ReachedError as reached:
            return reached.features
        finally:
            handle.remove()
        raise RuntimeError("the network no longer runs through its last layer.")

    def __call__(self, image: Tensor) -> Tensor:
        """Logits (B, K, D, H, W)."""
        logits: Tensor = self.network(image)
        return logits


def split_last_layer(network: nn.Module, example: Tensor) -> SplitNetwork | None:
    """Find the 1 x 1 x 1 convolution whose output is the network's output.

    It is believed only if the network, run on ``example``, calls it once, and if its
    parameters applied to what it was given make the very values the network returns, so
    that nothing happens after it.

    Args:
        network: In evaluation mode.
        example: (1, C, D, H, W) of values unlike one another.

    Returns:
        None where there is no such layer.
    """
    calls: dict[nn.Module, list[Tensor]] = {}

    def remember(layer: nn.Module, given: tuple[Any, ...]) -> None:
        calls.setdefault(layer, []).append(given[0].clone())

    layers = [
        m for m in network.modules()
        if not list(m.children()) and LinearHead.of(m) is not None
    ]  # fmt: skip
    handles = [layer.register_forward_pre_hook(remember) for layer in layers]
    try:
        with torch.no_grad():
            result = network(example)
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(result, Tensor):
        return None
    for layer in reversed(layers):
        given = calls.get(layer, [])
        if len(given) != 1 or given[0].shape[2:] != result.shape[2:]:
            continue
        with torch.no_grad():
            again = layer(given[0])
        if again.shape == result.shape and torch.equal(again, result):
            return SplitNetwork(network, layer)
    return None


class _ReachedError(Exception):
    """The last layer was reached; carries what it was given."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features


def _stop(_: nn.Module, given: tuple[Any, ...]) -> None:
    raise _ReachedError(given[0])


# With the outputs of 105 classes and a 96^3 window this stays below 1.5 GB in all.
HOST_BUDGET_BYTES = 650_000_000
# A network without ``features`` is searched for its last layer from so many classes on.
MANY_CLASSES = 16
REPORT_EVERY_S = 0.2


@dataclass(frozen=True, eq=False)
class SlidingResult:
    """What came of it.

    Attributes:
        labels: (D, H, W) class indices on the host, uint8 or int32.
        windows: Windows that cover the scan.
        constant: Those whose input was constant and whose output was reused.
        passes: Times the windows were gone through (class blocks).
        blended: ``features`` or ``logits``.
        window: The window used.
        batch: Windows per forward pass at the end.
        sums_on: Device of the sums.
    """

    labels: Tensor
    windows: int
    constant: int
    passes: int
    blended: str
    window: Index
    batch: int
    sums_on: str


def slide(
    network: Network,
    image: Tensor,
    *,
    classes: int,
    config: SlidingConfig,
    device: torch.device,
    normalise: Callable[[Tensor], Tensor] | None = None,
) -> Job[SlidingResult | None]:
    """Label every voxel of a volume by a network that sees windows.

    Overlapping windows are blended by a Gaussian in float32, as MONAI's
    ``sliding_window_inference(mode="gaussian")`` does; the labels are the argmax. Two
    things keep memory small. Only the slab that windows still change is held. And a
    network that ends in a 1 x 1 x 1 convolution blends the features before it, where
    they are fewer than its classes: ours offer ``features(image)`` and ``head``, others
    of many classes are searched for such a layer. Any other network goes through the
    windows once per class block when its slab would exceed the budget. Running out of
    memory halves the batch, then moves the sums to the host, then halves the block;
    before all that a window that followed the scan becomes that of training.

    Args:
        network: (B, C, D, H, W) -> (B, K, D, H, W) logits, in evaluation mode.
        image: (C, D, H, W) on the host, any real type.
        classes: Number of classes K.
        config: Window, overlap, batch and the rest.
        device: Where the network lies.
        normalise: Raw windows on the device -> network input; float32 if None.

    Returns:
        The labels; None when stopped.

    Raises:
        JobError: Memory does not suffice for even one window, or the network's values
            are not numbers.
    """
    run = _Slide(network, image, classes, config, device, normalise)
    found: SlidingResult | None = yield from _as_memory_allows(run)
    return found


@dataclass(frozen=True, eq=False)
class SlidingValues:
    """What came of a network whose outputs are values.

    Attributes:
        values: (K, D, H, W) float32 on the host.
        windows: Windows that cover the scan.
        window: The window used.
    """

    values: Tensor
    windows: int
    window: Index


def slide_values(
    network: Network,
    image: Tensor,
    *,
    channels: int,
    config: SlidingConfig,
    device: torch.device,
    normalise: Callable[[Tensor], Tensor] | None = None,
) -> Job[SlidingValues | None]:
    """The outputs themselves of a network that sees windows, blended as by ``slide``.

    Args:
        network: (B, C, D, H, W) -> (B, K, D, H, W), in evaluation mode.
        image: (C, D, H, W) on the host, any real type.
        channels: Of the outputs, K.
        config: Window, overlap, batch and the rest.
        device: Where the network lies.
        normalise: Raw windows on the device -> network input; float32 if None.

    Returns:
        The values; None when stopped.

    Raises:
        JobError: As ``slide``.
    """
    run = _SlideValues(network, image, channels, config, device, normalise)
    found: SlidingValues | None = yield from _as_memory_allows(run)
    return found


def _as_memory_allows(run: _Slide) -> Job[Any]:
    """The passes of a scan, tried again more frugally where memory runs out."""
    while True:
        try:
            return (yield from run.passes())
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            smaller = run.plan.smaller(run.classes)
            if run.follows:
                words = f"windows of {times(run.trained)} voxels"
            elif smaller is None:
                raise JobError(
                    f"memory does not suffice for one window of {run.grid.window} "
                    f"voxels on {run.device}; try --device cpu or a smaller window."
                ) from error
            else:
                run.plan = smaller
                words = smaller.describe()
        free_memory(run.device)
        if run.follows:
            run = run.unfollowed()
        yield Note(f"out of memory; trying again with {words}.", "warning")


@dataclass(frozen=True)
class _Plan:
    """What memory allows; each step down makes it smaller.

    Attributes:
        sums_on: Device of the sums.
        features: Blend features instead of logits.
        block: Classes summed per pass where logits are blended.
    """

    sums_on: torch.device
    features: bool
    block: int

    def smaller(self, classes: int) -> _Plan | None:
        """The next frugal plan, None when there is none left."""
        if self.sums_on.type != "cpu":
            return replace(self, sums_on=torch.device("cpu"))
        if self.features:
            return replace(self, features=False, block=max(min(self.block, classes), 1))
        if self.block > 1:
            return replace(self, block=self.block // 2)
        return None

    def describe(self) -> str:
        """The plan in words."""
        what = "features" if self.features else f"{self.block} classes at once"
        return f"{what}, summed on {self.sums_on}"


class _Slide:
    """One scan, one network; may be gone through several times."""

    def __init__(
        self,
        network: Network,
        image: Tensor,
        classes: int,
        config: SlidingConfig,
        device: torch.device,
        normalise: Callable[[Tensor], Tensor] | None,
    ) -> None:
        if image.ndim != 4:
            raise ValueError(
                f"the image must be (C, D, H, W), got {tuple(image.shape)}."
            )
        self.given = network, image, classes, config, device, normalise
        self.device = device
        self.classes = classes
        self.shape: Index = (image.shape[1], image.shape[2], image.shape[3])
        window = legal_window(
            self.shape, config.window, config.divisor, config.smallest
        )
        larger = self._following(network, image, window, config, device)
        self.trained = window  # what is left to fall back on where memory runs out
        self.follows = larger != window
        self.slicewise, part = config.slicewise, config.overlap
        overlap = (0.0, part, part) if self.slicewise else (part, part, part)
        self.grid = place_windows(self.shape, larger, overlap, front=self.follows)
        exact = image.dtype == torch.float64 and normalise is None
        self.dtype = torch.float64 if exact else torch.float32
        network = _split(network, image, classes, self.grid.window, device, self.dtype)
        self.head = LinearHead.of(getattr(network, "head", None))
        self.predictor = WindowPredictor(
            network,
            _pad(image, self.grid, config.fill),
            self.grid,
            config,
            device,
            normalise or (lambda windows: windows.to(self.dtype)),
        )
        self.plan = self._first_plan(config.budget_bytes, device)

    def unfollowed(self) -> _Slide:
        """The same with windows of training."""
        network, image, classes, config, device, normalise = self.given
        config = replace(config, follow=None)
        return type(self)(network, image, classes, config, device, normalise)

    def _following(
        self,
        network: Network,
        image: Tensor,
        window: Index,
        config: SlidingConfig,
        device: torch.device,
    ) -> Index:
        """A window that follows the scan, where memory holds the network's maps."""
        if config.follow is None or not isinstance(network, nn.Module):
            return window
        larger = follow_scan(self.shape, window, config.follow)
        if larger == window:
            return window
        small = legal_window(config.smallest, window, config.divisor, config.smallest)
        each = map_bytes(network, image.shape[0], small, device)
        room = config.room_bytes
        room = room_for_maps(device) if room is None else room
        return larger if each * prod(larger) <= room else window

    def _first_plan(self, budget_bytes: int | None, device: torch.device) -> _Plan:
        """Features where they are fewer than classes, else logits within the budget."""
        budget = default_budget(device) if budget_bytes is None else budget_bytes
        affordable = max(budget // Blend.bytes_needed(0, self.grid, self.dtype), 1)
        head = self.head
        features = (
            head is not None
            and hasattr(self.predictor.network, "features")
            and head.classes == self.classes
            and head.features < min(self.classes, affordable)
        )
        if not features:
            # A batch of all logits should not dwarf the sums it is added to.
            d, h, w = self.grid.window
            outputs = max(budget // 2 // (self.classes * d * h * w * 4), 1)
            self.predictor.batch = min(self.predictor.batch, outputs)
        passes = -(-self.classes // affordable)
        return _Plan(device, features, -(-self.classes // passes))

    def passes(self) -> Job[Any]:
        """Go through the windows once, or once per class block; None when stopped."""
        plan = self.plan
        first = [0] if plan.features else list(range(0, self.classes, plan.block))
        labels = Labels(self.grid, self.classes, several_passes=len(first) > 1)
        for number, k in enumerate(first):
            block = slice(k, min(k + plan.block, self.classes))
            done = yield from self._one_pass(labels, block, number, len(first))
            if not done:
                return None
        return SlidingResult(
            labels=labels.volume(self.shape),
            windows=len(self.grid.starts),
            constant=self.predictor.constant,
            passes=len(first),
            blended="features" if plan.features else "logits",
            window=self.grid.window,
            batch=self.predictor.batch,
            sums_on=str(plan.sums_on),
        )

    def _one_pass(
        self, labels: Labels, block: slice, number: int, passes: int
    ) -> Job[bool]:
        """All windows once, one block of channels; False when stopped."""
        plan = self.plan
        head = self.head.to(plan.sums_on, self.dtype) if self.head else None
        channels = head.features if plan.features and head else block.stop - block.start

        def classify(row: int, sums: Tensor) -> None:
            if plan.features and head is not None:
                labels.write_features(row, sums, head)
            else:
                labels.write(row, sums[:-1], block.start)

        return (yield from self._blended(channels, block, number, passes, classify))

    def _blended(
        self,
        channels: int,
        block: slice,
        number: int,
        passes: int,
        take: Callable[[int, Tensor], None],
    ) -> Job[bool]:
        """Rows of weighted sums, handed over as they are done; False when stopped."""
        grid, plan = self.grid, self.plan
        _, height, width = grid.window
        bell = (1, height, width) if self.slicewise else grid.window
        weight = gaussian_weight(bell, plan.sums_on, self.dtype).expand(grid.window)
        blend = Blend(channels, grid, plan.sums_on, self.dtype)

        def hand_over(stop: int) -> None:
            for row, sums in blend.finished(stop):
                take(row, sums)

        windows, began, reported = len(grid.starts), time.monotonic(), 0.0
        outputs = self.predictor.outputs(features=plan.features, channels=block)
        for index, output in outputs:
            hand_over(grid.rows_done(index))
            blend.add(grid.starts[index], output, weight)
            now = time.monotonic()
            if now - reported > REPORT_EVERY_S:
                reported, done = now, number * windows + index + 1
                rate = (now - began) / (index + 1)
                left = rate * (windows * passes - done)
                news = Progress("windows", done, windows * passes, remaining_s=left)
                if (yield news) is Request.STOP:
                    return False
        hand_over(grid.rows_done(windows))
        return True


class _SlideValues(_Slide):
    """The same, of a network whose outputs are the values."""

    def _first_plan(self, budget_bytes: int | None, device: torch.device) -> _Plan:
        return _Plan(device, features=False, block=1)

    def passes(self) -> Job[Any]:
        """Go through the windows once; None when stopped."""
        values = Values(self.grid, self.classes)
        block = slice(0, self.classes)
        whole = self._blended(self.classes, block, 0, 1, values.write)
        if not (yield from whole):
            return None
        found = values.volume(self.shape)
        return SlidingValues(found, len(self.grid.starts), self.grid.window)


def _split(
    network: Network,
    image: Tensor,
    classes: int,
    window: Index,
    device: torch.device,
    dtype: torch.dtype,
) -> Network:
    """The network with features and head, where it has many classes and can be cut."""
    whole = isinstance(network, nn.Module) and not hasattr(network, "features")
    if not whole or classes < MANY_CLASSES:
        return network
    noise = torch.Generator().manual_seed(0)
    example = torch.randn((1, image.shape[0], *window), generator=noise, dtype=dtype)
    return split_last_layer(network, example.to(device)) or network  # type: ignore[arg-type]


def default_budget(device: torch.device) -> int:
    """Memory for sums: 650 MB on the host, a third of what is free on a GPU."""
    if device.type != "cuda":
        return HOST_BUDGET_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    return int(free) // 3


def _pad(image: Tensor, grid: WindowGrid, fill: float | tuple[float, ...]) -> Tensor:
    """The image with each side at least as long as the window's."""
    sides = [
        (before, padded - n - before)
        for n, padded, before in zip(
            image.shape[1:], grid.padded, grid.before, strict=True
        )
    ]
    if not any(map(sum, sides)):
        return image
    flat = [n for side in reversed(sides) for n in side]
    if not isinstance(fill, tuple):
        return functional.pad(image, flat, value=fill)
    parts = zip(image, fill, strict=True)
    return torch.stack([functional.pad(c, flat, value=value) for c, value in parts])
