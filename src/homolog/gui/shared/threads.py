"""Every thread and process of the window is named here.

- ``in_background``: a short function (reading a header, starting a worker) on a thread
  of a small pool; its result comes back on the GUI thread.
- ``RunWatch``: a timer that reads what a run's own process writes.
- ``Helper``: a job in a worker process that only serves this window and ends with it.

Trainings are started with ``start_run``; their processes outlive the window.
"""

from __future__ import annotations

import contextlib
import gc
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from qtpy.QtCore import QObject, QRunnable, QThreadPool, QTimer, Signal

from homolog.events import Event, Failed, Finished, Stopped
from homolog.runs import launch
from homolog.runs.run import Run, Wish
from homolog.writing import scratch_folder

_POLL_MS = 120
# Events shown per tick: a run of hours is caught up with in slices, not in one freeze.
_SLICE_S = 0.008
_POOL_SIZE = 4
_pool: QThreadPool | None = None
_counting = threading.Lock()
_at_work = 0
_was_collecting = True


def soon(owner: QObject, call: Callable[[], Any], after_ms: int = 0) -> None:
    """Call from the event loop, unless the owner is gone by then.

    ``QTimer.singleShot`` does so under PyQt alone; under PySide6 it calls methods of
    what was deleted.

    Args:
        owner: What the call is about.
        call: Takes nothing.
        after_ms: Not before so long.
    """
    timer = QTimer(owner)
    timer.setSingleShot(True)
    timer.timeout.connect(call)
    timer.timeout.connect(timer.deleteLater)
    timer.start(after_ms)


class _Courier(QObject):
    """Carries a result from its thread to the GUI thread."""

    arrived = Signal(object, object)


@contextlib.contextmanager
def _collector_waits() -> Iterator[None]:
    """No garbage collection while an errand runs.

    Python collects on whichever thread allocates; on one of the pool it would destroy
    forgotten widgets of the GUI thread, which ends the program now and then.
    """
    global _at_work, _was_collecting
    with _counting:
        if not _at_work:
            _was_collecting = gc.isenabled()
            gc.disable()
        _at_work += 1
    try:
        yield
    finally:
        with _counting:
            _at_work -= 1
            if not _at_work and _was_collecting:
                gc.enable()


class _Errand(QRunnable):
    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]):
        super().__init__()
        self.function, self.arguments = function, arguments
        self.courier = _Courier()

    def run(self) -> None:
        result, error = None, None
        with _collector_waits():
            try:
                result = self.function(*self.arguments)
            except Exception as problem:  # noqa: BLE001 - handed to the GUI thread
                error = problem
        with contextlib.suppress(RuntimeError):  # the window is gone
            self.courier.arrived.emit(result, error)


def in_background(
    function: Callable[..., Any],
    *arguments: Any,
    owner: QObject,
    done: Callable[[Any], None] | None = None,
    failed: Callable[[Exception], None] | None = None,
) -> None:
    """Run a short function on a thread; its result comes back on the GUI thread.

    Args:
        function: Touches no widget and no layer; seconds at most.
        arguments: For it.
        owner: When it is destroyed, nobody is called any more.
        done: Called with the result.
        failed: Called with the error; without it, the error is raised in the GUI
            thread, where napari shows it.
    """
    errand = _Errand(function, arguments)

    def deliver(result: Any, error: Exception | None) -> None:
        keep.discard(errand)
        if error is None:
            if done is not None:
                done(result)
        elif failed is not None:
            failed(error)
        else:
            raise error

    keep = _errands_of(owner)
    keep.add(errand)
    receiver = _Receiver(deliver, owner)
    errand.courier.arrived.connect(receiver.take)
    pool().start(errand)


class _Receiver(QObject):
    """Lives in the GUI thread as its owner's child, so calls end with the owner."""

    def __init__(self, deliver: Callable[[Any, Any], None], owner: QObject) -> None:
        super().__init__(owner)
        self._deliver = deliver

    def take(self, result: Any, error: Any) -> None:
        self.deleteLater()
        self._deliver(result, error)


def _errands_of(owner: QObject) -> set[Any]:
    """Errands kept alive by their owner: Qt frees a QRunnable Python still needs."""
    found: set[Any] | None = getattr(owner, "_homolog_errands", None)
    if found is None:
        found = set()
        owner._homolog_errands = found
    return found


def pool() -> QThreadPool:
    """The one pool of the window."""
    global _pool
    if _pool is None:
        _pool = QThreadPool()
        _pool.setMaxThreadCount(_POOL_SIZE)
    return _pool


def wait_for_threads(timeout_ms: int = 5000) -> bool:
    """Let errands end, at closing time; whether all did."""
    return bool(pool().waitForDone(timeout_ms))


