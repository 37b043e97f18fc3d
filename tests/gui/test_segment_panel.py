"""The Segment panel in a real window, with a worker of paper."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")

from learn_fakes import FakeHelper, fake_engine, unnamed, until
from qtpy.QtCore import QMimeData, QPointF, Qt, QUrl
from qtpy.QtGui import QDropEvent
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication
from superqt import QCollapsible

from homolog.events import Note, Progress, Saved
from homolog.geometry.affine import Affine
from homolog.gui.segment import batch_box
from homolog.gui.segment import panel as segment_panel
from homolog.gui.segment.panel import SegmentPanel
from homolog.gui.shared import widgets
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.threads import wait_for_threads
from homolog.scans.boxes import BoxList, ScanBox, box_files
from homolog.scans.files import read_labels, read_scan
from homolog.scans.volume import LabelMap, Volume
from homolog.scans.write import write_labels, write_volume

AFFINE = Affine.of((2.0, 1.0, 1.0), (10.0, 20.0, 30.0), np.diag([-1.0, 1.0, -1.0]))
SHAPE = (8, 10, 12)


def write_model(folder: Path, classes: int = 2, **changes: Any) -> Path:
    (folder / "model").mkdir(parents=True)
    (folder / "run.json").write_text('{"kind": "finetune", "config": {}}')
    card = {
        "kind": "segment", "backbone": {"name": "resunet"}, "window": [8, 8, 8],
        "label_names": {str(v): f"organ {v}" for v in range(1, classes + 1)},
        "task_spec": {"modalities": ["CT"]},
        "preprocessing": {"spacing_mm": [2.0, 1.0, 1.0]},
        "weights": "model.safetensors", "sha256": {}, **changes,
    }  # fmt: skip
    (folder / "model" / "model.json").write_text(json.dumps(card))
    return folder


def write_scan(path: Path) -> Path:
    data = np.full((1, *SHAPE), -1000, np.int16)
    data[0, 2:6, 2:8, 2:8] = 50
    data[0, 3:5, 4:6, 4:6] = 900
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(Volume(data, AFFINE, "ct", "CT"), path)
    return path


def write_result(path: Path) -> Path:
    data = np.zeros(SHAPE, np.uint8)
    data[2:4, 3:5, 3:6] = 1
    data[5, 7, 8] = 2
    write_labels(LabelMap(data, AFFINE), path)
    return path


@pytest.fixture
def panel(
    make_napari_viewer_proxy: Any, home: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:  # fmt: skip
    fake_engine(monkeypatch)
    for module in (batch_box, segment_panel, widgets):
        monkeypatch.setattr(module, "Helper", FakeHelper)
    write_model(home / "runs" / "seg")
    viewer = make_napari_viewer_proxy()
    viewer.open(str(write_scan(tmp_path / "CT_03.nii.gz")), plugin="napari-homolog")
    hub = Hub(viewer)
    made = SegmentPanel(hub)
    viewer.window.add_dock_widget(made, name="Segment")
    made.shown()
    until(lambda: made.models and made.device.known)
    yield made
    wait_for_threads()


def helper(kind: str, count: int = 1) -> FakeHelper:
    until(lambda: len(FakeHelper.made) == count)
    assert FakeHelper.made[-1].kind == kind
    return FakeHelper.made[-1]


def test_a_layer_is_segmented_compared_and_saved(panel: Any, tmp_path: Path) -> None:
    viewer = panel.hub.viewer
    assert panel.scan.scan.text() == "CT_03: CT, 1 x 1 x 2 mm (x, y, z)"
    panel.scan.start.click()
    job = helper("predict")
    assert job.config["scans"] == [str(tmp_path / "CT_03.nii.gz")]
    assert job.config["model"] == str(panel.hub.runs / "seg")
    job.news.emit(Progress("scans", 0, 1))
    job.news.emit(Progress("windows", 3, 12, remaining_s=120.0))
    assert (panel.scan.bar.value(), panel.scan.words.text()) == (3, "2 min left")
    assert not panel.scan.start.isEnabled()
    result = write_result(Path(job.config["out"]) / "CT_03.nii.gz")
    job.done.emit({"predicted": [{"scan": "x", "labels": str(result)}], "failed": []})
    until(lambda: panel.classes.rows)
    image, labels = viewer.layers
    assert viewer.layers.selection.active.name == "CT_03"
    assert np.allclose(labels.scale, image.scale)
    assert np.allclose(labels.translate, image.translate)
    assert [str(u) for u in labels.units] == ["millimeter"] * 3
    rows = [(r.name, r.voxels) for r in panel.classes.rows]
    assert rows == [("organ 1", 12), ("organ 2", 1)]
    assert panel.classes.table.item(0, 1).text() == "0.024"

    place = np.argwhere(labels.data == 2)[0]
    panel.classes.table.selectRow(1)
    panel.classes.go.click()
    assert np.allclose(viewer.dims.point, labels.data_to_world(place))

    colour = labels.get_color(1)
    panel.classes.table.item(0, 0).setCheckState(Qt.CheckState.Unchecked)
    assert labels.get_color(1)[3] == 0
    assert labels.get_color(2)[3] == 1
    panel.classes.table.item(0, 0).setCheckState(Qt.CheckState.Checked)
    assert np.allclose(labels.get_color(1), colour)

    reference = write_result(tmp_path / "truth_seg.nii.gz")
    panel.compare.choose_file(reference)
    panel.compare.compare.click()
    job = helper("score", 2)
    pair = job.config["pairs"][0]
    assert pair["reference"] == str(reference)
    ours = read_labels(pair["prediction"])
    assert np.array_equal(ours.data, read_labels(reference).data)
    assert ours.affine.close_to(AFFINE, SHAPE)
    metrics = {"dice": 0.5, "nsd": 0.25, "hd95_mm": 3.0}
    rows = [{"label": 1, "name": "organ 1", **metrics}]
    job.done.emit({"rows": rows, "mean": metrics})
    assert panel.classes.table.item(0, 2).text() == "0.500"
    assert panel.classes.table.item(1, 2).text() == "-"
    assert "Dice 0.500" in panel.compare.words.text()
    panel.classes.copy.click()
    assert QApplication.clipboard().text().startswith("label,name,voxels,volume_ml,")

    panel.classes.save_to(tmp_path / "saved.nii.gz")
    until(lambda: panel.classes.words.text().startswith("✓"))
    saved = read_labels(tmp_path / "saved.nii.gz")
    assert saved.affine.close_to(read_scan(tmp_path / "CT_03.nii.gz").affine, SHAPE)
    assert np.array_equal(saved.data, ours.data)

    viewer.add_labels(np.zeros((8, 10, 11), np.uint8), name="other")
    panel.classes.adopt(labels)
    panel.compare.reference.setCurrentIndex(panel.compare.reference.findText("other"))
    panel.compare.compare.click()
    assert "Was it made for another scan?" in panel.compare.words.text()
    assert unnamed(panel) == []


def test_a_scan_unlike_those_learnt_from_is_asked_about_first(
    panel: Any, home: Path
) -> None:
    write_model(
        home / "runs" / "fine", classes=12, preprocessing={"spacing_mm": [0.5] * 3}
    )
    panel.visit({"model": str(home / "runs" / "fine")})
    until(lambda: panel.chosen and panel.chosen.name == "fine")
    assert "organ 6 and 6 more" in panel.facts.text()
    panel.scan.start.click()
    assert "CT_03 has 2 mm slices" in panel.scan.warning.text()
    assert not FakeHelper.made
    panel.scan.leave.click()
    assert not panel.scan.warning.isVisible()
    panel.scan.start.click()
    panel.scan.go_on.click()
    helper("predict").failed.emit("the worker is gone.")
    assert panel.scan.words.text() == "⚠ the worker is gone."
    panel.scan.start.click()  # once allowed, not asked again
    helper("predict", 2)
    panel.scan.cancel.click()
    assert panel.scan.words.text() == "Stopped."
    assert panel.scan.start.isEnabled()


def test_a_dropped_batch_goes_on_after_failures_and_overwrites_nothing(
    panel: Any, tmp_path: Path
) -> None:
    out = tmp_path / "results"
    write_result_in(out / "a.nii.gz")
    panel.batch.set_out(out)
    files = [write_scan(tmp_path / "in" / f"{n}.nii.gz") for n in "abc"]
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(f)) for f in (*files, tmp_path / "gone")])
    panel.batch.dropEvent(
        QDropEvent(
            QPointF(5, 5), Qt.DropAction.CopyAction, data, Qt.MouseButton.LeftButton,
            Qt.KeyboardModifier.NoModifier,
        )
    )  # fmt: skip
    until(lambda: len(panel.batch.batch.items) == 3)
    assert "There is no" in panel.batch.words.text()
    panel.all.click()
    job = helper("predict")
    assert job.config["scans"] == [str(f) for f in files]
    part = Path(job.config["out"])
    assert part.parent == out
    job.news.emit(Progress("scans", 0, 3))
    job.news.emit(Saved(str(write_result(part / "a.nii.gz")), "labels"))
    job.news.emit(Progress("scans", 1, 3))
    job.news.emit(Note(f"{files[1]}: it is truncated.", "warning"))
    job.news.emit(Progress("scans", 2, 3))
    job.news.emit(Progress("windows", 1, 2, remaining_s=9.0))
    lines = [panel.batch.list.item(i).text() for i in range(3)]
    assert lines[1:] == ["⚠ b.nii.gz: It is truncated.", "▶ c.nii.gz: 50 %, 9 s left"]
    job.news.emit(Saved(str(write_result(part / "c.nii.gz")), "labels"))
    failed = [{"scan": str(files[1]), "reason": "it is truncated."}]
    job.done.emit({"predicted": [], "failed": failed, "stopped": False})
    until(lambda: not panel.batch.busy and not part.exists())
    assert panel.batch.words.text() == "2 of 3 segmented, 1 could not be."
    names = sorted(p.name for p in out.iterdir() if p.suffix == ".gz")
    assert names == ["a.nii.gz", "a_v2.nii.gz", "c.nii.gz"]
    panel.batch.list.item(0).setSelected(True)
    panel.batch.load_button.click()
    until(lambda: len(panel.hub.viewer.layers) == 3)
    until(lambda: panel.classes.rows)
    assert [r.name for r in panel.classes.rows] == ["organ 1", "organ 2"]
    assert [x.visible for x in panel.hub.viewer.layers] == [False, True, True]


def test_a_batch_waits_and_goes_on_and_tells_what_it_does(
    panel: Any, tmp_path: Path
) -> None:
    panel.batch.set_out(tmp_path / "results")
    panel.copy_python.click()  # of the selected layer, while the list is empty
    assert str(tmp_path / "CT_03.nii.gz") in QApplication.clipboard().text()
    panel.batch.add([write_scan(tmp_path / "in" / f"{n}.nii.gz") for n in "ab"])
    until(lambda: len(panel.batch.batch.items) == 2)
    panel.copy.click()
    words = QApplication.clipboard().text().split()
    assert words[:2] == ["homolog", "predict"]
    assert words[2].endswith("a.nii.gz")
    panel.all.click()
    job = helper("predict")
    job.news.emit(Progress("scans", 0, 2))
    panel.batch.pause.click()
    assert job.waits
    assert panel.batch.pause.text() == "Go on"
    job.news.emit(Progress("windows", 1, 2))  # what was under way still tells
    assert panel.batch.words.text() == "Paused: the model stays in memory."
    panel.batch.pause.click()
    assert not job.waits
    part = Path(job.config["out"])
    job.news.emit(Saved(str(write_result(part / "a.nii.gz")), "labels"))
    first = panel.batch.batch.items[0].scan
    (part / "volumes.csv").write_text(f"scan,organ 1_ml\n{first},0.5\n")
    job.news.emit(Saved(str(part / "volumes.csv"), "table"))
    panel.batch.pause.click()
    panel.batch.cancel.click()
    until(lambda: not panel.batch.busy and not part.exists())
    assert "Saved as volumes.csv" in panel.batch.words.text()
    panel.batch.table_button.click()
    table = QApplication.clipboard().text().splitlines()
    assert table[:2] == ["scan,state,result,organ 1 (ml)", "a.nii.gz,done,a.nii.gz,0.5"]
    assert table[2].startswith("b.nii.gz,waiting,")


def test_a_scan_is_taken_out_of_a_running_batch(panel: Any, tmp_path: Path) -> None:
    out = tmp_path / "results"
    panel.batch.set_out(out)
    files = [write_scan(tmp_path / "in" / f"{n}.nii.gz") for n in "abcd"]
    panel.batch.add(files)
    box = panel.batch
    until(lambda: len(box.batch.items) == 4)
    panel.all.click()
    job = helper("predict")
    part = Path(job.config["out"])
    job.news.emit(Progress("scans", 0, 4))
    job.news.emit(Saved(str(write_result(part / "a.nii.gz")), "labels"))
    job.news.emit(Progress("scans", 1, 4))
    box.remove_button.click()  # nothing is chosen: no batch is lost by one press
    assert box.words.text().startswith("Select the scans to take out")
    assert len(box.batch.items) == 4
    for row in (1, 2):  # the one at work, and one that waits
        box.list.item(row).setSelected(True)
    QTest.mouseClick(box.remove_button, Qt.MouseButton.LeftButton)
    assert job.left_out == [str(files[1]), str(files[2])]
    assert box.busy
    assert "2 scans taken out" in box.words.text()
    assert not box.list.chosen
    job.news.emit(Progress("windows", 1, 2))  # of b, before the worker has seen it
    job.news.emit(Saved(str(write_result(part / "b.nii.gz")), "labels"))
    job.news.emit(Progress("scans", 3, 4))
    assert [box.list.item(i).text()[0] for i in range(box.list.count())] == ["✓", "▶"]
    job.news.emit(Saved(str(write_result(part / "d.nii.gz")), "labels"))
    job.done.emit({"predicted": [], "failed": [], "stopped": False})
    until(lambda: not box.busy and not part.exists())
    assert box.words.text() == "2 of 2 segmented."
    names = sorted(p.name for p in out.iterdir() if p.suffix == ".gz")
    assert names == ["a.nii.gz", "d.nii.gz"]
    assert len(FakeHelper.made) == 1  # what was taken out is not begun again


def write_result_in(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_result(path)


def test_without_a_model_there_is_a_sentence_and_a_way(panel: Any, home: Path) -> None:
    (home / "runs" / "seg" / "model" / "model.json").unlink()
    panel.hub.changed.emit("models")
    panel.read_models()
    until(lambda: not panel.models)
    went = []
    panel.hub.go.connect(lambda title, what: went.append(title))
    panel.no_model.findChildren(type(panel.all))[0].click()
    assert went == ["Fine-tune"]
    for fold in panel.findChildren(QCollapsible):
        fold.expand(animate=False)
    assert panel.minimumSizeHint().width() <= 320
    assert panel.device.device == "auto"


def write_boxes(path: Path, *boxes: ScanBox) -> list[Path]:
    """As ``homolog predict`` writes them of CT_03."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return box_files(BoxList("ct", SHAPE, boxes, AFFINE), path)


