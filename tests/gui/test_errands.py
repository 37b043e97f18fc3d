"""Errands on the pool's threads: results come home, widgets die on the GUI thread."""

from __future__ import annotations

import gc
import threading
import time

import pytest

pytest.importorskip("qtpy")

from qtpy.QtCore import QObject
from qtpy.QtWidgets import QWidget

from homolog.gui.shared.threads import in_background, soon, wait_for_threads


@pytest.fixture(autouse=True)
def _no_errand_of_an_earlier_test() -> None:
    """One that waits for a worker to begin does so for a minute at most."""
    assert wait_for_threads(120_000)


def test_the_collector_waits_while_errands_run(qtbot) -> None:
    owner, seen = QObject(), []

    def work() -> bool:
        time.sleep(0.05)
        return gc.isenabled()

    for _ in range(6):
        in_background(work, owner=owner, done=seen.append)
    qtbot.waitUntil(lambda: len(seen) == 6, timeout=10_000)
    assert seen == [False] * 6
    qtbot.waitUntil(gc.isenabled, timeout=10_000)


def test_forgotten_widgets_do_not_die_on_a_thread_of_the_pool(qtbot) -> None:
    owner, died, done = QObject(), [], []

    class Forgotten(QWidget):
        def __del__(self) -> None:
            died.append(threading.current_thread().name)

    def forget_some() -> None:
        for _ in range(20):
            widget = Forgotten()
            widget.me = widget  # a cycle, as closures make them

    def allocate() -> None:
        kept = [[[] for _ in range(10)] for _ in range(20_000)]
        assert kept

    for _ in range(5):
        forget_some()
        in_background(allocate, owner=owner, done=done.append)
    qtbot.waitUntil(lambda: len(done) == 5, timeout=20_000)
    gc.collect()
    assert set(died) == {"MainThread"}


def test_an_error_comes_home_too(qtbot) -> None:
    owner, failed = QObject(), []

    def fail() -> None:
        raise ValueError("no")

    in_background(fail, owner=owner, failed=failed.append)
    qtbot.waitUntil(lambda: len(failed) == 1, timeout=10_000)
    assert gc.isenabled()


def test_what_is_due_later_is_not_done_for_an_owner_that_is_gone(qtbot) -> None:
    gone, there, done = QObject(), QObject(), []
    soon(gone, lambda: done.append("gone"), 10)
    soon(there, lambda: done.append("there"), 20)
    gone.deleteLater()
    qtbot.waitUntil(lambda: "there" in done, timeout=10_000)
    assert done == ["there"]
    qtbot.waitUntil(lambda: not there.children(), timeout=10_000)  # its timer is gone
