"""Every fault is found by its code, and no sound scan is called unsound."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from each import each
from homolog.scans.inspect import inspect_scan
from homolog.scans.problems import CODES, Problem
from scan_faults import (
    FAULTS,
    dicom_series,
    mask,
    nifti,
    put,
    sound_files,
    values,
)


def codes(path: Path, label: Path | None = None) -> list[tuple[str, bool]]:
    return [(p.code, p.fatal) for p in inspect_scan(path, label).problems]


def test_the_corpus_is_large_enough() -> None:
    assert len(FAULTS) >= 95
    found = {code for _, code in FAULTS.values()}
    assert found <= set(CODES)
    assert len(found) >= 23, "reasons that differ, not one in many files"


@each("name", FAULTS)
def test_each_fault_is_found_by_its_code_and_nothing_reaches_the_terminal(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    build, code = FAULTS[name]
    path, label = build(tmp_path)
    capfd.readouterr()
    inspection = inspect_scan(path, label)
    assert not inspection.usable
    assert inspection.reason is not None
    assert inspection.reason.code == code, inspection.reason.text
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err == ""


def test_no_false_alarm_on_two_hundred_sound_files(tmp_path: Path) -> None:
    paths = list(sound_files(tmp_path / "good"))
    assert len(paths) >= 250
    wrong = {
        path.name: inspection.problems
        for path in paths
        if not (inspection := inspect_scan(path)).usable
    }
    assert wrong == {}


def test_headers_alone_find_what_headers_show(tmp_path: Path) -> None:
    for name in ("four volumes .nii.gz", "sheared sform 0.3", "nifti spacing 0"):
        build, code = FAULTS[name]
        folder = tmp_path / name
        folder.mkdir()
        inspection = inspect_scan(build(folder)[0], deep=False)
        assert inspection.reason is not None
        assert inspection.reason.code == code
    flat = FAULTS["scan of one value .nii.gz"][0](tmp_path)[0]
    assert inspect_scan(flat, deep=False).usable
    assert inspect_scan(flat, deep=False).stats is None


def test_an_oblique_scan_is_sound_and_remarked(tmp_path: Path) -> None:
    turn = np.radians(12.0)
    srow = np.eye(3, 4)
    srow[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    path = put(tmp_path / "a.nii", nifti(values(), srow=srow))
    inspection = inspect_scan(path)
    assert inspection.usable
    assert [p.code for p in inspection.problems] == ["oblique"]
    assert "12.0 degrees" in inspection.problems[0].text


def test_the_fatal_finding_comes_first(tmp_path: Path) -> None:
    data = values(dtype=np.float32)
    data[0, 0, 0] = np.nan
    path = put(tmp_path / "a.nii", nifti(data, pixdim=(1, 1, 2)))
    assert codes(path) == [("nonfinite", True), ("orientation_unknown", False)]


def test_an_empty_mask_is_a_label_map(tmp_path: Path) -> None:
    scan = put(tmp_path / "a.nii.gz", nifti(values(), srow=np.eye(3, 4)))
    label = put(tmp_path / "b.nii.gz", nifti(mask() * 0, srow=np.eye(3, 4)))
    assert inspect_scan(scan, label).usable


def test_rounding_between_two_headers_of_one_grid_is_accepted(tmp_path: Path) -> None:
    near = np.eye(3, 4)
    near[:, 3] = 0.01
    scan = put(tmp_path / "a.nii.gz", nifti(values(), srow=np.eye(3, 4)))
    label = put(tmp_path / "b.nii.gz", nifti(mask(), srow=near))
    assert inspect_scan(scan, label).usable


def test_copies_of_slices_are_left_out_and_told(tmp_path: Path) -> None:
    paths = dicom_series(tmp_path / "scan")
    shutil.copy(paths[2], tmp_path / "scan" / "again.dcm")
    inspection = inspect_scan(tmp_path / "scan")
    assert inspection.usable
    assert [p.code for p in inspection.problems] == ["duplicate_slice"]
    assert inspection.header is not None
    assert inspection.header.shape[0] == 8


def test_different_slices_at_one_place_are_unsound(tmp_path: Path) -> None:
    def place(i: int) -> tuple[float, float, float]:
        return 0.0, 0.0, 2.0 * (i if i != 5 else 4)

    dicom_series(tmp_path / "scan", position=place)
    inspection = inspect_scan(tmp_path / "scan")
    assert inspection.reason is not None
    assert inspection.reason.code == "duplicate_slice"


def test_of_mixed_series_the_largest_sound_one_is_taken_and_told(
    tmp_path: Path,
) -> None:
    dicom_series(tmp_path / "scan", 6, series="1.1", prefix="a")
    dicom_series(tmp_path / "scan", 9, series="2.2", prefix="b")
    broken = dicom_series(tmp_path / "scan", 12, series="3.3", prefix="c")
    broken[5].unlink()
    inspection = inspect_scan(tmp_path / "scan")
    assert inspection.usable
    assert inspection.header is not None
    assert inspection.header.shape[0] == 9
    assert inspection.header.meta["series"] == "2.2"
    assert [p.code for p in inspection.problems] == ["mixed_series"]


def test_a_localiser_in_the_same_series_is_kept_apart(tmp_path: Path) -> None:
    dicom_series(tmp_path / "scan", 9, series="1.1", prefix="a")
    dicom_series(
        tmp_path / "scan", 2, series="1.1", prefix="b", orientation="0\\1\\0\\0\\0\\-1"
    )
    inspection = inspect_scan(tmp_path / "scan")
    assert inspection.usable
    assert inspection.header is not None
    assert inspection.header.shape == (9, 12, 14)


def test_grey_stored_as_colour_is_grey_and_remarked(tmp_path: Path) -> None:
    picture = values((20, 30), np.uint8)
    colour = sitk.GetImageFromArray(np.stack([picture] * 3, -1), isVector=True)
    sitk.WriteImage(colour, str(tmp_path / "a.png"))
    assert codes(tmp_path / "a.png") == [
        ("spacing_unknown", False),
        ("grey_as_colour", False),
    ]


def test_a_header_that_says_ct_without_hounsfield_units_is_doubted(
    tmp_path: Path,
) -> None:
    paths = dicom_series(tmp_path / "scan", low=50)
    assert len(paths) == 8
    found = inspect_scan(tmp_path / "scan")
    assert found.usable
    assert [p.code for p in found.problems] == ["modality_doubt"]
    assert found.modality == "CT"


def test_hounsfield_values_make_a_ct_whatever_its_name(tmp_path: Path) -> None:
    data = values((20, 20, 20)).astype(np.int16)
    data[:, :8] = -1000
    path = put(tmp_path / "a.nii.gz", nifti(data, srow=np.eye(3, 4)))
    assert inspect_scan(path).modality == "CT"
    data = np.random.default_rng(0).normal(0, 3000, (20, 20, 20)).astype(np.int16)
    path = put(tmp_path / "b.nii.gz", nifti(data, srow=np.eye(3, 4)))
    assert inspect_scan(path).modality == "OTHER"
    path = put(tmp_path / "b_t1w.nii.gz", nifti(data, srow=np.eye(3, 4)))
    assert inspect_scan(path).modality == "MR"


def test_unknown_codes_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="unknown problem code"):
        Problem("strange", "it is strange.")


def test_kit_odd_files_are_judged_by_their_true_reason(data_kit: Path) -> None:
    expected = {
        "complex.nii.gz": "complex",
        "dmri_4d.nii.gz": "4d",
        "nibabel_example4d.nii.gz": "4d",
        "nibabel_example_nifti2.nii.gz": "4d",
        "nibabel_functional.nii": "4d",
        "nibabel_resampled_anat_moved.nii": "nonfinite",
        "nibabel_test.mgz": "4d",
        "pcasl_4d.nii.gz": "4d",
        "shear_affine.nii.gz": "sheared",
    }
    found = {}
    for path in sorted((data_kit / "odd_files").iterdir()):
        reason = inspect_scan(path).reason
        if reason is not None:
            found[path.name] = reason.code
    assert found == expected
