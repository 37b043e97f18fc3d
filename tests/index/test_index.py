"""Folders, datasets, DICOM trees and manifests become cases; the rest is put aside."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from each import each
from homolog.errors import UnusableInput
from homolog.events import Note, Progress, Request, drain
from homolog.index.datasets import CaseSource, ScanIndex
from homolog.index.index import index_sources
from homolog.scans.boxes import BoxList, ScanBox, box_files
from homolog.scans.files import read_header
from homolog.scans.names import bare_name, label_rank
from homolog.store.build import prepare_store
from homolog.store.store import Store
from scan_faults import FAULTS, dicom_series, image, mask, nifti, put, values

EYE = np.eye(3, 4)


def index(*sources: Path, labels: Sequence[Path] = (), **more: Any) -> ScanIndex:
    return drain(index_sources(list(sources), labels, **more))


def by_id(result: ScanIndex) -> dict[str, CaseSource]:
    return {case.id: case for case in result.cases}


def labels_of(result: ScanIndex) -> dict[str, str | None]:
    return {c.id: c.label.name if c.label else None for c in result.cases}


_count = iter(range(1, 10**6))


def scan(
    path: Path, shape: tuple[int, int, int] = (9, 10, 11), low: float = 0.0
) -> Path:
    """A scan unlike every other one, its values from about ``low``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = values(shape, np.float32) + next(_count) / 7 + low
    return put(path, nifti(data, srow=EYE))


