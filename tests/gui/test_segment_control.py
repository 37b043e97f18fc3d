"""Batches, results and class tables of the Segment panel; no Qt, no torch."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dicom_writer import series
from homolog.events import Note, Progress, Saved
from homolog.geometry.affine import Affine
from homolog.gui.segment.control import (
    FEW,
    Batch,
    MadeBy,
    class_rows,
    csv_text,
    few_colours,
    find_scans,
    grids_differ,
    keep_result,
    mean_sentence,
    predict_config,
    read_facts,
    reason_text,
    result_layer,
    score_text,
    scores_by_name,
    shown_colours,
)
from homolog.gui.shared.choices import ModelChoice
from homolog.gui.shared.layers import layer_scan, volume_layer
from homolog.scans.files import read_labels
from homolog.scans.names import names_beside
from homolog.scans.paths import is_series_path
from homolog.scans.volume import LabelMap, Volume
from homolog.scans.write import write_labels, write_volume
from homolog.writing import scratch_folder

NAMES = {1: "liver", 2: "spleen"}


def _labels(path: Path, value: int = 1, affine: Affine | None = None) -> Path:
    data = np.zeros((4, 5, 6), np.uint8)
    data[1:3, 2:4, 3] = value
    write_labels(LabelMap(data, affine or Affine.of((2.0, 1.0, 1.0))), path)
    return path


def test_folders_are_searched_for_scans_but_not_for_labels(tmp_path: Path) -> None:
    folder = tmp_path / "cohort"
    for name in ("a.nii.gz", "a_seg.nii.gz", "sub/b.nii.gz", "labelsTr/a.nii.gz"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        _labels(folder / name)
    (folder / "notes.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    scans, odd = find_scans(
        [folder, tmp_path / "empty", folder / "notes.txt", tmp_path / "gone.nii"]
    )
    assert [p.name for p in scans] == ["a.nii.gz", "b.nii.gz"]
    assert odd == [
        "empty holds no scan.",
        "notes.txt is no scan that can be read here.",
        f"There is no {tmp_path / 'gone.nii'}.",
    ]
    named, _ = find_scans([folder / "a_seg.nii.gz"])
    assert [p.name for p in named] == ["a_seg.nii.gz"]  # named directly: meant


def test_a_batch_goes_on_after_a_scan_that_cannot_be(tmp_path: Path) -> None:
    scans = [Path("/x/a.nii.gz"), Path("/x/b.nii.gz"), Path("/y/a.nii.gz")]
    batch = Batch()
    assert batch.add([*scans, scans[0]]) == 3
    assert batch.add(scans) == 0
    assert batch.next_round() == scans[:2]  # the two a would share one file
    first, second, third = batch.items
    batch.tell(Progress("scans", 0, 2, item="a.nii.gz"))
    batch.tell(Progress("windows", 5, 20, remaining_s=120.0))
    assert first.line == "▶ a.nii.gz: 25 %, 2 min left"
    assert batch.tell(Saved("/out/.part/a.nii.gz", "labels")) is first
    batch.saved(first, Path("/out/a_v2.nii.gz"))
    assert first.line == "✓ a.nii.gz: saved as a_v2.nii.gz"
    batch.tell(Progress("scans", 1, 2, item="b.nii.gz"))
    batch.tell(Note("/x/b.nii.gz: the file is truncated.", "warning"))
    assert second.line == "⚠ b.nii.gz: The file is truncated."
    batch.finish(
        {
            "predicted": [{"scan": "/x/a.nii.gz", "volumes_ml": {"liver": 3.0}}],
            "failed": [{"scan": "/x/b.nii.gz", "reason": "the file is truncated."}],
        }
    )
    assert first.volumes_ml == {"liver": 3.0}
    assert batch.next_round() == scans[2:]
    assert third.state == "waiting"
    assert batch.summary == "1 of 3 segmented, 1 could not be"


def test_a_worker_that_dies_leaves_its_reason_and_a_stop_does_not() -> None:
    for reason, state in (("the worker is gone", "failed"), ("", "waiting")):
        batch = Batch()
        batch.add([Path("/x/a.nii.gz"), Path("/x/b.nii.gz")])
        batch.next_round()
        batch.tell(Progress("scans", 0, 2))
        batch.break_off(reason)
        assert [item.state for item in batch.items] == [state, state]
        batch.restart()
        assert len(batch.next_round()) == 2
        batch.break_off("")
        batch.remove([0])
        assert [item.name for item in batch.items] == ["b.nii.gz"]


def test_results_never_overwrite_and_carry_their_names(tmp_path: Path) -> None:
    out = tmp_path / "results"
    kept = []
    for value in (1, 2):
        part = scratch_folder(out)
        kept.append(keep_result(_labels(part / "ct.nii.gz", value), out, NAMES))
        assert not list(part.iterdir())
    assert [p.name for p in kept] == ["ct.nii.gz", "ct_v2.nii.gz"]
    assert read_labels(kept[0]).data.max() == 1
    assert names_beside(kept[1]) == NAMES


@pytest.mark.parametrize("flipped", [False, True])
def test_a_result_lies_on_its_scans_layer(tmp_path: Path, flipped: bool) -> None:
    direction = np.diag([-1.0, 1.0, -1.0]) if flipped else None
    affine = Affine.of((2.0, 1.0, 1.0), (10.0, 20.0, 30.0), direction)
    scan = tmp_path / "ct.nii.gz"
    write_volume(Volume(np.zeros((1, 4, 5, 6), np.int16), affine, "ct"), scan)
    from homolog.scans.files import read_scan

    data, attributes, _ = volume_layer(read_scan(scan))
    layer = type("Image", (SimpleNamespace,), {})(data=data, **attributes)
    assert layer_scan(layer) is not None
    path = _labels(tmp_path / "result.nii.gz", 2, affine)
    result, made, kind = result_layer(path, NAMES, "ct labels", layer)
    assert kind == "labels"
    assert made["name"] == "ct labels"
    assert made["scale"] == tuple(attributes["scale"])
    assert made["translate"] == tuple(attributes["translate"])
    assert made["units"] == ("mm", "mm", "mm")
    assert made["metadata"]["homolog"]["label_names"] == NAMES
    assert made["features"]["label"] == ["background", "liver", "spleen"]
    voxel = np.argwhere(result == 2)[0]
    true = affine.apply(np.argwhere(read_labels(path).data == 2))
    shown = voxel * made["scale"] + made["translate"]
    assert np.isclose(true, shown).all(axis=1).any()


def test_the_job_is_told_no_more_than_it_knows() -> None:
    config = predict_config(Path("m"), [Path("a")], Path("o"), flips="x")
    assert config == {
        "model": "m", "scans": ["a"], "out": "o", "flips": "x", "overlap": None,
        "device": "auto",
    }  # fmt: skip
    told = predict_config(Path("m"), [Path("a")], Path("o"), modality="CT")
    assert told["modality"] == "CT"


def test_classes_are_counted_and_found() -> None:
    data = np.zeros((6, 8, 8), np.int32)
    data[1:5, 2:4, 2:4] = 1
    data[3, 2:7, 2:7] = 1  # the largest slice
    data[0, 0, 0] = 3
    rows = class_rows(data, {1: "liver", 2: "spleen"}, (5.0, 2.0, 1.0))
    assert [(r.value, r.name, r.voxels) for r in rows] == [
        (1, "liver", 37), (2, "spleen", 0), (3, "label 3", 1)
    ]  # fmt: skip
    assert rows[0].volume_ml == pytest.approx(0.37)
    assert rows[0].place == (3, 4, 4)
    assert rows[1].place is None
    flat = class_rows(data[3], {}, (1.0, 1.0))
    assert flat[0].place == (0, 4, 4)


def test_a_place_lies_inside_its_class_even_when_that_is_hollow() -> None:
    data = np.zeros((3, 9, 9), np.uint8)
    data[:, 1:8, 1:8] = 1
    data[:, 2:7, 2:7] = 0
    place = class_rows(data, {}, (1, 1, 1))[0].place
    assert place is not None
    assert data[place] == 1


def test_colours_hide_classes_and_keep_the_others() -> None:
    colours = few_colours([1, 2, 5])
    assert len(set(colours.values())) == 3
    shown = shown_colours(colours, {2})
    assert shown[2] == shown[0] == shown[None] == (0.0, 0.0, 0.0, 0.0)
    assert shown[5] == colours[5]
    assert len(few_colours(range(1, 20))) == FEW


def test_scores_become_cells_and_a_csv_with_units() -> None:
    result: dict[str, Any] = {
        "rows": [
            {"label": 1, "name": "liver", "dice": 0.91234, "nsd": 0.8, "hd95_mm": 2.25},
            {"label": 2, "name": "spleen", "dice": None, "nsd": None, "hd95_mm": None},
        ],
        "mean": {"dice": 0.91234, "nsd": 0.8, "hd95_mm": 2.25},
    }
    scores = scores_by_name(result)
    assert score_text("dice", scores[1]["dice"]) == "0.912"
    assert score_text("hd95_mm", scores[1]["hd95_mm"]) == "2.2"
    assert score_text("dice", scores[2]["dice"]) == "-"
    assert mean_sentence(result) == (
        "Mean over classes: Dice 0.912, NSD 0.800, HD95 (mm) 2.2."
    )
    data = np.zeros((2, 2, 2), np.uint8)
    data[0, 0, 0] = 1
    rows = class_rows(data, NAMES, (1, 1, 1))
    table = list(csv.DictReader(io.StringIO(csv_text(rows, scores))))
    assert table[0]["volume_ml"] == "0.001"
    assert table[0]["dice"] == "0.91234"
    assert table[1]["hd95_mm"] == ""
    assert "dice" not in csv_text(rows, {})


def test_label_maps_of_other_scans_are_refused_in_words() -> None:
    assert grids_differ((4, 5, 6), (4, 5, 6), "a", "b") == ""
    assert grids_differ((96, 96, 40), (96, 96, 42), "CT", "seg") == (
        "seg does not match CT (96 x 96 x 42 and 96 x 96 x 40 voxels). Was it made "
        "for another scan?"
    )


def test_scans_unlike_the_models_are_noted_before_anything_starts(
    tmp_path: Path,
) -> None:
    scan, torn = _labels(tmp_path / "ct.nii.gz"), tmp_path / "torn.nii.gz"
    torn.write_bytes(b"torn")
    facts = read_facts([scan, torn])
    assert facts[scan][1] == pytest.approx((2.0, 1.0, 1.0))
    assert torn not in facts
    batch = Batch()
    batch.add([scan, torn])
    card: dict[str, Any] = {"spacing_mm": (8.0, 1.0, 1.0), "modalities": ("CT",)}
    model = ModelChoice(tmp_path, "m", "segment", "resunet", NAMES, **card)
    batch.advise(model, facts)
    assert batch.items[0].line.startswith("⚠ ct.nii.gz: This scan has 2 mm")
    assert batch.items[1].line == "torn.nii.gz"
    mr = {scan: ("MR", (8.0, 1.0, 1.0))}
    batch.advise(model, mr)
    assert "It will be refused" in batch.items[0].note
    batch.advise(model, mr, "CT")
    assert batch.items[0].note == ""
    batch.advise(None, facts)
    assert batch.items[0].line == "ct.nii.gz"


def test_reasons_at_the_window_name_no_flags() -> None:
    told = "the model learnt from CT, but 'x' is MR; if the file is mistaken, say "
    assert reason_text(f"{told}--modality CT.") == (
        "The model learnt from CT, but 'x' is MR."
    )


def test_tables_and_every_series_of_a_dicom_folder_join_the_list(
    tmp_path: Path,
) -> None:
    series(tmp_path / "site" / "p1" / "exam", uid="1.2.3")
    series(tmp_path / "site" / "p1" / "exam", kind="MR", uid="1.2.99")
    series(tmp_path / "site" / "p2" / "exam", uid="1.2.5")
    scans, odd = find_scans([tmp_path / "site"])
    assert len(scans) == 3
    assert not odd
    two, one = [p for p in scans if is_series_path(p)], tmp_path / "site/p2/exam"
    assert len(two) == 2
    assert one in scans
    batch = Batch()
    batch.add(scans)
    assert len({item.name for item in batch.items}) == 3
    _labels(tmp_path / "imagesTr" / "a.nii.gz")
    table = tmp_path / "list.csv"
    table.write_text("file,label\na.nii.gz,benign\ngone.nii.gz,benign\n")
    scans, odd = find_scans([table])
    assert scans == [tmp_path / "imagesTr" / "a.nii.gz"]
    assert odd[0].startswith("1 line of list.csv left out, gone.nii.gz: named in")


def test_a_result_is_its_own_scans_though_the_next_has_begun() -> None:
    batch = Batch()  # beside a GPU the last one is written while the next is at work
    batch.add([Path("/x/a.nii.gz"), Path("/x/a.1.nii.gz"), Path("/x/c.nii.gz")])
    batch.next_round()
    first, second, third = batch.items
    batch.tell(Progress("scans", 0, 3))
    batch.tell(Progress("scans", 1, 3))
    assert batch.tell(Saved("/out/a.nii.gz", "labels")) is first
    batch.tell(Progress("scans", 2, 3))
    batch.tell(Note("/x/a.1.nii.gz: the disk is full.", "warning"))
    states = [item.state for item in (first, second, third)]
    assert states == ["done", "failed", "running"]
    assert batch.remove([2]) == ["/x/c.nii.gz"]
    assert batch.tell(Saved("/out/c.nii.gz", "labels")) is None
    assert batch.next_round() == []


def test_the_table_of_a_batch_has_a_line_per_scan(tmp_path: Path) -> None:
    batch = Batch()
    batch.add([Path("/x/a.nii.gz"), Path("/x/b.nii.gz")])
    batch.model = "/runs/seg"
    batch.next_round()
    batch.tell(Progress("scans", 0, 2))
    batch.saved(batch.items[0], Path("/out/a.nii.gz"))
    entry = {"scan": "/x/a.nii.gz", "volumes_ml": {"liver": 1234.5}, "notes": ["odd."]}
    failed = [{"scan": "/x/b.nii.gz", "reason": "it is truncated, truly."}]
    batch.finish({"predicted": [entry], "failed": failed})
    assert batch.table.splitlines() == [
        "scan,state,result,liver (ml)",
        "a.nii.gz,done,a.nii.gz,1234.5",
        'b.nii.gz,failed,"It is truncated, truly.",',
    ]
    assert batch.items[0].line == "✓ a.nii.gz: saved"
    assert batch.items[0].made_by == MadeBy("/runs/seg", ("odd.",))
