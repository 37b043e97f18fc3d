"""Whatever goes wrong in one file is that file's finding; the others go on."""

from __future__ import annotations

import json
import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import homolog.scans.dicom.gathering as dicom_folder
import homolog.scans.inspect as inspecting
from dicom_writer import DEFLATED, JPEG, element, file_of, series, tags_of, write
from each import each
from homolog.errors import JobError
from homolog.events import drain
from homolog.index.index import index_sources
from homolog.index.tree import list_series, series_with
from homolog.scans.dicom.header import read_dicom_file
from homolog.scans.files import read_scan
from homolog.scans.inspect import inspect_scan
from homolog.scans.problems import Unsound, problem_of
from homolog.store.build import prepare_store
from scan_faults import nifti, put, values

EYE = np.eye(3, 4)
SURPRISES = [
    ValueError("spacing must be positive"), OverflowError("too large"),
    struct.error("unpack requires 4 bytes"), RecursionError("maximum depth"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), MemoryError(),
    PermissionError(13, "Permission denied"), KeyError("rows"), TypeError("no"),
    ZeroDivisionError("division by zero"), JobError("the helper ended."), IndexError(),
]  # fmt: skip


def judged(*sources: Path) -> tuple[list[str], dict[str, str]]:
    found = drain(index_sources(list(sources)))
    reasons = {Path(r.path).name: r.reason for r in found.rejected}
    return sorted(c.id for c in found.cases), reasons


# ---- geometry of other scanners ------------------------------------------------------


def test_a_negative_step_is_a_direction_not_a_fault(tmp_path: Path) -> None:
    step = {0x00180088: ("DS", "-2.0")}
    series(tmp_path / "stack", 6, more=step)
    write(tmp_path / "slice" / "one.dcm", tags_of(more=step))
    for name, depth in (("stack", 6), ("slice", 1)):
        found = inspect_scan(tmp_path / name)
        assert found.problems == ()
        assert found.header is not None
        assert found.header.shape[0] == depth
        assert found.header.affine.spacing_mm == (2.0, 0.75, 0.5)
    assert read_scan(tmp_path / "stack").data.shape == (1, 6, 12, 14)


@each("told", ["-2", "0", "nan", "1e999", "x", "2\\2", ""])
def test_odd_steps_and_thicknesses_stop_nothing(told: str, tmp_path: Path) -> None:
    series(tmp_path, 6, more={0x00180088: ("DS", told), 0x00180050: ("DS", told)})
    header = inspect_scan(tmp_path).header
    assert header is not None
    assert header.affine.spacing_mm[0] == 2.0  # from the positions


def test_slices_turned_by_rounding_are_one_scan(tmp_path: Path) -> None:
    turns = ("1\\0\\0\\0\\1\\0", "1\\0\\0.0004\\0\\1\\0.0005", "1\\0\\0.0008\\0\\1\\0")
    jitter = [{0x00200037: ("DS", turns[i % 3])} for i in range(12)]
    series(tmp_path, 12, each=jitter)
    found = inspect_scan(tmp_path)
    assert [(p.code, p.fatal) for p in found.problems] == [
        ("orientation_varies", False)
    ]
    assert found.header is not None
    affine = found.header.affine
    assert found.header.shape == (12, 12, 14)
    assert affine.spacing_mm == pytest.approx((2.0, 0.75, 0.5))
    assert affine.origin_mm == (0.0, -20.0, -10.0)
    assert affine.shear < 1e-9
    assert np.abs(affine.direction - np.eye(3)).max() < 1e-3


def test_pixel_sizes_that_differ_in_their_last_digit_are_one_scan(
    tmp_path: Path,
) -> None:
    sizes = ("0.75\\0.5", "0.7500001\\0.5", "0.75\\0.49999")
    series(tmp_path, 9, each=[{0x00280030: ("DS", sizes[i % 3])} for i in range(9)])
    found = inspect_scan(tmp_path)
    assert found.usable
    assert found.header is not None
    assert found.header.shape[0] == 9