def label(path: Path, shape: tuple[int, int, int] = (9, 10, 11), top: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return put(path, nifti(mask(shape) * np.uint8(top), srow=EYE))


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(next(_count))
    sitk.WriteImage(image(rng.integers(0, 255, (20, 30)).astype(np.uint8)), str(path))
    return path


def picture_mask(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image(mask((20, 30)) * np.uint8(255)), str(path))
    return path


# ---- plain folders -------------------------------------------------------------------


def test_all_faults_in_one_folder_are_put_aside_and_the_run_goes_on(
    tmp_path: Path,
) -> None:
    expected = {}
    for number, (name, (build, code)) in enumerate(FAULTS.items()):
        folder = tmp_path / f"{number:03d}"
        folder.mkdir()
        build(folder)
        if name not in ("file that is not there", "folder without a scan"):
            expected[f"{number:03d}"] = code
    scan(tmp_path / "good" / "one.nii.gz")
    (tmp_path / "README.txt").write_text("not a scan")
    result = index(tmp_path)
    assert [c.id for c in result.cases if c.id.startswith("good")] == ["good__one"]
    found: dict[str, str] = {}
    for rejected in result.rejected:
        found[Path(rejected.path).relative_to(tmp_path).parts[0]] = rejected.code
        assert rejected.reason
    duplicates = {k for k, code in found.items() if code == "duplicate"}
    assert {k: v for k, v in found.items() if k not in duplicates} == {
        k: v for k, v in expected.items() if k not in duplicates
    }
    assert all(expected[k].startswith("label") for k in duplicates)


def test_files_that_are_no_scans_are_passed_over(tmp_path: Path) -> None:
    scan(tmp_path / "a.nii.gz")
    for name in ("notes.txt", "table.csv", "x.json", "y.npz", "z.py", ".hidden.nii"):
        (tmp_path / name).write_text("{}")
    result = index(tmp_path)
    assert [c.id for c in result.cases] == ["a"]
    assert result.rejected == ()


def test_a_copy_under_another_name_and_format_is_a_duplicate(tmp_path: Path) -> None:
    data = values()
    put(tmp_path / "a.nii.gz", nifti(data, srow=-EYE * [[1], [1], [-1]]))
    sitk.WriteImage(image(data), str(tmp_path / "b.nrrd"))
    put(
        tmp_path / "c.nii", nifti(data.astype(np.float64), srow=-EYE * [[1], [1], [-1]])
    )
    scan(tmp_path / "d.nii")
    result = index(tmp_path)
    assert [c.id for c in result.cases] == ["a", "d"]
    assert [(Path(r.path).name, r.code) for r in result.rejected] == [
        ("b.nrrd", "duplicate"),
        ("c.nii", "duplicate"),
    ]
    assert str(tmp_path / "a.nii.gz") in result.rejected[0].reason


def test_the_same_values_elsewhere_or_turned_are_no_duplicate(tmp_path: Path) -> None:
    data = values((9, 9, 9))
    for number, first in enumerate((1, -1, 2)):
        srow = np.diag([first, 1.0, 1.0]) @ EYE
        put(
            tmp_path / f"{number}.nii",
            nifti(data, srow=srow, pixdim=(abs(first), 1, 1)),
        )
    put(tmp_path / "3.nii", nifti(data[::-1].copy(), srow=EYE))
    assert len(index(tmp_path).cases) == 4


def test_sources_that_overlap_give_each_scan_once(tmp_path: Path) -> None:
    scan(tmp_path / "x" / "a.nii.gz")
    scan(tmp_path / "b.nii.gz")
    result = index(tmp_path, tmp_path / "x", tmp_path / "b.nii.gz")
    assert sorted(c.id for c in result.cases) == ["b", "x__a"]
    assert result.rejected == ()
    assert any("taken once" in note for note in result.notes)


def test_a_scan_named_alone_and_in_its_folder_keeps_its_label(tmp_path: Path) -> None:
    alone = scan(tmp_path / "ct" / "a.nii.gz")
    its = label(tmp_path / "ct" / "a_seg.nii.gz")
    for sources in ((alone, tmp_path / "ct"), (tmp_path / "ct", alone)):
        (case,) = index(*sources).cases
        assert case.label == its


def test_ids_are_unique_stable_folder_names(tmp_path: Path) -> None:
    for name in ("one/a b.nii.gz", "one/A B.nii.gz", "one/x/y.nii", "one/x.y.nrrd"):
        if name.endswith("nrrd"):
            data = values().astype(np.float32) + next(_count) / 7
            sitk.WriteImage(image(data), str(tmp_path / name))
        else:
            scan(tmp_path / name)
    scan(tmp_path / "two" / "a b.nii.gz")
    first, again = (
        index(tmp_path / "one", tmp_path / "two"),
        index(tmp_path / "one", tmp_path / "two"),
    )
    ids = [c.id for c in first.cases]
    assert ids == [c.id for c in again.cases]
    assert len({i.lower() for i in ids}) == 5
    assert all(
        set(i) <= set("abcdefghijklmnopqrstuvwxyzABXY0123456789._-") for i in ids
    )
    assert "x__y" in ids
    assert "two__a_b" in ids


def test_a_missing_source_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(UnusableInput, match=r"nope: no such file or folder"):
        index(tmp_path / "nope")
    with pytest.raises(UnusableInput, match="no scans in this folder"):
        index(tmp_path)


def test_a_single_file_is_a_source(tmp_path: Path) -> None:
    path = scan(tmp_path / "a.nii.gz")
    (case,) = index(path).cases
    assert (case.id, case.image, case.subject) == ("a", path, "a")


# ---- labels beside scans -------------------------------------------------------------


def test_labels_in_their_own_folder_find_scans_by_name_or_beginning(
    tmp_path: Path,
) -> None:
    for name in ("ct", "ct_small", "other", "three"):
        scan(tmp_path / f"{name}.nii.gz")
    label(tmp_path / "labels" / "ct_organs.nii.gz")
    label(tmp_path / "labels" / "ct_small_bones.nii.gz")
    label(tmp_path / "labels" / "other_gtv.nii.gz")
    for part in ("a", "b"):
        label(tmp_path / "labels" / f"three_{part}.nii.gz")
    result = index(tmp_path)
    assert labels_of(result) == {
        "ct": "ct_organs.nii.gz",
        "ct_small": "ct_small_bones.nii.gz",
        "other": "other_gtv.nii.gz",
        "three": None,
    }
    assert by_id(result)["other"].label_names == {1: "gtv"}
    assert by_id(result)["ct"].label_names == {1: "organs"}
    assert result.rejected == ()
    (note,) = result.notes
    assert "three.nii.gz with three_a.nii.gz and three_b.nii.gz" in note


def test_image_and_mask_words_pair_within_each_persons_folder(tmp_path: Path) -> None:
    for person in ("P1", "P2"):
        for kind in ("CT", "PET"):
            scan(tmp_path / person / f"{kind}_image.nii.gz")
            label(tmp_path / person / f"{kind}_mask.nii.gz")
    result = index(tmp_path)
    assert labels_of(result)["P1__CT_image"] == "CT_mask.nii.gz"
    assert labels_of(result)["P2__PET_image"] == "PET_mask.nii.gz"
    assert len(result.cases) == 4
    assert {c.subject for c in result.cases} == {"P1", "P2"}


def test_one_seg_serves_all_sequences_of_its_folder_before_a_brainmask(
    tmp_path: Path,
) -> None:
    for person in ("P1", "P2"):
        for name in ("FLAIR", "T1c"):
            scan(tmp_path / person / f"{name}.nii.gz")
        scan(tmp_path / person / "T1_other_grid.nii.gz", (5, 6, 7))
        label(tmp_path / person / "seg.nii.gz", top=4)
        label(tmp_path / person / "brainmask.nii.gz")
    found = labels_of(index(tmp_path))
    assert found["P1__FLAIR"] == found["P2__T1c"] == "seg.nii.gz"
    assert found["P1__T1_other_grid"] is None
    assert len(found) == 6


def test_sequence_names_with_a_common_beginning_share_their_seg(tmp_path: Path) -> None:
    for ending in ("flair", "t1ce"):
        scan(tmp_path / "B_001" / f"B_001_{ending}.nii.gz")
    label(tmp_path / "B_001" / "B_001_seg.nii.gz", top=4)
    assert set(labels_of(index(tmp_path)).values()) == {"B_001_seg.nii.gz"}


def test_a_longer_name_is_a_label_only_by_grid_and_values(tmp_path: Path) -> None:
    scan(tmp_path / "mt1.nii.gz")
    label(tmp_path / "mt1_cord.nii.gz")  # no word for labels in its name
    scan(tmp_path / "t2s.nii.gz")
    scan(tmp_path / "t2s_uncropped.nii.gz", (12, 10, 11))  # a scan of its own
    scan(tmp_path / "t2.nii.gz")
    eight_bit = np.random.default_rng(1).integers(0, 255, (9, 10, 11)).astype(np.uint8)
    eight_bit[:3] = 0
    put(tmp_path / "t2_bright.nii.gz", nifti(eight_bit, srow=EYE))
    result = index(tmp_path)
    assert labels_of(result) == {
        "mt1": "mt1_cord.nii.gz",
        "t2": None,
        "t2_bright": None,
        "t2s": None,
        "t2s_uncropped": None,
    }
    assert by_id(result)["t2s_uncropped"].subject == "t2s"


def test_a_scan_with_a_label_word_in_its_name_stays_a_scan(tmp_path: Path) -> None:
    scan(tmp_path / "lesion_01.nii.gz")
    picture(tmp_path / "mask.png")
    result = index(tmp_path)
    assert sorted(c.id for c in result.cases) == ["lesion_01", "mask"]


def test_a_declared_label_of_another_grid_puts_the_pair_aside(tmp_path: Path) -> None:
    scan(tmp_path / "images" / "a.nii.gz")
    label(tmp_path / "labels" / "a.nii.gz", (9, 10, 12))
    scan(tmp_path / "images" / "b.nii.gz")
    label(tmp_path / "labels" / "b.nii.gz")
    result = index(tmp_path)
    assert labels_of(result) == {"images__b": "b.nii.gz"}
    (rejected,) = result.rejected
    assert rejected.code == "label_shape"
    assert "9 x 10 x 12 voxels, the image 9 x 10 x 11" in rejected.reason


def test_labels_without_a_scan_are_told_not_rejected(tmp_path: Path) -> None:
    scan(tmp_path / "a.nii.gz")
    label(tmp_path / "labels" / "zzz.nii.gz")
    label(tmp_path / "qqq_seg.nii.gz")
    result = index(tmp_path)
    assert [c.id for c in result.cases] == ["a"]
    assert result.rejected == ()
    assert "2 label maps without a scan" in result.notes[0]


def test_masks_by_class_of_pictures_are_told_when_several(tmp_path: Path) -> None:
    for name in ("p_1", "p_10"):
        picture(tmp_path / "images" / f"{name}.png")
    for name in ("p_1__left", "p_1__right", "p_10__left"):
        picture_mask(tmp_path / "masks" / f"{name}.png")
    result = index(tmp_path)
    assert labels_of(result) == {"images__p_1": None, "images__p_10": "p_10__left.png"}
    assert "1 scan with several possible label maps" in result.notes[0]


def test_labels_given_by_hand_win_over_names(tmp_path: Path) -> None:
    scan(tmp_path / "scans" / "a.nii.gz")
    label(tmp_path / "scans" / "a_seg.nii.gz")
    mine = label(tmp_path / "mine" / "a.nii.gz", top=3)
    result = index(tmp_path / "scans", labels=[tmp_path / "mine"])
    assert [c.label for c in result.cases] == [mine]
    with pytest.raises(UnusableInput, match="no such label"):
        index(tmp_path / "scans", labels=[tmp_path / "nowhere"])


def test_names_of_labels_come_from_a_file_beside_them(tmp_path: Path) -> None:
    scan(tmp_path / "a.nii.gz")
    label(tmp_path / "labels" / "a.nii.gz", top=5)
    names = {"a": {"5": "liver"}, "b": {"1": "cord"}}
    (tmp_path / "labels" / "label_names.json").write_text(json.dumps(names))
    assert index(tmp_path).cases[0].label_names == {5: "liver"}


@each(
    "name, bare, rank",
    [
        ("CT_image", "ct", None),
        ("CT_mask", "ct", 1),
        ("volume-12", "12", None),
        ("segmentation-12", "12", 0),
        ("seg", "", 0),
        ("brainmask", "", 2),
        ("case_0001", "case", None),
        ("a_gm_manual", "a_gm", 0),
        ("t1w", "t1w", None),
    ],
)
def test_words_for_labels(name: str, bare: str, rank: int | None) -> None:
    assert bare_name(name) == bare
    assert label_rank(name) == rank


# ---- subjects ------------------------------------------------------------------------


def test_bids_names_the_subject(tmp_path: Path) -> None:
    for subject in ("sub-01", "sub-02"):
        for session in ("ses-1", "ses-2"):
            scan(
                tmp_path
                / subject
                / session
                / "anat"
                / f"{subject}_{session}_T1w.nii.gz"
            )
    result = index(tmp_path)
    assert len(result.cases) == 4
    assert {c.subject for c in result.cases} == {"sub-01", "sub-02"}


def test_folders_that_are_no_persons_do_not_join_their_scans(tmp_path: Path) -> None:
    for name in ("siteA/x1", "siteA/x2", "siteB/y1", "siteB/y2"):
        scan(tmp_path / f"{name}.nii.gz")
    assert len({c.subject for c in index(tmp_path).cases}) == 4


# ---- datasets ------------------------------------------------------------------------


def decathlon(folder: Path, count: int = 3) -> dict[str, Any]:
    training = []
    for number in range(count):
        name = f"hip_{number:03d}.nii.gz"
        scan(folder / "imagesTr" / name)
        label(folder / "labelsTr" / name)
        training.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    return {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "anterior"},
        "numTraining": count,
        "training": training,
    }


