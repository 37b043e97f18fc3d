"""PyTorch's own process groups, made harmless for a single process.

Every function works without a process group too (one process is a world of one), so
losses, queues and the training loop are written once. Start several processes with
``torchrun``; the group is opened by ``session``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from homolog.errors import UnusableInput

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among all.

    Attributes:
        rank: 0 .. size - 1; rank 0 writes files.
        size: Number of processes.
        local_rank: Index among the processes of this machine; picks the GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0


def world() -> World:
    """Where this process stands; a world of one without a process group."""
    if not (dist.is_available() and dist.is_initialized()):
        return World()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    return World(dist.get_rank(), dist.get_world_size(), local)


def launched_by_torchrun() -> bool:
    """Whether the environment asks for a process group of more than one process."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextlib.contextmanager
def session(device: torch.device, timeout_s: float = 1800.0) -> Iterator[World]:
    """Open the process group that ``torchrun`` prepared, close it at the end.

    Without ``torchrun``, or inside an open group, nothing is opened.

    Args:
        device: ``nccl`` is used for CUDA, ``gloo`` otherwise.
        timeout_s: How long a collective may wait for a lost process.
    """
    if not launched_by_torchrun() or dist.is_initialized():
        yield world()
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    try:
        yield world()
    finally:
        dist.destroy_process_group()


def from_first(value: T) -> T:
    """The first process's object, on every process."""
    if world().size == 1:
        return value
    holder = [value]
    dist.broadcast_object_list(holder, src=0)
    return holder[0]


def choose_device(text: str) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:i`` -> a device that exists.

    Under ``torchrun``, ``auto`` and ``cuda`` take the GPU of the local rank.

    Raises:
        UnusableInput: Unknown name, or no such device here.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if text == "auto":
        return torch.device("cuda", local % count) if count else torch.device("cpu")
    if text == "cpu":
        return torch.device("cpu")
    name, _, number = text.partition(":")
    if name != "cuda" or (number and not number.isdigit()):
        raise UnusableInput(f"device must be auto, cpu, cuda or cuda:i, got {text!r}.")
    index = int(number) if number else (local % count if count else 0)
    if index >= count:
        raise UnusableInput(
            f"device {text!r} was asked for, but this machine has {count} usable GPUs."
        )
    return torch.device("cuda", index)


def gather_rows(rows: Tensor) -> Tensor:
    """(N, ...) of every process -> (size * N, ...), in rank order; no gradient.

    Every process must pass the same N.
    """
    size = world().size
    if size == 1:
        return rows.detach()
    parts = [torch.empty_like(rows) for _ in range(size)]
    dist.all_gather(parts, rows.detach().contiguous())
    return torch.cat(parts)


def gather_rows_with_gradient(rows: Tensor) -> Tensor:
    """As gather_rows; the gradient of every process reaches the rows' owner.

    DDP averages gradients over processes, so a loss computed on gathered rows by every
    process has the gradient of the same loss computed once on the whole batch.
    """
    if world().size == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, rows: Tensor) -> Tensor:
        return gather_rows(rows)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        here = world()
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(here.size)[here.rank]


def sum_over_ranks(value: Tensor) -> Tensor:
    """Sum of a tensor over all processes; no gradient, the input is left alone."""
    total = value.detach().clone()
    if world().size > 1:
        dist.all_reduce(total)
    return total


def sum_over_ranks_with_gradient(value: Tensor) -> Tensor:
    """As sum_over_ranks; the gradient of every process reaches every summand.

    DDP averages gradients over processes, so a loss of the sum, computed by every
    process, has the gradient of the same loss computed once on the whole batch.
    """
    if world().size == 1:
        return value
    total: Tensor = _Sum.apply(value)  # type: ignore[no-untyped-call]
    return total


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, value: Tensor) -> Tensor:
        return sum_over_ranks(value)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        return sum_over_ranks(gradient)


def mean_over_ranks(value: Tensor) -> Tensor:
    """Mean of a floating tensor over all processes; no gradient."""
    return sum_over_ranks(value) / world().size


def max_over_ranks(value: Tensor) -> Tensor:
    """Largest of a tensor over all processes, element by element; no gradient."""
    largest = value.detach().clone()
    if world().size > 1:
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest


def wait_for_all() -> None:
    """Return when every process is here."""
    if world().size > 1:
        dist.barrier()
