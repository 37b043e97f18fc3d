"""The full report of a run's model, asked for in the tab Runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("napari")

from learn_fakes import FakeHelper, fake_engine, until
from named import nameless
from steady import moved, places
from toy_runs import make_model, slow_run

from homolog.events import Note, Progress
from homolog.gui.runs import report_page
from homolog.gui.runs.panel import RunsPanel
from homolog.gui.shared import model_row, widgets
from homolog.gui.shared.choices import StoreChoice
from homolog.gui.shared.hub import Hub
from homolog.runs.run import Run


def test_a_run_says_which_stores_it_learnt_from(tmp_path: Path) -> None:
    one = Run.create(tmp_path / "a", "finetune", {"store": str(tmp_path / "s")})
    two = Run.create(tmp_path / "b", "pretrain", {"stores": [str(tmp_path / "t")]})
    assert report_page.stores_of(one.folder) == [str(tmp_path / "s")]
    assert report_page.stores_of(two.folder) == [str(tmp_path / "t")]
    assert report_page.stores_of(tmp_path / "gone") == []


def test_a_report_is_made_and_opened(
    qtbot: Any, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_engine(monkeypatch)
    monkeypatch.setattr(widgets, "Helper", FakeHelper)
    stores = [
        StoreChoice(tmp_path / "few", labelled=1),
        StoreChoice(tmp_path / "other", labelled=3),
        StoreChoice(tmp_path / "organs", labelled=5),
    ]
    monkeypatch.setattr(model_row, "list_stores", lambda *_: stores)
    wanted = [str(tmp_path / "organs")]
    monkeypatch.setattr(report_page, "stores_of", lambda _: wanted)
    opened: list[str] = []
    monkeypatch.setattr(
        report_page.QDesktopServices, "openUrl",
        lambda url: opened.append(url.toLocalFile()) or True,
    )  # fmt: skip
    run = slow_run(home / "runs" / "r")
    panel = RunsPanel(Hub(None))
    qtbot.addWidget(panel)
    panel.resize(320, 700)
    panel.show()
    until(lambda: len(panel.rows) == 1)
    assert "report" not in panel.rows[0].actions  # there is no model yet
    make_model(run.folder / "model")
    panel.read()
    until(lambda: "report" in panel.rows[0].actions)
    panel.buttons.buttons["report"].click()
    page = panel.reports
    until(lambda: page.store.count() == 3)
    assert page.isVisible()
    assert not panel.table.isVisible()
    assert page.store.currentText() == "organs (5 labelled scans)"
    assert nameless(page) == []
    before = places(page)
    page.start.click()
    until(lambda: len(FakeHelper.made) == 1)
    job = FakeHelper.made[0]
    assert job.kind == "report"
    assert job.config["encoder"] == str(run.folder)
    assert job.config["store"] == wanted[0]
    job.news.emit(Progress("embedding", 1, 9))
    job.news.emit(Progress("robustness", 1, 4))
    job.news.emit(Note("few patients.", "warning"))
    assert page.words.text() == "robustness: 2 of 4"
    assert moved(before, page) == []
    html = tmp_path / "report.html"
    job.done.emit({"html": str(html), "stopped": False})
    assert opened == [str(html)]
    assert "few patients." in page.words.text()
    page.open.click()
    assert len(opened) == 2
    panel.show_list()
    assert not page.isVisible()