def test_a_detector_shows_boxes_on_the_scan(panel: Any, home: Path) -> None:
    spec = {"modalities": ["CT"], "classes": ["cyst"]}
    write_model(home / "runs" / "det", 0, kind="detect", task_spec=spec)
    panel.visit({"model": str(home / "runs" / "det")})
    until(lambda: panel.chosen and panel.chosen.name == "det")
    assert "Finds boxes around cyst." in panel.facts.text()
    assert panel.scan.start.text() == "Search selected layer"
    panel.scan.start.click()
    job = helper("predict")
    box = ScanBox("cyst", 0.9, (2.0, 2.0, 2.0), (4.0, 8.0, 8.0))
    files = write_boxes(Path(job.config["out"]) / "CT_03.nii.gz", box)
    entry = {"scan": "x", "boxes": [{}], "files": [str(f) for f in files]}
    job.done.emit({"predicted": [entry], "failed": []})
    until(lambda: len(panel.hub.viewer.layers) == 2)
    image, shapes = panel.hub.viewer.layers
    assert panel.scan.words.text() == "✓ CT_03 det was added: 1 box, listed below."
    assert np.allclose(shapes.scale, image.scale)
    inside = np.argwhere(image.data >= 50)  # the array is turned, the box with it
    assert {int(corners[0, 0]) for corners in shapes.data} <= set(inside[:, 0].tolist())
    panel.scan.start.click()
    job = helper("predict", 2)
    job.done.emit({"predicted": [{"scan": "x", "boxes": [], "files": []}]})
    assert panel.scan.words.text() == "✓ CT_03: no box was found."
    assert not panel.boxes.isHidden()
    assert panel.boxes.table.item(0, 0).text() == "cyst"