def test_a_decathlon_dataset_is_what_its_description_names(tmp_path: Path) -> None:
    raw = decathlon(tmp_path)
    scan(tmp_path / "extra" / "unnamed.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps(raw))
    result = index(tmp_path)
    assert labels_of(result) == {f"hip_00{i}": f"hip_00{i}.nii.gz" for i in range(3)}
    case = result.cases[0]
    assert (case.modality, case.subject, case.split) == ("MR", "hip_000", None)
    assert case.label_names == {0: "background", 1: "anterior"}
    assert result.rejected == ()
    assert "extra/unnamed.nii.gz" in result.notes[0]


def test_a_file_named_but_not_there_is_rejected(tmp_path: Path) -> None:
    raw = decathlon(tmp_path)
    (tmp_path / "labelsTr" / "hip_001.nii.gz").unlink()
    (tmp_path / "dataset.json").write_text(json.dumps(raw))
    result = index(tmp_path)
    assert len(result.cases) == 2
    assert [r.code for r in result.rejected] == ["missing"]
    assert "speaks" in result.notes[0] or "says 3 training cases, 2" in result.notes[0]


def test_an_nnunet_dataset_with_two_channels(tmp_path: Path) -> None:
    for case in ("a_1", "a_2"):
        for channel in range(2):
            scan(tmp_path / "imagesTr" / f"{case}_{channel:04d}.nii.gz", low=-900)
        label(tmp_path / "labelsTr" / f"{case}.nii.gz", top=2)
    scan(tmp_path / "imagesTs" / "t_1_0000.nii.gz", low=-900)
    raw = {
        "channel_names": {"0": "CT", "1": "FDG-PET"},
        "labels": {"background": 0, "organ": 1, "all": [1, 2], "tumour": 2},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    (tmp_path / "dataset.json").write_text(json.dumps(raw))
    joined = index(tmp_path)
    assert [c.id for c in joined.cases] == ["a_1", "a_2"]
    (case, _) = joined.cases
    assert [(c.name, c.modality) for c in case.channels] == [
        ("CT", "CT"), ("FDG-PET", "PET"),
    ]  # fmt: skip
    assert (case.modality, case.label and case.label.name) == ("OTHER", "a_1.nii.gz")
    assert case.label_names == {0: "background", 1: "organ", 2: "tumour"}
    assert "t_1" not in [c.id for c in joined.cases]  # one of its channels is missing
    assert any("2 cases have several channels, learnt together" in n
               for n in joined.notes)  # fmt: skip

    apart = index(tmp_path, channels="separate")
    assert labels_of(apart) == {
        "a_1_0000": "a_1.nii.gz",
        "a_1_0001": "a_1.nii.gz",
        "a_2_0000": "a_2.nii.gz",
        "a_2_0001": "a_2.nii.gz",
        "t_1": None,
    }
    second = by_id(apart)["a_1_0001"]
    assert (second.modality, second.subject) == ("PET", "a_1")
    assert second.label_names == {0: "background", 1: "organ", 2: "tumour"}
    (note,) = apart.notes
    assert "2 cases have several channels (first: a_1)" in note


def test_old_nnunet_lists_names_without_their_channel(tmp_path: Path) -> None:
    scan(tmp_path / "imagesTr" / "a_0000.nii.gz")
    label(tmp_path / "labelsTr" / "a.nii.gz")
    raw = {
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "x"},
        "training": [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(raw))
    (case,) = index(tmp_path).cases
    assert (case.id, case.image.name) == ("a", "a_0000.nii.gz")


def test_a_ct_without_hounsfield_units_is_not_windowed_as_one(tmp_path: Path) -> None:
    for name in ("a", "b"):
        scan(tmp_path / "imagesTr" / f"{name}_0000.nii.gz")
        label(tmp_path / "labelsTr" / f"{name}.nii.gz")
    raw = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "x": 1}}
    (tmp_path / "dataset.json").write_text(json.dumps(raw))
    found = index(tmp_path)
    assert [case.modality for case in found.cases] == ["OTHER", "OTHER"]
    (note,) = found.notes
    assert note.startswith("2 scans should be CT but hold no Hounsfield units")
    by_hand = index(tmp_path, modality="CT")
    assert [case.modality for case in by_hand.cases] == ["CT", "CT"]
    assert not by_hand.notes