def test_stacks_that_are_truly_turned_stay_apart(tmp_path: Path) -> None:
    for number, turn in enumerate(
        ("1\\0\\0\\0\\1\\0", "0.9998\\0.02\\0\\-0.02\\0.9998\\0")
    ):
        series(tmp_path, 20 + number, uid="1.9", more={0x00200037: ("DS", turn)})
        for path in tmp_path.glob("1.9-*.dcm"):
            path.rename(path.with_name(f"{number}{path.name[3:]}"))
    assert sorted(s.shape[0] for s in list_series(tmp_path)) == [20, 21]


# ---- damage --------------------------------------------------------------------------

ODD: dict[str, dict[int, Any]] = {
    "position out of all range": {0x00200032: ("DS", "1e308\\1e308\\-1e308")},
    "spacing of nothing": {0x00280030: ("DS", "0\\0")},
    "spacing below zero": {0x00280030: ("DS", "-1\\1")},
    "spacing without end": {0x00280030: ("DS", "inf\\1")},
    "spacing out of all range": {0x00280030: ("DS", "1e300\\1e300")},
    "orientation of zeros": {0x00200037: ("DS", "0\\0\\0\\0\\0\\0")},
    "orientation out of all range": {0x00200037: ("DS", "1e300\\0\\0\\0\\1e300\\0")},
    "frames in words": {0x00280008: ("IS", "many")},
    "frames without end": {0x00280008: ("IS", "9" * 5000)},
    "frames below zero": {0x00280008: ("IS", "-3")},
    "no rows": {0x00280010: None},
    "rows of nothing": {0x00280010: ("US", 0)},
    "bits in words": {0x00280100: ("US", b"sixteen!")},
    "samples of nothing": {0x00280002: ("US", 0)},
    "bytes that are no text": {0x0008103E: ("LO", bytes(range(128, 256)))},
    "class of nonsense": {0x00080016: ("UI", "1.2.840.10008.5.1.4.1.1.x.y")},
}


@each("name", ODD)
def test_one_odd_series_stops_no_other(name: str, tmp_path: Path) -> None:
    series(tmp_path / "good", 6, uid="1.1")
    series(tmp_path / "both", 6, uid="2.1", more=ODD[name])
    series(tmp_path / "both", 7, uid="2.2")
    cases, reasons = judged(tmp_path)
    assert {"good", "both__series_2.2"} <= set(cases)
    for reason in reasons.values():
        assert "Error:" not in reason
    infos = list_series(tmp_path)
    assert sum(not i.trouble for i in infos) >= 2
    file = next((tmp_path / "both").glob("2.1-*.dcm"))
    assert series_with(file) is None or series_with(file).path.parent


LENGTHS = {
    "name of a patient": element(0x00100020, "LO", "P7")[:6] + b"\xfe\xff" + b"P7",
    "sequence": struct.pack("<HH2s2sI", 0x0008, 0x1140, b"SQ", b"\0\0", 0xFFFFFFF0),
    "item": struct.pack("<HH2s2sI", 0x0008, 0x1140, b"SQ", b"\0\0", 0xFFFFFFFF)
    + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFF0),
    "unknown": struct.pack("<HH2s2sI", 0x0009, 0x1001, b"UN", b"\0\0", 0xFFFFFFF0),
    "nesting": (
        struct.pack("<HH2s2sI", 0x0008, 0x1140, b"SQ", b"\0\0", 0xFFFFFFFF)
        + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    )
    * 3000,
}


@each("name", LENGTHS)
def test_lengths_beyond_the_file_are_damage(name: str, tmp_path: Path) -> None:
    tags = {t: v for t, v in tags_of().items() if t > 0x00100020}
    rest = b"".join(element(t, *tags[t]) for t in sorted(tags))
    path = tmp_path / "a.dcm"
    path.write_bytes(file_of(LENGTHS[name] + rest))
    damage = read_dicom_file(path).damage
    assert damage is not None
    assert damage.code in ("truncated", "corrupt")
    reason = inspect_scan(path).reason
    assert reason is not None
    assert reason.code == damage.code


