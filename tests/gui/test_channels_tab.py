"""Open scans and files of a batch as the channels that a model takes together."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")

from learn_fakes import FakeHelper, fake_engine, until
from steady import moved, places

from homolog.errors import UnusableInput
from homolog.events import Progress, Saved
from homolog.geometry.affine import Affine
from homolog.gui.segment import batch_box
from homolog.gui.segment import panel as segment_panel
from homolog.gui.segment.channels import (
    OpenScan,
    Wanted,
    cases_of,
    channels_problem,
    guessed,
    odd_kinds,
    said_files,
    wanted_channels,
)
from homolog.gui.segment.panel import SegmentPanel
from homolog.gui.shared import widgets
from homolog.gui.shared.choices import ModelChoice
from homolog.gui.shared.hub import Hub
from homolog.gui.shared.layers import ScanRef
from homolog.gui.shared.threads import wait_for_threads
from homolog.scans.channels import named_together
from homolog.scans.formats import ScanHeader
from homolog.scans.volume import LabelMap, Volume
from homolog.scans.write import write_labels, write_volume
from homolog.use.predict import cases_of as cases_of_job
from homolog.use.predict import find_scans, read_case

GRID = Affine.of((3.0, 1.0, 1.0), (5.0, 6.0, 7.0))
FAR = Affine.of((3.0, 1.0, 1.0), (5.0, 6.0, 27.0))
SHAPE = (6, 9, 10)
SPEC = {
    "channels": 2, "channel_names": ["T1", "FLAIR"],
    "channel_modalities": ["MR", "MR"], "modalities": ["MR"],
}  # fmt: skip
T1, FLAIR = Wanted("T1", "MR", "T1"), Wanted("FLAIR", "MR", "FLAIR")


def scan(
    name: str, affine: Affine = GRID, kind: str = "MR", number: int | None = None,
    *, labels: bool = False,
) -> OpenScan:  # fmt: skip
    ref = ScanRef(name, None, kind, SHAPE, (3.0, 1.0, 1.0))
    place = ScanHeader(Path(name), SHAPE, 1, 1, affine, "", "", "")
    return OpenScan(name, ref, name, place, number, labels)


def test_names_of_channels_come_from_the_card() -> None:
    model = ModelChoice(Path("r"), "r", "segment", "x", card={"task_spec": SPEC})
    assert wanted_channels(model) == (T1, FLAIR)
    assert "Takes T1 and FLAIR of one person together." in model.facts
    bare = ModelChoice(
        Path("r"), "r", "segment", "x", card={"task_spec": {"channels": 2}}
    )
    assert [w.name for w in wanted_channels(bare)] == ["Channel 0", "Channel 1"]
    assert wanted_channels(None) == ()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["p_FLAIR", "p_T1", "p_T2"], ["p_T1", "p_FLAIR"]),
        (["p_0001", "p_0000"], ["p_0000", "p_0001"]),
        (["scan t1 pre", "FLAIR"], ["scan t1 pre", "FLAIR"]),
        (["p_T1post", "p_FLAIR"], ["p_T1post", "p_FLAIR"]),  # what is left over
        (["a", "b"], ["", ""]),  # nothing speaks for either
        (["p_T1", "a", "b"], ["p_T1", ""]),
    ],
)
def test_who_is_who_is_guessed_by_names(names: list[str], expected: list[str]) -> None:
    assert guessed((T1, FLAIR), [scan(name) for name in names]) == expected


def test_the_layer_in_hand_chooses_among_patients() -> None:
    here = [scan("one T1"), scan("one FLAIR")]
    there = [scan("two T1", FAR), scan("two FLAIR", FAR)]
    wanted = (T1, FLAIR)
    assert guessed(wanted, here + there, "two T1") == ["two T1", "two FLAIR"]
    assert guessed(wanted, there + here, "one FLAIR") == ["one T1", "one FLAIR"]
    same = [scan("two T1"), scan("two FLAIR")]  # two people on one grid
    assert guessed(wanted, here + same, "two FLAIR") == ["two T1", "two FLAIR"]


def test_images_of_one_file_modality_and_masks_are_guessed() -> None:
    both = [scan("both 1", number=1), scan("both 0", number=0)]
    assert guessed((T1, FLAIR), both) == ["both 0", "both 1"]
    wanted = (Wanted("PET", "PET", "PET"), Wanted("CT", "CT", "CT"))
    kinds = [scan("a", kind="CT"), scan("b", kind="PET")]
    assert guessed(wanted, kinds) == ["b", "a"]
    masked = (Wanted("CT", "CT", "CT"), Wanted("mask", "", "mask"))
    assert guessed(masked, [scan("drawn", labels=True), scan("x", kind="CT")]) == [
        "x", "drawn",
    ]  # fmt: skip


def test_what_is_no_case_is_said_as_the_engine_says_it() -> None:
    wanted = (T1, FLAIR)
    assert channels_problem(wanted, [scan("a"), None]) == (
        "Choose which open scan is FLAIR."
    )
    assert "are the same layer" in channels_problem(wanted, [scan("a"), scan("a")])
    assert channels_problem(wanted, [scan("a"), scan("b", FAR)]) == (
        "FLAIR lies up to 20 mm away from T1; the channels of a case must lie on one "
        "grid."
    )
    assert channels_problem(wanted, [scan("a"), scan("b")]) == ""
    (text,) = odd_kinds(wanted, [scan("a"), scan("b", kind="CT")])
    assert "b is CT, but the model learnt FLAIR from MR" in text


def test_files_of_a_batch_and_of_the_job_are_the_same_cases(tmp_path: Path) -> None:
    write = [tmp_path / n for n in ("b_T1.nii.gz", "a_0001.nii.gz", "b_FLAIR.nii.gz",
                                    "a_0000.nii.gz", "c_0000.nii.gz")]  # fmt: skip
    for number, path in enumerate(write):
        write_volume(Volume(values(number), GRID), path)
    whole = tmp_path / "w.nii.gz"
    write_volume(Volume(np.concatenate([values(1), values(2)]), GRID), whole)
    cases = cases_of([*write, whole], (T1, FLAIR))
    assert [(p.name, len(c)) for p, c in cases.items()] == [
        ("b.nii.gz", 2), ("a.nii.gz", 2), ("c.nii.gz", 1), ("w.nii.gz", 2),
    ]  # fmt: skip
    said = [said_files(c) for c in cases.values() if len(c) == 2][::-1]
    model: Any = SimpleNamespace(spec=SPEC)
    job = cases_of_job(model, find_scans(said))
    assert list(job) == [tmp_path / n for n in ("w.nii.gz", "a.nii.gz", "b.nii.gz")]
    read = read_case(model, tmp_path / "b.nii.gz", job[tmp_path / "b.nii.gz"])
    assert np.array_equal(read.data, np.concatenate([values(0), values(2)]))
    assert [c["name"] for c in read.meta["channels"]] == ["T1", "FLAIR"]


def values(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 900, (1, *SHAPE)).astype(np.int16)


def test_the_order_said_is_the_order_taken(tmp_path: Path) -> None:
    first, second = tmp_path / "x_T1.nii.gz", tmp_path / "y.nii.gz"
    for number, path in enumerate((first, second)):
        write_volume(Volume(values(number), GRID), path)
    model: Any = SimpleNamespace(spec=SPEC)
    (case,) = cases_of_job(model, [Path(f"{second}|{first}")]).values()
    assert [(c.name, c.path) for c in case] == [("T1", second), ("FLAIR", first)]
    with pytest.raises(UnusableInput, match=r"there is no .*gone"):
        find_scans([Path(f"{first}|{tmp_path / 'gone.nii'}")])
    one: Any = SimpleNamespace(spec={"channels": 1})
    ((name, parts),) = cases_of_job(one, [Path(f"{first}|{second}")]).items()
    with pytest.raises(UnusableInput, match="one channel, found x_T1"):
        read_case(one, name, parts)
    odd = tmp_path / "a|b.nii.gz"
    odd.write_bytes(b"")
    assert named_together(odd) == ()


def write_model(folder: Path, **card: Any) -> None:
    (folder / "model").mkdir(parents=True)
    (folder / "run.json").write_text('{"kind": "finetune", "config": {}}')
    told = {
        "kind": "segment", "backbone": {"name": "resunet"}, "label_names": {"1": "a"},
        "task_spec": {"modalities": ["MR"]}, "weights": "model.safetensors",
        "sha256": {}, "preprocessing": {"spacing_mm": [3.0, 1.0, 1.0]}, **card,
    }  # fmt: skip
    (folder / "model" / "model.json").write_text(json.dumps(told))


@pytest.fixture
def panel(
    make_napari_viewer_proxy: Any, home: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:  # fmt: skip
    fake_engine(monkeypatch)
    for module in (batch_box, segment_panel, widgets):
        monkeypatch.setattr(module, "Helper", FakeHelper)
    write_model(home / "runs" / "two", task_spec=SPEC)
    write_model(home / "runs" / "one")
    viewer = make_napari_viewer_proxy()
    for number, name in enumerate(("p_FLAIR", "p_T1")):
        path = tmp_path / f"{name}.nii.gz"
        write_volume(Volume(values(number), GRID), path)
        viewer.open(str(path), plugin="napari-homolog")
    made = SegmentPanel(Hub(viewer))
    viewer.window.add_dock_widget(made, name="Segment")
    made.shown()
    until(lambda: made.models and made.device.known)
    made.model.setCurrentIndex([m.name for m in made.models].index("two"))
    yield made
    wait_for_threads()


def helper(count: int) -> FakeHelper:
    until(lambda: len(FakeHelper.made) == count)
    return FakeHelper.made[-1]


def test_open_layers_are_segmented_together(panel: Any, tmp_path: Path) -> None:
    rows = panel.scan.channels.rows
    assert [row.currentText() for row in rows] == ["p_T1", "p_FLAIR"]
    assert [row.accessibleName() for row in rows] == ["T1", "FLAIR"]
    assert panel.scan.start.text() == "Segment these layers"
    before = places(panel)
    viewer = panel.hub.viewer
    far = tmp_path / "far.nii.gz"
    write_volume(Volume(values(3), FAR), far)
    viewer.open(str(far), plugin="napari-homolog")
    viewer.layers.selection.active = viewer.layers["p_T1"]
    rows[1].setCurrentText("far")
    rows[1].activated.emit(rows[1].currentIndex())
    assert "up to 20 mm away from T1" in panel.scan.channels.words.text()
    assert not panel.scan.start.isEnabled()
    assert moved(before, panel) == []
    rows[1].setCurrentText("p_FLAIR")
    rows[1].activated.emit(rows[1].currentIndex())
    panel.scan.start.click()
    if panel.scan.go_on.isVisible():
        panel.scan.go_on.click()
    job = helper(1)
    files = [tmp_path / "p_T1.nii.gz", tmp_path / "p_FLAIR.nii.gz"]
    assert job.config["scans"] == ["|".join(map(str, files))]
    result = Path(job.config["out"]) / "p.nii.gz"
    write_labels(LabelMap(np.ones(SHAPE, np.uint8), GRID), result)
    job.done.emit({"predicted": [{"scan": "x", "labels": str(result)}]})
    until(lambda: "p_T1 two" in viewer.layers)
    assert np.allclose(viewer.layers["p_T1 two"].translate, viewer.layers[1].translate)
    panel.model.setCurrentIndex([m.name for m in panel.models].index("one"))
    assert not panel.scan.channels.isVisible()
    assert panel.scan.start.text() == "Segment selected layer"


def test_files_of_a_case_are_one_line_of_the_batch(panel: Any, tmp_path: Path) -> None:
    files = [tmp_path / f"{n}.nii.gz" for n in ("a_0000", "a_0001", "b_0001")]
    for number, path in enumerate(files):
        write_volume(Volume(values(number), GRID), path)
    batch = panel.batch
    batch.set_out(tmp_path / "out")
    batch.add(files)
    until(lambda: [i.name for i in batch.batch.items] == ["a.nii.gz", "b.nii.gz"])
    lines = [batch.list.item(i).text() for i in range(2)]
    assert lines[1] == "⚠ b.nii.gz: T1 of the case is not in the list."
    panel.all.click()
    job = helper(1)
    assert job.config["scans"] == [f"{files[0]}|{files[1]}"]
    job.news.emit(Progress("scans", 0, 1))
    part = Path(job.config["out"]) / "a.nii.gz"
    write_labels(LabelMap(np.ones(SHAPE, np.uint8), GRID), part)
    job.news.emit(Saved(str(part), "labels"))
    job.done.emit({"predicted": [{"scan": str(tmp_path / "a.nii.gz")}]})
    until(lambda: not batch.busy)
    assert batch.words.text() == "1 of 2 segmented, 1 could not be."
    batch.list.item(0).setSelected(True)
    before = len(panel.hub.viewer.layers)
    batch.load_button.click()
    until(lambda: len(panel.hub.viewer.layers) == before + 3)
    new = list(panel.hub.viewer.layers)[before:]
    assert [layer.visible for layer in new] == [True, False, True]
    # for a model of single scans each file is a line again
    panel.model.setCurrentIndex([m.name for m in panel.models].index("one"))
    until(lambda: len(batch.batch.items) == 3)
    assert [item.files for item in batch.batch.items] == [[f] for f in files]