class RunWatch(QObject):
    """Follows a run that any process works on, without ever blocking.

    Signals:
        news: Each Event, in order. (Not ``event``: that is a method of QObject.)
        state_changed: The run's new state (homolog.runs.run.State).
        caught_up: Once, when what was written before is told.
    """

    news = Signal(object)
    state_changed = Signal(str)
    caught_up = Signal()

    def __init__(self, run: Run, parent: QObject, *, whole: bool = True) -> None:
        super().__init__(parent)
        self.run = run
        self.state = ""
        self._place = 0 if whole else int(run.spec.get("session_offset", 0))
        self._told = False
        self._timer = QTimer(self)
        self._timer.setInterval(_POLL_MS)
        self._timer.timeout.connect(self.look)

    def start(self) -> None:
        """Begin, or go on after ``stop``."""
        self._timer.start()

    def stop(self) -> None:
        """Look no more; the run itself goes on."""
        self._timer.stop()

    def look(self) -> None:
        """Read what is new, for a few milliseconds."""
        try:
            state = self.run.state()
        except Exception:  # noqa: BLE001 - the folder was deleted or moved under us
            self.stop()
            self._set_state("deleted")
            return
        until = time.monotonic() + _SLICE_S
        for end, event in self.run.journal.read(self._place):
            self._place = end
            self.news.emit(event)
            if time.monotonic() > until:
                return
        if not self._told:
            self._told = True
            self.caught_up.emit()
        self._set_state(state)

    def _set_state(self, state: str) -> None:
        if state != self.state:
            self.state = state
            self.state_changed.emit(state)


class Helper(QObject):
    """A job in a worker process of its own that ends with this window.

    Signals:
        news: Each Event but the last.
        done: The job's result (dict).
        failed: One sentence.
        stopped: It was told to stop.
    """

    news = Signal(object)
    done = Signal(object)
    failed = Signal(str)
    stopped = Signal()

    def __init__(self, kind: str, config: Mapping[str, Any], parent: QObject) -> None:
        super().__init__(parent)
        self._kind, self._config = kind, dict(config)
        self._folder = scratch_folder()
        # A TemporaryDirectory would warn when it goes with its owner.
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._watch: RunWatch | None = None
        self._last: Event | None = None
        self._wants_stop = False
        self._left_out: set[str] = set()
        self.running = False

    def start(self) -> None:
        """Begin; signals follow."""
        self.running = True
        in_background(self._launch, owner=self, done=self._follow, failed=self._fail)

    def stop(self) -> None:
        """Ask the job to end; ``stopped`` follows."""
        self._wants_stop = True
        if self._watch is not None:
            with contextlib.suppress(OSError):  # its folder went with the program
                self._watch.run.ask("stop")

    def pause(self) -> None:
        """Ask the job to wait between two steps; it keeps its memory."""
        self._ask("pause")

    def go_on(self) -> None:
        """Let a paused job go on."""
        self._ask("resume")

    def leave_out(self, items: Iterable[str]) -> None:
        """Ask the job not to do these of its list any more; see ``Run.leave_out``."""
        self._left_out.update(items)
        if self._watch is not None and self._left_out:
            self._watch.run.leave_out(self._left_out)

    def _ask(self, wish: Wish) -> None:
        if self._watch is not None and self.running and not self._wants_stop:
            self._watch.run.ask(wish)

    def _launch(self) -> Run:
        run = Run.create(self._folder / "job", self._kind, self._config)
        launch.start(run, with_parent=True, outside=True)
        return run

    def _follow(self, run: Run) -> None:
        if self._wants_stop:
            run.ask("stop")
        if self._left_out:
            run.leave_out(self._left_out)
        self._watch = RunWatch(run, self)
        self._watch.news.connect(self._take)
        self._watch.state_changed.connect(self._look_at_state)
        self._watch.start()

    def _take(self, event: Event) -> None:
        if isinstance(event, Finished | Failed | Stopped):
            self._last = event
        else:
            self.news.emit(event)

    def _look_at_state(self, state: str) -> None:
        if self._watch is None or state in ("new", "running", "paused"):
            return
        # A worker frees its lock after its last line, and lines are read before the
        # state is told: nothing comes after this.
        run, last = self._watch.run, self._last
        self._end()
        if isinstance(last, Finished):
            self.done.emit(last.result)
        elif isinstance(last, Stopped) or state == "stopped" or self._wants_stop:
            self.stopped.emit()
        elif isinstance(last, Failed):
            self.failed.emit(last.message)
        else:
            self.failed.emit(launch.crash_sentence(run).split(" Continue with:")[0])

    def _fail(self, error: Exception) -> None:
        self._end()
        self.failed.emit(str(error))

    def _end(self) -> None:
        self.running = False
        if self._watch is not None:
            self._watch.stop()


def start_run(
    run: Run,
    *,
    owner: QObject,
    done: Callable[[int], None] | None = None,
    failed: Callable[[Exception], None] | None = None,
) -> None:
    """Start or resume a training in a process that outlives this window.

    Args:
        run: A new, stopped, failed or crashed run.
        owner: See ``in_background``.
        done: Called with the pid once the worker has taken the run.
        failed: Called with the error.
    """
    in_background(launch.start, run, owner=owner, done=done, failed=failed)
