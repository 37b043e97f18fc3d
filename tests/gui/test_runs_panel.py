"""The tab Runs and the tab Models as a user meets them, without a viewer."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_runs import make_model, slow_run, wait_for_step

pytest.importorskip("napari")

from qtpy.QtWidgets import QMenu

from homolog.gui.runs import panel as module
from homolog.gui.runs.panel import RunsPanel
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.widgets import Answer
from homolog.runs import launch

pytestmark = pytest.mark.usefixtures("workers")


@pytest.fixture
def panel(qtbot, home: Path) -> RunsPanel:
    hub = Hub(None)
    said: list[str] = []
    hub.say = lambda text, level="info": said.append(text)  # type: ignore[method-assign]
    panel = RunsPanel(hub)
    panel.said = said  # type: ignore[attr-defined]
    hub.setParent(panel)
    qtbot.addWidget(panel)
    panel.resize(320, 700)
    return panel


def visible(panel: RunsPanel) -> set[str]:
    return {n for n, b in panel.buttons.buttons.items() if b.isVisible()}


def test_an_empty_folder_offers_one_thing(qtbot, panel: RunsPanel) -> None:
    panel.show()
    qtbot.waitUntil(lambda: panel._empty.isVisible(), timeout=10_000)
    assert not panel.table.isVisible()
    with qtbot.waitSignal(panel.hub.go) as signal:
        panel._offer_pretrain.click()
    assert signal.args[0] == "Pretrain"


def test_a_live_run_of_an_earlier_window_is_found_and_stopped(
    qtbot, panel: RunsPanel, home: Path
) -> None:
    run = slow_run(home / "runs" / "study" / "organs")
    slow_run(home / "runs" / "other")
    launch.start(run)
    wait_for_step(run, 3)
    panel.show()
    qtbot.waitUntil(lambda: len(panel.rows) == 2, timeout=10_000)
    assert panel.rows[0].name == "study/organs"  # live ones first
    assert panel.table.item(0, 1).text().startswith("▶ running\n")
    panel.choose(run.folder)
    assert {"follow", "pause", "stop"} <= visible(panel)
    assert "delete" not in visible(panel)
    panel.buttons.buttons["pause"].click()
    qtbot.waitUntil(lambda: panel.rows[0].state == "paused", timeout=10_000)
    panel.buttons.buttons["go_on"].click()
    qtbot.waitUntil(lambda: panel.rows[0].state == "running", timeout=10_000)
    panel.buttons.buttons["stop"].click()
    qtbot.waitUntil(
        lambda: {r.state for r in panel.rows} == {"stopped", "new"}, timeout=20_000
    )
    assert panel.chosen() is not None
    assert panel.chosen().name == "study/organs"  # type: ignore[union-attr]
    panel.buttons.buttons["resume"].click()
    qtbot.waitUntil(lambda: panel.screen.shown == "running", timeout=30_000)
    panel.screen.leave_button.click()
    assert panel.table.isVisible()
    assert run.is_alive()
    assert panel.said == []  # type: ignore[attr-defined]


def test_a_row_opens_the_screen_and_visit_does_too(
    qtbot, panel: RunsPanel, home: Path
) -> None:
    run = slow_run(home / "runs" / "r")
    panel.show()
    qtbot.waitUntil(lambda: len(panel.rows) == 1, timeout=10_000)
    panel.table.itemActivated.emit(panel.table.item(0, 0))
    qtbot.waitUntil(lambda: panel.screen.shown == "new", timeout=10_000)
    panel.show_list()
    panel.visit({"run": str(run.folder)})
    assert panel.screen.isVisible()
    assert not panel.table.isVisible()


def test_deleting_asks_and_goes_to_the_trash(
    qtbot, panel: RunsPanel, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = slow_run(home / "runs" / "r")
    binned: list[Path] = []
    monkeypatch.setattr(module, "to_trash", lambda x: binned.append(x) or "away")
    asked: list[str] = []
    panel.ask = lambda parent, question: asked.append(question.text) or Answer("keep")  # type: ignore[assignment, func-returns-value]
    panel.show()
    qtbot.waitUntil(lambda: len(panel.rows) == 1, timeout=10_000)
    panel.act("delete")
    qtbot.waitUntil(lambda: bool(asked), timeout=10_000)
    assert binned == []
    panel.ask = lambda parent, question: Answer("delete")
    panel.act("delete")
    qtbot.waitUntil(lambda: binned == [run.folder], timeout=10_000)


def test_without_a_trash_it_goes_to_ours(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from homolog.gui.shared import models

    monkeypatch.setattr(models.QFile, "moveToTrash", lambda *_: False, raising=False)
    for name in ("r", "r_v2"):
        run = slow_run(home / "runs" / "r")
        told = models.to_trash(run.folder)
        assert not run.folder.exists()
        assert (home / "trash" / name / "run.json").is_file()
        assert str(home / "trash" / name) in told


def test_a_model_of_a_run_can_be_used(
    qtbot, panel: RunsPanel, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = slow_run(home / "runs" / "r")
    make_model(run.folder / "model")
    opened: list[QMenu] = []
    monkeypatch.setattr(QMenu, "popup", lambda menu, place: opened.append(menu))
    panel.show()
    qtbot.waitUntil(lambda: len(panel.rows) == 1, timeout=10_000)
    panel.act("use")
    with qtbot.waitSignal(panel.hub.go) as signal:
        opened[0].actions()[0].trigger()
    assert signal.args == ["Explore", {"encoder": str(run.folder)}]


def test_every_widget_is_named_and_fits(qtbot, panel: RunsPanel, home: Path) -> None:
    from named import nameless

    slow_run(home / "runs" / "r")
    panel.show()
    qtbot.waitUntil(lambda: len(panel.rows) == 1, timeout=10_000)
    panel.act("follow")
    assert nameless(panel) == []
    for factor in (1.0, 1.5):
        font = panel.font()
        font.setPointSizeF(font.pointSizeF() * factor)
        panel.setFont(font)
        qtbot.wait(50)
        assert panel.minimumSizeHint().width() <= 300  # 320 with a scroll bar