def test_a_dataset_inside_a_source_keeps_its_rules(tmp_path: Path) -> None:
    raw = decathlon(tmp_path / "hips")
    (tmp_path / "hips" / "dataset.json").write_text(json.dumps(raw))
    scan(tmp_path / "loose.nii.gz")
    ids = set(by_id(index(tmp_path)))
    assert ids == {"loose", "hips__hip_000", "hips__hip_001", "hips__hip_002"}


# ---- DICOM ---------------------------------------------------------------------------


def test_a_dicom_tree_gives_one_case_per_sound_series(tmp_path: Path) -> None:
    dicom_series(tmp_path / "x" / "ct", 8, series="1.1")
    both = tmp_path / "y"
    dicom_series(both, 6, series="2.1", prefix="a", extra={"0010|0020": "P8"})
    dicom_series(both, 9, series="2.2", prefix="b", extra={"0010|0020": "P8"})
    gap = dicom_series(tmp_path / "z", 12, series="3.1")
    gap[5].unlink()
    dicom_series(both, 2, series="2.2", prefix="c", orientation="0\\1\\0\\0\\0\\-1")
    result = index(tmp_path)
    subjects = {c.id: c.subject for c in result.cases}
    assert subjects == {"x__ct": "P7", "y__series_2.1": "P8", "y__series_2.2": "P8"}
    assert {(Path(r.path).name, r.code) for r in result.rejected} == {
        ("z", "missing_slice"),
        ("series=2.2~2", "localiser"),
    }
    assert all(c.modality == "CT" for c in result.cases)


