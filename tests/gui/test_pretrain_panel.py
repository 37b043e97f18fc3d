"""The Pretrain and Fine-tune panels, without a viewer and with an engine of paper."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("napari")

from learn_fakes import FakeHelper, fake_engine, unnamed, until
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication
from superqt import QCollapsible

from homolog.gui.learn import start_box
from homolog.gui.learn.tabs import FinetunePanel, PretrainPanel
from homolog.gui.shared import choices, widgets
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.threads import wait_for_threads
from homolog.machine import fields_of
from homolog.runs.run import Run
from homolog.tasks.segment.task import SegmentConfig

PLAN = {"seconds_per_step": 0.5, "steps": 400, "total_s": 200.0, "device": "cpu"}


@pytest.fixture
def hub(qapp: Any, home: Path, monkeypatch: pytest.MonkeyPatch, phantom_store: Any):
    fake_engine(monkeypatch)
    monkeypatch.setattr(widgets, "Helper", FakeHelper)
    (home / "stores").mkdir()
    (home / "stores" / "phantoms").symlink_to(phantom_store.path)
    made = Hub(None)
    yield made
    wait_for_threads()


def shown(panel: Any, hub: Hub) -> Any:
    panel.show()
    panel.shown()
    until(lambda: hub.schema is not None and panel.device.known and panel.stores)
    until(lambda: not panel.box.trouble)
    return panel


@pytest.fixture
def pretrain(hub: Hub, qtbot: Any) -> PretrainPanel:
    panel = PretrainPanel(hub)
    qtbot.addWidget(panel)
    return shown(panel, hub)


@pytest.fixture
def finetune(hub: Hub, qtbot: Any) -> FinetunePanel:
    panel = FinetunePanel(hub)
    qtbot.addWidget(panel)
    return shown(panel, hub)


def encoder_run(folder: Path) -> Path:
    (folder / "model").mkdir(parents=True)
    (folder / "run.json").write_text('{"kind": "pretrain", "config": {}}')
    card = {
        "kind": "encoder", "method": "mae", "backbone": {"name": "big"},
        "weights": "encoder.safetensors", "sha256": {},
    }  # fmt: skip
    (folder / "model" / "model.json").write_text(json.dumps(card))
    return folder


def test_a_pretraining_is_ready_at_once_with_good_defaults(
    pretrain: PretrainPanel, hub: Hub
) -> None:
    config = pretrain.wish().config()
    assert config["method"] == "s2dc"
    assert config["stores"] == [str(hub.stores / "phantoms")]
    assert config["settings"] == {"method": {}, "backbone": {}, "training": {}}
    assert pretrain.box.name.text() == "s2dc-phantoms-01"
    assert pretrain.box.start.isEnabled()
    assert "No GPU found" in pretrain.device.hint.text()
    assert pretrain.length.choice.currentText() == "Standard: 400 steps"


def test_an_estimate_is_told_and_goes_stale(pretrain: PretrainPanel) -> None:
    pretrain.box.estimate.click()
    (helper,) = FakeHelper.made
    assert helper.kind == "plan"
    assert helper.config == {"kind": "pretrain", "config": pretrain.wish().config()}
    assert not pretrain.box.start.isEnabled()
    helper.done.emit(PLAN)
    assert pretrain.box.words.text().startswith("About 3 min for 400 steps (500 ms")
    assert "pretraining takes about 3 min" in pretrain.device.hint.text()
    assert pretrain.box.start.isEnabled()
    pretrain.length.choose("steps", 20)
    assert not pretrain.box.words.isVisible()


def test_an_estimate_can_fail_and_be_cancelled(pretrain: PretrainPanel) -> None:
    pretrain.box.estimate.click()
    FakeHelper.made[-1].failed.emit("not one crop fits into memory")
    assert pretrain.box.words.text() == "⚠ Not one crop fits into memory"
    pretrain.box.estimate.click()
    pretrain.box.cancel.click()
    assert pretrain.box.words.text() == "The estimate was cancelled."
    assert pretrain.box.estimate.isEnabled()


def test_start_makes_a_run_and_shows_it(
    pretrain: PretrainPanel, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Run] = []

    def start_run(run: Run, *, owner: Any, done: Any, failed: Any) -> None:
        started.append(run)
        done(1)

    monkeypatch.setattr(start_box, "start_run", start_run)
    went: list[tuple[str, Any]] = []
    hub.go.connect(lambda title, what: went.append((title, what)))
    pretrain.length.choose("steps", 20)
    wish = pretrain.wish().config()
    pretrain.box.start.click()
    until(lambda: went)
    run = Run.open(hub.runs / "s2dc-phantoms-01")
    assert run.spec["kind"] == "pretrain"
    assert run.spec["config"] == wish
    assert went == [("Runs", {"run": str(run.folder)})]
    assert pretrain.box.name.text() == "s2dc-phantoms-02"


def test_a_worker_that_does_not_start_is_told(
    pretrain: PretrainPanel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start_run(run: Run, *, owner: Any, done: Any, failed: Any) -> None:
        failed(OSError("no process"))

    monkeypatch.setattr(start_box, "start_run", start_run)
    pretrain.box.start.click()
    until(lambda: not pretrain.box._starting)
    assert pretrain.box.words.text() == "⚠ It could not be started: no process"


def test_a_bad_setting_keeps_from_starting(pretrain: PretrainPanel) -> None:
    pretrain.settings.own.rows["size"].editor.setText("big")
    assert not pretrain.box.start.isEnabled()
    assert "whole number" in pretrain.box.start.toolTip()
    pretrain.settings.own.rows["size"].back.click()
    pretrain.box.name.setText("../x")
    pretrain.box.refresh()
    assert "Name the run" in pretrain.box.words.text()


def test_without_a_store_there_is_a_sentence_and_a_way(
    hub: Hub, home: Path, qtbot: Any
) -> None:
    (home / "stores" / "phantoms").unlink()
    panel = PretrainPanel(hub)
    qtbot.addWidget(panel)
    panel.show()
    panel.shown()
    until(lambda: panel.no_store.isVisible())
    until(lambda: "Choose at least one store" in panel.box.words.text())
    went = []
    hub.go.connect(lambda title, what: went.append(title))
    panel.no_store.findChildren(type(panel.box.start))[0].click()
    assert went == ["Data"]


def test_without_an_engine_the_panel_opens_and_says_what_to_install(
    hub: Hub, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_engine(monkeypatch, missing=("torch",))
    for cls in (PretrainPanel, FinetunePanel):
        panel = cls(hub)
        qtbot.addWidget(panel)
        panel.shown()
        assert "pip install" in panel.box.words.text()
        assert not panel.box.start.isEnabled()
        until(lambda panel=panel: panel.stores)


def test_choices_come_back_in_the_next_session(
    pretrain: PretrainPanel, hub: Hub, home: Path, qtbot: Any
) -> None:
    pretrain.entry.setCurrentIndex(pretrain.entry.findData("mae"))
    pretrain.settings.recipe.setCurrentIndex(pretrain.settings.recipe.findData("gpu"))
    pretrain.settings.own.rows["keep"].show_value("student")
    pretrain.settings.layers.rows["blocks"].show_value(7)
    pretrain.length.choose("minutes", 42)
    pretrain.sharing.setCurrentIndex(3)
    before = pretrain.wish()
    hub.closing.emit()
    assert choices.read(home, "Pretrain")["entry"] == "mae"
    again = PretrainPanel(hub)
    qtbot.addWidget(again)
    shown(again, hub)
    assert again.wish() == before
    assert before.sharing == ("modality", 0.0)
    again.reset()
    assert again.wish().sharing is None
    assert again.wish().config()["settings"]["method"] == {}
    assert again.length.length.preset == "standard"


def test_the_command_is_copied(pretrain: PretrainPanel, hub: Hub) -> None:
    pretrain.box.copy.click()
    text = QApplication.clipboard().text()
    assert text.startswith("homolog pretrain s2dc ")
    assert str(hub.runs / "s2dc-phantoms-01") in text


def test_finetuning_offers_encoders_and_brings_their_network(
    finetune: FinetunePanel, hub: Hub
) -> None:
    assert finetune.no_encoder.isVisible()
    assert finetune.wish().config()["encoder"] == "scratch"
    assert finetune.fold.text().startswith("13 classes, ")
    run = encoder_run(hub.runs / "pre")
    hub.changed.emit("runs")
    until(lambda: finetune.encoders)
    finetune.visit({"encoder": str(run)})
    until(lambda: finetune.encoder.currentData() == str(run))
    assert not finetune.no_encoder.isVisible()
    assert not finetune.settings.network.isEnabled()
    assert "more to choose the weights by" in finetune.counted.text()
    assert not finetune.counted.text().startswith("About")
    finetune.used.percent.setValue(25)
    assert finetune.counted.text().startswith("About")
    row = finetune.settings.own.rows["head_first"]
    assert row.value == 0.1  # what holds by itself where weights came pretrained
    assert finetune.wish().config()["task_config"] == {}
    row.editor.setText("0.5")
    config = finetune.wish().config()
    assert config["encoder"] == str(run)
    assert config["fraction"] == 0.25
    assert config["task_config"] == {"head_first": 0.5}
    assert config["recipe"] == "cpu"
    assert config["backbone"] == {}


def test_a_tick_carries_labels_first(finetune: FinetunePanel, home: Path) -> None:
    finetune.settings.own.set_fields(fields_of(SegmentConfig))  # as the engine tells
    rows = finetune.settings.own.rows
    assert list(rows)[:2] == ["carry", "carry_to"]  # one above the other, and first
    carry, most = rows["carry"], rows["carry_to"]
    assert carry.label.text().replace("\n", " ") == "Carry labels first"
    assert most.label.text().replace("\n", " ") == "Carry to (scans)"
    assert "few labelled patients" in carry.editor.toolTip()
    fold = carry.editor
    while fold is not None:  # unfolded as by a person, then really pressed
        if isinstance(fold, QCollapsible):
            fold.expand(animate=False)
        fold = fold.parentWidget()
    until(carry.editor.isVisible)
    assert "task_config" not in finetune.wish().config() or (
        finetune.wish().config()["task_config"] == {}
    )
    QTest.mouseClick(
        carry.editor, Qt.MouseButton.LeftButton,
        pos=QPoint(8, carry.editor.height() // 2),
    )  # fmt: skip
    most.editor.setText("5")
    told = {"carry": True, "carry_to": 5}
    assert finetune.wish().config()["task_config"] == told
    words = finetune.wish().command(home)
    assert "carry=true" in words.replace("True", "true")
    carry.back.click()
    most.back.click()
    assert finetune.wish().config()["task_config"] == {}


def test_so_many_patients_are_learnt_from_instead_of_a_share(
    finetune: FinetunePanel, home: Path
) -> None:
    used = finetune.used
    used.percent.setValue(25)
    used.unit.setCurrentText("patients")
    used.count.setValue(2)
    assert not used.percent.isVisible()
    assert finetune.counted.text().startswith("Scans of 2 patients")
    config = finetune.wish().config()
    assert (config["patients"], config["fraction"]) == (2, 1.0)
    assert "--patients 2" in finetune.wish().command(home)
    assert finetune.box.start.isEnabled()
    kept = finetune.choices()
    used.count.setValue(999)
    assert "not of 999: take fewer" in finetune.box.words.text()
    assert not finetune.box.start.isEnabled()
    finetune.reset()
    assert (used.share, used.patients) == (1.0, 0)
    finetune.restore(kept)
    assert (used.share, used.patients) == (1.0, 2)
    assert unnamed(finetune) == []


def test_a_store_from_elsewhere_is_added_and_remembered(
    finetune: FinetunePanel, home: Path, phantom_store: Any, tmp_path: Path
) -> None:
    other = tmp_path / "elsewhere"
    other.symlink_to(phantom_store.path)
    finetune.visit({"store": str(other)})
    until(lambda: len(finetune.stores) == 2)
    (chosen,) = finetune.wish().stores
    assert chosen.path == other
    finetune.keep()
    assert choices.read(home, "Fine-tune")["others"] == [str(other)]


@pytest.fixture
def two_stores(home: Path, three_patients: Any, hub: Hub) -> tuple[str, str]:
    """A second store in the folder; its name comes first."""
    (home / "stores" / "another").symlink_to(three_patients.path)
    return str(home / "stores" / "another"), str(home / "stores" / "phantoms")


def test_one_model_is_finetuned_on_the_stores_that_are_ticked(
    two_stores: tuple[str, str], finetune: FinetunePanel, hub: Hub, home: Path,
    qtbot: Any,
) -> None:  # fmt: skip
    another, phantoms = two_stores
    assert finetune.wish().config()["store"] == another  # the first labelled one
    assert finetune.wish().config()["more_stores"] == []
    alone = finetune.fold.text()
    assert not finetune.fit.isVisible()
    finetune.list.tick(another, False)
    assert "Choose a store" in finetune.box.words.text()
    assert not finetune.fold.isVisible()
    finetune.list.tick(phantoms)
    finetune.list.tick(another)
    config = finetune.wish().config()
    assert (config["store"], config["more_stores"]) == (phantoms, [another])
    assert finetune.box.name.text() == "segment-phantoms-and-more-01"
    assert finetune.fold.text() != alone
    assert "(phantoms), 3 scans (another)" in finetune.classes.text()
    assert finetune.fit.text().startswith("Learnt from several stores")
    assert finetune.box.start.isEnabled()
    finetune.box.copy.click()
    text = QApplication.clipboard().text()
    assert text.startswith(f"homolog finetune segment {phantoms} {another} --encoder")
    hub.closing.emit()
    again = FinetunePanel(hub)
    qtbot.addWidget(again)
    shown(again, hub)
    assert again.wish().config() == config  # in the order they were ticked
    went: list[tuple[str, Any]] = []
    hub.go.connect(lambda title, what: went.append((title, what)))
    again._to_pretrain()
    assert went == [("Pretrain", {"stores": [phantoms, another]})]
    # the Label tab hands on one store: it alone is learnt from
    again.visit({"store": another})
    until(lambda: len(again.wish().stores) == 1)
    assert again.wish().config()["store"] == another


def test_a_store_without_labels_is_marked_and_said_before_the_start(
    two_stores: tuple[str, str], finetune: FinetunePanel
) -> None:
    another, phantoms = two_stores
    stores = [
        dataclasses.replace(s, labelled=0, teachable=0, classes=())
        if str(s.path) == another else s
        for s in finetune.stores
    ]  # fmt: skip
    finetune._got_stores(stores)
    texts = [finetune.list.item(i).text() for i in range(2)]
    assert texts[0].startswith("phantoms: ")  # those that teach come first
    assert texts[1].startswith("⚠ another: ")
    assert "No scan of another has labels" in finetune.list.item(1).toolTip()
    finetune.list.tick(phantoms)
    assert "No scan of another has labels" in finetune.box.words.text()
    assert not finetune.box.start.isEnabled()
    finetune.list.tick(another, False)
    assert finetune.box.start.isEnabled()


def test_several_stores_are_handed_on_to_pretraining(
    two_stores: tuple[str, str], pretrain: PretrainPanel
) -> None:
    another, phantoms = two_stores
    pretrain.visit({"stores": [phantoms, another]})
    until(lambda: len(pretrain.wish().stores) == 2)
    assert pretrain.wish().config()["stores"] == [phantoms, another]
    pretrain.list.tick(phantoms, False)
    assert pretrain.wish().config()["stores"] == [another]


@pytest.mark.parametrize("name", ["pretrain", "finetune"])
def test_everything_has_a_name_and_fits_a_narrow_dock(
    name: str, request: pytest.FixtureRequest
) -> None:
    panel = request.getfixturevalue(name)
    for fold in panel.findChildren(QCollapsible):
        fold.expand(animate=False)
    QApplication.processEvents()
    assert unnamed(panel) == []
    assert panel.minimumSizeHint().width() <= 320
    font = panel.font()
    font.setPointSizeF(font.pointSizeF() * 1.5)
    panel.setFont(font)
    QApplication.processEvents()
    assert panel.minimumSizeHint().width() <= 420
    tabs = [w for w in panel.findChildren(type(panel.box.start)) if w.isEnabled()]
    assert all(w.focusPolicy() != Qt.FocusPolicy.NoFocus for w in tabs)


def test_the_panels_load_no_torch() -> None:
    names = ("learn.tabs", "segment.panel",
             "learn.control")  # fmt: skip
    script = "".join(f"import homolog.gui.{name}\n" for name in names)
    script += "import sys; print(*{'torch', 'monai', 'pyqtgraph'} & set(sys.modules))"
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == []
