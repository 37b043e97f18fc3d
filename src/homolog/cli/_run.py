"""Run a job in a folder: in the foreground, the background, or many processes."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast

import click

from homolog import events
from homolog.config import ConfigError
from homolog.errors import JobError, UnusableInput
from homolog.words import VisibleStream, duration, visible

if TYPE_CHECKING:
    from homolog.events import Event
    from homolog.runs.run import Run
    from homolog.runs.worker import StopFlag


# From an exception to one sentence on standard error and an exit status.


DONE, FAILED, UNUSABLE, STOPPED = 0, 1, 2, 130


def exit_status(error: BaseException) -> int:
    """Print the sentence an error deserves; return the exit status of section 3."""
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, click.exceptions.Abort | KeyboardInterrupt):
        print("Stopped.", file=sys.stderr)
        return STOPPED
    if isinstance(error, click.ClickException):
        error.show(file=cast("IO[str]", VisibleStream(sys.stderr)))
        return UNUSABLE
    if isinstance(error, SystemExit):
        return int(error.code) if isinstance(error.code, int) else FAILED
    if isinstance(error, BrokenPipeError):
        sys.stderr.close()
        return DONE
    expected = (
        UnusableInput,
        ConfigError,
        FileNotFoundError,
        NotADirectoryError,
        FileExistsError,
    )
    if os.environ.get("HOMOLOG_TRACEBACK"):
        sys.stderr.write(visible("".join(traceback.format_exception(error))))
    print(visible(f"homolog: {_sentence(error)}"), file=sys.stderr)
    if isinstance(error, expected):
        return UNUSABLE
    if not isinstance(error, JobError | OSError | ValueError | MemoryError):
        print("(set HOMOLOG_TRACEBACK=1 to see where)", file=sys.stderr)
    return FAILED


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.strerror}: {error.filename}"
    text = str(error).strip()
    return text if text else type(error).__name__


# Show a job's events: a progress bar on a terminal, plain lines otherwise.


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


# Options every command takes, and the last line of ``--json``.


F = TypeVar("F", bound=Callable[..., Any])

json_option = click.option(
    "--json", "as_json", is_flag=True,
    help="Last line of standard output is one JSON object.",
)  # fmt: skip


def seed_option(*, hidden: bool = False) -> Callable[[F], F]:
    """``--seed``; hidden where it is taken but has no effect."""
    return click.option(
        "--seed", type=click.IntRange(0), default=0, show_default=True, hidden=hidden,
        help="Seed of everything random.",
    )  # fmt: skip


def device_option(*, hidden: bool = False) -> Callable[[F], F]:
    """``--device``; hidden where it is taken but has no effect."""
    return click.option(
        "--device", default="auto", show_default=True, metavar="DEVICE", hidden=hidden,
        help="auto, cpu, cuda or cuda:i.",
    )  # fmt: skip


def common(function: F) -> F:
    """Add ``--json``, ``--device`` and ``--seed`` (as as_json, device, seed)."""
    for decorate in (seed_option(), device_option(), json_option):
        function = decorate(function)
    return function


def show(result: dict[str, Any], as_json: bool, lines: Sequence[str] = ()) -> None:
    """Print lines for people, then (with --json) one JSON object as the last line."""
    for line in lines:
        click.echo(visible(line))
    if as_json:
        click.echo(json.dumps(result))


def run_in_folder(
    kind: str,
    config: Mapping[str, Any],
    out: Path,
    as_json: bool = False,
    background: bool = False,
) -> int:
    """Begin a run; returns the exit status.

    In the foreground Ctrl-C stops between two steps with the state saved. Under
    ``torchrun`` all processes train together and the first one writes.

    Args:
        kind: ``pretrain`` or ``finetune``.
        config: Resolved configuration of the job.
        out: The run's folder, new or empty.
        as_json: Print the summary as the last line.
        background: Start a process of its own and return.

    Raises:
        UnusableInput: The folder is taken, or the job refused its input.
        JobError: The job failed.
    """
    from homolog.errors import UnusableInput
    from homolog.runs.run import Run

    if many_processes() > 1:
        if background:
            raise UnusableInput("--background does not go together with torchrun.")
        device = str(config.get("device", "auto"))
        return together(lambda: Run.create(out, kind, config), device, as_json)
    run = Run.create(out, kind, config)
    return in_background(run, as_json) if background else in_foreground(run, as_json)


def in_foreground(run: Run, as_json: bool, *, outside: bool = False) -> int:
    """Work on a run in this process and show its events; returns the exit status."""
    from homolog.runs.worker import execute

    with stop_on_interrupt() as flag:
        last = show_events(execute(run, flag, outside=outside))
    return conclude(run, last, as_json)


def in_background(run: Run, as_json: bool, *, outside: bool = False) -> int:
    """Start a worker for a run and return."""
    from homolog.runs import launch

    pid = launch.start(run, outside=outside)
    show(
        {"run": str(run.folder), "state": "running", "pid": pid},
        as_json,
        [
            f"running in the background, process {pid}",
            f"  homolog runs follow {run.folder}",
            f"  homolog runs stop {run.folder}",
        ],
    )
    return DONE


def conclude(run: Run, last: Event | None, as_json: bool) -> int:
    """Print what came out; the exit status of the last event.

    Raises:
        UnusableInput: The job refused its input.
        JobError: It failed.
    """
    from homolog.errors import JobError, UnusableInput
    from homolog.events import Failed, Finished

    outcome = run.spec.get("outcome", {})
    if isinstance(last, Failed) or last is None:
        text = last.message if last is not None else f"{run.folder} is {run.state()}"
        if outcome.get("error_kind") == "unusable":
            raise UnusableInput(text)
        raise JobError(f"{text}\n(traceback: {run.log})")
    result = {"run": str(run.folder), "state": run.state(), **outcome.get("result", {})}
    if isinstance(last, Finished):
        show(result, as_json, [f"done: {result.get('model', run.folder)}"])
        return DONE
    show(result, as_json, [kept_words(result), continue_words(run)])
    return STOPPED


def kept_words(result: Mapping[str, Any]) -> str:
    """What exists after a stop, in one sentence.

    Args:
        result: Of the job that was stopped.
    """
    from homolog.events import stopped_words

    where = stopped_words(result) or "stopped"
    model = result.get("model")
    if not model:
        nothing = "before its first step" if result.get("steps") == 0 else "early"
        return f"stopped {nothing}: there is no model yet"
    told = result.get("weights_of")
    which = ""
    if told:
        kind = "best" if told["kept"] == "best" else "last"
        which = f" ({kind} weights, of step {told['step']})"
    return f"{where}; the model so far{which}: {model}"


def continue_words(run: Run) -> str:
    """How a stopped run goes on."""
    from homolog.runs import launch

    return f"continue with: {launch.resume_command(run)}"


@contextmanager
def stop_on_interrupt() -> Iterator[StopFlag]:
    """Ctrl-C and SIGTERM set the flag; a second Ctrl-C interrupts at once."""
    from homolog.runs.worker import StopFlag

    flag = StopFlag()
    former: dict[signal.Signals, Any] = {}

    def first(_: int, __: object) -> None:
        flag.set()
        signal.signal(signal.SIGINT, former[signal.SIGINT])

    for number in (signal.SIGINT, signal.SIGTERM):
        former[number] = signal.signal(number, first)
    try:
        yield flag
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def show_events(events: Iterator[Event]) -> Event | None:
    """Show events, return the last; a Failed is left to the command's own error."""
    from homolog.events import Failed

    last: Event | None = None

    def until_failure() -> Iterator[Event]:
        nonlocal last
        for last in events:
            if not isinstance(last, Failed):
                yield last

    follow(until_failure())
    return last


