"""The network's output for every window of a scan, in order, in batches that fit."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from homolog.geometry.affine import Index
from homolog.memory import free_bytes
from homolog.sliding.blending import LinearHead, WindowGrid
from homolog.training.footprint import META, USABLE, Held, on_meta, pretended
from homolog.training.stepping import autocast, is_out_of_memory

Network: TypeAlias = nn.Module | Callable[[Tensor], Tensor]
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
        batch: Windows per forward pass, at most; None: one on the CPU, on a GPU as many
            as keep it busy and fit (``windows_at_once``).
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
    batch: int | None = 2
    flips: tuple[int, ...] = ()
    skip_constant: bool = True
    fill: float | tuple[float, ...] = 0.0
    budget_bytes: int | None = None
    precision: str = "fp32"
    follow: Index | None = None
    room_bytes: int | None = None


class WindowPredictor:
    """Windows of one scan through one network.

    On a GPU nothing is waited for: the scan goes up once, in pinned pieces, where it
    takes little of the memory; else windows do, pinned, batch by batch.

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
        self.batch = max(config.batch or 1, 1)
        self.constant = 0
        self._there: Tensor | None = None
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
        if self._there is None and self.device.type == "cuda":
            self._there = sent_whole(self.image, self.device)
        waiting: list[tuple[int, tuple[float, ...] | None]] = []
        pending = 0
        for index in range(len(self.grid.starts)):
            value = None
            if self.config.skip_constant:
                value = constant_value(self._window(index, self.image))
            waiting.append((index, value))
            self.constant += value is not None
            pending += value is None
            if pending >= self.batch:
                yield from self._flush(waiting)
                waiting, pending = [], 0
        yield from self._flush(waiting)

    def _window(self, index: int, image: Tensor) -> Tensor:
        """(C, *window) a view of the image."""
        start = self.grid.starts[index]
        place = (slice(s, s + n) for s, n in zip(start, self.grid.window, strict=True))
        return image[(slice(None), *place)]

    def _flush(
        self, waiting: Sequence[tuple[int, tuple[float, ...] | None]]
    ) -> Iterator[tuple[int, Tensor]]:
        outputs = self._predict([index for index, value in waiting if value is None])
        for index, value in waiting:
            if value is None:
                yield index, next(outputs)
            else:
                yield index, self._constant_output(value)

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

    def _predict(self, windows: Sequence[int | Tensor]) -> Iterator[Tensor]:
        """Outputs of windows, by number or as they are; fewer at once until they fit.

        Where even one does not, the scan leaves the GPU, too.
        """
        first = 0
        while first < len(windows):
            chunk = windows[first : first + self.batch]
            output = None
            try:
                output = self._forward(chunk)
            except (RuntimeError, MemoryError) as error:
                alone = self.batch == 1 and self._there is None
                if not is_out_of_memory(error) or alone:
                    raise
            # The error holds the failed pass's tensors: free them after it is gone.
            if output is None:
                if self.batch == 1:
                    self._there = self.image
                self.batch = max(self.batch // 2, 1)
                free_memory(self.device)
                continue
            yield from output
            first += len(chunk)

    def _sent(self, windows: Sequence[int | Tensor]) -> Tensor:
        """(B, C, *window) raw windows on the device."""
        image = self.image if self._there is None else self._there
        together = torch.stack(
            [w if isinstance(w, Tensor) else self._window(w, image) for w in windows]
        )
        if self.device.type != "cuda":
            return together.to(self.device)
        if together.device.type != "cuda":
            together = together.pin_memory()
        return together.to(self.device, non_blocking=True)

    @torch.no_grad()
    def _forward(self, windows: Sequence[int | Tensor]) -> Tensor:
        """One batch through the network, averaged over mirrorings."""
        image = self.normalise(self._sent(windows))
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


# A scan goes up in such pieces, and whole only where it takes no more than this share
# of what is free.
_PIECE_BYTES = 64_000_000
_SHARE_OF_SCAN = 0.125


def sent_whole(image: Tensor, device: torch.device) -> Tensor | None:
    """A scan (C, D, H, W) on a GPU, on its way there; None where it is too large."""
    free, _ = torch.cuda.mem_get_info(device)
    if image.nbytes > _SHARE_OF_SCAN * free:
        return None
    try:
        there = torch.empty(image.shape, dtype=image.dtype, device=device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None
    rows = max(_PIECE_BYTES // max(image[0, 0].nbytes, 1), 1)
    for channel, target in zip(image, there, strict=True):
        for own, place in zip(channel.split(rows), target.split(rows), strict=True):
            place.copy_(own.pin_memory(), non_blocking=True)
    return there


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


# So many voxels at once keep a GPU busy: more windows make it no faster.
BUSY_VOXELS = 8 * 96**3
# Network -> window and the rest -> bytes of a pass, as ``pass_bytes`` found them.
_PASS_BYTES: WeakKeyDictionary[nn.Module, dict[Any, int | None]] = WeakKeyDictionary()
_UNKNOWN_BATCH = 4


def windows_at_once(
    network: Network,
    channels: int,
    window: Index,
    config: SlidingConfig,
    room: int,
    *,
    features: bool,
) -> int:
    """Windows per forward pass of a GPU: as many as keep it busy and fit.

    Args:
        network: In evaluation mode.
        channels: Of the image.
        window: (D, H, W).
        config: Precision and flips.
        room: Bytes for what a pass holds.
        features: The network is asked for features, not for logits.
    """
    busy = max(BUSY_VOXELS // prod(window), 1)
    each = pass_bytes(network, channels, window, config, features=features)
    if each is None:
        return min(busy, _UNKNOWN_BATCH)
    return max(min(busy, int(USABLE * room / each)), 1)


def pass_bytes(
    network: Network,
    channels: int,
    window: Index,
    config: SlidingConfig,
    *,
    features: bool,
) -> int | None:
    """The most that one window holds on a GPU on its way through a network.

    Found on torch's meta device, as a training step's is (``training.footprint``); the
    weights are not in it.

    Args:
        network: In evaluation mode; it is not touched.
        channels: Of the image.
        window: (D, H, W).
        config: Precision and flips.
        features: As for ``windows_at_once``.

    Returns:
        None for a network that cannot be run without numbers.
    """
    whole = network.network if isinstance(network, SplitNetwork) else network
    if not isinstance(whole, nn.Module):
        return None
    features = features and not isinstance(network, SplitNetwork)
    key = channels, window, config.precision, bool(config.flips), features
    known = _PASS_BYTES.setdefault(whole, {})
    if key not in known:
        try:
            known[key] = _held(whole, channels, window, config, features)
        except Exception:  # noqa: BLE001 - of other people's networks: any
            known[key] = None
    return known[key]


def _held(
    network: nn.Module,
    channels: int,
    window: Index,
    config: SlidingConfig,
    features: bool,
) -> int:
    module: Any = on_meta(network).eval()
    image = torch.empty((1, channels, *window), device=META)
    with (
        pretended(),
        Held() as held,
        torch.no_grad(),
        autocast(META, config.precision),
    ):
        made: Tensor = module.features(image) if features else module(image)
    # the last batch's output is still being added; mirrorings are summed beside it
    outputs = 3 if config.flips else 1
    # stored, as float32, and what is made of it
    return int(held.most) + 3 * image.nbytes + outputs * made.nbytes


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