def test_the_same_series_twice_is_a_duplicate_in_any_file_order(tmp_path: Path) -> None:
    dicom_series(tmp_path / "a")
    (tmp_path / "b").mkdir()
    for number, path in enumerate(sorted((tmp_path / "a").iterdir())):
        shutil.copy(path, tmp_path / "b" / f"IM{(number * 3) % 8}")
    result = index(tmp_path)
    assert [c.id for c in result.cases] == ["a"]
    assert [r.code for r in result.rejected] == ["duplicate"]


# ---- manifests -----------------------------------------------------------------------


def test_a_csv_manifest_with_all_columns(tmp_path: Path) -> None:
    scan(tmp_path / "s" / "a.nii.gz")
    scan(tmp_path / "s" / "b.nii.gz", low=-900)
    label(tmp_path / "l" / "a.nii.gz")
    boxes = json.dumps([{"label": "t", "min": [1, 2, 3], "max": [4, 5, 6]}])
    quoted = '"' + boxes.replace('"', '""') + '"'
    (tmp_path / "m.csv").write_text(
        "Image,label,modality,class,subject,split,boxes\n"
        f"s/a.nii.gz,l/a.nii.gz,MRI,ill,P1,train,{quoted}\n"
        "s/b.nii.gz,,ct,well,P1,testing,\n"
        "s/none.nii.gz,,,,,,\n"
        "s/b.nii.gz,,,,,someday,\n"
    )
    result = index(tmp_path / "m.csv")
    a, b = result.cases
    assert (a.id, a.modality, a.target, a.subject, a.split) == (
        "s__a", "MR", "ill", "P1", "train",
    )  # fmt: skip
    assert a.label == tmp_path / "l" / "a.nii.gz"
    assert a.boxes == ({"label": "t", "min": [1, 2, 3], "max": [4, 5, 6]},)
    assert (b.modality, b.target, b.split, b.label) == ("CT", "well", "test", None)
    assert [r.code for r in result.rejected] == ["missing", "manifest"]
    assert "someday" in result.rejected[1].reason


