"""How long a step takes and how much memory it needs, measured on the real thing."""

from __future__ import annotations

import statistics
import sys
import time
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Measured:
    """What a dry run found.

    Attributes:
        seconds_per_step: Median, the first (warming) step left out.
        peak_memory_bytes: Of the device on a GPU, of the process otherwise.
        steps: Steps made.
        phases: Of each phase its end, as a share of the training, and seconds a step
            of it takes; empty without phases.
    """

    seconds_per_step: float
    peak_memory_bytes: int
    steps: int
    phases: tuple[tuple[float, float], ...] = ()

    def sentence(self, total: int, device: torch.device) -> str:
        """For the user, before the training starts."""
        where = "GPU memory" if device.type == "cuda" else "memory"
        return (
            f"measured {self.seconds_per_step:.3g} s per step and "
            f"{self.peak_memory_bytes / 2**30:.2f} GiB of {where}; {total} steps take "
            f"about {spoken(self.seconds_per_step * total)}."
        )


class Stopwatch:
    """Seconds per step over the last steps; pauses between them do not count."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=50)
        self._begin = 0.0
        self.spent_s = 0.0

    def start(self) -> None:
        """A step begins."""
        self._begin = time.perf_counter()

    def stop(self) -> None:
        """A step ended."""
        seconds = time.perf_counter() - self._begin
        self._recent.append(seconds)
        self.spent_s += seconds

    @property
    def seconds_per_step(self) -> float:
        """Mean of the recent steps; 0 before the first.

        A mean, since on a GPU most steps only queue work and one in ten waits for it.
        """
        return statistics.fmean(self._recent) if self._recent else 0.0


class ModuleSnapshot:
    """Every parameter and buffer as it is now, to go back to.

    Args:
        module: The trainable; buffers that are not persistent are kept too.
    """

    def __init__(self, module: nn.Module) -> None:
        self._live = state_tensors(module)
        self._kept = {n: t.detach().clone() for n, t in self._live.items()}

    def restore(self) -> None:
        """Go back."""
        with torch.no_grad():
            for name, kept in self._kept.items():
                self._live[name].copy_(kept)


def state_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name, each once, persistent or not."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forget_peak(device: torch.device) -> None:
    """Start a new peak of memory, where the device counts one."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int:
    """Peak of the GPU's tensors, or of this process's resident memory."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024


def spoken(seconds: float) -> str:
    """``125.0`` -> ``"2 min 05 s"``."""
    whole = round(seconds)
    if whole < 60:
        return f"{max(seconds, 0.0):.2g} s" if seconds < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
