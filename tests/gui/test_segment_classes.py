"""A classifier in the Segment panel: a table for a scan, a line for each of a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("napari")

from learn_fakes import FakeHelper, fake_engine, unnamed, until
from qtpy.QtWidgets import QApplication
from test_segment_panel import helper, write_model, write_scan

from homolog.events import Progress, Saved
from homolog.gui.segment import batch_box
from homolog.gui.segment import panel as segment_panel
from homolog.gui.segment.control import (
    best_slices,
    chance_rows,
    ranges_text,
    short_text,
    slices_sentence,
)
from homolog.gui.segment.panel import SegmentPanel
from homolog.gui.shared import widgets
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.threads import wait_for_threads

TOLD: dict[str, Any] = {
    "class": "bleed", "chances": {"bleed": 0.925, "no finding": 0.075},
    "types": {"subdural": 0.7, "epidural": 0.003},
    "slices": [
        {"slice": z, "z_mm": 2.0 * z, "presence": p, "attention": 0.125}
        for z, p in enumerate((0.01, 0.02, 0.2, 0.9, 0.95, 0.04, 0.6, 0.01))
    ],
}  # fmt: skip
SEVERAL: dict[str, Any] = {
    "class": "no finding", "chances": {"effusion": 0.45, "nodule": 0.2},
    "thresholds": {"effusion": 0.6, "nodule": 0.5},
}  # fmt: skip


def write_classifier(folder: Path, **changes: Any) -> Path:
    spec = {"modalities": ["CT"], "classes": ["bleed", "no finding"], **changes}
    return write_model(
        folder, kind="classify", label_names={}, task_spec=spec,
        validation={"auc": 0.91},
    )  # fmt: skip


@pytest.fixture
def panel(
    make_napari_viewer_proxy: Any, home: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:  # fmt: skip
    fake_engine(monkeypatch)
    FakeHelper.made.clear()
    for module in (batch_box, segment_panel, widgets):
        monkeypatch.setattr(module, "Helper", FakeHelper)
    write_model(home / "runs" / "seg")
    write_classifier(home / "runs" / "heads")
    viewer = make_napari_viewer_proxy()
    viewer.open(str(write_scan(tmp_path / "CT_03.nii.gz")), plugin="napari-homolog")
    made = SegmentPanel(Hub(viewer))
    viewer.window.add_dock_widget(made, name="Segment")
    made.shown()
    until(lambda: len(made.models) == 2 and made.device.known)
    choose(made, "heads")
    yield made
    wait_for_threads()


def choose(panel: Any, name: str) -> None:
    path = next(str(m.path) for m in panel.models if m.name == name)
    panel.model.setCurrentIndex(panel.model.findData(path))


def test_a_layer_is_classified_and_its_slices_found(panel: Any) -> None:
    viewer = panel.hub.viewer
    assert panel.model.currentText() == "heads (2 classes of whole scans, resunet)"
    assert "one of bleed or no finding" in panel.facts.text()
    assert "AUC on held-out scans 0.91" in panel.facts.text()
    assert panel.scan.start.text() == "Classify selected layer"
    assert panel.all.text() == "Classify all"
    panel.scan.start.click()
    job = helper("predict")
    job.done.emit({"predicted": [{"scan": "x", **TOLD}], "failed": []})
    box = panel.chances
    assert not box.isHidden()
    assert box.headline.text() == "CT_03: bleed 92 %"
    cells = [
        (box.table.item(r, 0).text(), box.table.item(r, 1).text()) for r in range(4)
    ]
    assert cells == [
        ("✓ bleed", "92 %"), ("no finding", "8 %"), ("✓ type: subdural", "70 %"),
        ("type: epidural", "< 1 %"),
    ]  # fmt: skip
    assert "finding: 3-4, 6." in box.where.text()
    assert [box.slices.item(r, 0).text() for r in range(4)] == ["4", "3", "6", "2"]
    box.slices.selectRow(1)
    box.go.click()
    assert viewer.dims.current_step[0] == 3
    box.copy.click()
    lines = QApplication.clipboard().text().splitlines()
    assert lines[1].split("\t") == ["CT_03", "class", "bleed", "0.9250", "yes"]
    assert len(viewer.layers) == 1  # no labels came
    assert unnamed(panel) == []

    choose(panel, "seg")  # what the other model told does not stand beside this one
    assert box.isHidden()
    assert panel.scan.start.text() == "Segment selected layer"
    panel.scan.start.click()
    helper("predict", 2).done.emit(
        {"predicted": [], "failed": [{"scan": "x", "reason": "too thin."}]}
    )
    assert panel.scan.words.text() == "⚠ Not segmented: Too thin."


def test_a_batch_is_told_in_a_line_each_and_kept_as_a_table(
    panel: Any, tmp_path: Path
) -> None:
    out = tmp_path / "results"
    out.mkdir()
    (out / "classes.csv").write_text("kept")
    panel.batch.set_out(out)
    files = [write_scan(tmp_path / "in" / f"{n}.nii.gz") for n in "ab"]
    panel.batch.add(files)
    until(lambda: len(panel.batch.batch.items) == 2)
    panel.all.click()
    job = helper("predict")
    job.news.emit(Progress("scans", 0, 2))
    job.news.emit(Progress("scans", 1, 2))
    lines = [panel.batch.list.item(row).text() for row in range(2)]
    assert lines == ["▶ a.nii.gz: done", "▶ b.nii.gz: reading..."]
    table = Path(job.config["out"]) / "classes.csv"
    table.write_text("scan,class\n")
    job.news.emit(Saved(str(table), "table"))
    answers = [
        {"scan": str(f), **t} for f, t in zip(files, (TOLD, SEVERAL), strict=True)
    ]
    job.done.emit({"predicted": answers, "failed": []})
    until(lambda: not panel.batch.busy)
    assert [panel.batch.list.item(row).text() for row in range(2)] == [
        "✓ a.nii.gz: bleed 92 %",
        "✓ b.nii.gz: no finding (at most effusion 45 %)",
    ]
    assert panel.batch.words.text() == "2 of 2 classified. Saved as classes_v2.csv."
    assert (out / "classes.csv").read_text() == "kept"
    assert sorted(p.name for p in out.iterdir()) == ["classes.csv", "classes_v2.csv"]
    panel.batch.list.setCurrentRow(0)
    panel.batch.load_button.click()
    until(lambda: not panel.chances.isHidden())
    assert panel.hub.viewer.layers.selection.active.name == "a"
    choose(panel, "seg")
    assert panel.batch.list.item(0).text() == "a.nii.gz"
    assert panel.all.isEnabled()


def test_what_was_told_in_words() -> None:
    rows = chance_rows(SEVERAL)
    assert [(r.name, r.told) for r in rows] == [("effusion", False), ("nodule", False)]
    both = {**SEVERAL, "thresholds": {"effusion": 0.4, "nodule": 0.1}}
    assert short_text(both) == "effusion 45 %, nodule 20 %"
    assert best_slices(SEVERAL) == []
    assert slices_sentence(SEVERAL) == ""
    looked = [{"slice": z, "z_mm": 0.0, "attention": a}
              for z, a in enumerate((0.1, 0.6, 0.3, 0.0))]  # fmt: skip
    assert best_slices({**TOLD, "slices": looked}) == [(1, 0.6), (2, 0.3)]
    nothing = [{**row, "presence": 0.01} for row in TOLD["slices"]]
    assert slices_sentence({**TOLD, "slices": nothing}).startswith("No slice looks")
    assert ranges_text([4, 3, 9, 5]) == "3-5, 9"