def many_processes() -> int:
    """How many processes torchrun started; asked without importing torch."""
    if "RANK" not in os.environ:
        return 1
    return int(os.environ.get("WORLD_SIZE", "1"))


def together(begin: Callable[[], Run], device: str, as_json: bool) -> int:
    """One of several processes: the first holds the run, the others only work.

    Args:
        begin: Makes or opens the run; called by the first process alone.
        device: As asked for.
        as_json: Print the summary as the last line.
    """
    from homolog.distributed import choose_device, from_first, session, wait_for_all
    from homolog.errors import JobError
    from homolog.events import Failed
    from homolog.runs.jobs import job_of
    from homolog.runs.worker import execute

    with session(choose_device(device)) as here, stop_on_interrupt() as flag:
        if not here.is_first:
            told: Any = from_first(None)
            if told is None:
                return UNUSABLE  # the first process says why
            kind, config, folder = told
            status = _work_silently(job_of(kind)(config, folder), flag)
            wait_for_all()  # were one to leave with 130, torchrun would end the others
            return status
        try:
            run = begin()
            config = _settled(run)
        except (ValueError, OSError, JobError):
            from_first(None)
            raise
        from_first((run.spec["kind"], config, run.folder))
        last = show_events(execute(run, flag, here.size))
        if not isinstance(last, Failed):
            wait_for_all()
        return conclude(run, last, as_json)


def _settled(run: Run) -> dict[str, Any]:
    """The run's complete configuration, decided once for all processes."""
    from homolog.runs.jobs import is_unresolved, resolved

    config: dict[str, Any] = run.spec["config"]
    if is_unresolved(config):
        config = resolved(run.spec["kind"], config)
        run.settle(config)
    return config


def _work_silently(job: Any, flag: StopFlag) -> int:
    from homolog.events import Request, Stopped

    status, request = DONE, None
    while True:
        try:
            event = job.send(request)
        except StopIteration:
            return status
        if isinstance(event, Stopped):
            status = STOPPED
        request = Request.STOP if flag() else None
