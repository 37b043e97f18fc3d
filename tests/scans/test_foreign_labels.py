"""Label maps as other programs write them: nearly whole, turned, with their names."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from each import each
from homolog.geometry.affine import Affine
from homolog.scans.files import read_labels, read_scan
from homolog.scans.formats.label_tables import read_label_table
from homolog.scans.formats.slicer import label_colours
from homolog.scans.inspect import inspect_scan, label_problems, labels_by_place
from homolog.scans.names import names_beside
from homolog.scans.problems import Unsound
from homolog.scans.volume import LabelMap, ValueStats
from homolog.scans.write import write_labels

SHAPE = (6, 7, 8)  # x, y, z
AFFINE = np.array(
    [[0.0, 1.5, 0.0, 4.0], [2.0, 0.0, 0.0, -9.0], [0.0, 0.0, 3.0, 2.0], [0, 0, 0, 1]]
)


def marks() -> np.ndarray:
    """(x, y, z) whole numbers, no two planes of them alike."""
    found = np.zeros(SHAPE, np.uint8)
    found[1:4, 2:6, 1:5] = 1
    found[2:3, 3:6, 4:7] = 2
    found[5, 6, 7] = 3
    return found


def save(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


def scan(path: Path) -> Path:
    values = np.random.default_rng(0).integers(0, 500, SHAPE).astype(np.int16)
    return save(path, values)


@each(
    "told",
    [
        marks() * np.float32(1.0000153),
        marks() * 0.9999999975,
        marks() + np.random.default_rng(1).normal(0, 1e-5, SHAPE).clip(-5e-5, 5e-5),
        marks() - 9e-4,
    ],
)
def test_nearly_whole_numbers_are_whole(tmp_path: Path, told: np.ndarray) -> None:
    path = save(tmp_path / "a.nii.gz", told)
    found = read_labels(path)
    assert found.data.dtype.kind == "i"
    assert np.array_equal(found.data.transpose(2, 1, 0), marks())
    seen = inspect_scan(path)
    assert seen.stats is not None
    assert seen.stats.labels == {0, 1, 2, 3}
    assert seen.stats.patchy
    image = inspect_scan(scan(tmp_path / "scan.nii.gz"))
    assert image.header is not None
    assert label_problems(image.header, seen) == []


def test_a_nearly_whole_mask_is_told_to_be_no_scan(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).normal(0, 1e-5, SHAPE).clip(-5e-5, 5e-5)
    for number, told in enumerate(((marks() > 0) * 0.99999, (marks() > 0) + noise)):
        seen = inspect_scan(save(tmp_path / f"{number}.nii.gz", told))
        (problem,) = seen.problems
        assert problem.code == "label_map"
        assert problem.text.startswith("only two different values (0 and 1)")


@each("odd", [marks() * 1.01, marks() + 0.5, marks() * np.nan, marks() * 3e9])
def test_other_numbers_are_told(tmp_path: Path, odd: np.ndarray) -> None:
    path = save(tmp_path / "a.nii.gz", odd.astype(np.float32))
    with pytest.raises(Unsound, match=r"must be whole numbers") as refused:
        read_labels(path)
    assert refused.value.problem.code == "label_values"


def test_small_values_of_a_scan_are_no_labels() -> None:
    diffusion = np.random.default_rng(0).uniform(0, 9e-4, 4000).astype(np.float32)
    diffusion[:2000] = 0.0
    stats = ValueStats()
    stats.update(diffusion)
    assert stats.labels is None
    assert not stats.looks_like_labels
    assert not stats.is_label_map


def test_what_was_nearly_whole_may_turn_out_not_to_be() -> None:
    for pieces in (
        [np.array([0.0, 0.9999]), np.array([2.0, 3.3])],
        [np.array([0.0, 2.5]), np.array([0.9999])],
    ):
        stats = ValueStats()
        for piece in pieces:
            stats.update(piece)
        assert stats.labels is None
    stats = ValueStats()
    for piece in (np.array([0.0, 4.0]), np.array([1.0001, 4.0]), np.array([7.0])):
        stats.update(piece)
    assert stats.labels == {0, 1, 4, 7}


@each("axes", list(itertools.permutations(range(3))))
def test_labels_are_compared_by_place(tmp_path: Path, axes: Any) -> None:
    image = scan(tmp_path / "scan.nii.gz")
    for number, flips in enumerate(itertools.product((False, True), repeat=3)):
        turned = nib.Nifti1Image(marks(), AFFINE)
        code = np.stack([axes, [-1.0 if f else 1.0 for f in flips]], 1)
        turned = turned.as_reoriented(code)
        path = tmp_path / f"label{number}.nii.gz"
        nib.save(turned, path)
        seen, told = inspect_scan(image), inspect_scan(path)
        assert seen.header is not None
        assert label_problems(seen.header, told) == []
        found = labels_by_place(read_labels(path), read_scan(image))
        assert np.array_equal(found.data.transpose(2, 1, 0), marks())
        assert found.affine.close_to(read_scan(image).affine, found.shape)


def test_labels_of_another_place_are_told(tmp_path: Path) -> None:
    image = inspect_scan(scan(tmp_path / "scan.nii.gz"))
    assert image.header is not None
    moved, coarse = AFFINE.copy(), AFFINE.copy()
    moved[0, 3] += 1.5
    coarse[:3, 0] *= 1.1
    for affine, code in ((moved, "label_affine"), (coarse, "label_affine")):
        path = save(tmp_path / "label.nii.gz", marks(), affine)
        (problem,) = label_problems(image.header, inspect_scan(path))
        assert problem.code == code
    path = save(tmp_path / "label.nii.gz", marks()[:5])
    (problem,) = label_problems(image.header, inspect_scan(path))
    assert problem.code == "label_shape"


def slicer(path: Path, data: np.ndarray, origin: Any, names: list[str]) -> Path:
    """A segmentation as 3D Slicer writes it, (z, y, x), here of 1 x 2 x 3 mm."""
    image = sitk.GetImageFromArray(data.astype(np.uint8))
    image.SetSpacing((1.0, 2.0, 3.0))
    image.SetOrigin(origin)
    for number, name in enumerate(names):
        image.SetMetaData(f"Segment{number}_Name", name)
        image.SetMetaData(f"Segment{number}_LabelValue", str(number + 1))
        image.SetMetaData(f"Segment{number}_Layer", "0")
    sitk.WriteImage(image, str(path), useCompression=True)
    return path


def test_a_part_of_the_grid_with_the_segments_is_set_into_the_whole(
    tmp_path: Path,
) -> None:
    whole = np.zeros((9, 8, 7), np.int16)
    whole[3:5, 2:6, 4:6], whole[5, 3, 5] = 1, 2
    image = sitk.GetImageFromArray(np.arange(whole.size).reshape(whole.shape))
    image.SetSpacing((1.0, 2.0, 3.0))
    image.SetOrigin((10.0, -4.0, 7.0))
    sitk.WriteImage(image, str(tmp_path / "scan.nrrd"))
    origin = image.TransformIndexToPhysicalPoint((4, 2, 3))
    path = slicer(
        tmp_path / "a.seg.nrrd", whole[3:6, 2:6, 4:6], origin, ["liver", "cyst"]
    )
    header = inspect_scan(tmp_path / "scan.nrrd").header
    assert header is not None
    assert label_problems(header, inspect_scan(path)) == []
    found = labels_by_place(read_labels(path), read_scan(tmp_path / "scan.nrrd"))
    assert np.array_equal(found.data, whole)
    assert names_beside(path) == {1: "liver", 2: "cyst"}
    # any other program's smaller grid may leave out what was not looked at
    plain = tmp_path / "plain.nrrd"
    small = sitk.ReadImage(str(path))
    for key in small.GetMetaDataKeys():
        if key.startswith("Segment"):
            small.EraseMetaData(key)
    sitk.WriteImage(small, str(plain))
    assert label_problems(header, inspect_scan(plain))[0].code == "label_shape"


def test_what_slicer_is_given_has_names_and_colours_and_comes_back(
    tmp_path: Path,
) -> None:
    data = np.moveaxis(marks(), (0, 1, 2), (2, 1, 0)).astype(np.int16)
    data[0, 0, 0] = -1  # not looked at: no segment
    names = {1: "left kidney", 2: "cyst of 3 mm", 7: "not in this scan"}
    given = LabelMap(data, Affine.of((3.0, 1.5, 2.0), (2.0, -9.0, 4.0)), names)
    path = tmp_path / "a.seg.nrrd"
    write_labels(given, path, {1: (1.0, 0.0, 0.25)})
    found = read_labels(path)
    assert np.array_equal(found.data, np.maximum(data, 0))
    assert found.affine.close_to(given.affine, given.shape, 1e-6)
    assert names_beside(path) == {**names, 3: "label 3"}
    assert not list(tmp_path.glob("*.json"))
    assert label_colours(path)[1] == (1.0, 0.0, 0.25)
    # as another program sees it
    image = sitk.ReadImage(str(path))
    assert image.GetMetaData("Segment1_Name") == "cyst of 3 mm"
    assert image.GetMetaData("Segment1_LabelValue") == "2"
    assert image.GetMetaData("Segment1_Extent") == "0 5 0 6 0 7"
    assert image.GetMetaData("Segmentation_MasterRepresentation") == "Binary labelmap"
    assert image.GetSpacing() == (2.0, 1.5, 3.0)


CTBL = """# Color table file /home/x/Atlas.ctbl
# 3 values
0 Background 0 0 0 0
1 left_kidney 128 174 128 255
2 Tumour 241 214 145 255
"""
SNAP = """################################################
# ITK-SnAP Label Description File
# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL
################################################
    0     0    0    0        0  0  0    "Clear Label"
    1   255    0    0        1  1  1    "left kidney"
    2     0  255    0      0.5  1  1    "Tumour"
