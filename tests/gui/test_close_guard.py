"""Closing while training asks; each answer does what it says, with real processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from learn_fakes import until
from toy_runs import is_gone, slow_run, wait_for, wait_for_step

pytest.importorskip("napari")

from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import QDialog, QDockWidget, QMainWindow, QWidget

from homolog.gui import dock
from homolog.gui.dock import CloseGuard
from homolog.gui.shared import preferences
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.threads import Helper
from homolog.gui.shared.widgets import Answer, Question
from homolog.runs import launch
from homolog.runs.run import Run

pytestmark = pytest.mark.usefixtures("workers")


class Window(QMainWindow):
    """A main window with a panel in a dock, as napari's."""

    def __init__(self, answer: str, always: bool = False) -> None:
        super().__init__()
        self.asked: list[Question] = []
        self.closings: list[bool] = []
        self.panel = QWidget()
        self.hub = Hub(None, self.panel)
        self.hub.say = lambda text, level="info": None  # type: ignore[method-assign]
        dock = QDockWidget(self)
        dock.setWidget(self.panel)
        self.addDockWidget(Qt.DockWidgetArea.RightDockWidgetArea, dock)
        self.guard = CloseGuard(self.hub, self.panel)
        self.guard.ask = self.ask
        self.guard.watch()
        self.hub.closing.connect(lambda: self.closings.append(True))
        self.answer = Answer(answer, always)

    def ask(self, parent: QWidget | None, question: Question) -> Answer:
        self.asked.append(question)
        return self.answer


@pytest.fixture(autouse=True)
def only_these_guards() -> Iterator[None]:
    dock._guards.clear()
    yield
    dock._guards.clear()


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    kept = {"close_answer": "ask"}
    monkeypatch.setattr(
        preferences, "get", lambda category, name, default: kept.get(name, default)
    )
    monkeypatch.setattr(
        preferences, "put", lambda category, name, value: kept.update({name: value})
    )
    return kept


def window_with_run(qtbot, home: Path, answer: str, **more: bool) -> tuple[Window, Run]:
    run = slow_run(home / "runs" / "organs", steps=5000)
    launch.start(run)
    wait_for_step(run, 3)
    window = Window(answer, **more)
    qtbot.addWidget(window)
    window.show()
    return window, run


def test_cancel_changes_nothing(qtbot, home: Path, settings: dict[str, str]) -> None:
    window, run = window_with_run(qtbot, home, "cancel")
    assert not window.close()
    assert window.isVisible()
    assert run.is_alive()
    assert "organs" in window.asked[0].text
    assert window.closings == []


def test_keep_leaves_one_live_process(
    qtbot, home: Path, settings: dict[str, str]
) -> None:
    window, run = window_with_run(qtbot, home, "keep", always=True)
    assert window.close()
    assert run.state() == "running"
    os.kill(run.pid(), 0)
    assert window.closings == [True]
    assert settings["close_answer"] == "keep"  # "always do this"


def test_stop_and_save_leaves_none(qtbot, home: Path, settings: dict[str, str]) -> None:
    window, run = window_with_run(qtbot, home, "stop")
    assert not window.close()  # it saves first, the window does not freeze
    assert not window.close()  # again: nothing new is asked
    assert len(window.asked) == 1
    qtbot.waitUntil(lambda: not window.isVisible(), timeout=30_000)
    assert run.state() == "stopped"
    pid = run.pid()
    wait_for(lambda: is_gone(pid), "the end of the process")
    assert list((run.folder / "checkpoints").iterdir())
    assert window.closings == [True]


def test_a_remembered_answer_is_not_asked_again(
    qtbot, home: Path, settings: dict[str, str]
) -> None:
    settings["close_answer"] = "keep"
    window, run = window_with_run(qtbot, home, "cancel")
    assert window.close()
    assert window.asked == []
    assert run.is_alive()


def test_without_a_training_nothing_is_asked(
    qtbot, home: Path, settings: dict[str, str]
) -> None:
    window = Window("cancel")
    qtbot.addWidget(window)
    window.show()
    assert window.close()
    assert (window.asked, window.closings) == ([], [True])


def test_only_the_last_window_asks(qtbot, home: Path, settings: dict[str, str]) -> None:
    first, run = window_with_run(qtbot, home, "cancel")
    second = Window("cancel")
    qtbot.addWidget(second)
    second.show()
    assert second.close()
    assert second.asked == []
    second.guard.leave()
    assert not first.close()
    assert run.is_alive()


def test_a_closed_dock_asks_nothing(
    qtbot, home: Path, settings: dict[str, str]
) -> None:
    window, run = window_with_run(qtbot, home, "cancel")
    window.guard.leave()
    assert window.close()
    assert window.asked == []
    assert run.is_alive()


def test_helpers_end_with_the_window(
    qtbot, home: Path, settings: dict[str, str]
) -> None:
    window = Window("cancel")
    qtbot.addWidget(window)
    window.show()
    helper = Helper("slow", {"steps": 5000}, window.panel)
    helper.start()
    qtbot.waitUntil(lambda: helper._watch is not None, timeout=30_000)
    assert helper._watch is not None
    run = helper._watch.run
    with qtbot.waitSignal(helper.stopped, timeout=30_000):
        assert window.close()
    wait_for(lambda: not run.is_alive(), "the helper's end")
    assert window.asked == []


def test_one_question_and_not_naparis_as_well(
    home: Path, make_napari_viewer_proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl+Q asks napari's question first: ours stands for both."""
    from napari.settings import get_settings

    from homolog.gui.window import dock_panel

    viewer = make_napari_viewer_proxy(show=True)
    panel = dock_panel(viewer)
    viewer.add_image(np.zeros((4, 4)))
    until(panel.isVisible)
    get_settings().application.confirm_close_window = True
    window, asked = panel.window(), []
    panel.guard.ask = lambda *_: asked.append("ours") or Answer("cancel")
    seen: list[QDialog] = []
    watch = QTimer()
    watch.timeout.connect(lambda: seen.extend(_dialogs(window)))
    watch.timeout.connect(lambda: [d.reject() for d in _dialogs(window)])
    watch.start(300)
    run = slow_run(home / "runs" / "r", steps=10_000)
    launch.start(run)
    wait_for_step(run, 1)
    assert panel.guard._window is window
    assert panel.guard._would_ask()
    window.close(confirm_need=True)
    assert asked == ["ours"]
    assert seen == []
    assert window.isVisible()
    launch.stop(run, 10.0)
    window.close(confirm_need=True)  # nothing runs: napari's own question stands
    assert asked == ["ours"]
    assert seen
    watch.stop()
    get_settings().application.confirm_close_window = False


def _dialogs(window: QWidget) -> list[QDialog]:
    shown = [d for d in window.findChildren(QDialog) if d.isVisible()]
    off = Qt.WidgetAttribute.WA_DontShowOnScreen
    return [d for d in shown if not d.testAttribute(off)]
