"""A comparison in the tab Runs: followed while it runs, begun from a store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("napari")

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QApplication
from steady import moved, places

from homolog.comparing.results import COLUMNS
from homolog.errors import UnusableInput
from homolog.events import Failed, Note, Progress, Started
from homolog.gui.runs import compare_page
from homolog.gui.runs.comparisons import (
    SUMMARY,
    CompareWish,
    arm_names,
    read_comparison,
    teaching,
)
from homolog.gui.runs.panel import RunsPanel
from homolog.gui.shared.choices import ModelChoice, StoreChoice
from homolog.gui.shared.hub import Hub
from homolog.runs.run import Run

ARMS = ("scratch", "s2dc")


def entry(arm: str, patients: int | str, mean: float) -> dict[str, Any]:
    own = arm != "scratch"
    told = {
        "arm": arm, "patients": patients, "cases": 2.0, "tests": 4, "seeds": 3,
        "mean": mean, "low": mean - 0.1, "high": mean + 0.1, "against": "scratch",
        "classes": {"liver": mean}, "steps": 30,
    }  # fmt: skip
    if own:
        told |= {
            "difference": 0.05, "difference_low": 0.01, "difference_high": 0.09,
            "both_low": -0.02, "both_high": 0.12, "wins": 3, "losses": 1,
            "p": 0.1, "p_holm": 0.2,
        }  # fmt: skip
    return dict.fromkeys(COLUMNS) | told


def summary(**more: Any) -> dict[str, Any]:
    table = [entry(a, n, 0.3 + 0.1 * n) for n in (1, 2) for a in ARMS]
    return {
        "arms": [{"name": a, "against": "scratch"} for a in ARMS], "table": table,
        "metric": "dice", "done": 4, "cells": 8, "failed": [], "seeds": [0, 1, 2],
        "test_patients": 4, "task": "segment", **more,
    }  # fmt: skip


def compare_run(folder: Path) -> Run:
    """A run as it lies there while others of its runs are worked on."""
    run = Run.create(folder, "compare", {"store": "x", "methods": "scratch,s2dc"})
    run.begin_session()
    run.journal.append(Started("checking the plan"))
    run.journal.append(Progress("cells", 5, 8, "s2dc: fine-tuning 3/30", 60.0))
    (folder / SUMMARY).write_text(json.dumps(summary()))
    return run


@pytest.fixture
def panel(qtbot, home: Path) -> RunsPanel:
    hub = Hub(None)
    hub.say = lambda text, level="info": None  # type: ignore[method-assign]
    hub.schema = {"methods": {"s2dc": {"title": "S2DC"}, "mae": {"title": "MAE"}}}
    panel = RunsPanel(hub)
    hub.setParent(panel)
    qtbot.addWidget(panel)
    panel.resize(380, 900)
    panel.show()
    return panel


def test_a_comparison_is_read_with_what_it_is_doing(tmp_path: Path) -> None:
    run = compare_run(tmp_path / "table")
    lock = run.lock()
    assert lock.acquire()
    found = read_comparison(run.folder)
    assert (found.state, found.done, found.total) == ("running", 5, 8)
    assert found.headline == "table: running, 5 of 8 cells, 60 s left"
    assert found.rows[0] == ("scratch", "1", "0.400", "", "")
    assert found.rows[1] == ("s2dc", "1", "0.400", "+0.050\n+0.010 to +0.090", "3 of 4")
    assert "over patients and seeds -0.020 to +0.120" in found.tips[1]
    assert found.curves.startswith("<svg")
    run.journal.append(Note("the encoder has seen test scans.", "warning"))
    run.journal.append(Failed("the store is gone."))
    lock.release()
    found = read_comparison(run.folder)
    assert found.state == "failed"
    assert found.notes == ("the encoder has seen test scans.", "the store is gone.")


def test_one_of_the_terminal_needs_no_run(tmp_path: Path) -> None:
    with pytest.raises(UnusableInput, match="holds no comparison"):
        read_comparison(tmp_path)
    trouble = {"cell": "s2dc, 1 patient", "sentence": "no memory."}
    (tmp_path / SUMMARY).write_text(json.dumps(summary(failed=[trouble])))
    found = read_comparison(tmp_path)
    assert (found.state, found.is_run, found.done) == ("finished", False, 4)
    assert found.notes == ("No result: s2dc, 1 patient: no memory.",)
    (tmp_path / SUMMARY).write_text(json.dumps(summary(table=[{"arm": 3}])))
    with pytest.raises(UnusableInput, match="is damaged"):
        read_comparison(tmp_path)


def test_a_run_of_this_kind_shows_its_table(
    qtbot, panel: RunsPanel, home: Path
) -> None:
    run = compare_run(home / "runs" / "table")
    panel.read()
    qtbot.waitUntil(lambda: len(panel.rows) == 1, timeout=20_000)
    assert "pause" not in panel.rows[0].actions
    panel.act("follow")
    page = panel.compared
    qtbot.waitUntil(lambda: page.shown is not None, timeout=20_000)
    assert page.isVisible()
    assert not panel.screen.isVisible()
    assert page.table.rowCount() == 4
    assert page.table.horizontalHeaderItem(2).text() == "Dice"
    assert page.drawing.isVisible()
    assert page.buttons.buttons["resume"].isVisible()  # its process is gone
    (run.folder / SUMMARY).write_text(json.dumps(summary(table=[])))
    page.read()
    qtbot.waitUntil(lambda: page.table.rowCount() == 0, timeout=20_000)
    panel.show_list()
    assert not page.isVisible()


def test_a_comparison_is_begun_from_a_store(
    qtbot, panel: RunsPanel, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = StoreChoice(home / "stores" / "organs", cases=6, labelled=6)
    monkeypatch.setattr(compare_page, "list_stores", lambda *_: [store])
    monkeypatch.setattr(compare_page, "list_encoders", lambda *_: [])
    begun: list[Run] = []

    def start(run: Run, *, owner: Any, done: Any, failed: Any) -> None:
        begun.append(run)
        done(1)

    monkeypatch.setattr(compare_page, "start_run", start)
    panel.visit({"compare": ""})
    form = panel.form
    qtbot.waitUntil(lambda: form.arms.count() == 4, timeout=20_000)
    qtbot.waitUntil(lambda: form.store.count() == 1, timeout=20_000)
    assert not form.start.isEnabled()
    assert "at least two ways" in form.words.text()
    form.arms.item(2).setCheckState(Qt.CheckState.Checked)
    assert form.start.isEnabled()
    form.patients.setText("1,many")
    form.refresh()
    assert "'many'" in form.words.text()
    form.patients.setText("1, 2")
    form.refresh()
    form.copy.click()
    words = QApplication.clipboard().text()
    assert words.startswith("homolog compare ")
    assert "--methods scratch,s2dc --patients 1,2" in words
    form.start.click()
    qtbot.waitUntil(lambda: bool(begun), timeout=20_000)
    assert begun[0].spec["kind"] == "compare"
    assert begun[0].spec["config"]["patients"] == "1,2"
    assert begun[0].folder == home / "runs" / "compare-organs-01"
    qtbot.waitUntil(panel.compared.isVisible, timeout=20_000)


def test_what_is_learnt_chooses_among_stores(
    qtbot, panel: RunsPanel, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    organs = StoreChoice(home / "stores" / "organs", cases=6, labelled=6)
    brains = StoreChoice(home / "stores" / "brains", cases=4, channels=("T1", "T2"))
    monkeypatch.setattr(compare_page, "list_stores", lambda *_: [organs, brains])
    monkeypatch.setattr(compare_page, "list_encoders", lambda *_: [])
    panel.visit({"compare": ""})
    form = panel.form
    qtbot.waitUntil(lambda: form.store.count() == 2, timeout=20_000)
    qtbot.waitUntil(lambda: form.arms.count() == 4, timeout=20_000)
    form.arms.item(2).setCheckState(Qt.CheckState.Checked)
    assert form.store.currentText().startswith("organs")
    before = places(form)
    form.task.setCurrentIndex(form.task.findData("translate"))
    assert form.store.currentText().startswith("brains")
    assert form.start.isEnabled()
    assert form.wish().config()["task"] == "translate"
    assert "--task translate" in form.wish().command(home / "x")
    form.store.setCurrentIndex(form.store.findData(str(organs.path)))
    assert "has several channels" in form.words.text()
    assert moved(before, form) == []
    assert teaching(organs, "detect") == 6  # boxes can be drawn around labels
    assert teaching(organs, "classify") == 0
    carried = CompareWish(brains, ("scratch", "carried"), task="translate")
    assert "label maps" in carried.problem()
    assert "task" not in CompareWish(organs, ("scratch", "mae")).config()


def test_a_score_of_a_whole_set_says_how_it_was_tested(tmp_path: Path) -> None:
    told = summary(metric="ap50", of_sets=True, task="detect")
    (tmp_path / SUMMARY).write_text(json.dumps(told))
    tips = read_comparison(tmp_path).tips
    assert "AP50 0.400, over test patients" in tips[1]
    assert "p 0.2 (patients drawn anew, corrected by Holm)" in tips[1]


def test_names_of_encoders_fit_a_table(tmp_path: Path) -> None:
    made = [
        ModelChoice(tmp_path / str(i), name, "encoder", "resunet")
        for i, name in enumerate(("my run (2)", "my run [2]", "é"))
    ]
    names = [text.partition("=")[0] for text in arm_names(made)]
    assert names == ["my-run-2", "my-run-2-2", "own"]
    store = StoreChoice(tmp_path, cases=1, labelled=1)
    wish = CompareWish(store, ("scratch",), tuple(made))
    assert wish.problem() == ""
    comma = ModelChoice(tmp_path / "a,b", "x", "encoder", "resunet")
    assert "comma" in CompareWish(store, ("scratch",), (comma,)).problem()
