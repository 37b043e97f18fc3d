"""What goes on beside the work: heartbeats, and looks at how others fare."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator


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
