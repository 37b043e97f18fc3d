"""What a dry run measured, in sentences; no Qt here."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from typing import Any

_FLAGS = re.compile(r"\s*\((settings: )?--[^)]*\)")


def duration_text(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3 h 20 min``, ``2 days 5 h``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes and hours < 10 else f"{hours} h"
    days, hours = divmod(hours, 24)
    plural = "s" * (days != 1)
    return f"{days} day{plural} {hours} h" if hours else f"{days} day{plural}"


def end_text(seconds: float, now: datetime.datetime) -> str:
    """``about 17:40``, with the day when it is not today."""
    end = now + datetime.timedelta(seconds=seconds)
    clock = f"{end:%H:%M}"
    days = (end.date() - now.date()).days
    if days == 0:
        return f"about {clock}"
    if days == 1:
        return f"tomorrow about {clock}"
    return f"on {end:%A}, {end.day} {end:%B}, about {clock}"


def memory_text(count: float) -> str:
    """Bytes in GB or MB."""
    if count >= 1e9:
        return f"{count / 1e9:.1f} GB"
    return f"{max(1, round(count / 1e6))} MB"


def estimate_lines(plan: Mapping[str, Any], now: datetime.datetime) -> list[str]:
    """The dry run's answer for people.

    Args:
        plan: Result of the ``plan`` job.
        now: The time, local.
    """
    step, steps = float(plan.get("seconds_per_step") or 0), int(plan.get("steps") or 0)
    total = float(plan.get("total_s") or step * steps)
    lines = [
        f"About {duration_text(total)} for {steps:,} steps ({step_text(step)} each); "
        f"started now, it ends {end_text(total, now)}."
    ]
    parts = []
    if plan.get("memory_bytes"):
        parts.append(
            f"needs about {memory_text(float(plan['memory_bytes']))} of memory"
        )
    batch = plan.get("batch_size")
    if batch:
        parts.append(f"{batch} crop{'s' * (int(batch) != 1)} at a time")
    if plan.get("device"):
        parts.append(f"on {device_text(str(plan['device']))}")
    if plan.get("precision"):
        parts.append(f"in {plan['precision']}")
    if parts:
        text = ", ".join(parts)
        lines.append(text[:1].upper() + text[1:] + ".")
    training = (plan.get("resolved") or {}).get("training") or {}
    asked_batch = int(training.get("batch_size") or 0)
    if batch and int(batch) < asked_batch:
        lines.append(
            f"Memory is short: {batch} instead of {asked_batch} crops fit at a time."
        )
    return lines + [text for text in map(_note, plan.get("notes") or ()) if text]


def _note(note: Any) -> str:
    """The first line of a note, without what only helps at the command line."""
    first = str(note).strip().partition("\n")[0]
    text = _FLAGS.sub("", first).strip()
    return text[:1].upper() + text[1:]


def no_gpu_hint(total_s: float | None, kind: str) -> str:
    """What a machine without GPU means, with a time where one was measured."""
    if kind == "pretrain":
        work = "pretraining"
        rest = "exploring and training a head work here"
    else:
        work = "this fine-tuning"
        rest = "exploring works here"
    if total_s is None:
        return f"No GPU found: {rest}; press Estimate to see how long {work} takes."
    return f"No GPU found: {rest}; {work} takes about {duration_text(total_s)}."


def step_text(seconds: float) -> str:
    """Seconds per step with as many digits as mean something."""
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{max(1, round(seconds * 1000))} ms"


def device_text(name: str) -> str:
    """``cpu`` -> ``the CPU``, ``cuda:1`` -> ``GPU 1``."""
    if name.startswith("cuda"):
        return f"GPU {name.partition(':')[2] or '0'}"
    return "the CPU" if name == "cpu" else name
