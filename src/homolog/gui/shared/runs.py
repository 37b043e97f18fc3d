"""Runs as the window shows them: read from their folders; no Qt, no torch.

``RunStory.read_on`` is called on a background thread and returns a ``View``: plain
numbers and words, ready to be shown, so the GUI thread only has to paint.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homolog.errors import UnusableInput
from homolog.events import (
    Event,
    Failed,
    Finished,
    Note,
    Preview,
    Progress,
    Saved,
    Started,
    Step,
    Stopped,
    Validated,
)
from homolog.json_files import read_object
from homolog.runs.run import Run
from homolog.words import counted, human_bytes, metric_unit, score_words

# Which points of a curve are drawn: few, but with every peak; no Qt.


MOST_POINTS = 2000

Points = tuple[NDArray[np.float64], NDArray[np.float64]]

# Okabe-Ito: told apart by colour-blind eyes; the legend also has another dash each.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
EARLIER = "#8C8C8C"


@dataclass(frozen=True)
class Curve:
    """One line of a chart.

    Attributes:
        name: In the legend.
        x: (N,) steps, rising.
        y: (N,) values; NaN makes a gap.
        role: ``train``, ``part`` (a term of the loss), ``validation`` or ``earlier``.
    """

    name: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    role: str = "train"


@dataclass
class Series:
    """Values by step that grow; a resumed session overwrites what it repeats."""

    steps: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, step: float, value: float) -> None:
        """Append; later steps of a killed session are dropped first."""
        while self.steps and self.steps[-1] >= step:
            self.steps.pop()
            self.values.pop()
        self.steps.append(step)
        self.values.append(value)

    def points(self, most: int = MOST_POINTS) -> Points:
        """(n,) steps and (n,) values, at most ``most`` of them."""
        return decimated(np.asarray(self.steps), np.asarray(self.values), most)


def decimated(
    x: NDArray[np.float64], y: NDArray[np.float64], most: int = MOST_POINTS
) -> Points:
    """The lowest and the highest point of each of ``most / 2`` stretches, in order.

    Args:
        x: (N,) rising.
        y: (N,).
        most: Even; N at most this comes back as it is.

    Returns:
        x and y of the kept points.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    if len(x) <= most:
        return x, y
    edges = np.linspace(0, len(x), most // 2 + 1).astype(int)
    low = np.where(np.isfinite(y), y, np.inf)
    high = np.where(np.isfinite(y), y, -np.inf)
    kept = np.empty(2 * (len(edges) - 1), dtype=int)
    for i, (begin, end) in enumerate(itertools.pairwise(edges)):
        pair = (
            begin + int(low[begin:end].argmin()),
            begin + int(high[begin:end].argmax()),
        )
        kept[2 * i], kept[2 * i + 1] = min(pair), max(pair)
    kept[0], kept[-1] = 0, len(x) - 1
    kept = np.unique(kept)
    return x[kept], y[kept]


def smoothed(y: NDArray[np.float64], strength: float) -> NDArray[np.float64]:
    """Running mean that forgets; 0 leaves the values, 0.9 averages about ten.

    The start is unbiased (as in Adam), so that a curve does not begin at zero; NaN
    are passed over.
    """
    if strength <= 0:
        return np.asarray(y, float)
    found = np.empty(len(y))
    mean, weight = 0.0, 0.0
    for i, value in enumerate(np.asarray(y, float)):
        if np.isfinite(value):
            mean = strength * mean + (1 - strength) * value
            weight = strength * weight + (1 - strength)
        found[i] = mean / weight if weight else np.nan
    return found


def log_safe(y: NDArray[np.float64]) -> NDArray[np.float64]:
    """What a logarithmic axis can show: values of zero and below become gaps."""
    y = np.asarray(y, float)
    return np.where(y > 0, y, np.nan)


def nearest(curve: Curve, x: float) -> tuple[float, float] | None:
    """The point of a curve closest in step; None where it has none."""
    if not len(curve.x):
        return None
    place = int(np.abs(curve.x - x).argmin())
    return float(curve.x[place]), float(curve.y[place])


def hover_words(curves: list[Curve], x: float) -> str:
    """``"step 40: loss 1.23, dice 0.81"``."""
    parts, step = [], None
    for curve in curves:
        found = nearest(curve, x)
        if found is None:
            continue
        if step is None:
            step = found[0]
        parts.append(f"{curve.name} {found[1]:.4g}")
    return f"step {step:.0f}: {', '.join(parts)}" if step is not None else ""


def colour_of(curve: Curve, place: int) -> str:
    """Colour of a curve by its place in the chart."""
    return EARLIER if curve.role == "earlier" else COLOURS[place % len(COLOURS)]


def bounds(curves: Sequence[Curve]) -> tuple[float, float, float, float] | None:
    """Smallest and largest step and value that can be drawn; None where nothing can."""
    x = np.concatenate([c.x for c in curves]) if curves else np.empty(0)
    y = np.concatenate([c.y for c in curves]) if curves else np.empty(0)
    keep = np.isfinite(y)
    if not keep.any():
        return None
    x, y = x[keep], y[keep]
    return float(x.min()), float(x.max()), float(y.min()), float(y.max())


# What a training's monitors mean, in plain words with a traffic light; no Qt.
#
# The limits are those of ``homolog.training.loop.CollapseWatch``, which writes the
# warnings; they are repeated here since that room loads torch. A test compares them.


STD_FLOOR, STD_ONCE, STD_SHARE = 0.05, 0.3, 0.2
RANK_FLOOR, RANK_ONCE = 1.5, 3.0
# Above these, learning still goes on, but a look is worth while.
STD_LOW = 0.3
NORM_FACTOR = 20.0
WAIT_SHARE = 0.3
_FEW = 5

GOOD, LOOK, BAD, NONE = "good", "look", "bad", "none"
SIGNS = {GOOD: "● good", LOOK: "▲ look", BAD: "■ trouble", NONE: "○"}


@dataclass(frozen=True)
class Reading:
    """One monitor, judged.

    Attributes:
        light: ``good``, ``look``, ``bad`` or ``none`` (a number without a verdict).
        title: What it is, for people.
        value: The number, with its unit.
        meaning: One sentence: what it says, and what to do.
    """

    light: str
    title: str
    value: str
    meaning: str

    @property
    def sign(self) -> str:
        """The light as a shape and a word."""
        return SIGNS[self.light]


def readings(history: Mapping[str, Sequence[float]]) -> list[Reading]:
    """Every monitor worth telling, those with trouble first.

    Args:
        history: Name -> values so far, oldest first.
    """
    found = [
        reading
        for name, values in history.items()
        if (reading := read_one(name, values)) is not None
    ]
    order = [BAD, LOOK, GOOD, NONE]
    return sorted(found, key=lambda reading: order.index(reading.light))


def read_one(name: str, values: Sequence[float]) -> Reading | None:
    """One monitor judged by its last value and what it was; None: not for people."""
    sound = [v for v in values if math.isfinite(v)]
    if not sound:
        return None
    if name.endswith("_std"):
        return _spread(_thing(name, "_std"), sound)
    if name.endswith("_rank"):
        return _rank(_thing(name, "_rank"), sound)
    if name == "gradient_norm":
        return _norm(sound)
    if name == "bad_steps":
        return _bad_steps(sound[-1])
    if name == "data_wait":
        return _waiting(sound[-1])
    if name == "matched_share":
        share = f"{sound[-1]:.0%}"
        return Reading(
            NONE,
            "Places found in both views",
            share,
            "Share of image patches whose partner was found in the second view.",
        )
    return None


def verdict(found: Sequence[Reading]) -> tuple[str, str]:
    """The worst light and one sentence for the whole training."""
    lights = {reading.light for reading in found}
    if BAD in lights:
        worst = next(reading for reading in found if reading.light == BAD)
        return BAD, worst.meaning
    if LOOK in lights:
        worst = next(reading for reading in found if reading.light == LOOK)
        return LOOK, worst.meaning
    if GOOD in lights:
        if any(r.title.startswith(("Spread", "Variety")) for r in found):
            return GOOD, "Training looks healthy: the features stay different."
        return GOOD, "Training looks healthy."
    return NONE, "Nothing to judge yet."


def plateau_hint(values: Sequence[float], higher_is_better: bool = True) -> str:
    """``"validation has not improved for 10 rounds"``, or empty."""
    sound = [v if higher_is_better else -v for v in values if math.isfinite(v)]
    if len(sound) < 6:
        return ""
    since = len(sound) - 1 - max(range(len(sound)), key=lambda i: sound[i])
    if since < 5:
        return ""
    return (
        f"Validation has not improved for {since} rounds: stopping now loses little "
        "(the best weights are kept)."
    )


def _thing(name: str, ending: str) -> str:
    return name.removesuffix(ending).replace("_", " ")


def _spread(thing: str, values: list[float]) -> Reading:
    title, now, highest = f"Spread of {thing} features", values[-1], max(values)
    text = f"{now:.2f} (1 is ideal)"
    if now < STD_FLOOR or (highest > STD_ONCE and now < STD_SHARE * highest):
        return Reading(
            BAD, title, text,
            "The features are collapsing: all places look alike to the network. Stop, "
            "and start with a lower learning rate, a longer warm-up or a larger batch.",
        )  # fmt: skip
    if now < STD_LOW and _falls(values):
        return Reading(
            LOOK, title, text,
            "The features differ ever less; if this number keeps falling, stop and "
            "lower the learning rate.",
        )  # fmt: skip
    if now < STD_LOW:
        return Reading(
            GOOD, title, text,
            "The features differ little yet, but this is not getting worse; usual "
            "early in a training.",
        )  # fmt: skip
    return Reading(GOOD, title, text, "Different places give different features.")


def _falls(values: list[float]) -> bool:
    """Whether the last few values lie clearly below the few before them."""
    if len(values) < 2 * _FEW:
        return False
    now, before = values[-_FEW:], values[-2 * _FEW : -_FEW]
    return sum(now) < 0.9 * sum(before)


def _rank(thing: str, values: list[float]) -> Reading:
    title, now, highest = f"Variety of {thing} features", values[-1], max(values)
    text = f"{now:.1f} independent directions"
    if now < RANK_FLOOR and highest > RANK_ONCE:
        return Reading(
            BAD, title, text,
            "The features have collapsed to one direction: they no longer tell places "
            "apart. Stop, and start with a lower learning rate or a larger batch.",
        )  # fmt: skip
    if highest > RANK_ONCE and now < 0.3 * highest:
        return Reading(
            LOOK, title, text, "The features use fewer directions than before."
        )
    return Reading(GOOD, title, text, "The features use many directions.")


def _norm(values: list[float]) -> Reading:
    title, now = "Size of the learning steps", values[-1]
    usual = sorted(values[-50:])[len(values[-50:]) // 2]
    text = f"gradient norm {now:.3g}"
    if len(values) >= 5 and usual > 0 and now > NORM_FACTOR * usual:
        return Reading(
            LOOK, title, text,
            "The last step was far larger than usual; it is clipped. If it happens "
            "often, lower the learning rate.",
        )  # fmt: skip
    return Reading(GOOD, title, text, "Steps are of the usual size.")


def _bad_steps(count: float) -> Reading | None:
    if count <= 0:
        return None
    return Reading(
        LOOK, "Skipped steps", f"{count:.0f}",
        "The loss was infinite or not a number and the step was skipped. A lower "
        "learning rate or full precision (fp32) often helps.",
    )  # fmt: skip


def _waiting(share: float) -> Reading:
    title, text = "Waiting for data", f"{share:.0%} of the time"
    if share > WAIT_SHARE:
        return Reading(
            LOOK, title, text,
            "Reading and cutting scans is slower than learning from them; a faster "
            "disk or more CPU cores would speed this up.",
        )  # fmt: skip
    return Reading(GOOD, title, text, "The data comes fast enough.")


# Plain words about runs: how long, how far, what broke and what to do; no Qt.


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


TOTAL = "loss"
# A journal larger than this is thinned: only some of its steps are parsed.
_WHOLE_BYTES = 4 << 20
_LOG_TAIL = 16 << 10
_STEP_MARK = b'{"event": "step"'
_KEPT_MONITORS = 400
_PLAN = {
    "total_steps?": int, "batch_size?": int, "accumulate?": int, "precision?": str,
    "peak_memory_bytes?": float, "seconds_per_step?": float,
}  # fmt: skip


@dataclass(frozen=True)
class View:
    """What a screen shows of a run at one moment.

    Attributes:
        state: Of the run, or ``deleted``.
        wish: What its worker was asked for and has not done yet.
        step: Steps done, of ``total``.
        phase: Of countable work that is no training step, else empty.
        losses: Curves of the training: the sum first, then its terms.
        validation: Curves of the validation.
        monitors: Judged.
        device: One line: device, precision, batch, memory.
        preview: Newest picture: (path, title, step), or None.
        notes: Last sentences: (level, text), oldest first.
        trouble: Why it ended, when it failed or crashed.
        saved_step: Step of the newest checkpoint, None without one.
        best: Of the smoothed validations, as ``Rounds.words`` tells it, or empty.
        validation_cases: How many cases a validation looks at; 0: nobody told.
        behind: More is written than was read; read on soon.
    """

    folder: Path
    name: str
    kind: str
    what: str
    state: str
    wish: str = ""
    step: int = 0
    total: int = 0
    seconds_per_step: float = 0.0
    remaining_s: float = 0.0
    phase: str = ""
    phase_index: int = 0
    phase_total: int = 0
    losses: tuple[Curve, ...] = ()
    validation: tuple[Curve, ...] = ()
    monitors: tuple[Reading, ...] = ()
    device: str = ""
    preview: tuple[Path, str, int] | None = None
    notes: tuple[tuple[str, str], ...] = ()
    trouble: Trouble | None = None
    saved_step: int | None = None
    best: str = ""
    validation_cases: int = 0
    behind: bool = False


@dataclass
class RunStory:
    """The tale of one run, continued with every ``read_on``.

    Attributes:
        folder: Of the run.
    """

    folder: Path
    _place: int = 0
    _stride: int = 1
    _step: Step | None = None
    _progress: Progress | None = None
    _details: dict[str, Any] = field(default_factory=dict)
    _losses: dict[str, Series] = field(default_factory=dict)
    _validation: dict[str, Series] = field(default_factory=dict)
    _monitors: dict[str, deque[float]] = field(default_factory=dict)
    _notes: deque[tuple[str, str]] = field(default_factory=lambda: deque(maxlen=8))
    _preview: tuple[Path, str, int] | None = None
    _rounds: Rounds = field(default_factory=lambda: Rounds())
    _failed: str = ""

    def read_on(self, budget_s: float = 0.3) -> View:
        """Read what is new, for some time at most, and tell how it stands.

        Args:
            budget_s: After this long it returns; ``View.behind`` says whether more is
                waiting.
        """
        run = Run(self.folder)
        try:
            spec, state = run.spec, str(run.state())
        except UnusableInput:
            gone = "damaged" if self.folder.is_dir() else "deleted"
            return View(self.folder, self.folder.name, "", "", gone)
        behind = self._read(run, budget_s)
        return self._view(run, spec, state, behind)

    def take(self, event: Event) -> None:
        """Fold one event into the tale."""
        match event:
            case Started(detail=detail):
                self._details |= detail
                self._progress, self._failed = None, ""
            case Step():
                self._take_step(event)
            case Progress():
                self._progress = event
            case Validated(index=index, metrics=metrics):
                for name, value in metrics.items():
                    if " " not in name:  # one per label: too many for a chart
                        self._validation.setdefault(name, Series()).add(index, value)
                self._rounds.add(event)
            case Note(text=text, level=level):
                self._notes.append((level, text))
            case Preview(path=path, title=title):
                place = Path(path)
                place = place if place.is_absolute() else self.folder / place
                self._preview = (place, title, self._step.index if self._step else 0)
            case Failed(message=message):
                self._failed = message
            case Finished() | Stopped() | Saved():
                self._progress = None

    def _take_step(self, event: Step) -> None:
        self._step, self._progress = event, None
        total = sum(event.losses.values())
        terms = {TOTAL: total} | (event.losses if len(event.losses) > 1 else {})
        for name, value in terms.items():
            self._losses.setdefault(name, Series()).add(event.index, value)
        for name, value in event.monitors.items():
            kept = self._monitors.setdefault(name, deque(maxlen=_KEPT_MONITORS))
            kept.append(value)

    def _read(self, run: Run, budget_s: float) -> bool:
        until = time.monotonic() + budget_s
        waiting = run.journal.size - self._place
        self._stride = max(1, waiting // _WHOLE_BYTES)
        wanted = _thinning(self._stride) if self._stride > 1 else None
        for end, event in run.journal.read(self._place, wanted):
            self._place = end
            self.take(event)
            if time.monotonic() > until:
                return True
        return False

    def _view(self, run: Run, spec: dict[str, Any], state: str, behind: bool) -> View:
        step, progress, config = self._step, self._progress, spec["config"]
        index, total = (step.index, step.total) if step else (0, 0)
        saved, plan = saved_step(self.folder), _plan(self.folder)
        trouble = diagnose(
            state, self._failed, log_tail(run.log),
            error_kind=str(spec.get("outcome", {}).get("error_kind", "")),
            saved_step=saved, step=index, total=total, plan=plan,
        ) if state in ("failed", "crashed") else None  # fmt: skip
        return View(
            folder=self.folder,
            name=self.folder.name,
            kind=str(spec["kind"]),
            what=str(config.get("method") or config.get("task") or ""),
            state=state,
            wish=run.wish() if state in ("running", "paused") else "",
            step=index,
            total=total or int(plan.get("total_steps", 0)),
            seconds_per_step=step.seconds_per_step if step else 0.0,
            remaining_s=step.remaining_s if step else 0.0,
            phase=progress.phase if progress else "",
            phase_index=progress.index if progress else 0,
            phase_total=progress.total if progress else 0,
            losses=_curves(self._losses, "part"),
            validation=_curves(_of_one_unit(self._validation), "validation"),
            monitors=tuple(readings({k: list(v) for k, v in self._monitors.items()})),
            device=device_words(self._details, plan),
            preview=self._preview,
            notes=tuple(self._notes),
            trouble=trouble,
            saved_step=saved,
            best=self._rounds.words(),
            validation_cases=int(self._details.get("validation_cases") or 0),
            behind=behind,
        )


def _of_one_unit(series: dict[str, Series]) -> dict[str, Series]:
    """Those that can share an axis with the first, which decides (dB, or shares)."""
    units = {name: metric_unit(name) for name in series}
    first = next(iter(units.values()), "")
    return {name: found for name, found in series.items() if units[name] == first}


class Rounds:
    """The validations of a run; the best one is read off a smoothed curve.

    One round in many is lucky, and with few cases luck is large: the mean of three
    rounds in a row is compared, and how far rounds lie from it is told with it.
    """

    def __init__(self) -> None:
        self.metric = ""
        self._steps: list[int] = []
        self._values: list[float] = []
        self._worst: list[float] = []
        self._records: list[float] = []

    def add(self, event: Validated) -> None:
        """One more round; a run resumed from earlier does its rounds again."""
        named = {k: v for k, v in event.metrics.items() if " " not in k and v == v}
        name = self.metric or next(iter(named), "")
        if name not in named:
            return
        while self._steps and self._steps[-1] >= event.index:
            for told in (self._steps, self._values, self._worst):
                told.pop()
        self.metric = name
        self._steps.append(event.index)
        self._values.append(named[name])
        self._worst.append(named.get("worst", math.nan))
        if event.is_best:
            self._records.append(named[name])

    def words(self) -> str:
        """``"Dice 0.800 around step 60, mean of 3 rounds, ±0.03 between rounds"``.

        Empty where no round decides what is kept; of fewer than three rounds it says
        how many there are.
        """
        if not self._records:
            return ""
        sign = -1.0 if self._records[-1] < self._records[0] else 1.0
        values = np.array(self._values)
        if len(values) < _ROUNDS:
            place = int(np.argmax(sign * values))
            told = score_words(self.metric, float(values[place]))
            so_far = counted(len(values), "round")
            return f"{told} at step {self._steps[place]}, of {so_far} so far"
        means = np.convolve(values, np.ones(_ROUNDS) / _ROUNDS, mode="valid")
        place = int(np.argmax(sign * means))
        middle = place + _ROUNDS // 2
        spread = float(np.std(values[1:-1] - means))
        told = score_words(self.metric, float(means[place]))
        told += f" around step {self._steps[middle]}, mean of {_ROUNDS} rounds"
        if len(means) > 1:
            told += f", ±{spread:.2g} between rounds"
        worst = self._worst[middle]
        return told + (f", worst case {worst:.2f}" if worst == worst else "")


_ROUNDS, FEW_CASES = 3, 20


def cases_words(count: int) -> str:
    """How far a validation can be trusted that looks at so many cases."""
    if not count:
        return ""
    told = f"Validated on {counted(count, 'case')}"
    if count >= FEW_CASES:
        return f"{told}."
    return f"{told}: too few to tell small differences from chance."


def saved_step(folder: Path) -> int | None:
    """Step of the newest checkpoint of a run; None without one."""
    steps = []
    with contextlib.suppress(OSError):
        for path in (folder / "checkpoints").iterdir():
            if match := re.fullmatch(r"step_(\d+)", path.name):
                steps.append(int(match[1]))
    return max(steps, default=None)


def log_tail(path: Path, reach: int = _LOG_TAIL) -> str:
    """The end of a text file, whole lines."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - reach))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    return text if size <= reach else text[text.find("\n") + 1 :]


def device_words(details: dict[str, Any], plan: dict[str, Any]) -> str:
    """``"CPU, bf16, batch 4, 0.8 GB of memory"``."""
    parts = []
    if device := str(details.get("device", "")):
        parts.append("CPU" if device == "cpu" else device.replace("cuda:", "GPU "))
    if precision := details.get("precision") or plan.get("precision"):
        parts.append(str(precision))
    if batch := details.get("batch_size") or plan.get("batch_size"):
        each = int(details.get("accumulate", 1))
        parts.append(f"batch {batch}" + (f" x {each}" if each > 1 else ""))
    if (processes := int(details.get("processes", 1))) > 1:
        parts.append(f"{processes} GPUs")
    if memory := plan.get("peak_memory_bytes"):
        parts.append(f"{human_bytes(float(memory))} of memory at most")
    return ", ".join(parts)


def earlier_curve(folder: Path) -> Curve | None:
    """The loss of another run, for comparison; read on a background thread."""
    view = RunStory(folder).read_on(budget_s=5.0)
    if not view.losses:
        return None
    first = view.losses[0]
    return Curve(folder.name, first.x, first.y, "earlier")


def _curves(series: dict[str, Series], role: str) -> tuple[Curve, ...]:
    return tuple(
        Curve(name, *s.points(), "train" if name == TOTAL else role)
        for name, s in series.items()
    )


def _thinning(stride: int) -> Callable[[bytes], bool]:
    count = 0

    def wanted(line: bytes) -> bool:
        nonlocal count
        if not line.startswith(_STEP_MARK):
            return True
        count += 1
        return count % stride == 0

    return wanted


def _plan(folder: Path) -> dict[str, Any]:
    """``plan.json``; empty where there is none that can be read."""
    try:
        return read_object(folder / "plan.json", _PLAN)
    except (FileNotFoundError, UnusableInput):
        return {}
