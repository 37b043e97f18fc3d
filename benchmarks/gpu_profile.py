"""What a GPU did in one step: its kernels, and where the host waited for it."""

from __future__ import annotations

import math
import re
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch


def host_waits(step: Callable[[], None]) -> dict[str, int]:
    """Place in our code -> times a step waits there for the GPU."""
    places: Counter[str] = Counter()

    def note(message: Any, *_: Any, **__: Any) -> None:
        if "synchroniz" not in str(message):
            return
        frames = [f for f in traceback.extract_stack() if "/homolog/" in f.filename]
        last = frames[-1] if frames else None
        place = (
            "?" if last is None
            else f"{last.filename.rsplit('/homolog/', 1)[1]}:{last.lineno} {last.name}"
        )  # fmt: skip
        places[place] += 1

    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return dict(places.most_common(12))


def kernels(step: Callable[[], None], pure_s: float) -> dict[str, Any]:
    """Kernels of a step, their time as a share of it, and the longest by name."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as told:
        step()
        torch.cuda.synchronize()
    spans, by_name = [], Counter[str]()
    counts: Counter[str] = Counter()
    for name, start_us, length_us in device_events(told):
        spans.append((start_us, start_us + length_us))
        by_name[name] += length_us
        counts[name] += 1
    busy_us = union_of(spans)
    return {
        "kernels": len(spans), "busy_s": busy_us / 1e6,
        "busy_share": min(1.0, busy_us / 1e6 / pure_s) if pure_s else 0.0,
        "longest": {
            name: {"share": us / max(sum(by_name.values()), 1), "calls": counts[name]}
            for name, us in by_name.most_common(10)
        },
    }  # fmt: skip


def device_events(told: Any) -> list[tuple[str, float, float]]:
    """Name, start and length (us) of everything that ran on the GPU."""
    raw = getattr(told.profiler, "kineto_results", None)
    if raw is not None and hasattr(raw, "events"):
        found = [
            (short_name(e.name()), e.start_ns() / 1e3, e.duration_ns() / 1e3)
            for e in raw.events()
            if "CUDA" in str(e.device_type())
            and not getattr(e, "is_user_annotation", bool)()
        ]
        if found:
            return found
    return [
        (short_name(e.name), e.time_range.start, e.time_range.elapsed_us())
        for e in told.events()
        if "CUDA" in str(e.device_type)
    ]


def short_name(kernel: str) -> str:
    """A kernel's name without its template arguments."""
    plain = re.sub(r"^void ", "", kernel)
    functor = re.search(r"(\w+(?:Functor|_kernel_impl|Ops|_functor)\w*)", plain)
    head = plain.split("<")[0].split("(")[0]
    if functor and functor.group(1) not in head:
        head += f" {functor.group(1)}"
    return head[-80:]


def union_of(spans: list[tuple[float, float]]) -> float:
    """Length of what intervals cover together."""
    total, end = 0.0, -math.inf
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total
