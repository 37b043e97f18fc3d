"""A network slid over a whole scan: labels whose memory does not grow with classes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from homolog.errors import JobError
from homolog.events import Job, Note, Progress, Request
from homolog.geometry.affine import Index
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
from homolog.sliding.on_gpu import SlabBlend, SlabLabels, SlabValues
from homolog.sliding.windows import (
    Network,
    SlidingConfig,
    WindowPredictor,
    free_memory,
    map_bytes,
    room_for_maps,
    split_last_layer,
    windows_at_once,
)
from homolog.training.stepping import is_out_of_memory
from homolog.words import times

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
        self._choose_batch(features=features)
        if not features:
            # A batch of all logits should not dwarf the sums it is added to.
            d, h, w = self.grid.window
            outputs = max(budget // 2 // (self.classes * d * h * w * 4), 1)
            self.predictor.batch = min(self.predictor.batch, outputs)
        passes = -(-self.classes // affordable)
        return _Plan(device, features, -(-self.classes // passes))

    def _choose_batch(self, *, features: bool) -> None:
        """Where nobody says: as a GPU's memory allows, one on the CPU."""
        asked = self.predictor
        if asked.config.batch is None and self.device.type == "cuda":
            asked.batch = windows_at_once(
                asked.network, len(asked.image), self.grid.window, asked.config,
                room_for_maps(self.device), features=features,
            )  # fmt: skip

    def passes(self) -> Job[Any]:
        """Go through the windows once, or once per class block; None when stopped."""
        plan = self.plan
        first = [0] if plan.features else list(range(0, self.classes, plan.block))
        labels = self._labels(several_passes=len(first) > 1)
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

    def _labels(self, *, several_passes: bool) -> Labels | SlabLabels:
        sums_on = self.plan.sums_on
        if sums_on.type == "cpu":
            return Labels(self.grid, self.classes, several_passes)
        return SlabLabels(self.grid, self.classes, several_passes, sums_on)

    def _one_pass(
        self, labels: Labels | SlabLabels, block: slice, number: int, passes: int
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

        return (
            yield from self._blended(
                channels, block, number, passes, classify, weighted=plan.features
            )
        )

    def _blended(
        self,
        channels: int,
        block: slice,
        number: int,
        passes: int,
        take: Callable[[int, Tensor], None],
        *,
        weighted: bool = True,
    ) -> Job[bool]:
        """Rows of weighted sums, handed over as they are done; False when stopped."""
        grid, plan = self.grid, self.plan
        _, height, width = grid.window
        bell = (1, height, width) if self.slicewise else grid.window
        weight = gaussian_weight(bell, plan.sums_on, self.dtype).expand(grid.window)
        blend: Blend | SlabBlend = (
            Blend(channels, grid, plan.sums_on, self.dtype)
            if plan.sums_on.type == "cpu"
            else SlabBlend(channels, grid, plan.sums_on, self.dtype, weighted=weighted)
        )

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
        self._choose_batch(features=False)
        return _Plan(device, features=False, block=1)

    def passes(self) -> Job[Any]:
        """Go through the windows once; None when stopped."""
        sums_on = self.plan.sums_on
        values: Values | SlabValues = (
            Values(self.grid, self.classes)
            if sums_on.type == "cpu"
            else SlabValues(self.grid, self.classes, sums_on)
        )
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
