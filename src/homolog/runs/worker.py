"""The process that works on a run: ``python -m homolog.runs.worker RUN``.

It holds the run's lock, writes every event, and obeys ``control`` and SIGTERM between
two events of the job.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import io
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from homolog.config import ConfigError
from homolog.errors import JobError, UnusableInput
from homolog.events import Event, Failed, Finished, Note, Request, Stopped, meanwhile
from homolog.runs.jobs import check_inside, is_unresolved, job_of, resolved
from homolog.runs.run import Run
from homolog.words import visible
from homolog.writing import file_mode, keep_private, restore_retired, sweep_leftovers

DONE, FAILED, UNUSABLE, STOPPED = 0, 1, 2, 130

_BEAT_S = 2.0
_LOOK_S = 0.1
_ORPHAN_S = 10.0
_UNUSABLE = (UnusableInput, ConfigError, FileNotFoundError, NotADirectoryError)


class StopFlag:
    """Set by a signal or a lost parent; read between two events."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def __call__(self) -> bool:
        """Whether it was set."""
        return self._event.is_set()

    def set(self, *_: object) -> None:
        """Ask to stop; usable as a signal handler."""
        self._event.set()


def execute(
    run: Run,
    stop: Callable[[], bool] = lambda: False,
    processes: int = 1,
    *,
    outside: bool = False,
) -> Iterator[Event]:
    """Work on a run in this process; yields what it also writes.

    The last event is Finished, Stopped or Failed. An error of the job does not leave
    here: it becomes Failed, with its traceback in ``log.txt``.

    Args:
        run: A new one, or one to resume.
        stop: Asked between two events.
        processes: That work on it together, this one being the first.
        outside: Whether it may write outside its folder: said by who made it.

    Raises:
        UnusableInput: It would, and may not.
        JobError: Another process works on it.
    """
    if not outside:
        check_inside(run.spec["kind"], run.spec["config"], run.folder)
    lock = run.lock()
    if not lock.acquire():
        raise JobError(
            f"another process (pid {run.pid()}) works on {run.folder}; stop it with: "
            f"homolog runs stop {run.folder}"
        )
    try:
        restore_retired(run.folder)
        for folder in (run.folder, *(p for p in run.folder.iterdir() if p.is_dir())):
            sweep_leftovers(folder)
        run.begin_session(processes)
        yield from _session(run, stop)
    finally:
        lock.release()


def _session(run: Run, stop: Callable[[], bool]) -> Iterator[Event]:
    journal = run.journal
    spec = run.spec
    if spec["sessions"] > 1:
        word = Note(f"session {spec['sessions']}, process {os.getpid()}.")
        journal.append(word)
        yield word
    with _heartbeat(run):
        try:
            kind, config = spec["kind"], spec["config"]
            run.check_checkpoints()
            function = job_of(kind)
            if is_unresolved(config):
                config = resolved(kind, config)
                run.settle(config)
            job = function(config, run.folder)
            result, stopped = yield from _drive(run, job, stop)
        except Exception as error:  # noqa: BLE001 - the edge: told, not swallowed
            last: Event = _failure(run, error)
            outcome = {"state": "failed", "error_kind": _kind_of(error)}
        else:
            last = Finished(result) if stopped is None else stopped
            state = "finished" if stopped is None else "stopped"
            outcome = {"state": state, "result": result}
    with contextlib.suppress(OSError):  # a full disk: the listener is told all the same
        run.end_session(outcome)
        journal.append(last, sync=True)
    yield last


def _drive(run: Run, job: Any, stop: Callable[[], bool]) -> Any:
    """Pass events on and wishes in; returns (result, Stopped or None)."""
    stopped: Stopped | None = None
    request: Request | None = None
    looked = 0.0
    asked = False
    try:
        while True:
            try:
                event = job.send(request)
            except StopIteration as end:
                return dict(end.value or {}), stopped
            if isinstance(event, Stopped):
                stopped = event  # told once, at the very end
            elif not isinstance(event, Finished | Failed):
                run.journal.append(event)
                yield event
            if time.monotonic() - looked >= _LOOK_S or stop():
                asked = asked or _asked_to_stop(run, stop)
                looked = time.monotonic()
            request = Request.STOP if asked else None
    finally:
        job.close()


def _asked_to_stop(run: Run, stop: Callable[[], bool]) -> bool:
    """Whether to stop; waits here while the run is paused."""
    while run.wish() == "pause" and not stop():
        time.sleep(_LOOK_S)
    return stop() or run.wish() == "stop"


def _failure(run: Run, error: Exception) -> Failed:
    text = "".join(traceback.format_exception(error))
    with contextlib.suppress(OSError), run.log.open("a", encoding="utf-8") as log:
        log.write(visible(text))
    sentence = str(error).strip() or type(error).__name__
    if isinstance(error, OSError) and error.filename is not None:
        sentence = f"{error.strerror}: {error.filename}"
    return Failed(sentence, text)


def _kind_of(error: Exception) -> str:
    return "unusable" if isinstance(error, _UNUSABLE) else "failed"


def _heartbeat(run: Run) -> contextlib.AbstractContextManager[None]:
    def beat() -> bool:
        with contextlib.suppress(OSError):  # the disk may be full for a while
            run.beat()
        return True

    return meanwhile(beat, _BEAT_S, "homolog-heartbeat")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the worker process; returns its exit status."""
    parser = argparse.ArgumentParser(prog="homolog.runs.worker")
    parser.add_argument("run", type=Path)
    parser.add_argument(
        "--with-parent",
        action="store_true",
        help="stop when standard input ends: this run only serves its starter",
    )
    parser.add_argument(
        "--outside",
        action="store_true",
        help="the run may write outside its folder: its starter made it",
    )
    options = parser.parse_args(arguments)
    keep_private()
    flag = StopFlag()
    signal.signal(signal.SIGTERM, flag.set)
    signal.signal(signal.SIGINT, flag.set)
    if hasattr(os, "nice"):
        with contextlib.suppress(OSError):
            os.nice(10)
    run = Run.open(options.run)
    _speak_into(run.log)
    if options.with_parent:
        threading.Thread(target=_end_with_parent, args=(flag,), daemon=True).start()
    last: Event | None = None
    for event in execute(run, flag, outside=options.outside):
        last = event
    if isinstance(last, Finished):
        return DONE
    if isinstance(last, Stopped):
        return STOPPED
    kind = run.spec["outcome"].get("error_kind")
    return UNUSABLE if kind == "unusable" else FAILED


def _speak_into(log: Path) -> None:
    """Standard output and error, C libraries included, go to ``log.txt``."""
    target = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, file_mode())
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        if isinstance(stream, io.TextIOWrapper):  # whatever this system's code page is
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
        os.dup2(target, stream.fileno())
    os.close(target)
    faulthandler.enable()


def _end_with_parent(flag: StopFlag) -> None:
    """Read standard input to its end; then stop, and soon no longer ask."""
    with contextlib.suppress(OSError, ValueError):
        while os.read(0, 4096):
            pass
    flag.set()
    time.sleep(_ORPHAN_S)
    os._exit(STOPPED)


if __name__ == "__main__":
    sys.exit(main())
