"""Labels kept as DICOM: segmentations in and out, contours in; names, place, volume."""

from __future__ import annotations

import re
import sqlite3
import warnings
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from click.testing import CliRunner

from dicom_writer import contours, enhanced, series
from homolog.cli import cli
from homolog.errors import UnusableInput
from homolog.events import drain
from homolog.geometry.affine import Affine
from homolog.index.index import index_sources
from homolog.scans.dicom.export import SUFFIX, coded, write_segmentation
from homolog.scans.dicom.labels import filled
from homolog.scans.files import (
    read_header,
    read_labels,
    read_scan,
)
from homolog.scans.inspect import inspect_scan, label_problems, labels_by_place
from homolog.scans.names import names_told
from homolog.scans.problems import Unsound
from homolog.scans.volume import LabelMap, Volume
from homolog.store.build import prepare_store
from homolog.store.store import Store
from homolog.use.predict import _write_result, result_paths

STUDY = {
    0x00100010: ("PN", "A^B"), 0x00100030: ("DA", ""), 0x00100040: ("CS", ""),
    0x00080020: ("DA", "20200101"), 0x00080030: ("TM", "101010"),
    0x00080050: ("SH", ""), 0x00080090: ("PN", ""), 0x00200010: ("SH", "1"),
    0x00200011: ("IS", "1"), 0x00200052: ("UI", "1.2.3.9"),
}  # fmt: skip


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A CT of 9 slices, 2 x 0.75 x 0.5 mm."""
    numbers = [{0x00200013: ("IS", i + 1)} for i in range(9)]
    series(tmp_path / "ct", 9, each=numbers, more=STUDY)
    return tmp_path / "ct"


def two_classes(volume: Volume) -> LabelMap:
    data = np.zeros(volume.shape, np.int16)
    data[2:6, 3:9, 2:8] = 4
    data[4:7, 6:10, 7:12] = 9
    return LabelMap(data, volume.affine, {4: "liver", 9: "left kidney"})


def test_a_segmentation_holds_what_was_predicted(scan: Path, tmp_path: Path) -> None:
    volume = read_scan(scan)
    labels = two_classes(volume)
    target = result_paths([scan], tmp_path / "out", ending=SUFFIX)[scan]
    assert target.name == "ct.seg.dcm"
    target.parent.mkdir()
    _write_result(labels, target, volume)
    whole = hd.seg.segread(target)  # as others read it
    assert whole.number_of_segments == 2
    assert whole.PatientID == "P7"
    one = whole.get_segment_description(2)
    assert one.segment_label == "left kidney"
    assert one.segmented_property_type.meaning == "Kidney"
    assert one.segmented_property_category.meaning == "Anatomical Structure"
    assert len(one.RecommendedDisplayCIELabValue) == 3
    theirs = whole.get_volume(combine_segments=True)
    lower = theirs.affine @ [0, 0, 0, 1]
    assert theirs.spacing == pytest.approx((2.0, 0.75, 0.5))
    assert lower[:2] == pytest.approx([-10, -20])
    back = labels_by_place(read_labels(target, names_told(target)), volume)
    assert back.names == {1: "liver", 2: "left kidney"}
    np.testing.assert_array_equal(back.data == 1, labels.data == 4)
    np.testing.assert_array_equal(back.data == 2, labels.data == 9)
    np.testing.assert_allclose(back.affine.matrix, volume.affine.matrix, atol=1e-3)
    assert label_problems(read_header(scan), inspect_scan(target)) == []
    assert inspect_scan(target).objection is not None  # no scan to learn from


def test_segments_that_overlap_go_to_the_smallest(scan: Path, tmp_path: Path) -> None:
    images = [pydicom.dcmread(p) for p in sorted(scan.iterdir())]
    masks = np.zeros((9, 12, 14, 2), np.uint8)
    masks[2:7, 2:10, 2:12, 0] = 1
    masks[4:6, 4:6, 4:6, 1] = 1
    told = [
        hd.seg.SegmentDescription(
            i + 1, name, hd.sr.CodedConcept("85756007", "SCT", "Tissue"),
            hd.sr.CodedConcept("85756007", "SCT", "Tissue"), "MANUAL",
        )
        for i, name in enumerate(("liver", "tumour"))
    ]  # fmt: skip
    whole = hd.seg.Segmentation(
        images, masks, "BINARY", told, "1.2.77", 5, "1.2.78", 1, "a", "b", "c", "d"
    )
    whole.save_as(tmp_path / "s.dcm")
    found = inspect_scan(tmp_path / "s.dcm")
    assert "overlap" in [p.code for p in found.problems]
    labels = labels_by_place(read_labels(tmp_path / "s.dcm"), read_scan(scan))
    np.testing.assert_array_equal(labels.data == 2, masks[..., 1] == 1)
    np.testing.assert_array_equal(
        labels.data == 1, (masks[..., 0] == 1) & (masks[..., 1] == 0)
    )


def circle(centre: tuple[float, float], radius: float, z: float) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    x, y = centre[0] + radius * np.cos(angle), centre[1] + radius * np.sin(angle)
    return np.column_stack([x, y, np.full(200, z)])


def test_contours_are_filled_on_their_images(scan: Path, tmp_path: Path) -> None:
    centre = (-10 + 3.5, -20 + 4.125)
    rings = [circle(centre, r, 2.0 * z) for z in range(2, 7) for r in (3.0, 1.5)]
    away = [circle(centre, 2.0, 500.0)]
    path = contours(
        tmp_path / "rt" / "RS.dcm", "1.2.3.4", {"ring": rings + away, "empty": []}
    )
    found = inspect_scan(path)
    assert found.usable
    assert [p.code for p in found.problems] == ["label_map", "contours"]
    assert names_told(path) == {1: "ring", 2: "empty"}
    labels = read_labels(path)
    volume = read_scan(scan)
    assert labels.affine == volume.affine
    z, y, x = np.moveaxis(
        labels.affine.apply(np.indices(labels.shape).reshape(3, -1).T), 1, 0
    ).reshape(3, *labels.shape)
    far = np.hypot(x - centre[0], y - centre[1])
    inside = (far < 2.99) & (far > 1.51) & (z > 3.9) & (z < 12.1)
    outside = (far > 3.01) | (far < 1.49) | (z < 3.9) | (z > 12.1)
    assert labels.data[inside].all()
    assert not labels.data[outside].any()


def test_filling_is_even_odd_and_unbiased() -> None:
    rng = np.random.default_rng(1)
    areas, counts = 0.0, 0
    for _ in range(60):
        y, x, r = rng.uniform(20, 40, 3) / (1, 1, 4)
        angle = np.linspace(0, 2 * np.pi, 300, endpoint=False)
        ring = np.column_stack(
            [np.zeros(300), y + r * np.sin(angle), x + r * np.cos(angle)]
        )
        counts += int(filled([ring], (1, 60, 60)).sum())
        areas += np.pi * r * r
    assert counts == pytest.approx(areas, rel=2e-3)
    square = np.array([[0, 1, 1], [0, 1, 5], [0, 5, 5], [0, 5, 1]], float)
    assert filled([square, square], (1, 9, 9)).sum() == 0
    far = square - (0, 100, 100)
    assert filled([far], (1, 9, 9)).sum() == 0


def test_labels_come_to_the_series_they_name(scan: Path, tmp_path: Path) -> None:
    series(tmp_path / "other", 7, uid="1.9", more=STUDY)
    volume = read_scan(scan)
    write_segmentation(
        two_classes(volume), tmp_path / "s.seg.dcm", volume.meta["slices"]
    )
    contours(tmp_path / "rt" / "a.dcm", "1.77", {"x": [circle((0, 0), 3, 2)]})
    result = drain(index_sources([tmp_path]))
    by_image = {c.image.name: c for c in result.cases}
    assert set(by_image) == {"ct", "other"}
    assert by_image["ct"].label == tmp_path / "s.seg.dcm"
    assert by_image["ct"].label_names == {1: "liver", 2: "left kidney"}
    assert by_image["other"].label is None
    assert [(Path(r.path).name, r.code) for r in result.rejected] == [
        ("a.dcm", "not_an_image")
    ]
    made = drain(prepare_store([tmp_path], tmp_path / "store", spacing="native"))
    assert made["labelled"] == 1
    store = Store.open(tmp_path / "store")
    assert set(store.label_names.values()) >= {"liver", "left kidney"}


def test_a_volume_of_an_enhanced_file_has_its_segmentation(tmp_path: Path) -> None:
    told = [
        {"position": (0, 0, 3.0 * z), "echo": echo} for z in range(6) for echo in (4, 9)
    ]
    pixels = np.arange(12 * 30).reshape(12, 6, 5)
    path = enhanced(tmp_path / "a.dcm", told, pixels)
    one = sorted(p for p in _listed(path))[1]
    volume = read_scan(one)
    data = np.zeros(volume.shape, np.int16)
    data[1:4, 2:4, 1:3] = 1
    labels = LabelMap(data, volume.affine, {1: "liver"})
    write_segmentation(labels, tmp_path / "s.dcm", volume.meta["slices"])
    back = labels_by_place(read_labels(tmp_path / "s.dcm"), volume)
    np.testing.assert_array_equal(back.data, data)


def _listed(path: Path) -> list[Path]:
    from homolog.index.tree import list_series

    return [s.path for s in list_series(path)]


def test_what_has_no_series_has_no_dicom_segmentation(tmp_path: Path) -> None:
    labels = LabelMap(np.ones((3, 3, 3), np.int16), Affine.identity(), {1: "a"})
    with pytest.raises(UnusableInput, match="belongs to a DICOM series"):
        write_segmentation(labels, tmp_path / "a.seg.dcm", ())
    assert list(tmp_path.iterdir()) == []


def test_contours_without_their_images_say_so(scan: Path, tmp_path: Path) -> None:
    path = contours(tmp_path / "RS.dcm", "9.9", {"x": [circle((0, 0), 3, 2)]})
    run = CliRunner().invoke(cli, ["info", str(path)])
    said = re.sub(r"\s+", " ", run.output)
    assert "the images that its contours were drawn on are not near it" in said


def test_names_are_coded() -> None:
    for name, category, kind, side in (
        ("liver", "Anatomical Structure", "Liver", None),
        ("Left_Kidney", "Anatomical Structure", "Kidney", "Left"),
        ("rightLung", "Anatomical Structure", "Lung", "Right"),
        ("liver_tumour", "Morphologically Abnormal Structure", "Neoplasm", None),
        ("thing 7", "Tissue", "Tissue", None),
    ):
        found = [one.meaning if one else None for one in coded(name)]
        assert found == [category, kind, side]


@pytest.mark.kit
def test_contours_of_the_kit_have_the_volume_of_its_mask(data_kit: Path) -> None:
    folder = data_kit / "dicom" / "sts_008_ct_pet_mr_rtstruct"
    ours = read_labels(folder / "PET" / "mask" / "RS.dcm")
    theirs = read_labels(data_kit / "sts_petctmr" / "STS_008" / "PET_mask.nii.gz")
    volume = [np.count_nonzero(one.data) for one in (ours, theirs)]
    assert volume[0] == pytest.approx(volume[1], rel=0.01)
    centre = [one.affine.apply(np.argwhere(one.data).mean(0)) for one in (ours, theirs)]
    np.testing.assert_allclose(*centre, atol=1e-3)


def test_whatever_goes_wrong_with_segments_is_their_finding(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = read_scan(scan)
    target = tmp_path / "s.seg.dcm"
    write_segmentation(two_classes(volume), target, volume.meta["slices"])

    def broken(*_: object) -> None:
        raise sqlite3.OperationalError("no such column")

    monkeypatch.setattr("homolog.scans.dicom.labels._segment_values", broken)
    with pytest.raises(Unsound, match=r"segments cannot be read \(no such column\)"):
        read_labels(target)


def test_a_sequence_cut_short_prints_no_warning(tmp_path: Path) -> None:
    frames = [{"position": (0.0, 0.0, 2.0 * i)} for i in range(4)]
    path = enhanced(tmp_path / "a.dcm", frames, np.ones((4, 12, 14), np.int16))
    content = path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for at in range(200, len(content), 97):
            path.write_bytes(content[:at] + b"\xff\xff\xff\xff" + content[at + 4 :])
            inspect_scan(path)
