"""Two threads that homolog.distributed takes for two processes: nothing is started."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest
import torch
import torch.distributed as real
from torch import Tensor

from homolog import distributed

T = TypeVar("T")
# A collective that one of them does not join ends with an error.
_TIMEOUT_S = 120


class _Meeting:
    """Stands in for torch.distributed; a thread without a rank is alone."""

    ReduceOp = real.ReduceOp

    def __init__(self) -> None:
        self.here = threading.local()
        self.barrier_of_two = threading.Barrier(2, timeout=_TIMEOUT_S)
        self.brought: list[Any] = [None, None]

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return hasattr(self.here, "rank")

    def get_rank(self) -> int:
        return self.here.rank

    def get_world_size(self) -> int:
        return 2

    def exchanged(self, value: Any) -> list[Any]:
        """What both bring, in rank order."""
        self.brought[self.here.rank] = value
        self.barrier_of_two.wait()
        both = list(self.brought)
        self.barrier_of_two.wait()
        return both

    def all_gather(self, parts: list[Tensor], tensor: Tensor) -> None:
        for part, value in zip(parts, self.exchanged(tensor.clone()), strict=True):
            part.copy_(value)

    def all_reduce(self, tensor: Tensor, op: Any = real.ReduceOp.SUM) -> None:
        both = torch.stack(self.exchanged(tensor.clone()))
        tensor.copy_(both.amax(0) if op == real.ReduceOp.MAX else both.sum(0))

    def broadcast_object_list(self, holder: list[Any], src: int = 0) -> None:
        holder[:] = self.exchanged(list(holder))[src]

    def barrier(self) -> None:
        self.exchanged(None)


def on_two_ranks(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], T]) -> list[T]:
    """``act(rank)`` of both ranks at once."""
    meeting = _Meeting()

    def member(rank: int) -> T:
        meeting.here.rank = rank
        try:
            return act(rank)
        except BaseException:
            meeting.barrier_of_two.abort()
            raise

    with monkeypatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setattr(distributed, "dist", meeting)
        waiting = [pool.submit(member, rank) for rank in range(2)]
        return [one.result() for one in waiting]
