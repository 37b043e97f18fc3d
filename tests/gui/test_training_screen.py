"""The training screen with live processes: words at once, trouble, no freeze."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from toy_runs import slow_run, wait_for, wait_for_step

pytest.importorskip("napari")

from qtpy.QtCore import QTimer
from qtpy.QtGui import QImage

from homolog.events import Preview, Step
from homolog.gui.runs import training_screen as module
from homolog.gui.runs.training_screen import TrainingScreen
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.runs import View
from homolog.runs import launch
from homolog.runs.run import Run

pytestmark = pytest.mark.usefixtures("workers")


@pytest.fixture
def screen(qtbot, home: Path) -> TrainingScreen:
    hub = Hub(None)
    said: list[str] = []
    hub.say = lambda text, level="info": said.append(text)  # type: ignore[method-assign]
    screen = TrainingScreen(hub)
    screen.said = said  # type: ignore[attr-defined]
    hub.setParent(screen)
    qtbot.addWidget(screen)
    screen.resize(320, 900)
    screen.show()
    return screen


def offered(screen: TrainingScreen) -> set[str]:
    return {n for n, b in screen.buttons.buttons.items() if b.isVisible()}


def test_it_follows_pauses_and_stops_a_live_run(
    qtbot, screen: TrainingScreen, home: Path
) -> None:
    run = slow_run(home / "runs" / "organs")
    launch.start(run)
    wait_for_step(run, 2)
    screen.follow(run.folder)
    qtbot.waitUntil(lambda: screen.shown == "running", timeout=10_000)
    assert screen.title.text().startswith("Slow organs, step ")
    assert "ends about" in screen.title.text()
    assert {"pause", "stop", "stop_now"} <= offered(screen)
    qtbot.waitUntil(lambda: screen.loss.drawn > 0, timeout=10_000)
    assert screen.health.verdict.text().startswith("○: Too early")
    screen.buttons.buttons["pause"].click()
    assert "pausing" in screen.state.text()  # at once, before the worker knows
    qtbot.waitUntil(lambda: screen.shown == "paused", timeout=10_000)
    assert "go_on" in offered(screen)
    screen.buttons.buttons["go_on"].click()
    assert "starting" in screen.state.text()
    qtbot.waitUntil(lambda: screen.shown == "running", timeout=10_000)
    screen.buttons.buttons["stop"].click()
    assert "stopping..." in screen.state.text()
    qtbot.waitUntil(lambda: screen.shown == "stopped", timeout=20_000)
    assert "stopped" in screen.title.text()
    assert "resume" in offered(screen)
    assert screen.said == []  # type: ignore[attr-defined]


def test_killed_at_a_random_step_it_says_so_and_resumes(
    qtbot, screen: TrainingScreen, home: Path
) -> None:
    run = slow_run(home / "runs" / "r", steps=80)
    screen.follow(run.folder)
    qtbot.waitUntil(lambda: screen.shown == "new", timeout=10_000)
    screen.buttons.buttons["resume"].click()
    qtbot.waitUntil(lambda: screen.shown == "running", timeout=30_000)
    reached = wait_for_step(run, random.Random().randint(3, 12))
    os.kill(run.pid(), signal.SIGKILL)
    qtbot.waitUntil(lambda: screen.shown == "crashed", timeout=10_000)
    assert screen.trouble.isVisible()
    assert "ended without a last word after step" in screen.trouble.what.text()
    assert "is saved; Resume goes on from there" in screen.trouble.advice.text()
    screen.buttons.buttons["log"].click()
    qtbot.waitUntil(screen.log.isVisible, timeout=10_000)
    screen.buttons.buttons["resume"].click()
    assert "starting" in screen.state.text()
    qtbot.waitUntil(lambda: screen.shown == "finished", timeout=30_000)
    assert not screen.trouble.isVisible()
    assert screen.view is not None
    assert screen.view.step == 80 > reached
    assert any("resuming after step" in text for _, text in screen.view.notes)


def test_a_refused_action_is_told_once_and_the_words_go_back(
    qtbot, screen: TrainingScreen, home: Path
) -> None:
    run = slow_run(home / "runs" / "r")
    screen.follow(run.folder)
    qtbot.waitUntil(lambda: screen.shown == "new", timeout=10_000)
    screen.act("pause")  # nobody works on it
    qtbot.waitUntil(lambda: bool(screen.said), timeout=10_000)  # type: ignore[attr-defined]
    assert "is not running" in screen.said[0]  # type: ignore[attr-defined]
    assert screen.shown == "new"


def test_the_newest_picture_and_an_earlier_run_are_shown(
    qtbot, screen: TrainingScreen, home: Path
) -> None:
    old, run = slow_run(home / "runs" / "old"), slow_run(home / "runs" / "new")
    for each in (old, run):
        for i in range(1, 6):
            each.journal.append(Step(i, 9, {"a": 1.0 / i}, {"tokens_std": 0.01}))
    (run.folder / "previews").mkdir()
    picture = run.folder / "previews" / "a.png"
    image = QImage(64, 32, QImage.Format.Format_RGB32)
    image.fill(0x804020)
    assert image.save(str(picture))
    run.journal.append(Preview(str(picture), "features of a slice"))
    screen.follow(run.folder, [run.folder, old.folder])
    qtbot.waitUntil(screen.picture.isVisible, timeout=10_000)
    assert screen.picture.caption.text() == "features of a slice (step 5)"
    assert screen.health.verdict.text().startswith("■ trouble")
    assert screen.compare.count() == 2
    screen.compare.setCurrentIndex(1)
    qtbot.waitUntil(lambda: screen._earlier is not None, timeout=10_000)
    assert screen.loss._earlier is not None
    assert screen.loss._earlier.role == "earlier"
    screen.compare.setCurrentIndex(0)
    assert screen.loss._earlier is None


def test_a_run_deleted_meanwhile_is_no_error(
    qtbot, screen: TrainingScreen, home: Path
) -> None:
    screen.follow(home / "runs" / "gone")
    qtbot.waitUntil(lambda: screen.shown == "deleted", timeout=10_000)
    assert offered(screen) == set()


def test_a_flood_of_events_leaves_the_window_free(
    qtbot, screen: TrainingScreen, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the GUI thread does per look does not grow with the number of events."""
    run = Run.create(home / "runs" / "flood", "flood", {"seconds": 4.0, "least": 5000})
    launch.start(run)
    wait_for(lambda: run.journal.size > 100_000, "a flood")
    on_gui: list[float] = []
    views: list[View] = []
    take = TrainingScreen._take

    def timed(self: TrainingScreen, story: object, view: View) -> None:
        begin = time.thread_time()
        take(self, story, view)  # type: ignore[arg-type]
        on_gui.append(time.thread_time() - begin)
        views.append(view)

    monkeypatch.setattr(module.TrainingScreen, "_take", timed)
    ticks: list[float] = []
    watchdog = QTimer(screen)
    watchdog.setInterval(10)
    watchdog.timeout.connect(lambda: ticks.append(time.monotonic()))
    watchdog.start()
    screen.follow(run.folder)
    qtbot.waitUntil(lambda: screen.shown == "finished", timeout=60_000)
    watchdog.stop()
    told = views[-1].step
    assert told > 1000
    # Looks are bounded by the clock, not by the events; each hands over few points.
    assert len(views) < told / 10
    assert all(len(curve.x) <= 2000 for view in views for curve in view.losses)
    gaps = np.diff(ticks) * 1000
    print(
        f"{told} events, {len(views)} looks, CPU per look p95 "
        f"{np.percentile(on_gui, 95) * 1000:.1f} ms, gaps p50 {np.median(gaps):.0f} "
        f"p95 {np.percentile(gaps, 95):.0f} max {gaps.max():.0f} ms"
    )
    assert np.median(gaps) < 100
    assert np.median(on_gui) < 0.1
