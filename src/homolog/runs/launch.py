"""Start, follow, stop and resume runs from any process."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from homolog.errors import JobError, UnusableInput
from homolog.events import Event, Failed
from homolog.runs.jobs import check_inside
from homolog.runs.run import Run, State
from homolog.words import counted
from homolog.writing import create

WORKER: tuple[str, ...] = (sys.executable, "-m", "homolog.runs.worker")

_START_S = 60.0
_POLL_S = 0.1
# Processes started here, kept so that they are reaped when they end.
_children: list[subprocess.Popen[bytes]] = []


def start(
    run: Run, *, with_parent: bool = False, outside: bool = False, threads: int = 0
) -> int:
    """Begin to work on a run in a process of its own; returns its pid.

    The process outlives this one, unless ``with_parent``: then it stops when this
    process ends or closes its pipe. Returns once the worker has taken the run.
    ``outside`` lets it write outside its folder: for runs made by the caller.
    ``threads`` of its libraries are used at most; 0: as many as they take.

    Raises:
        UnusableInput: It would write outside its folder.
        JobError: Somebody works on it already, or the process died at once.
    """
    _reap()
    if not outside:
        check_inside(run.spec["kind"], run.spec["config"], run.folder)
    if run.is_alive():
        raise JobError(f"the run {run.folder} is being worked on (pid {run.pid()}).")
    sessions = run.spec.get("sessions", 0)
    command = [*WORKER, str(run.folder)] + ["--with-parent"] * with_parent
    command += ["--outside"] * outside
    create(run.log)
    with run.log.open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if with_parent else subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=os.name != "nt",
            creationflags=_detached(),
            env=_with_threads(threads),
        )
    _children.append(process)
    until = time.monotonic() + _START_S
    while time.monotonic() < until:
        if run.spec.get("sessions", 0) > sessions:
            return process.pid
        if process.poll() is not None:
            raise JobError(
                f"the worker of {run.folder} ended at once (exit status "
                f"{process.returncode}): {last_line(run) or 'no word'}"
            )
        time.sleep(_POLL_S / 2)
    raise JobError(f"the worker of {run.folder} did not begin within {_START_S:.0f} s.")


def resume(run: Run) -> int:
    """Continue a stopped, failed or crashed run in a process of its own; its pid.

    Raises:
        UnusableInput: It has finished.
        JobError: Somebody works on it.
    """
    check_resumable(run)
    return start(run)


def check_resumable(run: Run, processes: int = 1) -> None:
    """Raise when a run cannot go on exactly.

    Args:
        run: Any.
        processes: That are to work on it together.

    Raises:
        UnusableInput: It has finished, its checkpoints are gone, or another number of
            processes began it.
        JobError: Somebody works on it.
    """
    state = run.state()
    if state == "finished":
        raise UnusableInput(f"the run {run.folder} has finished; nothing is left.")
    if state in ("running", "paused"):
        raise JobError(f"the run {run.folder} is {state} (pid {run.pid()}).")
    run.check_checkpoints()
    began = run.processes()
    if run.spec.get("sessions", 0) and began != processes:
        raise UnusableInput(
            f"the run {run.folder} is trained by {counted(began, 'process')}, got "
            f"{counted(processes, 'process')}: another number would change its "
            f"batches. Continue it with: {resume_command(run)}"
        )


def resume_command(run: Run) -> str:
    """What to type to continue a run as it began."""
    count = run.processes()
    with_many = f"torchrun --nproc-per-node {count} -m homolog.cli"
    return f"{'homolog' if count == 1 else with_many} runs resume {run.folder}"


def follow(run: Run, *, whole: bool = False) -> Iterator[Event]:
    """The run's events as they come, until it ends.

    Args:
        run: Any run; one that has ended gives what it wrote.
        whole: From its very beginning instead of from its present session.

    Yields:
        Events. After a crash the last one is a Failed that says so.
    """
    place = 0 if whole else int(run.spec.get("session_offset", 0))
    while True:
        alive = run.is_alive()  # asked first: what is written later is read next time
        for end, event in run.journal.read(place):
            place = end
            yield event
        if not alive:
            break
        time.sleep(_POLL_S)
    if run.state() == "crashed":
        yield Failed(crash_sentence(run))


def stop(run: Run, timeout_s: float = 60.0, *, kill: bool = False) -> State:
    """Ask a run to stop and wait; returns the state it is in then.

    Args:
        run: A running or paused run; others are left alone.
        timeout_s: After this long the process gets SIGTERM, which asks the same; not
            on Windows, where any signal ends it at once.
        kill: Kill it, after the timeout and 5 s more; its last checkpoint stays.
    """
    if not run.is_alive():
        return run.state()
    run.ask("stop")
    if _gone(run, timeout_s):
        return run.state()
    if os.name != "nt":
        _send(run, signal.SIGTERM)
    if not _gone(run, 5.0) and kill:
        _send(run, getattr(signal, "SIGKILL", signal.SIGTERM))
        _gone(run, 5.0)
    return run.state()


def pause(run: Run) -> None:
    """Ask a run to wait between two steps; it keeps its memory.

    Raises:
        JobError: Nobody works on it.
    """
    _check_alive(run)
    run.ask("pause")


def unpause(run: Run) -> None:
    """Let a paused run go on.

    Raises:
        JobError: Nobody works on it.
    """
    _check_alive(run)
    run.ask("resume")


def started_here() -> list[Run]:
    """Runs that processes started here still work on, helpers of a window left out."""
    _reap()
    found = [
        Run(Path(str(child.args[len(WORKER)])))  # type: ignore[index]
        for child in _children
        if "--with-parent" not in child.args  # type: ignore[operator]
    ]
    return [run for run in found if run.is_alive()]


def crash_sentence(run: Run) -> str:
    """What is known of a run that died without a last word."""
    step = run.last_step()
    where = f" after step {step.index} of {step.total}" if step else ""
    word = last_line(run)
    ends = f"; log.txt ends: {word}" if word else ""
    return (
        f"process {run.pid()} is gone without a last word{where} (killed, out of "
        f"memory or power cut?){ends}. Continue with: {resume_command(run)}"
    )


def last_line(run: Run) -> str:
    """The last line of the run's log, or empty."""
    with contextlib.suppress(OSError):
        text = run.log.read_text(encoding="utf-8", errors="replace")
        lines = text.strip().splitlines()
        return lines[-1].strip()[:300] if lines else ""
    return ""


def _check_alive(run: Run) -> None:
    if not run.is_alive():
        raise JobError(f"the run {run.folder} is not running ({run.state()}).")


def _gone(run: Run, timeout_s: float) -> bool:
    until = time.monotonic() + timeout_s
    while run.is_alive():
        _reap()
        if time.monotonic() > until:
            return False
        time.sleep(_POLL_S)
    return True


def _send(run: Run, number: int) -> None:
    """A signal to the run's process; only while it holds the run's lock here."""
    host = run.spec.get("process", {}).get("host")
    if run.is_alive() and host == platform.node():
        with contextlib.suppress(OSError):
            os.kill(run.pid(), number)


def _reap() -> None:
    gone = [child for child in _children if child.poll() is not None]
    _children[:] = [child for child in _children if child not in gone]
    for child in gone:
        if child.stdin is not None:
            with contextlib.suppress(OSError):  # what it had not read
                child.stdin.close()


def _with_threads(threads: int) -> dict[str, str] | None:
    """The environment of a worker whose libraries take so many threads."""
    if not threads:
        return None
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(names, str(threads))}


def _detached() -> int:
    if sys.platform == "win32":
        return subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.DETACHED_PROCESS
    return 0
