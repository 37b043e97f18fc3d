"""The news a job tells, the one thing it can be told, and what goes on beside it.

A job is a generator of events. The terminal, the GUI, a worker process and a test
consume the same ones; each is plain data that survives JSON.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

R = TypeVar("R")


class Request(enum.Enum):
    """What a listener may send into a job between two events."""

    STOP = "stop"


@dataclass(frozen=True)
class Event:
    """Base of all news. Fields hold plain numbers, texts, lists and dicts only."""


@dataclass(frozen=True)
class Started(Event):
    """The job knows its size. ``total`` is 0 while unknown."""

    phase: str
    total: int = 0
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Step(Event):
    """One (reported) training step.

    ``losses`` are the weighted terms whose sum is minimised, ``monitors`` whatever
    tells whether learning is healthy (feature std, effective rank, gradient norm).
    """

    index: int
    total: int
    losses: dict[str, float]
    monitors: dict[str, float] = field(default_factory=dict)
    seconds_per_step: float = 0.0
    remaining_s: float = 0.0


@dataclass(frozen=True)
class Progress(Event):
    """Countable work other than training steps: scans prepared, windows predicted."""

    phase: str
    index: int
    total: int
    item: str = ""
    remaining_s: float = 0.0


@dataclass(frozen=True)
class Validated(Event):
    """Metrics on held-out cases after ``index`` steps."""

    index: int
    metrics: dict[str, float]
    is_best: bool = False


@dataclass(frozen=True)
class Saved(Event):
    """Something now lies on disk, complete."""

    path: str
    what: str = "checkpoint"


@dataclass(frozen=True)
class Note(Event):
    """A sentence for the user. ``level`` is ``info`` or ``warning``."""

    text: str
    level: str = "info"


@dataclass(frozen=True)
class Preview(Event):
    """A picture or volume written to a file, worth showing while the job runs."""

    path: str
    title: str = ""


@dataclass(frozen=True)
class Finished(Event):
    """The job ended by itself. ``result`` is its summary, JSON types only."""

    result: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stopped(Event):
    """The job ended because it was told to; its state is saved and can resume."""

    index: int = 0


@dataclass(frozen=True)
class Failed(Event):
    """The job ended by an error, told in one sentence."""

    message: str
    traceback: str = ""


Job: TypeAlias = Generator[Event, Request | None, R]

_KINDS: dict[str, type[Event]] = {
    cls.__name__.lower(): cls
    for cls in (
        Started,
        Step,
        Progress,
        Validated,
        Saved,
        Note,
        Preview,
        Finished,
        Stopped,
        Failed,
    )
}


def to_json(event: Event) -> dict[str, Any]:
    """``{"event": "step", ...}``, ready for json.dumps."""
    return {"event": type(event).__name__.lower(), **dataclasses.asdict(event)}


def from_json(data: dict[str, Any]) -> Event:
    """Inverse of to_json; unknown fields (a newer version's) are dropped.

    Raises:
        ValueError: An unknown event, or a field of another type.
        TypeError: A field is missing.
    """
    kind = data.get("event", "")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"unknown event {kind!r}; known: {', '.join(sorted(_KINDS))}.")
    cls = _KINDS[kind]
    given: dict[str, Any] = {}
    for name, kinds in _FIELDS[kind].items():
        value: Any = data.get(name)
        if value is None:
            continue  # a number that was not finite: its default stands for it
        fits = isinstance(value, kinds) and (isinstance(value, bool) <= (bool in kinds))
        if not fits or (name in _NUMBERED and not _holds_numbers(value)):
            raise ValueError(f"{name} of {kind!r} cannot be {value!r}.")
        given[name] = value
    return cls(**given)


# Fields that hold numbers by name.
_NUMBERED = ("losses", "monitors", "metrics")


def _fields_of(cls: type[Event]) -> dict[str, tuple[type, ...]]:
    """Name of each field -> what it may be."""
    by_hint = {
        "str": (str,), "int": (int,), "float": (int, float), "bool": (bool,),
        "dict": (dict,),
    }  # fmt: skip
    return {
        f.name: by_hint[str(f.type).partition("[")[0]] for f in dataclasses.fields(cls)
    }


_FIELDS = {name: _fields_of(cls) for name, cls in _KINDS.items()}


def _holds_numbers(values: Any) -> bool:
    return all(
        isinstance(v, int | float) and not isinstance(v, bool) for v in values.values()
    )


def without(job: Job[R], kind: type[Event]) -> Job[R]:
    """Pass events and requests on, but keep those of one kind."""
    request: Request | None = None
    while True:
        try:
            event = job.send(request)
        except StopIteration as end:
            result: R = end.value
            return result
        request = None if isinstance(event, kind) else (yield event)


def without_stopped(job: Job[R]) -> Job[R]:
    """Keep Stopped: it is the last word of a run.

    A job inside another one says it too early: what was learnt is saved after it.
    """
    return without(job, Stopped)


def stopped_words(told: Mapping[str, Any]) -> str:
    """``"stopped at step 12 of 100"``; empty where the training came to its end.

    Args:
        told: A model's card, or the result of a training.
    """
    if not told.get("stopped", not told.get("complete", True)):
        return ""
    if told.get("steps") is None:  # a card from elsewhere
        return "stopped early"
    total = told.get("total_steps")
    return f"stopped at step {told['steps']}" + (f" of {total}" if total else "")


def drain(job: Job[R]) -> R:
    """Run a job to its end without listening; returns its result."""
    while True:
        try:
            next(job)
        except StopIteration as stop:
            result: R = stop.value
            return result


@contextlib.contextmanager
def meanwhile(action: Callable[[], bool], every_s: float, name: str) -> Iterator[None]:
    """Call something again and again on a thread while the block runs.

    The block leaves only after the last call has ended.

    Args:
        action: False ends it early. Deals with its own errors.
        every_s: Seconds between two calls, and before the first.
        name: Of the thread.
    """
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(every_s) and action():
            pass

    thread = threading.Thread(target=repeat, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