def test_a_long_text_is_not_taken_into_memory(tmp_path: Path) -> None:
    tags = tags_of()
    tags[0x0008103E] = ("UT", b"x" * (4 << 20))
    path = write(tmp_path / "a.dcm", tags)
    tracemalloc.start()
    found = read_dicom_file(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.damage is not None
    assert "0008103e" in found.damage.text
    assert peak < 1 << 20


def test_pixels_are_not_read_to_read_a_header(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", tags_of(pixels=np.zeros((1500, 2000), np.int16)))
    tracemalloc.start()
    found = read_dicom_file(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.damage is None
    assert found.has_pixels
    assert peak < 1 << 19


def test_a_deflated_file_is_read_and_a_bomb_is_not(tmp_path: Path) -> None:
    good = write(tmp_path / "good.dcm", tags_of(), DEFLATED)
    assert read_dicom_file(good).damage is None
    assert inspect_scan(good).usable
    cut = tmp_path / "cut.dcm"
    cut.write_bytes(good.read_bytes()[:-60])
    assert read_dicom_file(cut).damage is not None
    bombs = {
        "pixels": {0x7FE00010: ("OW", bytes(64 << 20))},
        "header": {0x00091001: ("UN", bytes(80 << 20))},
        "behind": {0x7FE10001: ("UN", bytes(64 << 20))},
    }
    for name, more in bombs.items():
        path = write(tmp_path / f"{name}.dcm", tags_of(more=more), DEFLATED)
        assert path.stat().st_size < 1 << 20
        tracemalloc.start()
        damage = read_dicom_file(path).damage
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert damage is not None, name
        assert damage.code == "corrupt"
        assert peak < 8 << 20
        reason = inspect_scan(path).reason
        assert reason is not None
        assert damage.text in reason.text


def test_packed_pixels_that_promise_too_much_are_damage(tmp_path: Path) -> None:
    fragment = struct.pack("<HHI", 0xFFFE, 0xE000, 0) + struct.pack(
        "<HHI", 0xFFFE, 0xE0DD, 0
    )
    more = {
        0x00280010: ("US", 65535), 0x00280011: ("US", 65535), 0x7FE00010: None,
    }  # fmt: skip
    tags = tags_of(more=more)
    body = b"".join(element(t, *tags[t]) for t in sorted(tags))
    pixels = struct.pack("<HH2s2sI", 0x7FE0, 0x0010, b"OB", b"\0\0", 0xFFFFFFFF)
    path = tmp_path / "a.dcm"
    path.write_bytes(file_of(body + pixels + fragment, JPEG))
    damage = read_dicom_file(path).damage
    assert damage is not None
    assert "8589672450 bytes of pixels promised" in damage.text


# ---- surprises -----------------------------------------------------------------------


@each("error", SURPRISES)
def test_any_surprise_in_one_file_is_its_finding(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "bad", "c"):
        data = values((9, 10, 11), np.float32) + ord(name[0])
        put(tmp_path / f"{name}.nii.gz", nifti(data, srow=EYE))
    reading = inspecting.read_header

    def read_header(path: Path) -> Any:
        if path.name.startswith("bad"):
            raise error
        return reading(path)

    monkeypatch.setattr(inspecting, "read_header", read_header)
    cases, reasons = judged(tmp_path)
    assert cases == ["a", "c"]
    assert list(reasons) == ["bad.nii.gz"]
    assert reasons["bad.nii.gz"] == problem_of(error).text
    assert reasons["bad.nii.gz"].endswith(".")


@each("error", SURPRISES)
def test_any_surprise_in_one_slice_costs_its_scan_alone(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    series(tmp_path / "one", 6, uid="1.1")
    bad = series(tmp_path / "two", 6, uid="1.2")[3]
    series(tmp_path / "two", 7, uid="1.3")
    reading = dicom_folder.read_dicom_file

    def read(path: Path) -> Any:
        if path == bad:
            raise error
        return reading(path)

    monkeypatch.setattr(dicom_folder, "read_dicom_file", read)
    cases, reasons = judged(tmp_path)
    assert "one" in cases
    assert len(reasons) >= 1
    assert all("1.2" in name or "1.3" in name for name in reasons)
    assert sum(not s.trouble for s in list_series(tmp_path)) >= 1


def test_a_user_who_stops_is_not_a_fault_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path / "a.nii.gz", nifti(values(), srow=EYE))

    def interrupted(_: Path) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(inspecting, "read_header", interrupted)
    with pytest.raises(KeyboardInterrupt):
        inspect_scan(path)


def test_findings_are_one_sentence_whatever_the_error_says() -> None:
    assert problem_of(Unsound("4d", "4D.")).code == "4d"
    text = problem_of(ValueError("a\n  b" * 500)).text
    assert "\n" not in text
    assert len(text) < 400
    assert problem_of(OSError(28, "No space left on device")).text == (
        "cannot be written: No space left on device."
    )


# ---- tables --------------------------------------------------------------------------


def test_one_odd_row_of_a_manifest_stops_no_other(tmp_path: Path) -> None:
    put(tmp_path / "a.nii.gz", nifti(values(), srow=EYE))
    put(tmp_path / "b.nii.gz", nifti(values((9, 9, 9)), srow=EYE))
    odd: list[dict[str, Any]] = [
        {"image": "x" * 5000}, {"image": "nul\0.nii"}, {"image": ["a.nii.gz", "c"]},
        {"image": "b.nii.gz", "label": "y" * 5000},
        {"image": "b.nii.gz", "split": 3}, {"image": "b.nii.gz", "class": {"a": 1}},
        {"image": "b.nii.gz", "boxes": [{"min": [0, 0, -1e999], "max": [1, 1, 1]}]},
        {"image": "b.nii.gz", "boxes": [[1, 2]]}, {"image": None}, {},
        {"image": "b.nii.gz", "x": "nan", "y": "1", "w": "1", "h": "1"},
        {"image": "b.nii.gz", "label_names": {"²": "a", "--1": "b"}, "label": "nope"},
    ]  # fmt: skip
    path = tmp_path / "cases.json"
    path.write_text(json.dumps([*odd, {"image": "a.nii.gz"}]))
    result = drain(index_sources([path]))
    assert "a" in [c.id for c in result.cases]
    assert len(result.rejected) >= len(odd) - 1
    assert all("Error" not in r.reason for r in result.rejected)


def test_one_odd_entry_of_a_dataset_stops_no_other(tmp_path: Path) -> None:
    (tmp_path / "imagesTr").mkdir()
    put(tmp_path / "imagesTr" / "a.nii.gz", nifti(values(), srow=EYE))
    good = {"image": "imagesTr/a.nii.gz"}
    odd = [7, None, {"image": 3}, {"image": "x" * 5000}, {}, [], {"image": "nul\0.nii"}]
    raw = {"training": [*odd, good], "labels": {"²": "a", "--1": "b", "1": "c"}}
    (tmp_path / "dataset.json").write_text(json.dumps(raw))
    cases, _ = judged(tmp_path)
    assert cases == ["a"]
    result = drain(index_sources([tmp_path]))
    assert len(result.rejected) == len(odd)


def test_a_dataset_that_cannot_be_read_stops_no_folder_beside_it(
    tmp_path: Path,
) -> None:
    for name, text in (
        ("cut", '{"training": ['), ("deep", "[" * 100_000), ("list", "[1, 2]"),
    ):  # fmt: skip
        (tmp_path / name / "imagesTr").mkdir(parents=True)
        (tmp_path / name / "dataset.json").write_text(text)
    put(tmp_path / "good.nii.gz", nifti(values(), srow=EYE))
    cases, reasons = judged(tmp_path)
    assert cases == ["good"]
    assert set(reasons) == {"dataset.json"}


def test_names_nested_without_end_leave_labels_unnamed(tmp_path: Path) -> None:
    put(tmp_path / "a.nii.gz", nifti(values(), srow=EYE))
    label = np.zeros((9, 10, 11), np.uint8)
    label[3:6, 3:6, 3:8] = 1
    put(tmp_path / "a_seg.nii.gz", nifti(label, srow=EYE))
    (tmp_path / "label_names.json").write_text("[" * 100_000)
    (case,) = drain(index_sources([tmp_path])).cases
    assert case.label is not None


def test_names_that_are_no_utf8_are_names(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/p\xff1"
    try:
        os.mkdir(folder)
    except OSError:
        pytest.skip("this disk takes no such name")
    for number, name in enumerate((b"a\xfe.nii.gz", b"T1.nii.gz")):
        data = values((9, 10, 11), np.float32) + number
        put(Path(os.fsdecode(folder + b"/" + name)), nifti(data, srow=EYE))
    result = drain(prepare_store([tmp_path], tmp_path / "store"))
    assert result["cases"] == 2
    assert result["rejected"] == []
