"""Plain words about runs: how long, how far, what broke and what to do; no Qt."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any

# Last word of the state a run is in, with the sign shown beside it.
STATES = {
    "new": ("○", "not started"),
    "running": ("▶", "running"),
    "paused": ("⏸", "paused"),
    "stopping": ("◌", "stopping..."),
    "pausing": ("◌", "pausing..."),
    "starting": ("◌", "starting..."),
    "stopped": ("■", "stopped"),
    "finished": ("✔", "finished"),
    "failed": ("✖", "failed"),
    "crashed": ("✖", "broke off"),
    "damaged": ("?", "damaged"),
    "deleted": ("?", "gone"),
}
PHASES = {
    "pretrain": "Pretraining",
    "finetune": "Fine-tuning",
    "demo": "Demo",
}
_SAFE_NEW = "Nothing was saved yet; Resume begins anew."


@dataclass(frozen=True)
class Trouble:
    """Why a run ended, for people.

    Attributes:
        cause: ``memory``, ``gpu_memory``, ``killed``, ``nan``, ``disk``, ``unusable``
            or ``other``.
        what: One sentence: what happened.
        advice: One or two sentences: what is safe, what to do.
        detail: The engine's own sentence, to be folded away.
    """

    cause: str
    what: str
    advice: str
    detail: str = ""


def state_words(state: str) -> str:
    """``"▶ running"``: a sign and a word, never colour alone."""
    sign, word = STATES.get(state, ("?", state))
    return f"{sign} {word}"


def duration(seconds: float) -> str:
    """``125.0`` -> ``"2 min"``; short, for people, never more exact than is known."""
    if seconds != seconds or seconds < 0:
        return "?"
    if seconds < 10:
        return f"{max(seconds, 0.1):.1f} s"
    if seconds < 90:
        return f"{round(seconds)} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{round(hours / 24)} days"


def clock(seconds_from_now: float, now: float | None = None) -> str:
    """``"17:40"``; with the day when it is not today."""
    begin = time.time() if now is None else now
    today, then = time.localtime(begin), time.localtime(begin + seconds_from_now)
    if (today.tm_year, today.tm_yday) == (then.tm_year, then.tm_yday):
        return time.strftime("%H:%M", then)
    if seconds_from_now < 6.5 * 86400:
        return time.strftime("%a %H:%M", then)
    return time.strftime("%d %b %H:%M", then)


def headline(
    kind: str,
    name: str,
    state: str,
    step: int = 0,
    total: int = 0,
    seconds_per_step: float = 0.0,
    remaining_s: float = 0.0,
    now: float | None = None,
) -> str:
    """``"Pretraining run-07, step 12/100, 3.1 s/step, ends about 17:40"``."""
    parts = [f"{PHASES.get(kind, kind.capitalize() or 'Run')} {name}"]
    if total:
        parts.append(f"step {step}/{total}")
    if state in ("running", "pausing", "stopping") and total:
        if seconds_per_step > 0:
            parts.append(rate(seconds_per_step))
        if remaining_s > 0:
            parts.append(f"ends about {clock(remaining_s, now)}")
    elif state not in ("running",):
        parts.append(STATES.get(state, ("", state))[1])
    return ", ".join(parts)


def rate(seconds_per_step: float) -> str:
    """``"3.1 s/step"``, or ``"12 steps/s"`` for fast ones."""
    if seconds_per_step >= 0.1:
        return f"{seconds_per_step:.2g} s/step"
    return f"{1 / max(seconds_per_step, 1e-6):.0f} steps/s"


def size_words(count: float) -> str:
    """``3_400_000`` -> ``"3.4 MB"``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def safe_words(saved_step: int | None) -> str:
    """What of a run is on disk, in one sentence."""
    if saved_step is None:
        return _SAFE_NEW
    return f"The state of step {saved_step} is saved; Resume goes on from there."


def diagnose(
    state: str,
    message: str,
    log_tail: str,
    *,
    error_kind: str = "",
    saved_step: int | None = None,
    step: int = 0,
    total: int = 0,
    plan: dict[str, Any] | None = None,
) -> Trouble | None:
    """Why a failed or crashed run ended; None for other states.

    Args:
        state: Of the run.
        message: The engine's last sentence, if it had one.
        log_tail: End of ``log.txt``.
        error_kind: ``unusable`` when the input or the settings were to blame.
        saved_step: Step of the newest checkpoint.
        step: Last step heard of.
        total: Steps in all.
        plan: ``plan.json``: batch size and the like, for the advice.
    """
    if state not in ("failed", "crashed"):
        return None
    safe, where = safe_words(saved_step), f" after step {step} of {total}" * bool(total)
    if state == "crashed":
        return _crash(log_tail, where, safe)
    text = f"{message}\n{log_tail}".lower()
    if error_kind == "unusable":
        advice = "Change the settings and start again; nothing was lost."
        return Trouble("unusable", _sentence(message), advice)
    if "not finite" in text or "nan" in re.findall(r"\bnan\b", text):
        what = f"The loss became infinite or not a number{where}, so training stopped."
        advice = f"{safe} A lower learning rate or full precision (fp32) often helps."
        return Trouble("nan", what, advice, message)
    if "out of memory" in text or "memoryerror" in text or "no memory" in text:
        return _out_of_memory(text, message, safe, plan or {})
    if "no space left" in text or "could not be saved" in text:
        what = "The disk is full or cannot be written, so training stopped."
        return Trouble("disk", what, f"{safe} Make room, then press Resume.", message)
    return Trouble("other", _sentence(message or f"Training broke off{where}."), safe)


def _crash(log_tail: str, where: str, safe: str) -> Trouble:
    last = (log_tail.strip().splitlines() or [""])[-1][:300]
    if "out of memory" in log_tail.lower():
        what = f"The training process ran out of memory{where}."
        return Trouble("memory", what, f"{safe} A smaller batch needs less.", last)
    what = (
        f"The training process ended without a last word{where}: the system stopped "
        "it (most likely for lack of memory), somebody ended it, or power was cut."
    )
    advice = f"{safe} If it happens again, close other programs or use a smaller batch."
    return Trouble("killed", what, advice, last)


def _out_of_memory(text: str, message: str, safe: str, plan: dict[str, Any]) -> Trouble:
    on_gpu = "cuda" in text or "gpu" in text
    batch = plan.get("batch_size")
    at = f" at batch size {batch}" if batch else ""
    what = f"The {'GPU' if on_gpu else 'computer'} ran out of memory{at}."
    # The engine halves the batch by itself; at 1 only a smaller window helps.
    smaller = "A smaller window or a smaller network needs less"
    if batch is None or int(batch) > 1:
        smaller = "A smaller batch, window or network needs less"
    other = "; the CPU is slower, but has more." if on_gpu else "."
    advice = f"{safe} {smaller}{other}"
    return Trouble("gpu_memory" if on_gpu else "memory", what, advice, message)


def _sentence(text: str) -> str:
    text = text.strip()
    if not text:
        return ""
    text = text[0].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."