def test_classes_and_boxes_of_pictures(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    picture(tmp_path / "images" / "b.png")
    (tmp_path / "boxes.csv").write_text(
        "file,label,patient,x,y,w,h\na.png,nodule,P1,3,4,5,6\n"
        "a.png,nodule,P1,1,1,2,2\nb.png,mass,P2,0,0,9,9\n"
    )
    a, b = index(tmp_path / "boxes.csv").cases
    assert (a.target, a.subject, b.target) == ("nodule", "P1", "mass")
    assert [box["max"] for box in a.boxes] == [[1.0, 10.0, 8.0], [1.0, 3.0, 3.0]]
    assert a.boxes[0]["label"] == "nodule"


def test_boxes_of_volumes_by_rows_by_corners_and_by_files(tmp_path: Path) -> None:
    for name in "abcd":
        scan(tmp_path / f"{name}.nii.gz", low=-900 - ord(name))
    affine = read_header(tmp_path / "c.nii.gz").affine
    told = BoxList("c", (9, 9, 9), (ScanBox("t", 0.9, (1, 2, 3), (4, 5, 6)),), affine)
    box_files(told, tmp_path / "corrected.nii.gz")
    records = [
        {"image": "a.nii.gz", "class": "t", "x": 3, "y": 2, "z": 1, "w": 3, "h": 3,
         "d": 3},
        {"image": "b.nii.gz",
         "boxes": [{"label": "t", "voxel_xyz": [3, 2, 1, 6, 5, 4]}]},
        {"image": "c.nii.gz", "boxes": "corrected.mrk.json"},
        {"image": "d.nii.gz", "boxes": "corrected.boxes.json"},
    ]  # fmt: skip
    (tmp_path / "m.json").write_text(json.dumps(records))
    found = index(tmp_path / "m.json")
    assert not found.rejected
    for case in found.cases:
        (box,) = case.boxes
        assert box["label"] == "t"
        assert box["min"] == pytest.approx([1, 2, 3])
        assert box["max"] == pytest.approx([4, 5, 6])


def test_a_json_manifest(tmp_path: Path) -> None:
    scan(tmp_path / "a.nii.gz")
    label(tmp_path / "la.nii.gz")
    records = [{"image": "a.nii.gz", "label": "la.nii.gz", "id": "first"}]
    whole = {"cases": records, "label_names": {"1": "liver"}}
    (tmp_path / "m.json").write_text(json.dumps(whole))
    (case,) = index(tmp_path / "m.json").cases
    assert (case.id, case.label_names) == ("first", {1: "liver"})


@each(
    "name, text, message",
    [
        ("m.csv", "a,b\n1,2\n", "needs a column 'image', found: a, b"),
        ("m.csv", "image\n", "no records"),
        ("m.json", "{", "not readable as JSON"),
        ("m.json", '{"x": 1}', "expected a list of records"),
    ],
)
def test_a_manifest_that_is_none_is_one_error(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UnusableInput, match=message):
        index(tmp_path / name)


# ---- the job -------------------------------------------------------------------------


def listed_in(path: Path, *images: Path, ids: Sequence[str] = ()) -> Path:
    """A manifest of whole paths, with a column of ids where these are given."""
    head = "image,id" if ids else "image"
    rows = [f"{i},{n}" for i, n in zip(images, ids, strict=True)] if ids else images
    path.write_text("\n".join([head, *map(str, rows)]) + "\n")
    return path


def test_whole_paths_in_a_manifest_give_ids_as_short_as_tell_them_apart(
    tmp_path: Path,
) -> None:
    a, b = (
        scan(tmp_path / "x" / "P1" / "ct.nii"),
        scan(tmp_path / "y" / "P2" / "mr.nii"),
    )
    c = scan(tmp_path / "z" / "P3" / "MR.nii")
    two = listed_in(tmp_path / "m.csv", a, b)
    assert [case.id for case in index(two).cases] == ["ct", "mr"]
    three = listed_in(tmp_path / "m.csv", a, b, c)  # disks may ignore case
    assert [case.id for case in index(three).cases] == ["P1__ct", "P2__mr", "P3__MR"]
    (tmp_path / "m.json").write_text(
        json.dumps([{"image": str(c)}, {"image": "x/P1/ct.nii"}])
    )
    assert [case.id for case in index(tmp_path / "m.json").cases] == ["MR", "x__P1__ct"]
    one, other = (listed_in(tmp_path / f"{i.stem}.csv", i) for i in (b, c))
    assert [case.id for case in index(one, other).cases] == ["mr", "P3__MR"]
    named = listed_in(tmp_path / "m.csv", a, b, ids=["first", "second"])
    assert [case.id for case in index(named).cases] == ["first", "second"]


def test_folders_of_whole_paths_still_tell_whose_scans_are(tmp_path: Path) -> None:
    images = [
        scan(tmp_path / f"p{p}" / f"{p}{name}.nii") for p in (1, 2) for name in "ab"
    ]
    table = listed_in(tmp_path / "m.csv", *images)
    result = index(table, subjects="(p[0-9])")
    assert [(c.id, c.subject) for c in result.cases] == [
        ("1a", "p1"), ("1b", "p1"), ("2a", "p2"), ("2b", "p2"),
    ]  # fmt: skip


def test_a_scan_keeps_the_id_it_has_in_the_store(tmp_path: Path) -> None:
    """Whatever else is listed; and a new one takes no id of another scan."""
    a, b = scan(tmp_path / "P1" / "ct.nii"), scan(tmp_path / "P2" / "ct.nii")
    out, table = tmp_path / "store", tmp_path / "m.csv"

    def prepared(*images: Path, **more: Any) -> tuple[set[str], int]:
        made = drain(prepare_store([listed_in(table, *images, **more)], out))
        return {card.id for card in Store.open(out).cards}, made["built"]

    long = "_".join(a.with_suffix("").parts[1:])  # as it was called before
    assert prepared(a, ids=[long]) == ({long}, 1)
    assert prepared(a) == ({long}, 0)
    assert prepared(a, b) == ({long, "P2__ct"}, 1)
    shutil.rmtree(out)
    assert prepared(a) == ({"ct"}, 1)
    assert prepared(b) == ({"ct", "P2__ct"}, 1)  # of another manifest
    assert prepared(b, a) == ({"ct", "P2__ct"}, 0)
    assert prepared(a, ids=["mine"]) == ({"mine", "P2__ct"}, 1)  # as it states


def test_the_job_tells_its_progress_and_its_notes(tmp_path: Path) -> None:
    scan(tmp_path / "a.nii.gz")
    label(tmp_path / "labels" / "zzz.nii.gz")
    events = list(index_sources([tmp_path]))
    assert isinstance(events[-2], Progress)
    assert events[-2].index == events[-2].total == 1
    assert isinstance(events[-1], Note)


def test_the_job_can_be_stopped_between_two_scans(tmp_path: Path) -> None:
    for name in "abc":
        scan(tmp_path / f"{name}.nii.gz")
    job = index_sources([tmp_path])
    while not (isinstance(event := next(job), Progress) and event.index == 1):
        pass
    with pytest.raises(StopIteration) as ended:
        job.send(Request.STOP)
    assert ended.value.value.stopped
    assert [c.id for c in ended.value.value.cases] == ["a"]


def test_a_modality_given_by_hand_wins(tmp_path: Path) -> None:
    scan(tmp_path / "x_t1w.nii.gz")
    assert index(tmp_path).cases[0].modality == "MR"
    assert index(tmp_path, modality="CT").cases[0].modality == "CT"


# ---- the real scans ------------------------------------------------------------------


def test_kit_hippocampus_has_156_cases(data_kit: Path) -> None:
    result = index(data_kit / "msd_hippocampus")
    assert len(result.cases) == 156
    assert all(c.label is not None and c.modality == "MR" for c in result.cases)
    assert result.rejected == ()


def test_kit_sets_of_sound_scans_raise_no_alarm(data_kit: Path) -> None:
    expected = {
        "ct_body": 11,
        "sts_petctmr": 94,
        "brain_mr_multisequence": 8,
        "brats_glioma": 8,
        "brain_mr_misc": 2,
        "cxr_nih": 150,
        "cxr_covid_masks": 32,
    }
    for name, count in expected.items():
        result = index(data_kit / name)
        assert (name, len(result.cases), result.rejected) == (name, count, ())
    spine = index(data_kit / "spine_mr")
    assert [(Path(r.path).name, r.code) for r in spine.rejected] == [
        ("dmri_4d.nii.gz", "4d")
    ]
    assert len(spine.cases) == 7


def test_kit_odd_files_and_dicom(data_kit: Path) -> None:
    result = index(data_kit / "odd_files", data_kit / "dicom")
    assert len(result.cases) == 19 + 6
    assert len(result.rejected) == 11 + 3
    labelled = {c.id: c.label.name for c in result.cases if c.label}
    assert labelled == {"chest_ct_64": "chest_ct_64_labelmap.nrrd"}
    contours = [r for r in result.rejected if r.code == "not_an_image"]
    assert [Path(r.path).name for r in contours] == ["RS.dcm"] * 3
