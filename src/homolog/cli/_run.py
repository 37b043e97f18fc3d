"""Run a job in a folder: in the foreground, the background, or many processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from homolog.cli._errors import DONE, STOPPED, UNUSABLE

if TYPE_CHECKING:
    from homolog.events import Event
    from homolog.runs.run import Run
    from homolog.runs.worker import StopFlag


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
    from homolog.cli._options import show
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
    from homolog.cli._options import show
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
    from homolog.cli._follow import follow
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
