"""What does it know: models ticked, a store chosen, a worker asked, told and shown."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from named import nameless
from toy_runs import make_model, slow_run

pytest.importorskip("napari")

from qtpy.QtCore import Qt
from qtpy.QtGui import QDesktopServices

from homolog.events import Note, Progress
from homolog.gui.models import probing
from homolog.gui.models.panel import ModelsPanel
from homolog.gui.runs import report_page
from homolog.gui.shared.choices import StoreChoice, labelled_words
from homolog.gui.shared.hub import Hub

pytestmark = pytest.mark.usefixtures("workers")


@pytest.fixture
def panel(
    qtbot: Any, home: Path, monkeypatch: pytest.MonkeyPatch, phantom_store: Any
) -> ModelsPanel:
    hub = Hub(None)
    monkeypatch.setattr(hub, "engine_missing", list)
    (home / "stores").mkdir(parents=True, exist_ok=True)
    (home / "stores" / "phantoms").symlink_to(phantom_store.path)
    for name in ("first", "second"):
        make_model(slow_run(home / "runs" / name).folder / "model")
    (home / "models" / "broken").mkdir(parents=True)
    (home / "models" / "broken" / "model.json").write_text("{")
    panel = ModelsPanel(hub)
    hub.setParent(panel)
    qtbot.addWidget(panel)
    panel.resize(340, 900)
    panel.show()
    panel.shown()
    qtbot.waitUntil(lambda: len(panel.models) == 3, timeout=10_000)
    qtbot.waitUntil(lambda: panel.probe.store.count() == 2, timeout=10_000)
    panel.probe_fold.expand(animate=False)
    return panel


def tick(panel: ModelsPanel, name: str, *, on: bool = True) -> None:
    place = [m.name for m in panel.shown_models].index(name)
    item = panel.list.item(place)
    item.setCheckState(Qt.CheckState.Checked if on else Qt.CheckState.Unchecked)


def test_ticked_models_are_compared_in_a_worker(
    qtbot: Any, panel: ModelsPanel, home: Path
) -> None:
    box = panel.probe
    assert "phantoms (8 labelled scans)" in box.store.currentText()
    panel.visit({"model": str(home / "runs" / "first")})
    qtbot.waitUntil(
        lambda: (m := panel.chosen()) is not None and m.name == "first", timeout=10_000
    )
    assert "About first" in box.about.text()
    tick(panel, "first")
    tick(panel, "second")
    assert "Compares 2 models" in box.about.text()
    panel.search.setText("second")  # ticks outlive a search
    panel.search.clear()
    assert [m.name for m in panel.asked()] == [
        m.name for m in panel.models if m.name != "broken"
    ]
    box.patients.setValue(2)
    box.start.click()
    assert not box.start.isEnabled()
    assert box.cancel.isVisible()
    config = box.helper._config
    assert (config["patients"], config["decoder"]) == (2, 0)
    assert not box.decoders.isEnabled()  # neither model has one
    assert len(config["encoder"]) == 2
    assert Path(config["store"]).name == "phantoms"
    qtbot.waitUntil(lambda: box.answer is not None, timeout=30_000)
    assert box.table.rowCount() == 3
    assert box.table.item(0, 1).text() == "0.60 (0.50 to 0.70)"
    assert box.table.item(2, 0).text() == "grey values"
    for words in ("Best of 2", "second: learnt.", "⚠ only 2 patients"):
        assert words in box.verdict.text()
    assert box.start.isEnabled()
    assert box.answer.page.is_file()
    assert nameless(panel) == []
    assert panel.minimumSizeHint().width() <= 340
    tick(panel, "first", on=False)
    tick(panel, "second", on=False)
    assert len(panel.asked()) == 1


def test_the_whole_report_of_ticked_models_is_opened(
    qtbot: Any, panel: ModelsPanel, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(
        QDesktopServices,
        "openUrl",
        lambda url: opened.append(url.toLocalFile()) or True,
    )
    box = panel.probe
    tick(panel, "first")
    tick(panel, "second")
    assert box.report.isEnabled()
    box.report.click()
    assert not box.report.isEnabled()
    assert not box.start.isEnabled()
    qtbot.waitUntil(lambda: bool(opened), timeout=30_000)
    told = json.loads(Path(opened[0]).read_text())
    assert Path(told["store"]).name == "phantoms"
    asked = [m.path for m in panel.asked()]
    assert [told["encoder"], *told["against"]] == [str(path) for path in asked]
    assert opened[0] in box.words.text()
    assert box.report.isEnabled()
    assert box.answer is None


def test_a_probe_is_cancelled(
    qtbot: Any, panel: ModelsPanel, monkeypatch: pytest.MonkeyPatch
) -> None:
    box, usual = panel.probe, probing.config_of
    # long enough to be met at work
    monkeypatch.setattr(
        probing, "config_of", lambda *given: {**usual(*given), "voxels": 50_000}
    )
    tick(panel, "first")
    box.begin()
    qtbot.waitUntil(lambda: "pre: " in box.words.text(), timeout=30_000)
    box.cancel.click()
    qtbot.waitUntil(lambda: "Stopped" in box.words.text(), timeout=30_000)
    assert box.start.isEnabled()
    assert box.answer is None


def test_what_cannot_be_probed_is_not_offered(qtbot: Any, panel: ModelsPanel) -> None:
    broken = next(m for m in panel.models if m.name == "broken")
    box = panel.probe
    box.every.click()
    assert {m.name for m in panel.asked()} == {"first", "second"}
    first = next(m for m in panel.models if m.name == "first")
    with_one = dataclasses.replace(first, card={**first.card, "decoder": {"width": 8}})
    box._asked = lambda: [first, with_one]
    box.enable()
    assert box.decoders.isEnabled()
    given = Path("s"), [with_one], 0, Path("f"), Path("o")
    assert probing.config_of(*given, 2)["decoder"] == 2
    assert not probing.can_be_probed(broken)
    assert probing.asked_about(panel.models, {broken.path}, broken) == []
    assert "Choose a model" in probing.about([])
    stores = [
        StoreChoice(Path("a"), cases=3, labelled=0),
        StoreChoice(Path("b"), cases=3, labelled=2),
        StoreChoice(Path("c"), cases=3, classed=3),
        StoreChoice(Path("d"), labelled=9, problem="gone"),
    ]
    found = [words for words in map(labelled_words, stores) if words]
    assert found == [
        "b (2 labelled scans)", "c (3 scans with a class)",
    ]  # fmt: skip


def test_windows_are_not_told_one_by_one() -> None:
    assert report_page.doing(Progress("embedding", 3, 9, "case")) is None
    assert report_page.doing(Progress("pre", 1, 4, "case")) == ("pre: 2 of 4", 0.25)
    assert report_page.warning(Note("x", "warning")) == "x"
    assert report_page.warning(Note("x")) == ""
