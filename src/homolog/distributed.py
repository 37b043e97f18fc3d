"""PyTorch's own process groups, made harmless for a single process.

Every function works without a process group too (one process is a world of one), so
losses, queues and the training loop are written once. Start several processes with
``torchrun``; the group is opened by ``session``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from homolog.errors import UnusableInput
from homolog.events import meanwhile

T = TypeVar("T")

_FAILED = "homolog/failed"
# Words of a connection that broke.
_LOST = ("gloo", "nccl", "connection reset", "connection closed", "broken pipe")


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
def session(device: torch.device, timeout_s: float = 6 * 3600.0) -> Iterator[World]:
    """Open the process group that ``torchrun`` prepared, close it at the end.

    Without ``torchrun``, or inside an open group, nothing is opened. When a process
    leaves by an error, the others hear of it: see ``failure_elsewhere``.

    Args:
        device: ``nccl`` is used for CUDA, ``gloo`` otherwise. A GPU becomes the current
            one, on which NCCL works; on the first GPU for all of them it would hang.
        timeout_s: How long a collective may wait: the first process validates while
            the others wait. A lost process is noticed long before.
    """
    if not launched_by_torchrun() or dist.is_initialized():
        yield world()
        return
    timeout = timedelta(seconds=timeout_s)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", timeout=timeout, device_id=device)
    else:
        dist.init_process_group("gloo", timeout=timeout)
    watching = _watch(_abort) if device.type == "cuda" else contextlib.nullcontext()
    try:
        with watching:
            yield world()
    except BaseException as error:
        _tell_failure(error)
        raise
    finally:
        dist.destroy_process_group()


def from_first(value: T) -> T:
    """The first process's object, on every process."""
    if world().size == 1:
        return value
    holder = [value]
    dist.broadcast_object_list(holder, src=0)
    return holder[0]


def failure_elsewhere(error: BaseException | None = None) -> str:
    """What another process said as it failed, in one sentence; else empty.

    Args:
        error: What was met here: a lost connection tells that a process is gone even
            where it could say nothing.
    """
    here = world()
    if here.size == 1:
        return ""
    with contextlib.suppress(RuntimeError):
        store = _failures()
        if store.check([_FAILED]):
            rank, _, sentence = store.get(_FAILED).decode().partition(":")
            return (
                ""
                if int(rank) == here.rank
                else (f"process {rank} of {here.size} failed: {sentence}")
            )
    text = str(error or "").lower()
    if isinstance(error, RuntimeError) and any(word in text for word in _LOST):
        return (
            f"another of the {here.size} processes is gone without a word (killed, or "
            "out of memory?)."
        )
    return ""


def _failures() -> Any:
    """Where processes leave word; it outlives a broken connection between them."""
    return dist.distributed_c10d._get_default_store()


def _tell_failure(error: BaseException) -> None:
    """The first to fail says why."""
    sentence = (str(error).strip() or type(error).__name__)[:2000]
    with contextlib.suppress(RuntimeError):
        _failures().compare_set(_FAILED, "", f"{world().rank}:{sentence}")


def _watch(
    abort: Callable[[], None], every_s: float = 2.0
) -> contextlib.AbstractContextManager[None]:
    """Call ``abort`` when another process has failed.

    NCCL goes on waiting for a process that left; gloo notices by itself.
    """

    def look() -> bool:
        if not failure_elsewhere():
            return True
        abort()
        return False

    return meanwhile(look, every_s, "homolog-others")


def _abort() -> None:
    """What waits in a collective is woken by an error."""
    with contextlib.suppress(RuntimeError, ValueError):
        dist.distributed_c10d._abort_process_group()


def usable_gpus() -> int:
    """GPUs that can be used; 0 also where the driver itself fails."""
    try:
        return torch.cuda.device_count() if torch.cuda.is_available() else 0
    except (RuntimeError, AssertionError, OSError):
        return 0


def choose_device(text: str) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:i`` -> a device that exists.

    The GPU of a Mac (``mps``) is refused: some 3D operations are missing there.

    Under ``torchrun``, ``auto`` and ``cuda`` take the GPU of the local rank. For
    ``cpu`` no GPU is asked, so that it works beside a broken one.

    Raises:
        UnusableInput: Unknown name, no such device here, or not one for each process.
    """
    if text == "cpu":
        return torch.device("cpu")
    name, _, number = text.partition(":")
    if name == "mps":
        raise UnusableInput(
            f"device {text!r}, the GPU of a Mac, is not used: some 3D operations are "
            "missing there. Say cpu, or auto."
        )
    if text != "auto" and (name != "cuda" or (number and not number.isdigit())):
        raise UnusableInput(f"device must be auto, cpu, cuda or cuda:i, got {text!r}.")
    count = usable_gpus()
    if text == "auto" and not count:
        return torch.device("cpu")
    if launched_by_torchrun():
        return _gpu_of_this_process(text, count)
    index = int(number or 0)
    if index >= count:
        raise UnusableInput(
            f"device {text!r} was asked for, but this machine has {count} usable GPUs."
        )
    return torch.device("cuda", index)


def _gpu_of_this_process(text: str, count: int) -> torch.device:
    """NCCL refuses two processes on one GPU."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    if ":" in text:
        raise UnusableInput(
            f"device {text!r} is one GPU for all processes of torchrun; say cuda: each "
            "takes its own."
        )
    if here > count:
        raise UnusableInput(
            f"torchrun began {here} processes on this machine with {count} usable "
            "GPUs: one for each is needed (--nproc-per-node), or --device cpu."
        )
    return torch.device("cuda", local)


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


def evened(mean: Tensor, weight: Tensor | float) -> Tensor:
    """A mean over a process's own entries, as its part of the mean over those of all.

    Averaged over processes, as DDP does, means of unequal numbers of entries are not
    the mean of all entries; these are. Alone, or where nothing learns, it is the same.

    Args:
        mean: () over entries of this process; 0 where it has none.
        weight: How many, or what they weigh together.
    """
    size = world().size
    if size == 1 or not torch.is_grad_enabled():
        return mean
    own = torch.as_tensor(weight, dtype=torch.float32, device=mean.device).detach()
    return mean * (own * size / sum_over_ranks(own).clamp_min(1e-12))


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
