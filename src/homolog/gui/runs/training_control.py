"""What the training screen offers in each state, and what it says meanwhile; no Qt."""

from __future__ import annotations

from homolog.gui.runs.control import LIVE, actions
from homolog.gui.runs.monitor_words import plateau_hint, verdict
from homolog.gui.runs.story import View
from homolog.gui.runs.words import headline, state_words

# What was asked for -> what stands there until the worker has done it.
_MEANWHILE = {
    "stop": "stopping",
    "stop_now": "stopping",
    "pause": "pausing",
    "go_on": "starting",
    "resume": "starting",
}
# Each keeps its place, so those of a finished run come first.
BUTTONS = {
    "log": ("Open log", "What libraries printed, and the details of errors"),
    "open": ("Open folder", "Show the run's folder in the file manager"),
    "use": ("Use model...", "Explore, fine-tune or segment with this model"),
    "resume": ("Resume", "Continue exactly where the last saved state was"),
    "pause": ("Pause", "Wait between two steps; memory stays taken"),
    "go_on": ("Go on", "Continue the paused training"),
    "stop": (
        "Stop and keep",
        "Finish the step, save state and model; it can be resumed later",
    ),
    "stop_now": (
        "Stop now",
        "End within seconds; what was saved last stays, newer steps are lost",
    ),
}


def is_settled(asked: str, state: str) -> bool:
    """Whether what was asked for has happened (or no longer can)."""
    if asked == "pause":
        return state != "running"
    if asked in ("go_on", "resume"):
        return state == "running"
    return state not in LIVE


def shown_state(view: View, asked: str) -> str:
    """State in words a user understands: at once ``stopping``, later ``stopped``."""
    if asked and not is_settled(asked, view.state):
        return _MEANWHILE[asked]
    if view.state in LIVE and view.wish == "stop":
        return "stopping"
    return view.state


def offered(shown: str, has_model: bool) -> frozenset[str]:
    """Buttons of a state; while something is under way only what still helps."""
    if shown == "stopping":
        return frozenset({"stop_now", "log", "open"})
    if shown in ("pausing", "starting"):
        return frozenset({"stop", "log", "open"})
    if shown in ("deleted", "damaged"):
        return frozenset()
    return actions(shown, has_model)


def title_of(view: View, shown: str, now: float | None = None) -> str:
    """The headline."""
    return headline(
        view.kind, view.name, shown, view.step, view.total,
        view.seconds_per_step, view.remaining_s, now,
    )  # fmt: skip


def bar_of(view: View, shown: str) -> tuple[int, int, str]:
    """(done, total, text) of the bar; total 0 is a busy one."""
    sign = state_words(shown)
    if view.phase and view.phase_total and shown in LIVE:
        words = f"{sign}: {view.phase} {view.phase_index}/{view.phase_total}"
        return view.phase_index, view.phase_total, words
    if view.total and view.step >= view.total and shown == "running":
        return view.step, view.total, f"{sign}: saving the model ..."
    if view.total:
        share = f"{view.step / view.total:.0%}"
        return view.step, view.total, f"{sign}  {share}"
    busy = shown in ("running", "starting")
    return 0, 0 if busy else 1, f"{sign}: preparing" if busy else sign


def facts_of(view: View) -> str:
    """Device, memory, best validation and what is saved, one line each."""
    lines = []
    if view.device:
        lines.append(f"On {view.device}.")
    if view.best:
        lines.append(f"Best validation: {view.best}.")
    if view.state in LIVE:
        saved = "nothing yet" if view.saved_step is None else f"step {view.saved_step}"
        lines.append(f"Saved: {saved}.")
    return "\n".join(lines)


def health_of(view: View) -> tuple[str, str]:
    """(light, sentence): monitors first, then a validation that stands still."""
    light, sentence = verdict(view.monitors)
    for curve in view.validation:
        if light == "good" and (hint := plateau_hint(list(curve.y))):
            return "look", hint
        break
    return light, sentence
