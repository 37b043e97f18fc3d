"""One run as a training screen needs it, read from its folder; no Qt, no torch.

``RunStory.read_on`` is called on a background thread and returns a ``View``: plain
numbers and words, ready to be shown, so the GUI thread only has to paint.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
from homolog.gui.runs.curve_points import Curve, Series
from homolog.gui.runs.monitor_words import Reading, readings
from homolog.gui.runs.words import Trouble, diagnose, size_words
from homolog.json_files import read_object
from homolog.runs.run import Run

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
        best: ``"dice 0.81 at step 40"`` or empty.
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
    _best: str = ""
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
            case Validated(index=index, metrics=metrics, is_best=is_best):
                for name, value in metrics.items():
                    if " " not in name:  # one per label: too many for a chart
                        self._validation.setdefault(name, Series()).add(index, value)
                if is_best:
                    self._best = best_words(metrics, index)
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
            validation=_curves(self._validation, "validation"),
            monitors=tuple(readings({k: list(v) for k, v in self._monitors.items()})),
            device=device_words(self._details, plan),
            preview=self._preview,
            notes=tuple(self._notes),
            trouble=trouble,
            saved_step=saved,
            best=self._best,
            behind=behind,
        )


def best_words(metrics: dict[str, float], index: int) -> str:
    """``"dice 0.812 at step 40"``: the first metric, which decides."""
    for name, value in metrics.items():
        if value == value:
            return f"{name} {value:.3f} at step {index}"
    return ""


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
        parts.append(f"{size_words(float(memory))} of memory at most")
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