def test_a_batch_of_a_detector_keeps_both_files(
    panel: Any, home: Path, tmp_path: Path
) -> None:
    spec = {"modalities": ["CT"], "classes": ["cyst"]}
    write_model(home / "runs" / "det", 0, kind="detect", task_spec=spec)
    panel.visit({"model": str(home / "runs" / "det")})
    until(lambda: panel.chosen and panel.chosen.name == "det")
    out = tmp_path / "results"
    out.mkdir()
    (out / "a.mrk.json").write_text("{}")  # another's: nothing is overwritten
    panel.batch.set_out(out)
    panel.batch.add([write_scan(tmp_path / "in" / "a.nii.gz")])
    until(lambda: len(panel.batch.batch.items) == 1)
    panel.all.click()
    job = helper("predict")
    job.news.emit(Progress("scans", 0, 1))
    box = ScanBox("cyst", 0.9, (2.0, 2.0, 2.0), (4.0, 8.0, 8.0))
    for file in write_boxes(Path(job.config["out"]) / "a.nii.gz", box):
        job.news.emit(Saved(str(file), "boxes"))
    job.done.emit({"predicted": [], "failed": [], "stopped": False})
    until(lambda: not panel.batch.busy)
    assert panel.batch.words.text().startswith("1 of 1 searched.")
    assert sorted(p.name for p in out.iterdir() if p.suffix == ".json") == [
        "a.mrk.json", "a_v2.boxes.json", "a_v2.mrk.json",
    ]  # fmt: skip
    panel.batch.list.item(0).setSelected(True)
    panel.batch.load_button.click()
    until(lambda: len(panel.hub.viewer.layers) == 3)
    assert panel.hub.viewer.layers[-1].name == "ct boxes"