"""
FREESURFER = """#No. Label Name:   R   G   B   A
0   Unknown   0   0   0   0

1   left kidney
2   Tumour   70  130 180  0
"""
DSEG = "index\tname\tcolor\n0\tbackground\t#000\n1\tleft kidney\t#f00\n2\tTumour\t#0\n"


@each(
    "name, text",
    [
        ("p1.ctbl", CTBL), ("colours.ctbl", CTBL), ("p1.txt", SNAP), ("l.label", SNAP),
        ("p1.tsv", DSEG), ("dseg.tsv", DSEG),
        ("labels.csv", "LabelValue;Name\n1;left kidney\n2;Tumour\n"),
    ],
)  # fmt: skip
def test_names_in_tables_of_other_programs(
    tmp_path: Path, name: str, text: str
) -> None:
    label = save(tmp_path / "p1.nii.gz", marks())
    (tmp_path / name).write_text(text)
    (tmp_path / "README.txt").write_text("1 not a table of labels at all\n")
    assert names_beside(label) == {1: "left kidney", 2: "Tumour"}


def test_tables_of_other_things_name_nothing(tmp_path: Path) -> None:
    label = save(tmp_path / "p1.nii.gz", marks())
    (tmp_path / "p1.csv").write_text("image,label\na.nii,b.nii\n")
    (tmp_path / "p2.ctbl").write_text(CTBL)  # of another file
    save(tmp_path / "p2.nii.gz", marks())
    (tmp_path / "notes.txt").write_text("1 2 3\n")
    (tmp_path / "patients.csv").write_text("id,name\n1,Doe\n2,Roe\n")
    broken = tmp_path / "broken.txt"
    broken.write_text(FREESURFER)  # a line without its colour
    assert read_label_table(broken) == {}
    assert names_beside(label) == {}
    (tmp_path / "one.ctbl").write_text(CTBL)
    assert names_beside(label)[2] == "Tumour"
    (tmp_path / "two.ctbl").write_text(CTBL.replace("Tumour", "Cyst"))
    assert names_beside(label) == {}  # which of them is meant is not known


def test_an_affine_tells_which_of_its_axes_run_along_another() -> None:
    plain = Affine.of((1.0, 2.0, 3.0))
    turned = plain.reorient((2, 0, 1), (True, False, True), (4, 5, 6))
    assert plain.axes_along(turned) == ((2, 0, 1), (True, False, True))
