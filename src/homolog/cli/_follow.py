"""Show a job's events: a progress bar on a terminal, plain lines otherwise."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from homolog import events
from homolog.safe_text import visible


def follow(stream: Iterable[events.Event]) -> events.Event | None:
    """Print events as they come; returns the last one (Finished, Stopped or Failed).

    SIGTERM, and SIGHUP of a terminal that is closed, interrupt like Ctrl-C.
    """
    screen = _Bar() if sys.stderr.isatty() else _Lines()
    last: events.Event | None = None
    try:
        with _ended_like_ctrl_c():
            for event in stream:
                last = event
                screen.show(event)
    finally:
        screen.close()
    return last


def with_result(
    job: Generator[Any, Any, dict[str, Any]],
) -> Generator[Any, Any, None]:
    """A job's events, and its result as the last of them."""
    result = yield from job
    yield events.Finished(result)


@contextmanager
def _ended_like_ctrl_c() -> Iterator[None]:
    """Whoever ends the process lets it leave things in order."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    taken: list[signal.Signals] = []
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            # a handler of the command's own, and nohup, stay
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, interrupt)
                taken.append(number)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def duration(seconds: float) -> str:
    """``125.0`` -> ``"2 min 05 s"``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _numbers(values: dict[str, float]) -> str:
    return "  ".join(f"{k} {v:.4g}" for k, v in values.items())


class _Lines:
    """One line per event, at most one progress line in two seconds."""

    def __init__(self) -> None:
        self._last = 0.0

    def show(self, event: events.Event) -> None:
        now = time.monotonic()
        if isinstance(event, events.Step | events.Progress):
            ends = event.index >= event.total
            if now - self._last < 2.0 and not ends:
                return
            self._last = now
            phase = event.phase if isinstance(event, events.Progress) else "step"
            line = f"{phase} {event.index}/{event.total}"
            if isinstance(event, events.Step):
                line += (
                    f"  {_numbers(event.losses)}  {event.seconds_per_step:.2f} s/step"
                )
            elif event.item:
                line += f"  {visible(event.item, one_line=True)}"
            if event.remaining_s:
                line += f"  {duration(event.remaining_s)} left"
            self._print(line)
            return
        text = describe(event)
        if text:
            self._print(text)

    def _print(self, line: str) -> None:
        click.echo(visible(line), err=True)

    def close(self) -> None:
        """Nothing is held."""


class _Bar(_Lines):
    """A live bar with phase, rate and remaining time; other news above it."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[news]}", markup=False),
            console=self._console,
            transient=True,
        )
        self._progress.start()
        self._task = self._progress.add_task("starting", total=1, news="")

    def show(self, event: events.Event) -> None:
        if isinstance(event, events.Step):
            news = f"{_numbers(event.losses)}  {event.seconds_per_step:.2f} s/step"
            phase = "step"
        elif isinstance(event, events.Progress):
            news, phase = visible(event.item, one_line=True), event.phase
        else:
            text = describe(event)
            if text:
                self._print(text)
            return
        if event.remaining_s:
            news += f"  {duration(event.remaining_s)} left"
        self._progress.update(
            self._task, description=visible(phase), completed=event.index,
            total=max(event.total, 1), news=news,
        )  # fmt: skip

    def _print(self, line: str) -> None:
        self._console.print(visible(line), highlight=False, markup=False)

    def close(self) -> None:
        """Give the terminal back."""
        self._progress.stop()


def describe(event: events.Event) -> str:
    """One line for people; empty for events that need none."""
    match event:
        case events.Started(phase=phase, total=total):
            return f"{phase}: {total} steps" if total else phase
        case events.Validated(index=index, metrics=metrics, is_best=best):
            mark = "  (best)" if best else ""
            return f"validation after {index}: {_numbers(metrics)}{mark}"
        case events.Saved(path=path, what=what):
            return f"saved {what}: {path}"
        case events.Note(text=text, level=level):
            return text if level == "info" else f"{level}: {text}"
        case events.Preview(path=path, title=title):
            return f"{title or 'preview'}: {path}"
        case events.Stopped(index=index):
            return f"stopped after step {index}"
        case events.Failed(message=message):
            return f"failed: {message}"
    return ""
