"""Batches made ahead by processes: planning in Python holds up no other thread.

PyTorch's own DataLoader starts them (spawned: a process that holds a GPU cannot be
forked), hands tensors over in shared memory, copies them into pinned memory beside the
training, and lets them end when the training is gone, even by a kill. A batch is a
function of its number, so it has the same bytes wherever it is made.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from torch.utils.data import DataLoader, Dataset, Sampler

from homolog.errors import JobError

_AHEAD = 2  # batches each process makes before they are asked for
# What is to be made: step, share of the training done, samples.
Order = tuple[int, float, int]


class Source(Protocol):
    """What is copied into processes: a feed."""

    def with_batch_size(self, batch_size: int) -> Source:
        """The same with other batches."""

    def batch(self, step: int, progress: float | None = None) -> Any:
        """The batch of a step."""


class _Made(Dataset[Any]):
    """Makes what is ordered; an error is handed over, to be raised where it matters."""

    def __init__(self, feed: Source) -> None:
        self.feed = feed

    def __getitem__(self, order: Order) -> Any:
        step, share, samples = order
        try:
            return self.feed.with_batch_size(samples).batch(step, share)
        except Exception as error:  # noqa: BLE001 - raised in the training's process
            return error


class _Orders(Sampler[Order]):
    """What the next pass over the loader makes."""

    def __init__(self) -> None:
        self.orders: list[Order] | Callable[[], Iterator[Order]] = []

    def __iter__(self) -> Iterator[Order]:
        return iter(self.orders() if callable(self.orders) else self.orders)


class Processes:
    """The processes of a feed; they stay from one stretch of batches to the next.

    Args:
        feed: Which they copy.
        count: Of processes.
        pin: Whether batches wait in pinned memory.
    """

    def __init__(self, feed: Source, count: int, pin: bool) -> None:
        self._orders = _Orders()
        context: Any = multiprocessing.get_context("spawn")
        self._loader: DataLoader[Any] = DataLoader(
            _Made(feed), batch_size=None, sampler=self._orders, num_workers=count,
            multiprocessing_context=context, prefetch_factor=_AHEAD,
            persistent_workers=True, pin_memory=pin,
        )  # fmt: skip

    def stream(
        self, first: int, stop: int, share: Callable[[int], float], samples: int
    ) -> Iterator[Any]:
        """Batches ``first`` to ``stop - 1`` in order.

        Raises:
            JobError: A process was ended from outside.
        """
        self._orders.orders = lambda: (
            (step, share(step), samples) for step in range(first, stop)
        )
        batches = iter(self._loader)
        while True:
            try:
                made = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise JobError(
                    "a process that reads crops ahead ended by itself (killed, or out "
                    "of memory?); fewer are asked for by feed_processes, 0 reads by "
                    "threads."
                ) from error
            if isinstance(made, Exception):
                raise made
            yield made

    def close(self) -> None:
        """End them."""
        running = getattr(self._loader, "_iterator", None)
        if running is not None:
            with contextlib.suppress(AttributeError, RuntimeError):
                running._shutdown_workers()
            self._loader._iterator = None
